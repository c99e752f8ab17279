r"""Read an answer into its structure: value with unit, list, tuple, set, interval, union, relation, matrix, words.

Reading decides nothing; `equality.py` compares what is read here. A part that no grammar reads is `Opaque`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from verifiers.expressions import FUNCTIONS, Tree, parse, symbols_of
from verifiers.latex import closing, grouped_digits_joined, plain, split_top
from verifiers.units import Unit, split_percent, split_unit, unit_of

_MAX_DEPTH = 12
MAX_ITEMS = 128


@dataclass(frozen=True, slots=True)
class Value:
    """One expression with what it wears; `base` is the base of a numeral such as `204_5`."""

    tree: Tree
    percent: bool = False
    unit: Unit | None = None
    base: int | None = None


@dataclass(frozen=True, slots=True)
class Items:
    r"""Several answers. `opening` and `closing` are the brackets, empty for a bare list; `\{` marks a set."""

    opening: str
    closing: str
    members: tuple["Answer", ...]


@dataclass(frozen=True, slots=True)
class Union:
    """A union of intervals and sets."""

    members: tuple["Answer", ...]


@dataclass(frozen=True, slots=True)
class Named:
    """An answer with its name: `x = 5`, `f(x) = ...`, `x ∈ ...`."""

    name: str
    answer: "Answer"
    equation: Tree | None
    """Left side minus right side, for comparison with an equation."""


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain of expressions and the signs between them; an equation where the sign is `=`."""

    terms: tuple[str, ...]
    signs: tuple[str, ...]
    trees: tuple[Tree | None, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of entries."""

    rows: tuple[tuple["Answer", ...], ...]


@dataclass(frozen=True, slots=True)
class Words:
    """A text answer, lower case but for a single letter."""

    text: str


@dataclass(frozen=True, slots=True)
class Opaque:
    """Text that none of our grammars reads."""

    text: str


Answer = Value | Items | Union | Named | Relation | Matrix | Words | Opaque


@lru_cache(maxsize=8192)
def read_answer(text: str) -> Answer:
    """The structure of an answer as a model or a dataset wrote it."""
    return _read(plain(text), 0, _read_bare)


def compact(text: str) -> str:
    """The plain spelling of an answer without spaces and quotes: equal strings are equal answers."""
    return re.sub(r'[\s"]+', "", plain(text))


# --- readers, outermost structure first -----------------------------------------------------------


def _read(text: str, depth: int, first: Callable[[str, int], Answer]) -> Answer:
    text = text.strip().strip(",;").strip()
    return Opaque(text) if depth > _MAX_DEPTH or not text else first(text, depth)


def _read_bare(text: str, depth: int) -> Answer:
    """A whole answer: here `12,000` is a number; inside brackets it would be two."""
    if '"' in text and (unquoted := _whole_words(text)):
        return unquoted
    return _read_list(grouped_digits_joined(_decimal_comma(text)), depth)


def _whole_words(text: str) -> Words | None:
    return _read_words(text.strip('"')) if text[0] == '"' == text[-1] and text.count('"') == 2 else None


_DECIMAL_COMMA = re.compile(r"-?[0-9]+,[0-9]{2}|-?0,[0-9]+")


def _decimal_comma(text: str) -> str:
    return text.replace(",", ".") if _DECIMAL_COMMA.fullmatch(text) else text


def _read_list(text: str, depth: int) -> Answer:
    if "\\begin" in text:
        return _read_matrix(text, depth)
    for separator in ";,":
        parts = [part for part in split_top(text, separator) if part.strip()]
        if len(parts) > MAX_ITEMS:
            return Opaque(text)
        if len(parts) > 1:
            return Items("", "", _list_members(parts, separator, depth))
    return _read_relation(text, depth)


def _list_members(parts: list[str], separator: str, depth: int) -> tuple[Answer, ...]:
    members = tuple(_read(part, depth + 1, _read_list) for part in parts)
    if separator == ";":
        # `p=5,q=2; p=7,q=2` is a list of tuples.
        return tuple(
            Items("(", ")", member.members) if isinstance(member, Items) and not member.opening else member
            for member in members
        )
    return _tuples_by_name(members)


def _tuples_by_name(members: tuple[Answer, ...]) -> tuple[Answer, ...]:
    """`p=5, q=2, p=7, q=2` as two tuples: the names come round again."""
    names = [member.name for member in members if isinstance(member, Named)]
    width = len(set(names))
    if len(names) != len(members) or width < 2 or len(names) == width or names != names[:width] * (len(names) // width):
        return members
    return tuple(Items("(", ")", members[start : start + width]) for start in range(0, len(members), width))


_MATRIX = re.compile(
    r"\\begin\s*\{([a-zA-Z]*)(?:matrix|array)\}(?:\s*\{[lcr| ]*\})?(.*)\\end\s*\{\1(?:matrix|array)\}", re.DOTALL
)


def _read_matrix(text: str, depth: int) -> Answer:
    """One matrix and nothing else; an expression of matrices is left to a second opinion."""
    name, equals, rest = text.partition("=")
    if equals and _is_name(name):
        return _read(rest, depth + 1, _read_matrix)
    while text[0] in "([" and closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    match = _MATRIX.fullmatch(text)
    if match is None or "\\begin" in match.group(2) or match.group(1) in ("v", "V"):
        return Opaque(text)
    lines = [line for line in match.group(2).replace("\\hline", "").split("\\\\") if line.strip()]
    cells = [split_top(line, "&") for line in lines]
    if not cells or sum(len(row) for row in cells) > MAX_ITEMS:
        return Opaque(text)
    return Matrix(tuple(tuple(_read(cell, depth + 1, _read_relation) for cell in row) for row in cells))


_SIGN = re.compile(r"<=|>=|!=|=|<|>|≈|∈|\\equiv")
_INEQUALITY = frozenset(("<", ">", "<=", ">=", "!="))


def _read_relation(text: str, depth: int) -> Answer:
    terms, signs = _cut_at_signs(text)
    if not signs:
        return _read_union(text, depth)
    if "∈" in signs:
        return Named("".join(terms[:-1]).strip(), _read(terms[-1], depth + 1, _read_list), None)
    if not set(signs).isdisjoint(_INEQUALITY):
        return Relation(tuple(terms), tuple(signs), tuple(parse(_bare_value(term)) for term in terms))
    if not terms[0]:
        return _read(terms[-1], depth + 1, _read_union)
    if "≈" in signs:
        # What stands before the rounding is the exact answer, unless it is only a name.
        cut = signs.index("≈")
        terms, signs = (terms[:2], ["="]) if cut == 0 and _is_name(terms[0]) else (terms[: cut + 1], signs[:cut])
        if not signs:
            return _read(terms[0], depth + 1, _read_union)
    return _read_equation(terms, depth)


def _read_equation(terms: list[str], depth: int) -> Answer:
    """`x = ... = 5` is a named 5; `2x + y = 3` an equation; `1 + 2 = 3` its last term."""
    left, right = parse(terms[0]), parse(_bare_value(terms[-1]))
    equation = ("subtract", left, right) if left and right else None
    if _is_name(terms[0]):
        return Named(terms[0].strip(), _read(terms[-1], depth + 1, _read_union), equation)
    if right and not symbols_of(right) and (left is None or len(terms) > 2):
        # A computation: `5 ⋆ 1 = 45 + 2 = 47`, `\sum k = 55`.
        return Named(terms[0].strip(), _read(terms[-1], depth + 1, _read_union), equation)
    if left and not symbols_of(left):
        if right and len(terms) == 2 and _is_name(terms[1]):
            return Named(terms[1].strip(), _read(terms[0], depth + 1, _read_union), equation)
        if right is None or not symbols_of(right):
            return _read(terms[-1], depth + 1, _read_union)
    return Relation((terms[0], terms[-1]), ("=",), (left, right))


def _cut_at_signs(text: str) -> tuple[list[str], list[str]]:
    """Terms and signs of a chain, cut outside brackets."""
    if _SIGN.search(text) is None:
        return [text], []
    terms, signs, start = [], [], 0
    depth = 0
    matches = {match.start(): match for match in _SIGN.finditer(text)}
    for index, char in enumerate(text):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(char, 0)
        if index in matches and depth <= 0:
            terms.append(text[start:index].strip())
            signs.append(matches[index].group())
            start = matches[index].end()
    terms.append(text[start:].strip())
    return terms, signs


_NAME = re.compile(
    r"(?:\\Delta\s*)?(?:\\[A-Za-z]+|[A-Za-zπ])"  # x, \Delta p
    r"(?:\s*_\s*(?:\{[^{}]*\}|\w)|\s*\^\s*\{?\s*'\s*\}?|')*"  # a_{n+1}, \omega'
    r"(?:\s*\((?:[^()]|\([^()]*\))*\))?"  # f(x), \Phi(x, y)
    r"|[A-Z]\s*\^\s*(?:[a-zT]|\{\s*(?:-1|[a-zT])\s*\})"  # A^{-1}, B^n
)
_POINTS = re.compile(r"[A-Z][A-Z_{}0-9:/\s|'∠△]*|\\frac\s*\{\s*[A-Z]+\s*\}\s*\{\s*[A-Z]+\s*\}|\|\s*[A-Z]+\s*\|")
_TUPLE_OF_NAMES = re.compile(
    r"\(\s*[A-Za-z](?:_\{?\w+\}?)?(?:\s*,\s*(?:[A-Za-z](?:_\{?\w+\}?)?|\\[a-z]+|\\ldots))*\s*\)"
)
_TEXT_NAME = re.compile(r'"[^"]*"(?:\s*\([^()]*\))?')
_DERIVATIVE = re.compile(r"\\frac\s*\{\s*d\s*\w?\s*\}\s*\{\s*d\s*\w\s*\}")


def _is_name(text: str) -> bool:
    """Whether `text` names an answer rather than takes part in an equation: `x`, `f(x)`, `(p, q)`, `AB`, `V_1:V_2`."""
    text = text.strip()
    if len(text) > 80 or not text:
        return False
    if text in ("e", "i", "π"):
        return False
    patterns = (_NAME, _POINTS, _TUPLE_OF_NAMES, _TEXT_NAME, _DERIVATIVE)
    if any(pattern.fullmatch(text) for pattern in patterns):
        return True
    sides = text.split(":")
    return len(sides) == 2 and all(_NAME.fullmatch(side.strip()) for side in sides)


def _read_union(text: str, depth: int) -> Answer:
    if "∪" in text:
        parts = split_top(text, "∪")
        if len(parts) > MAX_ITEMS:
            return Opaque(text)
        if len(parts) > 1:
            return Union(tuple(_read(part, depth + 1, _read_bracketed) for part in parts))
    return _read_bracketed(text, depth)


def _read_bracketed(text: str, depth: int) -> Answer:
    start = 1 if text.startswith("\\{") else 0
    if text[start] not in "([{" or closing(text, start) != len(text) - 1:
        return _read_signs(text, depth)
    opening, close = ("\\{", "\\}") if start else (text[0], text[-1])
    inner = text[start + 1 : -2 if start and text.endswith("\\}") else -1]
    if opening == "{":
        return _read(inner, depth + 1, _read_list)
    separator = "," if len(split_top(inner, ",")) > 1 else ";"
    parts = [part for part in split_top(inner, separator) if part.strip()]
    if len(parts) > MAX_ITEMS:
        return Opaque(text)
    if len(parts) > 1:
        return Items(opening, close, tuple(_read(part, depth + 1, _read_relation) for part in parts))
    if opening == "\\{":
        return Items(opening, close, (_read(inner, depth + 1, _read_relation),))
    inside = _read(inner, depth + 1, _read_relation)
    return inside if not isinstance(inside, Opaque) else _read_signs(text, depth)


def _read_signs(text: str, depth: int) -> Answer:
    """`a ± b` as the list of both."""
    if "±" not in text and "∓" not in text:
        return _read_ratio(text, depth)
    plus, minus = text.replace("±", "+").replace("∓", "-"), text.replace("±", "-").replace("∓", "+")
    return Items("", "", (_read(plus, depth + 1, _read_ratio), _read(minus, depth + 1, _read_ratio)))


def _read_ratio(text: str, depth: int) -> Answer:
    parts = split_top(text, ":")
    if len(parts) > 1 and all(part.strip() for part in parts) and len(parts) <= MAX_ITEMS:
        return Items(":", ":", tuple(_read(part, depth + 1, _read_value) for part in parts))
    return _read_value(text, depth)


_NUMERAL = re.compile(r"([0-9][0-9A-Z]*)\s*_\s*(?:\{\s*([0-9]+)\s*\}|([0-9]+))")
_MIXED = re.compile(r"(-?)\s*([0-9]+)\s+([0-9]+)\s*/\s*([0-9]+)")
_ORDINAL = re.compile(r"([0-9]+)\s*(?:st|nd|rd|th|\"(?:st|nd|rd|th)\")")


def _read_value(text: str, _: int) -> Answer:
    numeral = _NUMERAL.fullmatch(text)
    if numeral:
        return _read_numeral(numeral)
    words = _read_words(text)
    if words is not None:
        return words
    text, percent = split_percent(text)
    value, unit_text = split_unit(text)
    tree = _tree(value)
    if tree is None:
        value, unit_text = text, None
        tree = _tree(value)
    if tree is None:
        if '"' not in text:
            return Opaque(text)
        return _read_words(text.replace('"', " ")) or Opaque(text)
    if unit_text and re.fullmatch(r"[\s\"]*(?:percent|pct|percentage)[\s\"]*", unit_text):
        unit_text, percent = None, True
    return Value(tree, percent, unit_of(unit_text) if unit_text else None)


def _bare_value(text: str) -> str:
    return split_unit(split_percent(text)[0])[0]


def _tree(text: str) -> Tree | None:
    mixed = _MIXED.fullmatch(text)
    if mixed:
        sign, whole, top, bottom = mixed.groups()
        if len(text) > 100 or int(bottom) == 0:
            return None
        number = int(whole) + Fraction(int(top), int(bottom))
        return ("number", -number if sign else number, None)
    ordinal = _ORDINAL.fullmatch(text)
    return parse(ordinal.group(1) if ordinal else grouped_digits_joined(text))


def _read_numeral(match: re.Match[str]) -> Answer:
    digits, base = match.group(1), int((match.group(2) or match.group(3))[:4])
    if not 2 <= base <= 36 or len(digits) > 400 or any(int(digit, 36) >= base for digit in digits):
        return Opaque(match.group())
    return Value(("number", Fraction(int(digits, base)), None), base=base)


_TEXT = re.compile(r"[^\W\d_][^\W_]*(?:[ ,'’./()-]+[^\W_]+)*[.)]*")
_LETTER = re.compile(r"[(\[]?\s*([A-Za-z])\s*[)\].:]?")


def _read_words(text: str) -> Words | None:
    """A text answer: a word of four letters or more that is no function, several words, or `(C)`."""
    body = text.replace('"', " ").strip(" .")
    letter = _LETTER.fullmatch(body)
    if letter and (len(body) > 1 or '"' in text):
        return Words(letter.group(1))
    words = re.findall(r"[^\W\d_]+", body)
    if not words or _TEXT.fullmatch(body) is None:
        return None
    if len(words) == 1 and words[0].lower() in _SHORT_WORDS:
        return _words(body)
    long_words = [word for word in words if len(word) >= 4 and not word.startswith(tuple(FUNCTIONS))]
    has_digits = any(char.isdigit() for char in body)
    is_text = not has_digits or len(words) > 2 or ('"' in text and not body[0].isdigit())
    return _words(body) if long_words and is_text else None


def _words(text: str) -> Words:
    folded = " ".join(text.lower().split())
    return Words(_SYNONYMS.get(folded, folded))


_SHORT_WORDS = frozenset(("yes", "no", "odd", "true", "dne"))
_SYNONYMS = {"true": "yes", "false": "no", "does not exist": "dne", "undefined": "dne"}


def prose_words(text: str) -> int:
    """How many words an answer has outside its mathematics."""
    return len(_PROSE_WORD.findall(_ENVIRONMENT.sub(" ", plain(text))))


_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}(?:\s*\{[^{}]*\})?")
_PROSE_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{3,}(?![A-Za-z])")
