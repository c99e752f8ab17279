"""The sampler interface: requests in, completions out as they finish."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

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


class Sampler(Protocol):
    """What every engine offers. Results come in any order, each request exactly once."""

    model: str
    """Name that goes into rollout ids and the `model` column."""

    def sample(
        self, requests: Iterable[Request], config: SamplingConfig, *, logprobs: bool = False
    ) -> Iterator[Completion | Refusal]: ...

    def close(self) -> None: ...
