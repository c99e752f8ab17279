"""Verify: labels beside rollouts, resumed file by file, nothing lost."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curate.stages.verify import VerifyConfig, run, verdict_counts
from pipelines import parquet
from pipelines.errors import UserError
from pipelines.tables import PROMPTS, ROLLOUTS


def prompt(name: str, answer: str | None, verifier: str = "mathematics", choices: list[str] | None = None) -> Any:
    empty = dict.fromkeys(PROMPTS.names)
    fields = {"prompt_id": name, "problem": name, "answer": answer, "verifier": verifier, "choices": choices}
    return {**empty, **fields, "source": "test", "source_id": name}


def rollout(name: str, prompt_id: str, response: str, reasoning: str | None = None) -> Any:
    empty = dict.fromkeys(ROLLOUTS.names)
    fields = {"rollout_id": name, "prompt_id": prompt_id, "response": response, "reasoning": reasoning}
    rest = {"model": "m", "sample_index": 0, "sampling_id": "s", "reasoning_form": "none", "source": "test"}
    return {**empty, **rest, **fields}


def write(root: Path, table: str, rows: list[Any], name: str = "00000") -> None:
    schema = {"prompts": PROMPTS, "rollouts": ROLLOUTS}[table]
    parquet.write_file(root / table / f"{name}.parquet", table, [pa.Table.from_pylist(rows, schema=schema)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(
        tmp_path,
        "prompts",
        [
            prompt("half", r"\frac{1}{2}"),
            prompt("pick", "B", "choice", ["1", "2"]),
            prompt("open", None),
            prompt("prose", "It depends on how many of the other players have already left the table"),
        ],
    )
    write(
        tmp_path,
        "rollouts",
        [
            rollout("r0", "half", r"\boxed{0.5}"),
            rollout("r1", "open", r"\boxed{0.5}"),
            rollout("r2", "half", r"\boxed{0.25}"),
            rollout("r3", "pick", "Answer: B"),
            rollout("r4", "half", "", reasoning=r"so \boxed{0.5}"),
            rollout("r5", "prose", "It depends."),
            rollout("r6", "gone", r"\boxed{1}"),
        ],
    )
    write(tmp_path, "rollouts", [rollout("r7", "half", "1/2")], "00001")
    return tmp_path


def labels(root: Path) -> list[tuple[str, str, str]]:
    table = parquet.read_table(parquet.table_files(root, "verdicts"), "verdicts")
    return [(row["rollout_id"], row["verdict"], row["rule"]) for row in table.to_pylist()]


def test_each_rollout_gets_its_verdict_in_order(root: Path) -> None:
    outcome = run(root, VerifyConfig(), workers=0)
    assert labels(root) == [
        ("r0", "correct", "boxed:exact_number"),
        ("r1", "gold_unreadable", "no_gold"),
        ("r2", "incorrect", "boxed:exact_number"),
        ("r3", "correct", "stated:letter"),
        ("r4", "no_answer", "nothing_stated"),
        ("r5", "gold_unreadable", "gold_is_prose"),
        ("r6", "gold_unreadable", "no_gold"),
        ("r7", "correct", "whole:same_reading"),
    ]
    assert (outcome.made, outcome.rows) == (2, 8)
    counts = verdict_counts(root)
    assert sum(counts.values()) == 8
    assert counts == {
        "correct": 3,
        "incorrect": 1,
        "no_answer": 1,
        "timeout": 0,
        "gold_unreadable": 3,
        "undecided": 0,
    }


def test_processes_and_their_number_change_nothing(root: Path) -> None:
    run(root, VerifyConfig(), workers=0)
    files = {path.name: path.read_bytes() for path in parquet.table_files(root, "verdicts")}
    again = run(root, VerifyConfig(), workers=1)
    assert (again.made, again.kept) == (0, 2)
    for path in parquet.table_files(root, "verdicts"):
        path.unlink()
    run(root, VerifyConfig(), workers=2)
    assert {path.name: path.read_bytes() for path in parquet.table_files(root, "verdicts")} == files


def test_resumed_halfway_equals_run_once(root: Path) -> None:
    run(root, VerifyConfig(), workers=0)
    files = {path.name: path.read_bytes() for path in parquet.table_files(root, "verdicts")}
    (root / "verdicts" / "00001.parquet").unlink()
    outcome = run(root, VerifyConfig(), workers=0)
    assert (outcome.made, outcome.kept) == (1, 1)
    assert {path.name: path.read_bytes() for path in parquet.table_files(root, "verdicts")} == files


def test_new_references_make_new_verdicts(root: Path) -> None:
    run(root, VerifyConfig(), workers=0)
    write(root, "prompts", [prompt("half", "0.25")])
    run(root, VerifyConfig(), workers=0)
    assert [verdict for name, verdict, _ in labels(root) if name in ("r0", "r2")] == ["incorrect", "correct"]


def test_another_deadline_is_refused(root: Path) -> None:
    run(root, VerifyConfig(), workers=0)
    with pytest.raises(UserError, match=r"timeout_s: 5\.0 -> 9\.0"):
        run(root, VerifyConfig(timeout_s=9.0), workers=0)


def test_a_directory_without_prompts_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no Parquet files in"):
        run(tmp_path, VerifyConfig(), workers=0)


def test_an_unknown_verifier_is_named(root: Path) -> None:
    write(root, "prompts", [prompt("half", "0.5", verifier="guesswork")])
    with pytest.raises(UserError, match="names the verifier `guesswork`"):
        run(root, VerifyConfig(), workers=0)
