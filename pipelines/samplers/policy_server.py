"""A vLLM server that samples a policy in training: its weights by a shared file, tokens in and tokens out.

Every completion says which weights it was drawn from. What a server answers that has lost ours (it died and came
back with those it was started with) is noticed, and asked again once it has them.
"""

import json
import os
import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from pipelines.errors import UserError
from pipelines.samplers.chat import ChatFormat
from pipelines.samplers.openai_chat import RefusedError, TransientError, check_finish, check_status, without_key
from pipelines.samplers.policy_worker import header_digest
from pipelines.samplers.protocols import Server
from pipelines.sampling import Completion, Refusal, Request, SamplingConfig, prompt_too_long

if TYPE_CHECKING:
    import torch

SERVE_FLAGS = (
    "--enable-scale-out",
    "--worker-extension-cls=pipelines.samplers.policy_worker.PolicyWorker",
    "--middleware=pipelines.samplers.policy_worker.Guard",
)
"""What `vllm serve` is started with to sample a policy, and with `SERVE_VARIABLES`."""
SERVE_VARIABLES = {"VLLM_SERVER_DEV_MODE": "1"}
_GENERATE = "inference/v1/generate"
_HINT = "start it as docs/rl.md says under `Where it samples`"
_LOAD_TIMEOUT_S = 600.0
_TRY_EVERY_S = 1.0


class PolicyServer:
    """A server with the weights of the moment: `update` replaces them, and one that has died gets them again.

    A server is up once it has them, so nothing is sent to one that has not.
    """

    def __init__(self, server: Server, folder: Path, served_name: str, *, patience_s: float = 600.0) -> None:
        """Weights go through `folder`, which is this run's own and which the server sees under the same path.

        A server that somebody else runs is waited for `patience_s` when it is gone.
        """
        self.served_name = served_name
        self._server = server
        self._folder = folder.absolute()
        self._patience_s = patience_s
        self._run, self._updates = secrets.token_hex(4), 0
        self._has_them = False
        self._changing = threading.Lock()
        self._client = httpx.Client(
            headers={} if server.key is None else {"Authorization": f"Bearer {server.key}"},
            timeout=_LOAD_TIMEOUT_S,
            limits=httpx.Limits(max_keepalive_connections=0),  # vLLM drops a connection after an error
            trust_env=not server.is_ours,
        )

    @property
    def url(self) -> str:
        """Base of OpenAI's API, which lists the models."""
        return self._server.url

    @property
    def key(self) -> str | None:
        return self._server.key

    @property
    def is_ours(self) -> bool:
        return self._server.is_ours

    @property
    def is_up(self) -> bool:
        """Whether it runs, as far as is known, with the weights of the moment."""
        return self._has_them and self._server.is_up

    @property
    def version(self) -> str:
        """Name of the weights of the moment; no other run has it."""
        return f"{self._run}-{self._updates}"

    def update(self, named_tensors: Iterable[tuple[str, "torch.Tensor"]], dtype: "torch.dtype") -> None:
        """Give it new weights (checkpoint names, written as `dtype`); a `UserError` where it does not take them."""
        with self._changing:
            self._has_them = False
            self._updates += 1
            _write(self._path, named_tensors, dtype, self.version)
            # Of updates before, and what a kill has left of one.
            for pattern in ("policy-*.safetensors", ".policy-*.partial"):
                for old in set(self._folder.glob(pattern)) - {self._path}:
                    old.unlink()
            self._bring_up()

    def restart(self) -> None:
        """Bring it back with the weights of the moment."""
        with self._changing:
            if not self.is_up:  # else another has
                self._bring_up()

    def lost_weights(self) -> None:
        """It has answered with others: it gets ours again before anything else is sent."""
        self._has_them = False

    def close(self) -> None:
        """End the server if it is ours, and remove the weights that were on their way."""
        self._client.close()
        self._server.close()
        self._path.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return self._folder / f"policy-{self.version}.safetensors"

    def _bring_up(self) -> None:
        """Have it run with the weights of the moment."""
        assert self._updates, "a policy is sampled after its first update"
        until = time.monotonic() + self._patience_s
        while True:
            if not self._server.is_up:
                self._server.restart()
                until = time.monotonic() + self._patience_s
            try:
                self._load()
            except (httpx.RequestError, TransientError) as error:
                if time.monotonic() > until:
                    raise UserError(
                        f"{self.url} has taken no weights for {self._patience_s:.0f} s: {error}",
                        hint="see to the server; the same command goes on from the last checkpoint",
                    ) from None
                time.sleep(_TRY_EVERY_S)
            except (LookupError, TypeError) as error:
                raise UserError(
                    f"{self.url} does not answer as vLLM 0.32 does: {type(error).__name__}: {error}", hint=_HINT
                ) from None
            else:
                self._has_them = True
                return

    def _load(self) -> None:
        """Put the weights in place, forget what was cached under others, and see that answers come from them.

        The version is set before the weights: one that restarts in between answers under no version of ours.
        """
        self._post("pause?mode=abort")  # what a run before had left running
        try:
            self._post("update_weight_version", new_version=self.version)
            loaded = self._post("collective_rpc", method="load_policy", args=[str(self._path)])
            self._check(loaded["results"])
            if not self._post("reset_prefix_cache")["success"]:
                raise TransientError("not_reset", "the prefix cache is in use")
        finally:
            self._post("resume")
        short = {"max_tokens": 1, "temperature": 0.0}
        probe = self._post(_GENERATE, model=self.served_name, token_ids=[1], sampling_params=short)
        if _versions(probe) != {self.version}:
            raise TransientError("stale_weights", f"it answers from weights {_versions(probe)}")

    def _post(self, path: str, **body: Any) -> Any:
        """The JSON answer of vLLM's own API; what is wrong with the server's settings is a `UserError`."""
        url = f"{_root(self.url)}/{path}"
        response = self._client.post(url, json=body)
        text = without_key(response.text, self.key)
        if response.status_code in (403, 404) or "no attribute 'load_policy'" in text:
            raise UserError(f"{url} is not open to a trainer (HTTP {response.status_code})", hint=_HINT)
        try:
            check_status(response.status_code, response.headers, text, url)
            return json.loads(text)
        except RefusedError as refused:
            raise UserError(f"{url} refuses: {refused.detail[:300]}", hint=_HINT) from None
        except ValueError:
            raise TransientError("not_json", text[:500]) from None

    def _check(self, results: list[dict[str, str]]) -> None:
        """A `UserError` where a worker has not read the file that was written, or samples under other settings."""
        digest = header_digest(self._path)
        for result in results:
            if "error" in result:
                raise UserError(
                    f"{self.url} cannot load the policy's weights: {result['error'][:300]}",
                    hint=f"does it serve this model, and see `{self._folder}` under the same path?",
                )
            if result["digest"] != digest:
                raise UserError(
                    f"{self.url} has read another file at `{self._path}`", hint="`rl.weights_dir` must be shared"
                )
            if result["logprobs_mode"] != "processed_logprobs":
                raise UserError(f"{self.url} gives {result['logprobs_mode']}, RL needs processed_logprobs", hint=_HINT)


