"""Verify: say whether each rollout reaches its problem's reference answer.

The verifier is the one its prompt names. Only responses are read, in batches, never the reasoning; the
golds are held in memory. What hangs or kills a verifier is a `timeout`, which says nothing of the model.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
from pydantic import Field

from pipelines import parquet
from pipelines.config import Config
from pipelines.errors import UserError
from pipelines.progress import progress
from pipelines.runner import Outcome, Stage, run_row_stage
from pipelines.tables import VERDICT_LABELS, VERDICTS
from verifiers import VERIFIERS, VERSIONS, Job, Question, Verdict, VerifierPool
from verifiers import Outcome as VerdictOutcome

STAGE = Stage("verify", reads=("rollouts", "prompts"), writes=("verdicts",))


class VerifyConfig(Config):
    """Limits of one answer; how many processes work does not change a verdict and is no setting."""

    timeout_s: float = Field(5.0, gt=0)
    """Seconds one answer may take; then it is `timeout`."""
    memory_mb: int = Field(2048, ge=512)
    """Address space of one worker process."""


CONFIG = VerifyConfig

Golds = Mapping[str, tuple[str, Question]]
"""`prompt_id` -> key of the verifier, and what it judges against; prompts without an answer are missing."""

_READ_ROWS = 256
_WRITE_ROWS = 4096


def run(
    root: Path,
    config: VerifyConfig,
    *,
    replace: bool = False,
    workers: int = 2,
    part: tuple[int, int] | None = None,
) -> Outcome:
    """Make the verdicts of every rollouts file that has none, or stale ones; `part` as in `run_row_stage`."""
    prompts = parquet.require_files(root, "prompts", hint="verdicts need the reference answers: `curate import` them")
    side_inputs = [*(parquet.facts(path).digest for path in prompts), *sorted(VERSIONS.values())]
    golds: dict[str, tuple[str, Question]] = {}
    rows = sum(parquet.facts(path).rows for path in parquet.table_files(root, "rollouts"))
    with VerifierPool(workers, config.timeout_s, config.memory_mb) as pool, progress("verify", rows) as advance:

        def label(path: Path) -> Iterator[pa.RecordBatch]:
            if not golds:
                golds.update(read_golds(root))
            columns = ["rollout_id", "prompt_id", "response"]
            for labels in verify(parquet.read_batches(path, "rollouts", columns, _READ_ROWS), golds, pool):
                advance(labels.num_rows)
                yield labels

        return run_row_stage(root, STAGE, config, label, replace=replace, side_inputs=side_inputs, part=part)


def verify(rollouts: Iterable[pa.RecordBatch], golds: Golds, pool: VerifierPool) -> Iterator[pa.RecordBatch]:
    """One verdict per rollout, in the rollouts' order; a prompt without a reference gives `gold_unreadable`."""
    rows: list[dict[str, str | None]] = []
    for rollout_id, prompt_id, verdict in _verdicts(rollouts, golds, pool):
        rows.append(
            {
                "rollout_id": rollout_id,
                "prompt_id": prompt_id,
                "verdict": verdict.outcome.value,
                "extracted": verdict.extracted,
                "rule": verdict.rule,
                "verifier": verdict.verifier,
            }
        )
        if len(rows) == _WRITE_ROWS:
            yield pa.RecordBatch.from_pylist(rows, schema=VERDICT_LABELS)
            rows = []
    yield pa.RecordBatch.from_pylist(rows, schema=VERDICT_LABELS)


def _verdicts(
    rollouts: Iterable[pa.RecordBatch], golds: Golds, pool: VerifierPool
) -> Iterator[tuple[str, str, Verdict]]:
    """Ids and verdict of each rollout; the pool may read ahead, so ids wait for their verdict in a queue."""
    waiting: deque[tuple[str, str, bool]] = deque()

    def jobs() -> Iterator[Job]:
        for rollout_id, prompt_id, response in _rows(rollouts):
            waiting.append((rollout_id, prompt_id, prompt_id in golds))
            if prompt_id in golds:
                verifier, question = golds[prompt_id]
                yield Job(verifier, question, response)

    def without_gold() -> Iterator[tuple[str, str, Verdict]]:
        while waiting and not waiting[0][2]:
            rollout_id, prompt_id, _ = waiting.popleft()
            yield rollout_id, prompt_id, Verdict(VerdictOutcome.GOLD_UNREADABLE, None, "no_gold", "none@0")

    for verdict in pool.verify(jobs()):
        yield from without_gold()
        rollout_id, prompt_id, _ = waiting.popleft()
        yield rollout_id, prompt_id, verdict
    yield from without_gold()
    assert not waiting, f"{len(waiting)} rollouts without a verdict"


def _rows(rollouts: Iterable[pa.RecordBatch]) -> Iterator[tuple[str, str, str]]:
    for batch in rollouts:
        columns = (batch[name].to_pylist() for name in ("rollout_id", "prompt_id", "response"))
        yield from zip(*columns, strict=True)


def read_golds(root: Path) -> dict[str, tuple[str, Question]]:
    """The references of a run directory, without the prompts that have none."""
    golds: dict[str, tuple[str, Question]] = {}
    for path in parquet.table_files(root, "prompts"):
        for batch in parquet.read_batches(path, "prompts", ["prompt_id", "answer", "choices", "verifier"]):
            for row in batch.to_pylist():
                if row["verifier"] not in VERIFIERS:
                    raise UserError(
                        f"prompt `{row['prompt_id']}` names the verifier `{row['verifier']}`",
                        hint=f"there are: {', '.join(sorted(VERIFIERS))}; import the problem again with one of them",
                    )
                if row["answer"] is not None and row["answer"].strip():
                    golds[row["prompt_id"]] = (row["verifier"], Question(row["answer"], tuple(row["choices"] or ())))
    return golds


def verdict_counts(root: Path) -> dict[str, int]:
    """How many rollouts of a run directory got each verdict, in the order of `VERDICTS`."""
    counts: Counter[str] = Counter()
    for path in parquet.table_files(root, "verdicts"):
        for batch in parquet.read_batches(path, "verdicts", ["verdict"]):
            counts.update(str(verdict) for verdict in batch["verdict"].to_pylist())
    return {name: counts[name] for name in VERDICTS}
