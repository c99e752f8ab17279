"""Benchmarks come from a file, a named copy, a folder of copies, or the hub; the last is not reached here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.benchmarks import BENCHMARKS, FOLDER_VARIABLE, load_benchmark
from pipelines.errors import UserError
from pipelines.tables import PROMPTS

ROWS = [{"problem": "What is $2 + 3$?", "answer": "5", "id": "a"}, {"problem": "What is $2 + 4$?", "answer": 6}]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_under_its_own_name_and_under_another(tmp_path: Path) -> None:
    path = write(tmp_path / "sums.jsonl", [*ROWS, ROWS[0]])
    table = load_benchmark(str(path), need_answers=True)
    assert table.schema == PROMPTS
    assert table["answer"].to_pylist() == ["5", "6"]  # the repeated problem stands once
    assert table["source"].to_pylist() == ["sums", "sums"]
    assert table["source_id"].to_pylist() == ["a", "row 1"]
    assert load_benchmark(f"math500={path}")["source"].to_pylist() == ["math500", "math500"]


def test_a_folder_of_copies_is_looked_into_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "aime24.jsonl", ROWS)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert load_benchmark("aime24").num_rows == 2
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "missing"))
    with pytest.raises(UserError, match="no folder"):
        load_benchmark("aime24")


def test_missing_answers_are_refused_where_they_are_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "sums.jsonl", [*ROWS, {"problem": "What is $0/0$?"}])
    assert load_benchmark(str(path)).num_rows == 3
    with pytest.raises(UserError, match="1 of 3 problems have no reference answer"):
        load_benchmark(str(path), need_answers=True)


def test_a_benchmark_with_a_hole_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "sums.jsonl", [*ROWS, {"problem": " ", "answer": "1"}])
    with pytest.raises(UserError, match="row 2: empty_problem"):
        load_benchmark(str(path))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError) as error:
        load_benchmark("aime1924")
    assert "aime24" in str(error.value.hint)


def test_without_a_network_the_hub_is_one_sentence(tmp_path: Path) -> None:
    code = (
        "from pipelines.benchmarks import load_benchmark; from pipelines.errors import UserError\n"
        "try: load_benchmark('math500')\n"
        "except UserError as error: print(error.message, error.hint, sep='|', end='')"
    )
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    environment = {key: value for key, value in os.environ.items() if key != FOLDER_VARIABLE} | offline
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    message, hint = run.stdout.split("|")
    assert message.startswith("cannot load `hf:HuggingFaceH4/MATH-500::test` from the hub: ")
    assert "\n" not in run.stdout
    assert "local copy" in hint


def test_the_copies_beside_the_checkout_are_whole(shared_data: Path) -> None:
    files = {"olympiadbench": "olympiadbench_oe_maths_en", "gsm8k": "gsm8k_test"}
    for name in ("aime24", "aime25", "amc23", "math500", "gsm8k"):
        path = shared_data / "problems" / f"{files.get(name, name)}.jsonl"
        table = load_benchmark(f"{name}={path}", need_answers=True)
        assert table.num_rows == BENCHMARKS[name].problems, name
