"""Verify: say whether each rollout reaches its problem's reference answer.

The verifier is the one its prompt names. Only responses are read, in batches, never the reasoning; the
golds are held in memory. What hangs or kills a verifier is a `timeout`, which says nothing of the model.
Math-Verify and a judge may be asked too (`curate/opinions.py`); what they say otherwise is kept as `dissent`.
What a reader says (`curate/overrides.py`) outweighs them all.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from curate import overrides
from curate.judging import Judge, JudgeCounts, judge_identity, opened_judge
from curate.opinions import Label, Opinions
from pipelines import parquet
from pipelines.config import Config
from pipelines.errors import UserError
from pipelines.progress import progress
from pipelines.runner import Outcome, Stage, run_row_stage
from pipelines.tables import VERDICT_LABELS, VERDICTS
from verifiers import VERIFIERS, VERSIONS, Job, Question, Verdict, VerifierPool
from verifiers import Outcome as VerdictOutcome

STAGE = Stage("verify", reads=("rollouts", "prompts", "overrides"), writes=("verdicts",), version=2)


class VerifyConfig(Config):
    """Limits of one answer, and who is asked beside the rules; how many processes work is no setting."""

    timeout_s: float = Field(5.0, gt=0)
    """Seconds one answer may take; then it is `timeout`."""
    memory_mb: int = Field(2048, ge=512)
    """Address space of one worker process."""
    second_opinion: Literal["none", "rejected", "all"] = "none"
    """Answers on which Math-Verify is asked too: it changes no verdict, a difference is recorded as `dissent`."""
    judge: str | None = None
    """A model that looks again at what the rules did not accept: as `--teacher` of `curate generate`."""
    judge_server: str | None = None
    """URL of an OpenAI-compatible server; where a judge runs changes no verdict."""
    judge_on: tuple[Literal["incorrect", "undecided"], ...] = ("incorrect", "undecided")
    """Verdicts of the rules that a judge may change."""
    judge_max_tokens: int = Field(8192, ge=16)
    """Tokens of a reply, its reasoning included; a longer one decides nothing."""

    def resolved(self) -> dict[str, Any]:
        """As of any config, without the server, and without what was not asked: it came later."""
        values = self.model_dump(mode="json", exclude={"judge_server"})
        unused = [] if self.judge else [name for name in values if name.startswith("judge")]
        unused += ["second_opinion"] if self.second_opinion == "none" else []
        return {name: value for name, value in values.items() if name not in unused}


CONFIG = VerifyConfig

Golds = Mapping[str, tuple[str, Question]]
"""`prompt_id` -> key of the verifier, and what it judges against; prompts without an answer are missing."""

_READ_ROWS = 256
_WRITE_ROWS = 4096
_HELD_CHARS = 32 << 20
"""Responses that wait for a second opinion are at most so long together, the last one aside."""
_PROBLEM_CHARS = 2000
"""So much of a problem is held for a judge, who sees no more."""


@dataclass(frozen=True)
class VerifyReport(Outcome):
    """What was done, and what the judge said."""

    verdicts: Mapping[str, int]
    """Rollouts of the run directory by verdict."""
    judge: str | None
    judged: JudgeCounts
    rescued: int

    def lines(self) -> list[str]:
        """The report in words."""
        if not self.made:
            return [f"nothing to do, {self.kept} files are fresh"]
        lines = [f"{self.made} files made, {self.kept} kept, {self.rows:,} rows in {self.seconds:.1f} s"]
        lines.append(", ".join(f"{verdict} {count:,}" for verdict, count in self.verdicts.items() if count))
        if self.judge is not None:
            lines.append(self.judged.words(self.judge, "answers", f"{self.rescued:,} rollouts rescued"))
        return lines


def run(
    root: Path,
    config: VerifyConfig,
    *,
    replace: bool = False,
    workers: int = 2,
    part: tuple[int, int] | None = None,
) -> VerifyReport:
    """Make the verdicts of every rollouts file that has none, or stale ones; `part` as in `run_row_stage`."""
    prompts = parquet.require_files(root, "prompts", hint="verdicts need the reference answers: `curate import` them")
    judged_by = judge_identity(config.judge, config.judge_server)
    side_inputs = [*(parquet.facts(path).digest for path in prompts), *sorted(VERSIONS.values()), *judged_by]
    marks = overrides.read(root)
    if config.judge is not None and part is not None:
        raise UserError("one process asks a judge", hint="leave out --executor, or the judge for now")
    golds: dict[str, tuple[str, Question]] = {}
    problems: dict[str, str] = {}
    rescued = 0
    rows = sum(parquet.facts(path).rows for path in parquet.table_files(root, "rollouts"))
    with ExitStack() as stack:
        pool = stack.enter_context(VerifierPool(workers, config.timeout_s, config.memory_mb))
        opinions = _opened_opinions(root, config, workers, golds, problems, stack)
        advance = stack.enter_context(progress("verify", rows))

        def label(path: Path) -> Iterator[pa.RecordBatch]:
            nonlocal rescued
            if not golds:
                golds.update(read_golds(root))
                problems.update(read_problems(root) if opinions.judge else {})
            columns = ["rollout_id", "prompt_id", "response"]
            for labels in verify(parquet.read_batches(path, "rollouts", columns, _READ_ROWS), golds, pool, opinions):
                advance(labels.num_rows)
                rescued += sum(_is_rescued(row) for row in labels.select(["verdict", "rule"]).to_pylist())
                yield overrides.overridden(labels, marks)

        done = run_row_stage(
            root,
            STAGE,
            config,
            label,
            replace=replace,
            side_inputs=side_inputs,
            file_inputs=lambda path: overrides.digests(path, marks),
            part=part,
        )
    judge = opinions.judge
    counts = verdict_counts(root) if part is None else {}
    return VerifyReport(
        **vars(done),
        verdicts=counts,
        judge=judge.name if judge else None,
        judged=judge.counts if judge else JudgeCounts(),
        rescued=rescued,
    )


def _opened_opinions(
    root: Path,
    config: VerifyConfig,
    workers: int,
    golds: Golds,
    problems: Mapping[str, str],
    stack: ExitStack,
) -> Opinions:
    second: VerifierPool | None = None
    judge: Judge | None = None
    if config.second_opinion != "none":
        # Processes of its own: what it does to them costs our rules nothing.
        second = stack.enter_context(VerifierPool(workers, config.timeout_s, config.memory_mb))
    if config.judge is not None:
        folder = root / "verdicts"
        judge = stack.enter_context(opened_judge(config.judge, config.judge_server, config.judge_max_tokens, folder))
    return Opinions(
        golds,
        second,
        second_on_all=config.second_opinion == "all",
        judge=judge,
        judged=tuple(VerdictOutcome(name) for name in config.judge_on),
        problems=problems,
    )


def _is_rescued(row: Mapping[str, Any]) -> bool:
    return bool(row["rule"] == "judge" and row["verdict"] == VerdictOutcome.CORRECT)


# --- rows -----------------------------------------------------------------------------------------


def verify(
    rollouts: Iterable[pa.RecordBatch], golds: Golds, pool: VerifierPool, opinions: Opinions
) -> Iterator[pa.RecordBatch]:
    """One verdict per rollout, in the rollouts' order; a prompt without a reference gives `gold_unreadable`."""
    held: list[Label] = []
    held_chars = 0
    for label in _labels(rollouts, golds, pool, keep_responses=opinions.second is not None):
        held.append(label)
        held_chars += len(label.response or "")
        if len(held) == _WRITE_ROWS or held_chars > _HELD_CHARS:
            yield _batch(held, opinions)
            held, held_chars = [], 0
    yield _batch(held, opinions)


