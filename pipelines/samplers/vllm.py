"""The vLLM sampler: the engine in this process, fed token ids, its results taken as they finish."""

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

import torch

from pipelines.errors import UserError, first_line
from pipelines.samplers.chat import load_chat_format, model_config
from pipelines.sampling import Completion, Refusal, Request, SamplingConfig, prompt_too_long

if TYPE_CHECKING:
    from torch import nn

_END = object()


class VllmSampler:
    """Samples with an in-process vLLM engine (GPU, or the CPU build).

    A request's seed makes its draws its own; its logits can differ in the last bits with the batch it is
    computed in. LongRoPE models use their long factors throughout as soon as `max_model_len` exceeds
    the original context, so a trainer must pin the same set (`pipelines.models.pin_longrope`).
    """

    def __init__(
        self,
        model: str,
        source: str,
        *,
        dtype: str = "auto",
        max_model_len: int | None = None,
        max_rows: int = 256,
        tensor_parallel: int = 1,
        gpu_memory: float = 0.9,
        in_process: bool = False,
        sleeps: bool = False,
    ) -> None:
        """Load the model folder or hub id `source`; `max_rows` sequences run at once.

        `in_process` keeps the engine's core in this process, which `update_weights` needs; on a CPU it
        always is, since a process of its own only costs there. `sleeps` prepares the engine for `sleep`.
        """
        self.model = model
        self._on_cpu = _on_cpu()
        self._in_process = in_process or self._on_cpu
        for name, value in environment().items():
            os.environ[name] = value
        if self._in_process:
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        settings = engine_settings(
            source,
            dtype=dtype,
            max_model_len=max_model_len,
            max_rows=max_rows,
            tensor_parallel=tensor_parallel,
            gpu_memory=gpu_memory,
        )
        self._max_model_len = int(settings["max_model_len"])
        if sleeps and not self._on_cpu:
            settings["enable_sleep_mode"] = True
        self._asleep = False
        self._chat = load_chat_format(source)
        self._max_rows = max_rows
        with nullcontext() if self._in_process else deaf_to_interrupts():
            self._engine = _load_engine(model=source, disable_log_stats=True, **settings)

    def sample(
        self, requests: Iterable[Request | None], config: SamplingConfig, *, logprobs: bool = False
    ) -> Iterator[Completion | Refusal]:
        """Completions as they finish; twice as many requests as run at once are in the engine's hands."""
        waiting = iter(requests)
        running: set[str] = set()
        ended = False
        try:
            while True:
                while not ended and len(running) < 2 * self._max_rows:
                    request = next(waiting, _END)
                    ended = request is _END
                    if not isinstance(request, Request):
                        assert ended or running, "nothing to sample and nothing to wait for"
                        break
                    refusal = self._submit(request, config, logprobs)
                    if refusal is None:
                        running.add(request.id)
                    else:
                        yield refusal
                if not running:
                    return
                with died_in_one_sentence():
                    outputs = self._engine.step()
                for output in outputs:
                    if output.finished:
                        running.remove(output.request_id)
                        yield self._completion(output, logprobs)
        finally:
            if running:  # the consumer left early
                self._engine.abort_request(list(running))

    def update_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Put new weights (checkpoint names) in place and forget what was cached under the old ones.

        An engine that sleeps is woken: first the place of its weights, then, when they are there, that of its cache.
        """
        assert self._in_process, "weights can be replaced in an in-process engine only"
        if self._asleep:
            torch.accelerator.empty_cache()  # what the trainer keeps for its next tensors
            with died_in_one_sentence():
                self._engine.wake_up(["weights"])
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(named_tensors)})
        if self._on_cpu:
            self._engine.apply_model(repack_head)
        if self._asleep:
            with died_in_one_sentence():
                assert self._engine.wake_up(["kv_cache"]), "all that slept is awake"
            self._asleep = False
        assert self._engine.reset_prefix_cache(), "weights were replaced while requests were running"

    def sleep(self) -> None:
        """Free the accelerator's memory, weights and cache, until `update_weights`; requests still running are dropped.

        On a CPU the engine stops and starts all the same, and nothing is freed.
        """
        assert self._in_process, "weights can be replaced in an in-process engine only"
        self._engine.sleep(level=2)
        self._asleep = True

    def close(self) -> None:
        """Stop the engine and free its memory."""
        self._engine.engine_core.shutdown()
        del self._engine

    def _submit(self, request: Request, config: SamplingConfig, logprobs: bool) -> Refusal | None:
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        prompt_ids = self._chat.prompt_ids(request.messages, config.reasoning_effort)
        space = self._max_model_len - len(prompt_ids)
        if space < 1:
            return prompt_too_long(request.id, len(prompt_ids), self._max_model_len)
        params = SamplingParams(
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            max_tokens=min(config.max_tokens, space),
            seed=request.seed,
            stop_token_ids=sorted(self._chat.stop_ids),
            logprobs=0 if logprobs else None,
            detokenize=False,  # decoded here, once, so that all samplers write the same text
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._engine.add_request(request.id, tokens_input(prompt_ids), params)
        return None

    def _completion(self, output: Any, logprobs: bool) -> Completion:
        sampled = output.outputs[0]
        token_ids, prompt_ids = tuple(sampled.token_ids), tuple(output.prompt_token_ids)
        assert sampled.finish_reason in ("stop", "length"), f"vLLM ended a request with {sampled.finish_reason}"
        chosen = zip(token_ids, sampled.logprobs, strict=True) if logprobs else ()
        return Completion(
            id=output.request_id,
            text=self._chat.text(token_ids),
            finish_reason=sampled.finish_reason,
            prompt_tokens=len(prompt_ids),
            completion_tokens=len(token_ids),
            prompt_token_ids=prompt_ids,
            token_ids=token_ids,
            logprobs=tuple(position[token].logprob for token, position in chosen),
            opens_reasoning=self._chat.opens_reasoning(prompt_ids),
        )


def engine_settings(
    source: str, *, dtype: str, max_model_len: int | None, max_rows: int, tensor_parallel: int, gpu_memory: float
) -> dict[str, str | int | float | bool]:
    """Settings of vLLM's engine, by the names of its `EngineArgs`; `vllm serve` takes the same."""
    on_cpu = _on_cpu()
    context = int(model_config(source)["max_position_embeddings"])
    length = min(max_model_len or context, context)
    return {
        "dtype": ("float32" if on_cpu else "bfloat16") if dtype == "auto" else dtype,
        "max_model_len": length,
        "max_num_seqs": max_rows,
        "tensor_parallel_size": tensor_parallel,
        "gpu_memory_utilization": gpu_memory,
        "enforce_eager": on_cpu,
        **(_whole_prefills(length, max_rows) if on_cpu else {}),
        # Of the distribution that was drawn from: temperature, and top_p and top_k where set.
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",  # every setting comes from SamplingConfig
        "load_format": "safetensors",
    }


