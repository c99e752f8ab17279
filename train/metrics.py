"""Metrics: one line a step, on stderr for a person and in `metrics.jsonl` for a program.

A terminal shows a bar below the lines, with the time left and the course of the loss (of the reward in RL).
"""

import json
import logging
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from transformers import PreTrainedModel

from pipelines.errors import UserError
from pipelines.memory import peak_bytes
from pipelines.progress import progress
from pipelines.runner import write_text
from train.distributed import size
from train.flops import accelerator, mfu
from train.staircase import duration

_log = logging.getLogger(__name__)

TENSORBOARD = "TRACEMILL_TENSORBOARD"
"""Environment variable that asks for event files; an environment reaches the stages' processes."""

_SPEED = {"tokens_per_s": "tokens/s", "mfu": "mfu", "memory_gb": "GB", "waited_rate": "waited"}
_STEP = {"grad_norm": "grad", "learning_rate": "lr"}
_SHOWN: dict[str, dict[str, str]] = {
    "midtrain": {"loss": "loss", **_STEP, **_SPEED},
    "sft": {"loss": "loss", **_STEP, **_SPEED},
    "dpo": {"loss": "loss", "accuracy": "accuracy", "margin": "margin", **_STEP, **_SPEED},
    "rl": {
        "reward": "reward",
        "pass_rate": "pass rate",
        "groups_used": "groups",
        "length_mean": "length",
        "truncation_rate": "truncated",
        "entropy": "entropy",
        "mismatch_mean": "mismatch",
        **_STEP,
        "memory_gb": "GB",
        "seconds": "s",
    },
}
"""Stage -> column of `metrics.jsonl` that its line shows -> how the line calls it; the time left is the last."""

_RECENT_STEPS = 20
"""Steps whose mean time says what is left."""

_SPARKS = "▁▂▃▄▅▆▇█"


class Log(Protocol):
    """Writes one zero-based step: `log(step, loss=..., learning_rate=..., tokens=...)`."""

    def __call__(self, step: int, **values: float) -> None: ...


@contextmanager
def metrics_log(
    out: Path,
    stage: str,
    num_steps: int,
    first_step: int = 0,
    *,
    model: PreTrainedModel | None = None,
    stream: TextIO | None = None,
) -> Iterator[Log]:
    """A function that writes one line a step; lines of `first_step` and later, left by a killed run, are dropped.

    Every line gets `seconds`, the time since the line before, and `memory_gb`, the peak so far; where
    they are given, `tokens` becomes `tokens_per_s`, `waited` (seconds without data) `waited_rate`, and
    `squared_lengths` (see `flops.step_flops`) `mfu`, if `model` stands on an accelerator whose peak is
    known. `stream` is stderr unless given.
    """
    stream = sys.stderr if stream is None else stream
    path = out / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    write_text(path, "".join(f"{line}\n" for line in lines if _step(line) < first_step))
    last = time.monotonic()
    times: deque[float] = deque(maxlen=_RECENT_STEPS)
    course: deque[float] = deque(maxlen=32)
    with ExitStack() as stack:
        file = stack.enter_context(path.open("a", encoding="utf-8"))
        write_events = _events(stack, out, first_step) if os.environ.get(TENSORBOARD) else None
        advance = None
        if stream.isatty():
            bar = progress(stage, num_steps, "steps", stream=stream, note=lambda: sparkline(course))
            advance = stack.enter_context(bar)
            advance(first_step)

        def log(step: int, **values: float) -> None:
            nonlocal last
            now = time.monotonic()
            seconds, last = now - last, now
            line = {"step": step, **values, **_measured(values, seconds, model), "seconds": seconds}
            file.write(json.dumps(line) + "\n")
            file.flush()
            times.append(seconds)
            course.append(line["reward" if stage == "rl" else "loss"])
            left = (num_steps - step - 1) * sum(times) / len(times)
            _log.info("%s", step_line(stage, num_steps, line, left))
            if write_events is not None:
                write_events(line)
            if advance is not None:
                advance()

        yield log


def _step(line: str) -> float:
    """The step of a line; infinite for a line that a kill cut off."""
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return math.inf


def _measured(values: dict[str, float], seconds: float, model: PreTrainedModel | None) -> dict[str, float]:
    """What follows from a step's values and its time."""
    measured = {"memory_gb": peak_memory_gb(None if model is None else model.device)}
    if "tokens" in values:
        measured["tokens_per_s"] = values["tokens"] / seconds
    if "waited" in values:
        measured["waited_rate"] = values["waited"] / seconds
    if model is not None and model.device.type == "cuda" and "squared_lengths" in values:
        device = accelerator(torch.cuda.get_device_name(model.device))
        if device is not None:
            tokens, squared_lengths = values["tokens"], values["squared_lengths"]
            measured["mfu"] = mfu(model, tokens, squared_lengths, seconds, device, size())
    return measured


def peak_memory_gb(device: torch.device | None = None) -> float:
    """Most memory held so far, in 10^9 bytes: of an accelerator by its allocator, else of the process."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return peak_bytes() / 1e9


def step_line(stage: str, num_steps: int, line: dict[str, float], left_s: float) -> str:
    """A step for a person: a dozen columns at most, those of `_SHOWN` that the step has."""
    shown = [f"{label} {_shown(line[key])}" for key, label in _SHOWN[stage].items() if key in line]
    return "  ".join([f"{stage} {int(line['step']) + 1}/{num_steps}", *shown, f"{duration(left_s)} left"])


def _shown(value: float) -> str:
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def sparkline(values: Sequence[float] | deque[float]) -> str:
    """The course of `values` in one row of blocks, the lowest at the bottom; empty for no values."""
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (len(_SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_SPARKS[round((value - low) * scale)] for value in values)


def _events(stack: ExitStack, out: Path, first_step: int) -> Callable[[dict[str, float]], None]:
    """A function that writes a line's values as TensorBoard events in `out/tensorboard`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("TensorBoard is not installed", hint='pip install "tracemill[tensorboard]"') from None
    writer: Any = SummaryWriter(str(out / "tensorboard"), purge_step=first_step)
    stack.callback(writer.close)

    def write(line: dict[str, float]) -> None:
        for key, value in line.items():
            if key != "step":
                writer.add_scalar(key, value, int(line["step"]))
        writer.flush()

    return write
