"""Whether two expression trees have the same value: exactly where exact, else to a relative precision.

Rational values are compared as fractions. Others are computed to 60 digits and compared to 40, so
`1/2^99` is not `1/2^98`. Expressions with variables are compared at fixed points: rational ones exactly
(the Schwartz-Zippel test), others to the same precision. Sizes are bounded before anything is computed.
"""

import hashlib
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from math import comb, factorial, isqrt
from typing import Any

from verifiers.expressions import Tree, symbols_of

_DIGITS = 60
_CHECK_DIGITS = 160
_RELATIVE = 1e-40
_MAX_BITS = 200_000
"""Largest exact integer that is written out, in bits: 2004! has 19,000."""
_MAX_FACTORIAL = 5000
_MAX_MAGNITUDE = 1 << 62
"""Largest binary exponent of a number that is computed at all; towers of powers go beyond."""
MIN_ROUNDING_DIGITS = 6
"""A decimal with this many significant digits equals an exact value that rounds, or truncates, to it."""

NOT_COMPUTABLE = "not_computable"
"""Rule where a constant has no value of bounded size: no other library should be asked for it either."""

Point = Mapping[str, Fraction]


class NotExactError(Exception):
    """The value is not a rational number that may be written out."""


class TooLargeError(Exception):
    """The value is beyond any number that is computed here."""


def same_value(first: Tree, second: Tree) -> tuple[bool | None, str]:
    """Whether two expressions are equal, and the rule that says so; None where no rule does."""
    if first == second:
        return True, "identical_expression"
    names = symbols_of(first) | symbols_of(second)
    if not names:
        return _same_constant(first, second)
    answers = set()
    for point in points(tuple(sorted(names))):
        answers.add(_same_at(first, second, point))
        if None in answers or len(answers) > 1:
            return None, "points_disagree"
    return answers.pop(), "expression_at_points"


def _same_constant(first: Tree, second: Tree) -> tuple[bool | None, str]:
    exact_first, exact_second = exact_value(first), exact_value(second)
    if exact_first is not None and exact_second is not None:
        if exact_first == exact_second:
            return True, "exact_number"
        return rounds_to(first, second) or rounds_to(second, first), "exact_number"
    if rounds_to(first, second) or rounds_to(second, first):
        return True, "decimal_rounding"
    equal = _same_at(first, second, {})
    return equal, NOT_COMPUTABLE if equal is None else "numeric"


def rounds_to(decimal: Tree, value: Tree) -> bool:
    """Whether `decimal`, a written decimal of enough digits, is `value` rounded or truncated; `value` is no decimal."""
    sign, number = (-1, decimal[1]) if decimal[0] == "negate" else (1, decimal)
    inner = value[1] if value[0] == "negate" else value
    if number[0] != "number" or (number[2] or 0) < MIN_ROUNDING_DIGITS or (inner[0] == "number" and inner[2]):
        return False
    places = _decimal_places(number[1])
    try:
        context = _context(_DIGITS)
        error = abs(_complex(value, {}, context) - sign * _real(number[1], context))
    except (TooLargeError, ZeroDivisionError, ValueError, OverflowError):
        return False
    return bool(error * 10**places < 1)


def _decimal_places(value: Fraction) -> int:
    places = 0
    while value.denominator != 1 and places < 60:
        value *= 10
        places += 1
    return places


def _same_at(first: Tree, second: Tree, point: Point) -> bool | None:
    """Whether two expressions agree where their variables have the values of `point`; None: not computable there."""
    exact_first, exact_second = exact_value(first, point), exact_value(second, point)
    if exact_first is not None and exact_second is not None:
        return exact_first == exact_second
    left, right = _computed(first, point), _computed(second, point)
    if left is None or right is None:
        # A tower of powers that cannot be computed is at least not a number that can.
        tower, other = (first, right) if left is None else (second, left)
        return False if other is not None and _is_tower(tower, point) else None
    context = _context(_DIGITS)
    if context.isinf(left) or context.isinf(right):
        return bool(left == right)
    return bool(abs(left - right) <= _RELATIVE * max(abs(left), abs(right)))


