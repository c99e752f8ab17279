"""What a step sampled, in numbers and in words."""

from collections import Counter
from statistics import fmean
from typing import get_args

import numpy as np

from pipelines.errors import UserError
from train.prompts import Difficulty
from train.rollouts import Group, StepRollouts


def describe(rollouts: StepRollouts) -> dict[str, float]:
    """What one step sampled, in numbers: the same columns every step, but for the reward of difficulties not asked."""
    samples = rollouts.samples
    rewards = [sample.reward for sample in samples if sample.reward is not None]
    lengths = [len(sample.completion.token_ids) for sample in samples]
    refusals = Counter(group.refusal for group in rollouts.groups)
    return {
        "reward": float(np.mean(rewards)),
        "pass_rate": float(np.mean([reward > 0 for reward in rewards])),
        **_reward_by_difficulty(rollouts),
        "rollouts": len(samples),
        "unjudged": len(samples) - len(rewards),
        "groups_used": refusals[None],
        "groups_all_wrong": refusals["all_wrong"],
        "groups_all_correct": refusals["all_correct"],
        "groups_too_easy": refusals["too_easy"],
        "groups_unjudged": refusals["unjudged"],
        "refused": len(rollouts.refusals),
        "length_mean": float(np.mean(lengths)),
        "length_spread": float(np.mean([_length_spread(group) for group in rollouts.groups if group.samples])),
        "truncation_rate": float(np.mean([sample.completion.finish_reason == "length" for sample in samples])),
    }


def _reward_by_difficulty(rollouts: StepRollouts) -> dict[str, float]:
    """`reward_easy`, `reward_medium`, `reward_hard`: mean reward of the prompts of a `Prompt.difficulty`."""
    columns = {}
    for difficulty in get_args(Difficulty):
        asked = [group for group in rollouts.groups if group.prompt.difficulty == difficulty]
        rewards = [sample.reward for group in asked for sample in group.samples if sample.reward is not None]
        if rewards:
            columns[f"reward_{difficulty}"] = fmean(rewards)
    return columns


def _length_spread(group: Group) -> float:
    """Standard deviation of a group's lengths relative to their mean."""
    lengths = [len(sample.completion.token_ids) for sample in group.samples]
    return float(np.std(lengths) / np.mean(lengths))


def without_signal(rollouts: StepRollouts, step: int) -> UserError:
    """The words for a step in which no group can teach anything: why none could, and what to do."""
    reasons = Counter(group.refusal for group in rollouts.groups)
    counts = ", ".join(f"{number} {str(reason).replace('_', ' ')}" for reason, number in reasons.most_common())
    refusals = rollouts.refusals
    refused = f"; the sampler refused {len(refusals)} ({refusals[0].detail})" if refusals else ""
    infinite = sum(not sample.is_finite for sample in rollouts.samples)
    broken = f"; the sampler's log-probabilities of {infinite} rollouts are not numbers" if infinite else ""
    return UserError(
        f"step {step + 1}: none of {len(rollouts.groups)} groups has signal: {counts}{refused}{broken}",
        hint=_advice(rollouts, reasons),
    )


def mastered(rollouts: StepRollouts) -> bool:
    """Whether the policy has mastered every prompt of the step but those that it never gets right."""
    reasons = {group.refusal for group in rollouts.groups}
    return reasons <= {"all_correct", "too_easy", "all_wrong"} and reasons != {"all_wrong"}


def _advice(rollouts: StepRollouts, reasons: Counter[str | None]) -> str:
    most = reasons.most_common(1)[0][0]
    if most == "all_wrong":
        return "easier prompts, a larger `max_group_size`, or more supervised training first"
    if most in ("all_correct", "too_easy"):
        return "harder prompts, or a larger `max_pass_rate`"
    if any(refusal.reason == "prompt_too_long" for refusal in rollouts.refusals):
        return "a larger `rl.max_length`, or shorter prompts"
    if not all(sample.is_finite for sample in rollouts.samples):
        return "its weights have overflowed: `rl.precision=fp32`, or look at the model the run began with"
    return "`curate sql` shows the verdicts of this step"
