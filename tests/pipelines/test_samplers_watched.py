"""A server that this process runs: it is waited for, started again when it dies, and never outlives its owner."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.samplers.server import ServerSampler
from pipelines.samplers.watched import WatchedServer
from pipelines.sampling import Completion, Request, SamplingConfig

STUB = Path(__file__).parents[1] / "serve_stub.py"
CONFIG = SamplingConfig(max_tokens=100)


def stub(notes: Path, deaths: int = 0) -> Callable[[int], list[str]]:
    """The command of a stand-in for vLLM that takes notes."""
    return lambda port: [sys.executable, str(STUB), str(notes), str(port), str(deaths)]


@contextmanager
def watched(tmp_path: Path, deaths: int = 0, restarts: int = 3) -> Iterator[WatchedServer]:
    server = WatchedServer(
        "the stub", stub(tmp_path, deaths), tmp_path / "stub.log", key_variable="VLLM_API_KEY", restarts=restarts
    )
    try:
        yield server
    finally:
        server.close()


def pids(notes: Path) -> list[int]:
    return [int(each) for each in (notes / "pids").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def assert_all_end(processes: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(map(is_running, processes)):
        assert time.monotonic() < deadline, f"still running: {[each for each in processes if is_running(each)]}"
        time.sleep(0.02)


def requests(count: int) -> list[Request]:
    return [Request(f"r{index}", ({"role": "user", "content": f"question {index}"},), index) for index in range(count)]


def answers(sampler: ServerSampler, count: int) -> dict[str, str]:
    results = list(sampler.sample(requests(count), CONFIG))
    assert all(isinstance(result, Completion) for result in results)
    assert len({result.id for result in results}) == len(results)
    return {result.id: result.text for result in results if isinstance(result, Completion)}


def test_it_dies_is_started_again_and_only_what_was_in_flight_is_sent_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with watched(tmp_path, deaths=2) as server:
        sampler = ServerSampler("m", server, concurrency=4, backoff_s=0.01)
        assert answers(sampler, 20) == {f"r{index}": f"echo: question {index}" for index in range(20)}
        sampler.close()
    assert len(pids(tmp_path)) == 2 * 3  # three lives, each with its child
    answered = (tmp_path / "answered").read_text().splitlines()
    assert sorted(answered) == sorted(f"question {index}" for index in range(20))  # each once
    said = capsys.readouterr().err
    assert said.count("the stub ended with exit code 3") == 2
    assert "ValueError: I cannot go on; starting it again" in said
    assert_all_end(pids(tmp_path))


def test_a_server_that_keeps_dying_ends_the_run_with_one_sentence(tmp_path: Path) -> None:
    with watched(tmp_path, deaths=9, restarts=1) as server:
        sampler = ServerSampler("m", server, concurrency=4, backoff_s=0.01)
        with pytest.raises(
            UserError, match=r"the stub ended with exit code 3 .* ValueError: I cannot go on; it"
        ) as caught:
            list(sampler.sample(requests(20), CONFIG))
        sampler.close()
    assert caught.value.hint == f"its log: {tmp_path / 'stub.log'}"
    assert len(pids(tmp_path)) == 2 * 2
    assert_all_end(pids(tmp_path))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            "print('loading'); raise SystemExit('OSError: no such model')",
            "ended with exit code 1 .*OSError: no such model",
        ),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL after .*it has said nothing"),
        ("print('still loading', flush=True); import time; time.sleep(60)", "does not answer after 2 s: still loading"),
    ],
)
def test_a_server_that_does_not_come_up_is_one_sentence(tmp_path: Path, program: str, message: str) -> None:
    command = [
        sys.executable,
        "-c",
        f"import os; open({str(tmp_path / 'pids')!r}, 'w').write(str(os.getpid()))\n{program}",
    ]
    with pytest.raises(UserError, match=message) as caught:
        WatchedServer(
            "x", lambda _: command, tmp_path / "logs" / "x.log", key_variable="VLLM_API_KEY", start_timeout_s=1.5
        )
    assert caught.value.hint == f"its log: {tmp_path / 'logs' / 'x.log'}"
    assert_all_end(pids(tmp_path))


def test_closing_ends_everything_and_the_key_is_nowhere(tmp_path: Path) -> None:
    with watched(tmp_path) as server:
        assert all(map(is_running, pids(tmp_path)))
        lines = [Path(f"/proc/{each}/cmdline").read_bytes().decode() for each in pids(tmp_path)]
        assert server.key not in "".join(lines) + repr(server) + (tmp_path / "stub.log").read_text()
    assert_all_end(pids(tmp_path))


def test_a_keeper_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    with watched(tmp_path) as server:
        keeper = int(Path(f"/proc/{pids(tmp_path)[0]}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(keeper, signal.SIGKILL)
        sampler = ServerSampler("m", server, backoff_s=0.01)
        assert len(answers(sampler, 3)) == 3  # from the second life
        sampler.close()
    assert len(pids(tmp_path)) == 4
    assert_all_end(pids(tmp_path))


_OWNER = """
import signal, sys, time
from pathlib import Path
from pipelines.samplers.watched import WatchedServer
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts tests in the background has it ignored
notes = Path(sys.argv[1])
server = WatchedServer("x", lambda port: [sys.executable, sys.argv[2], str(notes), str(port)], notes / "log",
                       key_variable="VLLM_API_KEY")
print("up", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_its_owner_however_that_ends(tmp_path: Path, number: signal.Signals) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(tmp_path), str(STUB)], stdout=subprocess.PIPE, stderr=-3
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"up\n"
    assert all(map(is_running, pids(tmp_path)))
    owner.send_signal(number)
    owner.communicate()
    assert_all_end(pids(tmp_path))
