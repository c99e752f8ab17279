"""Rollout DPO: prefer the right completion of a prompt to a wrong one, with the starting model as reference."""

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from pipelines.config import Config
from pipelines.runner import locked
from pipelines.tables import content_id
from train import checkpoint
from train.batches import Batch, Pair, collate, load_pairs, planned_steps
from train.losses import dpo_loss, sequence_sums
from train.metrics import metrics_log, refuse_nonfinite
from train.model import batch_logprobs, default_device, load_model, load_tokenizer, usable_length
from train.optim import Precision, Schedule, autocast, learning_rate_at, make_optimizer, update

_log = logging.getLogger(__name__)


class DpoConfig(Config):
    """Direct preference optimisation; *paper* is arXiv:2504.21233, *open* is what it does not say."""

    max_length: int = Field(16384, ge=2)
    """Tokens of a prompt with one completion (paper); a pair with a longer side is refused."""
    batch_size: int = Field(64, ge=1)
    """Pairs of an optimizer step (open)."""
    learning_rate: float = Field(5e-7, gt=0)
    """Peak (paper)."""
    epochs: int = Field(1, ge=1)
    """Passes over the data (paper)."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after so many optimizer steps."""
    warmup_rate: float = Field(0.1, ge=0, le=1)
    """Share of the steps (open)."""
    schedule: Schedule = "cosine"
    """After warm-up, towards 0 (open)."""
    beta: float = Field(0.1, gt=0)
    """How strongly the reference holds the policy (open)."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """`sigmoid` (paper), or IPO."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Probability that a preference is wrong (open); of the sigmoid loss."""
    nll_weight: float = Field(0.0, ge=0)
    """Weight of the chosen completions' cross-entropy, which keeps their probability up (open)."""
    micro_tokens: int = Field(32768, ge=1)
    """Tokens of one forward pass; changes memory and speed, not the result."""
    precision: Precision = "bf16"
    """Of compute; weights, their gradients, sums and optimizer are fp32."""
    save_every: int = Field(100, ge=1)
    """Steps between checkpoints: what a kill can cost."""
    seed: int = 0
    """Of the order of the pairs."""


