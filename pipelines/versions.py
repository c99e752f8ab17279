"""Versions: a directory frozen under a number, with a digest of every file, and fetched back whole or not at all.

A version is a folder with a `VERSION.json` that lists its files. Where it is kept (a folder, object
storage, the Hugging Face Hub) is an fsspec filesystem here; `curate/stages/publish.py` puts it there.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from fsspec import AbstractFileSystem  # type: ignore[import-untyped]
from fsspec.core import url_to_fs  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from pipelines import __version__, parquet, runner
from pipelines.content import TableContent, content_digest, digest, directory_content
from pipelines.errors import UserError
from pipelines.tables import SCHEMA_VERSION, TABLES

RECORD = "VERSION.json"

_NUMBER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileRecord:
    """One file of a version; `rows` is None for what is not a table."""

    size: int
    sha256: str
    rows: int | None = None


@dataclass(frozen=True)
class Version:
    """What `VERSION.json` says."""

    name: str
    version: str
    schema_version: int
    code: str
    """Version of tracemill that published it."""
    content: str
    """Digest of the tables' rows alone: equal for two versions that hold the same rows, in whatever files."""
    tables: Mapping[str, TableContent]
    """Table -> its rows and their digest; a table without rows is left out."""
    files: Mapping[str, FileRecord]
    """Path below the version's folder -> what it holds; every file but `VERSION.json` itself."""

    def to_json(self) -> str:
        """The text of `VERSION.json`, which carries a digest of itself."""
        facts = asdict(self)
        return json.dumps({**facts, "record": digest(facts)}, indent=1, sort_keys=True) + "\n"

    @property
    def num_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.size for file in self.files.values())


def checked_number(version: str) -> str:
    """`version` itself if it is a semantic version (`1.2.0`, `2.0.0-rc.1`)."""
    if not is_number(version):
        raise UserError(f"`{version}` is not a semantic version", hint="three numbers, e.g., 1.2.0 or 2.0.0-rc.1")
    return version


def is_number(text: str) -> bool:
    """Whether `text` is a semantic version."""
    return _NUMBER.fullmatch(text) is not None


def precedence(version: str) -> tuple[tuple[int, ...], bool, tuple[tuple[bool, int, str], ...]]:
    """A key that sorts versions by semver.org, section 11: `2.0.0-rc.2` before `2.0.0-rc.10` before `2.0.0`."""
    numbers, _, tail = version.partition("-")
    parts = tuple((not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in tail.split("."))
    return tuple(int(number) for number in numbers.split(".")), not tail, parts


def checked_name(name: str) -> str:
    """`name` itself if it can name a data set."""
    if not _NAME.fullmatch(name):
        raise UserError(f"`{name}` cannot name a data set", hint="letters, digits, `.`, `_` and `-`")
    return name


# --- freezing -------------------------------------------------------------------------------------


def freeze(root: Path, name: str, version: str, extra: Mapping[str, Path]) -> Version:
    """The version that the tables of `root` and the `extra` files (path in the version -> file) make up."""
    paths = version_files(root, extra)
    files = {}
    for place, path in sorted(paths.items()):
        rows = parquet.facts(path).rows if path.suffix == ".parquet" else None
        files[place] = FileRecord(path.stat().st_size, sha256(path), rows)
    tables = directory_content(root)
    return Version(
        checked_name(name), checked_number(version), SCHEMA_VERSION, __version__, content_digest(tables), tables, files
    )


def version_files(root: Path, extra: Mapping[str, Path]) -> dict[str, Path]:
    """Path in the version -> file, for every table of `root` and the `extra` files."""
    tables = {f"{table}/{path.name}": path for table in TABLES for path in parquet.table_files(root, table)}
    if not tables:
        raise UserError(f"`{root}` holds no tables", hint="see `curate status`")
    return {**tables, **extra}


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- reading --------------------------------------------------------------------------------------


def parse_record(text: str, where: str) -> Version:
    """The version that a `VERSION.json` describes; one that was altered is a `UserError` that names it."""
    try:
        facts = json.loads(text)
        stated = facts.pop("record")
        files = {checked_place(place): FileRecord(**file) for place, file in facts["files"].items()}
        tables = {table: TableContent(**content) for table, content in facts["tables"].items()}
        version = Version(**{**facts, "files": files, "tables": tables})
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"`{where}` is not a version record: {error}", hint="fetch the version again") from None
    if stated != digest(facts) or version.content != content_digest(tables):
        raise UserError(f"`{where}` was altered: its digest does not match", hint="fetch it from its publisher")
    return version


