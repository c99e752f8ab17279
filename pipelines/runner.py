"""Run a stage: what is missing or stale, progress, manifest.

A row stage turns one file into the label file of the same name, so it resumes file by file and runs
on any executor. A set stage reads whole tables and writes whole tables. Both record in the footer of
every file the digest of what it was made from (stage, code version, config, inputs); a file whose
digest still matches is never made again, whatever killed the last run.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import parquet
from pipelines.config import Config, difference
from pipelines.errors import UserError

Batches = Iterable[pa.RecordBatch | pa.Table]


@dataclass(frozen=True)
class Stage:
    """What a stage reads and writes, and the version of its code.

    Bump `version` with any change that alters its output: it makes earlier output stale.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    version: int = 1


@dataclass(frozen=True)
class Outcome:
    """What a stage did: files and rows made now, files left as they were, seconds."""

    stage: str
    made: int
    kept: int
    rows: int
    seconds: float


# --- manifest -------------------------------------------------------------------------------------


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a run directory; an empty one where there is none yet."""
    path = root / "manifest.json"
    if not path.is_file():
        return {"stages": {}}
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        manifest["stages"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"`{path}` is not a manifest: {error}", hint="delete it: files that are fresh are recognised"
        ) from None
    return manifest


def write_text(path: Path, text: str) -> None:
    """Write a text file by atomic rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def record(root: Path, stage: str, entry: Mapping[str, Any]) -> None:
    """Put one stage's entry into the manifest."""
    manifest = read_manifest(root)
    manifest["stages"][stage] = dict(entry)
    write_text(root / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n")


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold a run directory: one writing command at a time; the lock dies with its process.

    Files that a killed command left half written are removed on entry.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"`{root}` is no folder, or lies in a file", hint="name a folder by --out") from None
    with (root / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"`{root}` is in use by another command", hint="wait for it, or use another --out"
            ) from None
        for partial in root.rglob(".*.partial"):
            partial.unlink(missing_ok=True)
        yield


# --- freshness ------------------------------------------------------------------------------------


def origin(stage: Stage, config: Config, digests: Sequence[str]) -> str:
    """Digest of what an output is made from: stage, its code version, config and input digests."""
    canonical = json.dumps([stage.name, stage.version, config.digest(), list(digests)])
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def refuse_changed_config(root: Path, stage: Stage, config: Config, replace: bool) -> None:
    """A finished stage asked for again with other settings is a `UserError` that shows the difference."""
    entry = read_manifest(root)["stages"].get(stage.name)
    if entry is None or replace:
        return
    changed = difference(entry["config"], config.resolved())
    if changed:
        raise UserError(
            f"`{root}` was made with another `{stage.name}` config: {'; '.join(changed)}",
            hint=f"take back the change, use another --out, or `--replace` to make `{stage.name}` again",
        )


def input_digests(root: Path, stage: Stage) -> list[str]:
    """`table/file:digest` of every file of every table the stage reads."""
    return [
        f"{table}/{path.name}:{parquet.facts(path).digest}"
        for table in stage.reads
        for path in parquet.table_files(root, table)
    ]


def state(root: Path, stage: Stage, config: Config | None = None) -> str:
    """`missing`, `stale` (inputs, code or config changed), or `done`; from footers and the manifest alone."""
    entry = read_manifest(root)["stages"].get(stage.name)
    if entry is None:
        return "missing"
    if entry["version"] != stage.version or entry["inputs"] != input_digests(root, stage):
        return "stale"
    if config is not None and difference(entry["config"], config.resolved()):
        return "stale"
    outputs = {f"{table}/{path.name}" for table in stage.writes for path in parquet.table_files(root, table)}
    return "done" if set(entry["outputs"]) <= outputs else "stale"


# --- running --------------------------------------------------------------------------------------


