"""Second opinion: what Math-Verify says of a response, as its users call it.

It reads the whole response with its own extraction, so its word is independent of ours. It is recorded where it
differs and changes no verdict: it has known false positives. Its own time limits are off: the pool kills.
"""

from functools import lru_cache
from typing import Any

from verifiers.extraction import final_part
from verifiers.mathematics import reference_answer, storable
from verifiers.symbolic import FAILURES, library, parsed
from verifiers.verdict import VERSIONS, Outcome, Question, Verdict

NAME = VERSIONS["math_verify"]
_RESPONSE_CHARS = 20_000
"""Math-Verify reads so much of a response's end: an answer stands there."""
_SHOWN_CHARS = 300


def verify(question: Question, response: str) -> Verdict:
    """Math-Verify's verdict; `undecided` where it fails."""
    text = final_part(response)
    if text is None:
        return Verdict(Outcome.NO_ANSWER, None, "unclosed_reasoning", NAME)
    golds = _parsed_gold(question.answer)
    if not golds:
        return Verdict(Outcome.GOLD_UNREADABLE, None, "gold_unparsed", NAME)
    answers = parsed(text[-_RESPONSE_CHARS:])
    if not answers:
        return Verdict(Outcome.NO_ANSWER, None, "unparsed", NAME)
    extracted = storable(answers[-1])[:_SHOWN_CHARS] if isinstance(answers[-1], str) else None
    try:
        equal = bool(library().verify(golds, answers, timeout_seconds=None))
    except FAILURES:
        return Verdict(Outcome.UNDECIDED, extracted, "failed", NAME)
    return Verdict(Outcome.CORRECT if equal else Outcome.INCORRECT, extracted, "math_verify", NAME)


@lru_cache(maxsize=4096)
def _parsed_gold(gold: str) -> list[Any]:
    reference = reference_answer(gold)
    # Bare LaTeX is read in part only: `3\\pi` as 3.
    return parsed(reference if "$" in reference else f"\\boxed{{{reference}}}")
