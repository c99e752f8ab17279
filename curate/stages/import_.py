"""Import: turn foreign rows into prompts and rollouts; what cannot be used is set aside with its reason.

One source (a file, a folder, a hub dataset) becomes `prompts/NAME-DIGEST.parquet`, blocks
`rollouts/NAME-DIGEST-00000.parquet` and `refusals/import-NAME-DIGEST.parquet`, DIGEST being that of
its content. The files are made in a hidden folder and renamed at the end, so a killed import leaves
nothing behind but that folder, which the next one removes.

A problem is stored once in a run directory, by its first source. Another gold for it later is a
`gold_conflict` (the first stays); a gold where the stored problem has none is a `gold_late`, since
stored text is never rewritten: import the file with the golds first, or with `--replace`. A gold that
no verifier can read is listed as `gold_unreadable`, and its problem stays. A rollout that another file
of the same source brought already is a `known_rollout`, and is not stored again.
"""

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from curate.intake import Counts, Intake, Origin, Spool
from pipelines import __version__, parquet, runner
from pipelines.config import Config
from pipelines.errors import UserError
from pipelines.foreign import ForeignRows, Unreadable, open_rows
from pipelines.layouts import recognise
from pipelines.progress import progress
from pipelines.reasoning import THINK
from pipelines.rows import COLUMNS
from pipelines.runner import Stage
from pipelines.tables import content_id
from verifiers import VERIFIERS

STAGE = Stage("import", reads=(), writes=("prompts", "rollouts", "refusals"))

_STAGING = ".import"


class ImportConfig(Config):
    """What to import, and what its columns do not say."""

    files: tuple[str, ...] = ()
    """Files, folders, or `hf:ORG/NAME[:CONFIG[:SPLIT]]`."""
    map: dict[str, str] = Field(default_factory=dict)
    """Role -> column, for layouts that are not recognised."""
    source: str | None = None
    """Name kept in every row; the file's name where None."""
    licence: str | None = None
    """Licence of rows that state none."""
    verifier: str | None = None
    """Verifier of every problem; by its options where None."""
    model: str | None = None
    """Model of completions that state none."""
    opened: bool = False
    """Whether completions were sampled behind an open `<think>` in the prompt."""
    delimiters: tuple[str, str] = THINK
    """Tags around the reasoning."""
    rows_per_file: int = Field(2000, ge=1)

    @field_validator("map")
    @classmethod
    def _known_roles(cls, value: dict[str, str]) -> dict[str, str]:
        for role in value:
            if role not in COLUMNS:
                raise ValueError(f"no role `{role}`; roles: {', '.join(COLUMNS)}")
        return value

    @field_validator("verifier")
    @classmethod
    def _known_verifier(cls, value: str | None) -> str | None:
        if value is not None and value not in VERIFIERS:
            raise ValueError(f"no verifier `{value}`; verifiers: {', '.join(VERIFIERS)}")
        return value


@dataclass(frozen=True)
class SourceReport:
    """One source: its layout, what became of its rows, and whether that was done now or before."""

    source: str
    layout: str
    counts: Counts
    seconds: float
    done_before: bool

    def line(self) -> str:
        """`gsm8k.jsonl (gsm8k): 100 rows = 98 used + 2 refused (not_json 2); 98 new problems, ...`."""
        counts = self.counts
        refused = f" ({_listed(counts.refused)})" if counts.refused else ""
        rollouts = f", {counts.rollouts:,} rollouts ({_listed(counts.forms)})" if counts.rollouts else ""
        noted = f"; set aside in used rows: {_listed(counts.noted)}" if counts.noted else ""
        done = "; imported before, nothing to do" if self.done_before else ""
        return (
            f"{self.source} ({self.layout}): {counts.rows:,} rows = {counts.used:,} used"
            f" + {counts.refused.total():,} refused{refused}; {counts.prompts_new:,} new problems,"
            f" {counts.prompts_known:,} known{rollouts}{noted}{done}"
        )


@dataclass(frozen=True)
class ImportReport:
    """What was imported, source by source."""

    sources: tuple[SourceReport, ...]

    def lines(self) -> list[str]:
        """One line a source."""
        return [source.line() for source in self.sources]


