"""A sampler with fixed answers, token by token, for tests of what is done with rollouts."""

from collections.abc import Iterable, Iterator, Sequence

from pipelines.sampling import Completion, Refusal, Request, SamplingConfig
from pipelines.tables import content_id
from train.prompts import Prompt
from verifiers import Question


def sum_prompts(number: int) -> list[Prompt]:
    """Prompts `0 + 1`, `1 + 1`, ... with their answers."""
    return [
        Prompt(
            content_id("prompt", index),
            ({"role": "user", "content": f"{index} + 1"},),
            "mathematics",
            Question(str(index + 1)),
        )
        for index in range(number)
    ]


class ScriptedPolicy:
    """Gives each problem its texts in turn, round and round; `None` is a refusal. Keeps what it was asked."""

    model = "scripted"

    def __init__(self, texts: dict[str, Sequence[str | None]], logprob: float = -0.5) -> None:
        self._texts = texts
        self._logprob = logprob
        self._turn = dict.fromkeys(texts, 0)
        self.asked: list[tuple[Request, SamplingConfig]] = []

    def sample(
        self, requests: Iterable[Request], config: SamplingConfig, *, logprobs: bool = False
    ) -> Iterator[Completion | Refusal]:
        done: list[Completion | Refusal] = []
        for request in requests:
            self.asked.append((request, config))
            problem = request.messages[0]["content"].split("\n")[0]
            texts = self._texts[problem]
            text = texts[self._turn[problem] % len(texts)]
            self._turn[problem] += 1
            done.append(self._answer(request, text, logprobs))
        # Requests finish in any order.
        yield from reversed(done)

    def _answer(self, request: Request, text: str | None, logprobs: bool) -> Completion | Refusal:
        if text is None:
            return Refusal(request.id, "prompt_too_long", "9000 prompt tokens")
        token_ids = tuple(text.encode())
        return Completion(
            request.id,
            text,
            "length" if text.endswith("...") else "stop",
            3,
            len(token_ids),
            prompt_token_ids=(1, 2, 3),
            token_ids=token_ids,
            logprobs=(self._logprob,) * len(token_ids) if logprobs else (),
        )

    def close(self) -> None:
        """Nothing is held."""
