"""What an evaluation found: as a value, a line of a table, and an `eval.json`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import UserError
from pipelines.runner import write_text
from train.statistics import Interval


@dataclass(frozen=True)
class ProblemScore:
    """What one problem's samples came to; kept so that two models can be compared pair by pair."""

    prompt_id: str
    num_correct: int


@dataclass(frozen=True)
class EvalResult:
    """One model on one benchmark."""

    benchmark: str
    model: str
    weights: str
    """Digest of the model's folder (of its name and address, for a server)."""
    config: dict[str, Any]
    num_problems: int
    num_samples: int
    """Of each problem, over all runs."""
    pass_at: dict[int, Interval]
    """By k; pass@1 is avg@n, the mean over all samples."""
    cons_at: dict[int, Interval]
    """By k: is the most frequent answer right; equally frequent ones share the point."""
    truncation_rate: float
    mean_tokens: float
    """Of a completion."""
    num_unjudged: int
    """Samples that no verifier could judge, or that the sampler refused: they count as wrong."""
    set_aside: dict[str, int]
    """Problems not asked because no verifier can read their reference answer, by fault."""
    seconds: float
    problems: list[ProblemScore]
    num_tied: int = 0
    """Problems whose majority over all samples is a tie: `cons_at` gives them the share of it that is correct."""
    run_means: list[float] = field(default_factory=list)
    """Accuracy of each separate run; their mean is pass@1."""

    def scores(self) -> NDArray[np.float64]:
        """Share of correct samples of each problem, in order of prompt id, shape (P,)."""
        return np.array([problem.num_correct / self.num_samples for problem in self.problems])

    def row(self) -> dict[str, Any]:
        """The result as one line of a table; accuracies in percent with the interval's ends."""
        accuracies = {f"pass@{k}": percent(interval) for k, interval in _ends(self.pass_at)}
        consensus = {f"cons@{k}": percent(interval) for k, interval in _ends(self.cons_at)[-1:]}
        ties = {"ties": self.num_tied} if consensus else {}
        runs = {f"{len(self.run_means)} runs": spread(self.run_means)} if len(self.run_means) > 1 else {}
        return {
            "benchmark": self.benchmark,
            "problems": self.num_problems,
            "samples": self.num_samples,
            **accuracies,
            **runs,
            **consensus,
            **ties,
            "truncated": f"{100 * self.truncation_rate:.1f} %",
            "tokens": round(self.mean_tokens),
            "unjudged": self.num_unjudged,
            "seconds": round(self.seconds, 1),
        }

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """The result stored in an `eval.json`."""
        if not path.is_file():
            raise UserError(f"no evaluation `{path}`", hint="run `train eval` first")
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            for name in ("pass_at", "cons_at"):
                fields[name] = {int(k): Interval(**interval) for k, interval in fields[name].items()}
            fields["problems"] = [ProblemScore(**problem) for problem in fields["problems"]]
            return cls(**fields)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"`{path}` is not an evaluation: {error}", hint="delete it and run `train eval`") from None


def percent(interval: Interval, *, signed: bool = False) -> str:
    """`41.2 [38.1, 44.3]`, or `+3.1 [-0.2, +6.4]`."""
    sign = "+" if signed else ""
    middle, low, high = (f"{100 * value:{sign}.1f}" for value in (interval.mean, interval.low, interval.high))
    return f"{middle} [{low}, {high}]"


def spread(accuracies: Sequence[float]) -> str:
    """`41.2 ± 2.0`: mean and standard deviation over several runs, in percent."""
    return f"{100 * mean(accuracies):.1f} ± {100 * stdev(accuracies):.1f}"


def _ends(by_k: dict[int, Interval]) -> list[tuple[int, Interval]]:
    """First and last entry, once where they are the same."""
    return [(k, by_k[k]) for k in sorted({min(by_k), max(by_k)})] if by_k else []
