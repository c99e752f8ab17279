from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from train.answers import answer_votes, plain_number
from train.prompts import Prompt
from verifiers import Question, VerifierPool


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(num_workers=1) as pool:
        yield pool


def votes_of(extracted, correct, pool, verifier="mathematics", choices=()):
    prompt = Prompt("p", (), verifier, Question("42", choices))
    return answer_votes([extracted], np.array([correct]), [prompt], pool)[0].tolist()


def test_correct_answers_are_one_class_and_no_answer_is_none(pool):
    votes = votes_of(["42", "42.0", None, "7"], [True, True, False, False], pool)
    assert votes == [0, 0, -1, 1]


@pytest.mark.parametrize(
    ("answers", "classes"),
    [
        (["7", "7.0", "8", " 7 "], 2),
        (["1/2", "0.5", r"\frac{1}{2}", r"\dfrac12"], 1),
        (["x+1", "1+x", "x+2"], 2),
        (["1e9", "not a number at all", "7"], 3),
    ],
)
def test_equal_wrong_answers_vote_together(pool, answers, classes):
    votes = votes_of(answers, [False] * len(answers), pool)
    assert len(set(votes)) == classes
    assert min(votes) > 0, "nobody is counted as right or as silent"


def test_letters_of_a_choice_are_not_mixed_up(pool):
    votes = votes_of(["A", "B", "A"], [False, False, False], pool, "choice", ("3", "4", "5"))
    assert votes[0] == votes[2] != votes[1]


def test_problems_do_not_share_classes_by_accident(pool):
    prompts = [Prompt(name, (), "mathematics", Question("1")) for name in ("p", "q")]
    votes = answer_votes([["5", "6"], ["6", "6"]], np.zeros((2, 2), dtype=bool), prompts, pool)
    assert votes[0, 0] != votes[0, 1]
    assert votes[1, 0] == votes[1, 1]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-7", Fraction(-7)),
        ("0.50", Fraction(1, 2)),
        ("3/6", Fraction(1, 2)),
        ("1/0", None),
        ("1e999999", None),
        ("x", None),
    ],
)
def test_plain_number(text, value):
    assert plain_number(text) == value
