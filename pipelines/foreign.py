"""Open datasets that others wrote: the one door for foreign files, as `parquet.py` is for our tables.

Parquet, JSON lines, JSON, CSV (each may be gzipped, but for Parquet), a folder of these, a folder
written by `Dataset.save_to_disk`, or `hf:NAME` on the Hugging Face hub. Rows stream: memory holds a
few rows, whatever the file's size. A row that cannot be read is handed over as `Unreadable` with
its reason, and reading goes on.
"""

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from pipelines.errors import UserError, first_line

MAX_ROW_BYTES = 4 << 20
"""A longer row is refused: the longest real trace is far below it, a broken file is not."""

SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".jsonl.gz", ".ndjson.gz", ".json.gz", ".csv.gz")
_PEEKED_ROWS = 200
_PEEKED_CHARS = 16 << 20
_CHUNK = 1 << 20


class Row(NamedTuple):
    """One row: its zero-based number (line number for JSON lines) and its values by column."""

    number: int
    values: dict[str, Any]


class Unreadable(NamedTuple):
    """A row that is no row, and why."""

    number: int
    reason: str
    detail: str


Rows = Iterator[Row | Unreadable]


@dataclass(frozen=True)
class ForeignRows:
    """A source that can be read, any number of times, from its beginning."""

    source: str
    """As the user named it."""
    name: str
    """Last part of the source without its suffix: what our files and rows are called after."""
    digest: str
    """Of the content, 32 hex digits."""
    read: Callable[[], Rows]

    def peek(self) -> list[Row]:
        """The first rows that can be read, of very long ones a few; a layout is recognised by them."""
        rows: list[Row] = []
        chars = 0
        for row in islice((row for row in self.read() if isinstance(row, Row)), _PEEKED_ROWS):
            rows.append(row)
            chars += num_chars(row.values)
            if chars > _PEEKED_CHARS:
                break
        return rows


def num_chars(value: Any) -> int:
    """Characters of text in a value of a row, nested values included."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(num_chars, value.values()))
    return sum(map(num_chars, value)) if isinstance(value, list) else 0


def open_rows(source: str) -> ForeignRows:
    """The rows of a file, a folder, or `hf:NAME[:CONFIG[:SPLIT]]`; `UserError` where there is nothing to read."""
    if source.startswith("hf:"):
        return _open_hub(source)
    path = Path(source)
    if not path.exists():
        raise UserError(f"no file or folder `{source}`", hint="check the path; a hub dataset is named hf:ORG/NAME")
    if path.is_dir():
        return _open_folder(source, path)
    if _suffix(path) is None:
        raise UserError(
            f"`{source}` is none of {', '.join(SUFFIXES[:5])} (or .gz)", hint="convert it, e.g., to JSON lines"
        )
    _check_footer(path)
    return ForeignRows(source, stem(path), _digest([path], path.parent), lambda: _number(_read_file(path)))


def _open_folder(source: str, folder: Path) -> ForeignRows:
    """A folder of `save_to_disk`, else its data files of one kind, in the order of their names."""
    name = folder.resolve().name
    everything = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    visible = [path for path in everything if not any(part[0] in "._" for part in path.relative_to(folder).parts)]
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        arrow = [path for path in visible if path.suffix == ".arrow"]
        return ForeignRows(source, name, _digest(arrow, folder), lambda: _number(_read_saved(folder)))
    kinds = (".parquet", ".jsonl", ".ndjson", ".csv", ".json")
    by_kind = [[path for path in visible if _suffix(path) in (kind, f"{kind}.gz")] for kind in kinds]
    files = next((found for found in by_kind if found), None)
    if files is None:
        raise UserError(f"no Parquet, JSON or CSV files in `{source}`", hint="name a folder that holds data files")
    for path in files:
        _check_footer(path)
    return ForeignRows(source, name, _digest(files, folder), lambda: _number(_read_files(files)))


def _open_hub(source: str) -> ForeignRows:
    """A dataset on the hub, or in `datasets`' cache: prepared as Arrow files on disk, read from there."""
    import datasets

    name, _, rest = source.removeprefix("hf:").partition(":")
    config, _, split = rest.partition(":")
    try:
        loaded = datasets.load_dataset(name, config or None, split=split or None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"cannot load `{source}` from the hub: {first_line(error)}",
            hint="check the name (hf:ORG/NAME:CONFIG:SPLIT), the network and your access; or name a local copy",
        ) from None
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {split: loaded}
    # The fingerprint of a prepared split derives from its commit and data files.
    prints = [f"{key}:{part._fingerprint}" for key, part in sorted(splits.items())]
    digest = hashlib.blake2b("\n".join([source, *prints]).encode(), digest_size=16).hexdigest()
    return ForeignRows(source, name.rpartition("/")[2], digest, lambda: _number(_datasets(splits.values())))


