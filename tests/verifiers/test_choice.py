r"""Multiple choice: the letter in its dresses, the option's text and value, and letters that are no choice."""

import pytest

from verifiers import Outcome, Question, gold_fault
from verifiers.choice import verify

OPTIONS = ("12", r"\frac{1}{2}", "the red one", "12.5")

RIGHT = [
    ("B", "The answer is (B)."),
    ("B", r"\boxed{\text{B}}"),
    ("B", r"\boxed{(B)}"),
    ("B", "Answer: B"),
    ("B", "**Answer:** **B**"),
    ("C", r"A quick note. The final answer is \boxed{C}"),
    ("D", "The answer is for sure D, it can't be A or B"),
    ("D", "D. it can't be A or B"),
    ("B", "Let's see. It's not A because it makes no sense, therefore I think it's B"),
    ("C", "réponse est C non A"),
    ("B", "B不是 A"),
    ("(C) the red one", "C"),
    ("B", r"so the result is \boxed{0.5}"),
    ("C", "The answer is the red one."),
    ("A", "Answer: A"),
    ("B", "The answer is (B).\n\nQuestion: another one? The answer is (C)."),
]

WRONG = [
    ("A", "The answer is (B)."),
    ("B", r"\boxed{\text{A}}"),
    ("A", "The answer is a number that I cannot find; the correct option is B."),
    ("A", "A quick note. The final answer is \\boxed{C}"),
    ("A", "The answer is not A but B."),
    ("D", r"so the result is \boxed{0.5}"),
    ("A", r"\boxed{12.5}"),
    ("B", r"\boxed{99}"),
]

SILENT = [
    ("A", "A quick look at the problem shows that it is hard."),
    ("A", ""),
    ("B", "<think> it is B"),
    ("A", "I am not sure about this one."),
]


@pytest.mark.parametrize(("gold", "response"), RIGHT)
def test_the_chosen_option_is_correct(gold: str, response: str) -> None:
    assert verify(Question(gold, OPTIONS), response).outcome is Outcome.CORRECT


@pytest.mark.parametrize(("gold", "response"), WRONG)
def test_another_option_is_incorrect(gold: str, response: str) -> None:
    assert verify(Question(gold, OPTIONS), response).outcome is Outcome.INCORRECT


@pytest.mark.parametrize(("gold", "response"), SILENT)
def test_no_choice_is_no_answer(gold: str, response: str) -> None:
    assert verify(Question(gold, OPTIONS), response).outcome is Outcome.NO_ANSWER


def test_permuted_options_move_the_verdict() -> None:
    response = r"\boxed{0.5}"
    assert verify(Question("B", OPTIONS), response).outcome is Outcome.CORRECT
    assert verify(Question("B", OPTIONS[::-1]), response).outcome is Outcome.INCORRECT
    assert verify(Question("C", OPTIONS[::-1]), response).outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    ("answer", "fault"), [("", "no_gold"), ("Z", "gold_names_no_option"), ("B", None), ("12", None)]
)
def test_a_reference_names_an_option(answer: str, fault: str | None) -> None:
    assert gold_fault("choice", Question(answer, OPTIONS)) == fault
