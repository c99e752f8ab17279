"""SIGKILL at random moments of publish and fetch: a version is absent or whole, and the next try completes it."""

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import BUCKET, object_store
from run_directories import small_run

from curate.stages.publish import publish
from pipelines import versions
from pipelines.errors import UserError
from pipelines.versions import RECORD, Reference, fetch, read_version

ROOT = Path(__file__).parents[2]
KILLS = 20
SEED = 1

_PUBLISH = """
import sys, time
from pathlib import Path
from curate.stages.publish import publish
def slowly(num_bytes):
    print(num_bytes, flush=True)
    time.sleep(0.02)
publish(Path(sys.argv[1]), sys.argv[2], "1.0.0", on_bytes=slowly)
"""
_FETCH = """
import sys, time
from pathlib import Path
from pipelines.versions import Reference, fetch
def slowly(num_bytes):
    print(num_bytes, flush=True)
    time.sleep(0.1)
fetch(Reference(sys.argv[1], "1.0.0"), Path(sys.argv[2]), on_bytes=slowly)
"""


@pytest.fixture(scope="module")
def store() -> Iterator[None]:
    with object_store():
        yield


@pytest.fixture(params=["folder", "s3"])
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "sets/sums")
    request.getfixturevalue("store")
    return f"s3://{BUCKET}/{tmp_path.name}/sums"


def killed(code: str, *arguments: str, files: int, delay_s: float) -> bool:
    """Run `code` and kill it `delay_s` after it has told of so many files; whether it was at work then."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        for _ in range(files):
            process.stdout.readline()
        time.sleep(delay_s)
        alive = process.poll() is None
        process.kill()
    return alive


@pytest.mark.slow
def test_publish_killed_at_random(tmp_path: Path, destination: str):
    run = small_run(tmp_path / "out")
    rng = random.Random(SEED)
    died = 0
    for attempt in range(KILLS // 2):
        files = round(18 * attempt / (KILLS // 2))
        died += killed(_PUBLISH, str(run), destination, files=files, delay_s=rng.uniform(0, 0.04))
        with pytest.raises(UserError, match="no version"):
            fetch(Reference(destination, "1.0.0"), tmp_path / "copy")
    assert died == KILLS // 2
    assert publish(run, destination, "1.0.0").new
    version, _ = fetch(Reference(destination, "1.0.0"), tmp_path / "copy")
    assert list(versions.faults(tmp_path / "copy", version)) == []
    filesystem, folder = versions.open_location(destination)
    filesystem.invalidate_cache()
    left = {Path(path).name for path in filesystem.ls(folder, detail=False)}
    assert left - {".lock"} == {"1.0.0"}


@pytest.mark.slow
def test_fetch_killed_at_random(tmp_path: Path, destination: str):
    published = publish(small_run(tmp_path / "out"), destination, "1.0.0").version
    copy = tmp_path / "copy"
    rng = random.Random(SEED)
    died = 0
    for attempt in range(KILLS // 2):
        begins = attempt % 2 == 0  # the others go on where the one before was killed
        if begins:
            shutil.rmtree(tmp_path / "copy.partial", ignore_errors=True)
        files = round(1.6 * attempt) if begins else 1
        died += killed(_FETCH, destination, str(copy), files=files, delay_s=rng.uniform(0, 0.04))
        if copy.exists():  # the machine was busy, the fetch was sooner
            assert list(versions.faults(copy, published)) == []
            shutil.rmtree(copy)
    assert died >= KILLS // 4
    version, _ = fetch(Reference(destination, "1.0.0"), copy)
    assert version == published == read_version(copy)
    assert list(versions.faults(copy, version)) == []
    assert (copy / RECORD).is_file()
