"""What samples from the policy while it is trained, and how it is given the policy's weights of the moment."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipelines.config import Config
from pipelines.errors import UserError
from pipelines.models import resolve_model
from pipelines.samplers.chat import ChatFormat, chat_format
from pipelines.samplers.policy_server import SERVE_FLAGS, SERVE_VARIABLES, PolicyServer, TokenWire
from pipelines.samplers.protocols import RemoteServer, Server
from pipelines.samplers.server import ServerSampler
from pipelines.samplers.vllm_serve import start_vllm_serve
from pipelines.sampling import Sampler
from train.model import named_weights
from train.optim import Precision

Current = Callable[[], AbstractContextManager[None]]
"""Gives the sampler the policy's weights of the moment, to sample from within the block."""
_NAME = "policy"
_ROWS = 256


class PolicySamplerConfig(Config):
    """The engine beside the trainer."""

    engine: Literal["auto", "vllm", "vllm-serve", "transformers"] = "auto"
    """What samples: `auto` is vLLM on an accelerator, else the policy itself through transformers; `vllm-serve`
    is a server with processes and accelerators of its own."""
    gpu_memory: float = Field(0.4, gt=0, lt=1)
    """Share of the accelerator's memory that vLLM takes; 0.9 where it has accelerators to itself."""
    sleep: bool = False
    """Let vLLM in this process free its share while the policy is trained; `gpu_memory` can then be all that the
    policy, its reference and the optimizer leave."""
    sampler_devices: str = ""
    """Accelerators of our own `vllm serve`, as CUDA_VISIBLE_DEVICES names them; empty: those of the trainer."""
    tensor_parallel: int = Field(1, ge=1)
    """Accelerators that a copy of the policy is served from."""
    data_parallel: int = Field(1, ge=1)
    """Copies of the policy that are served."""
    server_url: str = ""
    """A `vllm serve` that somebody else runs, in the place of our own: docs/rl.md says how it is started."""
    server_model: str = _NAME
    """The name of the model there."""
    weights_dir: Path | None = None
    """Folder for weights on their way to a server, of this run alone and under one path on both machines;
    by default one in the run directory."""


_HEEDED_BY = {
    "sleep": "vllm",
    "sampler_devices": "vllm-serve",
    "tensor_parallel": "vllm-serve",
    "data_parallel": "vllm-serve",
}


def open_policy_sampler(
    config: PolicySamplerConfig,
    model: str,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    precision: Precision,
    out: Path = Path(),
) -> tuple[Sampler, Current]:
    """A sampler of the policy, which began as `model`, and the block within which it is to be used.

    `max_length` is that of prompt and completion together, in tokens. Below `out` a server's log and weights on
    their way are kept.
    """
    engine = config.engine
    if engine == "auto":
        engine = "vllm-serve" if config.server_url else "transformers" if policy.device.type == "cpu" else "vllm"
    _refuse_unheeded(config, engine)
    chat = chat_format(tokenizer, policy.generation_config.eos_token_id, model)
    if engine == "vllm-serve" or config.server_url:
        return _served(config, resolve_model(model), policy, chat, max_length, precision, out)
    if engine == "transformers":
        from pipelines.samplers.transformers import TransformersSampler

        dtype = "bfloat16" if precision == "bf16" else "float32"
        live = TransformersSampler.from_model(policy, tokenizer, _NAME, dtype=dtype, max_model_len=max_length)
        return live, nullcontext
    from pipelines.samplers.vllm import VllmSampler

    vllm = VllmSampler(
        _NAME,
        resolve_model(model),
        max_model_len=max_length,
        gpu_memory=config.gpu_memory,
        in_process=True,  # weights are replaced in place
        sleeps=config.sleep,
    )

    @contextmanager
    def current() -> Iterator[None]:
        vllm.update_weights(named_weights(policy))
        yield
        if config.sleep:
            vllm.sleep()

    return vllm, current


def _refuse_unheeded(config: PolicySamplerConfig, engine: str) -> None:
    """A `UserError` for a setting of another engine: it would do nothing."""
    for name, heeded_by in _HEEDED_BY.items():
        if engine != heeded_by and getattr(config, name) != PolicySamplerConfig.model_fields[name].default:
            raise UserError(
                f"`rl.{name}` means nothing to engine `{engine}`", hint=f"leave it out, or --set rl.engine={heeded_by}"
            )


def _served(
    config: PolicySamplerConfig,
    source: str,
    policy: PreTrainedModel,
    chat: ChatFormat,
    max_length: int,
    precision: Precision,
    out: Path,
) -> tuple[Sampler, Current]:
    """A sampler of a vLLM server, somebody else's or our own, and what gives it weights."""
    server, served_name = _server(config, source, max_length, out / "logs")
    weights = PolicyServer(server, config.weights_dir or out / "weights", served_name)
    wire = TokenWire(weights, chat, max_length)
    sampler = ServerSampler(_NAME, weights, wire=wire, concurrency=2 * _ROWS * config.data_parallel)
    sampler.check_model()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    @contextmanager
    def current() -> Iterator[None]:
        weights.update(named_weights(policy), dtype)
        yield

    return sampler, current


def _server(config: PolicySamplerConfig, source: str, max_length: int, log_dir: Path) -> tuple[Server, str]:
    """The server that `config` names, or one of our own, and the name of the model there."""
    if config.server_url:
        if config.engine not in ("auto", "vllm-serve") or config.sampler_devices:
            raise UserError(
                "a policy is sampled at `rl.server_url` or on this machine, not both",
                hint="leave out rl.server_url, or rl.engine and rl.sampler_devices",
            )
        if config.weights_dir is None:
            raise UserError(
                "a policy on a server needs a folder for its weights that both machines see",
                hint="--set rl.weights_dir=/shared/this-run",
            )
        return RemoteServer.at(config.server_url), config.server_model
    from pipelines.samplers.vllm import engine_settings

    settings = engine_settings(
        source,
        dtype="auto",
        max_model_len=max_length,
        max_rows=_ROWS,
        tensor_parallel=config.tensor_parallel,
        gpu_memory=config.gpu_memory,
    )
    devices = {"CUDA_VISIBLE_DEVICES": config.sampler_devices} if config.sampler_devices else {}
    server = start_vllm_serve(
        _NAME,
        source,
        {**settings, "data_parallel_size": config.data_parallel},
        log_dir=log_dir,
        serve_args=SERVE_FLAGS,
        variables={**SERVE_VARIABLES, **devices},
    )
    return server, _NAME
