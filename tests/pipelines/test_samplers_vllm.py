"""What starts with vLLM's engine."""

import signal
import subprocess
import sys

from pipelines.samplers.vllm import deaf_to_interrupts

LISTENS = """
import signal, sys
signal.signal(signal.SIGINT, lambda *_: sys.exit(3))  # as vLLM's engine does
print("ready", flush=True)
sys.stdin.read()
"""


def interrupted() -> int:
    """Exit code of a process that is sent SIGINT and then told to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    process.communicate()
    return process.returncode


def test_ctrl_c_does_not_reach_the_engine() -> None:
    with deaf_to_interrupts():
        within = interrupted()
    assert (within, interrupted()) == (0, 3)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
