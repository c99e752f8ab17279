"""The clock of the job that a worker process is doing, shared with the parent that may kill it."""

import mmap
import time
from collections.abc import Iterator
from contextlib import contextmanager

CLOCK_BYTES = 16
_IDLE, _PAUSED = 0.0, -1.0


class JobClock:
    """Two numbers in shared memory: jobs finished so far, and when the present one began (0: none, -1: paused)."""

    def __init__(self, shared: mmap.mmap | None = None) -> None:
        self._slots = memoryview(shared if shared is not None else bytearray(CLOCK_BYTES)).cast("d")

    def start(self) -> None:
        self._slots[1] = time.monotonic()

    def finish(self) -> None:
        self._slots[1] = _IDLE
        self._slots[0] += 1

    def reset(self) -> None:
        self._slots[0], self._slots[1] = 0, _IDLE

    @property
    def finished(self) -> int:
        """Jobs finished since the last reset."""
        return int(self._slots[0])

    @property
    def running_s(self) -> float:
        """Seconds the present job has been running; 0 where none is, or while it is paused."""
        began = self._slots[1]
        return time.monotonic() - began if began > 0 else 0.0

    @property
    def idle(self) -> bool:
        """Whether no job has begun, paused or not."""
        return bool(self._slots[1] == _IDLE)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside is not the job's own, such as importing a library; the job starts afresh after it."""
        running = self._slots[1] != _IDLE
        if running:
            self._slots[1] = _PAUSED
        yield
        if running:
            self.start()

    def close(self) -> None:
        self._slots.release()


CLOCK = JobClock()
"""This process's clock; a worker puts the shared one in its place."""


def use(clock: JobClock) -> None:
    """Make `clock` this process's clock."""
    global CLOCK
    CLOCK = clock


def current() -> JobClock:
    """This process's clock."""
    return CLOCK
