"""Import stores each problem once, loses no row, resumes, and replaces only when told to."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curate.stages.import_ import ImportConfig, ImportReport, run
from pipelines import parquet, runner
from pipelines.config import Config
from pipelines.errors import UserError
from pipelines.tables import prompt_id


def sums(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"problem": f"What is ${k} + {k + 1}$?", "answer": str(2 * k + 1)} for k in range(start, start + count)]


def write(path: Path, rows: list[Any]) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def bring(root: Path, *files: Path, replace: bool = False, **settings: Any) -> ImportReport:
    return run(
        root, ImportConfig.parse({"files": [str(file) for file in files], **settings}, "import"), replace=replace
    )


def rows(root: Path, table: str) -> list[dict[str, Any]]:
    stored: pa.Table = parquet.read_table(parquet.table_files(root, table), table)
    return stored.to_pylist()


def digests(root: Path) -> dict[str, str]:
    paths = [path for table in ("prompts", "rollouts", "refusals") for path in parquet.table_files(root, table)]
    return {str(path.relative_to(root)): parquet.facts(path).digest for path in paths}


def test_problems_and_rollouts_come_in_with_every_bad_row_kept_aside(tmp_path: Path) -> None:
    problem, gold = "What is $2 + 3$?", "5"
    good = {"problem": problem, "gold": gold, "model": "m", "label": True, "id": "x"}
    file = write(
        tmp_path / "My Traces.jsonl",
        [
            {**good, "completion": "<think>\nadd\n</think>\n5"},
            {**good, "completion": "5", "label": False},
            {**good, "completion": ""},
            {**good, "completion": None},
            {**good, "completion": "\u0000\u0007"},
            {**good, "problem": " ", "completion": "5"},
            {**good, "problem": None, "completion": "5"},
            {**good, "completion": "half \ud83d a pair"},
            "{not json",
            "",
            {**good, "model": None, "completion": ["<think>\ncut", "", "6"]},
            {**good, "gold": "6", "completion": "6"},
        ],
    )
    report = bring(tmp_path / "out", file, rows_per_file=2)
    counts = report.sources[0].counts
    assert counts.rows == 11
    assert counts.used == 4
    assert counts.refused == {
        "empty_completion": 1,
        "null_completion": 1,
        "unprintable_completion": 1,
        "empty_problem": 1,
        "null_problem": 1,
        "not_unicode_completion": 1,
        "not_json": 1,
    }
    assert counts.noted == {"empty_completion": 1, "gold_conflict": 1}
    assert (counts.prompts_new, counts.prompts_known) == (1, 3)
    assert (counts.completions, counts.rollouts, counts.completions_refused) == (6, 5, 1)
    assert counts.forms == {"tags": 1, "none": 3, "truncated": 1}

    prompts = rows(tmp_path / "out", "prompts")
    assert [(row["prompt_id"], row["answer"], row["verifier"], row["source"], row["source_id"]) for row in prompts] == [
        (prompt_id(problem), "5", "mathematics", "My Traces", "x")
    ]
    rollouts = rows(tmp_path / "out", "rollouts")
    assert [(row["model"], row["sample_index"], row["response"], row["upstream_label"]) for row in rollouts] == [
        ("m", 0, "5", True),
        ("m", 1, "5", False),
        ("unknown", 0, "", True),
        ("unknown", 1, "6", True),
        ("m", 2, "6", True),
    ]
    assert rollouts[0]["reasoning"] == "add"
    assert len({row["rollout_id"] for row in rollouts}) == 5
    assert {row["finish_reason"] for row in rollouts} == {None}
    refusals = rows(tmp_path / "out", "refusals")
    assert [row["row"] for row in refusals] == [2, 3, 4, 5, 6, 7, 8, 10, 11]
    assert refusals[-1]["detail"] == "stored '5', this row says '6'"
    blocks = [path.name for path in parquet.table_files(tmp_path / "out", "rollouts")]
    assert [name.rpartition("-")[2] for name in blocks] == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert blocks[0].startswith("my-traces-")


def test_a_problem_is_stored_once_in_a_run_directory(tmp_path: Path) -> None:
    out = tmp_path / "out"
    bring(out, write(tmp_path / "a.jsonl", sums(3)), write(tmp_path / "b.jsonl", sums(3, start=2)))
    assert [row["answer"] for row in rows(out, "prompts")] == ["1", "3", "5", "7", "9"]
    assert [row["source"] for row in rows(out, "prompts")] == ["a", "a", "a", "b", "b"]


def test_files_of_one_source_that_share_rows_store_them_once(tmp_path: Path) -> None:
    traces = [{"problem": "What is $2 + 3$?", "answer": "5", "model": "m", "completion": str(k)} for k in range(4)]
    (tmp_path / "again").mkdir()
    first, second = write(tmp_path / "a.jsonl", traces[:3]), write(tmp_path / "again/a.jsonl", [*traces[:2], traces[3]])
    root = tmp_path / "out"
    report = bring(root, first, second)
    assert report.sources[1].counts.refused == {"known_rollout": 2}
    stored = rows(root, "rollouts")
    assert sorted(row["response"] for row in stored) == ["0", "1", "2", "3"]
    assert len({row["rollout_id"] for row in stored}) == 4
    assert [row["reason"] for row in rows(root, "refusals")] == ["known_rollout"] * 2
    # The same file in its own place again brings all of its own.
    assert bring(root, second, replace=True, licence="MIT").sources[0].counts.rollouts == 1


def test_another_gold_is_a_conflict_and_the_first_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = [{"problem": "Half of one?", "answer": r"\frac{1}{2}"}, {"problem": "Say it.", "answer": None}]
    later = [
        {"problem": "Half  of one?", "answer": "0.5"},  # the same gold in another form
        {"problem": "Half of one?", "answer": "2"},
        {"problem": "Say it.", "answer": "7"},
    ]
    bring(out, write(tmp_path / "first.jsonl", first))
    counts = bring(out, write(tmp_path / "later.jsonl", later)).sources[0].counts
    assert counts.prompts_known == 1
    assert counts.refused == {"gold_conflict": 1, "gold_late": 1}
    assert [row["answer"] for row in rows(out, "prompts")] == [r"\frac{1}{2}", None]


def test_an_unreadable_gold_is_listed_and_its_problem_stays(tmp_path: Path) -> None:
    prose = "any function that vanishes at infinity and whose derivative is bounded by its own square"
    counts = (
        bring(tmp_path / "out", write(tmp_path / "a.jsonl", [{"problem": "Which?", "answer": prose}])).sources[0].counts
    )
    assert (counts.used, counts.noted) == (1, {"gold_unreadable": 1})
    assert rows(tmp_path / "out", "prompts")[0]["answer"] == prose
    assert rows(tmp_path / "out", "refusals")[0]["detail"] == f"gold_is_prose: {prose}"


def test_the_same_file_again_does_nothing(tmp_path: Path) -> None:
    out, file = tmp_path / "out", write(tmp_path / "a.jsonl", sums(3))
    first = bring(out, file).sources[0]
    manifest = (out / "manifest.json").read_bytes()
    again = bring(out, file, write(tmp_path / "copy.jsonl", sums(3)))
    assert [source.done_before for source in again.sources] == [True, True]
    assert again.sources[0].counts == first.counts
    assert "imported before" in again.lines()[0]
    assert (out / "manifest.json").read_bytes() == manifest


def test_other_settings_and_other_content_need_replace(tmp_path: Path) -> None:
    out, file = tmp_path / "out", write(tmp_path / "a.jsonl", sums(3))
    bring(out, file)
    with pytest.raises(UserError, match="licence: None -> 'MIT'"):
        bring(out, file, licence="MIT")
    bring(out, file, licence="MIT", replace=True)
    assert [row["licence"] for row in rows(out, "prompts")] == ["MIT"] * 3
    write(file, sums(2, start=9))
    with pytest.raises(UserError, match="with other content"):
        bring(out, file)
    bring(out, file, replace=True)
    assert [row["answer"] for row in rows(out, "prompts")] == ["19", "21"]
    assert len([key for key in runner.read_manifest(out)["stages"] if key.startswith("import:")]) == 1


def test_replacing_a_source_keeps_the_problems_that_other_rollouts_need(tmp_path: Path) -> None:
    out, file = tmp_path / "out", write(tmp_path / "a.jsonl", sums(3))
    traces = [{**row, "completion": "hm"} for row in sums(1, start=1)]
    bring(out, file, write(tmp_path / "traces.jsonl", traces))
    write(file, sums(1, start=9))
    bring(out, file, replace=True)
    assert sorted(row["answer"] for row in rows(out, "prompts")) == ["19", "3"]


def test_the_manifest_answers_for_the_stage(tmp_path: Path) -> None:
    from curate.stages.import_ import STAGE

    out = tmp_path / "out"
    bring(out, write(tmp_path / "a.jsonl", sums(3)), write(tmp_path / "b.jsonl", [*sums(2, start=5), "{"]))
    assert runner.state(out, STAGE, Config()) == "done"
    outputs = runner.read_manifest(out)["stages"]["import"]["outputs"]
    assert set(outputs) == set(digests(out))
    assert sum(facts["rows"] for facts in outputs.values()) == 3 + 2 + 1
    next(iter((out / "prompts").glob("a-*.parquet"))).unlink()
    assert runner.state(out, STAGE) == "stale"
    assert [source.done_before for source in bring(out, tmp_path / "a.jsonl").sources] == [False]
    assert runner.state(out, STAGE) == "done"


def test_settings_a_user_can_get_wrong(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", sums(1))
    with pytest.raises(UserError, match="no role"):
        bring(tmp_path / "out", file, map={"question": "problem"})
    with pytest.raises(UserError, match="no verifier"):
        bring(tmp_path / "out", file, verifier="magic")
    with pytest.raises(UserError, match="nothing to import"):
        bring(tmp_path / "out")
    with pytest.raises(UserError, match="has no rows"):
        bring(tmp_path / "out", write(tmp_path / "empty.jsonl", []))
    with pytest.raises(UserError, match="row 0: not_json"):
        bring(tmp_path / "out", write(tmp_path / "broken.jsonl", ["{", "}"]))
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_killed_in_the_middle_and_run_again_equals_run_once(tmp_path: Path) -> None:
    traces = [{**row, "completion": f"<think>\n{'a' * 2000}\n</think>\n{row['answer']}"} for row in sums(3000)]
    file = write(tmp_path / "traces.jsonl", traces)
    code = (
        "import sys; from pathlib import Path; from curate.stages.import_ import ImportConfig, run;"
        "run(Path(sys.argv[1]), ImportConfig(files=(sys.argv[2],), rows_per_file=50))"
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(killed), str(file)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    started = time.monotonic()
    while not list(killed.glob(".import/rollouts/*.parquet")) and time.monotonic() - started < 60:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not digests(killed), "nothing is visible before the end"
    for root in (killed, whole):
        bring(root, file, rows_per_file=50)
    assert digests(killed) == digests(whole)
    assert len(digests(whole)) == 1 + 60
    assert not (killed / ".import").exists()


def test_killed_between_the_last_renames_and_run_again_equals_run_once(tmp_path: Path) -> None:
    out, file = tmp_path / "out", write(tmp_path / "a.jsonl", [{**row, "completion": "hm"} for row in sums(10)])
    bring(out, file, rows_per_file=4)
    whole = digests(out)
    (out / "manifest.json").unlink()
    parquet.table_files(out, "rollouts")[-1].unlink()
    assert bring(out, file, rows_per_file=4).sources[0].counts.prompts_new == 10
    assert digests(out) == whole
    (out / "manifest.json").unlink()
    bring(out, file, rows_per_file=6)
    assert len(parquet.table_files(out, "rollouts")) == 2, "blocks of the unfinished import are gone"


def test_real_rollouts(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "rollouts"
    names = ("math_r1distill_thought_anchors", "misc_small", "theoremqa_4models")
    report = bring(tmp_path / "out", *(folder / f"{name}.jsonl" for name in names))
    counts = [source.counts for source in report.sources]
    assert [(count.rows, count.rollouts) for count in counts] == [(40, 40), (100, 100), (600, 596)]
    assert [count.forms["tags"] for count in counts] == [40, 10, 0]
    assert counts[2].refused == {"empty_completion": 4}
