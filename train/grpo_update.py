"""One GRPO update: advantages, micro-batches, the mismatch with the sampler, and the optimizer step.

N completion tokens of a micro-batch, S its sequences; B groups of G samples.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from pipelines.config import Config
from pipelines.errors import UserError
from train.advantages import AdvantageKind, group_advantages, overlong_penalty
from train.batches import Document, collate, plan_epoch
from train.grpo_loss import Averaging, Importance, Surrogate, grpo_loss, token_weights
from train.model import batch_logprobs
from train.optim import Precision, autocast, update
from train.rollouts import Group, Sample


class UpdateConfig(Config):
    """How the policy moves on one step's groups."""

    learning_rate: float = Field(5e-7, gt=0)
    updates_per_step: int = Field(1, ge=1)
    """Optimizer steps on one step's groups, each on its share of them; 1 is on-policy."""
    one_step_off: bool = False
    """Sample each step while the one before is trained, with the weights from before that update. What this makes of
    the probabilities is mended by `importance`; a copy of the policy stays in memory."""
    advantage: AdvantageKind = "grpo"
    """Rewards to advantages; see `advantages.group_advantages`."""
    surrogate: Surrogate = "grpo"
    """The objective; see `grpo_loss.grpo_loss`. `gspo` wants bounds of about 3e-4 and 4e-4."""
    averaging: Averaging = "token"
    """What a token weighs; see `grpo_loss.token_weights`."""
    clip_low: float = Field(0.2, ge=0)
    clip_high: float = Field(0.28, ge=0)
    importance: Importance = "token"
    """How tokens are weighed that the sampler drew with other probabilities; see `grpo_loss.importance_weights`."""
    importance_cap: float = Field(2.0, gt=1)
    """Most that a token may weigh more because the sampler thought it less likely than the trainer."""
    overlong: Literal["keep", "mask", "penalty"] = "keep"
    """Rollouts cut off at `max_tokens`: `mask` takes them out of the loss; `penalty` lowers their reward as they
    come near the limit (both DAPO, arXiv:2503.14476, section 3.4)."""
    overlong_tokens: int = Field(1024, ge=1)
    """Over so many tokens before the limit the penalty grows from 0 to 1."""
    kl_weight: float = Field(0.0, ge=0)
    """Weight of the KL penalty towards the starting policy; needs `reference`."""
    max_mismatch: float = Field(0.1, gt=0)
    """Mean |difference| of sampler's and trainer's log-probabilities, in nats, that stops the run."""
    micro_tokens: int = Field(16384, ge=1)
    """Tokens of a micro-batch, prompts and completions."""
    precision: Precision = "bf16"
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A rollout as the update sees it: prompt and completion as tokens, and what is known of the latter."""

    document: Document
    advantage: float
    sampler_logprobs: Tensor


@dataclass
class Tally:
    """Sums over the completion tokens of a step; nothing waits for the device until they are read."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    num_tokens: int = 0
    num_compared: int = 0
    mismatch: Tensor = field(default_factory=lambda: torch.zeros(()))
    largest_mismatch: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, num_tokens: int, **sums: Tensor) -> None:
        """Add a micro-batch's sums."""
        self.num_tokens += num_tokens
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def compare(self, trainer_N: Tensor, sampler_N: Tensor) -> None:
        """Add a micro-batch's raw differences of log-probability, in nats, before any clipping."""
        difference_N = (trainer_N - sampler_N).abs()
        self.num_compared += len(difference_N)
        self.mismatch = self.mismatch.to(difference_N.device) + difference_N.sum()
        self.largest_mismatch = torch.maximum(self.largest_mismatch.to(difference_N.device), difference_N.max())

    def refuse_mismatch(self, most: float) -> None:
        """Log-probabilities that differ by more than `most` nats on average, or are not numbers, are a `UserError`."""
        mean = float(self.mismatch) / self.num_compared
        if math.isnan(mean):
            raise UserError(
                "the trainer's log-probabilities are not numbers",
                hint="its weights or sums overflow: `rl.precision=fp32`, or a smaller `rl.learning_rate`",
            )
        if mean > most:
            raise UserError(
                f"the sampler is not the policy: their log-probabilities differ by {mean:.3g} nats on average, "
                f"{float(self.largest_mismatch):.3g} at most, over {self.num_compared:,} tokens",
                hint=f"its weights are stale or its arithmetic differs; `max_mismatch` allows {most:g}",
            )

    def means(self) -> dict[str, float]:
        """Means over the tokens, for the log."""
        return {
            **{name: float(value) / self.num_tokens for name, value in self.sums.items()},
            "mismatch_mean": float(self.mismatch) / self.num_compared,
            "mismatch_max": float(self.largest_mismatch),
        }