def run_row_stage(
    root: Path,
    stage: Stage,
    config: Config,
    label: Callable[[Path], Batches],
    *,
    replace: bool = False,
    side_inputs: Sequence[str] = (),
    file_inputs: Callable[[Path], Sequence[str]] = lambda _: (),
    part: tuple[int, int] | None = None,
    on_file: Callable[[Path, int], None] | None = None,
) -> Outcome:
    """Make the label file of every file of `stage.reads[0]`, those that are missing or stale only.

    `label` gives the rows for one input file. The label depends on that file, on `side_inputs` (digests of
    what else it reads) and on `file_inputs` (of what else it reads for that file). `part`, a (rank, world size),
    makes every world-size-th file and leaves the manifest alone: a task of an executor. `on_file` hears of each
    file and its new rows.
    """
    if part is None:
        refuse_changed_config(root, stage, config, replace)
    started = time.monotonic()
    source, target = stage.reads[0], stage.writes[0]
    files = parquet.require_files(
        root, source, hint=f"`{stage.name}` reads `{source}`: make it first, see `curate status`"
    )
    made = rows = 0
    rank, world_size = part or (0, 1)
    for path in files[rank::world_size]:
        output = root / target / path.name
        made_from = origin(stage, config, [parquet.facts(path).digest, *side_inputs, *file_inputs(path)])
        if output.is_file() and parquet.facts(output).made_from == made_from:
            if on_file is not None:
                on_file(path, 0)
            continue
        written = parquet.write_file(output, target, label(path), made_from)
        made, rows = made + 1, rows + written
        if on_file is not None:
            on_file(path, written)
    kept = len(files[rank::world_size]) - made
    outcome = Outcome(stage.name, made, kept, rows, time.monotonic() - started)
    if part is None:
        _drop_strays(root, target, {path.name for path in files})
        _record_stage(root, stage, config, outcome)
    return outcome


def run_set_stage(
    root: Path,
    stage: Stage,
    config: Config,
    compute: Callable[[], Mapping[str, Batches]],
    *,
    replace: bool = False,
    side_inputs: Sequence[str] = (),
) -> Outcome:
    """Make the tables of a stage that looks across rows, unless all of them are fresh.

    `compute` gives, for each table in `stage.writes`, its rows; each becomes one file `00000.parquet`.
    """
    refuse_changed_config(root, stage, config, replace)
    started = time.monotonic()
    for table in stage.reads[:1]:
        parquet.require_files(root, table, hint=f"`{stage.name}` reads `{table}`: make it first, see `curate status`")
    made_from = origin(stage, config, [*input_digests(root, stage), *side_inputs])
    outputs = [root / table / "00000.parquet" for table in stage.writes]
    if all(path.is_file() and parquet.facts(path).made_from == made_from for path in outputs):
        outcome = Outcome(stage.name, 0, len(outputs), 0, time.monotonic() - started)
    else:
        tables = compute()
        assert set(tables) == set(stage.writes), f"{stage.name} made {sorted(tables)}, not {sorted(stage.writes)}"
        rows = sum(
            parquet.write_file(root / table / "00000.parquet", table, batches, made_from)
            for table, batches in tables.items()
        )
        for table in stage.writes:
            _drop_strays(root, table, {"00000.parquet"})
        outcome = Outcome(stage.name, len(outputs), 0, rows, time.monotonic() - started)
    _record_stage(root, stage, config, outcome)
    return outcome


def _drop_strays(root: Path, table: str, names: set[str]) -> None:
    """Remove label files whose input is gone."""
    for path in parquet.table_files(root, table):
        if path.name not in names:
            path.unlink()


def _record_stage(root: Path, stage: Stage, config: Config, outcome: Outcome) -> None:
    from pipelines import __version__

    previous = read_manifest(root)["stages"].get(stage.name, {})
    outputs = {
        f"{table}/{path.name}": {"digest": facts.digest, "rows": facts.rows}
        for table in stage.writes
        for path in parquet.table_files(root, table)
        for facts in [parquet.facts(path)]
    }
    entry = {
        "code": __version__,
        "config": config.resolved(),
        "inputs": input_digests(root, stage),
        "outputs": outputs,
        "version": stage.version,
    }
    if outcome.made or any(previous.get(key) != value for key, value in entry.items()):
        entry["seconds"] = round(outcome.seconds, 3)
        record(root, stage.name, entry)
