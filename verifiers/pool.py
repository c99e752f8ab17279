"""Verify in warm worker processes that the parent can kill: no text hangs or crashes the run.

Each worker has one pipe and works on one chunk of jobs at a time. A shared clock says which job it is on
and since when; past the deadline the parent kills it, gives that job the verdict `timeout`, and hands
the rest of the chunk out again. A worker that dies by itself (memory, a crash below Python) costs its job
the same verdict with another rule. There are no signals in the workers, no threads, no fork per answer.
"""

import mmap
import os
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Self

from verifiers.clock import CLOCK_BYTES, JobClock
from verifiers.jobs import Job, verify_job
from verifiers.verdict import VERSIONS, Outcome, Verdict

_CHUNK_JOBS = 64
_CHUNK_CHARS = 1 << 18
_WINDOW_CHUNKS = 8
"""Chunks per worker that may be read ahead of the verdict that is due next."""
_POLL_S = 0.05
_IDLE_DEATHS = 3
"""So often in a row may a worker die with no job running before the next job is blamed for it."""

_Numbered = tuple[int, Job]


class VerifierPool:
    """`num_workers` processes that verify; 0 verifies in this process, unprotected, for tests and debugging."""

    def __init__(self, num_workers: int = 2, timeout_s: float = 5.0, memory_mb: int = 2048) -> None:
        assert num_workers >= 0, f"num_workers is {num_workers}"
        assert timeout_s > 0, f"timeout_s is {timeout_s}"
        self.timeout_s = timeout_s
        self.memory_mb = memory_mb
        self._workers = [_Worker(timeout_s, memory_mb) for _ in range(num_workers)]
        self._poisoned: dict[Job, Verdict] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.kill()

    def verify(self, jobs: Iterable[Job]) -> Iterator[Verdict]:
        """One verdict per job, in the order of the jobs, as they come; `jobs` is read only so far ahead as needed."""
        if not self._workers:
            yield from map(verify_job, jobs)
            return
        run = _Run(iter(enumerate(jobs)), self._workers, self._poisoned)
        try:
            yield from run.verdicts()
        finally:
            # A consumer that leaves early leaves workers in the middle of a chunk.
            for worker in self._workers:
                if worker.chunk:
                    worker.kill()
                    worker.chunk.clear()


