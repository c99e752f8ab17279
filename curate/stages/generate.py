"""Generate: sample a teacher on every prompt, so that nothing finished is ever lost or paid for twice.

Ids are known before sampling. A finished rollout is a line of the journal `rollouts/.generate-SETTINGS.journal`
within a second; when every id of a block of the plan has ended, the block becomes
`rollouts/generate-SETTINGS-00000.parquet`, and its refusals the file of that name in `refusals`. Blocks are
made in the order of the plan, whatever order requests finish in, so an interrupted run and an
uninterrupted one leave the same files, the sampled text aside.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from curate.generate_report import GeneratePlan, GenerateReport
from curate.generated import STAGE, GeneratedFiles
from curate.journal import Journal, journal_ids
from curate.teachers import Teacher, resolve_teacher
from pipelines import parquet, runner
from pipelines.config import Config
from pipelines.conversation import INSTRUCTIONS, Message, user_message
from pipelines.errors import UserError
from pipelines.progress import progress
from pipelines.reasoning import split_reasoning
from pipelines.samplers import Engine, accelerator_count, model_name, open_sampler
from pipelines.sampling import Completion, Refusal, Request, Sampler, SamplingConfig
from pipelines.tables import content_id, rollout_id

BLOCK_ROLLOUTS = 4096
"""Rollouts of one file: some hundred MB of long traces."""
_DETAIL_CHARS = 4000


class GenerateConfig(Config):
    """Which teacher, on which prompts, how often, and how it is sampled."""

    teacher: str
    """Entry of `curate teachers`, a model folder, `hf:ORG/NAME`, or a server's name for it."""
    samples: int = Field(8, ge=1)
    """Rollouts per prompt (the paper: about 8); more of them later go on from these."""
    temperature: float | None = Field(None, ge=0.0)
    """This and the next three: the teacher's own where None."""
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    top_k: int | None = Field(None, ge=0)
    max_tokens: int | None = Field(None, ge=1)
    instruction: str = "mathematics"
    """Key of `pipelines.conversation.INSTRUCTIONS`; a problem with options gets the wording for choices."""
    seed: int = 0
    limit: int | None = Field(None, ge=1)
    """Only the first prompts."""
    sources: tuple[str, ...] = ()
    """Only prompts of these sources; all where empty."""
    max_model_len: int | None = Field(None, ge=1)
    """Tokens of prompt and completion together; the model's own context where None."""
    engine: Engine = "auto"
    server: str | None = None
    """URL of an OpenAI-compatible server. This, `engine` and `concurrency` do not change what is sampled."""
    concurrency: int = Field(256, ge=1)
    """Completions at once."""

    @property
    def settings(self) -> "GenerateConfig":
        """What is sampled, without how: the part that a later run must share."""
        return self.model_copy(update={"engine": "auto", "server": None, "concurrency": 256})

    @field_validator("instruction")
    @classmethod
    def _known_instruction(cls, value: str) -> str:
        if value not in INSTRUCTIONS:
            raise ValueError(f"no instruction `{value}`; instructions: {', '.join(INSTRUCTIONS)}")
        return value


def run(root: Path, config: GenerateConfig, *, replace: bool = False, retry_failed: bool = False) -> GenerateReport:
    """Sample what is missing; `retry_failed` asks again for what was refused.

    Another config for the same teacher is refused, but for more samples; with `replace` it takes the place
    of the earlier one, whose files move to the hidden folder `.replaced` beside them.
    """
    teacher = resolve_teacher(config.teacher, config.server)
    opener = partial(_open, teacher, config)
    return generate(root, config, teacher, opener, replace=replace, retry_failed=retry_failed)


def generate(
    root: Path,
    config: GenerateConfig,
    teacher: Teacher,
    open_teacher: Callable[[], Sampler],
    *,
    replace: bool = False,
    retry_failed: bool = False,
    block_rollouts: int = BLOCK_ROLLOUTS,
) -> GenerateReport:
    """As `run`, from any sampler; it is opened only if something is left to sample."""
    started = time.monotonic()
    task = _task(root, config, teacher)
    task.files.claim(task.key, task.config.settings, task.model, replace)
    with Journal(task.files.journal_path) as journal:
        task.files.reopen_last_block(journal)
        stored_ids, refused_ids = task.files.stored_ids(), task.files.refused_ids()
        journal.forget([each for each in journal.ids() if each in stored_ids or each in refused_ids])
        skip = stored_ids if retry_failed else stored_ids | refused_ids
        report = GenerateReport(teacher.name, _plan(task, journal.ids(), retry_failed), torn=journal.torn)
        if report.plan.left or report.plan.journalled:
            _sample(task, journal, _blocks(task, journal, skip, block_rollouts), report, open_teacher)
    task.files.drop_mended_refusals()
    assert report.plan.left == report.sampled + report.refused.total(), report
    report.seconds = time.monotonic() - started
    task.files.record(task.key, task.config.settings, task.model, report.seconds)
    return report