# --- reading: each yields the values of a row, or a fault ------------------------------------------


class _Fault(NamedTuple):
    reason: str
    detail: str


_Values = Iterator[dict[str, Any] | _Fault | None]
"""None is a line that holds nothing; it counts as a line, not as a row."""


def _number(values: _Values) -> Rows:
    for number, row in enumerate(values):
        if isinstance(row, _Fault):
            yield Unreadable(number, row.reason, row.detail)
        elif row is not None:
            yield Row(number, row)


def _read_files(files: Iterable[Path]) -> _Values:
    for path in files:
        yield from _read_file(path)


def _read_file(path: Path) -> _Values:
    """The rows of one file; a file that breaks off or is not what its name says is a `UserError`."""
    suffix = (_suffix(path) or "").removesuffix(".gz")
    readers = {".parquet": _read_parquet, ".json": _read_json, ".csv": _read_csv}
    try:
        yield from readers.get(suffix, _read_lines)(path)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read `{path}`: {first_line(error)}", hint="check that the file is whole and yours to read"
        ) from None


def _open(path: Path) -> IO[bytes]:
    file: Any = gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")  # noqa: SIM115
    return file  # type: ignore[no-any-return]


def _open_text(path: Path) -> IO[str]:
    # A byte that is not UTF-8 becomes half a surrogate, so it costs its row, not the file.
    return io.TextIOWrapper(_open(path), encoding="utf-8-sig", errors="surrogateescape", newline="")


def _read_parquet(path: Path) -> _Values:
    import pyarrow.parquet as pq

    # A page at a time: others write files of one row group, which would be in memory whole.
    with _readable_parquet(path), pq.ParquetFile(path, buffer_size=_CHUNK, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=64):
            yield from batch.to_pylist()


def _check_footer(path: Path) -> None:
    """A Parquet file without its end is a `UserError` before anything is read of it, or of those beside it."""
    import pyarrow.parquet as pq

    if _suffix(path) == ".parquet":
        with _readable_parquet(path):
            pq.read_metadata(path)


@contextmanager
def _readable_parquet(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"`{path}` is not a readable Parquet file: {first_line(error)}",
            hint="check that it is yours to read and whole, else fetch or write it again",
        ) from None


def _read_lines(path: Path) -> _Values:
    with _open(path) as file:
        while line := file.readline(MAX_ROW_BYTES + 1):
            if len(line) > MAX_ROW_BYTES:
                yield _too_long(line)
                while line and not line.endswith(b"\n"):
                    line = file.readline(_CHUNK)
            elif line.strip():
                yield _object(line)
            else:
                yield None