def checked_place(place: str) -> str:
    """A file's path inside a version; one that would leave the folder is refused."""
    path = PurePosixPath(place)
    if path.is_absolute() or not path.parts or any(part in ("..", ".") or "\\" in part for part in path.parts):
        raise ValueError(f"path {place!r} leaves the version's folder")
    if place != path.as_posix() or place == RECORD:
        raise ValueError(f"path {place!r} is not a plain path")
    return place


def read_version(folder: Path) -> Version | None:
    """The record of a version's folder; None where the folder is no version."""
    path = folder / RECORD
    return parse_record(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else None


@contextmanager
def writable(root: Path) -> Iterator[None]:
    """Hold a run directory, as `runner.locked` does; a published version is a `UserError`, for it never changes."""
    if (root / RECORD).is_file():
        raise UserError(f"`{root}` is a published version", hint="write in the run directory it was made from")
    with runner.locked(root):
        yield


def cited(folder: Path) -> dict[str, str] | None:
    """Name, number and content digest of the version that a folder is; None where it is none."""
    version = read_version(folder)
    if version is None:
        return None
    return {"name": version.name, "version": version.version, "content": version.content}


def faults(folder: Path, version: Version) -> Iterator[str]:
    """What is wrong with the files of a version's folder, one sentence a file; nothing if it is whole."""
    for place, file in version.files.items():
        path = folder / place
        if not path.is_file():
            yield f"`{place}` is missing"
        elif path.stat().st_size != file.size:
            yield f"`{place}` has {path.stat().st_size:,} bytes, published were {file.size:,}"
        elif (found := sha256(path)) != file.sha256:
            yield f"`{place}` was altered: SHA-256 {found[:12]}…, published was {file.sha256[:12]}…"
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder).as_posix()
        if path.is_file() and place not in (*version.files, RECORD, ".lock"):
            yield f"`{place}` is not part of the version"


def checked_folder(folder: Path) -> Version:
    """The version in a folder, its record, every file and the rows themselves checked against their digests."""
    version = read_version(folder)
    if version is None:
        raise UserError(f"`{folder}` is no version: it has no `{RECORD}`", hint="see `curate publish`, `curate fetch`")
    found = list(faults(folder, version))
    if not found and directory_content(folder) != version.tables:
        found = ["the rows are not those of the record, though every file is"]
    if found:
        raise UserError(f"`{folder}` is not what was published: {'; '.join(found)}", hint="fetch the version again")
    return version


# --- places ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """`LOCATION@VERSION`: where a data set is kept, and which of its versions is meant."""

    location: str
    """A folder, an fsspec URL, or `hf:ORG/NAME`."""
    version: str

    @property
    def name(self) -> str:
        """The data set's name: the last part of its location."""
        return checked_name(self.location.rstrip("/").rsplit("/", 1)[-1].removeprefix("hf:"))


def parse_reference(text: str, place: str | None = None) -> Reference:
    """`NAME@1.2.0`, below `place` (a folder, URL or `hf:ORG`) where one is given."""
    location, separator, version = text.rpartition("@")
    if not (separator and location):
        raise UserError(f"`{text}` is not NAME@VERSION", hint="e.g., curate fetch math-traces@1.2.0 --from DEST")
    if place is not None:
        location = f"{place.rstrip('/')}/{location}"
    return Reference(location, checked_number(version))


def open_location(location: str, version: str | None = None) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a location and the path on it: of one version's folder where `version` is given.

    Versions are folders of their data set; on the Hub they are tags of its repository.
    """
    if location.startswith("hf:"):
        repository = location.removeprefix("hf:")
        url = f"hf://datasets/{repository}" + (f"@{version}" if version else "")
    else:
        url = location.rstrip("/") + (f"/{version}" if version else "")
    try:
        filesystem, path = url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UserError(f"cannot open `{location}`: {error}", hint="a folder, an fsspec URL, or hf:ORG/NAME") from None
    return filesystem, path


# --- fetching -------------------------------------------------------------------------------------


OnBytes = Callable[[int], object]


def fetch(reference: Reference, into: Path, on_bytes: OnBytes | None = None) -> tuple[Version, int]:
    """The version, verified, in the folder `into`, and the number of files downloaded now.

    Files gather in `INTO.partial`, which a fetch that was cut off leaves behind and the next one
    continues, and become `into` in one step. `on_bytes` hears of downloaded bytes.
    """
    filesystem, source = open_location(reference.location, reference.version)
    version = _remote_record(filesystem, source, reference)
    if into.exists():
        return _already_there(into, version), 0
    staging = into.with_name(f"{into.name}.partial")
    with runner.locked(staging):
        fetched = 0
        for place, file in version.files.items():
            path = staging / place
            if path.is_file() and path.stat().st_size == file.size and sha256(path) == file.sha256:
                continue
            if not _downloaded(filesystem, f"{source}/{place}", path, file, on_bytes):
                raise UserError(
                    f"`{place}` of {reference.name}@{reference.version} is not what was published",
                    hint="it was altered or damaged where it is kept: tell its publisher",
                )
            fetched += 1
        drop_strangers(staging, version)
        runner.write_text(staging / RECORD, version.to_json())
        staging.rename(into)
    (into / ".lock").unlink(missing_ok=True)
    return version, fetched


def _remote_record(filesystem: AbstractFileSystem, source: str, reference: Reference) -> Version:
    where = f"{reference.location}@{reference.version}"
    try:
        text = filesystem.cat_file(f"{source}/{RECORD}").decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no version `{where}`", hint="check name and number, or give `--from`") from None
    except network_errors() as error:
        raise UserError(f"cannot read `{where}`: {error}", hint="check the network, name and number") from None
    version = parse_record(text, f"{where}/{RECORD}")
    if version.version != reference.version:
        raise UserError(f"`{where}` holds version {version.version}", hint="it was altered: tell its publisher")
    return version


def network_errors() -> tuple[type[Exception], ...]:
    """What reading from afar may raise: the Hub's client and that of S3 have errors of their own."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    found: list[type[Exception]] = [OSError, HTTPError]
    if (botocore := sys.modules.get("botocore.exceptions")) is not None:  # loaded by s3fs, which is optional
        found.append(botocore.BotoCoreError)
    return tuple(found)


