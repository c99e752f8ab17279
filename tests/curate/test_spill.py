"""Texts come bucket by bucket, whatever order they are stored in, and nothing is left behind."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from curate import spill

Found = dict[int, dict[int, str]]


def batches(order: list[int]) -> list[tuple[pl.Series, pl.DataFrame]]:
    numbers = [order[first : first + 3] for first in range(0, len(order), 3)]
    return [(pl.Series(part), pl.DataFrame({"text": [f"text {row}" for row in part]})) for part in numbers]


def test_each_bucket_has_its_rows(tmp_path: Path):
    wanted = pl.DataFrame(
        {"bucket": [0, 0, 1, 1, 2], "row": [5, 1, 1, 8, 0]}, schema={"bucket": pl.UInt32, "row": pl.UInt32}
    )
    found = {}
    for bucket, rows in spill.regrouped(tmp_path, wanted, batches([0, 1, 5, 8])):
        found[bucket] = dict(rows.select("row", "text").iter_rows())
    assert found == {0: {5: "text 5", 1: "text 1"}, 1: {1: "text 1", 8: "text 8"}, 2: {0: "text 0"}}
    assert list(found) == [0, 1, 2]
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_where_it_is_given_up(tmp_path: Path):
    wanted = pl.DataFrame({"bucket": [0, 1], "row": [0, 1]}, schema={"bucket": pl.UInt32, "row": pl.UInt32})
    given_up = spill.regrouped(tmp_path, wanted, batches([0, 1]))
    next(given_up)
    assert len(list(tmp_path.iterdir())) == 2
    given_up.close()
    assert list(tmp_path.iterdir()) == []


def test_rows_may_come_in_any_order(tmp_path: Path):
    wanted = pl.DataFrame({"bucket": [1, 0, 1, 0], "row": [7, 7, 2, 9]})
    found = {
        bucket: sorted(rows["row"]) for bucket, rows in spill.regrouped(tmp_path, wanted, batches([9, 2, 4, 7, 0, 3]))
    }
    assert found == {0: [7, 9], 1: [2, 7]}


def test_two_streams_of_one_pass(tmp_path: Path):
    def rows(*numbers: int) -> pa.RecordBatch:
        return pa.RecordBatch.from_pydict({"row": pa.array(numbers, pa.int64())})

    passes = []

    def pairs() -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        passes.append("one")
        yield rows(1, 2), rows()
        yield rows(), rows(7)
        yield rows(3), rows(8, 9)

    left, right = spill.one_after_the_other(tmp_path, rows().schema, pairs())
    assert [batch["row"].to_pylist() for batch in left] == [[1, 2], [], [3]]
    assert [batch["row"].to_pylist() for batch in right] == [[], [7], [8, 9]]
    assert passes == ["one"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([], []), ([10, 10, 10, 10], [0, 0, 1, 1]), ([50, 1, 1], [0, 2, 2]), ([5], [0])],
)
def test_buckets_hold_about_so_many_bytes(sizes: list[int], expected: list[int]):
    assert spill.buckets(pl.Series("bytes", sizes, dtype=pl.Int32), 20).to_list() == expected


def test_there_are_never_too_many_buckets():
    numbers = spill.buckets(pl.Series([100] * 10_000), 1)
    assert numbers.is_sorted()
    assert numbers.n_unique() == 500