def run(root: Path, config: ImportConfig, *, replace: bool = False) -> ImportReport:
    """Import every source of `config`; one that was imported before with the same settings is left alone."""
    if not config.files:
        raise UserError("nothing to import", hint="name files, folders or hub datasets: curate import FILES…")
    settings = config.model_copy(update={"files": ()})
    # What cannot be opened is said before anything is imported.
    sources = [open_rows(source) for source in config.files]
    reports = [_finished(root, rows, settings, replace) or _import(root, rows, settings) for rows in sources]
    _record_whole(root)
    return ImportReport(tuple(reports))


# --- what was imported before ---------------------------------------------------------------------


def _entries(root: Path) -> dict[str, Any]:
    stages = runner.read_manifest(root)["stages"]
    return {key: entry for key, entry in stages.items() if key.startswith(f"{STAGE.name}:")}


def _finished(root: Path, rows: ForeignRows, settings: ImportConfig, replace: bool) -> SourceReport | None:
    """The report of an earlier import of the same content; `UserError` if the settings or the content changed."""
    for key, entry in _entries(root).items():
        source, _, digest = entry["inputs"][0].rpartition(":")
        if digest == rows.digest:
            runner.refuse_changed_config(root, Stage(key, (), ()), settings, replace)
            whole = all((root / name).is_file() for name in entry["outputs"])
            if whole and entry["config"] == settings.resolved() and entry["version"] == STAGE.version:
                return SourceReport(
                    rows.source, entry["layout"], Counts.restored(entry["counts"]), 0.0, done_before=True
                )
        elif source == rows.source and not replace:
            raise UserError(
                f"`{source}` was imported into `{root}` before, with other content",
                hint="use `--replace` to import it again, or give the new file another name",
            )
    return None


def _outdated(root: Path, rows: ForeignRows) -> dict[str, Any]:
    """Manifest entries that an import of `rows` takes the place of: same content, or same source."""
    return {
        key: entry
        for key, entry in _entries(root).items()
        if rows.digest == entry["inputs"][0].rpartition(":")[2] or rows.source == entry["inputs"][0].rpartition(":")[0]
    }


# --- importing ------------------------------------------------------------------------------------


def _import(root: Path, rows: ForeignRows, settings: ImportConfig) -> SourceReport:
    started = time.monotonic()
    sample = [row.values for row in rows.peek()]
    if not sample:
        raise UserError(_no_rows(rows), hint="check that it is the file you mean")
    layout, reader = recognise(rows.source, sample, settings.map)
    reader = reader._replace(opened=settings.opened, delimiters=settings.delimiters)
    stem = f"{_slug(rows.name)}-{rows.digest[:8]}"
    outdated = _outdated(root, rows)
    replaced = {name for entry in outdated.values() for name in entry["outputs"]} | {f"prompts/{stem}.parquet"}
    made_from = content_id(rows.digest, settings.resolved(), STAGE.version)
    staging = root / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    spools = {table: Spool(staging, table, made_from, settings.rows_per_file) for table in STAGE.writes}
    origin = Origin(settings.source or rows.name, settings.licence, settings.verifier, settings.model)
    known = _rollouts_of(root, origin.source, stem, replaced)
    intake = Intake(layout, reader, origin, spools, _golds(root, replaced), known)
    with progress(f"import {rows.source}") as advance:
        for row in rows.read():
            intake.take(row)
            advance()
    intake.carry(_still_needed(root, replaced))
    counts = intake.finish()
    outputs = _publish(root, spools, stem, replaced, made_from)
    seconds = time.monotonic() - started
    entry = {
        "code": __version__,
        "config": settings.resolved(),
        "inputs": [f"{rows.source}:{rows.digest}"],
        "outputs": outputs,
        "version": STAGE.version,
        "seconds": round(seconds, 3),
        "layout": layout.name,
        "counts": counts.stored(),
    }
    _record(root, f"{STAGE.name}:{stem}", entry, outdated)
    return SourceReport(rows.source, layout.name, counts, seconds, done_before=False)


def _no_rows(rows: ForeignRows) -> str:
    first = next(iter(rows.read()), None)
    if isinstance(first, Unreadable):
        return f"no row of `{rows.source}` can be read; row {first.number}: {first.reason}: {first.detail[:100]}"
    return f"`{rows.source}` has no rows"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "source"