def _already_there(into: Path, version: Version) -> Version:
    found = read_version(into) if into.is_dir() else None
    if found != version:
        raise UserError(f"`{into}` exists and is another thing", hint="choose another --into")
    for fault in faults(into, version):
        raise UserError(f"{fault} in `{into}`", hint=f"remove `{into}` and fetch again")
    return version


def _downloaded(
    filesystem: AbstractFileSystem, source: str, path: Path, file: FileRecord, on_bytes: OnBytes | None
) -> bool:
    """Whether `source` is the file it should be; if so it is at `path`.

    Goes on behind the bytes that an earlier fetch left; where those turn out wrong, begins again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.fetching")
    start = partial.stat().st_size if partial.is_file() else 0
    for offset in [start, 0] if 0 < start <= file.size else [0]:
        _download(filesystem, source, partial, offset, on_bytes)
        if sha256(partial) == file.sha256:
            partial.replace(path)
            return True
    partial.unlink()
    return False


def _download(
    filesystem: AbstractFileSystem, source: str, partial: Path, offset: int, on_bytes: OnBytes | None
) -> None:
    try:
        with filesystem.open(source, "rb") as remote, partial.open("ab") as local:
            local.truncate(offset)
            remote.seek(offset)
            while chunk := remote.read(_CHUNK_BYTES):
                local.write(chunk)
                if on_bytes is not None:
                    on_bytes(len(chunk))
            local.flush()
            os.fsync(local.fileno())
    except FileNotFoundError:
        raise UserError(f"`{source}` is missing", hint="the version is damaged: tell its publisher") from None
    except network_errors() as error:
        raise UserError(f"cannot fetch `{source}`: {error}", hint="run it again: it goes on where it stopped") from None


def drop_strangers(staging: Path, version: Version) -> None:
    """Remove from a staging folder what an earlier, interrupted run for other content left there."""
    for path in staging.rglob("*"):
        place = path.relative_to(staging).as_posix()
        if path.is_file() and place not in version.files and place != ".lock":
            path.unlink()


# --- versions in place of folders -----------------------------------------------------------------


def folder_of(text: str) -> Path:
    """The folder that a command is given: `text` itself, or the verified files of the version `NAME@1.2.0`.

    A version kept elsewhere is fetched once, to `$TRACEMILL_CACHE`, by default `~/.cache/tracemill`.
    """
    if "@" not in text or Path(text).exists():
        return Path(text)
    reference = parse_reference(text)
    filesystem, path = open_location(reference.location, reference.version)
    if isinstance(filesystem, LocalFileSystem):
        return _verified(Path(path), reference)
    place = hashlib.sha256(reference.location.encode()).hexdigest()[:12]
    into = _cache() / "versions" / f"{reference.name}-{reference.version}-{place}"
    if into.is_dir():
        return _verified(into, reference)
    fetch(reference, into)
    return into


def _cache() -> Path:
    stated = os.environ.get("TRACEMILL_CACHE")
    return Path(stated) if stated else Path.home() / ".cache" / "tracemill"


def _verified(folder: Path, reference: Reference) -> Path:
    version = read_version(folder)
    if version is None:
        raise UserError(f"no version `{reference.location}@{reference.version}`", hint="check name and number")
    for fault in faults(folder, version):
        raise UserError(f"{fault} in `{folder}`", hint=f"remove `{folder}` and fetch the version again")
    return folder
