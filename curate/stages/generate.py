"""Generate: sample a teacher on every prompt, so that nothing finished is ever lost or paid for twice.

Ids are known before sampling. A finished rollout is a line of the journal `rollouts/.generate-SETTINGS.journal`
within a second; when every id of a block of the plan has ended, the block becomes
`rollouts/generate-SETTINGS-00000.parquet`, and its refusals the file of that name in `refusals`. Blocks are
made in the order of the plan, whatever order requests finish in, so an interrupted run and an
uninterrupted one leave the same files, the sampled text aside.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field, field_validator

from curate.journal import Journal, disk_space_checked
from curate.teachers import Teacher, resolve_teacher
from pipelines import __version__, parquet, runner
from pipelines.config import Config
from pipelines.conversation import INSTRUCTIONS, Message, user_message
from pipelines.errors import UserError
from pipelines.progress import progress
from pipelines.reasoning import split_reasoning
from pipelines.runner import Stage
from pipelines.samplers import Engine, model_name, open_sampler
from pipelines.sampling import Completion, Refusal, Request, Sampler, SamplingConfig
from pipelines.tables import REFUSALS, ROLLOUTS, content_id, rollout_id

STAGE = Stage("generate", reads=("prompts",), writes=("rollouts", "refusals"))

BLOCK_ROLLOUTS = 4096
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

    @field_validator("instruction")
    @classmethod
    def _known_instruction(cls, value: str) -> str:
        if value not in INSTRUCTIONS:
            raise ValueError(f"no instruction `{value}`; instructions: {', '.join(INSTRUCTIONS)}")
        return value


@dataclass(frozen=True)
class GeneratePlan:
    """What a run would do: `wanted == stored + refused + journalled + left`."""

    prompts: int
    wanted: int
    stored: int
    refused: int
    """Failed for ever in an earlier run; asked again with `retry_failed`."""
    journalled: int
    """Finished in an earlier run, not yet in Parquet."""
    left: int


@dataclass
class GenerateReport:
    """What a run did: `plan.left == sampled + refused by reason`."""

    teacher: str
    plan: GeneratePlan
    sampled: int = 0
    truncated: int = 0
    """Of the sampled: reached `max_tokens`."""
    refused: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    seconds: float = 0.0
    torn: int = 0
    """Lines of the journal that a kill had torn; set aside and sampled again."""

    def lines(self) -> list[str]:
        """The summary a command prints."""
        plan = self.plan
        if plan.left + plan.journalled == 0:
            refused = f", {plan.refused:,} refused before (--retry-failed asks again)" if plan.refused else ""
            return [f"{self.teacher}: nothing to do, {plan.stored:,} of {plan.wanted:,} rollouts are stored{refused}"]
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.refused.most_common())
        before = plan.stored + plan.refused + plan.journalled
        lines = [
            f"{self.teacher}: {plan.prompts:,} prompts, {plan.wanted:,} rollouts wanted = {before:,} before"
            f" + {self.sampled:,} sampled + {self.refused.total():,} refused{f' ({reasons})' if reasons else ''}",
            f"{self.truncated:,} truncated; {self.tokens:,} tokens in {self.seconds:.1f} s,"
            f" {self.tokens / max(self.seconds, 1e-9):,.0f} tokens/s",
        ]
        return lines + ([f"{self.torn} torn journal lines set aside"] if self.torn else [])


@dataclass(frozen=True)
class _Planned:
    """A rollout to be: what is known of it before it is sampled."""

    rollout_id: str
    prompt_id: str
    sample_index: int
    message: Message

    @property
    def seed(self) -> int:
        """Derived from the id, 31 bits: more than some servers take."""
        return int(self.rollout_id[:8], 16) & 0x7FFFFFFF


@dataclass
class _Block:
    """Consecutive rollouts of the plan that become one file."""

    number: int
    ids: list[str]
    unfinished: set[str]


def run(root: Path, config: GenerateConfig, *, replace: bool = False, retry_failed: bool = False) -> GenerateReport:
    """Sample what is missing; `retry_failed` asks again for what was refused.

    Another config for the same teacher is refused, but for more samples; with `replace` it takes the place
    of the earlier one, whose files move to the hidden folder `.replaced` beside them.
    """
    teacher = resolve_teacher(config.teacher, config.server)
    return generate(
        root, config, teacher, lambda: _open(teacher, config), replace=replace, retry_failed=retry_failed
    )


def generate(
    root: Path,
    config: GenerateConfig,
    teacher: Teacher,
    open_teacher: Callable[[], Sampler],
    *,
    replace: bool = False,
    retry_failed: bool = False,
) -> GenerateReport:
    """As `run`, from any sampler; it is opened only if something is left to sample."""
    started = time.monotonic()
    run_ = _Run(root, config, teacher)
    parquet.require_files(root, "prompts", hint="bring problems in with `curate import FILES… --out out/`")
    run_.claim(replace)
    with Journal(run_.journal_path) as journal:
        run_.reopen_last_block(journal)
        skip = run_.stored_ids() | (set() if retry_failed else run_.refused_ids())
        report = GenerateReport(teacher.name, _plan(run_, journal, retry_failed), torn=journal.torn)
        if report.plan.left or len(journal):
            _sample(run_, journal, skip, report, open_teacher)
    run_.drop_mended_refusals()
    assert report.plan.left == report.sampled + report.refused.total(), report
    report.seconds = time.monotonic() - started
    run_.record(report)
    return report


def plan(root: Path, config: GenerateConfig, *, retry_failed: bool = False) -> GeneratePlan:
    """What `run` would do, without doing it."""
    run_ = _Run(root, config, resolve_teacher(config.teacher, config.server))
    parquet.require_files(root, "prompts", hint="bring problems in with `curate import FILES… --out out/`")
    with Journal(run_.journal_path) as journal:
        return _plan(run_, journal, retry_failed)
