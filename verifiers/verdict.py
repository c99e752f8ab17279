"""What a verifier says, and what a trainer makes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """The six things a verifier can say; only the first two are about the mathematics."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    NO_ANSWER = "no_answer"
    """The response states no final answer."""
    TIMEOUT = "timeout"
    """Deciding took too long or killed its worker; neither right nor wrong."""
    GOLD_UNREADABLE = "gold_unreadable"
    """The reference answer cannot be read; neither right nor wrong."""
    UNDECIDED = "undecided"
    """No rule decides; a judge may."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One verifier's word on one response."""

    outcome: Outcome
    extracted: str | None
    """The final answer as written in the response."""
    rule: str
    """What decided, as `extraction:comparison`, e.g. `boxed:exact_number`."""
    verifier: str
    """Name and version, e.g. `mathematics@3`."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a verifier judges against: the reference answer, and the options of a multiple choice."""

    answer: str
    choices: tuple[str, ...] = ()


Verifier = Callable[[Question, str], Verdict]
"""`(question, response) -> verdict`; `response` is what follows the reasoning."""


VERSIONS: dict[str, str] = {
    "mathematics": "mathematics@3",
    "choice": "choice@2",
    "judge": "judge@1",
    "math_verify": "math_verify@1",
}
"""Name and version of each verifier; the version grows with any change that alters a verdict."""


def reward(outcome: Outcome) -> float | None:
    """+1 for correct, -1 for incorrect or no answer (arXiv:2504.21233, section 4); None leaves the rollout out.

    A timeout, an unreadable gold and an undecided case say nothing about the policy.
    """
    if outcome is Outcome.CORRECT:
        return 1.0
    if outcome in (Outcome.INCORRECT, Outcome.NO_ANSWER):
        return -1.0
    return None