def _golds(root: Path, replaced: set[str]) -> dict[str, str | None]:
    """prompt_id -> gold of every stored problem, but for files about to be replaced."""
    golds: dict[str, str | None] = {}
    for path in parquet.table_files(root, "prompts"):
        if f"prompts/{path.name}" not in replaced:
            for batch in parquet.read_batches(path, "prompts", ["prompt_id", "answer"]):
                golds.update((row["prompt_id"], row["answer"]) for row in batch.to_pylist())
    return golds


def _rollouts_of(root: Path, source: str, stem: str, replaced: set[str]) -> set[str]:
    """Ids of the stored rollouts of a source, but for files about to be replaced, by `stem` or by name.

    Two files may be called alike and share rows; an id that comes twice would stand in two rows.
    """
    ids: set[str] = set()
    for path in parquet.table_files(root, "rollouts"):
        if f"rollouts/{path.name}" not in replaced and not path.name.startswith(f"{stem}-"):
            for batch in parquet.read_batches(path, "rollouts", ["rollout_id", "source"]):
                ids.update(row["rollout_id"] for row in batch.to_pylist() if row["source"] == source)
    return ids


def _still_needed(root: Path, replaced: set[str]) -> Iterator[dict[str, Any]]:
    """Rows of prompts files about to be replaced that rollouts in other files refer to."""
    old = [root / name for name in sorted(replaced) if name.startswith("prompts/") and (root / name).is_file()]
    if not old:
        return
    needed: set[str] = set()
    for path in parquet.table_files(root, "rollouts"):
        if f"rollouts/{path.name}" not in replaced:
            for batch in parquet.read_batches(path, "rollouts", ["prompt_id"]):
                needed.update(row["prompt_id"] for row in batch.to_pylist())
    for path in old:
        for batch in parquet.read_batches(path, "prompts"):
            yield from (row for row in batch.to_pylist() if row["prompt_id"] in needed)


# --- storing --------------------------------------------------------------------------------------


def _publish(
    root: Path, spools: Mapping[str, Spool], stem: str, replaced: set[str], made_from: str
) -> dict[str, dict[str, Any]]:
    """Rename the staged files into their tables, problems first; their names, digests and rows.

    Prompts and refusals become one file each; rollouts stay in blocks. What this import takes the
    place of is removed last.
    """
    staged: dict[str, Path] = {}
    for table, name in (("prompts", f"prompts/{stem}.parquet"), ("refusals", f"refusals/import-{stem}.parquet")):
        if spools[table].blocks:
            staged[name] = root / _STAGING / name
            parquet.write_file(staged[name], table, spools[table].batches(), made_from)
    staged |= {f"rollouts/{stem}-{path.name}": path for path in spools["rollouts"].blocks}
    outputs = {}
    for name, path in staged.items():
        facts = parquet.facts(path)
        outputs[name] = {"digest": facts.digest, "rows": facts.rows}
        (root / name).parent.mkdir(exist_ok=True)
        path.replace(root / name)
    # A killed import of the same content with other settings may have left blocks behind these.
    left = {f"rollouts/{path.name}" for path in (root / "rollouts").glob(f"{stem}-*.parquet")}
    for name in (replaced | left | {f"refusals/import-{stem}.parquet"}) - outputs.keys():
        (root / name).unlink(missing_ok=True)
    shutil.rmtree(root / _STAGING)
    return outputs


def _record(root: Path, key: str, entry: Mapping[str, Any], outdated: Mapping[str, Any]) -> None:
    """Put an import into the manifest in the place of those it replaces."""
    manifest = runner.read_manifest(root)
    for old in outdated:
        del manifest["stages"][old]
    manifest["stages"][key] = dict(entry)
    runner.write_text(root / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def _record_whole(root: Path) -> None:
    """Keep one entry `import` for all imports, which answers for the stage as the other stages' entries do."""
    entries = _entries(root).values()
    whole = {
        "code": __version__,
        "config": {},
        "inputs": [],
        "outputs": {name: facts for entry in entries for name, facts in entry["outputs"].items()},
        "version": STAGE.version,
        "seconds": round(sum(entry["seconds"] for entry in entries), 3),
    }
    if runner.read_manifest(root)["stages"].get(STAGE.name) != whole:
        runner.record(root, STAGE.name, whole)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.most_common())
