"""A real HTTP server for tests: an OpenAI-compatible endpoint over any sampler, with faults on request."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from email.utils import formatdate
from typing import Any

from pipelines.sampling import Completion, Refusal, Request, Sampler, SamplingConfig
from tests.serving import Handler, serving

TRANSIENT_FAULTS = (
    "rate_limit",
    "error",
    "half_body",
    "empty_body",
    "not_json",
    "wrong_json",
    "no_choices",
    "aborted",
    "bad_gzip",
    "deep_json",
    "drop",
    "hang",
)
FAULTS = (*TRANSIENT_FAULTS, "bad_request")
"""Others are asked for by name: `http_STATUS`, `rate_limit_until` (a date), `filtered`."""


class ChatServer:
    """What the handler shares: the sampler, how often it fails, and what it has seen."""

    def __init__(
        self,
        sampler: Sampler,
        fault_rate: float,
        reasoning_field: str | None,
        seed: int,
        faults: Sequence[str],
        owned_by: str,
    ) -> None:
        self.sampler = sampler
        self.fault_rate = fault_rate
        self.reasoning_field = reasoning_field
        self.kinds = faults
        self.fault_only: Callable[[dict[str, Any]], bool] = lambda _: True
        """Requests that faults are for, by their body."""
        self.listing: dict[str, Any] = {"id": sampler.model, "owned_by": owned_by}
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.faults: Counter[str] = Counter()
        self.answered: Counter[int] = Counter()
        """Requests answered in full, by seed."""
        self.released = threading.Event()
        """Hanging answers end."""
        self.open = 0
        self.most_open = 0
        self.authorization: set[str | None] = set()
        self.bodies: list[dict[str, Any]] = []
        self.early_retries = 0
        self._not_before: dict[int, float] = {}

    def fault(self, body: dict[str, Any]) -> str | None:
        """The fault of this attempt; counts attempts that come before their Retry-After is over."""
        seed = body["seed"]
        with self.lock:
            self.early_retries += time.monotonic() < self._not_before.pop(seed, 0.0)
            if self.random.random() >= self.fault_rate or not self.fault_only(body):
                return None
            fault = self.random.choice(self.kinds)
            self.faults[fault] += 1
            if fault.startswith("rate_limit"):
                self._not_before[seed] = time.monotonic() + 0.1
            return fault

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The status and the chat-completion object for a request body."""
        request = Request("1", tuple(body["messages"]), body["seed"])
        config = SamplingConfig(
            temperature=body["temperature"],
            top_p=body["top_p"],
            top_k=max(0, body.get("top_k", 0)),
            max_tokens=body["max_tokens"],
        )
        with self.lock:
            (result,) = self.sampler.sample([request], config, logprobs=True)
            self.answered[body["seed"]] += 1
        if isinstance(result, Refusal):
            return 400, {"error": {"message": f"{result.reason}: {result.detail}"}}
        choice: dict[str, Any] = {"index": 0, "message": self.message(result), "finish_reason": result.finish_reason}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [{"token": "", "logprob": value} for value in result.logprobs]}
        if body.get("return_token_ids"):
            choice["token_ids"] = result.token_ids
        usage = {"prompt_tokens": result.prompt_tokens, "completion_tokens": result.completion_tokens}
        return 200, {"choices": [choice], "usage": usage, "prompt_token_ids": result.prompt_token_ids}

    def message(self, result: Completion) -> dict[str, Any]:
        """The assistant's message; with `reasoning_field`, what stands before `</think>` is split off into it."""
        if self.reasoning_field is None:
            return {"role": "assistant", "content": result.text}
        reasoning, closed, content = result.text.removeprefix("<think>").partition("</think>")
        return {"role": "assistant", self.reasoning_field: reasoning, "content": content if closed else None}


@contextmanager
def chat_server(
    sampler: Sampler,
    *,
    fault_rate: float = 0.0,
    reasoning_field: str | None = None,
    seed: int = 0,
    faults: Sequence[str] = FAULTS,
    owned_by: str = "test",
) -> Iterator[tuple[str, ChatServer]]:
    """The URL of a running server, and its state; `owned_by` `vllm` says that it knows vLLM's fields."""
    state = ChatServer(sampler, fault_rate, reasoning_field, seed, faults, owned_by)

    class Answers(_Handler):
        server_state = state

    with serving(Answers) as url:
        try:
            yield f"{url}/v1", state
        finally:
            state.released.set()


class _Handler(Handler):
    server_state: ChatServer

    def do_GET(self) -> None:
        self.send(200, json.dumps({"data": [self.server_state.listing]}).encode())

    def do_POST(self) -> None:
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with state.lock:
            state.open += 1
            state.most_open = max(state.most_open, state.open)
            state.authorization.add(self.headers["Authorization"])
            state.bodies.append(body)
        fault = state.fault(body)
        status, content = state.answer(body) if fault is None else (0, {})
        with state.lock:  # before a client can know that it has its answer
            state.open -= 1
        if fault is None:
            self.send(status, json.dumps(content).encode())
        else:
            self._fail(fault, state)

    def _fail(self, fault: str, state: ChatServer) -> None:
        if fault.startswith("http_"):
            said = f"no, {self.headers['Authorization']}, I do not like this prompt".encode()
            self.send(int(fault.removeprefix("http_")), said)
        elif fault == "rate_limit":
            self.send(429, b"slow down", {"Retry-After": "0.1"})
        elif fault == "rate_limit_until":
            # Full seconds: the date that comes 0.1 to 1.1 s after the server's own.
            self.send(429, b"slow down", {"Retry-After": formatdate(time.time() + 1.1, usegmt=True)})
        elif fault == "error":
            self.send(500, b"Traceback (most recent call last)")
        elif fault == "bad_request":
            self.send(400, b'{"error": {"message": "I do not like this prompt"}}')
        elif fault == "empty_body":
            self.send(200, b"")
        elif fault == "not_json":
            self.send(200, b"<html>gateway</html>")
        elif fault == "wrong_json":
            self.send(200, b'{"choices": [{"message": null}]}')
        elif fault == "no_choices":
            self.send(200, b'{"choices": []}')
        elif fault == "bad_gzip":
            self.send(200, b"not compressed", {"Content-Encoding": "gzip"})
        elif fault == "deep_json":
            self.send(200, b"[" * 100_000)
        elif fault == "aborted":
            self.send(200, b'{"choices": [{"message": {"content": "so f"}, "finish_reason": "abort"}]}')
        elif fault == "filtered":
            self.send(200, b'{"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}')
        else:
            if fault == "half_body":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [{"mess')
            elif fault == "hang":
                state.released.wait(5.0)
            self.close_connection = True