def plan(root: Path, config: GenerateConfig, *, retry_failed: bool = False) -> GeneratePlan:
    """What `run` would do; nothing is opened or written."""
    task = _task(root, config, resolve_teacher(config.teacher, config.server))
    journalled = journal_ids(task.files.journal_path)
    return _plan(task, journalled, retry_failed)


# --- what is to be sampled ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """A config with its teacher's settings filled in, and the files it writes."""

    root: Path
    config: GenerateConfig
    """Every setting has its value, none is the teacher's to choose any more."""
    teacher: Teacher
    model: str
    """Name in ids and in the `model` column."""
    sampling: SamplingConfig
    identity: dict[str, Any]
    """Instruction and sampling settings: what ids are made of beside prompt, model and index."""
    files: GeneratedFiles

    @property
    def key(self) -> str:
        """Name in the manifest."""
        return f"{STAGE.name}:{self.config.teacher}"


def _task(root: Path, config: GenerateConfig, teacher: Teacher) -> _Task:
    parquet.require_files(root, "prompts", hint=f"bring problems in with `curate import FILES… --out {root}`")
    sampling = SamplingConfig(
        temperature=teacher.temperature if config.temperature is None else config.temperature,
        top_p=teacher.top_p if config.top_p is None else config.top_p,
        top_k=teacher.top_k if config.top_k is None else config.top_k,
        max_tokens=teacher.max_tokens if config.max_tokens is None else config.max_tokens,
    )
    config = config.model_copy(update=sampling.model_dump())
    # A server's word for a model is all there is; a local folder is named with a digest of its weights.
    model = teacher.model.removeprefix("hf:") if config.server else model_name(teacher.model)
    identity = {"instruction": config.instruction, "seed": config.seed, **sampling.resolved()}
    if config.max_model_len is not None:
        identity["max_model_len"] = config.max_model_len
    files = GeneratedFiles(root, content_id("sampling", model, identity))
    return _Task(root, config, teacher, model, sampling, identity, files)


@dataclass(frozen=True)
class _Planned:
    """A rollout to be: what is known of it before it is sampled."""

    rollout_id: str
    prompt_id: str
    sample_index: int
    message: Message

    @property
    def seed(self) -> int:
        """Derived from the id; 31 bits, which every server takes."""
        return int(self.rollout_id[:8], 16) & 0x7FFFFFFF


def _planned(task: _Task) -> Iterator[_Planned]:
    """Every rollout wanted, by prompt in the table's order, then by sample index; no id comes twice."""
    for row in _prompts(task):
        message = user_message(row["problem"], row["choices"], task.config.instruction)
        for index in range(task.config.samples):
            yield _Planned(
                rollout_id(row["prompt_id"], task.model, task.identity, index), row["prompt_id"], index, message
            )


def _prompts(task: _Task) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    columns = ["prompt_id", "problem", "choices", "source"]
    for path in parquet.table_files(task.root, "prompts"):
        for batch in parquet.read_batches(path, "prompts", columns):
            for row in batch.to_pylist():
                if row["prompt_id"] in seen or (task.config.sources and row["source"] not in task.config.sources):
                    continue
                if len(seen) == task.config.limit:
                    return
                seen.add(row["prompt_id"])
                yield row


def _plan(task: _Task, journalled: Collection[str], retry_failed: bool) -> GeneratePlan:
    stored_ids, refused_ids, in_journal = task.files.stored_ids(), task.files.refused_ids(), set(journalled)
    counts = Counter[str]()
    prompt_ids: set[str] = set()
    for planned in _planned(task):
        prompt_ids.add(planned.prompt_id)
        counts["wanted"] += 1
        if planned.rollout_id in stored_ids:
            counts["stored"] += 1
        elif planned.rollout_id in in_journal:
            counts["journalled"] += 1
        elif planned.rollout_id in refused_ids and not retry_failed:
            counts["refused"] += 1
        else:
            counts["left"] += 1
    names = ("wanted", "stored", "refused", "journalled", "left")
    return GeneratePlan(prompts=len(prompt_ids), **{name: counts[name] for name in names})


# --- sampling -------------------------------------------------------------------------------------


@dataclass
class _Block:
    """Consecutive rollouts of the plan that become one file."""

    number: int
    planned: dict[str, _Planned]
    unfinished: set[str]


def _blocks(task: _Task, journal: Journal, skip: set[str], block_rollouts: int) -> Iterator[_Block]:
    """The blocks of everything that is neither stored nor to be skipped."""
    left = (planned for planned in _planned(task) if planned.rollout_id not in skip)
    number = task.files.next_number()
    while part := {planned.rollout_id: planned for planned in islice(left, block_rollouts)}:
        yield _Block(number, part, {each for each in part if each not in journal})
        number += 1


