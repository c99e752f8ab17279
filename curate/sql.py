"""SQL over a run directory: DuckDB views of every table, and nothing else within reach."""

import csv
import datetime
import io
import json
import os
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem  # type: ignore[import-untyped]

from pipelines import parquet
from pipelines.errors import UserError
from pipelines.tables import TABLES

Form = Literal["json", "csv", "parquet"]


def _view_name(table: str) -> str:
    return "selections" if table.startswith("selections/") else table.removeprefix("shards/").replace("/", "_")


VIEWS: dict[str, list[str]] = {}
"""View name -> tables it shows: `annotations_prompts` -> `annotations/prompts`, `sft` -> `shards/sft`."""
for _table in TABLES:
    VIEWS.setdefault(_view_name(_table), []).append(_table)


@contextmanager
def tables(root: Path, *, memory_limit: str = "2GB") -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with a view of each table of `root`, for SQL of our own; a table without files is empty.

    It reaches the tables' files and no other. Not for SQL that somebody else wrote: see `query`.
    """
    with _connection({"main": _checked_files(root)}, memory_limit) as connection:
        yield connection


@contextmanager
def tables_of(roots: Mapping[str, Path], *, memory_limit: str = "2GB") -> Iterator[duckdb.DuckDBPyConnection]:
    """As `tables`, for several directories: each is a schema, `a.prompts`, `b.prompts`."""
    files = {schema: _checked_files(root) for schema, root in roots.items()}
    with _connection(files, memory_limit) as connection:
        yield connection


def query(root: Path, sql: str, *, memory_limit: str = "2GB") -> pa.Table:
    """The result of one SELECT (also FROM, DESCRIBE, SUMMARIZE, SHOW TABLES) over the tables of `root`.

    Nothing is written, whatever the statement says: DuckDB's own file access is off, and what it is
    given instead cannot write. (Allowing it the tables' paths would not do: `WITH x AS (COPY … TO
    'rollouts/00000.parquet' …) SELECT …` counts as a SELECT.)
    """
    files = _checked_files(root)
    with _connection({"main": files}, memory_limit, shelf=_Shelf(files)) as connection:
        try:
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise UserError("`curate sql` takes one SELECT", hint='e.g., curate sql out/ "SELECT * FROM verdicts"')
            result: pa.Table = connection.sql(sql).to_arrow_table()
            return result
        except duckdb.Error as error:
            raise UserError(f"SQL: {_first_lines(error)}", hint=f"tables: {', '.join(VIEWS)}") from None


def write_result(result: pa.Table, form: Form, file: BinaryIO) -> None:
    """Write `result`: a JSON array with one object a line, CSV with a header, or Parquet.

    Lists and structs are JSON text inside CSV.
    """
    if form == "parquet":
        pq.write_table(result, file, compression="zstd")
    elif form == "json":
        rows = (json.dumps(row, ensure_ascii=False, default=str) for row in _rows(result))
        file.write(b"[\n")
        for number, row in enumerate(rows):
            file.write((",\n" if number else "").encode() + row.encode("utf-8", "replace"))
        file.write(b"\n]\n")
    else:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(result.column_names)
        writer.writerows([_flat(value) for value in row.values()] for row in _rows(result))
        text.detach()


# --- connection -----------------------------------------------------------------------------------


def _checked_files(root: Path) -> dict[str, list[Path]]:
    """View name -> absolute paths of its files, each checked to hold its table in this schema version."""
    if not root.is_dir():
        raise UserError(f"no run directory `{root}`", hint="make one with `curate import` or `curate generate`")
    files: dict[str, list[Path]] = {}
    for view, members in VIEWS.items():
        files[view] = []
        for table in members:
            for path in parquet.table_files(root, table):
                parquet.check_schema(path, table)
                files[view].append(path.resolve())
    return files


@contextmanager
def _connection(
    files: Mapping[str, Mapping[str, list[Path]]], memory_limit: str, shelf: "_Shelf | None" = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory database with views (schema -> view -> files), then locked: no other file, extension or setting."""
    address = str if shelf is None else shelf.address
    with tempfile.TemporaryDirectory(prefix="tracemill-sql-") as spill:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": memory_limit,
            "temp_directory": spill,
            "python_enable_replacements": False,  # a table name never means a Python variable
            "autoload_known_extensions": False,
            "autoinstall_known_extensions": False,
        }
        connection = duckdb.connect(config=settings)
        try:
            if shelf is not None:
                connection.register_filesystem(shelf)
            allowed: list[str] = []
            for schema, views in files.items():
                connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
                for view, paths in views.items():
                    addresses = [address(path) for path in paths]
                    _create_view(connection, schema, view, addresses)
                    allowed += addresses
            connection.execute(f"SET allowed_paths = {_sql_list(allowed)}")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            yield connection
        finally:
            connection.close()


def _create_view(connection: duckdb.DuckDBPyConnection, schema: str, view: str, addresses: list[str]) -> None:
    if addresses:
        files = _sql_list(addresses)
        connection.execute(f"CREATE VIEW {schema}.{view} AS SELECT * FROM read_parquet({files})")  # noqa: S608
    else:
        connection.from_arrow(TABLES[VIEWS[view][0]].empty_table()).create(f"{schema}.{view}")


def _sql_list(texts: list[str]) -> str:
    return "[" + ", ".join("'" + text.replace("'", "''") + "'" for text in texts) + "]"


class _Shelf(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The tables' files as `tables:///path`, to be read and never written: what DuckDB sees instead of the disk."""

    protocol = "tables"
    cachable = False

    def __init__(self, files: Mapping[str, list[Path]]) -> None:
        super().__init__()
        self._paths = {str(path): path for paths in files.values() for path in paths}

    @staticmethod
    def address(path: Path) -> str:
        return f"tables://{path}"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("tables://")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        name = self._strip_protocol(path)
        if name not in self._paths:
            raise FileNotFoundError(path)
        status = self._paths[name].stat()
        return {"name": name, "size": status.st_size, "type": "file", "mtime": status.st_mtime}

    def modified(self, path: str) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.info(path)["mtime"], tz=datetime.UTC)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> "_Reader":
        if mode != "rb":
            raise PermissionError(f"`{path}` is read-only")
        return _Reader(self._paths[self._strip_protocol(path)])


class _Reader:
    """A file that several threads read at once, as DuckDB does: each thread has its own position."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        # DuckDB drops its files without closing them.
        self.close = weakref.finalize(self, os.close, self._descriptor)
        self._position: dict[int, int] = {}

    def seek(self, offset: int) -> int:
        self._position[threading.get_ident()] = offset
        return offset

    def tell(self) -> int:
        return self._position.get(threading.get_ident(), 0)

    def read(self, num_bytes: int) -> bytes:
        start = self.tell()
        chunk = os.pread(self._descriptor, num_bytes, start)
        self.seek(start + len(chunk))
        return chunk

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


# --- results --------------------------------------------------------------------------------------


def _rows(result: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in result.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def _flat(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else value


def _first_lines(error: duckdb.Error) -> str:
    """DuckDB's message without the excerpt of the statement."""
    return str(error).split("\n\nLINE ", 1)[0].replace("\n", " ").strip()
