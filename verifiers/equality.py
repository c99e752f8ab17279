r"""Whether two answers are the same, in layers, cheapest first; None where no layer decides.

What mathematics leaves open is a `Policy`; `docs/verifiers.md` states it all. In short: a bare list has no
order and beside a tuple takes the tuple's; `50%` equals 0.5 and 50; a unit or a name (`x =`) that one side
leaves out is dressing, two different units are different answers; a base counts; a decimal of six digits
equals what rounds to it; letters that an answer introduces itself may be other letters.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import permutations

from verifiers.answers import (
    Answer,
    Cases,
    Difference,
    Family,
    Items,
    Lettered,
    Matrix,
    Named,
    Opaque,
    Relation,
    Residue,
    Union,
    Value,
    Words,
    is_symbol,
    is_tuple,
    letters_of,
    rows_of,
    with_names,
)
from verifiers.names import arguments_of
from verifiers.numerals import Clock, same_clock
from verifiers.policy import DEFAULT, Policy
from verifiers.quantities import (
    components,
    progression,
    same_progression,
    same_quantity,
    same_ratio,
    same_residue,
)
from verifiers.reading import compact, read_answer
from verifiers.relations import UNDECIDED, Equality, as_interval, difference_of_sides, same_equation, same_relations
from verifiers.sets import is_set_like, real_set, same_real_sets
from verifiers.trees import Tree
from verifiers.values import same_value
from verifiers.words import prose_words

_UNEQUAL_KINDS: Equality = (False, "structure")


@lru_cache(maxsize=65536)
def same_answer(first: str, second: str, policy: Policy = DEFAULT) -> Equality:
    """Whether two answers are the same mathematics; symmetric."""
    if first == second or compact(first) == compact(second):
        return True, "canonical_string"
    return _same(read_answer(first), read_answer(second), policy)


def _same(first: Answer, second: Answer, policy: Policy) -> Equality:
    if first == second and not isinstance(first, Opaque):
        return True, "same_reading"
    if isinstance(first, Opaque) or isinstance(second, Opaque):
        return (False, "words") if _is_word_beside_formula(first, second) else UNDECIDED
    for kind, same in _PARTICULAR:
        if isinstance(first, kind) or isinstance(second, kind):
            named = isinstance(first, Named) or isinstance(second, Named)
            return _same_named(first, second, policy) if named and kind is not Family else same(first, second, policy)
    if is_set_like(first) or is_set_like(second):
        sets = real_set(first), real_set(second)
        if sets[0] is not None and sets[1] is not None:
            return same_real_sets(sets[0], sets[1]), "real_set"
    if isinstance(first, Named) or isinstance(second, Named):
        return _same_named(first, second, policy)
    first, second = as_interval(first), as_interval(second)
    if isinstance(first, Relation) or isinstance(second, Relation):
        return _same_relation(first, second)
    if isinstance(first, Matrix) or isinstance(second, Matrix):
        return _same_matrix(first, second, policy)
    if isinstance(first, Union | Difference) or isinstance(second, Union | Difference):
        return _same_union(first, second, policy)
    if isinstance(first, Items) or isinstance(second, Items):
        return _same_items(first, second, policy)
    assert isinstance(first, Value)
    assert isinstance(second, Value)
    return same_quantity(first, second, policy)


def _all_same(pairs: Iterator[tuple[Answer, Answer]], rule: str, policy: Policy) -> Equality:
    """Equal if all pairs are, unequal as soon as one is."""
    outcome: Equality = (True, rule)
    for first, second in pairs:
        equal, why = _same(first, second, policy)
        if equal is False:
            return False, f"{rule}/{why}"
        if equal is None:
            outcome = (None, why)
    return outcome


# --- particular kinds -----------------------------------------------------------------------------


def _same_lettered(first: Answer, second: Answer, policy: Policy) -> Equality:
    """`(C) 12` is C, and is 12."""
    if isinstance(first, Lettered) and isinstance(second, Lettered):
        return first.letter == second.letter, "letter"
    lettered, other = (first, second) if isinstance(first, Lettered) else (second, first)
    assert isinstance(lettered, Lettered)
    letter = other.text if isinstance(other, Words) else other.tree[1] if is_symbol(other) else None
    return (True, "letter") if letter == lettered.letter else _same(lettered.answer, other, policy)


def _same_words(first: Answer, second: Answer, _: Policy) -> Equality:
    if isinstance(first, Words) and isinstance(second, Words):
        return first.text == second.text, "words"
    words, other = (first, second) if isinstance(first, Words) else (second, first)
    assert isinstance(words, Words)
    if is_symbol(other):
        return words.text == other.tree[1], "words"
    # A phrase may describe what a formula says; a single word does not.
    return UNDECIDED if " " in words.text else (False, "words")


def _is_word_beside_formula(first: Answer, second: Answer) -> bool:
    """Whether one side is a single word and the other, unread, has none: `True` beside a derivative."""
    word, other = (first, second) if isinstance(first, Words) else (second, first)
    if not isinstance(word, Words) or not isinstance(other, Opaque):
        return False
    return " " not in word.text and len(word.text) > 1 and prose_words(other.text) == 0


def _same_clock(first: Answer, second: Answer, policy: Policy) -> Equality:
    """Two times of day; beside a ratio, `3:45` is one."""
    if isinstance(first, Clock) and isinstance(second, Clock):
        return same_clock(first, second), "time"
    time, other = (first, second) if isinstance(first, Clock) else (second, first)
    assert isinstance(time, Clock)
    if time.half or time.seconds % 60:
        return _UNEQUAL_KINDS
    hours, minutes = divmod(time.seconds // 60, 60)
    ratio = Items(":", ":", tuple(Value(("number", Fraction(part), None)) for part in (hours, minutes)))
    return _same_items(ratio, other, policy) if isinstance(other, Items | Value) else _UNEQUAL_KINDS


def _same_residue(first: Answer, second: Answer, policy: Policy) -> Equality:
    if isinstance(first, Residue) and isinstance(second, Residue):
        return same_residue(first, second)
    residue, other = (first, second) if isinstance(first, Residue) else (second, first)
    assert isinstance(residue, Residue)
    if isinstance(other, Items):
        distinct = _distinct(_flat(other), policy)
        return _same(residue, distinct[0], policy) if len(distinct) == 1 else (False, "length")
    return False, "modulus"


def _progression(family: Answer) -> tuple[Tree, Tree] | None:
    """Start and step of a family over the integers; None where it is no such progression."""
    assert isinstance(family, Family)
    answer = family.answer.answer if isinstance(family.answer, Named) else family.answer
    if len(family.names) != 1 or not family.domain.startswith("Z") or not isinstance(answer, Value):
        return None
    return progression(answer, family.names[0])


_MAX_PARAMETERS = 3


def _same_family(first: Answer, second: Answer, policy: Policy) -> Equality:
    """Whether two families agree, whatever letters their parameters have."""
    residue = first if isinstance(first, Residue) else second if isinstance(second, Residue) else None
    if residue is not None:
        steps = _progression(second if residue is first else first)
        return (same_progression(steps, (residue.value, residue.modulus)), "modulus") if steps else UNDECIDED
    sides = [side if isinstance(side, Family) else Family(side, (), "") for side in (first, second)]
    if sides[0].domain and sides[1].domain and sides[0].domain != sides[1].domain:
        return False, "domain"
    names = [side.names or _undeclared(side.answer, other) for side, other in (sides, sides[::-1])]
    if len(names[0]) != len(names[1]) or len(names[0]) > _MAX_PARAMETERS:
        return (False, "family") if len(names[0]) != len(names[1]) else UNDECIDED
    fresh = [f"parameter_{index}" for index in range(len(names[0]))]
    ours = with_names(sides[0].answer, dict(zip(names[0], fresh, strict=True)))
    outcomes = [
        _same(ours, with_names(sides[1].answer, dict(zip(order, fresh, strict=True))), policy)
        for order in permutations(names[1])
    ]
    if any(equal for equal, _ in outcomes):
        return True, "family"
    domain = sides[0].domain or sides[1].domain
    ours_at, theirs_at = (
        _progression(Family(side.answer, own, domain)) for side, own in zip(sides, names, strict=True)
    )
    if ours_at and theirs_at:
        return same_progression(ours_at, theirs_at), "family"
    return (False, "family") if all(equal is False for equal, _ in outcomes) else UNDECIDED


def _undeclared(answer: Answer, other: Family) -> tuple[str, ...]:
    """The letters that stand for the other side's parameters where they are not introduced."""
    return tuple(sorted(letters_of(answer) - (letters_of(other.answer) - set(other.names))))


