"""How often an evaluation's 95 % interval holds the truth, in simulated worlds whose accuracy is known.

python benchmarks/intervals.py

A world draws its problems' difficulties from a Beta distribution and a number of samples of each problem. Beside ours
are plain percentiles of the bootstrap over problems, which are what is commonly reported. Both fall back on Wilson's
interval where all problems agree. A rate near 95 % has a standard error of half a point with 2,000 worlds.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.commands import table_text

sys.path[0] = str(Path(__file__).parents[1])  # beside this file, `import train` would find another file

DIFFICULTIES = {(0.7, 1.3): "of every kind", (0.3, 0.3): "most always or never solved", (0.3, 2.7): "hard",
                (0.1, 0.9): "nearly all hopeless", (0.05, 0.95): "a few carry everything"}  # fmt: skip
"""Beta distribution -> what its problems are like."""

DRAWS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=2000)
    parser.add_argument("--problems", type=int, nargs="+", default=[30, 200])
    parser.add_argument("--samples", type=int, nargs="+", default=[4, 64])
    arguments = parser.parse_args()
    rows = [
        coverage(difficulty, num_problems, num_samples, arguments.worlds)
        for num_problems in arguments.problems
        for difficulty in DIFFICULTIES
        for num_samples in arguments.samples
    ]
    print(table_text(rows))


def coverage(difficulty: tuple[float, float], num_problems: int, num_samples: int, num_worlds: int) -> dict[str, Any]:
    """One line of the table: the share of worlds whose interval holds their accuracy, and how wide it is."""
    from train.statistics import bootstrap_interval

    random = np.random.default_rng([num_problems, num_samples])
    truth = difficulty[0] / sum(difficulty)
    held = {"percentiles": 0, "ours": 0}
    widths = []
    for world in range(num_worlds):
        values_P = random.binomial(num_samples, random.beta(*difficulty, num_problems)) / num_samples
        ours = bootstrap_interval(values_P, seed=world, num_draws=DRAWS)
        low, high = percentiles(values_P, random) if np.ptp(values_P) else (ours.low, ours.high)
        held["percentiles"] += low <= truth <= high
        held["ours"] += ours.low <= truth <= ours.high
        widths.append(ours.high - ours.low)
    return {
        "difficulty": f"Beta{difficulty}: {DIFFICULTIES[difficulty]}",
        "accuracy": f"{100 * truth:.0f} %",
        "problems": num_problems,
        "samples": num_samples,
        **{name: f"{100 * number / num_worlds:.1f}" for name, number in held.items()},
        "width of ours": f"{100 * np.mean(widths):.1f}",
    }


def percentiles(values_P: NDArray[np.float64], random: np.random.Generator) -> tuple[float, float]:
    """The plain interval: percentiles of resampled means."""
    means = values_P[random.integers(0, len(values_P), size=(DRAWS, len(values_P)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
