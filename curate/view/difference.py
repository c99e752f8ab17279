"""The two texts of a pair, cut where they part."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

MOST_PIECES = 2000
"""Longer texts are compared up to here: the time grows with the square of the pieces."""
_LINE_WORDS = 400
"""Lines that differ are compared word by word where both sides have at most so many words."""

_CHANCE_CHARS = 3

_LINES = re.compile(r"[^\n.!?]*(?:[\n.!?]+\s*|\Z)")
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True)
class Piece:
    """Text that both sides share, or what each has in its place."""

    same: bool
    left: str
    right: str


def difference(left: str, right: str) -> list[Piece]:
    """The texts in pieces, whose lefts (and rights) together are the text; the tail beyond `MOST_PIECES` is one."""
    pieces = list(_merged(_by_line(left, right)))
    # A sign or two in common between two differences is chance, and hard to read.
    middle = [replace(piece, same=piece.same and len(piece.left.strip()) > _CHANCE_CHARS) for piece in pieces[1:-1]]
    return list(_merged(iter([*pieces[:1], *middle, *pieces[1:][-1:]])))


def _by_line(left: str, right: str) -> Iterator[Piece]:
    """Sentences and lines first, then the words of those that differ."""
    a, b = (_cut(_LINES, text) for text in (left, right))
    for piece in _matched(a[:MOST_PIECES], b[:MOST_PIECES]):
        yield from [piece] if piece.same else _by_word(piece)
    rest_a, rest_b = "".join(a[MOST_PIECES:]), "".join(b[MOST_PIECES:])
    yield Piece(rest_a == rest_b, rest_a, rest_b)


def _by_word(piece: Piece) -> Iterator[Piece]:
    a, b = (_cut(_WORDS, text) for text in (piece.left, piece.right))
    return _matched(a, b) if max(len(a), len(b)) <= _LINE_WORDS else iter([piece])


def _cut(pattern: re.Pattern[str], text: str) -> list[str]:
    return [found for found in pattern.findall(text) if found]


def _matched(a: list[str], b: list[str]) -> Iterator[Piece]:
    # `autojunk` passes over pieces that occur all the time: a loop of one line a thousand times stays cheap.
    for kind, a_from, a_to, b_from, b_to in SequenceMatcher(None, a, b, autojunk=True).get_opcodes():
        yield Piece(kind == "equal", "".join(a[a_from:a_to]), "".join(b[b_from:b_to]))


def _merged(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Neighbours of one kind as one piece; empty ones are left out."""
    last: Piece | None = None
    for piece in pieces:
        if not (piece.left or piece.right):
            continue
        if last is not None and last.same == piece.same:
            last = Piece(last.same, last.left + piece.left, last.right + piece.right)
        else:
            if last is not None:
                yield last
            last = piece
    if last is not None:
        yield last
