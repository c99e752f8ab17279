"""Kill `curate run` at random moments: the tables equal those of an uninterrupted run, no file is half written."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.parquet import read_table, table_files

KILLS = 20
SEED = 2504

RECIPE = """
steps = ["import", "verify", "dedupe", "decontaminate", "annotate", "split", "build_dpo_pairs", "card"]
[import]
files = [{rollouts}, {problems}]
[decontaminate]
against = [{benchmark}]
"""


def command(recipe: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "curate.cli", "run", str(recipe), "--out", str(out)]


def tables(out: Path) -> dict[str, bytes]:
    """Every published file of a run directory but the manifest, which holds seconds."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and path.name != "manifest.json"
    }


def stages_without_seconds(out: Path) -> dict[str, dict[str, object]]:
    stages = json.loads((out / "manifest.json").read_text())["stages"]
    return {name: {key: value for key, value in entry.items() if key != "seconds"} for name, entry in stages.items()}


def assert_no_half_file(out: Path) -> None:
    for path in out.rglob("*.parquet"):
        if not path.name.startswith("."):
            pq.read_table(path)  # reads every page, not the footer alone
    if (out / "manifest.json").exists():
        json.loads((out / "manifest.json").read_text())


@pytest.fixture
def recipe(tmp_path: Path, shared_data: Path) -> Path:
    """A recipe over a few hundred real rollouts and problems."""
    rollouts = tmp_path / "rollouts.jsonl"
    lines = (shared_data / "rollouts" / "math_qwen25math_100x8.jsonl").read_text().splitlines()[:320]
    rollouts.write_text("\n".join(lines))
    problems = tmp_path / "problems.jsonl"
    problems.write_text("\n".join((shared_data / "problems" / "math_train.jsonl").read_text().splitlines()[:200]))
    path = tmp_path / "recipe.toml"
    quoted = {
        "rollouts": json.dumps(str(rollouts)),
        "problems": json.dumps(str(problems)),
        "benchmark": json.dumps(f"aime24={shared_data / 'problems' / 'aime24.jsonl'}"),
    }
    path.write_text(RECIPE.format(**quoted))
    return path


def killed_run(arguments: list[str], delay_s: float, begun: Callable[[], bool] = lambda: True) -> bool:
    """Start a command and kill it `delay_s` after it has `begun` its work; whether it was still alive then."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while not begun() and process.poll() is None:
        time.sleep(0.01)
    try:
        process.wait(timeout=delay_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_twenty_random_moments_equals_uninterrupted(tmp_path: Path, recipe: Path):
    whole, killed = tmp_path / "whole" / "out", tmp_path / "killed" / "out"
    started = time.monotonic()
    subprocess.run(command(recipe, whole), check=True, capture_output=True)
    seconds = time.monotonic() - started
    expected = tables(whole)

    rng = random.Random(SEED)
    died = 0
    for attempt in range(KILLS):
        # From time to time lose a part of the work, so that the later kills too meet a run at work.
        if attempt and attempt % 4 == 0:
            for path in sorted((killed / rng.choice(["verdicts", "rollouts", "duplicates"])).glob("*.parquet")):
                path.unlink()
        died += killed_run(command(recipe, killed), rng.uniform(0.2, 1.0) * seconds)
        if killed.exists():
            assert_no_half_file(killed)
    assert died >= KILLS // 2, f"only {died} of {KILLS} runs were alive when killed"

    subprocess.run(command(recipe, killed), check=True, capture_output=True)
    found = tables(killed)
    assert found.keys() == expected.keys()
    differing = [name for name in expected if found[name] != expected[name]]
    assert not differing, "\n".join(differing)
    assert stages_without_seconds(killed) == stages_without_seconds(whole)


SAMPLING = """
steps = ["import", "generate", "verify", "annotate", "split"]
[import]
files = [{problems}]
[generate]
teacher = "pocket"
samples = 3
max_tokens = 24
concurrency = 8
[split]
rl_without_rollouts = true
"""


def ids(out: Path) -> dict[str, list[str]]:
    """The ids in every table that sampled text cannot change, in their order."""
    columns = {"prompts": "prompt_id", "rollouts": "rollout_id", "verdicts": "rollout_id",
               "annotations/rollouts": "rollout_id", "annotations/prompts": "prompt_id"}  # fmt: skip
    return {
        table: [row for path in table_files(out, table) for row in read_table(path, table)[column].to_pylist()]
        for table, column in columns.items()
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sampling_run_killed_at_random_loses_no_rollout_and_samples_none_twice(tmp_path: Path):
    problems, recipe = tmp_path / "problems.jsonl", tmp_path / "recipe.toml"
    rows = [{"problem": f"Compute {i}+{i + 7}.", "answer": str(2 * i + 7)} for i in range(40)]
    problems.write_text("\n".join(json.dumps(row) for row in rows))
    recipe.write_text(SAMPLING.format(problems=json.dumps(str(problems))))
    whole, killed = tmp_path / "whole" / "out", tmp_path / "killed" / "out"
    subprocess.run(command(recipe, whole), check=True, capture_output=True)
    rng = random.Random(SEED + 1)
    died = 0
    for _ in range(6):
        if killed_run(command(recipe, killed), rng.uniform(0.0, 1.0), lambda: any(killed.glob("rollouts/.*.journal"))):
            died += 1
        else:  # it came to its end: lose the rollouts, so that the next kill too meets a run at work
            for path in table_files(killed, "rollouts"):
                path.unlink()
    assert died >= 3, f"only {died} runs were alive when killed"
    assert_no_half_file(killed)
    subprocess.run(command(recipe, killed), check=True, capture_output=True)
    found = ids(killed)
    assert found == ids(whole)
    assert len(set(found["rollouts"])) == len(found["rollouts"]) == 120
