"""The content digest: a Merkle tree over the logical rows of tables, whatever files and row groups hold them.

A row's digest is SHA-256 over its values; a table's leaves are its rows in the order of their digests, in 256
buckets by the first byte; the root covers the schema and the buckets. Rows are a multiset: their order does not
count, how often one occurs does. Nothing but digests is held, and those of one bucket at a time.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines import parquet
from pipelines.tables import TABLES

_DIGEST_BYTES = 32
_BUCKETS = 256
_BUFFER_BYTES = 128 << 10
"""Digests of a bucket that are gathered before they are written: 32 MiB for all buckets."""
_BATCH_ROWS = 512
_NULL = -1


@dataclass(frozen=True)
class TableContent:
    """What a table holds: the number of its rows and the root over them."""

    rows: int
    digest: str


def directory_content(root: Path) -> dict[str, TableContent]:
    """Table -> content, for every table of a run directory that has rows."""
    found = {table: table_content(parquet.table_files(root, table), table) for table in TABLES}
    return {table: content for table, content in found.items() if content.rows}


def content_digest(tables: Mapping[str, TableContent]) -> str:
    """One digest for the content of several tables."""
    return digest({table: [content.rows, content.digest] for table, content in tables.items()})


def digest(value: Any) -> str:
    """SHA-256, in hex, of a JSON value in canonical form."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def table_content(paths: Sequence[Path], table: str) -> TableContent:
    """The content of the files of `table` together; the same rows in other files have the same."""
    schema = TABLES[table]
    with tempfile.TemporaryDirectory(prefix="tracemill-digest-") as folder:
        buckets = [Path(folder) / f"{number:02x}" for number in range(_BUCKETS)]
        batches = (batch for path in paths for batch in parquet.read_batches(path, table, batch_rows=_BATCH_ROWS))
        rows = _spread((row for batch in batches for row in row_digests(batch)), buckets)
        root = hashlib.sha256(digest([table, [[field.name, str(field.type)] for field in schema]]).encode())
        for bucket in buckets:
            root.update(_bucket_digest(bucket))
    return TableContent(rows, root.hexdigest())


def _spread(digests: Iterable[bytes], buckets: Sequence[Path]) -> int:
    """Put every digest into the file of its bucket; returns how many there were."""
    buffers = [bytearray() for _ in buckets]
    rows = 0
    for row in digests:
        rows += 1
        buffer = buffers[row[0]]
        buffer += row
        if len(buffer) >= _BUFFER_BYTES:
            _append(buckets[row[0]], buffer)
    for bucket, buffer in zip(buckets, buffers, strict=True):
        _append(bucket, buffer)
    return rows


def _append(path: Path, buffer: bytearray) -> None:
    if buffer:
        with path.open("ab") as file:
            file.write(buffer)
        buffer.clear()


def _bucket_digest(path: Path) -> bytes:
    stored = path.read_bytes() if path.is_file() else b""
    ordered = sorted(stored[at : at + _DIGEST_BYTES] for at in range(0, len(stored), _DIGEST_BYTES))
    return hashlib.sha256(b"".join(ordered)).digest()


# --- rows -----------------------------------------------------------------------------------------


def row_digests(batch: pa.RecordBatch) -> Iterator[bytes]:
    """The digest of each row.

    SHA-256 over a header of 64-bit integers, then the bytes of its texts, both in the order of the columns. In the
    header a text is its number of bytes (-1: null), a number is 0 (-1: null) and its bits. Lists are texts, as JSON.
    """
    headers: list[NDArray[np.int64]] = []
    texts: list[tuple[list[int], memoryview]] = []
    for column in batch.columns:
        if _is_number(column.type):
            headers += [_presence(column), _bits(column)]
        else:
            ends, text = _text(column)
            headers.append(np.where(_presence(column) == _NULL, _NULL, np.diff(ends)))
            texts.append((ends.tolist(), text))
    header = np.stack(headers, axis=1).astype("<i8").tobytes()
    width = 8 * len(headers)
    for row in range(batch.num_rows):
        parts = [text[offsets[row] : offsets[row + 1]] for offsets, text in texts]
        yield hashlib.sha256(b"".join((header[row * width : (row + 1) * width], *parts))).digest()


Column: TypeAlias = "pa.Array[Any]"


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _presence(column: Column) -> NDArray[np.int64]:
    return np.where(column.is_null().to_numpy(zero_copy_only=False), _NULL, 0).astype(np.int64)


def _bits(column: Column) -> NDArray[np.int64]:
    """Each value as an integer: a float's bits as a double, zero where there is none."""
    if pa.types.is_floating(column.type):
        return column.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False).view(np.int64)
    return column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)


def _text(column: Column) -> tuple[NDArray[np.int64], memoryview]:
    """Offsets (rows + 1) into bytes, a null being empty."""
    if pa.types.is_nested(column.type):
        encoded = [None if value is None else _json(value) for value in column.to_pylist()]
        column = pa.array(encoded, pa.large_string())
    flat = pa.concat_arrays([column.cast(pa.large_string()).fill_null("")])  # a copy that begins at offset 0
    _, offsets, text = flat.buffers()
    assert offsets is not None
    counted = np.frombuffer(memoryview(offsets), dtype=np.int64, count=flat.offset + len(flat) + 1)[flat.offset :]
    return counted, memoryview(text if text is not None else b"").cast("B")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
