"""The transformers sampler: continuous batching in plain torch, for a machine without vLLM."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from safetensors import SafetensorError

from pipelines.errors import UserError, first_line
from pipelines.models import pin_longrope
from pipelines.samplers.chat import ChatFormat, chat_format, load_chat_format
from pipelines.samplers.decoding import Block, Decode, Prefill, Row, draw, merged, step_logits, uniforms
from pipelines.sampling import Completion, Refusal, Request, SamplingConfig, prompt_too_long

_MAX_BLOCKS = 8
"""Attention runs block by block: more of them cost more kernel launches, fewer of them more padding."""
_PREFILL_TOKENS = 16384
"""Prompt tokens of one prefill pass at most (one prompt may be longer)."""
_REFILL_SHARE = 0.75
"""New rows are admitted when fewer than this share of the places is taken."""


class TransformersSampler:
    """Samples from a transformers causal language model with a KV cache.

    A request's draws depend on its own seed only. The logits beside which they fall can differ in the
    last bits with the batch, so the same list of requests gives the same text, and another list the
    same distribution.
    """

    def __init__(
        self,
        model: str,
        module: Any,
        chat: ChatFormat,
        *,
        autocast: torch.dtype | None = None,
        max_rows: int = 512,
        max_model_len: int | None = None,
        cache_gib: float = 4.0,
    ) -> None:
        """Wrap a loaded module; `max_rows` completions and `cache_gib` of cache at once at most."""
        window = getattr(module.config, "sliding_window", None)
        self.model = model
        self._module = module
        self._chat = chat
        self._autocast = autocast
        self._max_rows = max_rows
        self._max_model_len = max_model_len or int(module.config.max_position_embeddings)
        self._cache_bytes = int(cache_gib * 2**30)
        assert window is None or window >= self._max_model_len, "sliding windows shorter than the context: use vLLM"
        assert module._supports_attention_backend, f"{type(module).__name__} does not take an attention function"

    @classmethod
    def open(
        cls, model: str, source: str, *, dtype: str = "auto", max_model_len: int | None = None, max_rows: int = 512
    ) -> "TransformersSampler":
        """A sampler for the model folder or hub id `source`, on the accelerator where there is one.

        `dtype` is `float32`, `bfloat16` or `auto` (`bfloat16` on an accelerator, else `float32`).
        """
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # ours tells what takes long
        device = torch.accelerator.current_accelerator() or torch.device("cpu")
        if dtype == "auto":
            dtype = "float32" if device.type == "cpu" else "bfloat16"
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            length = min(max_model_len or config.max_position_embeddings, config.max_position_embeddings)
            pin_longrope(config, length)
            module: Any = AutoModelForCausalLM.from_pretrained(
                source, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(
                f"`{source}` cannot be loaded: {first_line(error)}",
                hint="name a folder with config.json and safetensors weights of a causal language model",
            ) from None
        module.to(device).eval()
        return cls(model, module, load_chat_format(source), max_model_len=length, max_rows=max_rows)

    @classmethod
    def from_model(
        cls,
        module: Any,
        tokenizer: Any,
        name: str,
        *,
        dtype: str = "float32",
        max_rows: int = 512,
        max_model_len: int | None = None,
    ) -> "TransformersSampler":
        """A sampler over a live module (the policy itself): it always samples from the weights of the moment.

        The module's mode and attention are as they were after each step, so it may be trained between two
        results. `dtype` `bfloat16` runs fp32 weights under autocast, as a trainer does. LongRoPE is left as
        the caller pinned it (`pipelines.models.pin_longrope`).
        """
        chat = chat_format(tokenizer, module.generation_config.eos_token_id, name)
        autocast = torch.bfloat16 if dtype == "bfloat16" and module.dtype == torch.float32 else None
        return cls(name, module, chat, autocast=autocast, max_rows=max_rows, max_model_len=max_model_len)

    def sample(
        self, requests: Iterable[Request | None], config: SamplingConfig, *, logprobs: bool = False
    ) -> Iterator[Completion | Refusal]:
        """Completions as they finish; requests are taken as places become free."""
        queue, blocks = self._rows(requests, config), list[Block]()
        places, ended = self._places(config), False
        while True:
            finished: list[Row] = []
            taken = sum(len(block.rows) for block in blocks)
            if taken < _REFILL_SHARE * places and not ended:
                admitted, refused, ended = self._admit(queue, places - taken)
                assert ended or admitted or refused or blocks, "nothing to sample and nothing to wait for"
                yield from refused
                if admitted:
                    blocks.append(self._prefill(admitted, config, finished))
            if not blocks:
                if ended:
                    return
                continue
            self._decode(blocks, config, finished)
            blocks = _swept(blocks)
            for row in finished:
                yield self._completion(row, logprobs)

    def update_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy new weights into the module; a name that it does not have is our bug."""
        current = self._module.state_dict()
        with torch.no_grad():
            for name, tensor in named_tensors:
                current[name].copy_(tensor)

    def close(self) -> None:
        """Let go of the module."""
        self._module = None

    def _rows(self, requests: Iterable[Request | None], config: SamplingConfig) -> Iterator[Row | Refusal | None]:
        for request in requests:
            if request is None:
                yield None
                continue
            prompt_ids = self._chat.prompt_ids(request.messages, config.reasoning_effort)
            space = self._max_model_len - len(prompt_ids)
            if space < 1:
                yield prompt_too_long(request.id, len(prompt_ids), self._max_model_len)
            else:
                yield Row(request.id, request.seed, prompt_ids, min(config.max_tokens, space))

    def _places(self, config: SamplingConfig) -> int:
        """Rows at once, so that even if all ran to `max_tokens` the cache would fit."""
        shape = self._module.config
        head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        position_bytes = int(2 * shape.num_hidden_layers * shape.num_key_value_heads * head_dim * 4)
        row_bytes = position_bytes * min(self._max_model_len, 2 * config.max_tokens)
        return max(1, min(self._max_rows, self._cache_bytes // row_bytes))

    @staticmethod
    def _admit(queue: Iterator[Row | Refusal | None], places: int) -> tuple[list[Row], list[Refusal], bool]:
        """Rows to start, requests that are refused, and whether there will be no more."""
        rows, refused, tokens, seen = [], [], 0, set[tuple[int, ...]]()
        for item in queue:
            if item is None:
                break
            if isinstance(item, Refusal):
                refused.append(item)
                continue
            rows.append(item)
            prompt = tuple(item.prompt_ids)
            if prompt not in seen:
                seen.add(prompt)
                tokens += len(prompt)
            if len(rows) >= places or tokens >= _PREFILL_TOKENS:
                break
        else:
            return rows, refused, True
        return rows, refused, False

    def _prefill(self, rows: list[Row], config: SamplingConfig, finished: list[Row]) -> Block:
        """A block of the rows, their prompts read and their first tokens drawn; equal prompts are read once."""
        first: dict[tuple[int, ...], int] = {}
        index = [first.setdefault(tuple(row.prompt_ids), len(first)) for row in rows]
        unique = [Row("", 0, list(prompt), 0) for prompt in first]
        with torch.no_grad(), self._precision():
            lengths_R = torch.tensor([len(row.prompt_ids) for row in unique], device=self._module.device)
            block = Block(unique, lengths_R)
            logits_RV = step_logits(self._module, Prefill(block))
            block = block.select(rows, index)
            self._append(rows, logits_RV[torch.tensor(index, device=logits_RV.device)], config, finished)
        return block

    def _decode(self, blocks: list[Block], config: SamplingConfig, finished: list[Row]) -> None:
        """One more token in every row."""
        with torch.no_grad(), self._precision():
            logits_NV = step_logits(self._module, Decode(blocks))
            for block in blocks:
                block.advance()
            self._append([row for block in blocks for row in block.rows], logits_NV, config, finished)

    def _append(self, rows: list[Row], logits_NV: torch.Tensor, config: SamplingConfig, finished: list[Row]) -> None:
        """Draw a token for each row that is not finished; those that it finishes join `finished`."""
        numbers = uniforms([row.seed for row in rows], [len(row.token_ids) for row in rows])
        uniforms_N = torch.from_numpy(numbers).to(logits_NV.device)
        tokens_N, logprobs_N = draw(logits_NV, uniforms_N, config.temperature, config.top_p, config.top_k)
        stop_ids = self._chat.stop_ids
        for row, token, logprob in zip(rows, tokens_N.tolist(), logprobs_N.tolist(), strict=True):
            if row.finish_reason is not None:
                continue
            row.token_ids.append(token)
            row.logprobs.append(logprob)
            if token in stop_ids or len(row.token_ids) >= row.limit:
                row.finish_reason = "stop" if token in stop_ids else "length"
                finished.append(row)

    def _precision(self) -> AbstractContextManager[object]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self._module.device.type, dtype=self._autocast)

    def _completion(self, row: Row, logprobs: bool) -> Completion:
        assert row.finish_reason is not None
        return Completion(
            id=row.id,
            text=self._chat.text(row.token_ids),
            finish_reason=row.finish_reason,
            prompt_tokens=len(row.prompt_ids),
            completion_tokens=len(row.token_ids),
            prompt_token_ids=tuple(row.prompt_ids),
            token_ids=tuple(row.token_ids),
            logprobs=tuple(row.logprobs) if logprobs else (),
            opens_reasoning=self._chat.opens_reasoning(row.prompt_ids),
        )


def _swept(blocks: list[Block]) -> list[Block]:
    """The blocks without finished rows, the smallest merged where there are many."""
    for block in blocks:
        block.drop_finished()
    kept = sorted((block for block in blocks if block.rows), key=lambda block: -len(block.rows))
    while len(kept) > _MAX_BLOCKS:
        kept.append(merged(kept.pop(), kept.pop()))
    return kept