def _sample(
    task: _Task,
    journal: Journal,
    blocks: Iterator[_Block],
    report: GenerateReport,
    open_teacher: Callable[[], Sampler],
) -> None:
    """Sample what is left, journal it as it ends, and write each block when it is whole."""
    waiting: deque[_Block] = deque()
    owners: dict[str, _Block] = {}

    def requests() -> Iterator[Request]:
        for block in blocks:
            waiting.append(block)
            for planned in block.planned.values():
                if planned.rollout_id in block.unfinished:
                    owners[planned.rollout_id] = block
                    yield Request(planned.rollout_id, (planned.message,), planned.seed)

    sampler = open_teacher() if report.plan.left else None
    try:
        results = iter(()) if sampler is None else sampler.sample(requests(), task.sampling)
        with progress(f"generate {task.teacher.name}", report.plan.left, "rollouts") as advance:
            for result in results:
                block = owners.pop(result.id)
                journal.append(result.id, _journalled(task, block.planned[result.id], result))
                block.unfinished.remove(result.id)
                _count(report, result)
                _write_whole(task, journal, waiting)
                advance()
    finally:
        if sampler is not None:
            sampler.close()
    if sampler is None:  # all is in the journal: go through the blocks without asking
        assert not list(requests())
    assert not owners, f"{len(owners)} requests were never answered"
    _write_whole(task, journal, waiting)
    assert not waiting
    if len(journal):  # finished for a prompt that has left the table since: paid for, so kept
        _write_block(task, journal, task.files.next_number(), journal.ids())


def _journalled(task: _Task, planned: _Planned, result: Completion | Refusal) -> dict[str, Any]:
    """The journal's record of a result: a row of `rollouts`, or one of `refusals`."""
    if isinstance(result, Refusal):
        row: dict[str, Any] = {
            "stage": STAGE.name,
            "source": task.teacher.name,
            "row": None,
            "id": planned.rollout_id,
            "reason": result.reason,
            "detail": _valid(result.detail[:_DETAIL_CHARS]),
        }
        return {"refusals": row}
    parts = split_reasoning(
        _valid(result.text),
        finish_reason=result.finish_reason,
        opened=_opened(task, result),
        delimiters=task.teacher.delimiters,
    )
    row = {
        "rollout_id": planned.rollout_id,
        "prompt_id": planned.prompt_id,
        "model": task.model,
        "sample_index": planned.sample_index,
        "sampling_id": task.files.sampling_id,
        "temperature": task.sampling.temperature,
        "top_p": task.sampling.top_p,
        "max_tokens": task.sampling.max_tokens,
        "seed": planned.seed,
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


def _opened(task: _Task, completion: Completion) -> bool:
    """Whether the text begins inside the reasoning.

    A server does not say what its template opened. Where the teacher's does, a text that closes the tag or
    was cut short began inside; one that ended by itself without any tag is an answer without reasoning.
    """
    if completion.opens_reasoning:
        return True
    unsaid = task.config.server is not None and task.teacher.opens_reasoning
    return unsaid and (task.teacher.delimiters[1] in completion.text or completion.finish_reason == "length")


def _valid(text: str) -> str:
    """`text` without lone surrogates, which JSON from a server can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _count(report: GenerateReport, result: Completion | Refusal) -> None:
    if isinstance(result, Refusal):
        report.refused[result.reason] += 1
        return
    report.sampled += 1
    report.truncated += result.finish_reason == "length"
    report.tokens += result.completion_tokens or 0


def _write_whole(task: _Task, journal: Journal, waiting: deque[_Block]) -> None:
    """Write the blocks at the front of `waiting` whose every rollout has ended, and drop them."""
    while waiting and not waiting[0].unfinished:
        block = waiting[0]
        _write_block(task, journal, block.number, list(block.planned))
        waiting.popleft()


def _write_block(task: _Task, journal: Journal, number: int, ids: list[str]) -> None:
    refusals = [record["refusals"] for record in map(journal.read, ids) if "refusals" in record]
    rows = (record["rollouts"] for record in map(journal.read, ids) if "rollouts" in record)
    made_from = runner.origin(STAGE, task.config.settings, [task.model, str(number)])
    task.files.write_block(number, rows, refusals, made_from)
    journal.forget(ids)


def _open(teacher: Teacher, config: GenerateConfig) -> Sampler:
    if config.server is None and config.engine != "server":
        _require_accelerators(teacher)
    return open_sampler(
        teacher.model,
        engine=config.engine,
        server_url=config.server,
        max_model_len=config.max_model_len,
        max_rows=config.concurrency,
        concurrency=config.concurrency,
        tensor_parallel=max(1, teacher.gpus),
    )


def _require_accelerators(teacher: Teacher) -> None:
    """A teacher that cannot fit here is a `UserError` before its weights are downloaded."""
    available = accelerator_count() if teacher.gpus else 0
    if available < teacher.gpus:
        raise UserError(
            f"`{teacher.name}` needs {teacher.gpus} accelerators of 80 GB, here are {available}",
            hint="sample it with `--server URL`, or choose a smaller one: `curate teachers`",
        )
