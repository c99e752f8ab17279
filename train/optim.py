"""Optimizer, learning-rate schedule, gradient clip and precision."""

import math
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import nn

from pipelines.errors import UserError

Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["bf16", "fp32"]

MAX_GRAD_NORM = 1.0


def make_optimizer(model: nn.Module, learning_rate: float, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW, fused; matrices decay, norms and biases do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def learning_rate_at(step: int, num_steps: int, peak: float, warmup_rate: float, schedule: Schedule) -> float:
    """Learning rate of zero-based `step`: linear warm-up over `warmup_rate` of the steps, then `schedule` towards 0.

    The first step already learns, and so does the last.
    """
    warmup_steps = round(warmup_rate * num_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    done = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return peak * (1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def update(
    model: nn.Module, optimizer: torch.optim.Optimizer, learning_rate: float, max_grad_norm: float = MAX_GRAD_NORM
) -> float:
    """Clip the gradient to its global norm, step, and clear it; returns the norm before clipping.

    A norm that is not finite leaves the weights as they are and is a `UserError`.
    """
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm))
    if not math.isfinite(norm):
        raise UserError(f"the gradient's norm is {norm}", hint="lower `learning_rate`, or take `precision` fp32")
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def autocast(precision: Precision, device: str = "cpu") -> AbstractContextManager[None]:
    """bf16 autocast, or nothing for `fp32`."""
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")
