r"""Whether two answers are the same, in layers, cheapest first; None where no layer decides.

The policy where mathematics leaves a choice:
- A bare list `1, 2` has no order; beside a tuple it takes the tuple's. `\{1, 2\}` is no tuple.
- `50%` equals `0.5`, and equals `50`: a question that asks for a percentage is answered by either.
- A unit in one answer only is dressing; in both, it counts (5 cm is not 5 m, but is 0.05 m). So does a base.
- A name (`x =`, `x ∈`) is dressing, but in lists where every member has one.
- Written decimals are exact. A decimal of six significant digits or more equals an irrational number or
  a fraction that rounds or truncates to it.
"""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache

from verifiers.answers import Answer, Items, Matrix, Named, Opaque, Relation, Union, Value, Words, compact, read_answer
from verifiers.expressions import Tree, symbols_of
from verifiers.units import unit_of
from verifiers.values import exact_value, points, same_value

Equality = tuple[bool | None, str]
"""Equal, unequal or undecided, and the rule that says so."""

_UNEQUAL_KINDS: Equality = (False, "structure")
_UNDECIDED: Equality = (None, "undecided")


@lru_cache(maxsize=65536)
def same_answer(first: str, second: str) -> Equality:
    """Whether two answers are the same mathematics; symmetric."""
    if first == second or compact(first) == compact(second):
        return True, "canonical_string"
    return _same(read_answer(first), read_answer(second))


def _same(first: Answer, second: Answer) -> Equality:
    if first == second and not isinstance(first, Opaque):
        return True, "same_reading"
    if isinstance(first, Opaque) or isinstance(second, Opaque):
        return _UNDECIDED
    if isinstance(first, Words) or isinstance(second, Words):
        return _same_words(first, second)
    if isinstance(first, Named) or isinstance(second, Named):
        return _same_named(first, second)
    first, second = _as_interval(first), _as_interval(second)
    if isinstance(first, Relation) or isinstance(second, Relation):
        return _same_relation(first, second)
    if isinstance(first, Matrix) or isinstance(second, Matrix):
        return _same_matrix(first, second)
    if isinstance(first, Union) or isinstance(second, Union):
        return _same_union(first, second)
    if isinstance(first, Items) or isinstance(second, Items):
        return _same_items(first, second)
    return _same_quantity(first, second)


def _all_same(pairs: Iterator[tuple[Answer, Answer]], rule: str) -> Equality:
    """Equal if all pairs are, unequal as soon as one is."""
    outcome: Equality = (True, rule)
    for first, second in pairs:
        equal, why = _same(first, second)
        if equal is False:
            return False, f"{rule}/{why}"
        if equal is None:
            outcome = (None, why)
    return outcome


def _same_words(first: Answer, second: Answer) -> Equality:
    if isinstance(first, Words) and isinstance(second, Words):
        return first.text == second.text, "words"
    words, other = (first, second) if isinstance(first, Words) else (second, first)
    assert isinstance(words, Words)
    if isinstance(other, Value) and other.tree[0] in ("symbol", "constant"):
        return words.text == other.tree[1], "words"
    # A phrase may describe what a formula says; a single word does not.
    return _UNDECIDED if " " in words.text else (False, "words")


def _same_named(first: Answer, second: Answer) -> Equality:
    if isinstance(first, Named) and isinstance(second, Named):
        return _same(first.answer, second.answer)
    named, other = (first, second) if isinstance(first, Named) else (second, first)
    assert isinstance(named, Named)
    if isinstance(other, Relation) and other.signs == ("=",) and named.equation is not None:
        return _same_equation(named.equation, _difference(other))
    return _same(named.answer, other)


# --- relations ------------------------------------------------------------------------------------


def _difference(relation: Relation) -> Tree | None:
    left, right = relation.trees[0], relation.trees[-1]
    return ("subtract", left, right) if left and right else None


def _same_equation(first: Tree | None, second: Tree | None) -> Equality:
    """Equal if one side-difference is a constant multiple of the other; another relation stays undecided."""
    if first is None or second is None:
        return _UNDECIDED
    ratios = set()
    for point in points(tuple(sorted(symbols_of(first) | symbols_of(second)))):
        left, right = exact_value(first, point), exact_value(second, point)
        if left is None or right is None or left == 0 or right == 0:
            return _proportional(first, second)
        ratios.add(left / right)
    if len(ratios) == 1:
        return True, "equation"
    # Linear equations with other ratios have other solutions; for others a factor may differ.
    linear = _is_linear(first) and _is_linear(second)
    return (False, "equation") if linear else _UNDECIDED


def _proportional(first: Tree, second: Tree) -> Equality:
    equal, _ = same_value(first, second)
    opposite, _ = same_value(first, ("negate", second))
    return (True, "equation") if equal or opposite else _UNDECIDED


def _is_linear(tree: Tree) -> bool:
    """Whether the expression is linear along the line through two test points."""
    names = tuple(sorted(symbols_of(tree)))
    start, towards = points(names)[:2]
    return _line(lambda at: exact_value(tree, {name: start[name] + at * towards[name] for name in names})) is not None


