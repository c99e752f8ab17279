"""The loop of mid-training, SFT and DPO: forward, loss, backward, clip, step, log, save.

A stage brings its units (a document, a packed row, a pair), each a list of documents that stay together,
and an objective: what the log-probabilities of a micro-batch cost.
"""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean, pstdev
from types import FrameType
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipelines.config import Config
from pipelines.errors import UserError
from train import checkpoint
from train.batches import Batch, Document, collate, planned_steps
from train.distributed import Scorer, gathered, rank, scorer, size
from train.lora import add_lora
from train.metrics import Log, metrics_log
from train.model import Recompute, compile_layers, load_model
from train.optim import (
    OptimizerKind,
    Precision,
    Schedule,
    autocast,
    clip_gradient,
    learning_rate_at,
    make_optimizer,
    move,
)

_log = logging.getLogger(__name__)

T = TypeVar("T")

Unit = list[Document]
"""Documents that are batched as one."""

OnSpike = Literal["warn", "skip", "stop"]

_NOTHING = Document("", np.zeros(2, dtype=np.int32), np.array([False, True]))
"""What a rank passes through the model while others still have work; it adds nothing."""

_RECENT_STEPS = 64
_ENOUGH_STEPS = 16
_MOST_SKIPPED = 10


class LoopConfig(Config):
    """What the stages of this loop share; *paper* is arXiv:2504.21233, *open* is what it does not say."""

    max_length: int
    batch_size: int
    learning_rate: float
    epochs: int = Field(ge=1)
    """Passes over the data (paper)."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after so many optimizer steps."""
    warmup_rate: float = Field(0.1, ge=0, le=1)
    """Share of the steps (paper for mid-training, else open)."""
    schedule: Schedule = "cosine"
    """After warm-up, towards 0 (open)."""
    weight_decay: float = Field(0.0, ge=0)
    """Of matrices (open)."""
    optimizer: OptimizerKind = "adamw"
    """`adamw`; `adamw-bf16`, whose states take half the memory; `muon` for the matrices inside the layers (open)."""
    micro_tokens: int = Field(ge=1)
    """Tokens of one forward pass; changes memory and speed, not the result."""
    precision: Precision = "bf16"
    """Of compute; weights, their gradients and sums are fp32."""
    recompute: Recompute = "auto"
    """Activations computed again in the backward pass: `off`, `selective` (all but attention), `full`."""
    compile: bool = False
    """Have torch compile the layers; needs a C++ compiler."""
    lora_rank: int = Field(0, ge=0)
    """Rank of the updates that are trained instead of the weights, merged when saved; 0 trains the weights (paper)."""
    on_spike: OnSpike = "warn"
    """After a step whose loss leaps (`loop.spike`): go on, leave the step out, or stop; NaN never goes on (open)."""
    save_every: int = Field(100, ge=1)
    """Steps between checkpoints: what a kill can cost."""
    seed: int = 0
    """Of the order of the data."""


Objective = Callable[[Tensor, Batch, Sequence[int], Sequence[int]], tuple[Tensor, dict[str, Tensor | float]]]
"""What a micro-batch costs as its share of the step's cost, and what the log shows of it, summed over micro-batches.

It is given the log-probabilities of the batch's targets, the batch, the units in it, and those of the whole step.
"""


def open_policy(config: LoopConfig, model: str, max_length: int, device: str) -> tuple[PreTrainedModel, Scorer]:
    """The model to be trained, with LoRA and compiled where asked, sharded over the ranks, and what scores with it."""
    policy = load_model(model, max_length=max_length, device=device, recompute=config.recompute)
    if config.lora_rank:
        add_lora(policy, config.lora_rank, config.seed)
    if config.compile:
        compile_layers(policy)
    return policy, scorer(policy)


def unit_batch(units: Sequence[Unit], indices: Sequence[int], device: torch.device) -> Batch:
    """The documents of some units, laid end to end; of none, one document without meaning."""
    return collate([document for index in indices for document in units[index]] or [_NOTHING], device)


