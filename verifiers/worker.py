"""The process that verifies: takes chunks of jobs, gives verdicts, and can be killed at any moment."""

import contextlib
import mmap
import resource
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from verifiers import clock
from verifiers.jobs import Job, verify_job
from verifiers.verdict import VERSIONS, Outcome, Verdict

_GRACE_CPU_S = 30
"""Processor seconds beyond the deadline after which the kernel ends a worker whose parent is gone."""
_FLUSH_S = 0.05
_STATM = Path("/proc/self/statm")


def main(connection_fd: int, clock_fd: int, timeout_s: float, memory_mb: int) -> None:
    """Serve until the parent hangs up."""
    # Ctrl-C is the parent's to handle: it hangs up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "darwin":  # macOS refuses to limit address space
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    job_clock = clock.JobClock(mmap.mmap(clock_fd, clock.CLOCK_BYTES))
    clock.use(job_clock)
    with Connection(connection_fd) as connection, contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            jobs: list[Job] = connection.recv()
            _serve(jobs, connection, job_clock, timeout_s)
            if _resident_mb() * 2 > memory_mb:
                return  # Start afresh before caches come near the limit.


def _serve(jobs: list[Job], connection: Connection, job_clock: clock.JobClock, timeout_s: float) -> None:
    """Send the verdicts of a chunk, in order, in batches a twentieth of a second apart."""
    verdicts: list[Verdict] = []
    flushed = time.monotonic()
    for job in jobs:
        _limit_processor(timeout_s)
        job_clock.start()
        try:
            verdicts.append(verify_job(job))
        except MemoryError:
            verdicts.append(Verdict(Outcome.TIMEOUT, None, "out_of_memory", VERSIONS[job.verifier]))
        job_clock.finish()
        if time.monotonic() - flushed > _FLUSH_S:
            connection.send(verdicts)
            verdicts, flushed = [], time.monotonic()
    connection.send(verdicts)


def _limit_processor(timeout_s: float) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(time.process_time() + timeout_s) + _GRACE_CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _resident_mb() -> float:
    """Memory this process holds now; its peak where the system does not say."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * resource.getpagesize() / 2**20
    # Not on Linux, where a child starts with the peak of its parent, which may be a trainer of many GB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
