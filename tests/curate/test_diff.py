"""`curate diff`: what changed between two directories, by id and with reasons."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from run_directories import small_run, write_rows

from curate.diff import Diff, TableDiff, diff, draw_diff, render
from curate.stages.publish import publish
from pipelines import parquet


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Diff:
    """One verdict other, one problem of four rollouts more."""
    folder = tmp_path_factory.mktemp("runs")
    return diff(small_run(folder / "a"), small_run(folder / "b", changed=True))


def table(found: Diff, name: str) -> TableDiff:
    return next(table for table in found.tables if table.table == name)


def reasons(found: Diff, name: str) -> set[tuple[str, str, int]]:
    return {(reason.what, reason.reason, reason.rows) for reason in table(found, name).reasons}


def test_rows_are_counted_by_id(found: Diff):
    verdicts = table(found, "verdicts")
    assert (verdicts.before, verdicts.after, verdicts.added, verdicts.removed, verdicts.changed) == (24, 28, 4, 0, 1)
    prompts = table(found, "prompts")
    assert (prompts.added, prompts.removed, prompts.changed, prompts.reasons) == (1, 0, 0, ())


def test_a_changed_verdict_says_so(found: Diff):
    assert ("changed", "verdict correct → incorrect", 1) in reasons(found, "verdicts")


def test_changed_columns_are_named(found: Diff):
    assert {("changed", "response", 1), ("changed", "reasoning", 1)} <= reasons(found, "rollouts")


def test_a_row_that_left_a_shard_says_why(found: Diff):
    assert ("removed", "now refused: incorrect", 1) in reasons(found, "sft")
    assert ("added", "new", 3) in reasons(found, "sft")
    assert ("added", "was refused: unanimous", 1) in reasons(found, "dpo")


def test_the_other_way_round(tmp_path: Path):
    found = diff(small_run(tmp_path / "a", changed=True), small_run(tmp_path / "b"))
    assert ("removed", "gone from the tables", 3) in reasons(found, "sft")
    assert ("added", "was refused: incorrect", 1) in reasons(found, "sft")
    assert table(found, "rollouts").removed == 4


def test_file_layout_does_not_matter(tmp_path: Path):
    run, other = small_run(tmp_path / "a"), small_run(tmp_path / "b")
    rows = parquet.read_table(other / "rollouts/00000.parquet", "rollouts").to_pylist()
    (other / "rollouts/00000.parquet").unlink()
    write_rows(other, "rollouts", rows[10:], "00000")
    write_rows(other, "rollouts", rows[:10], "00001")
    assert diff(run, other).empty


def test_an_empty_directory_has_lost_everything(tmp_path: Path):
    run = small_run(tmp_path / "a")
    (tmp_path / "b").mkdir()
    found = diff(run, tmp_path / "b")
    assert all(table.removed == table.before and table.after == 0 for table in found.tables)
    assert table(found, "rollouts").removed == 24


def test_published_versions_go_by_their_names(tmp_path: Path):
    publish(small_run(tmp_path / "a"), str(tmp_path / "sets/sums"), "1.0.0")
    publish(small_run(tmp_path / "b", changed=True), str(tmp_path / "sets/sums"), "1.1.0")
    found = diff(tmp_path / "sets/sums/1.0.0", tmp_path / "sets/sums/1.1.0")
    assert (found.a, found.b) == ("sums@1.0.0", "sums@1.1.0")
    assert not found.empty


def test_forms(found: Diff):
    assert json.loads(render(found, "json"))["tables"][2]["reasons"]
    text = render(found, "text").splitlines()
    assert text[2].split() == ["table", "before", "after", "added", "removed", "changed"]
    markdown = render(found, "markdown")
    assert "| verdicts | 24 | 28 | 4 | 0 | 1 |" in markdown
    assert "| verdicts | changed | verdict correct → incorrect | 1 |" in markdown


def test_rows_are_counted_by_stage_and_source(found: Diff):
    counts = {(row["stage"], row["source"]): (row["before"], row["after"]) for row in found.shards}
    assert counts["rl", "sums"] == (3, 4)
    assert sum(before for (stage, _), (before, _) in counts.items() if stage == "sft") == 7
    assert "| sft | sums |" in render(found, "markdown")


def test_columns_that_came_or_went_are_named(tmp_path: Path):
    a, b = small_run(tmp_path / "a"), small_run(tmp_path / "b")
    assert diff(a, b).schemas == ()
    path = b / "refusals/00000.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.append_column("severity", [["high"] * rows.num_rows]), path)
    assert diff(a, b).schemas == ("`refusals` gained column `severity` (string)",)
    assert diff(b, a).schemas == ("`refusals` lost column `severity`",)
    assert "- `refusals` gained column" in render(diff(a, b), "markdown")


def test_the_picture_is_drawn_the_same_each_time(found: Diff, tmp_path: Path):
    first = draw_diff(found, tmp_path / "one.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert draw_diff(found, tmp_path / "two.png").read_bytes() == first
