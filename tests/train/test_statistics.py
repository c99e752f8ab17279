from itertools import combinations, product

import numpy as np
import pytest

from train.statistics import (
    bootstrap_interval,
    cons_at_k,
    paired_comparison,
    pass_at_k,
    tied,
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


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_cons_at_k_is_the_mean_over_all_subsets(k):
    votes_PS = np.array([[0, 0, 0, 1, 1, 2, -1, 1], [1, 1, 2, 2, 3, 3, -1, -1], [1, -1, -1, -1, -1, -1, -1, -1]])
    correct_PS = votes_PS == 1
    for votes, correct, found in zip(votes_PS, correct_PS, cons_at_k(votes_PS, correct_PS, k, seed=0), strict=True):
        subsets = [list(subset) for subset in combinations(range(8), k)]
        assert found == pytest.approx(np.mean([majority_by_hand(votes[s], correct[s]) for s in subsets]))


def test_cons_at_k_in_closed_form():
    # Everybody votes; of 9 samples 5 are right and the others agree on one wrong answer. Three of them have a right
    # majority with 2 or 3 right ones: (C(5,2) C(4,1) + C(5,3)) / C(9,3) = 50 / 84; one of them: 5 / 9.
    votes_PS = np.array([[1] * 5 + [0] * 4])
    for k, expected in ((1, 5 / 9), (3, 50 / 84), (9, 1.0)):
        assert cons_at_k(votes_PS, votes_PS == 1, k, seed=0)[0] == pytest.approx(expected)


def test_cons_at_k_draws_subsets_where_there_are_many():
    votes_PS = np.array([[1] * 12 + [0] * 8])
    # Of C(20, 3) = 1140 subsets of three, (C(12,2) 8 + C(12,3)) have a right majority: 748.
    estimate = cons_at_k(votes_PS, votes_PS == 1, 3, seed=1, num_draws=1000)[0]
    assert estimate == pytest.approx(748 / 1140, abs=0.045), "three standard errors"
    assert estimate != pytest.approx(748 / 1140, abs=1e-9)
    assert estimate == cons_at_k(votes_PS, votes_PS == 1, 3, seed=1, num_draws=1000)[0]


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


@pytest.mark.parametrize(
    ("num_problems", "num_samples", "difficulty"),
    [
        (30, 4, (0.7, 1.3)),  # problems of every kind, 35 % solved
        (200, 1, (0.7, 1.3)),
        (30, 64, (0.3, 0.3)),  # most always or never solved
        (30, 64, (0.3, 2.7)),  # hard ones: 10 % solved
        (30, 4, (0.1, 0.9)),  # nearly all hopeless
    ],
)
def test_the_interval_covers_at_its_stated_rate(num_problems, num_samples, difficulty):
    random = np.random.default_rng(0)
    num_worlds, covered = 600, 0
    truth = difficulty[0] / sum(difficulty)
    for world in range(num_worlds):
        values = random.binomial(num_samples, random.beta(*difficulty, num_problems)) / num_samples
        interval = bootstrap_interval(values, seed=world, num_draws=1000)
        covered += interval.low <= truth <= interval.high
    # 95 % of 600, and three standard errors of 0.9 points.
    assert 0.923 <= covered / num_worlds <= 0.977


def test_few_problems_that_are_nearly_all_hopeless_are_the_limit_of_the_interval():
    # 5 % solved, by a few of 30 problems that may all be missing from the draw: no resampling can know of them.
    random = np.random.default_rng(0)
    intervals = [
        bootstrap_interval(random.binomial(64, random.beta(0.05, 0.95, 30)) / 64, seed=world, num_draws=1000)
        for world in range(600)
    ]
    assert 0.85 <= np.mean([interval.low <= 0.05 <= interval.high for interval in intervals]) <= 0.92


def test_the_ends_are_scipys_but_for_the_widening():
    from scipy.stats import bootstrap

    values = np.random.default_rng(3).beta(0.3, 1.5, 400)
    ends = bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", vectorized=True, rng=0).confidence_interval
    ours = bootstrap_interval(values, seed=0, num_draws=20_000)
    width = ends.high - ends.low
    assert (ours.low, ours.high) == pytest.approx((ends.low, ends.high), abs=0.03 * width)


def test_the_ends_lean_towards_the_longer_tail():
    # One success of 30 by hand: the interval reaches farther up than down, and stays where accuracies can be.
    interval = bootstrap_interval(np.array([1.0] + [0.0] * 29), seed=0)
    assert 0 <= interval.low < interval.mean < interval.high < 1
    assert interval.high - interval.mean > interval.mean - interval.low
    for values in ([0.0, 1.0], [0.0, 0.0, 1.0]):
        few = bootstrap_interval(np.array(values), seed=0)
        assert (few.low, few.high) == (0.0, 1.0), "two or three problems say next to nothing"


def test_a_comparison_of_equals_says_so():
    same = np.array([0.0, 1.0, 0.5])
    comparison = paired_comparison(same, same, seed=0)
    assert comparison.p_value == 1.0
    assert comparison.words == "no gain"


def test_five_problems_decide_nothing():
    comparison = paired_comparison(np.zeros(5), np.full(5, 0.5), seed=0)
    assert comparison.difference.low > 0
    assert comparison.words == "no gain", "their signs agree by chance in one of sixteen"
    assert paired_comparison(np.zeros(8), np.full(8, 0.5), seed=0).words == "helps"


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
    for world in range(400):
        difficulty = random.beta(0.7, 1.3, 40)
        # With few samples a difference of exactly nothing is frequent, and its p-value is 1.
        first, second = (random.binomial(64, difficulty) / 64 for _ in range(2))
        p_values.append(paired_comparison(first, second, seed=world, num_draws=400).p_value)
    # Kolmogorov's distance from the uniform distribution: 1 % of such samples of 400 exceed 1.63 / 20.
    below = np.arange(1, 401) / 400
    assert np.max(np.abs(np.sort(p_values) - below)) < 1.63 / 20
    assert np.mean(np.array(p_values) <= 0.05) <= 0.083, "5 %, and three standard errors"


def test_a_tie_is_several_most_frequent_answers():
    votes = np.array([[0, 0, 1, 2], [0, 0, 1, 1], [0, 1, 2, 3], [-1, -1, -1, -1], [-1, -1, -1, 5], [0, 0, 0, 0]])
    assert tied(votes).tolist() == [False, True, True, False, False, False]