def _computed(tree: Tree, point: Point) -> Any:
    """The computed value; None where there is none."""
    try:
        value = numeric_value(tree, point)
    except (TooLargeError, ZeroDivisionError, ValueError, OverflowError, NotImplementedError):
        return None
    return None if _context(_DIGITS).isnan(value) else value


def _is_tower(tree: Tree, point: Point) -> bool:
    """Whether a value that was not computed is a positive power too large to compute, and not just contains one."""
    if tree[0] != "power":
        return False
    base, exponent = exact_value(tree[1], point), _computed(tree[2], point)
    return base is not None and base > 1 and (_is_tower(tree[2], point) if exponent is None else exponent > 0)


@lru_cache(maxsize=1024)
def points(names: tuple[str, ...]) -> list[dict[str, Fraction]]:
    """Four assignments of values to variables: in (0, 1), in (1, 4), large, and negative; the same in every process."""
    spans = [(0, 1), (1, 4), (9, 40), (-4, -1)]
    return [{name: _coordinate(name, index, *span) for name in names} for index, span in enumerate(spans)]


def _coordinate(name: str, index: int, low: int, high: int) -> Fraction:
    digest = hashlib.blake2b(f"{index}:{name}".encode(), digest_size=4).digest()
    return low + (high - low) * Fraction(int.from_bytes(digest) % 9973 + 7, 9991)


# --- exact values ---------------------------------------------------------------------------------


def exact_value(tree: Tree, point: Point | None = None) -> Fraction | None:
    """The rational value of an expression; None where it has none, or none of bounded size."""
    try:
        return _exact(tree, point or {})
    except (NotExactError, ZeroDivisionError):
        return None


def _exact(tree: Tree, point: Point) -> Fraction:
    kind = tree[0]
    if kind == "number":
        value: Fraction = tree[1]
        return value
    if kind == "symbol":
        return point[tree[1]]
    if kind == "constant":
        if tree[1] == "percent":
            return Fraction(1, 100)
        raise NotExactError
    if kind == "call":
        return _exact_call(tree[1], _exact(tree[2], point))
    if kind == "negate":
        return -_exact(tree[1], point)
    return _bounded(_EXACT_OPERATORS[kind](_exact(tree[1], point), _exact(tree[2], point)))


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > 2 * _MAX_BITS:
        raise NotExactError
    return value


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator == 2:
        return _exact_power(_exact_root(base, Fraction(2)), Fraction(exponent.numerator))
    if exponent.denominator != 1:
        raise NotExactError
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if base not in (0, 1, -1) and bits * abs(exponent.numerator) > _MAX_BITS:
        raise NotExactError
    if base in (0, 1, -1):
        exponent = Fraction(exponent.numerator % 2 + 2 * (exponent.numerator > 0)) if base else exponent
    if base == 0 and exponent > 0:
        return Fraction(0)
    return Fraction(base**exponent.numerator)


def _exact_root(value: Fraction, index: Fraction) -> Fraction:
    if index != 2 or value < 0:
        raise NotExactError
    top, bottom = isqrt(value.numerator), isqrt(value.denominator)
    if top * top != value.numerator or bottom * bottom != value.denominator:
        raise NotExactError
    return Fraction(top, bottom)