def environment() -> dict[str, str]:
    """Settings that vLLM reads from the environment when it is first imported; the user's own stay."""
    settings = {
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if _on_cpu():
        # GiB; and threads belong to the process around it.
        settings |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return {name: os.environ.get(name, value) for name, value in settings.items()}


@contextmanager
def died_in_one_sentence() -> Iterator[None]:
    """The engine's end, or the end of its memory, within is a `UserError`: all that is stored stays."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except (EngineDeadError, torch.OutOfMemoryError) as error:
        raise UserError(
            f"vLLM's engine died: {first_line(error)}",
            hint="its own words stand above; the same command goes on, training from the last checkpoint",
        ) from error


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes that begin within never hear SIGINT, which a terminal sends to every one: we say when they end.

    An engine that heard it would die with the requests that we mean to finish. Until the block ends it waits
    for this process too.
    """
    resource_tracker.ensure_running()  # when it starts it unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _on_cpu() -> bool:
    return torch.accelerator.current_accelerator() is None


def _whole_prefills(max_model_len: int, max_rows: int) -> dict[str, int | bool]:
    """Settings under which no prompt is read in pieces.

    vLLM 0.32 rewinds a seeded request's generator after each piece, which a CPU generator cannot do:
    the engine dies.
    """
    return {
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(max_model_len, min(4096, max_rows * max_model_len)),
    }


def _load_engine(**settings: Any) -> Any:
    try:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine
    except ImportError as error:
        raise UserError(
            f"vLLM cannot be imported: {error}",
            hint="`pip install tracemill[vllm]`, or sample with `--engine transformers` or `--server URL`",
        ) from None
    try:
        return LLMEngine.from_engine_args(EngineArgs(**settings))
    except (ValueError, torch.OutOfMemoryError) as error:
        # vLLM says so where weights, or one sequence's cache, do not fit into its share of the memory.
        raise UserError(
            f"vLLM cannot be started: {first_line(error)}",
            hint="a shorter context, or in RL another `rl.gpu_memory`",
        ) from error


def repack_head(module: "nn.Module") -> None:
    """Pack a tied output head again: the CPU back end keeps a packed copy, and loading weights skips it."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    head: Any = getattr(module, "lm_head", None)
    if head is not None:
        dispatch_cpu_unquantized_gemm(head, remove_weight=False)
