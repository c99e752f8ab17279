"""Overrides: what a reader says against a verdict or a reference answer, in a table that the stages respect.

`curate verify` puts a reader's verdict in the place of the verifier's, whose word stays as `dissent`; a bad reference
answer makes its rollouts `gold_unreadable`. `split` and `build-dpo-pairs` respect both even before verdicts are made
again. A reader's word about one rollout outweighs that about its reference answer.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from curate.frames import read_frame
from pipelines import parquet
from pipelines.errors import UserError
from pipelines.tables import OVERRIDES, VERDICT_LABELS, content_id
from pipelines.versions import writable

SAID = ("correct", "incorrect", "undecided")
"""What a reader can say of a rollout."""
READER = "reader@1"
"""The verifier of an overridden verdict."""
NOTE_CHARS = 500


@dataclass(frozen=True)
class Override:
    """A reader's word about a rollout (kind `verdict`), or about the reference answer of a problem (`gold`)."""

    kind: str
    id: str
    prompt_id: str
    verdict: str | None = None
    """One of `SAID`; None of a reference answer, which is bad."""
    note: str | None = None


Overrides = Mapping[tuple[str, str], Override]
"""By kind and id."""


def read(root: Path) -> dict[tuple[str, str], Override]:
    """The overrides of a run directory; empty where there are none."""
    rows = parquet.read_table(parquet.table_files(root, "overrides"), "overrides").to_pylist()
    return {(row["kind"], row["id"]): Override(**row) for row in rows}


def mark(root: Path, override: Override) -> None:
    """Store an override; one of the same kind and id is replaced.

    A directory in use is a `UserError`, as is a published version, which never changes.
    """
    if override.kind == "verdict" and override.verdict not in SAID:
        raise UserError(f"`{override.verdict}` is no verdict of a reader", hint=f"one of: {', '.join(SAID)}")
    with writable(root):
        _write(root, {**read(root), (override.kind, override.id): override})


def unmark(root: Path, kind: str, id_: str) -> None:
    """Take an override back; one that is not there is none."""
    with writable(root):
        _write(root, {key: override for key, override in read(root).items() if key != (kind, id_)})


def _write(root: Path, overrides: Overrides) -> None:
    path = root / "overrides/00000.parquet"
    if not overrides:  # as if there had never been one: nothing becomes stale
        path.unlink(missing_ok=True)
        return
    rows = [asdict(overrides[key]) for key in sorted(overrides)]
    parquet.write_file(path, "overrides", [pa.Table.from_pylist(rows, schema=OVERRIDES)])


# --- respected ------------------------------------------------------------------------------------


def digests(rollouts: Path, overrides: Overrides) -> list[str]:
    """What the verdicts of one file of rollouts depend on: each override of a row in it, without its note."""
    found: set[tuple[str, str]] = set()
    for kind, column in (("verdict", "rollout_id"), ("gold", "prompt_id")):
        ids = pa.array([id_ for of, id_ in overrides if of == kind], pa.string())
        if len(ids):
            rows = parquet.read_table(rollouts, "rollouts", [column])[column]
            found |= {(kind, str(id_)) for id_ in rows.filter(pc.is_in(rows, ids)).to_pylist()}
    return [content_id(*key, overrides[key].verdict) for key in sorted(found)]


def overridden(labels: pa.RecordBatch, overrides: Overrides) -> pa.RecordBatch:
    """A batch of `verdicts` with the reader's word in the place of the verifier's."""
    if not overrides:
        return labels
    return pa.RecordBatch.from_pylist([_label(row, overrides) for row in labels.to_pylist()], schema=VERDICT_LABELS)


def _label(row: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    said = overrides.get(("verdict", row["rollout_id"]))
    if said is not None and said.verdict is not None:
        verdict, rule = said.verdict, "override"
    elif ("gold", row["prompt_id"]) in overrides:
        verdict, rule = "gold_unreadable", "override:bad_gold"
    else:
        return row
    dissent = None if verdict == row["verdict"] else f"{row['verifier']}: {row['verdict']}"
    return {**row, "verdict": verdict, "rule": rule, "verifier": READER, "dissent": dissent}


def read_marks(root: Path) -> pl.DataFrame:
    """`kind`, `id`, `said` of every override, for `respecting`."""
    return read_frame(root, "overrides", ["kind", "id", "verdict"]).rename({"verdict": "said"})


def bad_golds(marks: pl.DataFrame) -> pl.Series:
    """Ids of the problems whose reference answer a reader calls bad."""
    return marks.filter(pl.col("kind") == "gold")["id"]


def respecting(rollouts: pl.DataFrame, marks: pl.DataFrame) -> pl.DataFrame:
    """`rollouts`, in their order, with what readers say in the place of `verdict`."""
    if marks.is_empty():
        return rollouts
    said = marks.filter(pl.col("kind") == "verdict").select("said", rollout_id="id")
    bad = pl.when(pl.col("prompt_id").is_in(bad_golds(marks).implode())).then(pl.lit("gold_unreadable"))
    marked = rollouts.join(said, on="rollout_id", how="left", maintain_order="left")
    return marked.with_columns(verdict=pl.coalesce("said", bad, "verdict")).drop("said")
