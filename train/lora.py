"""LoRA: low-rank updates of frozen matrices (arXiv:2106.09685), injected by peft; a checkpoint holds them merged."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipelines.errors import UserError
from train.distributed import rank, whole

_NAME = "default"
_SCALE = 2.0
"""Alpha divided by rank: the update's weight does not change with the rank."""


def add_lora(model: PreTrainedModel, lora_rank: int, seed: int) -> None:
    """Freeze `model` and give every matrix inside its layers a trainable update of `lora_rank`, zero at first."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("`lora_rank` needs the package peft", hint="`pip install tracemill[lora]`") from None
    config = LoraConfig(r=lora_rank, lora_alpha=int(_SCALE * lora_rank), target_modules="all-linear")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, _NAME)


def adapted(model: PreTrainedModel) -> bool:
    """Whether `add_lora` was here."""
    return any(name.endswith(f"lora_A.{_NAME}.weight") for name, _ in model.named_parameters())


def merged_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights as a plain model's, each W + scale B A, whole and on the CPU; `model` stays as it is.

    Every rank must ask; only the first is answered.
    """
    weights, merged = dict[str, Tensor](), dict[str, Tensor]()
    for name, parameter in model.named_parameters():
        tensor = whole(parameter.detach())
        if rank() == 0:
            weights[name] = tensor.cpu()
    for name, weight in weights.items():
        stem, base, _ = name.partition(".base_layer.weight")
        if base:
            update = weights[f"{stem}.lora_B.{_NAME}.weight"] @ weights[f"{stem}.lora_A.{_NAME}.weight"]
            merged[f"{stem}.weight"] = weight + _SCALE * update
        elif ".lora_" not in name:
            merged[name.replace(".base_layer.", ".")] = weight
    return merged
