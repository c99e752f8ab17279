"""Math-Verify's word on what our own layers leave undecided, believed only where it read all that was written.

Its known false positives come from reading part of an answer (`1 + 1/e` as 1) and from rounding to six
decimals. A `True` therefore counts only if each symbol of the text is in what was parsed and, for
numbers, the difference vanishes to fifty digits. Its own time limits are off: the pool kills.
"""

import logging
import re
from functools import lru_cache
from typing import Any

from verifiers import clock
from verifiers.latex import plain

_MAX_CHARS = 600
"""Math-Verify's parser takes seconds on longer text."""
_MAX_NESTING = 30
_POWER = re.compile(r"\^|\\up|!|\*\*")
_MAX_STACKED_POWERS = 2


def equal_by_math_verify(gold: str, answer: str) -> tuple[bool | None, str]:
    """Whether Math-Verify, used with care, takes two answers for equal; None where it cannot be asked or believed."""
    if any(not _askable(text) for text in (gold, answer)):
        return None, "not_asked"
    golds, answers = _parsed(gold), _parsed(answer)
    if not golds or not answers or isinstance(golds[0], str) or isinstance(answers[0], str):
        return None, "math_verify_unreadable"
    try:
        equal = bool(_library().verify(golds, answers, timeout_seconds=None))
        if not equal:
            return False, "math_verify"
        believed = _kept_all(gold, golds) and _kept_all(answer, answers) and _close(golds[0], answers[0])
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, RecursionError, TypeError, ValueError):
        return None, "math_verify_failed"
    return (True, "math_verify") if believed else (None, "math_verify_doubted")


def _askable(text: str) -> bool:
    """Whether a text is short and flat enough to hand to a parser that we cannot bound."""
    if len(text) > _MAX_CHARS or max(text.count("{"), text.count("(")) > _MAX_NESTING:
        return False
    return not re.search(r"\^\s*\{?[^{}^]{0,12}\^\s*\{?[^{}^]{0,12}\^", text) and not re.search(r"\d{300}|!\s*!", text)


@lru_cache(maxsize=1)
def _library() -> Any:
    with clock.current().paused():
        import math_verify

        logging.getLogger("math_verify").setLevel(logging.CRITICAL)
        logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)
    return math_verify


@lru_cache(maxsize=4096)
def _parsed(text: str) -> list[Any]:
    wrapped = text if "$" in text or "\\boxed" in text else f"${text}$"
    try:
        parsed: list[Any] = _library().parse(wrapped, parsing_timeout=None)
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, RecursionError, TypeError, ValueError):
        return []
    return parsed


_QUOTED = re.compile(
    r'"[^"]*"|\\(?:begin|end)\s*\{[a-z]*\}|\\[a-zA-Z]+|(?:sin|cos|tan|sec|csc|cot|ln|log|exp|sqrt|mod)'
)


def _kept_all(text: str, parsed: list[Any]) -> bool:
    """Whether each letter of the text, and each numeral in small answers, is found in what was parsed."""
    spelled = str(parsed[0]).lower()
    letters = set(re.findall(r"[a-z]", _QUOTED.sub(" ", plain(text).rpartition("=")[2]).lower()))
    if "\\int" in text:
        letters.discard("d")
    return letters <= set(spelled)


def _close(gold: Any, answer: Any) -> bool:
    """Whether two numbers agree to fifty digits; what is no number was compared symbolically already."""
    if not (getattr(gold, "is_number", False) and getattr(answer, "is_number", False)):
        return True
    difference = (gold - answer).evalf(50, maxn=400)
    size = max(abs(gold.evalf(20)), abs(answer.evalf(20)))
    return bool(abs(difference) <= size * 10**-12)
