"""Places of local tasks: each has devices of its own, however many tasks there are and in whatever order they end."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipelines.config import Config
from pipelines.errors import UserError
from pipelines.executors import SpreadConfig, devices_of, free_place, spread


def test_places_are_given_once_and_again_when_they_are_free(tmp_path: Path) -> None:
    with free_place(tmp_path, 2) as first:
        with free_place(tmp_path, 2) as second:
            assert {first, second} == {0, 1}
        with free_place(tmp_path, 2) as again:
            assert again == second


def test_a_task_waits_until_a_place_is_free(tmp_path: Path) -> None:
    got: list[int] = []

    def wait() -> None:
        with free_place(tmp_path, 1) as place:
            got.append(place)

    with free_place(tmp_path, 1):
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        assert not got
    waiting.join(30)
    assert got == [0]


def test_a_killed_task_holds_no_place(tmp_path: Path) -> None:
    script = (
        "import os, pathlib; from pipelines.executors import free_place\n"
        f"with free_place(pathlib.Path({str(tmp_path)!r}), 1): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    with free_place(tmp_path, 1) as place:
        assert place == 0


def test_an_error_within_is_not_taken_for_a_place_that_is_held(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), free_place(tmp_path, 1):
        raise BlockingIOError


@pytest.mark.parametrize(
    ("visible", "devices"),
    [(None, "2,3"), ("4,5,6,7", "6,7"), ("GPU-a, GPU-b, GPU-c, GPU-d", "GPU-c,GPU-d")],
)
def test_a_place_has_devices_among_those_that_are_visible(visible: str | None, devices: str) -> None:
    assert devices_of(1, 2, visible) == devices


def test_more_tasks_at_a_time_than_devices_are_refused_before_anything_starts(tmp_path: Path) -> None:
    where = SpreadConfig(executor="local", tasks=4000, workers=2000, gpus_per_task=8)
    with pytest.raises(UserError, match=r"2000 tasks at a time with 8 accelerators each need 16000, here are \d+"):
        spread("generate", "nowhere", tmp_path, Config(), where)
    assert not list(tmp_path.iterdir())
