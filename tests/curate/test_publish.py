"""Publish: a version appears whole, once, and never changes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from run_directories import small_run

from curate.card import check_card
from curate.stages.publish import publish
from pipelines import versions
from pipelines.errors import UserError
from pipelines.versions import Reference, fetch, read_version

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return small_run(tmp_path / "out")


@pytest.fixture(params=["folder", "memory"])
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "sets/sums")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    return "memory://bucket/sums"


def test_round_trip(run: Path, destination: str, tmp_path: Path):
    published = publish(run, destination, "1.0.0")
    assert published.new
    assert published.version.name == "sums"
    version, _ = fetch(Reference(destination, "1.0.0"), tmp_path / "copy")
    assert version == published.version
    for place in version.files:
        if place != "README.md":
            assert (tmp_path / "copy" / place).read_bytes() == (run / place).read_bytes()
    assert "# sums 1.0.0" in (tmp_path / "copy/README.md").read_text()
    assert check_card(tmp_path / "copy") == []


def test_publishing_the_same_again_does_nothing(run: Path, destination: str):
    first = publish(run, destination, "1.0.0")
    again = publish(run, destination, "1.0.0")
    assert not again.new
    assert again.version == first.version


def test_a_version_never_changes(run: Path, destination: str, tmp_path: Path):
    first = publish(run, destination, "1.0.0")
    other = small_run(tmp_path / "other", changed=True)
    with pytest.raises(UserError, match="exists with other content"):
        publish(other, destination, "1.0.0")
    assert fetch(Reference(destination, "1.0.0"), tmp_path / "copy")[0] == first.version
    assert publish(other, destination, "1.1.0").new


def test_a_bad_number_publishes_nothing(run: Path, tmp_path: Path):
    with pytest.raises(UserError, match="semantic version"):
        publish(run, str(tmp_path / "sets/sums"), "1.0")
    assert not (tmp_path / "sets").exists()


def test_a_publish_that_was_cut_off_is_continued(run: Path, destination: str, tmp_path: Path):
    filesystem, target = versions.open_location(destination, "1.0.0")
    staging = target + (".partial" if isinstance(filesystem, fsspec.get_filesystem_class("file")) else "")
    filesystem.makedirs(f"{staging}/rollouts", exist_ok=True)
    filesystem.pipe_file(f"{staging}/rollouts/00000.parquet", b"half a fi")
    filesystem.pipe_file(f"{staging}/rollouts/00001.parquet", b"of another run")
    with pytest.raises(UserError, match="no version"):
        fetch(Reference(destination, "1.0.0"), tmp_path / "copy")
    publish(run, destination, "1.0.0")
    version, _ = fetch(Reference(destination, "1.0.0"), tmp_path / "copy")
    assert list(versions.faults(tmp_path / "copy", version)) == []
    assert not filesystem.exists(f"{target}/rollouts/00001.parquet")


def test_of_two_publishers_at_once_one_wins_and_the_other_is_told(run: Path, destination: str, tmp_path: Path):
    other = small_run(tmp_path / "other", changed=True)
    told: list[str] = []

    def intrude(num_bytes: int) -> None:
        if not told:
            with pytest.raises(UserError) as refusal:
                publish(other, destination, "1.0.0")
            told.append(refusal.value.message)

    first = publish(run, destination, "1.0.0", on_bytes=intrude)
    assert "in use" in told[0] or "being published with other content" in told[0]
    version, _ = fetch(Reference(destination, "1.0.0"), tmp_path / "copy")
    assert version == first.version


def test_killed_at_any_moment_no_half_version_is_visible(run: Path, tmp_path: Path):
    """SIGKILL while files are stored; the version is either absent or whole, and publishing again completes it."""
    destination = tmp_path / "sets/sums"
    code = (
        "import sys, time; from pathlib import Path; from curate.stages.publish import publish\n"
        "def slow(n): print(n, flush=True); time.sleep(0.05)\n"
        f"publish(Path({str(run)!r}), {str(destination)!r}, '1.0.0', on_bytes=slow)"
    )
    for num_files in (1, 7, 15):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as publisher:
            assert publisher.stdout is not None
            for _ in range(num_files):
                publisher.stdout.readline()
            os.kill(publisher.pid, signal.SIGKILL)
        assert not (destination / "1.0.0").exists()
    assert publish(run, str(destination), "1.0.0").new
    version = read_version(destination / "1.0.0")
    assert version is not None
    assert list(versions.faults(destination / "1.0.0", version)) == []
    assert sorted(path.name for path in destination.iterdir()) == [".lock", "1.0.0"]


def test_the_card_is_copied_where_asked(run: Path, tmp_path: Path):
    publish(run, str(tmp_path / "sets/sums"), "1.0.0", cards=tmp_path / "cards")
    copied = (tmp_path / "cards/sums-1.0.0.md").read_text()
    assert copied == (tmp_path / "sets/sums/1.0.0/README.md").read_text()
