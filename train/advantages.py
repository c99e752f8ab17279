"""Rewards of a group to advantages, and what a group can teach.

B groups (one prompt each), G samples of a group. Groups differ in size once hard prompts are
oversampled, so `valid_BG` tells samples from padding and from samples that no verifier could judge.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

AdvantageKind = Literal["grpo", "dr_grpo", "rloo"]


def group_advantages(rewards_BG: Tensor, valid_BG: Tensor, kind: AdvantageKind = "grpo") -> Tensor:
    """Each reward relative to its group, shape (B, G); zero where not valid.

    - `grpo`: `(r - mean) / std` (arXiv:2504.21233, section 2; population deviation, so that a
      balanced group of +1 and -1 keeps its rewards as advantages).
    - `dr_grpo`: `r - mean`; the deviation favours near-unanimous groups (arXiv:2503.20783).
    - `rloo`: `r` minus the mean of the others (arXiv:2402.14740).

    A group whose valid rewards are all the same, or that has only one, gives exactly zero: no
    epsilon turns rounding errors into advantages.
    """
    rewards_BG = torch.where(valid_BG, rewards_BG, 0.0)
    num_valid_B1 = valid_BG.sum(dim=1, keepdim=True).clamp(min=1)
    mean_B1 = rewards_BG.sum(dim=1, keepdim=True) / num_valid_B1
    centred_BG = torch.where(valid_BG, rewards_BG - mean_B1, 0.0)
    if kind == "grpo":
        std_B1 = (centred_BG.square().sum(dim=1, keepdim=True) / num_valid_B1).sqrt()
        advantages_BG = centred_BG / torch.where(std_B1 > 0, std_B1, 1.0)
    elif kind == "rloo":
        advantages_BG = centred_BG * num_valid_B1 / (num_valid_B1 - 1).clamp(min=1)
    else:
        advantages_BG = centred_BG
    return torch.where(_rewards_differ(rewards_BG, valid_BG), advantages_BG, 0.0)


def _rewards_differ(rewards_BG: Tensor, valid_BG: Tensor) -> Tensor:
    """Whether a group's valid rewards are not all the same, shape (B, 1)."""
    highest_B1 = rewards_BG.masked_fill(~valid_BG, float("-inf")).amax(dim=1, keepdim=True)
    lowest_B1 = rewards_BG.masked_fill(~valid_BG, float("inf")).amin(dim=1, keepdim=True)
    return highest_B1 > lowest_B1


def overlong_penalty(lengths: Tensor, max_tokens: int, over: int) -> Tensor:
    """What is added to the reward of completions of `lengths` tokens: 0, and -1 at `max_tokens`, any shape.

    It falls linearly over the last `over` tokens (DAPO's soft overlong punishment, arXiv:2503.14476, eq. 13).
    """
    return ((max_tokens - over - lengths) / over).clamp(-1.0, 0.0)


def group_refusal(rewards: Sequence[float | None], max_pass_rate: float = 1.0) -> str | None:
    """Why a group is not trained on; None where it is.

    `unjudged`: fewer than two samples have a reward. `all_wrong`, `all_correct`: no advantage.
    `too_easy`: its pass rate exceeds `max_pass_rate` (arXiv:2504.21233, section 4).
    """
    judged = [reward for reward in rewards if reward is not None]
    num_correct = sum(reward > 0 for reward in judged)
    if len(judged) < 2:
        return "unjudged"
    if num_correct == 0:
        return "all_wrong"
    if num_correct == len(judged):
        return "all_correct"
    return "too_easy" if num_correct / len(judged) > max_pass_rate else None


def rebalanced(rewards: Sequence[float | None], ids: Sequence[str], seed: int) -> list[int]:
    """Which samples of a group are trained on: every correct one and as many incorrect ones, in order.

    The incorrect ones are drawn by `seed` and their ids (arXiv:2504.21233, section 4, reward
    rebalancing). Where the correct ones are the majority all samples stay.
    """
    correct = [index for index, reward in enumerate(rewards) if reward is not None and reward > 0]
    incorrect = [index for index, reward in enumerate(rewards) if reward is not None and reward <= 0]
    drawn = sorted(incorrect, key=lambda index: _draw(seed, ids[index]))[: len(correct)]
    return sorted(correct + drawn)


def _draw(seed: int, sample_id: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{sample_id}".encode(), digest_size=8).digest()


def annealed_temperature(step: int, num_steps: int, start: float = 1.0, end: float = 0.6, over: float = 0.5) -> float:
    """Sampling temperature of a step, counted from 0: linear from `start` to `end`, then held.

    `over` is the fraction of `num_steps` that the descent takes (arXiv:2504.21233, section 4).
    """
    descent = over * num_steps
    if step >= descent:
        return end
    return start + (end - start) * step / descent
