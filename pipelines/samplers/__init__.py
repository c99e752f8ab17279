"""Where rollouts come from: vLLM in process or served, any OpenAI-compatible server, transformers, or a script."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pipelines.errors import UserError
from pipelines.models import resolve_model, weights_digest
from pipelines.sampling import Sampler

Engine = Literal["auto", "vllm", "serve", "transformers", "server"]
"""`serve` is a `vllm serve` that we start and end, `server` one that somebody else runs."""


def open_sampler(
    model: str,
    *,
    engine: Engine = "auto",
    server_url: str | None = None,
    name: str | None = None,
    dtype: str = "auto",
    max_model_len: int | None = None,
    max_rows: int = 256,
    concurrency: int = 256,
    tensor_parallel: int = 1,
    in_process: bool = False,
    data_parallel: int = 1,
    serve_args: Sequence[str] = (),
    log_dir: Path | None = None,
) -> Sampler:
    """A sampler for `model`: a folder, a shipped model, `hf:ORG/NAME`, or what `server_url` serves by that name.

    `auto` is the server where a URL is given, vLLM on an accelerator that has it, transformers otherwise
    (on a CPU it is as fast for small models and loads at once). `name` is what rollouts are stored under,
    by default `model_name(model)`. `max_model_len` bounds prompt and completion together, and settles which
    LongRoPE factors a model uses throughout: the long ones if it exceeds the original context, as it does
    by default. `in_process` keeps vLLM's engine in this process, so that its weights can be replaced.
    `data_parallel` copies of the model take engine `serve`, which `auto` then is where vLLM fits; the others run
    one. `serve_args` are further arguments of `vllm serve`, whose log goes to `log_dir`,
    by default `logs` where one stands.
    """
    if server_url is not None and engine not in ("auto", "server"):
        raise UserError(f"engine `{engine}` does not use a server", hint="leave out --server or --engine")
    if engine == "server" or server_url is not None:
        if server_url is None:
            raise UserError("engine `server` needs a URL", hint="--server http://localhost:8000/v1")
        return _open_server(model, server_url, name, concurrency)
    source = resolve_model(model)
    stored_name = name or model_name(model)
    if engine == "auto":
        engine = _fitting_engine()
        if engine == "vllm" and data_parallel > 1:
            engine = "serve"
    if engine == "serve":
        from pipelines.samplers.vllm_serve import open_vllm_serve

        return open_vllm_serve(
            stored_name,
            source,
            log_dir=log_dir or Path("logs"),
            dtype=dtype,
            max_model_len=max_model_len,
            max_rows=max_rows,
            tensor_parallel=tensor_parallel,
            data_parallel=data_parallel,
            serve_args=serve_args,
        )
    if engine == "vllm":
        from pipelines.samplers.vllm import VllmSampler

        return VllmSampler(
            stored_name,
            source,
            dtype=dtype,
            max_model_len=max_model_len,
            max_rows=max_rows,
            tensor_parallel=tensor_parallel,
            in_process=in_process,
        )
    from pipelines.samplers.transformers import TransformersSampler

    return TransformersSampler.open(stored_name, source, dtype=dtype, max_model_len=max_model_len, max_rows=max_rows)


def accelerator_count() -> int:
    """How many accelerators torch sees here."""
    import torch

    return torch.accelerator.device_count()


def model_name(model: str) -> str:
    """What rollouts of `model` are stored under: a hub id, or `folder@digest` of a local model's weights.

    A folder that is trained further is another model, so its rollouts get other ids.
    """
    if model.startswith("hf:"):
        return model.removeprefix("hf:")
    folder = Path(resolve_model(model))
    return f"{folder.resolve().name}@{weights_digest(folder)[:8]}"


def _open_server(model: str, server_url: str, name: str | None, concurrency: int) -> Sampler:
    from pipelines.samplers.openai_chat import ChatWire
    from pipelines.samplers.server import ServerSampler

    served = model.removeprefix("hf:")
    sampler = ServerSampler(name or served, server_url, wire=ChatWire(served), concurrency=concurrency)
    sampler.check_model()
    return sampler


def _fitting_engine() -> Engine:
    return "vllm" if accelerator_count() and importlib.util.find_spec("vllm") is not None else "transformers"
