"""Losses of GRPO and its relatives, token by token.

N completion tokens of a micro-batch, all sequences one after another: nothing is padded. S sequences.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Surrogate = Literal["grpo", "gspo", "cispo"]
Averaging = Literal["token", "sequence", "constant"]
Importance = Literal["token", "token_mask", "sequence", "sequence_mask", "none"]


@dataclass(frozen=True)
class GrpoLoss:
    """A micro-batch's share of the loss, and sums over its tokens for the log (detached)."""

    loss: Tensor
    clipped: Tensor
    """Tokens whose gradient the clip took away, or made smaller (`cispo`)."""
    capped: Tensor
    """Tokens whose importance weight reached the cap, or that it masks."""
    kl: Tensor
    """Sum of the k3 estimate against the reference, in nats; zero without a reference."""


def grpo_loss(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    weights_N: Tensor,
    sequence_N: Tensor,
    *,
    surrogate: Surrogate = "grpo",
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    sampler_logprobs_N: Tensor | None = None,
    importance: Importance = "token",
    importance_cap: float = 2.0,
    reference_logprobs_N: Tensor | None = None,
    kl_weight: float = 0.0,
) -> GrpoLoss:
    """`-sum_t weight_t w_t surrogate_t`, `r = exp(logprobs - old)`, both the trainer's at the sampling temperature.

    - `grpo`: `min(r A, clip(r, 1 - low, 1 + high) A)`; separate bounds are DAPO's (arXiv:2503.14476, eq. 8).
    - `gspo`: the same with one ratio for a sequence, the geometric mean of its tokens' (arXiv:2507.18071, eq. 5);
      its bounds are of another order, about 3e-4 and 4e-4.
    - `cispo`: `clip(r, 1 - low, 1 + high) A logprob`, the clipped ratio as a constant: no token loses its gradient
      (arXiv:2506.13585, eq. 4, which leaves the lower bound open: `clip_low=1`).

    `weights_N` are the tokens' shares of the whole update (`token_weights`), `sequence_N` the index of each
    token's sequence, whose tokens are all here. With `sampler_logprobs_N`, `w` mends what the sampler's arithmetic
    did differently (`importance_weights`).
    """
    log_ratio_N = logprobs_N - old_logprobs_N
    if surrogate == "gspo":
        log_ratio_N = sequence_means(log_ratio_N, sequence_N)
    ratio_N = log_ratio_N.exp()
    bounded_N = ratio_N.clamp(1.0 - clip_low, 1.0 + clip_high)
    if surrogate == "cispo":
        objective_N = bounded_N.detach() * advantages_N * logprobs_N
        clipped = (bounded_N != ratio_N).sum()
    else:
        objective_N = torch.minimum(ratio_N * advantages_N, bounded_N * advantages_N)
        clipped = (bounded_N * advantages_N < ratio_N * advantages_N).sum()
    capped = torch.zeros((), device=logprobs_N.device)
    if sampler_logprobs_N is not None and importance != "none":
        importance_N = importance_weights(old_logprobs_N, sampler_logprobs_N, sequence_N, importance, importance_cap)
        objective_N = objective_N * importance_N
        capped = ((importance_N == 0) | (importance_N == importance_cap)).sum()
    kl_N = torch.zeros_like(logprobs_N)
    if reference_logprobs_N is not None:
        kl_N = kl_k3(logprobs_N, reference_logprobs_N)
        if kl_weight > 0:
            objective_N = objective_N - kl_weight * kl_N
    return GrpoLoss(loss=-(weights_N * objective_N).sum(), clipped=clipped, capped=capped, kl=kl_N.sum().detach())


def token_weights(lengths_S: Tensor, averaging: Averaging, num_tokens: int, num_sequences: int, most: int) -> Tensor:
    """What each token of a sequence weighs in the loss of the whole update, shape (S,).

    - `token`: `1 / num_tokens`; every token alike, wherever it stands (DAPO, arXiv:2503.14476).
    - `sequence`: `1 / (length * num_sequences)`; every sequence alike, so that a token of a long one counts for
      less (GRPO, arXiv:2402.03300).
    - `constant`: `1 / (most * num_sequences)` with `most` new tokens allowed (Dr. GRPO, arXiv:2503.20783).

    `num_tokens` and `num_sequences` are those of the update, over all micro-batches and processes.
    """
    if averaging == "token":
        return torch.full_like(lengths_S, 1.0 / num_tokens, dtype=torch.float32)
    if averaging == "sequence":
        return 1.0 / (lengths_S.float() * num_sequences)
    return torch.full_like(lengths_S, 1.0 / (most * num_sequences), dtype=torch.float32)


def importance_weights(
    old_logprobs_N: Tensor, sampler_logprobs_N: Tensor, sequence_N: Tensor, kind: Importance, cap: float
) -> Tensor:
    """Each token's weight for having been drawn by the sampler and not by the trainer, shape (N,), without gradient.

    The ratio is `exp(old - sampler)`, of the token, or of its whole sequence (`sequence`: the product). It is
    truncated at `cap`; or, in the `mask` kinds, 0 outside `[1 / cap, cap]`.
    """
    log_ratio_N = (old_logprobs_N - sampler_logprobs_N).detach()
    if kind in ("sequence", "sequence_mask"):
        log_ratio_N = _sequence_sums(log_ratio_N, sequence_N)[sequence_N]
    ratio_N = log_ratio_N.exp()
    if kind in ("token_mask", "sequence_mask"):
        return torch.where((ratio_N <= cap) & (ratio_N >= 1.0 / cap), ratio_N, 0.0)
    return ratio_N.clamp(max=cap)


def sequence_means(values_N: Tensor, sequence_N: Tensor) -> Tensor:
    """The mean over a token's sequence at each token, shape (N,)."""
    lengths_S = _sequence_sums(torch.ones_like(values_N), sequence_N)
    return (_sequence_sums(values_N, sequence_N) / lengths_S.clamp(min=1.0))[sequence_N]


def _sequence_sums(values_N: Tensor, sequence_N: Tensor) -> Tensor:
    num_sequences = int(sequence_N.max()) + 1
    return values_N.new_zeros(num_sequences).index_add(0, sequence_N, values_N)


def kl_k3(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) from each sampled token, at least 0, in nats.

    `exp(d) - d - 1` with `d = reference - policy` (Schulman, "Approximating KL divergence", k3).
    """
    difference_N = reference_logprobs_N - logprobs_N
    return torch.expm1(difference_N) - difference_N
