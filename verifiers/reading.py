"""Read an answer into its structure, outermost first: list, relation, union, brackets, value, words.

Reading decides nothing; `equality.py` compares what is read here. A part that no grammar reads is `Opaque`.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

from verifiers.answers import (
    EMPTY,
    REALS,
    Answer,
    Difference,
    Family,
    Items,
    Lettered,
    Named,
    Opaque,
    Relation,
    Residue,
    Union,
    Value,
    Words,
    letters_of,
)
from verifiers.expressions import parse
from verifiers.latex import closing, grouped_digits_joined, linked, plain, split_top
from verifiers.matrices import read_rows
from verifiers.names import arguments_of, is_name
from verifiers.numerals import (
    MAX_DIGITS,
    clock,
    combinations_written_out,
    is_malformed_numeral,
    mixed_number,
    number_in_words,
    numeral_with_base,
    repeating_written_out,
    scaled_number,
)
from verifiers.qualifiers import domain_of_member, split_qualifier
from verifiers.trees import Tree, symbols_of
from verifiers.units import compound_quantity, split_percent, split_unit, unit_of
from verifiers.words import has_prose, prose_words, read_words

_MAX_DEPTH = 12
MAX_ITEMS = 128


@lru_cache(maxsize=8192)
def read_answer(text: str) -> Answer:
    """The structure of an answer as a model or a dataset wrote it."""
    return _read(linked(text), 0, _read_whole)


def compact(text: str) -> str:
    """The plain spelling of an answer without quotes and needless spaces: equal strings are equal answers."""
    return _NEEDLESS.sub("", plain(text).replace('"', ""))


_NEEDLESS = re.compile(r"\s+(?![0-9A-Za-z])|(?<![0-9A-Za-z])\s+")


# --- whole answers --------------------------------------------------------------------------------


def _read(text: str, depth: int, first: Callable[[str, int], Answer]) -> Answer:
    text = text.strip().strip(",;").strip("∧∨ ").strip()
    return Opaque(text) if depth > _MAX_DEPTH or not text else first(text, depth)


_PHRASE_CHARS = 120  # nobody writes `3 hours 45 minutes` longer
_QUALIFIED_CHARS = 600
_DECIMAL_COMMA = re.compile(r"-?[0-9]+,[0-9]{2}|-?0,[0-9]+")
_OPTION = re.compile(r"\(?([A-J])[.):]\)?\s+(?=[^\s=<>,)+*/^-])(.+)", re.DOTALL)
_MINUS_WORD = re.compile(r"^\"?(?:negative|minus)\"?\s+(?=[0-9\\])", re.IGNORECASE)
_OUTWARD = re.compile(r"([\[\]])([^\[\](),;]+)[,;]([^\[\](),;]+)([\[\]])")


def _read_whole(text: str, depth: int) -> Answer:
    """A whole answer: here `12,000` is a number; inside brackets it would be two."""
    text = grouped_digits_joined(text.replace(",", ".") if _DECIMAL_COMMA.fullmatch(text) else text)
    text = combinations_written_out(repeating_written_out(text))
    is_short = len(text) <= _PHRASE_CHARS
    quantity = compound_quantity(text) if is_short and text[0].isdigit() else None
    if quantity:
        return Value(("number", quantity[0], None), unit=quantity[1])
    spelled = number_in_words(text) if is_short else None
    if spelled is not None:
        return Value(("number", Fraction(spelled), None))
    if text[0] == '"' == text[-1] and text.count('"') == 2:
        inside = text.strip('"').strip()
        if quoted := read_words(inside):
            return quoted
        if inside[:1].isdigit() and inside.isascii() and not re.search("[A-Za-z]", inside):
            return _read(inside, depth + 1, _read_whole)
    text = _MINUS_WORD.sub("-", text)
    if option := _OPTION.fullmatch(text):
        return Lettered(option.group(1), _read(option.group(2), depth + 1, _read_list))
    outward = _OUTWARD.fullmatch(text)
    if outward and outward.group(1, 4) != ("[", "]"):
        # ]0, 1[ is the open interval.
        ends = tuple(_read(end, depth + 1, _read_relation) for end in outward.group(2, 3))
        return Items("[" if text[0] == "[" else "(", "]" if text[-1] == "]" else ")", ends)
    qualified = split_qualifier(text) if len(text) <= _QUALIFIED_CHARS else None
    if qualified:
        core, names, domain = qualified
        return _family(_read(core, depth + 1, _read_list), names, domain)
    return _read_list(text, depth)


def _family(answer: Answer, names: tuple[str, ...], domain: str) -> Answer:
    """`answer` with letters of its own; the arguments of a function, and letters it does not use, need no mention."""
    if isinstance(answer, Named):
        names = tuple(name for name in names if name not in arguments_of(answer.name))
    used = letters_of(answer)
    names = tuple(name for name in names if name in used)
    if isinstance(answer, Named) and names and not arguments_of(answer.name) and answer.name in names:
        return answer
    return Family(answer, names, domain) if names else answer


# --- lists ----------------------------------------------------------------------------------------


def _read_list(text: str, depth: int) -> Answer:
    if "\\begin" in text:
        return _read_environment(text, depth)
    for separator in ";,":
        parts = [part for part in split_top(text, separator) if part.strip(" ∧∨")]
        if len(parts) > MAX_ITEMS:
            return Opaque(text)
        if len(parts) > 1:
            return _joined(parts, separator, depth)
    return _read_relation(text, depth)


def _joined(parts: list[str], separator: str, depth: int) -> Answer:
    """The list of `parts`, or the family that those of them make which speak of letters only."""
    domains = [domain_of_member(part.strip(" ∧∨")) if len(part) <= _PHRASE_CHARS else None for part in parts]
    members = [part for part, domain in zip(parts, domains, strict=True) if domain is None]
    if separator == "," and members and len(members) < len(parts):
        answer = _read_relation(members[0], depth) if len(members) == 1 else _joined(members, separator, depth)
        names = tuple(name for domain in domains if domain for name in domain[0])
        kinds = sorted({domain[1] for domain in domains if domain})
        is_condition = isinstance(answer, Relation) and answer.signs != ("=",)
        return answer if is_condition and kinds == ["R"] else _family(answer, names, "".join(kinds))
    alternative = any(part.lstrip().startswith("∨") for part in parts)
    return Items("", "", _list_members(parts, separator, depth), alternative)


def _list_members(parts: list[str], separator: str, depth: int) -> tuple[Answer, ...]:
    members = tuple(_read(part, depth + 1, _read_list) for part in parts)
    if separator == ";":
        # `p=5,q=2; p=7,q=2` is a list of tuples.
        return tuple(
            Items("(", ")", member.members) if isinstance(member, Items) and not member.opening else member
            for member in members
        )
    last = members[-1]
    if isinstance(last, Residue) and all(isinstance(member, Value) for member in members[:-1]):
        # `1, 4 (mod 5)`: the modulus stands once.
        values = [member.tree for member in members[:-1] if isinstance(member, Value)]
        return (*(Residue(value, last.modulus) for value in values), last)
    return _tuples_by_name(members)


def _tuples_by_name(members: tuple[Answer, ...]) -> tuple[Answer, ...]:
    """`p=5, q=2, p=7, q=2` as two tuples: the names come round again."""
    names = [member.name for member in members if isinstance(member, Named)]
    width = len(set(names))
    if len(names) != len(members) or width < 2 or len(names) == width or names != names[:width] * (len(names) // width):
        return members
    return tuple(Items("(", ")", members[start : start + width]) for start in range(0, len(members), width))


def _read_environment(text: str, depth: int) -> Answer:
    name, equals, rest = text.partition("=")
    if equals and "\\begin" not in name and is_name(name):
        answer = _read(rest, depth + 1, _read_environment)
        return Named(name.strip(), answer, None)
    return read_rows(text, lambda cell: _read(cell, depth + 1, _read_list)) or Opaque(text)


# --- relations ------------------------------------------------------------------------------------

_SIGN = re.compile(r"<=|>=|!=|=|<|>|≈|∈|\\equiv")
_INEQUALITY = frozenset(("<", ">", "<=", ">=", "!="))
_NAME_WORDS = 4
"""A name in more words than this is a sentence."""
_RESIDUE = re.compile(
    r"(?:(?P<name>[^=]+?)\s*(?:\\equiv|=)\s*)?(?P<value>[^=]+?)\s*[\s,(\"]*\\?(?:pmod|bmod|mod)[\s\"]*"
    r"(?:\{\s*(?P<braced>[^{}]+?)\s*\}|(?P<bare>[^\s{}()]+))\s*[)\s]*"
)


def _read_relation(text: str, depth: int) -> Answer:
    if "mod" in text and len(text) <= _QUALIFIED_CHARS and (residue := _read_residue(text, depth)):
        return residue
    if "∪" in text and "∈" not in text and all(_SIGN.search(part) for part in split_top(text, "∪")):
        return _read_union(text, depth)
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
        terms, signs = (terms[:2], ["="]) if cut == 0 and is_name(terms[0]) else (terms[: cut + 1], signs[:cut])
        if not signs:
            return _read(terms[0], depth + 1, _read_union)
    return _read_equation(terms, depth)


def _read_residue(text: str, depth: int) -> Answer | None:
    match = _RESIDUE.fullmatch(text)
    modulus = parse(match.group("braced") or match.group("bare")) if match else None
    if match is None or modulus is None:
        return None
    value = _read(match.group("value"), depth + 1, _read_union)
    if isinstance(value, Items) and all(isinstance(member, Value) for member in value.members):
        classes = [Residue(member.tree, modulus) for member in value.members if isinstance(member, Value)]
        return Items(value.opening, value.closing, tuple(classes))
    return Residue(value.tree, modulus) if isinstance(value, Value) else None


def _read_equation(terms: list[str], depth: int) -> Answer:
    """`x = ... = 5` is a named 5; `2x + y = 3` an equation; `1 + 2 = 3` its last term."""
    if any(has_prose(term) for term in terms[1:-1]) or prose_words(terms[0]) > _NAME_WORDS:
        return Opaque(" = ".join(terms))
    left, right = parse(terms[0]), parse(_bare_value(terms[-1]))
    equation = ("subtract", left, right) if left and right else None
    if is_name(terms[0]):
        return Named(terms[0].strip(), _read(terms[-1], depth + 1, _read_union), equation)
    if right and not symbols_of(right) and (left is None or len(terms) > 2):
        # A computation: `5 ⋆ 1 = 45 + 2 = 47`, `\sum k = 55`.
        return Named(terms[0].strip(), _read(terms[-1], depth + 1, _read_union), equation)
    if left and not symbols_of(left):
        if right and len(terms) == 2 and is_name(terms[1]):
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


# --- sets and tuples ------------------------------------------------------------------------------


def _read_union(text: str, depth: int) -> Answer:
    for mark in ("∪", "\\setminus"):
        if mark not in text:
            continue
        parts = split_top(text.replace("\\setminus", "∖"), "∪" if mark == "∪" else "∖")
        if len(parts) > MAX_ITEMS or not all(part.strip() for part in parts):
            return Opaque(text)
        if len(parts) > 1:
            members = [_read(part.replace("∖", "\\setminus"), depth + 1, _read_set) for part in parts]
            return Union(tuple(members)) if mark == "∪" else Difference(members[0], _one(members[1:]))
    minus = re.fullmatch(r"([ℝR])\s*-\s*(\\\{.*\\\}|[\[(].*[\])])", text)
    if minus:
        return Difference(REALS, _read(minus.group(2), depth + 1, _read_bracketed))
    return _read_bracketed(text, depth)


def _one(members: list[Answer]) -> Answer:
    return members[0] if len(members) == 1 else Union(tuple(members))


def _read_set(text: str, depth: int) -> Answer:
    """A member of a union or difference; an inequality is a set here, and R the real numbers."""
    if text == "R":
        return REALS
    return _read_relation(text, depth) if _SIGN.search(text) else _read_union(text, depth)


def _read_bracketed(text: str, depth: int) -> Answer:
    start = 1 if text.startswith("\\{") else 0
    text = re.sub(r"(?<=[)\]])\s*\^\s*\{?\s*(?:T|\\top)\s*\}?$", "", text)
    if text[start] not in "([{" or closing(text, start) != len(text) - 1:
        return _read_signs(text, depth)
    opening, close = ("\\{", "\\}") if start else (text[0], text[-1])
    inner = text[start + 1 : -2 if start and text.endswith("\\}") else -1]
    if opening == "{":
        return _read(inner, depth + 1, _read_list) if inner.strip() else EMPTY
    if opening == "\\{" and not inner.strip():
        return EMPTY
    if opening == "\\{" and (described := _read_described_set(inner, depth)):
        return described
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


def _read_described_set(inner: str, depth: int) -> Answer | None:
    r"""`x ∈ ℝ | x > 2` as its condition, `nπ | n ∈ ℤ` as a family; None where a set lists its members."""
    bars = [index for index, char in enumerate(inner) if char in "|:"]
    if len(bars) == 1 or (len(bars) == 3 and inner.count("|") == 3):
        left, condition = inner[: bars[0]].strip(), inner[bars[0] + 1 :].strip()
        domain = domain_of_member(condition)
        if domain and not is_name(left):
            return _family(_read(left, depth + 1, _read_list), *domain)
        if is_name(re.split("∈", left)[0]) and _SIGN.search(condition):
            return _read(condition, depth + 1, _read_list)
    return None


def _read_signs(text: str, depth: int) -> Answer:
    """`a ± b` as the list of both."""
    if "±" not in text and "∓" not in text:
        return _read_ratio(text, depth)
    plus, minus = text.replace("±", "+").replace("∓", "-"), text.replace("±", "-").replace("∓", "+")
    return Items("", "", (_read(plus, depth + 1, _read_ratio), _read(minus, depth + 1, _read_ratio)))


_HALF_OF_DAY = re.compile(r"[0-9][\s\"]*[ap]\.?\s*m", re.IGNORECASE)


def _read_ratio(text: str, depth: int) -> Answer:
    if len(text) <= _PHRASE_CHARS and (":" in text or _HALF_OF_DAY.search(text)):
        time = clock(text)
        if time and (time.half or re.fullmatch(r"[0-9]+\s*:\s*[0-9]{2}(?:\s*:\s*[0-9]{2})?", text)):
            return time
    if len(text) <= _PHRASE_CHARS and re.fullmatch(r"[0-9.]+\s+\"?to\"?\s+[0-9.]+", text):
        text = re.sub(r"\s+\"?to\"?\s+", ":", text)
    parts = split_top(text, ":")
    if len(parts) > 1 and all(part.strip() for part in parts) and len(parts) <= MAX_ITEMS:
        return Items(":", ":", tuple(_read(part, depth + 1, _read_value) for part in parts))
    return _read_value(text, depth)


# --- one value ------------------------------------------------------------------------------------

_ORDINAL = re.compile(r"([0-9]+)\s*(?:st|nd|rd|th|\"(?:st|nd|rd|th)\")")


def _read_value(text: str, _: int) -> Answer:
    numeral = numeral_with_base(text) if len(text) <= MAX_DIGITS else None
    if numeral:
        return Value(("number", numeral[0], None), base=numeral[1])
    if is_malformed_numeral(text) or text == "∅":
        return EMPTY if text == "∅" else Words(compact(text))
    words = read_words(text)
    if words is not None:
        return words
    text = (scaled_number(text) if len(text) <= _PHRASE_CHARS else None) or text
    text, percent = split_percent(text)
    value, unit_text = split_unit(text)
    tree = _tree(value)
    if tree is None:
        value, unit_text = text, None
        tree = _tree(value)
    if tree is None:
        if '"' not in text:
            return Opaque(text)
        return read_words(text.replace('"', " ")) or Opaque(text)
    if unit_text and re.fullmatch(r"[\s\"]*(?:percent|pct|percentage)[\s\"]*", unit_text):
        unit_text, percent = None, True
    unit = unit_of(unit_text) if unit_text else None
    is_product = unit is not None and unit_text is not None and re.fullmatch(r"[A-Za-z/^{}0-9\s]+", unit_text)
    return Value(tree, percent, unit, product=parse(text) if is_product else None)


def _bare_value(text: str) -> str:
    return split_unit(split_percent(text)[0])[0]


def _tree(text: str) -> Tree | None:
    mixed = mixed_number(text)
    if mixed is not None:
        return ("number", mixed, None)
    ordinal = _ORDINAL.fullmatch(text)
    return parse(ordinal.group(1) if ordinal else grouped_digits_joined(text))
