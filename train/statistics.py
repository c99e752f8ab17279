"""What a number of samples is worth: estimators, intervals, paired comparison.

An array over problems carries the suffix P. A problem is the unit that is resampled and its samples
stay inside it: that covers both the choice of problems and the chance in sampling. Resampling the
samples as well would count the second one twice.
"""

from dataclasses import dataclass
from itertools import combinations
from math import comb
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LEVEL = 0.95
"""Coverage of every interval in this project."""

_DRAW_BYTES = 32 << 20
"""Memory that one block of bootstrap draws may take."""


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Mean paired difference (second minus first), its 95 % interval, and the two-sided p-value of none."""

    difference: Interval
    p_value: float

    @property
    def words(self) -> str:
        """`helps` or `hurts` where interval and p-value both leave zero out, else `no gain`.

        They differ where problems are few: of five, no difference at all has a p-value below 0.05.
        """
        if self.p_value >= 1 - LEVEL or self.difference.low <= 0 <= self.difference.high:
            return "no gain"
        return "helps" if self.difference.low > 0 else "hurts"


def pass_at_k(num_samples_P: Integers, num_correct_P: Integers, k: int) -> Floats:
    """Chance that k of a problem's samples hold a correct one, unbiased, shape (P,).

    `1 - C(n - c, k) / C(n, k)` (arXiv:2107.03374, eq. 1), as a product so that nothing overflows.
    """
    assert k >= 1, "k counts samples"
    assert np.all(num_samples_P >= k), "pass@k needs at least k samples of every problem"
    all_wrong_P = np.ones(len(num_samples_P))
    for drawn in range(k):
        all_wrong_P *= np.maximum(num_samples_P - num_correct_P - drawn, 0) / (num_samples_P - drawn)
    return 1.0 - all_wrong_P


def cons_at_k(votes_PS: Integers, correct_PS: NDArray[np.bool_], k: int, seed: int, num_draws: int = 200) -> Floats:
    """Chance that the most frequent answer among k samples is correct, shape (P,).

    `votes_PS` holds the answer's equivalence class, -1 for a sample without an answer, which does
    not vote. Among equally frequent answers one is picked at random: the problem scores the share
    of the tied answers that are correct. Nobody votes: 0. It is the mean over all subsets of k samples,
    or over `num_draws` random ones where there are more, the same for every problem.
    """
    num_samples = votes_PS.shape[1]
    assert 1 <= k <= num_samples, "cons@k needs at least k samples of every problem"
    if comb(num_samples, k) <= num_draws:
        subsets = [list(subset) for subset in combinations(range(num_samples), k)]
    else:
        random = np.random.default_rng([seed, k])
        subsets = [random.permutation(num_samples)[:k].tolist() for _ in range(num_draws)]
    scores = [_majority(votes_PS[:, subset], correct_PS[:, subset]) for subset in subsets]
    return np.asarray(np.mean(scores, axis=0), dtype=np.float64)


def tied(votes_PS: Integers) -> NDArray[np.bool_]:
    """Whether several answers of a problem are equally, and most, frequent, shape (P,)."""
    # Each winning class sums to 1.
    return np.asarray(_winners(votes_PS).sum(axis=1) > 1.5)


def _majority(votes_PS: Integers, correct_PS: NDArray[np.bool_]) -> Floats:
    winner_PS = _winners(votes_PS)
    num_winners_P = winner_PS.sum(axis=1)
    return np.asarray((winner_PS * correct_PS).sum(axis=1) / np.maximum(num_winners_P, 1.0), dtype=np.float64)


def _winners(votes_PS: Integers) -> Floats:
    """1/m at each of the m samples that vote for a most frequent answer, else 0."""
    same_PSS = votes_PS[:, :, None] == votes_PS[:, None, :]
    count_PS = np.where(votes_PS >= 0, same_PSS.sum(axis=2), 0)
    most_P1 = np.maximum(count_PS.max(axis=1, keepdims=True), 1)
    return np.where(count_PS == most_P1, 1.0 / most_P1, 0.0)


def bootstrap_interval(values_P: Floats, seed: int, num_draws: int = 10_000) -> Interval:
    """Mean over problems of one value each in [0, 1], with its interval.

    A bootstrap corrected for bias and skew, widened for few problems (Hesterberg 2015, arXiv:1411.5279,
    section 5.3). Where all problems agree it sees no spread at all: Wilson's interval then stands in,
    each problem a single trial.
    """
    mean = float(np.mean(values_P))
    if np.ptp(values_P) == 0:
        low, high = wilson_interval(mean * len(values_P), len(values_P))
        return Interval(mean, low, high)
    low, high = _bootstrap_ends(values_P, seed, num_draws)
    return Interval(mean, low, high)


def wilson_interval(num_successes: float, num_trials: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion of independent trials."""
    assert num_trials > 0, "an interval needs a trial"
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    rate = num_successes / num_trials
    centre = rate + z * z / (2 * num_trials)
    reach = z * float(np.sqrt(rate * (1 - rate) / num_trials + z * z / (4 * num_trials**2)))
    scale = 1 + z * z / num_trials
    # At 0 and 1 the exact ends are 0 and 1; rounding must not put them outside.
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def paired_comparison(first_P: Floats, second_P: Floats, seed: int, num_draws: int = 10_000) -> Comparison:
    """How much better the second is on the same problems.

    The interval is the bootstrap's over problems. The p-value is of the sign-flip permutation test:
    were both equally good, each problem's difference could as well have had the other sign.
    """
    assert first_P.shape == second_P.shape, "a paired comparison needs the same problems on both sides"
    difference_P = second_P - first_P
    low, high = _bootstrap_ends(difference_P, seed, num_draws)
    return Comparison(
        Interval(float(np.mean(difference_P)), low, high), _sign_flip_p_value(difference_P, seed, num_draws)
    )


