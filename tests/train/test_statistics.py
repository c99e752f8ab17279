from itertools import combinations, product

import numpy as np
import pytest

from train.statistics import (
    bootstrap_interval,
    cons_at_k,
    paired_comparison,
    pass_at_k,
    wilson_interval,
)


def test_pass_at_k_by_hand():
    # n = 4, c = 1: k = 1 -> 1/4; k = 2 -> 1 - C(3,2)/C(4,2) = 1 - 3/6; k = 4 -> certain.
    for k, expected in ((1, 0.25), (2, 0.5), (4, 1.0)):
        assert pass_at_k(np.array([4]), np.array([1]), k)[0] == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_equals_brute_force_over_subsets(k):
    num_samples = 5
    for num_correct in range(num_samples + 1):
        samples = [True] * num_correct + [False] * (num_samples - num_correct)
        subsets = list(combinations(samples, k))
        expected = sum(any(subset) for subset in subsets) / len(subsets)
        assert pass_at_k(np.array([num_samples]), np.array([num_correct]), k)[0] == pytest.approx(expected)


def test_pass_at_k_stays_exact_with_many_samples():
    value = pass_at_k(np.array([4096, 4096]), np.array([0, 1]), 1024)
    assert value[0] == 0.0
    assert value[1] == pytest.approx(0.25)


def majority_by_hand(votes, correct):
    """Share of correct answers among the most frequent ones, counted plainly."""
    counts = {}
    for vote, right in zip(votes, correct, strict=True):
        if vote >= 0:
            counts.setdefault(vote, [0, right])[0] += 1
    if not counts:
        return 0.0
    most = max(count for count, _ in counts.values())
    winners = [right for count, right in counts.values() if count == most]
    return sum(winners) / len(winners)


@pytest.mark.parametrize(
    ("votes", "correct_class", "expected"),
    [
        ([0, 0, 1], 0, 1.0),
        ([0, 0, 1], 1, 0.0),
        ([0, 1, 0, 1], 1, 0.5),  # a tie of two: the right one is picked half of the time
        ([0, 1, 2], 2, 1 / 3),
        ([-1, -1, 3], 3, 1.0),  # no answer is no vote, however many there are
        ([-1, -1, -1], 0, 0.0),
    ],
)
def test_cons_at_k_by_hand(votes, correct_class, expected):
    votes_PS = np.array([votes])
    assert cons_at_k(votes_PS, votes_PS == correct_class, len(votes), seed=0)[0] == pytest.approx(expected)


def test_cons_at_k_equals_brute_force_for_every_vote():
    for votes in product((-1, 0, 1, 2), repeat=4):
        votes_PS = np.array([votes])
        correct_PS = votes_PS == 1
        expected = majority_by_hand(votes, correct_PS[0].tolist())
        assert cons_at_k(votes_PS, correct_PS, 4, seed=0)[0] == pytest.approx(expected)


def test_cons_at_k_of_subsets_approaches_the_mean_over_all_subsets():
    votes = [0, 0, 0, 1, 1, 2, -1, 1]
    votes_PS = np.array([votes])
    correct_PS = votes_PS == 1
    subsets = [list(subset) for subset in combinations(range(8), 3)]
    expected = np.mean([majority_by_hand(votes_PS[0, s], correct_PS[0, s]) for s in subsets])
    estimate = cons_at_k(votes_PS, correct_PS, 3, seed=1, num_draws=4000)[0]
    assert estimate == pytest.approx(expected, abs=0.03)
    assert cons_at_k(votes_PS, correct_PS, 3, seed=1)[0] == cons_at_k(votes_PS, correct_PS, 3, seed=1)[0]


def test_cons_at_one_is_the_share_of_correct_samples():
    votes_PS = np.array([[0, 0, 1, 1, 1, 2, 3, 4]])
    estimate = cons_at_k(votes_PS, votes_PS == 1, 1, seed=0, num_draws=4000)[0]
    assert estimate == pytest.approx(3 / 8, abs=0.03)