def train_dpo(
    config: DpoConfig, shards: Path, model: str, out: Path, *, device: str | None = None, replace: bool = False
) -> Path:
    """Train `model` on the pairs of `shards/dpo`; returns the trained model's folder, `out/final`.

    One model is ever in memory: the policy, before its first step, is the reference.
    """
    with locked(out):
        lineage = checkpoint.begin(out, "dpo", config, shards, model, replace=replace)
        if (out / "final").is_dir():
            return out / "final"
        tokenizer, max_length = load_tokenizer(model), usable_length(model, config.max_length)
        pairs, counts = load_pairs(shards, tokenizer, max_length)
        _log.info("dpo: %s", ", ".join(f"{key} {count:,}" for key, count in counts.items() if count))
        policy = load_model(model, max_length=max_length, device=device or default_device())
        reference_P2 = reference_logprobs(policy, pairs, config, lineage, out)
        lineage["rows"] = dict(counts)

        lengths = [len(chosen) + len(rejected) for chosen, rejected in pairs]
        num_steps = config.epochs * -(-len(pairs) // config.batch_size)
        num_steps = min(num_steps, config.max_steps or num_steps)
        optimizer = make_optimizer(policy, config.learning_rate)
        first_step, _ = checkpoint.resume(out, policy, optimizer)
        steps = planned_steps(lengths, config.batch_size, config.micro_tokens, config.seed, first_step, num_steps)
        with metrics_log(out, "dpo", num_steps, first_step) as log:
            for step, micro_batches in steps:
                metrics = _accumulate(policy, pairs, reference_P2, micro_batches, config, step)
                learning_rate = learning_rate_at(
                    step, num_steps, config.learning_rate, config.warmup_rate, config.schedule
                )
                grad_norm = update(policy, optimizer, learning_rate)
                log(step, **metrics, learning_rate=learning_rate, grad_norm=grad_norm)
                if (step + 1) % config.save_every == 0 and step + 1 < num_steps:
                    folder = out / f"step-{step + 1:08d}"
                    checkpoint.save(folder, policy, tokenizer, lineage, optimizer=optimizer, step=step + 1)
        checkpoint.save(out / "final", policy, tokenizer, lineage, step=num_steps)
    return out / "final"


def _accumulate(
    policy: PreTrainedModel,
    pairs: Sequence[Pair],
    reference_P2: Tensor,
    micro_batches: Sequence[Sequence[int]],
    config: DpoConfig,
    step: int,
) -> dict[str, float]:
    """Add the gradient of one optimizer step, micro-batch by micro-batch; returns means over its pairs for the log."""
    chosen_indices = [index for micro in micro_batches for index in micro]
    num_pairs = len(chosen_indices)
    num_chosen = sum(int(pairs[index][0].trained.sum()) for index in chosen_indices)
    sums: defaultdict[str, float] = defaultdict(float)
    for micro in micro_batches:
        started = time.monotonic()
        batch = _pair_batch(pairs, micro, policy)
        waited = time.monotonic() - started
        logprobs_P2 = _pair_logprobs(policy, batch, config)
        reference = reference_P2[list(micro)].to(policy.device)
        losses_P = dpo_loss(
            _margin(logprobs_P2),
            _margin(reference),
            config.beta,
            kind=config.loss,
            label_smoothing=config.label_smoothing,
        )
        nll = -logprobs_P2[:, 0].sum()
        loss = losses_P.sum() / num_pairs + config.nll_weight * nll / num_chosen
        refuse_nonfinite(loss.item(), "dpo", step, batch.ids)
        loss.backward()
        parts: dict[str, Tensor | float] = {
            "loss": losses_P.detach().sum() / num_pairs,
            "nll": nll.detach() / num_chosen,
            **_pair_means(logprobs_P2.detach(), reference, config.beta, num_pairs),
            "length_chosen": sum(batch.lengths[::2]) / num_pairs,
            "length_rejected": sum(batch.lengths[1::2]) / num_pairs,
            "tokens": sum(batch.lengths),
            "waited": waited,
        }
        for key, value in parts.items():
            sums[key] += float(value)
    return sums


def _pair_means(logprobs_P2: Tensor, reference_P2: Tensor, beta: float, num_pairs: int) -> dict[str, Tensor]:
    """Rewards are beta times the log-ratio to the reference (arXiv:2305.18290, section 5)."""
    rewards_P2 = beta * (logprobs_P2 - reference_P2)
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


def _pair_batch(pairs: Sequence[Pair], indices: Iterable[int], policy: PreTrainedModel) -> Batch:
    """Chosen and rejected documents by turns: both sides of a pair are in one batch."""
    return collate([side for index in indices for side in pairs[index]], policy.device.type)


def _pair_logprobs(policy: PreTrainedModel, batch: Batch, config: DpoConfig) -> Tensor:
    """Log-probability of every completion, shape (P, 2): chosen, rejected."""
    with autocast(config.precision, policy.device.type):
        logprobs_M, _ = batch_logprobs(policy, batch)
    return sequence_sums(logprobs_M, batch.document_M, len(batch.lengths)).view(-1, 2)


def reference_logprobs(
    reference: PreTrainedModel, pairs: Sequence[Pair], config: DpoConfig, lineage: dict[str, Any], out: Path
) -> Tensor:
    """The reference's log-probability of every completion, shape (P, 2); computed once and stored in `out`.

    The file is named by what the numbers depend on: weights, data, length (which pins LongRoPE), precision.
    Its batches are those of the first epoch, so that there policy and reference differ by training alone,
    not by the rounding of another batch.
    """
    settings = config.model_dump(include={"max_length", "batch_size", "micro_tokens", "seed", "precision"})
    key = content_id(lineage["model_digest"], lineage["shards"], settings, reference.device.type)
    path = out / f"reference-{key}.safetensors"
    if path.is_file():
        return load_file(path)["logprobs_P2"]
    _log.info("dpo: log-probabilities of the reference, once")
    lengths = [len(chosen) + len(rejected) for chosen, rejected in pairs]
    num_steps = -(-len(pairs) // config.batch_size)
    logprobs_P2 = torch.empty(len(pairs), 2)
    for _, micro_batches in planned_steps(lengths, config.batch_size, config.micro_tokens, config.seed, 0, num_steps):
        for micro in micro_batches:
            with torch.no_grad():
                logprobs_P2[micro] = _pair_logprobs(reference, _pair_batch(pairs, micro, reference), config).cpu()
    partial = path.with_name(f".{path.name}.partial")
    save_file({"logprobs_P2": logprobs_P2}, partial)
    partial.replace(path)
    return logprobs_P2
