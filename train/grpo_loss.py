"""The clipped surrogate of GRPO, token by token.

N completion tokens of a micro-batch, all sequences one after another: nothing is padded.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GrpoLoss:
    """A micro-batch's share of the loss, and sums over its tokens for the log (detached)."""

    loss: Tensor
    clipped: Tensor
    """Tokens whose gradient the clip took away."""
    capped: Tensor
    """Tokens whose importance weight reached the cap."""
    kl: Tensor
    """Sum of the k3 estimate against the reference, in nats; zero without a reference."""


def grpo_loss(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    num_tokens: int,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    sampler_logprobs_N: Tensor | None = None,
    importance_cap: float = 2.0,
    reference_logprobs_N: Tensor | None = None,
    kl_weight: float = 0.0,
) -> GrpoLoss:
    """`-sum_t w_t min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t) / num_tokens`.

    `r = exp(logprobs - old_logprobs)`, both of the trainer at the sampling temperature; separate
    bounds are DAPO's (arXiv:2503.14476, eq. 8). `num_tokens` counts the completion tokens of the
    whole update, over all micro-batches and processes: each token weighs the same wherever it stands.
    With `sampler_logprobs_N`, `w = min(exp(old - sampler), importance_cap)` mends what the sampler's
    arithmetic did differently (truncated importance sampling); it carries no gradient.
    """
    ratio_N = (logprobs_N - old_logprobs_N).exp()
    surrogate_N = ratio_N * advantages_N
    clipped_N = ratio_N.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages_N
    objective_N = torch.minimum(surrogate_N, clipped_N)
    capped = torch.zeros((), device=logprobs_N.device)
    if sampler_logprobs_N is not None:
        importance_N = (old_logprobs_N - sampler_logprobs_N).exp().detach()
        capped = (importance_N > importance_cap).sum()
        objective_N = objective_N * importance_N.clamp(max=importance_cap)
    kl_N = torch.zeros_like(logprobs_N)
    if reference_logprobs_N is not None:
        kl_N = kl_k3(logprobs_N, reference_logprobs_N)
        if kl_weight > 0:
            objective_N = objective_N - kl_weight * kl_N
    return GrpoLoss(
        loss=-objective_N.sum() / num_tokens,
        clipped=(clipped_N < surrogate_N).sum(),
        capped=capped,
        kl=kl_N.sum().detach(),
    )


def kl_k3(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) from each sampled token, at least 0, in nats.

    `exp(d) - d - 1` with `d = reference - policy` (Schulman, "Approximating KL divergence", k3).
    """
    difference_N = reference_logprobs_N - logprobs_N
    return torch.expm1(difference_N) - difference_N
