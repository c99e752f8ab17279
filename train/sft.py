"""SFT, and mid-training: cross-entropy on the assistant's tokens; one packs its documents, the other does not."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipelines.config import Config
from pipelines.runner import locked
from train import checkpoint
from train.batches import Document, Overlong, collate, load_conversations, planned_steps
from train.losses import sft_loss
from train.metrics import metrics_log, refuse_nonfinite
from train.model import batch_logprobs, default_device, load_model, load_tokenizer, usable_length
from train.optim import Precision, Schedule, autocast, learning_rate_at, make_optimizer, update
from train.packing import fill_rate, pack

_log = logging.getLogger(__name__)

Unit = list[Document]
"""Documents that are batched as one: a packed row, or a single document."""


class MidtrainConfig(Config):
    """Mid-training; *paper* is arXiv:2504.21233, *open* is what it does not say."""

    max_length: int = Field(16384, ge=2)
    """Tokens of a packed row (paper)."""
    overlong: Overlong = "split"
    """What happens to a conversation longer than a row (open)."""
    every_token: bool = False
    """Train the prompts too (open)."""
    batch_size: int = Field(128, ge=1)
    """Rows of an optimizer step (paper)."""
    learning_rate: float = Field(1e-5, gt=0)
    """Peak (paper)."""
    epochs: int = Field(5, ge=1)
    """Passes over the data (paper)."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after so many optimizer steps."""
    warmup_rate: float = Field(0.1, ge=0, le=1)
    """Share of the steps (paper)."""
    schedule: Schedule = "cosine"
    """After warm-up, towards 0 (open)."""
    weight_decay: float = Field(0.0, ge=0)
    """Of matrices (open)."""
    micro_tokens: int = Field(16384, ge=1)
    """Tokens of one forward pass; changes memory and speed, not the result."""
    precision: Precision = "bf16"
    """Of compute; weights, their gradients, sums and optimizer are fp32."""
    save_every: int = Field(100, ge=1)
    """Steps between checkpoints: what a kill can cost."""
    seed: int = 0
    """Of the order of the rows."""


class SftConfig(Config):
    """Supervised fine-tuning; *paper* is arXiv:2504.21233, *open* is what it does not say."""

    max_length: int = Field(20480, ge=2)
    """Tokens of a conversation (paper)."""
    overlong: Overlong = "refuse"
    """What happens to a longer one (open); cut off, it would not teach when to stop."""
    batch_size: int = Field(128, ge=1)
    """Conversations of an optimizer step (paper)."""
    learning_rate: float = Field(1e-5, gt=0)
    """Peak (paper)."""
    epochs: int = Field(5, ge=1)
    """Passes over the data (paper)."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after so many optimizer steps."""
    warmup_rate: float = Field(0.1, ge=0, le=1)
    """Share of the steps (open)."""
    schedule: Schedule = "cosine"
    """After warm-up, towards 0 (open)."""
    weight_decay: float = Field(0.0, ge=0)
    """Of matrices (open)."""
    micro_tokens: int = Field(20480, ge=1)
    """Tokens of one forward pass; changes memory and speed, not the result."""
    precision: Precision = "bf16"
    """Of compute; weights, their gradients, sums and optimizer are fp32."""
    save_every: int = Field(100, ge=1)
    """Steps between checkpoints: what a kill can cost."""
    seed: int = 0
    """Of the order of the rows."""


def train_midtrain(
    config: MidtrainConfig, shards: Path, model: str, out: Path, *, device: str | None = None, replace: bool = False
) -> Path:
    """Train `model` on the packed conversations of `shards/midtrain`; returns the trained model, `out/final`."""
    with locked(out):
        lineage = checkpoint.begin(out, "midtrain", config, shards, model, replace=replace)
        if (out / "final").is_dir():
            return out / "final"
        tokenizer, max_length = load_tokenizer(model), usable_length(model, config.max_length)
        documents, counts = load_conversations(
            shards, "midtrain", tokenizer, max_length, overlong=config.overlong, every_token=config.every_token
        )
        lengths = [len(document) for document in documents]
        rows = pack(lengths, max_length, [document.id for document in documents])
        filled = fill_rate(rows, lengths, max_length)
        _log.info("midtrain: %d documents in %d rows, %.2f %% filled", len(documents), len(rows), 100 * filled)
        units = [[documents[index] for index in row] for row in rows]
        policy = load_model(model, max_length=max_length, device=device or default_device())
        return _train("midtrain", config, units, counts, policy, tokenizer, lineage, out)


def train_sft(
    config: SftConfig, shards: Path, model: str, out: Path, *, device: str | None = None, replace: bool = False
) -> Path:
    """Train `model` on the conversations of `shards/sft`; returns the trained model's folder, `out/final`.

    A run that was killed goes on from its last checkpoint and ends as if it had not been.
    """
    with locked(out):
        lineage = checkpoint.begin(out, "sft", config, shards, model, replace=replace)
        if (out / "final").is_dir():
            return out / "final"
        tokenizer, max_length = load_tokenizer(model), usable_length(model, config.max_length)
        documents, counts = load_conversations(shards, "sft", tokenizer, max_length, overlong=config.overlong)
        policy = load_model(model, max_length=max_length, device=device or default_device())
        return _train("sft", config, [[document] for document in documents], counts, policy, tokenizer, lineage, out)


def _train(
    stage: str,
    config: MidtrainConfig | SftConfig,
    units: Sequence[Unit],
    counts: Counter[str],
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lineage: dict[str, Any],
    out: Path,
) -> Path:
    """The loop."""
    _log.info("%s: %s", stage, ", ".join(f"{key} {count:,}" for key, count in counts.items() if count))
    lengths = [sum(map(len, unit)) for unit in units]
    num_targets = [sum(int(document.trained.sum()) for document in unit) for unit in units]
    num_steps = config.epochs * -(-len(units) // config.batch_size)
    num_steps = min(num_steps, config.max_steps or num_steps)
    device = policy.device.type
    optimizer = make_optimizer(policy, config.learning_rate, config.weight_decay)
    first_step, _ = checkpoint.resume(out, policy, optimizer)
    lineage = {**lineage, "rows": dict(counts)}
    steps = planned_steps(lengths, config.batch_size, config.micro_tokens, config.seed, first_step, num_steps)
    with metrics_log(out, stage, num_steps, first_step) as log:
        for step, micro_batches in steps:
            targets = sum(num_targets[unit] for micro in micro_batches for unit in micro)
            loss, waited = 0.0, 0.0
            for micro in micro_batches:
                started = time.monotonic()
                batch = collate([document for unit in micro for document in units[unit]], device)
                waited += time.monotonic() - started
                with autocast(config.precision, device):
                    logprobs_M, _ = batch_logprobs(policy, batch)
                part = sft_loss(logprobs_M, targets)
                refuse_nonfinite(part.item(), stage, step, batch.ids)
                part.backward()
                loss += part.item()
            learning_rate = learning_rate_at(step, num_steps, config.learning_rate, config.warmup_rate, config.schedule)
            grad_norm = update(policy, optimizer, learning_rate)
            tokens = sum(lengths[unit] for micro in micro_batches for unit in micro)
            log(step, loss=loss, learning_rate=learning_rate, grad_norm=grad_norm, tokens=tokens, waited=waited)
            if (step + 1) % config.save_every == 0 and step + 1 < num_steps:
                folder = out / f"step-{step + 1:08d}"
                checkpoint.save(folder, policy, tokenizer, lineage, optimizer=optimizer, step=step + 1)
    checkpoint.save(out / "final", policy, tokenizer, lineage, step=num_steps)
    return out / "final"