def update_policy(
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Group],
    config: UpdateConfig,
    *,
    temperature: float,
    max_tokens: int,
    learning_rate: float | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """Move the policy by the groups of one step; returns means over their completion tokens, and advantages by rollout.

    `temperature` is the sampler's, `max_tokens` what a completion could have at most, `learning_rate` that of the
    step, or the config's.
    The sampler's log-probabilities are compared with the trainer's before the first optimizer step,
    unclipped: a difference beyond `max_mismatch` leaves the policy as it is and is a `UserError`. With
    `one_step_off` the difference contains an update, and the limit is left to `sampler_mismatch`.
    """
    device, learning_rate = str(policy.device), learning_rate or config.learning_rate
    parts = _shares(groups, config.updates_per_step)
    items = [trained_rollouts(groups, config, max_tokens, device) for groups in parts]
    items = [part for part in items if part]
    if not items:
        raise UserError(
            "every rollout of the step was cut off, so that nothing is left to train on",
            hint="a larger `max_tokens`, or `overlong=keep`",
        )
    tally = Tally()
    # With one update the old policy is the one that is being differentiated: its pass is not needed.
    old = None
    if len(items) > 1:
        old = _score(policy, [item for part in items for item in part], config, temperature, tally)
    norms = []
    for part in items:
        _backward(policy, reference, part, old, config, temperature, max_tokens, tally)
        if not config.one_step_off:
            tally.refuse_mismatch(config.max_mismatch)
        norms.append(update(policy, optimizer, learning_rate))
    means = {**tally.means(), "grad_norm": float(np.mean(norms)), "learning_rate": learning_rate}
    return means, {item.document.id: item.advantage for part in items for item in part}


def sampler_mismatch(
    lagging: PreTrainedModel, groups: Sequence[Group], config: UpdateConfig, *, temperature: float, max_tokens: int
) -> float:
    """Mean difference of the sampler's log-probabilities from those of the weights it sampled with, in nats.

    Like is compared with like, over one micro-batch; beyond `max_mismatch` it is a `UserError`.
    """
    items = trained_rollouts(groups, config, max_tokens, str(lagging.device))
    if not items:
        return 0.0  # `update_policy` says so
    tally = Tally()
    _score(lagging, next(_micro_batches(items, config)), config, temperature, tally)
    tally.refuse_mismatch(config.max_mismatch)
    return tally.means()["mismatch_mean"]


def _shares(groups: Sequence[Group], num_shares: int) -> list[list[Group]]:
    """`groups` cut into at most `num_shares` parts of nearly equal number; no part is empty."""
    bounds = np.linspace(0, len(groups), min(num_shares, len(groups)) + 1).round().astype(int)
    return [list(groups[start:stop]) for start, stop in pairwise(bounds)]


def trained_rollouts(
    groups: Sequence[Group], config: UpdateConfig, max_tokens: int, device: str = "cpu"
) -> list[Trained]:
    """The rollouts that an update takes, with their advantages, group by group."""
    size = max(len(group.trained) for group in groups)
    rewards_BG = torch.zeros(len(groups), size)
    valid_BG = torch.zeros(len(groups), size, dtype=torch.bool)
    for row, group in enumerate(groups):
        rewards = torch.tensor([sample.reward for sample in group.trained])
        if config.overlong == "penalty":
            lengths = torch.tensor([len(sample.completion.token_ids) for sample in group.trained])
            rewards += overlong_penalty(lengths, max_tokens, config.overlong_tokens)
        rewards_BG[row, : len(rewards)] = rewards
        valid_BG[row, : len(rewards)] = True
    advantages_BG = group_advantages(rewards_BG, valid_BG, config.advantage)
    return [
        Trained(as_document(sample), advantage, torch.tensor(sample.completion.logprobs, device=device))
        for group, advantages in zip(groups, advantages_BG.tolist(), strict=True)
        for sample, advantage in zip(group.trained, advantages, strict=False)
        if config.overlong != "mask" or sample.completion.finish_reason != "length"
    ]


