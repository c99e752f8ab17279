"""Each known layout gives its problem, gold and traces; foreign files stream, and bad rows keep their reason."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.conversation import assistant_message, user_message
from pipelines.errors import UserError
from pipelines.fields import BadRow, boxed_answer, option_letter, read_options
from pipelines.foreign import MAX_ROW_BYTES, Row, Unreadable, open_rows
from pipelines.layouts import recognise
from pipelines.rows import Item

ADD = "What is $2 + 3$?"


def read(*rows: dict[str, Any], mapping: dict[str, str] | None = None) -> tuple[str, Item]:
    """The layout that `rows` are recognised as, and the first one read by it."""
    layout, reader = recognise("file", rows, mapping)
    return layout.name, layout.read(rows[0], reader)


# --- layouts --------------------------------------------------------------------------------------


def test_gsm8k_takes_the_gold_as_written_and_strips_the_calculator() -> None:
    answer = "She has 80*900 = <<80*900=72000>>72,000 left.\n#### 72,000"
    name, item = read({"question": ADD, "answer": answer})
    assert name == "gsm8k"
    assert item.problem.answer == "72,000"
    assert item.problem.solution == "She has 80*900 = 72,000 left."


def test_gsm8k_row_without_its_mark_has_no_gold() -> None:
    name, item = read({"question": ADD, "answer": "It is 5."}, {"question": "q", "answer": "a\n#### 5"})
    assert (name, item.problem.answer) == ("gsm8k", None)


def test_math_takes_the_last_box_and_keeps_level_and_type() -> None:
    row = {
        "problem": ADD,
        "solution": r"Not \boxed{4} but $\boxed{\frac{1}{2}}$.",
        "level": "Level 5",
        "type": "Algebra",
    }
    name, item = read(row)
    assert name == "math"
    assert item.problem[2:] == (r"\frac{1}{2}", row["solution"], None, None, None, "Algebra", "Level 5")
    assert read({"problem": ADD, "solution": "By induction."})[1].problem.answer is None


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{a_{n_{1}}}", "a_{n_{1}}"),
        (r"so \boxed 5.", "5"),
        (r"\fbox{7}", "7"),
        (r"\boxed{1", None),
        (r"\boxed{}", None),
        ("no box", None),
    ],
)
def test_boxed_answer(solution: str, answer: str | None) -> None:
    assert boxed_answer(solution) == answer


def test_openr1_gives_every_generation_with_its_label() -> None:
    row = {
        "problem": ADD,
        "answer": "5",
        "solution": r"\boxed{5}",
        "problem_type": "Algebra",
        "uuid": "u1",
        "generations": ["<think>\nadd\n</think>\n5", "still adding", "<think>\nhm", None],
        "correctness_math_verify": [True, False, False, False],
        "is_reasoning_complete": [True, False, True, True],
        "finish_reasons": ["stop", "length", None, None],
    }
    name, item = read(row)
    assert name == "openr1"
    assert (item.problem.answer, item.problem.domain, item.problem.source_id) == ("5", "Algebra", "u1")
    assert [trace.split for trace in item.traces] == [
        ("add", "5", "tags"),
        ("still adding", "", "truncated"),
        ("hm", "", "truncated"),
    ]
    assert [trace.label for trace in item.traces] == [True, False, False]
    assert [trace.finish_reason for trace in item.traces] == ["stop", "length", None]
    assert [fault.reason for fault in item.faults] == ["null_completion"]


def test_a_proof_has_no_gold() -> None:
    assert read({"problem": ADD, "answer": "proof"})[1].problem.answer is None


def test_conversations_lose_the_wrapper_and_have_no_gold() -> None:
    thought = "<|begin_of_thought|>\n\nadd\n\n<|end_of_thought|>\n\n"
    solution = "<|begin_of_solution|>\n\n$\\boxed{5}$\n\n<|end_of_solution|>"
    row = {
        "system": "Your role as an assistant involves thoroughly exploring questions.",
        "conversations": [
            {"from": "user", "value": f"Return your final response within \\boxed{{}}. {ADD}"},
            {"from": "assistant", "value": thought + solution},
        ],
    }
    name, item = read(row)
    assert name == "conversations"
    assert item.problem.text == ADD
    assert item.problem.answer is None
    assert item.traces[0].split == ("add", "$\\boxed{5}$", "delimiter")
    assert item.traces[0].model is None


def test_openthoughts_metadata_keeps_reasoning_in_a_column() -> None:
    row = {
        "problem": ADD,
        "deepseek_reasoning": "add",
        "deepseek_solution": r"\boxed{5}",
        "ground_truth_solution": r"It is \boxed{5}.",
    }
    name, item = read(row)
    assert (name, item.problem.answer) == ("metadata", "5")
    assert item.traces[0].split == ("add", r"\boxed{5}", "column")


def test_s1k_in_both_forms() -> None:
    newer = {
        "question": ADD,
        "solution": "5",
        "deepseek_thinking_trajectory": "add",
        "deepseek_attempt": r"\boxed{5}",
        "deepseek_grade": "Yes",
        "gemini_thinking_trajectory": "hm",
        "gemini_attempt": "6",
        "gemini_grade": "No",
    }
    name, item = read(newer)
    assert (name, item.problem.answer) == ("s1k", "5")
    assert [(trace.split, trace.label) for trace in item.traces] == [
        (("add", r"\boxed{5}", "column"), True),
        (("hm", "6", "column"), False),
    ]
    older = {"question": ADD, "solution": "We add the two.", "thinking_trajectories": ["add", "again"], "attempt": "5"}
    name, item = read(older)
    assert (name, item.problem.answer) == ("s1k", None)  # words are no answer
    assert item.traces[0].split == ("add\n\nagain", "5", "column")


def test_limo_solution_is_a_trace() -> None:
    name, item = read({"question": ADD, "solution": "Okay. 2 + 3 is 5.", "answer": "5"})
    assert (name, item.problem.answer, item.problem.solution) == ("limo", "5", None)
    assert item.traces[0].split.response == "Okay. 2 + 3 is 5."


def test_rollouts_prefer_the_reviewed_label() -> None:
    row = {
        "problem": ADD,
        "completion": "5",
        "gold": "5",
        "model": "m",
        "label": False,
        "label_reviewed": True,
        "id": "7",
    }
    name, item = read(row)
    assert name == "rollouts"
    assert (item.traces[0].label, item.traces[0].model, item.problem.source_id) == (True, "m", "7")
    assert read({**row, "completion": ["5", "", "6"]})[1].faults[0].reason == "empty_completion"


def test_chat_rows_and_our_own_shards() -> None:
    messages = [user_message(ADD), assistant_message("add", "5")]
    name, item = read({"messages": messages, "rollout_id": "r", "prompt_id": "p", "source": "s"})
    assert name == "messages"
    assert item.problem.text == ADD  # our instruction is taken off
    assert item.traces[0].split == ("add", "5", "tags")
    pair = {"prompt": messages[:1], "chosen": messages[1:], "rejected": [assistant_message(None, "6")]}
    name, item = read(pair)
    assert name == "preferences"
    assert [(trace.split.response, trace.label) for trace in item.traces] == [("5", True), ("6", False)]
    asked = {"prompt": [user_message(ADD, ["4", "5"])], "answer": "B", "choices": ["4", "5"], "verifier": "choice"}
    name, item = read(asked)
    assert (name, item.problem.text, item.problem.choices, item.problem.answer) == ("problems", ADD, ("4", "5"), "B")


def test_a_dialogue_of_several_turns_is_refused() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    with pytest.raises(BadRow) as refused:
        read({"messages": turns})
    assert refused.value.reason == "several_turns"


@pytest.mark.parametrize(
    ("choices", "answer", "texts", "letter"),
    [
        (["3", "5", "7"], "B", ("3", "5", "7"), "B"),
        (["3", "5", "7"], 1, ("3", "5", "7"), "B"),
        (["3", "5", "7"], "(C)", ("3", "5", "7"), "C"),
        (["3", "5", "7"], "5", ("3", "5", "7"), "B"),
        (["x", "x"], "x", ("x", "x"), "x"),  # names two options: stays as written
        (["3", "5"], "E", ("3", "5"), "E"),
        (["3", "5"], None, ("3", "5"), None),
        ({"B": "5", "A": "3", "C": None}, "B", ("3", "5"), "B"),
        ({"text": ["3", "5"], "label": ["1", "2"]}, "2", ("3", "5"), "B"),
        ([{"label": "P", "text": "3"}, {"label": "Q", "text": "5"}], "Q", ("3", "5"), "B"),
        (["A)3", "B)5"], "B", ("3", "5"), "B"),
        (["1", "2", "3"], 0, ("1", "2", "3"), "A"),
    ],
)
def test_choices(choices: Any, answer: Any, texts: tuple[str, ...], letter: str | None) -> None:
    item = read({"question": ADD, "choices": choices, "answer": answer})[1]
    assert (item.problem.choices, item.problem.answer) == (texts, letter)


def test_one_option_is_no_choice() -> None:
    assert read_options(["5"]) is None
    assert read_options("5") is None
    options = read_options([1, 2.0, 3.5])
    assert options is not None
    assert options.texts == ("1", "2", "3.5")
    assert option_letter("3.5", options) == "C"


def test_gpqa_order_hides_the_right_answer_and_never_changes() -> None:
    positions = set()
    for number in range(40):
        row = {
            "Question": f"Question {number}?",
            "Correct Answer": "right\n",
            **{f"Incorrect Answer {wrong}": f"wrong {wrong}" for wrong in (1, 2, 3)},
            "Record ID": f"rec{number}",
        }
        name, item = read(row)
        assert name == "gpqa"
        assert item == read(row)[1]
        assert item.problem.answer is not None
        assert item.problem.choices["ABCD".index(item.problem.answer)] == "right"
        positions.add(item.problem.answer)
    assert positions == set("ABCD")


def test_map_names_columns_of_an_unknown_layout() -> None:
    row = {"exercise": ADD, "key": "5", "text": "It is 5.", "model": "m"}
    with pytest.raises(UserError) as unknown:
        read(row)
    assert "`exercise`, `key`, `model`, `text`" in unknown.value.message
    assert "--map problem=COLUMN" in str(unknown.value.hint)
    item = read(row, mapping={"problem": "exercise", "answer": "key", "completion": "text"})[1]
    assert (item.problem.text, item.problem.answer) == (ADD, "5")
    assert (item.traces[0].split.response, item.traces[0].model) == ("It is 5.", "m")
    with pytest.raises(UserError, match="no column `keys`") as wrong:
        read(row, mapping={"problem": "exercise", "answer": "keys"})
    assert "`key`" in str(wrong.value.hint)
    with pytest.raises(UserError, match="no role"):
        read(row, mapping={"question": "exercise"})


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (None, "null_problem"),
        (" \n", "empty_problem"),
        ("\x00\x01\u200b", "unprintable_problem"),
        (5, "not_text_problem"),
    ],
)
def test_a_row_without_a_problem_says_why(problem: Any, reason: str) -> None:
    with pytest.raises(BadRow) as refused:
        read({"problem": problem, "answer": "5"})
    assert refused.value.reason == reason


# --- files ----------------------------------------------------------------------------------------

TABLE = [{"problem": "Was ist 2 + 3?\nIn Worten: „fünf“", "answer": "5"}, {"problem": ADD, "answer": "007"}]


def values(source: Path | str) -> list[dict[str, Any]]:
    return [row.values for row in open_rows(str(source)).read() if isinstance(row, Row)]


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in TABLE)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.json").write_text(json.dumps(TABLE, indent=2))
    (tmp_path / "c.json").write_text(lines)  # JSON lines under another name
    with (tmp_path / "d.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["problem", "answer"])
        writer.writeheader()
        writer.writerows(TABLE)
    pq.write_table(pa.Table.from_pylist(TABLE), tmp_path / "e.parquet")
    for name in ("a.jsonl", "b.json", "d.csv"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    for path in sorted(tmp_path.iterdir()):
        assert values(path) == TABLE, path.name
        assert open_rows(str(path)).name == path.name[0]


def test_folders(tmp_path: Path) -> None:
    hub = tmp_path / "hub" / "data"
    hub.mkdir(parents=True)
    for number, row in enumerate(TABLE):
        pq.write_table(pa.Table.from_pylist([row]), hub / f"train-{number:05}.parquet")
    (tmp_path / "hub" / "dataset_infos.json").write_text("{}")
    assert values(tmp_path / "hub") == TABLE
    saved = datasets.Dataset.from_list(TABLE)
    saved.save_to_disk(str(tmp_path / "saved"))
    assert values(tmp_path / "saved") == TABLE
    datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "splits"))
    assert values(tmp_path / "splits") == TABLE


def test_a_bad_line_is_a_row_with_a_reason(tmp_path: Path) -> None:
    lines = [
        b'{"problem": "a"}',
        b"{not json",
        b"",
        b"[1, 2]",
        b'{"problem": "\xff"}',
        b'{"problem": "' + b"x" * MAX_ROW_BYTES + b'"}',
        b"[" * 100_000,
        b'{"problem": "b"}',
    ]
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(b"\n".join(lines))
    rows = list(open_rows(str(path)).read())
    assert [(row.number, row.reason) for row in rows if isinstance(row, Unreadable)] == [
        (1, "not_json"),
        (3, "not_an_object"),
        (4, "not_utf8"),
        (5, "row_too_long"),
        (6, "not_json"),
    ]
    assert [(row.number, row.values["problem"]) for row in rows if isinstance(row, Row)] == [(0, "a"), (7, "b")]


def test_a_csv_row_with_a_field_too_many_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("problem,answer\na,1\nb,2,3\nc,4\n")
    assert [type(row).__name__ for row in open_rows(str(path)).read()] == ["Row", "Unreadable", "Row"]


def test_a_long_json_array_streams(tmp_path: Path) -> None:
    rows = [{"problem": "é" * 1000, "number": number} for number in range(3000)]
    path = tmp_path / "long.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1))
    assert values(path) == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.parquet", b"PAR1 but not really", "not a readable Parquet file"),
        ("broken.jsonl.gz", gzip.compress(b'{"problem": "a"}\n' * 10_000)[:-20], "cannot read"),
        ("broken.json", b'[{"problem": "a"}, {"problem": ', "not valid JSON"),
        ("words.json", b"problem: a", "neither a JSON array nor JSON lines"),
        ("notes.txt", b"a", "is none of"),
    ],
)
def test_an_unreadable_file_is_one_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        values(path)
    assert "\n" not in error.value.message


def test_a_missing_file_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file or folder"):
        open_rows(str(tmp_path / "missing.jsonl"))
    with pytest.raises(UserError, match="no Parquet, JSON or CSV files"):
        open_rows(str(tmp_path))
