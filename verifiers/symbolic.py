"""Math-Verify's word on what our own layers leave undecided, believed only where it read all that was written.

Its known false positives come from reading part of an answer (`1 + 1/e` as 1) and from rounding to six
decimals. A `True` therefore counts only if each symbol of the text is in what was parsed and, for
numbers, the difference vanishes to thirty digits. Its own time limits are off: the pool kills.
"""

import logging
import re
from functools import lru_cache
from typing import Any

from verifiers import clock
from verifiers.latex import plain

FAILURES = (ArithmeticError, AttributeError, LookupError, NotImplementedError, RecursionError, TypeError, ValueError)
"""What Math-Verify and sympy raise on text that they cannot handle."""
_MAX_CHARS = 600
"""Math-Verify's parser takes seconds on longer text."""
_MAX_NESTING = 8
_MAX_UNCLOSED = 2
_HUGE = re.compile(
    r"[0-9]\s*[eE]\s*[+-]?[0-9]{3}|[0-9]{300}|[0-9]{4}\s*!|!\s*!"
    r"|\^\s*\{?\s*[-+]?\s*[0-9]{4}|\^\s*\{?[-+0-9.\s]+\^\s*\{?[-+]?\s*[0-9]"  # 2^{12345}, 9^{9^9}
    r"|\^\s*\{?[^{}^]{0,12}\^\s*\{?[^{}^]{0,12}\^|([a-zA-Z])\1{4}"
)
_GROWS = re.compile(r"[)}\]|]\s*!(?!=)|binom|choose|Gamma|\\(?:sum|prod|int|lim)|\\(?:sin|cos|tan|exp|log|ln)h?")
_LARGE = re.compile(r"[0-9]{5}|[0-9)}\]]\s*\^\s*\{?\s*[0-9]{2}|\)\s*\^.*\^")
"""What no answer holds beside one of `_GROWS`, and what its simplifier may write out in full there."""
_SIDE_BY_SIDE = re.compile(r"(?<![\^_0-9])[0-9]+\s+[0-9]")
"""Numbers that nothing joins make its parser try every grouping; `\\int_0^1 9x` has a limit and a factor."""


def equal_by_math_verify(gold: str, answer: str) -> tuple[bool | None, str]:
    """Whether Math-Verify, used with care, takes two answers for equal; None where it cannot be asked or believed."""
    if any(not _askable(text) for text in (gold, answer)):
        return None, "not_asked"
    says_no_number = bool(_letters(answer)) or not any(map(str.isdigit, answer))
    if says_no_number and _NUMBER.fullmatch(plain(gold)) and not _BINDS.search(answer):
        # The library takes a tenth of a second to say that what has a variable or only words in it is no number.
        return False, "no_number"
    golds, answers = _parsed_whole(gold), _parsed_whole(answer)
    if not golds or not answers or isinstance(golds[0], str) or isinstance(answers[0], str):
        return None, "math_verify_unreadable"
    try:
        if not library().verify(golds, answers, timeout_seconds=None):
            return False, "math_verify"
        believed = _kept_all(gold, golds) and _kept_all(answer, answers) and _close(golds[0], answers[0])
    except FAILURES:
        return None, "math_verify_failed"
    return (True, "math_verify") if believed else (None, "math_verify_doubted")


def _askable(text: str) -> bool:
    """Whether a text is short, flat and small enough to hand to a parser and a simplifier that we cannot bound."""
    if len(text) > _MAX_CHARS or text.count("|") > _MAX_NESTING or not _is_flat(text):
        return False
    if not any(map(str.isalnum, text)):
        return False
    if _SIDE_BY_SIDE.search(text) or _HUGE.search(text):
        return False
    return not (_GROWS.search(text) and _LARGE.search(text))


def _is_flat(text: str) -> bool:
    """Whether brackets are few deep and about balanced: the parser's time doubles with each level."""
    depth = deepest = lowest = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        deepest, lowest = max(deepest, depth), min(lowest, depth)
    return deepest <= _MAX_NESTING and lowest >= -_MAX_UNCLOSED and depth <= _MAX_UNCLOSED


@lru_cache(maxsize=1)
def library() -> Any:
    """The module `math_verify`, silent; importing it is no job's time."""
    with clock.current().paused():
        import math_verify

        logging.getLogger("math_verify").setLevel(logging.CRITICAL)
        logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)
    return math_verify


def parsed(text: str) -> list[Any]:
    """What Math-Verify reads in a text; nothing where it fails."""
    try:
        found: list[Any] = library().parse(text, parsing_timeout=None)
    except FAILURES:
        return []
    return found


@lru_cache(maxsize=4096)
def _parsed_whole(text: str) -> list[Any]:
    # Of text with a formula in it, only the formula would be read.
    return parsed(f"${text.replace('$', '')}$")


_QUOTED = re.compile(
    r'"[^"]*"|\\(?:begin|end)\s*\{[a-z]*\}|\\[a-zA-Z]+|(?:sin|cos|tan|sec|csc|cot|ln|log|exp|sqrt|mod)'
)


_NUMERALS = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_TWO_DIGITS = re.compile(r"(frac\s*[0-9])([0-9])")


def _numerals(text: str) -> set[float]:
    return {float(numeral) for numeral in _NUMERALS.findall(text)}


def _kept_all(text: str, found: list[Any]) -> bool:
    """Whether each letter and each numeral of the text is found in what was parsed."""
    spelled = str(found[0]).lower()
    letters = _letters(text)
    if "\\int" in text:
        letters.discard("d")
    return letters <= set(spelled) and _numerals(_TWO_DIGITS.sub(r"\1 \2", text)) <= _numerals(spelled)


def _letters(text: str) -> set[str]:
    """The letters behind the last equals sign, outside commands, functions and quoted text."""
    return set(re.findall(r"[a-z]", _QUOTED.sub(" ", plain(text).rpartition("=")[2]).lower()))


_NUMBER = re.compile(r"(?:\\(?:frac|sqrt)|[^A-Za-z\\])*")
_BINDS = re.compile(r"\\(?:sum|prod|int|lim)")


def _close(gold: Any, answer: Any) -> bool:
    """Whether two numbers agree to thirty digits, or to twelve where one of them is rounded or has no closed form.

    What is no number was compared symbolically already.
    """
    if not (getattr(gold, "is_number", False) and getattr(answer, "is_number", False)):
        return True
    import sympy

    # A series that converges slowly has no thirty digits in any reasonable time; in closed form it has.
    sides = gold.doit(), answer.doit()
    is_rough = any(side.has(sympy.Float, sympy.Sum, sympy.Integral, sympy.Product, sympy.Limit) for side in sides)
    difference = (sides[0] - sides[1]).evalf(15 if is_rough else 50, maxn=400)
    size = max(abs(side.evalf(15)) for side in sides)
    return bool(abs(difference) <= size * sympy.Float(10) ** (-12 if is_rough else -30))
