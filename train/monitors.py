"""What is watched while RL trains: limits on a step's figures, and the words for one that is crossed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from pydantic import Field

from pipelines.config import Config

Watch = Literal["truncation", "no_signal", "entropy", "kl", "length", "grad_norm"]

_MOVES = {
    "reward": "reward {:.2f} -> {:.2f}",
    "reward_hard": "of hard prompts {:.2f} -> {:.2f}",
    "reward_medium": "of medium ones {:.2f} -> {:.2f}",
    "reward_easy": "of easy ones {:.2f} -> {:.2f}",
    "length_mean": "length {:,.0f} -> {:,.0f} tokens",
    "entropy": "entropy {:.3f} -> {:.3f} nats a token",
    "truncation_rate": "truncated {:.1%} -> {:.1%}",
}
"""Column -> words for its mean over the first steps and over the last."""

_WINDOW_STEPS = 5
"""Steps whose mean is compared with a limit: single steps of few prompts say little."""


class MonitorConfig(Config):
    """Limits, over the last five steps; crossing one is a warning, or ends the run where `stop_on` names it."""

    max_truncation: float = Field(0.25, gt=0)
    """Share of rollouts cut off at `max_tokens`."""
    max_no_signal: float = Field(0.75, gt=0)
    """Share of sampled groups that could not be trained on."""
    min_entropy: float = Field(0.005, ge=0)
    """Mean entropy of a token, in nats: below it the policy has little left to choose."""
    max_kl: float = Field(0.5, gt=0)
    """Mean KL of a token against the starting policy (k3), in nats."""
    max_length_growth: float = Field(2.0, gt=1)
    """Mean length of a rollout against that of the first steps."""
    max_grad_norm: float = Field(10.0, gt=1)
    """Norm of one step's gradient against the median of the steps before."""
    stop_on: tuple[Watch, ...] = ()
    """Limits that end the run; its last checkpoint stays."""


@dataclass(frozen=True)
class Finding:
    """A limit that was crossed, in words."""

    watch: Watch
    words: str
    hint: str


Row = Mapping[str, float]


class Monitor:
    """Looks at each step's figures; a limit is reported when it is crossed, and again only after a step below it."""

    def __init__(self, config: MonitorConfig, earlier: Iterable[Row] = ()) -> None:
        """`earlier` are the steps of a run that goes on."""
        self._config = config
        self._first: list[Row] = []
        self._recent: deque[Row] = deque(maxlen=_WINDOW_STEPS)
        self._norms: list[float] = []
        self._crossed: set[Watch] = set()
        for row in earlier:
            list(self.look(row))

    def look(self, row: Row) -> Iterator[Finding]:
        """What `row`, the columns of one step, crosses together with the steps before it."""
        self._recent.append(row)
        if len(self._first) < _WINDOW_STEPS:
            self._first.append(row)
        findings = [finding for check in _CHECKS if (finding := check(self)) is not None]
        self._norms.append(row["grad_norm"])
        yield from (finding for finding in findings if finding.watch not in self._crossed)
        self._crossed = {finding.watch for finding in findings}

    def course(self) -> str:
        """What moved, in words: from the mean of the first steps to that of the last; no step, no words."""
        moves = []
        span = max(1, min(_WINDOW_STEPS, len(self._norms) // 2))  # of few steps, no more than half at either end
        first, last = self._first[:span], list(self._recent)[-span:]
        for column, words in _MOVES.items():
            ends = [[row[column] for row in rows if column in row] for rows in (first, last)]
            if all(ends):
                moves.append(words.format(*map(fmean, ends)))
        return ", ".join(moves)

    def _mean(self, column: str) -> float:
        return fmean(row[column] for row in self._recent)

    def _truncation(self) -> Finding | None:
        share, most = self._mean("truncation_rate"), self._config.max_truncation
        words = f"{share:.0%} of the rollouts are cut off at `max_tokens` (limit {most:.0%})"
        return Finding("truncation", words, "raise `rl.max_tokens`, or set `rl.overlong`") if share > most else None

    def _no_signal(self) -> Finding | None:
        reasons = ("all_wrong", "all_correct", "too_easy", "unjudged")
        lost = {reason: self._mean(f"groups_{reason}") for reason in reasons}
        share = sum(lost.values()) / (sum(lost.values()) + self._mean("groups_used"))
        most = self._config.max_no_signal
        main = max(lost, key=lambda reason: lost[reason]).replace("_", " ")
        words = f"{share:.0%} of the groups teach nothing, most of them {main} (limit {most:.0%})"
        hint = "easier prompts" if main == "all wrong" else "harder prompts, by their pass rate (`curate split`)"
        return Finding("no_signal", words, hint) if share > most else None

    def _entropy(self) -> Finding | None:
        entropy, least = self._mean("entropy"), self._config.min_entropy
        words = f"the entropy of a token has fallen to {entropy:.2g} nats (limit {least:g})"
        hint = "a smaller `rl.learning_rate`, a larger `rl.clip_high` or a higher temperature"
        return Finding("entropy", words, hint) if entropy < least else None

    def _kl(self) -> Finding | None:
        kl, most = self._mean("kl"), self._config.max_kl
        words = f"the policy is {kl:.2g} nats a token from where it started (limit {most:g})"
        return Finding("kl", words, "a smaller `rl.learning_rate`, or `rl.kl_weight`") if kl > most else None

    def _length(self) -> Finding | None:
        growth, most = self._mean("length_mean") / self._first_length(), self._config.max_length_growth
        words = f"rollouts are {growth:.1f} times as long as at first (limit {most:g})"
        return Finding("length", words, "`rl.overlong=penalty`, or prompts of even length") if growth > most else None

    def _first_length(self) -> float:
        return fmean(row["length_mean"] for row in self._first)

    def _grad_norm(self) -> Finding | None:
        if len(self._norms) < _WINDOW_STEPS:
            return None
        times, most = self._recent[-1]["grad_norm"] / max(1e-12, median(self._norms)), self._config.max_grad_norm
        words = f"the gradient is {times:.0f} times as large as it mostly was (limit {most:g})"
        return (
            Finding("grad_norm", words, "a smaller `rl.learning_rate`, or look at the step's rollouts")
            if times > most
            else None
        )


_CHECKS: tuple[Callable[[Monitor], Finding | None], ...] = (
    Monitor._truncation,
    Monitor._no_signal,
    Monitor._entropy,
    Monitor._kl,
    Monitor._length,
    Monitor._grad_norm,
)