def _same_cases(first: Answer, second: Answer, policy: Policy) -> Equality:
    if not (isinstance(first, Cases) and isinstance(second, Cases)):
        return UNDECIDED
    if len(first.branches) != len(second.branches):
        return UNDECIDED
    pairs = [[Items("(", ")", branch) for branch in side.branches] for side in (first, second)]
    equal, rule = _matched(pairs[0], pairs[1], "cases", policy)
    # The last condition may be spelled out, or left as "otherwise".
    return (True, rule) if equal else UNDECIDED


def _same_named(first: Answer, second: Answer, policy: Policy) -> Equality:
    if isinstance(first, Named) and isinstance(second, Named):
        arguments = arguments_of(first.name), arguments_of(second.name)
        renamed = second.answer
        if arguments[0] != arguments[1] and len(arguments[0]) == len(arguments[1]):
            renamed = with_names(second.answer, dict(zip(arguments[1], arguments[0], strict=True)))
        equal, rule = _same(first.answer, renamed, policy)
        if equal is not True and first.equation and second.equation and arguments == ((), ()):
            same, how = same_equation(first.equation, second.equation)
            return (True, how) if same else (equal, rule)
        return equal, rule
    named, other = (first, second) if isinstance(first, Named) else (second, first)
    assert isinstance(named, Named)
    if isinstance(other, Relation) and other.signs == ("=",) and named.equation is not None:
        return same_equation(named.equation, difference_of_sides(other))
    return _same(named.answer, other, policy)


