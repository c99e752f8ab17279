"""Texts in the order in which they are wanted, when they are read in another: one pass, and files to hold them."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import polars as pl
import pyarrow as pa

from curate.frames import to_frame

BUCKET_BYTES = 64 << 20
"""Text that is held in memory at a time."""
_MOST_BUCKETS = 500
"""Files that are open at a time; where more would be needed, each holds more."""

_COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")


def buckets(num_bytes: pl.Series, bucket_bytes: int = BUCKET_BYTES) -> pl.Series:
    """The bucket of each row of a sequence whose texts have so many bytes: numbers from 0 that never fall."""
    ends = num_bytes.cast(pl.Int64).cum_sum()
    total = int(ends[-1]) if len(ends) else 0
    return ((ends - num_bytes) // max(bucket_bytes, -(-total // _MOST_BUCKETS))).cast(pl.UInt32)


def regrouped(
    folder: Path, wanted: pl.DataFrame, rows: Iterable[tuple[pl.Series, pl.DataFrame]]
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Each bucket with its rows (`row` and their columns), bucket after bucket.

    `wanted` says which `row` belongs in which `bucket`; a row may be in several. `rows` gives row
    numbers with their columns, in any order, once. What is written on the way lies in `folder` and is gone
    at the end; what a killed command leaves is named as half-written files are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        bucket: folder / f".bucket-{bucket:05}.{os.getpid()}.partial" for bucket in wanted["bucket"].unique().sort()
    }
    wanted = wanted.select("bucket", pl.col("row").cast(pl.UInt32)).sort("row", "bucket")
    try:
        with ExitStack() as stack:
            writers: dict[int, pa.RecordBatchFileWriter] = {}
            for numbers, frame in rows:
                placed = frame.with_columns(numbers.cast(pl.UInt32).alias("row"))
                placed = placed.join(_between(wanted, placed["row"]), on="row", maintain_order="left")
                for (bucket,), part in placed.group_by("bucket", maintain_order=True):
                    table = part.drop("bucket").to_arrow()
                    if bucket not in writers:
                        writers[bucket] = stack.enter_context(
                            pa.ipc.new_file(str(files[bucket]), table.schema, options=_COMPRESSED)
                        )
                    writers[bucket].write_table(table)
        for bucket, file in files.items():
            with pa.ipc.open_file(str(file)) as reader:
                yield bucket, to_frame(reader.read_all())
            file.unlink()
    finally:
        for file in files.values():
            file.unlink(missing_ok=True)


def one_after_the_other(
    folder: Path, schema: pa.Schema, pairs: Iterable[tuple[pa.RecordBatch, pa.RecordBatch]]
) -> tuple[Iterator[pa.RecordBatch], Iterator[pa.RecordBatch]]:
    """Two streams of one pass over `pairs`: first all left batches, then all right ones, which have `schema`.

    The right ones wait in a file without a name in `folder`, which goes with its process. To ask for them before
    the left ones are through is our bug.
    """
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed where its last batch is read)
    passed = False

    def lefts() -> Iterator[pa.RecordBatch]:
        nonlocal passed
        try:
            with pa.ipc.new_stream(file, schema, options=_COMPRESSED) as writer:
                for left, right in pairs:
                    writer.write_batch(right)
                    yield left
        except BaseException:
            file.close()
            raise
        passed = True

    def rights() -> Iterator[pa.RecordBatch]:
        assert passed, "the left batches come first"
        with file:
            file.seek(0)
            with pa.ipc.open_stream(file) as reader:
                yield from reader

    return lefts(), rights()


def _between(wanted: pl.DataFrame, rows: pl.Series) -> pl.DataFrame:
    """The part of `wanted`, sorted by row, between the least and the greatest of `rows`: a join goes through it all."""
    first = wanted["row"].search_sorted(rows.sort().head(1), "left")[0]
    last = wanted["row"].search_sorted(rows.sort().tail(1), "right")[0]
    return wanted[first:last]