def _exact_call(function: str, value: Fraction) -> Fraction:
    if function == "abs":
        return abs(value)
    if function == "floor":
        return Fraction(value.numerator // value.denominator)
    if function == "ceiling":
        return Fraction(-(-value.numerator // value.denominator))
    if function == "factorial" and value.denominator == 1 and 0 <= value <= _MAX_FACTORIAL:
        return Fraction(factorial(value.numerator))
    raise NotExactError


def _exact_binomial(top: Fraction, bottom: Fraction) -> Fraction:
    if top.denominator != 1 or bottom.denominator != 1 or not 0 <= bottom <= top <= _MAX_FACTORIAL:
        raise NotExactError
    return Fraction(comb(top.numerator, bottom.numerator))


_EXACT_OPERATORS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "add": lambda left, right: left + right,
    "subtract": lambda left, right: left - right,
    "multiply": lambda left, right: left * right,
    "divide": lambda left, right: left / right,
    "power": _exact_power,
    "root": _exact_root,
    "binomial": _exact_binomial,
}


# --- computed values ------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _context(digits: int) -> Any:
    # mpmath takes a tenth of a second to import, and most answers are rational.
    from mpmath.ctx_mp import MPContext  # type: ignore[import-untyped]

    context = MPContext()
    context.dps = digits
    return context


def numeric_value(tree: Tree, point: Point) -> Any:
    """The complex value of an expression to about 60 digits; a difference that cancels is an exact zero.

    Raises `TooLargeError` before computing what would not fit, `ZeroDivisionError` at a pole.
    """
    value = _complex(tree, point, _context(_DIGITS))
    if abs(value) < 1e-20:
        finer = _complex(tree, point, _context(_CHECK_DIGITS))
        # What is truly small keeps its size with more digits; what should cancel keeps shrinking.
        return finer if abs(finer) * 2 > abs(value) else _context(_DIGITS).zero
    return value


def _complex(tree: Tree, point: Point, context: Any) -> Any:
    kind = tree[0]
    if kind == "number":
        return _real(tree[1], context)
    if kind == "symbol":
        return _real(point[tree[1]], context)
    if kind == "constant":
        return _constant(tree[1], context)
    if kind == "call":
        return _call(tree[1], _complex(tree[2], point, context), context)
    if kind == "negate":
        return -_complex(tree[1], point, context)
    left, right = _complex(tree[1], point, context), _complex(tree[2], point, context)
    if kind == "power":
        return _power(left, right, exact_value(tree[2], point), context)
    if kind == "root":
        return _root(left, right, context)
    if kind == "binomial":
        return context.binomial(_moderate(left, context), _moderate(right, context))
    return _OPERATORS[kind](left, right)


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda left, right: left + right,
    "subtract": lambda left, right: left - right,
    "multiply": lambda left, right: left * right,
    "divide": lambda left, right: left / right,
}


def _real(value: Fraction, context: Any) -> Any:
    return context.mpf(value.numerator) / value.denominator


def _constant(name: str, context: Any) -> Any:
    if name == "infinity":
        return context.inf
    if name == "i":
        return context.mpc(0, 1)
    if name == "degree":
        return +context.pi / 180
    if name == "percent":
        return context.mpf(1) / 100
    return +(context.pi if name == "pi" else context.e)


def _power(base: Any, exponent: Any, rational: Fraction | None, context: Any) -> Any:
    if base == 0 or context.isinf(base) or context.isinf(exponent):
        return base**exponent
    if abs(context.mag(base)) * abs(exponent) > _MAX_MAGNITUDE or abs(exponent) > _MAX_MAGNITUDE:
        raise TooLargeError
    if rational is not None and rational.denominator % 2 and rational.denominator > 1:
        root = _root(base, context.mpf(rational.denominator), context)
        return root**rational.numerator
    return base**exponent


def _root(value: Any, index: Any, context: Any) -> Any:
    """The real root where there is one: the cube root of -8 is -2."""
    if index == 0:
        raise ZeroDivisionError
    if context.im(value) == 0 and context.re(value) < 0 and context.isint(index) and int(index) % 2:
        return -((-value) ** (1 / index))
    return value ** (1 / index)


def _moderate(value: Any, context: Any) -> Any:
    if context.isinf(value) or (value != 0 and context.mag(value) > 200):
        raise TooLargeError
    return value


def _call(name: str, value: Any, context: Any) -> Any:
    if name in ("abs", "floor", "ceiling"):
        return {"abs": abs, "floor": context.floor, "ceiling": context.ceil}[name](_moderate(value, context))
    if name == "factorial":
        return context.factorial(_moderate(value, context))
    if name == "exp":
        return _power(+context.e, value, None, context)
    if context.isinf(value):
        raise ZeroDivisionError
    function = getattr(context, _MPMATH.get(name, name))
    return function(_moderate(value, context))


_MPMATH = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "log": "ln"}
