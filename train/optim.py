"""Optimizer, learning-rate schedule, gradient clip and precision."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from pipelines.errors import UserError
from train.distributed import whole

Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["bf16", "fp32"]
OptimizerKind = Literal["adamw", "adamw-bf16", "muon"]

MAX_GRAD_NORM = 1.0
_BETAS = (0.9, 0.95)


def make_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float = 0.0, kind: OptimizerKind = "adamw"
) -> Optimizer:
    """AdamW, fused; matrices decay, norms and biases do not.

    `adamw-bf16` keeps its two states in half the memory. `muon` moves the matrices inside the layers by Muon
    and the rest, embedding and head too, by AdamW.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    others: dict[str, Any] = {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}
    if kind == "adamw-bf16":
        return LeanAdamW([{"params": matrices, "weight_decay": weight_decay}, others], learning_rate)
    if kind == "adamw":
        return AdamW(
            [{"params": matrices, "weight_decay": weight_decay}, others], lr=learning_rate, betas=_BETAS, fused=True
        )
    ends = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    ends |= {id(module.weight) for name, module in model.named_modules() if name == "lm_head"}
    inner = [parameter for parameter in matrices if id(parameter) not in ends]
    outer = {"params": [p for p in matrices if id(p) in ends], "weight_decay": weight_decay}
    return Both(
        Muon(inner, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        AdamW([outer, others], lr=learning_rate, betas=_BETAS, fused=True),
    )


class LeanAdamW(Optimizer):
    """AdamW (arXiv:1711.05101) with its two states stored in bf16; the arithmetic is fp32."""

    def __init__(self, groups: Sequence[dict[str, Any]], learning_rate: float, eps: float = 1e-8) -> None:
        super().__init__(list(groups), {"lr": learning_rate, "betas": _BETAS, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient, (first, second) = self.state[parameter], parameter.grad, group["betas"]
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        state["step"] += 1
        mean = state["exp_avg"].float().lerp_(gradient, 1 - first)
        square = state["exp_avg_sq"].float().mul_(second).addcmul_(gradient, gradient, value=1 - second)
        state["exp_avg"].copy_(mean)
        state["exp_avg_sq"].copy_(square)
        steps = float(state["step"])
        spread = square.div_(1 - second**steps).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(mean, spread, value=-group["lr"] / (1 - first**steps))


class Both(Optimizer):
    """Two optimizers, each with parameters of its own, as one."""

    def __init__(self, *parts: Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        self.state: defaultdict[Tensor, Any] = defaultdict(dict)
        self.param_groups = [group for part in parts for group in part.param_groups]
        for part in parts:
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for part in self.parts:
            part.step()


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


def clip_gradient(model: nn.Module, max_grad_norm: float = MAX_GRAD_NORM) -> float:
    """Scale the gradient down to `max_grad_norm`; returns its norm before, over all parameters and ranks."""
    return float(whole(nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)))


def move(optimizer: Optimizer, learning_rate: float) -> None:
    """One optimizer step; clears the gradient."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def update(model: nn.Module, optimizer: Optimizer, learning_rate: float, max_grad_norm: float = MAX_GRAD_NORM) -> float:
    """Clip the gradient to its global norm, step, and clear it; returns the norm before clipping.

    A norm that is not finite leaves the weights as they are and is a `UserError`.
    """
    norm = clip_gradient(model, max_grad_norm)
    if not math.isfinite(norm):
        raise UserError(f"the gradient's norm is {norm}", hint="lower `learning_rate`, or take `precision` fp32")
    move(optimizer, learning_rate)
    return norm


def autocast(precision: Precision, device: str = "cpu") -> AbstractContextManager[None]:
    """bf16 autocast, or nothing for `fp32`.

    Its cache would hold the casts of all weights to the end of a forward pass, which uses each of them once.
    """
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