class TokenWire:
    """vLLM's `/inference/v1/generate`: prompt tokens out, tokens, log-probabilities and weight version back."""

    def __init__(self, server: PolicyServer, chat: ChatFormat, context: int) -> None:
        """`context`: tokens of prompt and completion together at most."""
        self.served_name = server.served_name
        self._server = server
        self._chat = chat
        self._context = context

    def url(self, base: str) -> str:
        """Where requests are posted; it stands beside OpenAI's API."""
        return f"{_root(base)}/{_GENERATE}"

    def note(self, entry: Mapping[str, Any]) -> None:
        """The server's list of models can only shorten the context."""
        served = entry.get("max_model_len")
        if isinstance(served, int):
            self._context = min(self._context, served)

    def body(self, request: Request, config: SamplingConfig, *, logprobs: bool) -> dict[str, Any] | Refusal:
        """The body of the POST; all that shapes the distribution is spelled out."""
        prompt_ids = self._chat.prompt_ids(request.messages, config.reasoning_effort)
        space = self._context - len(prompt_ids)
        if space < 1:
            return prompt_too_long(request.id, len(prompt_ids), self._context)
        params = {
            "temperature": config.temperature,
            "top_p": config.top_p,
            "top_k": config.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": min(config.max_tokens, space),
            "seed": request.seed,
            "stop_token_ids": sorted(self._chat.stop_ids),
            "logprobs": 0 if logprobs else None,
            "detokenize": False,
        }
        return {"model": self.served_name, "token_ids": prompt_ids, "sampling_params": params}

    def read(self, request_id: str, body: Mapping[str, Any], answer: Any) -> Completion:
        """The answer as a completion; `TransientError` where it is none, or was drawn from other weights."""
        try:
            choice = answer["choices"][0]
            finish_reason = choice["finish_reason"]
            token_ids = tuple(int(token) for token in choice["token_ids"])
            chosen = (choice["logprobs"] or {"content": ()})["content"]
            logprobs = tuple(float(token["logprob"]) for token in chosen)
            versions = _versions(answer)
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise TransientError("not_a_completion", f"{type(error).__name__}: {error}: {answer!r:.500}") from None
        check_finish(finish_reason)
        if not token_ids or len(logprobs) not in (0, len(token_ids)):
            raise TransientError("not_a_completion", f"{len(token_ids)} tokens, {len(logprobs)} log-probabilities")
        if versions != {self._server.version}:
            self._server.lost_weights()
            raise TransientError("stale_weights", f"drawn from weights {versions}, not {self._server.version}")
        prompt_ids = tuple(body["token_ids"])
        return Completion(
            id=request_id,
            text=self._chat.text(token_ids),
            finish_reason="length" if finish_reason == "length" else "stop",
            prompt_tokens=len(prompt_ids),
            completion_tokens=len(token_ids),
            prompt_token_ids=prompt_ids,
            token_ids=token_ids,
            logprobs=logprobs,
            opens_reasoning=self._chat.opens_reasoning(prompt_ids),
        )


def _root(base: str) -> str:
    """Where vLLM's own API is, given the base of OpenAI's."""
    return base.removesuffix("/v1")


def _write(path: Path, named_tensors: Iterable[tuple[str, "torch.Tensor"]], dtype: "torch.dtype", version: str) -> None:
    """Write weights to a safetensors file that appears whole."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in named_tensors}
    save_file(tensors, partial, metadata={"version": version})
    partial.replace(path)


def _versions(answer: Any) -> set[str]:
    """Names of the weights that a completion was drawn from."""
    return {str(span["version"]) for span in answer["choices"][0]["weight_versions"]}
