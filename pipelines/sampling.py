"""The sampler interface: requests in, completions out as they finish."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pipelines.config import Config
from pipelines.conversation import Message


class SamplingConfig(Config):
    """How to sample; part of a rollout's id, so a changed value is a new rollout."""

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    """0 keeps every token."""
    max_tokens: int = 32768
    """New tokens at most; a completion that reaches it has `finish_reason` `length`."""
    reasoning_effort: Literal["low", "medium", "high"] | None = None
    """What gpt-oss's chat template says about thinking; None leaves it to the template."""

    def resolved(self) -> dict[str, Any]:
        """As of any config, without the effort where there is none: it came later, and ids stay as they were."""
        return self.model_dump(mode="json", exclude_none=True)


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to sample. `id` is known before sampling (a rollout_id); `seed` derives from it."""

    id: str
    messages: tuple[Message, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished completion: everything generated after the prompt."""

    id: str
    text: str
    """Generated text without the end-of-turn token, reasoning tags included as the model wrote them
    (a server that splits them off has them put back by its sampler)."""
    finish_reason: str
    """`stop` or `length`."""
    prompt_tokens: int | None
    completion_tokens: int | None
    prompt_token_ids: tuple[int, ...] = ()
    """Empty where the sampler does not know them (an API)."""
    token_ids: tuple[int, ...] = ()
    """Generated tokens, the end-of-turn token included; what RL trains on, never re-tokenised."""
    logprobs: tuple[float, ...] = ()
    """Of `token_ids` under the distribution they were drawn from, in nats; empty unless asked.

    That is softmax(logits / temperature), which a trainer computes too; where top_p or top_k cut it,
    renormalised over what they left (trainers that need importance ratios sample with neither).
    """
    opens_reasoning: bool = False
    """The prompt ended with the tag that opens the reasoning, so `text` begins inside it."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that can never succeed, with the reason; the run goes on without it."""

    id: str
    reason: str
    detail: str


def prompt_too_long(request_id: str, prompt_tokens: int, context: int) -> Refusal:
    """The refusal of a prompt after which nothing can be written."""
    detail = f"{prompt_tokens} prompt tokens, the model reads {context} with its answer"
    return Refusal(request_id, "prompt_too_long", detail)


class Sampler(Protocol):
    """What every engine offers. Results come in any order, each request exactly once.

    `requests` is read as places become free, in the thread that takes the results. It may yield None where
    its next request depends on results that are still to come: it is asked again after the next one.
    """

    model: str
    """Name that goes into rollout ids and the `model` column."""

    def sample(
        self, requests: Iterable[Request | None], config: SamplingConfig, *, logprobs: bool = False
    ) -> Iterator[Completion | Refusal]: ...

    def close(self) -> None: ...


def encodable(text: str) -> str:
    """`text` without halves of surrogate pairs, which JSON from a server can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()