class _Run:
    """One pass over a stream of jobs."""

    def __init__(self, jobs: Iterator[_Numbered], workers: list["_Worker"], poisoned: dict[Job, Verdict]) -> None:
        self.jobs = jobs
        self.workers = workers
        self.poisoned = poisoned
        self.returned: deque[_Numbered] = deque()
        """Jobs of a killed worker that it had not come to."""
        self.done: dict[int, Verdict] = {}
        self.due = 0
        self.read = 0
        self.exhausted = False

    def verdicts(self) -> Iterator[Verdict]:
        while True:
            self.dispatch()
            while self.due in self.done:
                yield self.done.pop(self.due)
                self.due += 1
            if self.exhausted and not self.returned and self.due == self.read:
                return
            self.collect()

    def dispatch(self) -> None:
        """Give each idle worker a chunk, as far as the window allows."""
        for worker in self.workers:
            if worker.chunk:
                continue
            chunk = self.next_chunk()
            if not chunk:
                return
            worker.send(chunk)

    def next_chunk(self) -> list[_Numbered]:
        chunk: list[_Numbered] = []
        size = 0
        window = self.due + _WINDOW_CHUNKS * _CHUNK_JOBS * len(self.workers)
        while len(chunk) < _CHUNK_JOBS and size < _CHUNK_CHARS:
            if self.returned:
                numbered = self.returned.popleft()
            elif self.exhausted or self.read >= window:
                break
            else:
                following = next(self.jobs, None)
                if following is None:
                    self.exhausted = True
                    break
                numbered = following
                self.read += 1
            if numbered[1] in self.poisoned:
                self.done[numbered[0]] = self.poisoned[numbered[1]]
                continue
            chunk.append(numbered)
            size += len(numbered[1].response)
        return chunk

    def collect(self) -> None:
        """Take what workers have sent, and end those that are dead or past their deadline."""
        busy = [worker for worker in self.workers if worker.chunk]
        if not busy:
            return
        for ready in wait([worker.connection for worker in busy], timeout=min(_POLL_S, busy[0].timeout_s / 4)):
            worker = next(worker for worker in busy if worker.connection is ready)
            try:
                for verdict in worker.receive():
                    index, _ = worker.chunk.popleft()
                    self.done[index] = verdict
            except (EOFError, OSError):
                self.bury(worker, "worker_died")
        for worker in busy:
            if worker.chunk and worker.clock.running_s > worker.timeout_s:
                self.bury(worker, "deadline")

    def bury(self, worker: "_Worker", rule: str) -> None:
        """Kill a worker; the job it was on gets its verdict, the others go back."""
        # Verdicts on their way when it was killed are lost: those jobs are quick, and are done again.
        unsent = worker.clock.finished - worker.sent
        # One that died between two jobs (it had just retired, say) died of neither, unless that is all it ever does.
        idle = rule == "worker_died" and worker.clock.idle
        worker.idle_deaths += idle
        blameless = idle and worker.idle_deaths <= _IDLE_DEATHS
        worker.kill()
        if blameless:
            unsent = len(worker.chunk)
        jobs = list(worker.chunk)
        worker.chunk.clear()
        if unsent < len(jobs):
            index, job = jobs.pop(unsent)
            self.done[index] = self.poisoned[job] = Verdict(Outcome.TIMEOUT, None, rule, VERSIONS[job.verifier])
        self.returned.extendleft(reversed(jobs))


class _Worker:
    """One process, its pipe, its clock, and the chunk it is working on."""

    def __init__(self, timeout_s: float, memory_mb: int) -> None:
        self.timeout_s = timeout_s
        self.memory_mb = memory_mb
        self.chunk: deque[_Numbered] = deque()
        self.sent = 0
        """Verdicts of the present chunk that have arrived."""
        self.idle_deaths = 0
        """Deaths between two jobs since the last verdict."""
        self.process: subprocess.Popen[bytes] | None = None
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with tempfile.TemporaryFile() as file:
            file.truncate(CLOCK_BYTES)
            self.clock = JobClock(mmap.mmap(file.fileno(), CLOCK_BYTES))
            # A fresh interpreter, not multiprocessing's spawn: that would import the caller's main module,
            # torch and all, into every worker.
            arguments = [str(theirs.fileno()), str(file.fileno()), str(self.timeout_s), str(self.memory_mb)]
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", "verifiers.worker", *arguments],
                pass_fds=(theirs.fileno(), file.fileno()),
                stdin=subprocess.DEVNULL,
                env=_environment(),
            )
        theirs.close()
        self.connection = Connection(ours.detach())

    def send(self, chunk: list[_Numbered]) -> None:
        """Hand over a chunk; the worker is idle and reading, so this does not block for long."""
        self.chunk = deque(chunk)
        for _ in range(2):
            if self.process is None:
                self._start()
            self.sent = 0
            self.clock.reset()
            try:
                self.connection.send([job for _, job in chunk])
                return
            except (BrokenPipeError, ConnectionResetError):
                # It retired after its last chunk.
                self.kill()
        raise RuntimeError("a verifier worker ends as soon as it starts")

    def receive(self) -> list[Verdict]:
        verdicts: list[Verdict] = self.connection.recv()
        self.sent += len(verdicts)
        self.idle_deaths = 0
        return verdicts

    def kill(self) -> None:
        """End the process, whatever it is doing, and start another when next asked."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            self.connection.close()
            self.clock.close()


def _environment() -> dict[str, str]:
    """This process's environment, with our package on the path of a worker."""
    home = str(Path(__file__).parents[1])
    known = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{home}{os.pathsep}{known}" if known else home, "OMP_NUM_THREADS": "1"}