def as_document(sample: Sample) -> Document:
    """The sample's own tokens, never re-tokenised; the completion's are the targets."""
    done = sample.completion
    assert done.prompt_token_ids, "RL needs the prompt's token ids"
    assert len(done.token_ids) == len(done.logprobs) > 0, "RL needs each token's id and log-probability"
    tokens = np.array([*done.prompt_token_ids, *done.token_ids], dtype=np.int32)
    return Document(done.id, tokens, np.arange(len(tokens)) >= len(done.prompt_token_ids))


def _micro_batches(items: Sequence[Trained], config: UpdateConfig) -> Iterator[list[Trained]]:
    lengths = [len(item.document.tokens) for item in items]
    ((plan,),) = plan_epoch(lengths, len(lengths), config.micro_tokens, config.seed, 0)
    for indices in plan:
        yield [items[index] for index in indices]


def _score(
    policy: PreTrainedModel, items: Sequence[Trained], config: UpdateConfig, temperature: float, tally: Tally
) -> dict[str, Tensor]:
    """The policy's log-probabilities of each rollout's completion before any update, by rollout id."""
    scored: dict[str, Tensor] = {}
    for micro in _micro_batches(items, config):
        batch = collate([item.document for item in micro], str(policy.device))
        with torch.no_grad(), autocast(config.precision, policy.device.type):
            logprobs_N, _ = batch_logprobs(policy, batch, temperature=temperature)
        tally.compare(logprobs_N, torch.cat([item.sampler_logprobs for item in micro]))
        parts = logprobs_N.split([len(item.sampler_logprobs) for item in micro])
        scored |= {item.document.id: part for item, part in zip(micro, parts, strict=True)}
    return scored


def _backward(
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    items: Sequence[Trained],
    old: dict[str, Tensor] | None,
    config: UpdateConfig,
    temperature: float,
    max_tokens: int,
    tally: Tally,
) -> None:
    """Accumulate the gradient of one update, micro-batch by micro-batch."""
    num_tokens = sum(len(item.sampler_logprobs) for item in items)
    for micro in _micro_batches(items, config):
        batch = collate([item.document for item in micro], str(policy.device))
        sampler_N = torch.cat([item.sampler_logprobs for item in micro])
        advantages_S = torch.tensor([item.advantage for item in micro], device=policy.device)
        reference_N = None
        with autocast(config.precision, policy.device.type):
            logprobs_N, entropy_N = batch_logprobs(policy, batch, temperature=temperature, entropy=True)
            if reference is not None:
                with torch.no_grad():
                    reference_N, _ = batch_logprobs(reference, batch, temperature=temperature)
        if old is None:
            old_N = logprobs_N.detach()
            tally.compare(old_N, sampler_N)
        else:
            old_N = torch.cat([old[item.document.id] for item in micro])
        lengths_S = torch.tensor([len(item.sampler_logprobs) for item in micro], device=policy.device)
        weights_S = token_weights(lengths_S, config.averaging, num_tokens, len(items), max_tokens)
        result = grpo_loss(
            logprobs_N,
            old_N,
            advantages_S[batch.document_M],
            weights_S[batch.document_M],
            batch.document_M,
            surrogate=config.surrogate,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            sampler_logprobs_N=sampler_N,
            importance=config.importance,
            importance_cap=config.importance_cap,
            reference_logprobs_N=reference_N,
            kl_weight=config.kl_weight,
        )
        result.loss.backward()
        assert entropy_N is not None
        tally.add(
            len(logprobs_N),
            loss=result.loss.detach() * num_tokens,
            entropy=entropy_N.sum(),
            kl=result.kl,
            clip_rate=result.clipped,
            cap_rate=result.capped,
        )