def _same_relation(first: Answer, second: Answer) -> Equality:
    if isinstance(first, Relation) and isinstance(second, Relation):
        return same_relations(first, second)
    relation, other = (first, second) if isinstance(first, Relation) else (second, first)
    # An equation is not its value: `a + 3z = 0` is not 0, nor is `n >= 5` a 5. Inequalities may describe any set.
    assert isinstance(relation, Relation)
    is_mixed = "=" in relation.signs and len(relation.signs) > 1  # `d = 7 < 8`
    return _UNEQUAL_KINDS if isinstance(other, Value) and not is_mixed else UNDECIDED


# --- several answers ------------------------------------------------------------------------------


def _same_union(first: Answer, second: Answer, policy: Policy) -> Equality:
    if isinstance(first, Difference) and isinstance(second, Difference):
        pairs = iter(((first.whole, second.whole), (first.without, second.without)))
        equal, rule = _all_same(pairs, "difference", policy)
        return (True, rule) if equal else UNDECIDED
    sides = [_pieces(side) for side in (first, second)]
    if sides[0] is None or sides[1] is None:
        is_open = any(isinstance(side, Relation | Difference) for side in (first, second))
        return UNDECIDED if is_open else _UNEQUAL_KINDS
    return _matched(sides[0], sides[1], "union", policy)


def _pieces(answer: Answer) -> Sequence[Answer] | None:
    """The intervals that make up an answer, and the members of its finite sets; None where it is not made of them."""
    if isinstance(answer, Union):
        pieces: list[Answer] = []
        for member in answer.members:
            is_finite = isinstance(member, Items) and member.opening == "\\{"
            pieces.extend(member.members if isinstance(member, Items) and is_finite else [as_interval(member)])
        return pieces
    if isinstance(answer, Items):
        if answer.opening:
            return answer.members if answer.opening == "\\{" else [answer]
        return [as_interval(member.answer if isinstance(member, Named) else member) for member in answer.members]
    return None


def _same_items(first: Answer, second: Answer, policy: Policy) -> Equality:
    if not (isinstance(first, Items) and isinstance(second, Items)):
        items, single = (first, second) if isinstance(first, Items) else (second, first)
        assert isinstance(items, Items)
        return _same_as_single(items, single, policy)
    if ":" in (first.opening, second.opening):
        return same_ratio(first.members, second.members) if first.opening == second.opening else _UNEQUAL_KINDS
    ordered = [side.opening in ("(", "[") for side in (first, second)]
    if any(ordered) and "\\{" in (first.opening, second.opening):
        return _UNEQUAL_KINDS
    if not any(ordered):
        return _same_bare(first, second, policy)
    same_brackets = (first.opening, first.closing) == (second.opening, second.closing)
    # Two members may be the ends of an interval: then the brackets count.
    if all(ordered) and len(first.members) == 2 == len(second.members) and not same_brackets:
        return False, "interval_ends"
    if len(first.members) != len(second.members):
        return False, "length"
    if all(ordered) and not same_brackets and not all(is_tuple(side) for side in (first, second)):
        return False, "brackets"
    return _all_same(zip(first.members, second.members, strict=True), "ordered", policy)