def _line(value_at: Callable[[int], Fraction | None]) -> tuple[Fraction, Fraction] | None:
    """Slope and offset of a function that takes values on a line at 0, 1, 2, 5 and 7; None where it does not."""
    offset, one = value_at(0), value_at(1)
    if offset is None or one is None:
        return None
    slope = one - offset
    return (slope, offset) if all(value_at(at) == offset + at * slope for at in (2, 5, 7)) else None


_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!=", "=": "="}
_INFINITE: Tree = ("constant", "infinity")


def _as_interval(answer: Answer) -> Answer:
    """An inequality that bounds one expression by constants as the interval it describes; anything else as it is."""
    if not isinstance(answer, Relation) or None in answer.trees:
        return answer
    trees = [tree for tree in answer.trees if tree is not None]
    signs = list(answer.signs)
    if set(signs) <= {">", ">="}:
        trees, signs = trees[::-1], [_FLIPPED[sign] for sign in reversed(signs)]
    free = [index for index, tree in enumerate(trees) if symbols_of(tree)]
    if not set(signs) <= {"<", "<="} or len(free) != 1 or len(trees) > 3 or (len(trees) == 3 and free != [1]):
        return answer
    at = free[0]
    low = (trees[at - 1], signs[at - 1]) if at > 0 else None
    high = (trees[at + 1], signs[at]) if at + 1 < len(trees) else None
    return _interval(trees[at], low, high) or answer


_End = tuple[Tree, str] | None
"""What bounds an unknown on one side, and the sign between them; None: nothing does."""


def _interval(unknown: Tree, low: _End, high: _End) -> Items | None:
    """`low < slope * x + offset < high` solved for x; a function `f(x)`, read as a product, is one unknown."""
    names = symbols_of(unknown)
    line: tuple[Fraction, Fraction] | None = (Fraction(1), Fraction(0))
    if len(names) == 1:
        line = _line(lambda at: exact_value(unknown, dict.fromkeys(names, Fraction(at))))
    elif unknown[0] != "multiply" or unknown[1][0] != "symbol":
        line = None
    if line is None or line[0] == 0:
        return None
    ends = [_solved(end, *line) for end in (low, high)]
    if line[0] < 0:
        ends.reverse()
    (left, opening), (right, closing) = ends
    return Items(
        "[" if opening == "<=" else "(",
        "]" if closing == "<=" else ")",
        (Value(left or ("negate", _INFINITE)), Value(right or _INFINITE)),
    )


def _solved(end: _End, slope: Fraction, offset: Fraction) -> tuple[Tree | None, str]:
    if end is None:
        return None, "<"
    tree, sign = end
    if slope == 1 and offset == 0:
        return tree, sign
    exact = exact_value(tree)
    if exact is not None:
        return ("number", (exact - offset) / slope, None), sign
    return ("divide", ("subtract", tree, ("number", offset, None)), ("number", slope, None)), sign


def _same_relation(first: Answer, second: Answer) -> Equality:
    if not (isinstance(first, Relation) and isinstance(second, Relation)):
        relation, other = (first, second) if isinstance(first, Relation) else (second, first)
        # An equation is not its value: `a + 3z = 0` is not 0. Inequalities may describe any set.
        assert isinstance(relation, Relation)
        return (False, "structure") if relation.signs == ("=",) and isinstance(other, Value) else _UNDECIDED
    if first.signs == second.signs == ("=",):
        return _same_equation(_difference(first), _difference(second))
    if len(first.signs) != len(second.signs):
        return _UNDECIDED
    for terms, signs in ((second.trees, second.signs), _reversed(second)):
        if signs == first.signs:
            outcomes = [
                same_value(left, right)[0] if left and right else None
                for left, right in zip(first.trees, terms, strict=True)
            ]
            if all(outcomes):
                return True, "relation"
    same_terms = {symbols_of(tree) for tree in first.trees if tree} == {
        symbols_of(tree) for tree in second.trees if tree
    }
    return (False, "relation") if same_terms and set(first.signs) == {"!="} == set(second.signs) else _UNDECIDED


def _reversed(relation: Relation) -> tuple[tuple[Tree | None, ...], tuple[str, ...]]:
    return relation.trees[::-1], tuple(_FLIPPED.get(sign, sign) for sign in reversed(relation.signs))


# --- several answers ------------------------------------------------------------------------------


def _same_union(first: Answer, second: Answer) -> Equality:
    sides = [_pieces(side) for side in (first, second)]
    if sides[0] is None or sides[1] is None:
        return _UNDECIDED if isinstance(first, Relation) or isinstance(second, Relation) else _UNEQUAL_KINDS
    return _matched(sides[0], sides[1], "union")


def _pieces(answer: Answer) -> Sequence[Answer] | None:
    """The intervals and sets that make up an answer; None where it is not made of them."""
    if isinstance(answer, Union):
        return [_as_interval(member) for member in answer.members]
    if isinstance(answer, Items):
        if answer.opening:
            return [answer]
        return [_as_interval(member.answer if isinstance(member, Named) else member) for member in answer.members]
    return None