def _object(line: bytes) -> dict[str, Any] | _Fault:
    """The JSON object on a line."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return _Fault("not_utf8", f"{error.reason} at byte {error.start}: {line[:500]!r}")
    except (ValueError, RecursionError) as error:
        return _Fault("not_json", f"{error}: {line[:500].decode('utf-8', 'replace')}")
    return _as_row(value)


def _as_row(value: Any) -> dict[str, Any] | _Fault:
    if isinstance(value, dict):
        return value
    return _Fault("not_an_object", f"a JSON {type(value).__name__}, not an object: {str(value)[:500]}")


def _too_long(start: bytes | str) -> _Fault:
    shown = start[:200].decode("utf-8", "replace") if isinstance(start, bytes) else start[:200]
    return _Fault("row_too_long", f"longer than {MAX_ROW_BYTES} bytes: {shown} ...")


def _read_json(path: Path) -> _Values:
    """The objects of a JSON array, one at a time; a file whose first value is an object is read as JSON lines."""
    with _open(path) as file:
        start = file.read(_CHUNK).decode("utf-8-sig", "ignore").lstrip()[:1]
    if start == "{":
        yield from _read_lines(path)
    elif start == "[":
        with _open_text(path) as text:
            yield from _array_items(path, text)
    else:
        raise UserError(f"`{path}` holds neither a JSON array nor JSON lines", hint="convert it to JSON lines")


_BETWEEN_ITEMS = re.compile(r"[\s,]*")


def _array_items(path: Path, file: IO[str]) -> _Values:
    """The items of the array in `file`, decoded as they come; the buffer holds a few of them at most."""
    decoder = json.JSONDecoder()
    buffer = file.read(_CHUNK)
    position = buffer.index("[") + 1
    while True:
        between = _BETWEEN_ITEMS.match(buffer, position)
        position = between.end() if between else position
        if buffer.startswith("]", position):
            return
        try:
            item, end = decoder.raw_decode(buffer, position)
        except (ValueError, RecursionError) as error:
            # Not all of the item is here yet, or it is broken: only more text can tell.
            buffer, position = buffer[position:], 0
            chunk = file.read(max(_CHUNK, len(buffer)))
            if not chunk or len(buffer) > 2 * MAX_ROW_BYTES:
                raise UserError(
                    f"`{path}` is not valid JSON: {first_line(error)} in `{buffer[:60]}`",
                    hint="mend the file, or convert it to JSON lines, where one bad line costs one row",
                ) from None
            buffer += chunk
            continue
        yield _too_long(buffer[position : position + 200]) if end - position > MAX_ROW_BYTES else _as_row(item)
        position = end


def _read_csv(path: Path) -> _Values:
    """The rows under a CSV header, all values as text (`007` and `72,000` stay what they are)."""
    csv.field_size_limit(MAX_ROW_BYTES)
    with _open_text(path) as file:
        records = csv.reader(file, strict=True)
        header = next(records, [])
        while True:
            try:
                record = next(records, None)
            except csv.Error as error:
                yield _Fault("not_csv", str(error))
                continue
            if record is None:
                return
            if not record:
                yield None
            elif len(record) != len(header):
                yield _Fault("not_csv", f"{len(record)} fields under a header of {len(header)}: {str(record)[:500]}")
            else:
                yield dict(zip(header, record, strict=True))


def _read_saved(folder: Path) -> _Values:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"`{folder}` is not a dataset saved to disk: {first_line(error)}", hint="save or fetch it again"
        ) from None
    yield from _datasets(loaded.values() if isinstance(loaded, datasets.DatasetDict) else [loaded])


def _datasets(splits: Iterable[Any]) -> _Values:
    """The rows of memory-mapped datasets, one split after the other."""
    for split in splits:
        yield from split


# --- names and digests ----------------------------------------------------------------------------


def _suffix(path: Path) -> str | None:
    """The longest of `SUFFIXES` that the file's name ends with."""
    fitting = [suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)]
    return max(fitting, key=len, default=None)


def stem(path: Path) -> str:
    """A file's name without the suffix of its format."""
    return path.name[: len(path.name) - len(_suffix(path) or "")]


def _digest(files: Iterable[Path], base: Path) -> str:
    """Digest of the content of files and, where they are several, of their names."""
    paths = list(files)
    whole = hashlib.blake2b(digest_size=16)
    for path in paths:
        if len(paths) > 1:
            whole.update(f"{path.relative_to(base)}\0".encode())
        try:
            with path.open("rb") as file:
                whole.update(hashlib.file_digest(file, "blake2b").digest())
        except OSError as error:
            raise UserError(f"cannot read `{path}`: {error.strerror}", hint="check the file's permissions") from None
    return whole.hexdigest()
