"""Plan: what a recipe asks of a model and a machine, before anything is loaded: parameters, memory, steps, hours.

Memory is not a formula: one optimizer step of the trainers' own functions runs on tensors that have a shape and no
content, and what is alive is summed. So it follows the model's architecture and the recipe's options by itself.
"""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Muon, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from pipelines import parquet
from pipelines.config import Config
from pipelines.errors import UserError, first_line
from pipelines.models import resolve_model
from train import attention
from train.batches import Document, Overlong, collate, encode
from train.flops import Accelerator, ends, matrix_parameters, step_flops
from train.grpo import RlConfig
from train.loop import LoopConfig
from train.lora import add_lora
from train.losses import sft_loss
from train.model import Recompute, batch_logprobs, load_tokenizer, set_recompute
from train.optim import Both, LeanAdamW, OptimizerKind, Precision, autocast, make_optimizer
from train.packing import pack

KNOWN: dict[str, PreTrainedConfig] = {
    "phi-4-mini": Phi3Config(
        vocab_size=200064, hidden_size=3072, intermediate_size=8192, num_hidden_layers=32, num_attention_heads=24,
        num_key_value_heads=8, max_position_embeddings=131072, tie_word_embeddings=True, eos_token_id=199999,
        bos_token_id=199999, pad_token_id=199999,
    ),
    "llama-3.2-3b": LlamaConfig(
        vocab_size=128256, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=131072, tie_word_embeddings=True,
    ),
    "qwen3-4b": Qwen3Config(
        vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, tie_word_embeddings=True,
    ),
    "qwen3-1.7b": Qwen3Config(
        vocab_size=151936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, tie_word_embeddings=True,
    ),
}  # fmt: skip
"""Architectures that can be planned for without a folder."""

_SAMPLE_ROWS = 2048
"""Rows of a shard folder that are made into tokens; the rest is taken to be like them."""

_CHARS_PER_TOKEN = 3.0
"""Of reasoning about mathematics, where there is no tokenizer to ask."""


@dataclass(frozen=True)
class Memory:
    """Bytes alive at the peak of an optimizer step, by part."""

    weights: int
    gradients: int
    optimizer: int
    copies: int
    """Of the weights: the reference, and what samples one step off."""
    activations: int
    """Everything else: stored activations, casts of weights, a chunk of logits, the head's gradient in the making."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.copies + self.activations


@dataclass(frozen=True)
class StagePlan:
    """What one stage of a recipe comes to."""

    stage: str
    memory: Memory
    rows: int
    units: int
    """Packed rows, conversations, pairs or prompts."""
    steps: int
    tokens: int | None
    """Over all epochs; None for RL, whose completions nobody knows yet."""
    flops: float | None

    def hours(self, device: Accelerator | None, mfu: float, tokens_per_s: float | None) -> float | None:
        """By the given speed, else by the device's peak and the share `mfu` of it that is used."""
        if tokens_per_s is not None and self.tokens is not None:
            return self.tokens / tokens_per_s / 3600
        if device is not None and self.flops is not None:
            return self.flops / (device.flops * mfu) / 3600
        return None


def model_config(name: str) -> PreTrainedConfig:
    """The architecture of a known name, a folder, a shipped model or `hf:ORG/NAME`; no weights are read."""
    if name in KNOWN:
        return KNOWN[name]
    try:
        return AutoConfig.from_pretrained(resolve_model(name), trust_remote_code=False)
    except UserError as error:
        raise UserError(error.message, hint=f"{error.hint}; or {', '.join(KNOWN)}") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"`{name}` has no config.json that can be read: {first_line(error)}",
            hint=f"name a model folder, or {', '.join(KNOWN)}",
        ) from None


def bare_model(config: PreTrainedConfig, lora_rank: int = 0) -> PreTrainedModel:
    """The model in fp32 for the trainers' attention, with LoRA where asked, on the device `meta`: shapes alone."""
    attention.register()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention.NAME)
        if lora_rank:
            add_lora(model, lora_rank, 0)
    return model.train()