def test_wilson_equals_published_values():
    # Newcombe 1998, table I: 81 of 263 -> 0.2553 to 0.3662; 0 of 20 -> 0 to 0.1611; 1 of 29 -> 0.0061 to 0.1718.
    for successes, trials, low, high in ((81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):
        assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(20, 20)[1] == 1.0


def test_bootstrap_interval_approaches_the_normal_one():
    values = np.tile([0.0, 1.0], 500)
    interval = bootstrap_interval(values, seed=0)
    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.5 - 1.96 * 0.5 / np.sqrt(1000), abs=2e-3)
    assert interval.high == pytest.approx(0.5 + 1.96 * 0.5 / np.sqrt(1000), abs=2e-3)
    assert interval == bootstrap_interval(values, seed=0)


def test_an_interval_without_spread_is_not_empty():
    # Nothing right on 30 problems does not mean that the model never is.
    interval = bootstrap_interval(np.zeros(30), seed=0)
    assert (interval.low, interval.high) == wilson_interval(0, 30)
    assert interval.high > 0.1


def test_a_draw_larger_than_the_memory_bound_is_cut_into_blocks():
    values = np.random.default_rng(0).random(60_000)
    interval = bootstrap_interval(values, seed=0, num_draws=200)
    assert interval.low < interval.mean < interval.high


@pytest.mark.parametrize(("num_problems", "num_samples"), [(30, 4), (200, 1)])
def test_bootstrap_interval_covers_at_its_stated_rate(num_problems, num_samples):
    random = np.random.default_rng(0)
    num_worlds, covered = 600, 0
    # Problems of very different difficulty: Beta(0.7, 1.3) has mean 0.35.
    for world in range(num_worlds):
        difficulty = random.beta(0.7, 1.3, num_problems)
        values = random.binomial(num_samples, difficulty) / num_samples
        interval = bootstrap_interval(values, seed=world, num_draws=1000)
        covered += interval.low <= 0.35 <= interval.high
    # 95 % of 600 with a standard error of 0.9 points.
    assert 0.92 <= covered / num_worlds <= 0.98


def test_a_comparison_of_equals_says_so():
    same = np.array([0.0, 1.0, 0.5])
    comparison = paired_comparison(same, same, seed=0)
    assert comparison.p_value == 1.0
    assert comparison.words == "no gain"


def test_p_value_equals_the_exact_permutation_test():
    first = np.zeros(6)
    second = np.array([1.0, 1.0, 1.0, 1.0, 0.5, -0.5])
    difference = second - first
    flipped = [abs(np.dot(signs, difference)) for signs in product((-1, 1), repeat=6)]
    exact = np.mean(np.array(flipped) >= abs(difference.sum()) - 1e-9)
    assert paired_comparison(first, second, seed=0).p_value == pytest.approx(exact, abs=0.01)


def test_a_pairing_sees_what_two_separate_intervals_cannot():
    random = np.random.default_rng(0)
    first = random.beta(0.5, 0.5, 100)
    second = np.clip(first + 0.05, 0, 1)
    comparison = paired_comparison(first, second, seed=0)
    assert comparison.words == "helps"
    assert comparison.p_value < 0.001
    assert paired_comparison(second, first, seed=0).words == "hurts"
    assert bootstrap_interval(first, 0).high > bootstrap_interval(second, 0).low


def test_p_values_of_equal_models_are_uniform():
    random = np.random.default_rng(1)
    p_values = []
    for world in range(300):
        difficulty = random.beta(0.7, 1.3, 40)
        first, second = (random.binomial(4, difficulty) / 4 for _ in range(2))
        p_values.append(paired_comparison(first, second, seed=world, num_draws=400).p_value)
    # 5 % and 50 % of 300, within about three standard errors.
    assert 0.01 <= np.mean(np.array(p_values) <= 0.05) <= 0.09
    assert 0.41 <= np.mean(np.array(p_values) <= 0.5) <= 0.59
