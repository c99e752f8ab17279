"""Metrics: one line a step, on stderr for a person and in `metrics.jsonl` for a program."""

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pipelines.errors import UserError
from pipelines.runner import write_text

_log = logging.getLogger(__name__)


class Log(Protocol):
    """Writes one zero-based step: `log(step, loss=..., learning_rate=..., tokens=...)`."""

    def __call__(self, step: int, **values: float) -> None: ...


@contextmanager
def metrics_log(out: Path, stage: str, num_steps: int, first_step: int = 0) -> Iterator[Log]:
    """A function that writes one line a step; lines of `first_step` and later, left by a killed run, are dropped.

    Every line gets `seconds`, the time since the line before, and `tokens_per_s` where `tokens` is given.
    """
    path = out / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    write_text(path, "".join(f"{line}\n" for line in lines if _step(line) < first_step))
    last = time.monotonic()
    with path.open("a", encoding="utf-8") as file:

        def log(step: int, **values: float) -> None:
            nonlocal last
            now = time.monotonic()
            seconds, last = now - last, now
            speed = {"tokens_per_s": values["tokens"] / seconds} if "tokens" in values else {}
            line = {"step": step, **values, **speed, "seconds": seconds}
            file.write(json.dumps(line) + "\n")
            file.flush()
            shown = "  ".join(f"{key} {_shown(value)}" for key, value in line.items() if key != "step")
            _log.info("%s %d/%d  %s", stage, step + 1, num_steps, shown)

        yield log


def _step(line: str) -> float:
    """The step of a line; infinite for a line that a kill cut off."""
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return math.inf


def _shown(value: float) -> str:
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def refuse_nonfinite(loss: float, stage: str, step: int, ids: Sequence[str]) -> None:
    """A loss that is NaN or infinite is a `UserError` that names the step and its rows."""
    if not math.isfinite(loss):
        named = ", ".join(ids[:4]) + (f" and {len(ids) - 4} more" if len(ids) > 4 else "")
        raise UserError(
            f"{stage} step {step + 1}: the loss is {loss}, in the micro-batch of rows {named}",
            hint=f"look at these rows, lower `{stage}.learning_rate`, or `--set {stage}.precision=fp32`",
        )
