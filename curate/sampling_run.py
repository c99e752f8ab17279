"""One run of a sampler over what is wanted: journal what ends, judge it if asked, store what is finished."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from curate.generate_report import GenerateReport
from curate.generated import STAGE
from curate.journal import Journal, disk_space_checked
from curate.live_verdicts import LiveVerifier, write_verdicts
from curate.stopping import Stop
from curate.wanted import Prompt, Task, seed_of
from curate.waves import NEITHER, RIGHT, Waves, counts_as
from pipelines import runner
from pipelines.reasoning import split_reasoning
from pipelines.sampling import Completion, Refusal, Request, encodable
from verifiers import Job, Verdict

_DETAIL_CHARS = 4000


@dataclass
class SamplingRun:
    """What is under way; `requests` goes to the sampler, its results come to `take`."""

    task: Task
    waves: Waves
    journal: Journal
    report: GenerateReport
    stop: Stop
    block_rollouts: int
    verifier: LiveVerifier | None = None
    """Says while sampling whether rollouts are correct; None where nobody waits for it."""
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """Of rollouts that are not in Parquet yet."""
    block: list[str] = field(default_factory=list)
    """Finished rollouts of finished prompts that wait for their file."""

    def requests(self) -> Iterator[Request | None]:
        """What to ask, None where that depends on what is in flight; ends when nothing more is wanted."""
        while not self.stop.asked:
            self._take_verdicts()
            request = self.waves.next_request()
            if request is not None:
                yield request
            elif self.waves.asked > self._pending_verdicts:
                yield None
            elif self._pending_verdicts:
                self._take_verdicts(wait=True)
            else:
                return

    def take(self, result: Completion | Refusal) -> None:
        """Store one result, and what it finishes."""
        prompt, sample_index = self.waves.sample_of(result.id)
        record = _record(self.task, prompt, sample_index, result)
        self.journal.append(result.id, record)
        self._count(result)
        if self.verifier is not None and prompt.question is not None and isinstance(result, Completion):
            self.verifier.submit(result.id, Job(prompt.verifier, prompt.question, record["rollouts"]["response"]))
            self._take_verdicts()
        else:
            self._end(result.id, NEITHER)

    def finish(self) -> None:
        """Store all that has ended, after the sampler's last result."""
        while self._pending_verdicts:
            self._take_verdicts(wait=True)
        if not self.stop.asked:
            # Goes through the prompts whose rollouts are all in the journal, if no sampler has.
            assert self.waves.next_request() is None, "a request was left out"
            assert not self.waves.waiting, "requests were never answered"
        self._store_finished()
        self._write_block()
        if len(self.journal):  # stopped, or finished for a prompt that has left the table: paid for, so kept
            self.block = self.journal.ids()
            self._write_block()

    @property
    def _pending_verdicts(self) -> int:
        return 0 if self.verifier is None else self.verifier.pending

    def _take_verdicts(self, *, wait: bool = False) -> None:
        if self.verifier is None:
            return
        with self.stop.held():
            for rollout_id, verdict in self.verifier.take(wait=wait):
                self.verdicts[rollout_id] = verdict
                counted = counts_as(verdict.outcome)
                self.report.judged += 1
                self.report.accepted += counted == RIGHT
                self._end(rollout_id, counted)

    def _end(self, rollout_id: str, counted: str) -> None:
        self.waves.end(rollout_id, counted)
        self._store_finished()

    def _store_finished(self) -> None:
        """Gather finished prompts, in the table's order, into blocks; write those that are whole."""
        for group in self.waves.finished():
            if self.report.gain is not None and group.num_sampled == group.num_tried:
                self.report.gain.add(group.num_correct, group.num_tried, group.num_tokens)
            self.block += group.new_ids
            if len(self.block) >= self.block_rollouts:
                self._write_block()

    def _write_block(self) -> None:
        if self.block:
            store_block(self.task, self.journal, self.block, self.verdicts)
            self.block = []

    def _count(self, result: Completion | Refusal) -> None:
        if isinstance(result, Refusal):
            self.report.refused[result.reason] += 1
            return
        self.report.sampled += 1
        self.report.truncated += result.finish_reason == "length"
        self.report.tokens += result.completion_tokens or 0
        self.waves.spend(result.id, result.completion_tokens or 0)


def store_block(task: Task, journal: Journal, ids: list[str], verdicts: dict[str, Verdict]) -> None:
    """Move these records from the journal to Parquet, with their verdicts where all of them are known."""
    refusals: list[dict[str, Any]] = []
    judged: list[tuple[str, str, Verdict | None]] = []

    def rows() -> Iterator[dict[str, Any]]:
        for record in map(journal.read, ids):
            if "refusals" in record:
                refusals.append(record["refusals"])
                continue
            row = record["rollouts"]
            judged.append((row["rollout_id"], row["prompt_id"], verdicts.pop(row["rollout_id"], None)))
            yield row

    number = task.files.next_number()
    made_from = runner.origin(STAGE, task.sampling, [task.files.sampling_id, str(number)])
    path = task.files.write_block(number, rows(), refusals, made_from)
    known = [(rollout_id, prompt_id, verdict) for rollout_id, prompt_id, verdict in judged if verdict is not None]
    if path is not None and len(known) == len(judged):
        with disk_space_checked(task.root):
            write_verdicts(task.root, path, known)
    journal.forget(ids)


def _record(task: Task, prompt: Prompt, sample_index: int, result: Completion | Refusal) -> dict[str, Any]:
    """The journal's record of a result: a row of `rollouts`, or one of `refusals`."""
    if isinstance(result, Refusal):
        row: dict[str, Any] = {
            "stage": STAGE.name,
            "source": task.teacher.name,
            "row": None,
            "id": result.id,
            "reason": result.reason,
            "detail": encodable(result.detail[:_DETAIL_CHARS]),
        }
        return {"refusals": row}
    parts = split_reasoning(
        encodable(result.text),
        finish_reason=result.finish_reason,
        opened=_opened(task, result),
        delimiters=task.teacher.delimiters,
    )
    row = {
        "rollout_id": result.id,
        "prompt_id": prompt.prompt_id,
        "model": task.model,
        "sample_index": sample_index,
        "sampling_id": task.files.sampling_id,
        "temperature": task.sampling.temperature,
        "top_p": task.sampling.top_p,
        "max_tokens": task.sampling.max_tokens,
        "seed": seed_of(result.id),
        "reasoning": parts.reasoning,
        "response": parts.response,
        "reasoning_form": parts.form,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "step": None,
        "upstream_label": None,
        "source": STAGE.name,
        "source_id": None,
    }
    return {"rollouts": row}


def _opened(task: Task, completion: Completion) -> bool:
    """Whether the text begins inside the reasoning.

    A server does not say what its template opened. Where the teacher's does, a text that closes the tag or
    was cut short began inside; one that ended by itself without any tag is an answer without reasoning.
    """
    if completion.opens_reasoning:
        return True
    unsaid = task.served and task.teacher.opens_reasoning
    return unsaid and (task.teacher.delimiters[1] in completion.text or completion.finish_reason == "length")