def _sign_flip_p_value(difference_P: Floats, seed: int, num_draws: int) -> float:
    random = np.random.default_rng([seed, 1])
    observed = abs(float(np.mean(difference_P))) - 1e-12
    as_extreme = 0
    for block in _blocks(num_draws, len(difference_P)):
        sign_DP = random.integers(0, 2, size=(block, len(difference_P)), dtype=np.int8) * 2 - 1
        as_extreme += int(np.sum(np.abs(sign_DP @ difference_P) / len(difference_P) >= observed))
    return (as_extreme + 1) / (num_draws + 1)


def _bootstrap_ends(values_P: Floats, seed: int, num_draws: int) -> tuple[float, float]:
    """Ends of the interval of the mean: percentiles of resampled means, moved by their bias and the values' skew.

    BCa (Efron 1987, doi:10.1080/01621459.1987.10478410). Plain percentiles miss a high mean too often where most
    problems are hard: with 30 of them nearer 90 than 95 % of the intervals hold the truth.
    """
    num_problems, mean = len(values_P), float(np.mean(values_P))
    if np.ptp(values_P) == 0:
        return mean, mean
    random = np.random.default_rng([seed, 0])
    blocks = [
        values_P[random.integers(0, num_problems, size=(block, num_problems))].mean(axis=1)
        for block in _blocks(num_draws, num_problems)
    ]
    means = np.sort(np.concatenate(blocks))
    normal, deviation_P = NormalDist(), values_P - mean
    # Means that equal ours but for rounding count half.
    bias = normal.inv_cdf(float(np.searchsorted(means, [mean - 1e-12, mean + 1e-12]).mean()) / num_draws)
    skew = float(np.sum(deviation_P**3) / (6 * np.sum(deviation_P**2) ** 1.5))
    reach = _student_reach(num_problems)
    shifted = [bias - reach, bias + reach]
    low, high = np.quantile(means, [normal.cdf(bias + place / (1 - skew * place)) for place in shifted])
    return float(low), float(high)


def _student_reach(num_problems: int) -> float:
    """Normal deviations that make percentiles as wide as Student's t: `sqrt(n / (n - 1)) t_{n-1}`."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    freedom = num_problems - 1
    # Cornish-Fisher expansion of Student's quantile; right to 1 % from five degrees of freedom.
    student = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return float(np.sqrt(num_problems / freedom)) * student


def _blocks(num_draws: int, num_problems: int) -> list[int]:
    """Draws cut into blocks that fit the memory bound."""
    size = max(1, _DRAW_BYTES // (8 * num_problems))
    return [min(size, num_draws - start) for start in range(0, num_draws, size)]
