"""Status: what a run directory holds, what is missing or stale and why, and what to run next."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate import card
from curate.generated import STAGE as GENERATE
from curate.generated import unfinished
from curate.pipeline import STEPS
from curate.stats import Row, choices, conservation, opened, overrides, refusals
from pipelines import parquet, runner
from pipelines.errors import UserError
from pipelines.runner import Stage
from pipelines.versions import read_version


@dataclass(frozen=True)
class Status:
    """The state of a run directory or a version, as rows for tables."""

    version: str | None
    """`NAME@NUMBER` of a published version; None of a run directory."""
    stages: list[Row]
    """`stage`, `state` (done, missing, stale, unused), `reason`, `files`, `rows`, `seconds` (of the last run)."""
    refusals: list[Row]
    """Rows that could not be used when read or sampled: `stage`, `source`, `reason`, `rows`."""
    choices: list[Row]
    """`stage`, `choice` (chosen, or the reason of a refusal), `rows`, `share_rate`."""
    overrides: list[Row]
    """What readers have marked: `kind`, `said`, `marks`, `notes`, `in_verdicts` (respected by `verify` since)."""
    conservation: list[Row]
    """`stage`, `rows_in`, `chosen`, `refused`, `in_shard`, `holds`."""
    next_command: str | None
    """What to run next; None where everything is done, and of a version, in which nothing is made."""


def status(root: Path, stages: Sequence[Stage] | None = None) -> Status:
    """The status of `root`; `stages` are those of the pipeline unless given."""
    if not root.is_dir():
        raise UserError(f"no run directory `{root}`", hint="make one with `curate import` or `curate generate`")
    known = pipeline_stages() if stages is None else stages
    rows = [_row(root, stage) for stage in known]
    published = read_version(root)
    with opened(root) as connection:
        return Status(
            version=None if published is None else f"{published.name}@{published.version}",
            stages=rows,
            refusals=refusals(connection).rows,
            choices=choices(connection).rows,
            overrides=overrides(connection).rows,
            conservation=conservation(connection).rows,
            next_command=None if published is not None else _next_command(root, rows),
        )


def pipeline_stages() -> list[Stage]:
    """Every stage of the pipeline in its order, the card last."""
    stages = [stage for step in STEPS.values() for stage in _stages_in(vars(step.load()).values())]
    return [*dict.fromkeys(stages), card.STAGE]


def _stages_in(values: Iterable[Any]) -> list[Stage]:
    return [value for value in values if isinstance(value, Stage)]


def _row(root: Path, stage: Stage) -> Row:
    entry = runner.read_manifest(root)["stages"].get(stage.name)
    tables = [table for table in stage.writes if table != "refusals"]
    files = [(f"{table}/{path.name}", path) for table in tables for path in parquet.table_files(root, table)]
    state, reason = _state(root, stage, entry, bool(files))
    if state == "unused":
        files = []
    elif entry is not None and stage.name in _SOURCES:
        # Import and generate both write rollouts: each answers for its own files.
        files = [(name, path) for name, path in files if name in entry["outputs"]]
    return {
        "stage": stage.name,
        "state": state,
        "reason": reason,
        "files": len(files),
        "rows": sum(parquet.facts(path).rows for _, path in files),
        "seconds": None if entry is None else entry.get("seconds"),
    }


_SOURCES = ("import", "generate")
"""Stages that bring rows in; either will do."""


def _state(root: Path, stage: Stage, entry: dict[str, Any] | None, has_files: bool) -> tuple[str, str]:
    """State of a stage and the reason for it, in words."""
    if stage == GENERATE and unfinished(root):
        return "stale", "a run has not come to its end: the same command goes on"
    if entry is None:
        if stage == GENERATE and _was_begun(root):
            return "stale", "a pilot was sampled: the same settings go on from it"
        if stage.name in _SOURCES and parquet.table_files(root, stage.writes[0]):
            return "unused", f"`{stage.writes[0]}` came another way"
        return "missing", "its files are there, the manifest does not know them" if has_files else "never ran"
    state = runner.state(root, stage)
    if state != "stale":
        return state, ""
    if entry["version"] != stage.version:
        return state, f"its code changed (version {entry['version']} -> {stage.version})"
    before, now = (dict(name.rsplit(":", 1) for name in names) for names in (entry["inputs"], _inputs(root, stage)))
    for what, names in (
        ("new", now.keys() - before.keys()),
        ("gone", before.keys() - now.keys()),
        ("changed", {name for name in before.keys() & now.keys() if before[name] != now[name]}),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            return state, f"input {what}: {min(names)}{more}"
    lost = sorted(name for name in entry["outputs"] if not (root / name).is_file())
    return state, f"output gone: {lost[0]}" if lost else "its outputs changed"


def _was_begun(root: Path) -> bool:
    """Whether a teacher's settings are on record, as a pilot leaves them before any run has come to its end."""
    return any(name.startswith(f"{GENERATE.name}:") for name in runner.read_manifest(root)["stages"])


def _inputs(root: Path, stage: Stage) -> list[str]:
    return runner.input_digests(root, stage)


def _next_command(root: Path, rows: list[Row]) -> str | None:
    for row in rows:
        if row["state"] in ("missing", "stale"):
            stage = row["stage"]
            step = next((name for name in STEPS if stage == name or stage.startswith(f"{name}_")), stage)
            command = step.replace("_", "-")
            if command == "import":
                return f"curate import FILES… --out {root}"
            return (
                f"curate generate --teacher NAME --out {root}" if command == "generate" else f"curate {command} {root}"
            )
    return None
