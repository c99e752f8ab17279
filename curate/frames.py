"""Tables as polars frames: what a set stage reads besides text."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa

from pipelines import parquet


def to_frame(rows: pa.RecordBatch | pa.Table) -> pl.DataFrame:
    """The same rows as a polars frame; no text is copied."""
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    return frame


def read_frame(root: Path, table: str, columns: Sequence[str]) -> pl.DataFrame:
    """Some columns of a whole table, in file order; no rows where the table has no files."""
    return to_frame(parquet.read_table(parquet.table_files(root, table), table, columns))


def read_frames(root: Path, table: str, columns: Sequence[str], batch_rows: int) -> Iterator[pl.DataFrame]:
    """The same in batches, for columns of text."""
    for path in parquet.table_files(root, table):
        for batch in parquet.read_batches(path, table, columns, batch_rows):
            yield to_frame(batch)


def read_rows(
    root: Path, table: str, columns: Sequence[str], wanted: pl.Series, batch_rows: int
) -> Iterator[tuple[pl.Series, pl.DataFrame]]:
    """The rows numbered `wanted` (sorted; file order, from 0), in batches with their numbers.

    A file without one of them is not read.
    """
    first = 0
    for path in parquet.table_files(root, table):
        num_rows = parquet.facts(path).rows
        if wanted.is_between(first, first + num_rows - 1).any():
            at = first
            for batch in parquet.read_batches(path, table, columns, batch_rows):
                here = wanted.filter(wanted.is_between(at, at + batch.num_rows - 1))
                if len(here):
                    yield here, to_frame(batch)[here - at]
                at += batch.num_rows
        first += num_rows


def problem_text(prompts: pl.DataFrame) -> pl.Series:
    """Each problem followed by its options, which are part of what it asks."""
    # A word between them, so that an option that begins with a sign does not continue a formula.
    options = pl.col("choices").list.join("\noption ")
    return prompts.select(pl.concat_str("problem", options, separator="\noption ", ignore_nulls=True)).to_series()


def num_rollouts(root: Path) -> pl.DataFrame:
    """`prompt_id`, `num_rollouts` of every prompt that has some."""
    return read_frame(root, "rollouts", ["prompt_id"]).group_by("prompt_id").agg(num_rollouts=pl.len())
