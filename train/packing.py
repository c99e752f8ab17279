"""Packing: documents into rows of one length, best-fit-decreasing."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], row_length: int, ids: Sequence[str] | None = None) -> list[list[int]]:
    """Rows of document indices, none longer than `row_length`: each document goes where it leaves the least space.

    Longest documents first, equal ones by id (by index without ids), so that the rows do not depend on
    the order of the documents. Time is O(n log row_length). A document longer than the row is our bug:
    `batches.fit` has refused or split it.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], ids[index] if ids else "", index))
    rows: list[list[int]] = []
    rows_by_space: dict[int, list[int]] = {}
    spaces: list[int] = []  # the keys of rows_by_space, sorted
    for index in order:
        length = lengths[index]
        assert 0 < length <= row_length, f"a document of {length} tokens for rows of {row_length}"
        place = bisect_left(spaces, length)
        if place == len(spaces):
            row, space = len(rows), row_length
            rows.append([])
        else:
            space = spaces[place]
            row = rows_by_space[space].pop()
            if not rows_by_space[space]:
                del rows_by_space[space], spaces[place]
        rows[row].append(index)
        left = space - length
        if left:
            if left not in rows_by_space:
                rows_by_space[left] = []
                insort(spaces, left)
            rows_by_space[left].append(row)
    return rows


def fill_rate(rows: Sequence[Sequence[int]], lengths: Sequence[int], row_length: int) -> float:
    """Share of the rows' tokens that documents fill, in [0, 1]."""
    return sum(lengths[index] for row in rows for index in row) / max(1, len(rows) * row_length)