def _with_storage(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with tensors that have a storage, which within `FakeTensorMode` has a size and no content."""
    made: dict[int, Tensor] = {}  # tied weights stay one

    def empty(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            values = torch.empty_like(tensor, device="cpu")
            made[id(tensor)] = (
                nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values
            )
        return made[id(tensor)]

    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            setattr(module, name, empty(tensor))
    return model


# --- memory ---------------------------------------------------------------------------------------


class _Alive(TorchDispatchMode):
    """Sums the bytes of the storages that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.bytes -= size


def step_memory(
    config: PreTrainedConfig,
    lengths: Sequence[int],
    device: str,
    *,
    precision: Precision = "bf16",
    recompute: Recompute = "auto",
    optimizer: OptimizerKind = "adamw",
    lora_rank: int = 0,
    copies: int = 0,
) -> Memory:
    """Bytes of an optimizer step on `device`, on one micro-batch of documents of these lengths, all tokens targets.

    `copies` of the weights stand beside the model.
    """
    documents = [Document("", np.zeros(length, np.int32), np.arange(length) > 0) for length in lengths]
    bare = bare_model(config, lora_rank)
    with FakeTensorMode(allow_non_fake_inputs=True), _Alive() as alive:
        model = _with_storage(bare)
        set_recompute(model, recompute, device)
        # The second pass has the gradients of the first, as a step's later micro-batches have.
        for _ in range(2):
            alive.peak = alive.bytes
            batch = collate(documents)
            with autocast(precision, "cpu"):
                logprobs_M, _ = batch_logprobs(model, batch)
            sft_loss(logprobs_M, len(batch.labels_M)).backward()
            del logprobs_M, batch
        weights = sum(_bytes(parameter) for parameter in model.parameters())
        gradients = sum(_bytes(parameter.grad) for parameter in model.parameters() if parameter.grad is not None)
        activations = alive.peak - weights - gradients
        if device == "cuda" and precision == "bf16":
            activations += _bytes(ends(model)[1]) // 2  # there the head is cast as well
        states = state_bytes(make_optimizer(model, 1e-5, kind=optimizer))
    return Memory(weights, gradients, states, copies * weights, activations)


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of an optimizer's states, once it has moved: two a parameter for AdamW, one for Muon."""
    if isinstance(optimizer, Both):
        return sum(state_bytes(part) for part in optimizer.parts)
    each = 4 if isinstance(optimizer, Muon | LeanAdamW) else 8
    return sum(each * parameter.numel() for group in optimizer.param_groups for parameter in group["params"])


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# --- steps ----------------------------------------------------------------------------------------


def plan_stage(stage: str, config: Config, shards: Path, model: str, device: str) -> StagePlan:
    """Memory, steps and operations of one stage on the shards that are there."""
    architecture = model_config(model)
    assert isinstance(config, LoopConfig | RlConfig), f"nothing to plan for {stage}"
    max_length = min(config.max_length, architecture.max_position_embeddings)
    rows = sum(parquet.facts(path).rows for path in _shard_files(shards, stage))
    if isinstance(config, RlConfig):
        memory = step_memory(
            architecture, _fill([max_length], config.micro_tokens), device, precision=config.precision,
            copies=(config.reference or config.kl_weight > 0) + config.one_step_off,
        )  # fmt: skip
        return StagePlan(stage, memory, rows, rows, config.steps, None, None)
    units = unit_lengths(stage, config, shards, model, max_length)
    if not units:
        raise UserError(
            f"no usable row in `{shards}/shards/{stage}`", hint=f"raise `{stage}.max_length`, or look at them"
        )
    longest_first = sorted((length for unit in units for length in unit), reverse=True)
    memory = step_memory(
        architecture, _fill(longest_first, config.micro_tokens), device, precision=config.precision,
        recompute=config.recompute, optimizer=config.optimizer, lora_rank=config.lora_rank,
    )  # fmt: skip
    scale = rows / min(rows, _SAMPLE_ROWS)
    num_units = round(scale * len(units))
    per_epoch = -(-num_units // config.batch_size)
    steps = min(config.epochs * per_epoch, config.max_steps or config.epochs * per_epoch)
    passes, tokens = steps / per_epoch, scale * sum(longest_first)
    squared_lengths = scale * sum(length**2 for length in longest_first)
    flops = step_flops(bare_model(architecture, config.lora_rank), tokens, squared_lengths)
    # DPO's reference scores every pair once: a forward pass, a third of the work.
    reference = 1 / 3 if stage == "dpo" else 0.0
    return StagePlan(stage, memory, rows, num_units, steps, round(passes * tokens), flops * (passes + reference))


def _fill(lengths: Sequence[int], micro_tokens: int) -> list[int]:
    """The documents of the heaviest micro-batch: of the longest as many as it holds, one at least."""
    filled: list[int] = []
    for length in lengths:
        if filled and sum(filled) + length > micro_tokens:
            break
        filled.append(length)
    return filled


def unit_lengths(stage: str, config: LoopConfig, shards: Path, model: str, max_length: int) -> list[list[int]]:
    """Lengths of the documents of each packed row, conversation or pair of the shards' first rows."""
    overlong: Overlong = getattr(config, "overlong", "refuse")
    units = []
    for lengths in _row_lengths(stage, shards, model):
        pieces = [piece for length in lengths for piece in _pieces(length, max_length, overlong)]
        if len(pieces) >= len(lengths):  # else a side of it is refused
            units.append(pieces)
    if stage == "midtrain":
        pieces = [piece for unit in units for piece in unit]
        return [[pieces[index] for index in row] for row in pack(pieces, max_length)]
    return units


def _row_lengths(stage: str, shards: Path, model: str) -> Iterator[list[int]]:
    """Tokens of each conversation of a row: of one, or of a pair's two; a row that cannot be used is left out."""
    columns = ["prompt", "chosen", "rejected"] if stage == "dpo" else ["messages"]
    stored = (
        row
        for path in _shard_files(shards, stage)
        for batch in parquet.read_batches(path, f"shards/{stage}", columns)
        for row in batch.to_pylist()
    )
    rows = list(islice(stored, _SAMPLE_ROWS))
    sides = ["chosen", "rejected"] if stage == "dpo" else ["messages"]
    talks = [[row.get("prompt", []) + row[side] for row in rows] for side in sides]
    if model in KNOWN:
        counted = [[round(sum(len(turn["content"]) for turn in talk) / _CHARS_PER_TOKEN) for talk in s] for s in talks]
        yield from (list(lengths) for lengths in zip(*counted, strict=True))
        return
    tokenizer = load_tokenizer(model)
    encoded = [encode(tokenizer, side, [""] * len(side)) for side in talks]
    for documents in zip(*encoded, strict=True):
        if not any(isinstance(document, str) for document in documents):
            yield [len(document) for document in documents]


def _pieces(length: int, max_length: int, overlong: Overlong) -> list[int]:
    """What becomes of a conversation of that many tokens."""
    if length <= max_length:
        return [length]
    whole, rest = divmod(length, max_length)
    return {"refuse": [], "truncate": [max_length], "split": [max_length] * whole + [rest] * (rest > 0)}[overlong]


def _shard_files(shards: Path, stage: str) -> list[Path]:
    return parquet.require_files(shards, f"shards/{stage}", hint=f"make the shards first: `curate split {shards}`")


# --- words ----------------------------------------------------------------------------------------


def model_row(name: str) -> dict[str, Any]:
    """The model as one line of a table."""
    with FakeTensorMode():
        model = bare_model(model_config(name))
        embedding, head = ends(model)
        return {
            "model": name,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "in matrices": matrix_parameters(model),
            "embedding": embedding.numel(),
            "tied": head is embedding,
            "positions": model.config.max_position_embeddings,
        }


def memory_row(plan: StagePlan, device: Accelerator | None) -> dict[str, Any]:
    """The memory of a stage as one line of a table, in 10^9 bytes."""
    memory = plan.memory
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "copies": memory.copies,
        "activations": memory.activations,
        "together": memory.total,
    }
    fits = {} if device is None else {"of the device": f"{memory.total / 1e7 / device.memory_gb:.0f} %"}
    return {"stage": plan.stage, **{f"{name} GB": round(size / 1e9, 2) for name, size in parts.items()}, **fits}


def steps_row(plan: StagePlan, hours: float | None) -> dict[str, Any]:
    """The work of a stage as one line of a table."""
    return {
        "stage": plan.stage,
        "rows": plan.rows,
        "units": plan.units,
        "steps": plan.steps,
        "tokens": plan.tokens,
        "PFLOP": None if plan.flops is None else round(plan.flops / 1e15, 3),
        "hours": None if hours is None else round(hours, 2),
    }