def _batch(labels: list[Label], opinions: Opinions) -> pa.RecordBatch:
    rows = [
        {
            "rollout_id": label.rollout_id,
            "prompt_id": label.prompt_id,
            "verdict": verdict.outcome.value,
            "extracted": verdict.extracted,
            "rule": verdict.rule,
            "verifier": verdict.verifier,
            "dissent": dissent,
        }
        for label, (verdict, dissent) in zip(labels, opinions.of(labels), strict=True)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=VERDICT_LABELS)


def _labels(
    rollouts: Iterable[pa.RecordBatch], golds: Golds, pool: VerifierPool, *, keep_responses: bool
) -> Iterator[Label]:
    """The rules' verdict on each rollout; the pool may read ahead, so ids wait for their verdict in a queue."""
    waiting: deque[tuple[str, str, str | None]] = deque()

    def jobs() -> Iterator[Job]:
        for rollout_id, prompt_id, response in _rows(rollouts):
            waiting.append((rollout_id, prompt_id, response if keep_responses else None))
            if prompt_id in golds:
                verifier, question = golds[prompt_id]
                yield Job(verifier, question, response)

    def without_gold() -> Iterator[Label]:
        while waiting and waiting[0][1] not in golds:
            rollout_id, prompt_id, _ = waiting.popleft()
            yield Label(rollout_id, prompt_id, _NO_GOLD, None)

    for verdict in pool.verify(jobs()):
        yield from without_gold()
        rollout_id, prompt_id, response = waiting.popleft()
        yield Label(rollout_id, prompt_id, verdict, response)
    yield from without_gold()
    assert not waiting, f"{len(waiting)} rollouts without a verdict"


_NO_GOLD = Verdict(VerdictOutcome.GOLD_UNREADABLE, None, "no_gold", "none@0")


def _rows(rollouts: Iterable[pa.RecordBatch]) -> Iterator[tuple[str, str, str]]:
    for batch in rollouts:
        columns = (batch[name].to_pylist() for name in ("rollout_id", "prompt_id", "response"))
        yield from zip(*columns, strict=True)


# --- problems -------------------------------------------------------------------------------------


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


def read_problems(root: Path) -> dict[str, str]:
    """`prompt_id` -> the beginning of the problem, for a judge; some hundred bytes each."""
    return {
        row["prompt_id"]: row["problem"][:_PROBLEM_CHARS]
        for path in parquet.table_files(root, "prompts")
        for batch in parquet.read_batches(path, "prompts", ["prompt_id", "problem"])
        for row in batch.to_pylist()
    }


def verdict_counts(root: Path) -> dict[str, int]:
    """How many rollouts of a run directory got each verdict, in the order of `VERDICTS`."""
    counts: Counter[str] = Counter()
    for path in parquet.table_files(root, "verdicts"):
        for batch in parquet.read_batches(path, "verdicts", ["verdict"]):
            counts.update(str(verdict) for verdict in batch["verdict"].to_pylist())
    return {name: counts[name] for name in VERDICTS}
