import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.advantages import annealed_temperature, group_advantages, group_refusal, overlong_penalty, rebalanced

EVERY = torch.tensor([[True, True, True, True]])


def test_grpo_by_hand():
    # Rewards 1, -1, -1, -1: mean -1/2, deviations 3/2, -1/2 ..., variance (9/4 + 3/4) / 4 = 3/4.
    advantages = group_advantages(torch.tensor([[1.0, -1.0, -1.0, -1.0]]), EVERY)
    std = math.sqrt(0.75)
    torch.testing.assert_close(advantages, torch.tensor([[1.5 / std, -0.5 / std, -0.5 / std, -0.5 / std]]))


def test_dr_grpo_leaves_the_deviation_out():
    advantages = group_advantages(torch.tensor([[1.0, -1.0, -1.0, -1.0]]), EVERY, "dr_grpo")
    torch.testing.assert_close(advantages, torch.tensor([[1.5, -0.5, -0.5, -0.5]]))


def test_rloo_compares_with_the_others():
    # 1 - mean(-1, -1, -1) = 2; -1 - mean(1, -1, -1) = -1 + 1/3.
    advantages = group_advantages(torch.tensor([[1.0, -1.0, -1.0, -1.0]]), EVERY, "rloo")
    torch.testing.assert_close(advantages, torch.tensor([[2.0, -2 / 3, -2 / 3, -2 / 3]]))


def test_a_balanced_group_keeps_its_rewards():
    rewards = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    torch.testing.assert_close(group_advantages(rewards, EVERY), rewards, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
@pytest.mark.parametrize("value", [1.0, -1.0, 0.1])
def test_a_unanimous_group_gives_exactly_zero(kind, value):
    # Three times 0.1 has a mean that is not 0.1 in floating point: an epsilon would blow it up.
    rewards = torch.full((2, 3), value)
    advantages = group_advantages(rewards, torch.ones(2, 3, dtype=torch.bool), kind)
    assert torch.equal(advantages, torch.zeros(2, 3))


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_what_is_not_valid_does_not_count(kind):
    # Second row: one valid sample; third: none. The padding holds junk.
    rewards = torch.tensor([[1.0, -1.0, 7.0], [1.0, math.nan, 5.0], [3.0, 2.0, math.inf]])
    valid = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    advantages = group_advantages(rewards, valid, kind)
    alone = group_advantages(torch.tensor([[1.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool), kind)
    torch.testing.assert_close(advantages[0, :2], alone[0])
    assert torch.equal(advantages[0, 2:], torch.zeros(1))
    assert torch.equal(advantages[1:], torch.zeros(2, 3))


@given(st.lists(st.sampled_from([-1.0, 1.0]), min_size=2, max_size=32))
def test_advantages_sum_to_zero_and_have_unit_deviation(rewards):
    advantages = group_advantages(torch.tensor([rewards], dtype=torch.float64), torch.ones(1, len(rewards)).bool())
    assert abs(float(advantages.sum())) < 1e-9
    expected = 1.0 if len(set(rewards)) > 1 else 0.0
    assert float(advantages.square().mean()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rewards", "max_pass_rate", "expected"),
    [
        ([1.0, -1.0], 0.5, None),
        ([1.0, 1.0, -1.0], 0.5, "too_easy"),
        ([1.0, 1.0, -1.0], 1.0, None),
        ([-1.0, -1.0, None], 0.5, "all_wrong"),
        ([1.0, 1.0], 0.5, "all_correct"),
        ([1.0, None, None], 1.0, "unjudged"),
        ([], 1.0, "unjudged"),
    ],
)
def test_group_refusal(rewards, max_pass_rate, expected):
    assert group_refusal(rewards, max_pass_rate) == expected


def test_rebalancing_keeps_all_correct_and_as_many_incorrect():
    rewards = [-1.0, 1.0, -1.0, None, -1.0, 1.0, -1.0, -1.0]
    kept = rebalanced(rewards, [f"id{i}" for i in range(8)], seed=0)
    assert kept == sorted(kept)
    assert {1, 5} < set(kept)
    assert len(kept) == 4
    assert 3 not in kept


def test_rebalancing_draws_by_id_not_by_place():
    ids = ["a", "b", "c", "d", "e", "f"]
    rewards = [1.0, -1.0, -1.0, -1.0, -1.0, -1.0]
    kept = {ids[index] for index in rebalanced(rewards, ids, seed=0)}
    reverse = list(reversed(range(6)))
    kept_reversed = rebalanced([rewards[i] for i in reverse], [ids[i] for i in reverse], seed=0)
    assert {ids[reverse[index]] for index in kept_reversed} == kept
    drawn = {frozenset(rebalanced(rewards, ids, seed)) for seed in range(40)}
    assert len(drawn) == 5, "every incorrect sample is drawn under some seed"


def test_rebalancing_leaves_a_majority_of_correct_ones_alone():
    assert rebalanced([1.0, 1.0, -1.0], ["a", "b", "c"], seed=0) == [0, 1, 2]


def test_temperature_falls_over_the_first_half_and_is_then_held():
    temperatures = [annealed_temperature(step, 100) for step in (0, 25, 50, 99)]
    assert temperatures == pytest.approx([1.0, 0.8, 0.6, 0.6])
    assert annealed_temperature(0, 1, start=1.0, end=0.6) == 1.0
    assert annealed_temperature(3, 10, start=0.7, end=0.7) == pytest.approx(0.7)
    assert annealed_temperature(0, 10, start=1.0, end=0.6, over=0.0) == 0.6, "no descent: the end from the start"


def test_the_overlong_penalty_grows_over_the_last_tokens():
    lengths = torch.tensor([10, 80, 85, 90, 100])
    assert overlong_penalty(lengths, 100, 20).tolist() == pytest.approx([0, 0, -0.25, -0.5, -1])
