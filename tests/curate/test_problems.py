"""Problems of the pocket world are right, different from one another, and the same for a seed."""

import ast
import json
import operator
import random

import pytest

from curate.problems import LARGEST, LEVELS, TELLERS, Problem, Step, write_problem_file, write_problems
from curate.traces import STRATEGIES, work_step, write_columns, write_lesson, write_trace
from pipelines.conversation import assistant_message

PROBLEM = Problem("Compute (41-27)*3.", 42, "expression", 41, (Step("-", 27), Step("*", 3)))


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def value_of(tree: ast.expr) -> int:
    """Value of an arithmetic expression, by Python's own reading of brackets and precedence."""
    if isinstance(tree, ast.BinOp):
        return OPERATORS[type(tree.op)](value_of(tree.left), value_of(tree.right))
    assert isinstance(tree, ast.Constant)
    return int(tree.value)


def test_problems_are_reproducible_and_all_different():
    problems = write_problems(7, 500, [2, 3, 4])
    assert problems == write_problems(7, 500, [2, 3, 4])
    assert len({problem.text for problem in problems}) == 500
    assert [problem.level for problem in problems[:4]] == [2, 3, 4, 2]
    assert {problem.domain for problem in problems} == set(TELLERS)


def test_answers_follow_from_the_steps_and_stay_in_range():
    for problem in write_problems(3, 500, sorted(LEVELS)):
        value = problem.start
        for step in problem.steps:
            value = step.of(value)
            assert 10 <= value <= LARGEST
            assert 1 < step.operand <= LARGEST
            assert str(step.operand) in problem.text
        assert value == problem.answer


def test_expressions_evaluate_to_the_answer():
    expressions = [problem for problem in write_problems(5, 200, [1, 2, 3]) if problem.domain == "expression"]
    for problem in expressions:
        inner = problem.text.split(" ")[-1].removesuffix(".")
        assert set(inner) <= set("0123456789()+-*")
        assert value_of(ast.parse(inner, mode="eval").body) == problem.answer


def test_held_out_problems_are_not_among_the_others(tmp_path):
    train = write_problem_file(tmp_path / "train.jsonl", count=300, levels=[1], seed=1)
    texts = {problem.text for problem in train}
    held_out = write_problem_file(tmp_path / "test.jsonl", count=300, levels=[1], seed=1, exclude=texts)
    assert not texts & {problem.text for problem in held_out}
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [row["problem"] for row in rows] == [problem.text for problem in train]
    assert set(rows[0]) == {"id", "problem", "answer", "level", "domain"}
    assert len({row["id"] for row in rows}) == 300


@pytest.mark.parametrize(
    ("value", "step", "columns"),
    [
        (238, Step("+", 167), ["8+7=15", "3+6+1=10", "2+1+1=4"]),
        (41, Step("-", 27), ["11-7=4", "4-2-1=1"]),
        (405, Step("-", 167), ["15-7=8", "10-6-1=3", "4-1-1=2"]),
        (117, Step("*", 7), ["7*7=49", "1*7+4=11", "1*7+1=8"]),
        (14, Step("+", 626), ["4+6=10", "1+2+1=4", "0+6=6"]),
    ],
)
def test_columns_are_worked_by_hand(value, step, columns):
    assert write_columns(value, step) == columns


def test_columns_spell_the_result():
    rng = random.Random(0)
    for problem in write_problems(11, 300, [1]):
        step = problem.steps[0]
        results = [column.rpartition("=")[2] for column in write_columns(problem.start, step)]
        digits = "".join([results[-1], *(result[-1] for result in reversed(results[:-1]))])
        assert int(digits) == problem.answer
        assert work_step(problem.start, step, "checked", rng).endswith(str(problem.answer))


@pytest.mark.parametrize("strategy", [*STRATEGIES, "endless"])
def test_traces_end_in_the_right_answer(strategy):
    reasoning, response = write_trace(PROBLEM, strategy, random.Random(1))
    assert response == r"\boxed{42}"
    assert "14" in reasoning
    assert reasoning.split()[-1] == "42" or reasoning.endswith("=42")
    assert "<think>" in assistant_message(reasoning, response)["content"]


def test_a_careful_trace_reads_as_written_by_hand():
    assert work_step(41, Step("-", 27), "careful", random.Random(0)) == "41-27: 11-7=4, 4-2-1=1: 14"
    assert work_step(41, Step("-", 27), "short", random.Random(0)) == "41-27=14"


def test_a_found_slip_is_taken_back():
    rng = random.Random(0)
    lines = {work_step(14, Step("*", 3), "checked", rng) for _ in range(50)}
    slips = {line for line in lines if "Wait" in line}
    assert "14*3=42, check: 4*3=12, 1*3+1=4: 42" in lines
    assert slips
    assert all(line.endswith("Wait, 42") and not line.startswith("14*3=42,") for line in slips)


def test_a_guess_is_wrong_and_an_endless_trace_is_long():
    reasoning, response = write_trace(PROBLEM, "guessing", random.Random(2))
    assert "guess" in reasoning
    assert response != r"\boxed{42}"
    endless, _ = write_trace(PROBLEM, "endless", random.Random(2))
    assert endless.count("check again") > 30


def test_lessons_ask_for_what_they_answer():
    rng = random.Random(4)
    for _ in range(50):
        question, answer = write_lesson(rng)
        tasks = question.removesuffix(".").partition(": ")[2].split(", ")
        lines = answer.split("\n")
        assert [line.replace("=", ":").partition(":")[0] for line in lines] == tasks
        assert all((": " in line) == ("columns" in question) for line in lines)
