"""What a vLLM server imports to sample a policy in training: its weights come from a file, and its doors get a lock.

vllm serve … --worker-extension-cls=pipelines.samplers.policy_worker.PolicyWorker
             --middleware=pipelines.samplers.policy_worker.Guard
"""

import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


class PolicyWorker:
    """What vLLM's workers learn: to take the weights of a safetensors file that the trainer has written."""

    device: "torch.device"
    model_config: Any

    if TYPE_CHECKING:  # vLLM's own worker has these

        def reload_weights(self, *, weights_iterator: Iterator[tuple[str, "torch.Tensor"]]) -> None: ...

        def get_model(self) -> nn.Module: ...

    def load_policy(self, path: str) -> dict[str, str]:
        """Put the weights of the file at `path` in place; says what was read, and of what its log-probabilities are.

        What is wrong with the file is an `error`, for the server tells nobody why a call has failed.
        """
        try:
            digest = header_digest(Path(path))
            self.reload_weights(weights_iterator=_tensors(path))
        except (OSError, ValueError, RuntimeError, AssertionError) as error:
            return {"error": f"{type(error).__name__}: {error}"}
        if self.device.type == "cpu":
            from pipelines.samplers.vllm import repack_head

            repack_head(self.get_model())
        return {"digest": digest, "logprobs_mode": str(self.model_config.logprobs_mode)}


def header_digest(path: Path) -> str:
    """Digest of a safetensors file's header: names, types and shapes of its tensors, and the update that it is."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return hashlib.sha256(file.read(size)).hexdigest()


def _tensors(path: str) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Names and tensors of a safetensors file, one at a time in memory."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  # it is no mapping
            yield name, file.get_tensor(name)


class Guard:
    """Asks for the key on every path: vLLM's own lock leaves those open that replace the weights."""

    def __init__(self, app: Any) -> None:
        key = os.environ.get("VLLM_API_KEY")
        if not key:
            raise ValueError("a server whose weights can be replaced needs a key: set VLLM_API_KEY")
        self._app = app
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer 401; a socket without the key is closed."""
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        if scope["type"] == "lifespan" or secrets.compare_digest(given, self._expected):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
