"""The commands as a user types them: help is quick, mistakes end in one sentence, done work stays done."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines import tables

ROOT = Path(__file__).parents[1]


def curate(*arguments: object, room: str = "curate") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"{room}.cli", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )


def problems(path: Path, count: int = 6) -> Path:
    rows = [{"problem": f"What is {i} + {i}?", "answer": str(2 * i), "completion": f"\\boxed{{{2 * i + i % 2}}}"}
            for i in range(count)]  # fmt: skip
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize("room", ["curate", "train"])
def test_help_shows_an_example(room: str):
    done = curate("--help", room=room)
    assert done.returncode == 0
    assert "Example" in done.stdout


def mistakes(tmp_path: Path) -> dict[str, tuple[list[object], str, str]]:
    """Name -> command, what the error must name, what the hint must name."""
    empty = tmp_path / "empty"
    empty.mkdir()
    no_json = tmp_path / "text.jsonl"
    no_json.write_text("this is not JSON\n")
    odd = tmp_path / "odd.jsonl"
    odd.write_text(json.dumps({"colour": "red", "size": 3}) + "\n")
    good = problems(tmp_path / "good.jsonl")
    return {
        "missing file": (["import", tmp_path / "none.jsonl", "--out", tmp_path / "o"], "none.jsonl", ""),
        "folder without data": (["import", empty, "--out", tmp_path / "o"], "empty", ""),
        "unknown layout": (["import", odd, "--out", tmp_path / "o"], "colour", "--map"),
        "mapped column that is not there": (
            ["import", good, "--map", "problem=question", "--out", tmp_path / "o"],
            "question",
            "",
        ),
        "run directory without tables": (["verify", empty], "prompts", "curate import"),
        "no run directory": (["split", tmp_path / "nowhere"], "nowhere", ""),
        "unknown setting": (["verify", empty, "--set", "verify.speed=3"], "verify.speed", "timeout_s"),
        "unknown teacher": (["generate", "--teacher", "deepseek-r2", "--out", empty], "deepseek-r2", "deepseek-r1"),
        "unknown recipe": (["run", "no-such-recipe", "--out", empty], "no-such-recipe", "pocket"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "missing file",
        "folder without data",
        "unknown layout",
        "mapped column that is not there",
        "run directory without tables",
        "no run directory",
        "unknown setting",
        "unknown teacher",
        "unknown recipe",
    ],
)
def test_a_mistake_ends_in_one_sentence(tmp_path: Path, name: str):
    arguments, named, hinted = mistakes(tmp_path)[name]
    done = curate(*arguments)
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert named in errors[0]
    assert "Traceback" not in done.stderr
    if hinted:
        assert hinted in done.stderr.split("hint: ", 1)[1]


def test_bad_usage_exits_with_two():
    assert curate("verify", "--no-such-option").returncode == 2


def test_unusable_rows_are_kept_aside_with_their_reason(tmp_path: Path):
    path = problems(tmp_path / "mixed.jsonl", 4)
    bad = ["not JSON", json.dumps({"problem": "", "answer": "1", "completion": "x"}),
           json.dumps({"problem": "And 1+1?", "answer": "2", "completion": ""})]  # fmt: skip
    path.write_text("\n".join([path.read_text(), *bad]))
    out = tmp_path / "out"
    done = curate("import", path, "--out", out)
    assert done.returncode == 0, done.stderr
    asked = curate("sql", out, "select reason, count(*) as n from refusals group by 1 order by 1", "--as", "json")
    counts = {row["reason"]: row["n"] for row in json.loads(asked.stdout)}
    assert sum(counts.values()) == 3, counts
    rollouts = curate("sql", out, "select count(*) as n from rollouts", "--as", "json")
    assert json.loads(rollouts.stdout) == [{"n": 4}]


def test_finished_work_is_not_done_again_and_status_says_what_is_next(tmp_path: Path):
    out = tmp_path / "out"
    path = problems(tmp_path / "problems.jsonl")
    assert curate("import", path, "--out", out).returncode == 0
    status = curate("status", out)
    assert "missing" in status.stdout
    assert "curate verify" in status.stdout
    assert curate("verify", out).returncode == 0
    again = curate("verify", out)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    refused = curate("verify", out, "--set", "verify.timeout_s=9")
    assert refused.returncode == 1
    assert "timeout_s" in refused.stderr
    assert "--replace" in refused.stderr
    assert curate("verify", out, "--set", "verify.timeout_s=9", "--replace").returncode == 0


def empty_shard(root: Path, schema_version: bytes = b"1") -> None:
    """An sft shard without rows, as a version of the schema would have written it."""
    schema = tables.TABLES["shards/sft"]
    metadata = {**schema.metadata, b"tracemill.schema_version": schema_version}
    path = root / "shards" / "sft" / "00000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(schema.empty_table().replace_schema_metadata(metadata), path)


@pytest.mark.parametrize(
    ("prepare", "model", "named"),
    [
        (lambda root: None, "pocket-base", "shards/sft"),
        (lambda root: empty_shard(root, b"0"), "pocket-base", "schema version 0"),
        (empty_shard, "pocket-base", "no usable row"),
        (empty_shard, "no-such-model", "no-such-model"),
    ],
    ids=["no shards", "older schema", "no rows", "no model"],
)
def test_a_training_mistake_ends_in_one_sentence(tmp_path: Path, prepare, model: str, named: str):
    root = tmp_path / "out"
    root.mkdir()
    prepare(root)
    done = curate("sft", "--shards", root, "--model", model, "--out", tmp_path / "run", room="train")
    assert done.returncode == 1, done.stderr
    assert named in done.stderr.split("error: ", 1)[1]
    assert "Traceback" not in done.stderr