def optimise(
    stage: str,
    config: LoopConfig,
    units: Sequence[Unit],
    objective: Objective,
    score: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    lineage: dict[str, Any],
    out: Path,
) -> Path:
    """Train, from the latest checkpoint in `out` if there is one; returns the trained model's folder, `out/final`.

    SIGTERM ends it between two micro-batches, with a checkpoint of the steps done, by a `UserError`.
    """
    policy, lengths = score.policy, [sum(map(len, unit)) for unit in units]
    device = policy.device
    num_steps = config.epochs * -(-len(units) // config.batch_size)
    num_steps = min(num_steps, config.max_steps or num_steps)
    optimizer = make_optimizer(policy, config.learning_rate, config.weight_decay, config.optimizer)
    first_step, extra = checkpoint.resume(out, policy, optimizer)
    guard = Guard(stage, config.on_spike, extra.get("losses", []))
    settings = (lengths, config.batch_size, config.micro_tokens, config.seed, first_step, num_steps, size())
    micros = (micro for _, shares in planned_steps(*settings) for micro in shares[rank()])

    def save(done: int) -> None:
        folder, kept = out / f"step-{done:08d}", {"losses": guard.recent}
        writer.finish()
        if not folder.is_dir():
            checkpoint.save(
                folder, policy, tokenizer, lineage, optimizer=optimizer, step=done, extra=kept, writer=writer
            )

    with (
        stop_signal() as stop,
        checkpoint.background(stop.set) as writer,
        closing(_ahead(((micro, unit_batch(units, micro, device)) for micro in micros), device)) as batches,
        _log_of_rank(out, stage, num_steps, first_step, policy) as log,
    ):
        for step, shares in planned_steps(*settings):
            step_units = [unit for share in shares for micro in share for unit in micro]
            done = _accumulate(config, objective, score, islice(batches, len(shares[rank()])), step_units, stop)
            if done is None:
                if step > 0:
                    save(step)
                writer.finish()
                raise stopped(stage, step, num_steps, out)
            grad_norm = clip_gradient(policy)
            learning_rate = learning_rate_at(step, num_steps, config.learning_rate, config.warmup_rate, config.schedule)
            if guard.trusts(step, done, grad_norm):
                move(optimizer, learning_rate)
            else:
                optimizer.zero_grad(set_to_none=True)
            log(step, **done.sums, learning_rate=learning_rate, grad_norm=grad_norm, waited=done.waited)
            if (step + 1) % config.save_every == 0 and step + 1 < num_steps:
                save(step + 1)
        writer.finish()
        checkpoint.save(out / "final", policy, tokenizer, lineage, step=num_steps)
    return out / "final"


def _ahead(values: Iterator[T], device: torch.device) -> Generator[T, None, None]:
    """`values`, each made in a thread while the one before is used."""
    # A thread begins with the first accelerator, whichever is its process's.
    own: dict[str, Any] = {"initializer": torch.cuda.set_device, "initargs": (device,)} if device.type == "cuda" else {}
    with ThreadPoolExecutor(1, **own) as pool:
        coming = pool.submit(next, values, None)
        while (value := coming.result()) is not None:
            coming = pool.submit(next, values, None)
            yield value


@dataclass
class Done:
    """What the micro-batches of a step came to, over all ranks."""

    sums: dict[str, float] = field(default_factory=dict)
    """What the objective and the loop show, `loss` among it."""
    cost: float = 0.0
    """Of which the gradient was taken: the loss, and what is added to it."""
    waited: float = 0.0
    """Seconds this rank waited for data."""
    worst: tuple[float, tuple[str, ...]] = (-math.inf, ())
    """Cost a target, and row ids, of the micro-batch with the highest."""


def _accumulate(
    config: LoopConfig,
    objective: Objective,
    score: Scorer,
    batches: Iterator[tuple[list[int], Batch]],
    step_units: Sequence[int],
    stop: threading.Event,
) -> Done | None:
    """Add the gradient of one step, micro-batch by micro-batch; None if told to stop before it was whole."""
    parts: list[tuple[Tensor, Batch, dict[str, Tensor | float]]] = []
    waited, started = 0.0, time.monotonic()
    for micro, batch in batches:
        waited += time.monotonic() - started
        if any(gathered(stop.is_set())):
            return None
        with autocast(config.precision, score.policy.device.type):
            logprobs_M = score(batch)
        if micro:
            cost, shown = objective(logprobs_M, batch, micro, step_units)
            cost.backward()
            parts.append((cost.detach(), batch, shown))
        else:
            (0.0 * logprobs_M.sum()).backward()
        started = time.monotonic()
    return _summed(parts, waited)


def _summed(parts: Sequence[tuple[Tensor, Batch, dict[str, Tensor | float]]], waited: float) -> Done:
    """The sums over micro-batches and ranks; the first moment that waits for the device."""
    mine = Done(waited=waited)
    for tensor, batch, shown in parts:
        cost = float(tensor)
        mine.cost += cost
        squares = float(sum(length**2 for length in batch.lengths))
        for key, value in {**shown, "tokens": sum(batch.lengths), "squared_lengths": squares}.items():
            mine.sums[key] = mine.sums.get(key, 0) + (value if isinstance(value, int) else float(value))
        rate = cost / len(batch.labels_M)
        mine.worst = max(mine.worst, (rate if math.isfinite(rate) else math.inf, batch.ids))
    every = gathered(mine)
    keys = dict.fromkeys(key for one in every for key in one.sums)
    return Done(
        sums={key: sum(one.sums.get(key, 0) for one in every) for key in keys},
        cost=sum(one.cost for one in every),
        waited=waited,
        worst=max(one.worst for one in every),
    )


# --- steps that cannot be trusted -----------------------------------------------------------------


def spike(cost: float, recent: Sequence[float]) -> bool:
    """Whether `cost` leaps: above the mean of the up to 64 steps before by six of their deviations and by half of it.

    Fewer than 16 steps before tell nothing.
    """
    if len(recent) < _ENOUGH_STEPS:
        return False
    mean = fmean(recent)
    return cost - mean > max(6 * pstdev(recent), 0.5 * abs(mean))


@dataclass
class Guard:
    """Decides, step by step, whether a step is taken; every rank decides the same."""

    stage: str
    on_spike: OnSpike
    recent: list[float]
    """Costs of the steps before that were taken."""
    skipped: int = 0
    """Steps left out in a row."""

    def trusts(self, step: int, done: Done, grad_norm: float) -> bool:
        """Whether the step is to be taken; what cannot go on is a `UserError` that names step and rows."""
        finite = math.isfinite(done.cost) and math.isfinite(grad_norm)
        if finite and not spike(done.cost, self.recent):
            self._take(done.cost)
            return True
        ids = done.worst[1]
        named = ", ".join(ids[:4]) + (f" and {len(ids) - 4} more" if len(ids) > 4 else "")
        usual = f", {fmean(self.recent):.4g} on average before" if finite else ""
        fault = (
            f"{self.stage} step {step + 1}: the loss is {done.cost:.4g}{usual}, the gradient's norm {grad_norm:.4g}; "
            f"the loss is highest in the micro-batch of rows {named}"
        )
        self.skipped += 1
        if self.on_spike == "stop" or (self.on_spike == "warn" and not finite) or self.skipped == _MOST_SKIPPED:
            raise UserError(
                fault,
                hint=f"look at these rows, lower `{self.stage}.learning_rate`, `--set {self.stage}.precision=fp32`, "
                f"or leave such steps out with `--set {self.stage}.on_spike=skip`",
            )
        if rank() == 0:
            _log.warning("%s%s", fault, "; left out" if self.on_spike == "skip" else "")
        if self.on_spike == "warn":
            self._take(done.cost)
        return self.on_spike == "warn"

    def _take(self, cost: float) -> None:
        self.recent = [*self.recent[1 - _RECENT_STEPS :], cost]
        self.skipped = 0


# --- signals and the log --------------------------------------------------------------------------


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM or Ctrl-C sets within this block instead of ending the process; a second Ctrl-C ends it."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def heard(number: int, _frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    heeded = [one for one in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(one) is not signal.SIG_IGN]
    before = {number: signal.signal(number, heard) for number in heeded}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped(stage: str, step: int, num_steps: int, out: Path) -> UserError:
    """The words for a run that was told to stop after `step` steps, which are saved."""
    if step == 0:
        return UserError(f"{stage} was told to stop before its first step ended", hint="the same command begins again")
    return UserError(
        f"{stage} was told to stop after {step} of {num_steps} steps; they are saved in `{out}`",
        hint="the same command goes on from there",
    )


@contextmanager
def _log_of_rank(out: Path, stage: str, num_steps: int, first_step: int, policy: PreTrainedModel) -> Iterator[Log]:
    """The log of rank 0; the other ranks' says nothing."""
    if rank() > 0:
        yield _say_nothing
    else:
        with metrics_log(out, stage, num_steps, first_step, model=policy) as log:
            yield log


def _say_nothing(step: int, **values: float) -> None:
    """A log for ranks that have none."""