def _same_bare(first: Items, second: Items, policy: Policy) -> Equality:
    """Two lists or sets: without order, unless the policy says that bare lists have one."""
    sides = [_flat(side) for side in (first, second)]
    if policy.lists == "ordered" and not first.opening and not second.opening and len(sides[0]) == len(sides[1]):
        return _all_same(zip(sides[0], sides[1], strict=True), "ordered", policy)
    return _matched(sides[0], sides[1], "unordered", policy)


def _same_as_single(items: Items, single: Answer, policy: Policy) -> Equality:
    if items.opening == ":" and len(items.members) == 2 and isinstance(single, Value):
        top, bottom = items.members
        if isinstance(top, Value) and isinstance(bottom, Value):
            return same_value(("divide", top.tree, bottom.tree), single.tree)
    if isinstance(single, Value) and items.opening in ("(", "["):
        parts = components(single.tree, len(items.members))
        if parts:
            return _all_same(zip(items.members, (Value(part) for part in parts), strict=True), "vector", policy)
    distinct = _distinct(_flat(items), policy)
    if len(distinct) == 1 and items.opening in ("", "\\{"):
        return _same(distinct[0], single, policy)
    return (False, "length") if isinstance(single, Value) else UNDECIDED


def _flat(items: Items) -> list[Answer]:
    """Members of an unordered answer, with `1 ± √5` inside it taken apart."""
    members: list[Answer] = []
    for member in items.members:
        inner = member.answer if isinstance(member, Named) else member
        bare = isinstance(inner, Items) and not inner.opening
        members.extend(inner.members if isinstance(inner, Items) and bare else [member])
    return members


def _distinct(members: Sequence[Answer], policy: Policy) -> list[Answer]:
    """The members without those that repeat an earlier one."""
    distinct: list[Answer] = []
    for member in members:
        if not any(_same(member, other, policy)[0] for other in distinct):
            distinct.append(member)
    return distinct


def _matched(first: Sequence[Answer], second: Sequence[Answer], rule: str, policy: Policy) -> Equality:
    """Whether the members can be paired off; names, where all members have one, must agree."""
    if len(first) != len(second):
        first, second = _distinct(first, policy), _distinct(second, policy)
    if len(first) != len(second):
        return False, "length"
    if _names(first) and _names(first) == _names(second):
        first = sorted(first, key=_name)
        second = sorted(second, key=_name)
        return _all_same(zip(first, second, strict=True), rule, policy)
    remaining, doubtful = list(second), False
    for member in first:
        outcomes = [_same(member, other, policy)[0] for other in remaining]
        if True in outcomes:
            remaining.pop(outcomes.index(True))
        elif None in outcomes:
            doubtful = True
        else:
            return False, rule
    return (None, rule) if doubtful else (True, rule)


def _name(answer: Answer) -> str:
    return compact(answer.name) if isinstance(answer, Named) else ""


def _names(answers: Sequence[Answer]) -> set[str] | None:
    names = {_name(answer) for answer in answers}
    return names if len(names) == len(answers) and "" not in names else None


# --- matrices -------------------------------------------------------------------------------------


def _same_matrix(first: Answer, second: Answer, policy: Policy) -> Equality:
    rows = [rows_of(side) for side in (first, second)]
    for index, side in enumerate((first, second)):
        other = rows[1 - index]
        if isinstance(side, Value) and other and (parts := components(side.tree, len(other))):
            rows[index] = [(Value(part),) for part in parts]
    if rows[0] is None or rows[1] is None:
        # A symbol may stand for a matrix; a number, an equation or a set does not.
        return UNDECIDED if any(is_symbol(side) for side in (first, second)) else _UNEQUAL_KINDS
    shapes = [[len(row) for row in side] for side in (rows[0], rows[1])]
    if shapes[0] != shapes[1] and not (isinstance(first, Matrix) and isinstance(second, Matrix)):
        # A tuple stands for a row as well as for a column.
        rows = [[(entry,) for entry in side[0]] if len(side) == 1 else side for side in (rows[0], rows[1])]
    if rows[0] is None or rows[1] is None or [len(row) for row in rows[0]] != [len(row) for row in rows[1]]:
        return False, "matrix_shape"
    pairs = (
        (left, right)
        for ours, theirs in zip(rows[0], rows[1], strict=True)
        for left, right in zip(ours, theirs, strict=True)
    )
    return _all_same(pairs, "matrix", policy)


_PARTICULAR = (
    (Lettered, _same_lettered),
    (Family, _same_family),
    (Residue, _same_residue),
    (Words, _same_words),
    (Clock, _same_clock),
    (Cases, _same_cases),
)
"""Kinds that are compared their own way, whatever stands on the other side."""