def _same_items(first: Answer, second: Answer) -> Equality:
    if not (isinstance(first, Items) and isinstance(second, Items)):
        items, single = (first, second) if isinstance(first, Items) else (second, first)
        assert isinstance(items, Items)
        return _same_as_single(items, single)
    if ":" in (first.opening, second.opening) and first.opening != second.opening:
        return _UNEQUAL_KINDS
    ordered = [side.opening in ("(", "[", ":") for side in (first, second)]
    if any(ordered) and "\\{" in (first.opening, second.opening):
        return _UNEQUAL_KINDS
    if not any(ordered):
        return _matched(_flat(first), _flat(second), "unordered")
    same_brackets = (first.opening, first.closing) == (second.opening, second.closing)
    # Two members may be the ends of an interval: then the brackets count.
    if all(ordered) and len(first.members) == 2 == len(second.members) and not same_brackets:
        return False, "interval_ends"
    if len(first.members) != len(second.members):
        return False, "length"
    return _all_same(zip(first.members, second.members, strict=True), "ordered")


def _same_as_single(items: Items, single: Answer) -> Equality:
    if items.opening == ":" and len(items.members) == 2 and isinstance(single, Value):
        top, bottom = items.members
        if isinstance(top, Value) and isinstance(bottom, Value):
            return same_value(("divide", top.tree, bottom.tree), single.tree)
    distinct = _distinct(_flat(items))
    if len(distinct) == 1 and items.opening in ("", "\\{"):
        return _same(distinct[0], single)
    return (False, "length") if isinstance(single, Value) else _UNDECIDED


def _flat(items: Items) -> list[Answer]:
    """Members of an unordered answer, with `1 ± √5` inside it taken apart."""
    members: list[Answer] = []
    for member in items.members:
        bare = isinstance(member, Items) and not member.opening
        members.extend(member.members if isinstance(member, Items) and bare else [member])
    return members


def _distinct(members: Sequence[Answer]) -> list[Answer]:
    """The members without those that repeat an earlier one."""
    distinct: list[Answer] = []
    for member in members:
        if not any(_same(member, other)[0] for other in distinct):
            distinct.append(member)
    return distinct


def _matched(first: Sequence[Answer], second: Sequence[Answer], rule: str) -> Equality:
    """Whether the members can be paired off; names, where all members have one, must agree."""
    if len(first) != len(second):
        first, second = _distinct(first), _distinct(second)
    if len(first) != len(second):
        return False, "length"
    if _names(first) and _names(first) == _names(second):
        first = sorted(first, key=_name)
        second = sorted(second, key=_name)
        return _all_same(zip(first, second, strict=True), rule)
    remaining, doubtful = list(second), False
    for member in first:
        outcomes = [_same(member, other)[0] for other in remaining]
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


def _same_matrix(first: Answer, second: Answer) -> Equality:
    rows = [_rows(side) for side in (first, second)]
    if rows[0] is None or rows[1] is None:
        return _UNDECIDED
    shapes = [[len(row) for row in side] for side in (rows[0], rows[1])]
    if shapes[0] != shapes[1]:
        return False, "matrix_shape"
    pairs = (
        (left, right)
        for ours, theirs in zip(rows[0], rows[1], strict=True)
        for left, right in zip(ours, theirs, strict=True)
    )
    return _all_same(pairs, "matrix")


def _rows(answer: Answer) -> Sequence[Sequence[Answer]] | None:
    """Rows of a matrix; a tuple is a column."""
    if isinstance(answer, Matrix):
        return answer.rows
    if isinstance(answer, Items) and answer.opening in ("(", "["):
        return [(member,) for member in answer.members]
    return None


# --- one quantity ---------------------------------------------------------------------------------


def _same_quantity(first: Answer, second: Answer) -> Equality:
    if not (isinstance(first, Value) and isinstance(second, Value)):
        return _UNEQUAL_KINDS
    if first.base and second.base and first.base != second.base:
        same, _ = same_value(first.tree, second.tree)
        return bool(same), "base"
    if (first.base is None) != (second.base is None):
        return False, "base"
    if first.unit and second.unit:
        if first.unit.dimensions != second.unit.dimensions:
            return False, "unit"
        if first.unit.scale != second.unit.scale:
            return same_value(_scaled(first.tree, first.unit.scale), _scaled(second.tree, second.unit.scale))
    equal, rule = same_value(first.tree, second.tree)
    if equal:
        return equal, rule
    # Percent and degree are factors where only one side wears them.
    if first.percent != second.percent:
        factor: Tree = ("number", Fraction(1, 100), None)
    elif (first.unit in _DEGREES) != (second.unit in _DEGREES):
        factor = ("constant", "degree")
    else:
        return equal, rule
    if first.percent or (first.unit in _DEGREES and not second.percent):
        return same_value(("multiply", first.tree, factor), second.tree)
    return same_value(first.tree, ("multiply", second.tree, factor))


_DEGREES = (unit_of("°"),)


def _scaled(tree: Tree, scale: Fraction) -> Tree:
    return ("multiply", tree, ("number", scale, None))
