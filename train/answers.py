"""Which samples of a problem give the same answer: the votes that a majority is counted from."""

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from train.prompts import Prompt
from verifiers import Job, Outcome, Question, VerifierPool

_NUMBER = re.compile(r"-?\d{1,30}(?:\.\d{1,30})?|-?\d{1,30}/0{0,30}[1-9]\d{0,29}")


def answer_votes(
    extracted_PS: Sequence[Sequence[str | None]],
    correct_PS: NDArray[np.bool_],
    prompts: Sequence[Prompt],
    pool: VerifierPool,
) -> NDArray[np.int64]:
    r"""The class of each sample's answer, shape (P, S): 0 for the correct one, -1 for no answer.

    Wrong answers are one class where they are the same number, or where the problem's verifier,
    given one as the reference, accepts the other: `0.5` and `\frac12` vote together.
    """
    answers_P = [
        sorted({text.strip() for text, right in zip(texts, correct_S, strict=True) if text is not None and not right})
        for texts, correct_S in zip(extracted_PS, correct_PS, strict=True)
    ]
    classes_P = [{answer: index + 1 for index, answer in enumerate(answers)} for answers in answers_P]
    for problem, first, second in _equal_pairs(answers_P, prompts, pool):
        _merge(classes_P[problem], first, second)
    votes_PS = np.full(correct_PS.shape, -1, dtype=np.int64)
    votes_PS[correct_PS] = 0
    for problem, sample in zip(*np.nonzero(~correct_PS), strict=True):
        text = extracted_PS[problem][sample]
        if text is not None:
            votes_PS[problem, sample] = classes_P[problem][text.strip()]
    return votes_PS


def _equal_pairs(
    answers_P: Sequence[Sequence[str]], prompts: Sequence[Prompt], pool: VerifierPool
) -> list[tuple[int, str, str]]:
    """Pairs of different texts that are the same answer, with their problem's index."""
    pairs = [
        (problem, first, second)
        for problem, answers in enumerate(answers_P)
        for first, second in combinations(answers, 2)
    ]
    numbers = {answer: plain_number(answer) for answers in answers_P for answer in answers}
    # Most answers are plain numbers: comparing those needs no verifier.
    plain = [numbers[first] is not None and numbers[second] is not None for _, first, second in pairs]
    judged = [pair for pair, is_plain in zip(pairs, plain, strict=True) if not is_plain]
    jobs = (
        Job(prompts[problem].verifier, Question(first, prompts[problem].question.choices), rf"\boxed{{{second}}}")
        for problem, first, second in judged
    )
    equal = [
        pair for pair, is_plain in zip(pairs, plain, strict=True) if is_plain and numbers[pair[1]] == numbers[pair[2]]
    ]
    accepted = [
        pair for pair, verdict in zip(judged, pool.verify(jobs), strict=True) if verdict.outcome is Outcome.CORRECT
    ]
    return equal + accepted


def plain_number(text: str) -> Fraction | None:
    """The value of an integer, decimal or fraction written in digits; None for anything else."""
    return Fraction(text) if _NUMBER.fullmatch(text) else None


def _merge(classes: dict[str, int], first: str, second: str) -> None:
    """Make the classes of two answers one."""
    gone, kept = classes[second], classes[first]
    for answer, number in classes.items():
        if number == gone:
            classes[answer] = kept
