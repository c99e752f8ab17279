"""Tables as polars frames: what a set stage reads besides text."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def aligned_frames(root: Path, key: str, columns: Mapping[str, Sequence[str]]) -> Iterator[pl.DataFrame]:
    """For each file of the first table, its columns beside those of the label tables' files of the same name.

    Rows are in the first table's order; a label that is not there (yet) is null. A table without files
    gives one frame without rows.
    """
    first, *labels = columns
    for name in [path.name for path in parquet.table_files(root, first)] or [""]:
        frame = _read_file(root / first / name, first, [key, *columns[first]])
        for table in labels:
            found = _read_file(root / table / name, table, [key, *columns[table]])
            if found.height == frame.height and (found[key] == frame[key]).all():
                frame = frame.hstack(found.drop(key))
            else:  # the file has grown since it was labelled
                frame = frame.join(found.unique(key, keep="first"), on=key, how="left", maintain_order="left")
        yield frame


def gathered(frames: Iterable[pl.DataFrame], least_rows: int = 1 << 18) -> Iterator[pl.DataFrame]:
    """The same rows in fewer frames, of at least so many rows but for the last one.

    A join goes through all rows of its other side: frame by frame it would cost files times problems.
    """
    pending: list[pl.DataFrame] = []
    num_rows = 0
    for frame in frames:
        pending.append(frame)
        num_rows += frame.height
        if num_rows >= least_rows:
            yield pl.concat(pending)
            pending, num_rows = [], 0
    if pending:
        yield pl.concat(pending)


def _read_file(path: Path, table: str, columns: Sequence[str]) -> pl.DataFrame:
    return to_frame(parquet.read_table([path] if path.is_file() else [], table, columns))


def read_rows(
    root: Path, table: str, columns: Sequence[str], wanted: pl.Series, batch_rows: int
) -> Iterator[tuple[pl.Series, pl.DataFrame]]:
    """The rows numbered `wanted` (sorted; file order, from 0), in batches with their numbers.

    A file without one of them is not read.
    """
    first = 0
    for path in parquet.table_files(root, table):
        num_rows = parquet.facts(path).rows
        if len(_between(wanted, first, num_rows)):
            at = first
            for batch in parquet.read_batches(path, table, columns, batch_rows):
                here = _between(wanted, at, batch.num_rows)
                if len(here):
                    yield here, to_frame(batch)[here - at]
                at += batch.num_rows
        first += num_rows


def _between(wanted: pl.Series, first: int, num_rows: int) -> pl.Series:
    """The numbers of sorted `wanted` from `first` on, up to `first + num_rows`."""
    low, high = wanted.search_sorted(first), wanted.search_sorted(first + num_rows)
    return wanted[low:high]


def problem_text(prompts: pl.DataFrame) -> pl.Series:
    """Each problem followed by its options, which are part of what it asks."""
    # A word between them, so that an option that begins with a sign does not continue a formula.
    options = pl.col("choices").list.join("\noption ")
    return prompts.select(pl.concat_str("problem", options, separator="\noption ", ignore_nulls=True)).to_series()


def num_rollouts(root: Path) -> pl.DataFrame:
    """`prompt_id`, `num_rollouts` of every prompt that has some."""
    return read_frame(root, "rollouts", ["prompt_id"]).group_by("prompt_id").agg(num_rollouts=pl.len())
