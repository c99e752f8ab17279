"""Best-fit-decreasing packing."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.packing import fill_rate, pack


def test_the_longest_goes_first_and_the_rest_where_it_fits_best():
    # Documents [1,2,3], [4,5,6,7], [8] in rows of 4: [4,5,6,7] and [1,2,3,8].
    assert pack([3, 4, 1], 4) == [[1], [0, 2]]


def test_best_fit_takes_the_row_with_the_least_space():
    # 6 and 5 leave 4 and 5; the 4 fits the first exactly, though the second has more space.
    assert pack([6, 5, 4, 3], 10) == [[0, 2], [1, 3]]


@given(st.lists(st.integers(1, 50), max_size=200))
def test_every_document_is_in_one_row_and_no_row_overflows(lengths: list[int]):
    rows = pack(lengths, 50)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= 50 for row in rows)
    # At most one row can be half empty: two of them would have been one.
    assert sum(2 * sum(lengths[index] for index in row) <= 50 for row in rows) <= 1


def test_rows_do_not_depend_on_the_order_of_the_documents():
    lengths = np.random.default_rng(0).integers(1, 90, 300).tolist()
    ids = [f"r{index:03}" for index in range(300)]
    order = list(range(300))
    random.Random(0).shuffle(order)
    plain = [[ids[index] for index in row] for row in pack(lengths, 100, ids)]
    shuffled_ids = [ids[index] for index in order]
    shuffled = [[shuffled_ids[index] for index in row] for row in pack([lengths[i] for i in order], 100, shuffled_ids)]
    assert plain == shuffled


def test_rows_of_reasoning_traces_are_almost_full():
    # Log-normal around 4K tokens with a long tail, as reasoning traces are.
    lengths = np.exp(np.random.default_rng(0).normal(8.2, 0.8, 20_000)).astype(int).clip(50, 16384).tolist()
    assert fill_rate(pack(lengths, 16384), lengths, 16384) > 0.995


def test_a_document_longer_than_a_row_is_our_bug():
    with pytest.raises(AssertionError, match="12 tokens"):
        pack([3, 12], 10)


def test_nothing_packs_into_nothing():
    assert pack([], 10) == []
