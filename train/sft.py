"""SFT, and mid-training: cross-entropy on the assistant's tokens; one packs its documents, the other does not."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from train import checkpoint
from train.batches import Batch, Overlong, load_conversations
from train.distributed import processes
from train.loop import LoopConfig, Objective, Unit, open_policy, optimise
from train.losses import sft_loss
from train.model import default_device, load_tokenizer, usable_length
from train.packing import fill_rate, pack

_log = logging.getLogger(__name__)


class MidtrainConfig(LoopConfig):
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
    micro_tokens: int = Field(16384, ge=1)
    """Tokens of one forward pass; changes memory and speed, not the result."""


class SftConfig(LoopConfig):
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
    micro_tokens: int = Field(20480, ge=1)
    """Tokens of one forward pass; changes memory and speed, not the result."""


def train_midtrain(
    config: MidtrainConfig, shards: Path, model: str, out: Path, *, device: str | None = None, replace: bool = False
) -> Path:
    """Train `model` on the packed conversations of `shards/midtrain`; returns the trained model, `out/final`."""
    device = device or default_device()
    with processes(device), checkpoint.run_folder(out):
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
        return _train("midtrain", config, units, counts, model, tokenizer, lineage, out, max_length, device)


def train_sft(
    config: SftConfig, shards: Path, model: str, out: Path, *, device: str | None = None, replace: bool = False
) -> Path:
    """Train `model` on the conversations of `shards/sft`; returns the trained model's folder, `out/final`.

    A run that was killed goes on from its last checkpoint and ends as if it had not been.
    """
    device = device or default_device()
    with processes(device), checkpoint.run_folder(out):
        lineage = checkpoint.begin(out, "sft", config, shards, model, replace=replace)
        if (out / "final").is_dir():
            return out / "final"
        tokenizer, max_length = load_tokenizer(model), usable_length(model, config.max_length)
        documents, counts = load_conversations(shards, "sft", tokenizer, max_length, overlong=config.overlong)
        units = [[document] for document in documents]
        return _train("sft", config, units, counts, model, tokenizer, lineage, out, max_length, device)


def _train(
    stage: str,
    config: LoopConfig,
    units: Sequence[Unit],
    counts: Counter[str],
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    lineage: dict[str, Any],
    out: Path,
    max_length: int,
    device: str,
) -> Path:
    _log.info("%s: %s", stage, ", ".join(f"{key} {count:,}" for key, count in counts.items() if count))
    _, score = open_policy(config, model, max_length, device)
    lineage = {**lineage, "rows": dict(counts)}
    return optimise(stage, config, units, cross_entropy(units), score, tokenizer, lineage, out)


def cross_entropy(units: Sequence[Unit]) -> Objective:
    """The mean over the targets of a whole step, of which a micro-batch costs its share."""
    num_targets = [sum(int(document.trained.sum()) for document in unit) for unit in units]

    def cost(
        logprobs_M: Tensor, _batch: Batch, _units: Sequence[int], step_units: Sequence[int]
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        loss = sft_loss(logprobs_M, sum(num_targets[unit] for unit in step_units))
        return loss, {"loss": loss.detach()}

    return cost
