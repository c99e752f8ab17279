"""A stand-in for a vLLM server that samples a policy, in a thread: it takes weights, answers tokens, and can lose both.

What it answers is told by the weights that it has: the token of a completion is the number of their update, 0 for
those it began with.
"""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.samplers.policy_worker import header_digest
from tests.serving import Handler, serving


class PolicyStub:
    """What the server has and has seen; a test changes it while it runs."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls: list[str] = []
        self.closed: dict[str, int] = {}
        """Path -> the status that it answers instead."""
        self.complaint = "no"
        self.load_answer: dict[str, str] = {}
        """What `load_policy` says otherwise."""
        self.serves = "policy"
        self.resets = True
        self.dies_at = -1
        """At this completion it comes back with the weights it began with; every later one is its own life's."""
        self.lives = 1
        self.asked: Counter[int] = Counter()
        """Requests that were answered, by seed."""
        self.bodies: list[dict[str, Any]] = []
        self._begin()

    def _begin(self) -> None:
        self.version, self.loaded = "default", 0

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON of one call."""
        name = path.strip("/").partition("?")[0]
        with self.lock:
            self.calls.append(name)
            if name in self.closed:
                return self.closed[name], {"error": self.complaint}
            if name == "inference/v1/generate":
                return self._generate(body)
            if name == "update_weight_version":
                self.version = body["new_version"]
            if name == "collective_rpc":
                assert body["method"] == "load_policy"
                return 200, {"results": [self._load(Path(body["args"][0]))]}
            return 200, {"success": self.resets}

    def _load(self, path: Path) -> dict[str, str]:
        self.loaded = int(path.stem.rpartition("-")[2])
        return {"digest": header_digest(path), "logprobs_mode": "processed_logprobs", **self.load_answer}

    def _generate(self, body: dict[str, Any]) -> tuple[int, Any]:
        params = body["sampling_params"]
        if "seed" in params:  # else it is the sampler's own question
            if sum(self.asked.values()) == self.dies_at:
                self.dies_at, self.lives = -1, self.lives + 1
                self._begin()
            self.asked[params["seed"]] += 1
            self.bodies.append(body)
        tokens = [self.loaded + 10, 0]
        choice = {
            "finish_reason": "stop",
            "token_ids": tokens,
            "logprobs": {"content": [{"token_id": token, "logprob": -0.5} for token in tokens]},
            "weight_versions": [{"version": self.version, "start": 0, "end": 2}],
        }
        return 200, {"choices": [choice]}


@contextmanager
def policy_stub() -> Iterator[tuple[str, PolicyStub]]:
    """The URL of a running stand-in, and its state."""
    state = PolicyStub()

    class Answers(Handler):
        def do_GET(self) -> None:
            self._answer(200, {"data": [{"id": state.serves, "max_model_len": 64}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(*state.answer(self.path, body))

        def _answer(self, status: int, content: object) -> None:
            self.send(status, json.dumps(content).encode())

    with serving(Answers) as url:
        yield url, state
