"""Rollout DPO: prefer the right completion of a prompt to a wrong one, with the starting model as reference."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.tables import content_id
from train import checkpoint
from train.batches import Batch, load_pairs, planned_steps
from train.distributed import Scorer, gathered, processes, rank, size
from train.loop import LoopConfig, Objective, Unit, open_policy, optimise, unit_batch
from train.losses import dpo_loss, sequence_sums
from train.model import default_device, load_tokenizer, usable_length
from train.optim import autocast

_log = logging.getLogger(__name__)


class DpoConfig(LoopConfig):
    """Direct preference optimisation; *paper* is arXiv:2504.21233, *open* is what it does not say."""

    max_length: int = Field(16384, ge=2)
    """Tokens of a prompt with one completion (paper); a pair with a longer side is refused."""
    batch_size: int = Field(64, ge=1)
    """Pairs of an optimizer step (open)."""
    learning_rate: float = Field(5e-7, gt=0)
    """Peak (paper)."""
    epochs: int = Field(1, ge=1)
    """Passes over the data (paper)."""
    beta: float = Field(0.1, gt=0)
    """How strongly the reference holds the policy (open)."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """`sigmoid` (paper), or IPO."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Probability that a preference is wrong (open); of the sigmoid loss."""
    length_normalised: bool = False
    """Compare completions by the mean log-probability of their tokens, not by the sum (open; *sum* is DPO's)."""
    nll_weight: float = Field(0.0, ge=0)
    """Weight of the chosen completions' cross-entropy, which keeps their probability up (open)."""
    micro_tokens: int = Field(32768, ge=1)
    """Tokens of one forward pass; changes memory and speed, not the result."""


def train_dpo(
    config: DpoConfig, shards: Path, model: str, out: Path, *, device: str | None = None, replace: bool = False
) -> Path:
    """Train `model` on the pairs of `shards/dpo`; returns the trained model's folder, `out/final`.

    One model is ever in memory: the policy, before its first step, is the reference.
    """
    device = device or default_device()
    with processes(device), checkpoint.run_folder(out):
        lineage = checkpoint.begin(out, "dpo", config, shards, model, replace=replace)
        if (out / "final").is_dir():
            return out / "final"
        tokenizer, max_length = load_tokenizer(model), usable_length(model, config.max_length)
        pairs, counts = load_pairs(shards, tokenizer, max_length)
        _log.info("dpo: %s", ", ".join(f"{key} {count:,}" for key, count in counts.items() if count))
        units: list[Unit] = [[chosen, rejected] for chosen, rejected in pairs]
        _, score = open_policy(config, model, max_length, device)
        reference_P2 = reference_logprobs(score, units, config, lineage, out)
        lineage = {**lineage, "rows": dict(counts)}
        return optimise("dpo", config, units, preference(units, reference_P2, config), score, tokenizer, lineage, out)


def preference(units: Sequence[Unit], reference_P2: Tensor, config: DpoConfig) -> Objective:
    """The mean of `dpo_loss` over the pairs of a whole step, plus the weighted cross-entropy of the chosen ones."""
    num_targets_P2 = torch.tensor([[int(side.trained.sum()) for side in unit] for unit in units])

    def cost(
        logprobs_M: Tensor, batch: Batch, indices: Sequence[int], step_units: Sequence[int]
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        num_pairs, num_chosen = len(step_units), int(num_targets_P2[list(step_units), 0].sum())
        logprobs_P2 = pair_logprobs(logprobs_M, batch)
        reference = reference_P2[list(indices)].to(logprobs_P2.device)
        weight_P2 = 1 / num_targets_P2[list(indices)].to(reference) if config.length_normalised else 1.0
        losses_P = dpo_loss(
            _margin(weight_P2 * logprobs_P2),
            _margin(weight_P2 * reference),
            config.beta,
            kind=config.loss,
            label_smoothing=config.label_smoothing,
        )
        rewards_P2 = config.beta * weight_P2 * (logprobs_P2.detach() - reference)
        loss, nll = losses_P.sum() / num_pairs, -logprobs_P2[:, 0].sum() / num_chosen
        return loss + config.nll_weight * nll, {
            "loss": loss.detach(),
            "nll": nll.detach(),
            **_pair_means(logprobs_P2.detach(), rewards_P2, num_pairs),
            "length_chosen": sum(batch.lengths[::2]) / num_pairs,
            "length_rejected": sum(batch.lengths[1::2]) / num_pairs,
        }

    return cost


def _pair_means(logprobs_P2: Tensor, rewards_P2: Tensor, num_pairs: int) -> dict[str, Tensor]:
    """Rewards are beta times the log-ratio to the reference (arXiv:2305.18290, section 5)."""
    margin_P = _margin(rewards_P2)
    # Where the two agree, as before the first step, either is as likely to be ahead.
    ahead_P = (margin_P > 0).float() + 0.5 * (margin_P == 0).float()
    means = {
        "reward_chosen": rewards_P2[:, 0],
        "reward_rejected": rewards_P2[:, 1],
        "margin": margin_P,
        "accuracy": ahead_P,
        "logprobs_chosen": logprobs_P2[:, 0],
        "logprobs_rejected": logprobs_P2[:, 1],
    }
    return {key: values_P.sum() / num_pairs for key, values_P in means.items()}


def _margin(values_P2: Tensor) -> Tensor:
    return values_P2[:, 0] - values_P2[:, 1]


def pair_logprobs(logprobs_M: Tensor, batch: Batch) -> Tensor:
    """Log-probability of every completion, shape (P, 2): chosen, rejected."""
    return sequence_sums(logprobs_M, batch.document_M, len(batch.lengths)).view(-1, 2)


def reference_logprobs(
    score: Scorer, units: Sequence[Unit], config: DpoConfig, lineage: dict[str, Any], out: Path
) -> Tensor:
    """The reference's log-probability of every completion, shape (P, 2); computed once and stored in `out`.

    The file is named by what the numbers depend on: weights, data, length (which pins LongRoPE), precision.
    Its batches are those of the first epoch, so that there policy and reference differ by training alone,
    not by the rounding of another batch.
    """
    settings = config.model_dump(include={"max_length", "batch_size", "micro_tokens", "seed", "precision"})
    device = score.policy.device
    key = content_id(lineage["model_digest"], lineage["shards"], settings, device.type)
    path = out / f"reference-{key}.safetensors"
    if path.is_file():
        return load_file(path)["logprobs_P2"]
    _log.info("dpo: log-probabilities of the reference, once")
    lengths = [sum(map(len, unit)) for unit in units]
    num_steps = -(-len(units) // config.batch_size)
    logprobs_P2 = torch.zeros(len(units), 2)
    plan = planned_steps(lengths, config.batch_size, config.micro_tokens, config.seed, 0, num_steps, num_ranks=size())
    for _, shares in plan:
        for micro in shares[rank()]:
            batch = unit_batch(units, micro, device)
            with torch.no_grad(), autocast(config.precision, device.type):
                logprobs_M = score(batch)
            if micro:
                logprobs_P2[micro] = pair_logprobs(logprobs_M, batch).cpu()
    logprobs_P2 = torch.stack(gathered(logprobs_P2)).sum(dim=0)  # each rank has its pairs, and zero elsewhere
    if rank() == 0:
        partial = path.with_name(f".{path.name}.partial")
        save_file({"logprobs_P2": logprobs_P2}, partial)
        partial.replace(path)
    return logprobs_P2
