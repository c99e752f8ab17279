"""A judge: a model that is opened when it is first asked, and replies that are kept on disk.

A reply is a line of the journal `.judge-MODEL.journal` as soon as it comes, under the digest of model, settings
and prompt: a kill pays for nothing twice, and a judge that was asked before is not even opened.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from curate.journal import Journal
from curate.teachers import TEACHERS, Teacher, resolve_teacher
from pipelines.conversation import Message
from pipelines.errors import UserError
from pipelines.reasoning import split_reasoning
from pipelines.samplers import accelerator_count, model_name, open_sampler
from pipelines.sampling import Completion, Request, Sampler, SamplingConfig
from pipelines.tables import content_id
from verifiers.judge import cache_key, says_same

_REPLY_CHARS = 2000
"""So much of a reply's end is kept; its last line is what counts."""
_CONCURRENCY = 256


@dataclass
class JudgeCounts:
    """What became of the prompts of one run; a prompt that comes again is counted once."""

    asked: int = 0
    remembered: int = 0
    """Answered in an earlier run."""
    unreadable: int = 0
    """Replies in another form than the one asked for: they decide nothing."""
    refused: int = 0
    """Prompts that the judge's engine or server refused; asked again next time."""

    def words(self, judge: str, what: str, *more: str) -> str:
        """A line of a report: what became of the `what` that `judge` was asked about, and `more`."""
        asked = f"{self.asked:,} {what} asked about, {self.remembered:,} remembered"
        unusable = f"{self.unreadable:,} replies in no readable form, {self.refused:,} refused"
        return f"judge {judge}: " + "; ".join((asked, *more, unusable))


@dataclass
class Judge:
    """A model that is asked whether two answers mean the same, or what a problem is about."""

    name: str
    """Goes into the `verifier` column, behind `judge@VERSION:`."""
    teacher: Teacher
    sampling: SamplingConfig
    open_model: Callable[[], Sampler]
    journal: Journal
    readable: Callable[[str], bool] = lambda reply: says_same(reply) is not None
    """Whether a reply has the form that was asked for."""
    counts: JudgeCounts = field(default_factory=JudgeCounts)
    on_reply: Callable[[], object] = lambda: None
    """Called after each reply or refusal."""
    _sampler: Sampler | None = None
    _seen: set[str] = field(default_factory=set)

    def ask(self, prompts: list[str]) -> list[str | None]:
        """The reply to each prompt, without its reasoning; None where it was refused."""
        keys = [self._key(prompt) for prompt in prompts]
        new = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self.journal}
        self.counts.remembered += len({*keys} - {*new} - self._seen)
        self._seen.update(keys)
        if new:
            self._ask_model(new)
        return [self.journal.read(key)["reply"] if key in self.journal else None for key in keys]

    def close(self) -> None:
        """Let go of the model."""
        if self._sampler is not None:
            self._sampler.close()

    def _key(self, prompt: str) -> str:
        settings = self.sampling.resolved()
        return cache_key(self.name, self.teacher.model, str(sorted(settings.items())), prompt)

    def _ask_model(self, prompts: dict[str, str]) -> None:
        if self._sampler is None:
            self._sampler = self.open_model()
        requests = (
            Request(key, (Message(role="user", content=prompt),), int(key[:8], 16) & 0x7FFFFFFF)
            for key, prompt in prompts.items()
        )
        for result in self._sampler.sample(requests, self.sampling):
            self.counts.asked += 1
            if isinstance(result, Completion):
                reply = self._response(result)
                self.counts.unreadable += not self.readable(reply)
                self.journal.append(result.id, {"reply": reply})
            else:
                self.counts.refused += 1
            self.on_reply()

    def _response(self, completion: Completion) -> str:
        """The end of a reply, behind its reasoning; a reply that never ends its reasoning is empty."""
        closing = self.teacher.delimiters[1]
        # A server does not say whether its template opened the reasoning.
        unsaid = self.teacher.opens_reasoning and (closing in completion.text or completion.finish_reason == "length")
        parts = split_reasoning(
            completion.text.encode("utf-8", "replace").decode(),
            finish_reason=completion.finish_reason,
            opened=completion.opens_reasoning or unsaid,
            delimiters=self.teacher.delimiters,
        )
        return "" if completion.finish_reason == "length" else parts.response[-_REPLY_CHARS:]


@contextmanager
def opened_judge(judge: str, server: str | None, max_tokens: int, folder: Path) -> Iterator[Judge]:
    """The judge called `judge` (an entry of `curate teachers`, a model folder, `hf:`, or a server's name for it).

    Its replies are kept in `folder`. The model itself is opened when there is something to ask.
    """
    teacher = resolve_teacher(judge, server)
    sampling = SamplingConfig(temperature=0.0, top_p=1.0, top_k=0, max_tokens=max_tokens)

    def open_model() -> Sampler:
        if server is None and (available := accelerator_count() if teacher.gpus else 0) < teacher.gpus:
            raise UserError(
                f"the judge `{judge}` needs {teacher.gpus} accelerators of 80 GB, here are {available}",
                hint="ask it through `--server URL`, or choose a smaller one: `curate teachers`",
            )
        return open_sampler(
            teacher.model,
            server_url=server,
            max_rows=_CONCURRENCY,
            concurrency=_CONCURRENCY,
            tensor_parallel=max(1, teacher.gpus),
        )

    name = judge_name(teacher, server)
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(folder / f".judge-{content_id(name)[:8]}.journal"))
        opened = Judge(name, teacher, sampling, open_model, journal)
        stack.callback(opened.close)
        yield opened


def judge_identity(judge: str | None, server: str | None) -> list[str]:
    """The judge's name and weights, if there is one: a model that is trained further is another judge."""
    return [] if judge is None else [judge_name(resolve_teacher(judge, server), server)]


def judge_name(teacher: Teacher, server: str | None) -> str:
    """What a judge is called in a verdict: an entry's or a server's name; a local folder with its weights' digest."""
    if teacher.name in TEACHERS or server is not None:
        return teacher.name.removeprefix("hf:")
    return model_name(teacher.model)
