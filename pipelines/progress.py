"""Progress of long work on stderr: a bar on a terminal, a plain line now and then in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Advance = Callable[..., None]
"""`advance(n=1)`: n more units are done."""

_LOG_EVERY_S = 10.0


@contextmanager
def progress(
    description: str, total: int | None = None, unit: str = "rows", *, stream: TextIO | None = None
) -> Iterator[Advance]:
    """A function to call as units are finished; the bar or the last line ends with the block.

    `stream` is stderr unless given. Thread-safe on a terminal only.
    """
    stream = sys.stderr if stream is None else stream
    reporter = _bar if stream.isatty() else _lines
    with reporter(description, total, unit, stream) as advance:
        yield advance


@contextmanager
def _bar(description: str, total: int | None, unit: str, stream: TextIO) -> Iterator[Advance]:
    """A rich bar with count, rate and time left."""
    # rich costs 50 ms to import: nobody waits for it who sees no bar.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{_rounded(speed)} {unit}/s", style="progress.data.speed")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=stream)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda n=1: bar.advance(task, n)


@contextmanager
def _lines(description: str, total: int | None, unit: str, stream: TextIO) -> Iterator[Advance]:
    """A line about every ten seconds, and one at the end if there was an earlier one."""
    started = last = time.monotonic()
    done = 0
    wrote = False

    def write(now: float) -> None:
        rate = done / max(now - started, 1e-9)
        share = f"{done:,}" if total is None else f"{done:,}/{total:,}"
        left = "" if total is None or not rate else f", {_clock((total - done) / rate)} left"
        stream.write(f"{description}: {share} {unit}, {_rounded(rate)} {unit}/s{left}\n")
        stream.flush()

    def advance(n: int = 1) -> None:
        nonlocal done, last, wrote
        done += n
        now = time.monotonic()
        if now - last >= _LOG_EVERY_S:
            last, wrote = now, True
            write(now)

    yield advance
    if wrote:
        write(time.monotonic())


def _rounded(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
