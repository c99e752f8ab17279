"""Publish to and fetch from the Hugging Face Hub: its real client, in a process of its own, against a local server."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, hub_server
from run_directories import small_run

from pipelines import versions
from pipelines.versions import read_version

ROOT = Path(__file__).parents[2]
NAME = "hf:org/sums"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as hub:
        yield hub
        assert hub.unknown == []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("runs") / "out")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("runs") / "other", changed=True)


def curate(hub: Hub, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **hub.environment, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-m", "curate.cli", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


def publish(hub: Hub, root: Path, version: str = "1.0.0") -> subprocess.CompletedProcess[str]:
    return curate(hub, "publish", str(root), "--to", NAME, "--version", version)


def test_round_trip(hub: Hub, run: Path, tmp_path: Path):
    assert publish(hub, run).returncode == 0
    held = hub.repositories["org/sums"]
    assert held.private
    assert list(held.tags.values()) == [held.head]
    done = curate(hub, "fetch", f"{NAME}@1.0.0", "--into", str(tmp_path / "copy"))
    assert done.returncode == 0, done.stderr
    version = read_version(tmp_path / "copy")
    assert version is not None
    assert list(versions.faults(tmp_path / "copy", version)) == []
    for place in version.files:
        if place.endswith(".parquet"):
            assert (tmp_path / "copy" / place).read_bytes() == (run / place).read_bytes()


def test_publishing_the_same_again_does_nothing_and_other_content_is_refused(hub: Hub, run: Path, other: Path):
    publish(hub, run)
    held = hub.repositories["org/sums"]
    head = held.head
    assert "was published before" in publish(hub, run).stdout
    refused = publish(hub, other)
    assert refused.returncode == 1
    assert "exists with other content" in refused.stderr
    assert held.head == held.tags["1.0.0"] == head
    assert publish(hub, other, "1.1.0").returncode == 0
    assert set(held.tags) == {"1.0.0", "1.1.0"}
    assert held.tags["1.0.0"] == head


def test_a_commit_by_somebody_else_meanwhile_is_told_and_nothing_overwritten(hub: Hub, run: Path):
    publish(hub, run)
    held = hub.repositories["org/sums"]
    hub.before_commit = lambda: held.commit({**held.commits[held.head], "README.md": b"edited by hand"})
    refused = publish(hub, run, "1.0.1")
    assert refused.returncode == 1
    assert "changed by somebody else" in refused.stderr
    assert held.commits[held.head]["README.md"] == b"edited by hand"
    assert set(held.tags) == {"1.0.0"}
    assert publish(hub, run, "1.0.1").returncode == 0


def test_of_two_publishers_of_a_number_the_later_is_told(hub: Hub, run: Path, other: Path, tmp_path: Path):
    results: list[subprocess.CompletedProcess[str]] = []
    hub.before_tag = lambda: results.append(publish(hub, other))
    refused = publish(hub, run)
    assert results[0].returncode == 0, results[0].stderr
    assert refused.returncode == 1
    assert "changed by somebody else" in refused.stderr
    curate(hub, "fetch", f"{NAME}@1.0.0", "--into", str(tmp_path / "copy"))
    assert (tmp_path / "copy/prompts/00000.parquet").read_bytes() == (other / "prompts/00000.parquet").read_bytes()


def test_a_publish_that_died_before_its_tag_is_completed(hub: Hub, run: Path, tmp_path: Path):
    publish(hub, run)
    held = hub.repositories["org/sums"]
    held.tags.clear()
    absent = curate(hub, "fetch", f"{NAME}@1.0.0", "--into", str(tmp_path / "copy"))
    assert absent.returncode == 1
    assert "no version" in absent.stderr
    num_commits = len(held.commits)
    assert publish(hub, run).returncode == 0
    assert held.tags == {"1.0.0": held.head}
    assert len(held.commits) == num_commits


def test_one_flipped_byte_is_found_and_named(hub: Hub, run: Path, tmp_path: Path):
    publish(hub, run)
    held = hub.repositories["org/sums"]
    files = held.commits[held.head]
    content = bytearray(files["verdicts/00000.parquet"])
    content[len(content) // 2] ^= 1
    files["verdicts/00000.parquet"] = bytes(content)
    refused = curate(hub, "fetch", f"{NAME}@1.0.0", "--into", str(tmp_path / "copy"))
    assert refused.returncode == 1
    assert "`verdicts/00000.parquet` of sums@1.0.0 is not what was published" in refused.stderr
    assert not (tmp_path / "copy").exists()


def test_a_missing_token_is_said(hub: Hub, run: Path):
    hub.refuse_all = True
    refused = publish(hub, run)
    assert refused.returncode == 1
    assert "the Hub refused `org/sums`" in refused.stderr
    assert "Traceback" not in refused.stderr
