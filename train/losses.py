"""Losses of SFT and DPO: pure functions of log-probabilities. (That of GRPO stands in grpo_loss.py.)

M targets, S documents, P pairs. A loss is a sum over what it counts; divided by the count of the whole
optimizer step, once, it is the same however the step was cut into micro-batches.
"""

from typing import Literal

from torch import Tensor
from torch.nn import functional


def sft_loss(logprobs_M: Tensor, num_targets: int) -> Tensor:
    """Cross-entropy in nats a target: minus the summed log-probabilities over the optimizer step's `num_targets`."""
    return -logprobs_M.sum() / num_targets


def sequence_sums(values_M: Tensor, document_M: Tensor, num_documents: int) -> Tensor:
    """Sum of `values_M` by document, shape (S,).

    Summed, not averaged: DPO (arXiv:2305.18290, eq. 7) compares whole completions.
    """
    return values_M.new_zeros(num_documents).index_add(0, document_M, values_M)


def dpo_loss(
    margin_P: Tensor,
    reference_margin_P: Tensor,
    beta: float,
    *,
    kind: Literal["sigmoid", "ipo"] = "sigmoid",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Loss of each pair, shape (P,); a margin is the chosen minus the rejected completion's log-probability.

    `sigmoid` is arXiv:2305.18290, eq. 7: log 2 = 0.6931 where policy and reference agree. With
    `label_smoothing` s the preference is taken to be wrong with probability s (conservative DPO). `ipo`
    is arXiv:2310.12036, eq. 17, with beta for its tau.
    """
    gain_P = margin_P - reference_margin_P
    if kind == "ipo":
        return (gain_P - 1 / (2 * beta)).square()
    right_P, wrong_P = functional.logsigmoid(beta * gain_P), functional.logsigmoid(-beta * gain_P)
    return -(1 - label_smoothing) * right_P - label_smoothing * wrong_P
