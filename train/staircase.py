"""The staircase: what each training stage added, as a table and as a picture."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.errors import UserError
from pipelines.tables import STAGES
from train import pictures
from train.results import EvalResult, percent
from train.statistics import Comparison, paired_comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = ("base", *STAGES)
"""Models in the order they are made; each is evaluated in the folder of its name in a run directory."""

_TITLES = {"base": "Base", "midtrain": "Mid-training", "sft": "SFT", "dpo": "Rollout DPO", "rl": "RL"}
# Okabe and Ito's palette, told apart by every kind of colour vision; the words say it as well.
_GREY, _SKY = "#8a8a8a", "#56B4E9"
_COLOURS = {"helps": "#007a5a", "hurts": "#D55E00", "no gain": "#6f6f6f"}


@dataclass(frozen=True)
class Step:
    """One model of the staircase, and how it compares with the one before."""

    name: str
    result: EvalResult
    change: Comparison | None
    """None for the first."""
    seconds: float | None
    """Training time; None where it is not known."""

    def row(self) -> dict[str, Any]:
        """The step as one line of a table; accuracies and changes in percent with their 95 % intervals."""
        largest = max(self.result.pass_at)
        return {
            "step": self.name,
            "pass@1": percent(self.result.pass_at[1]),
            f"pass@{largest}": percent(self.result.pass_at[largest]),
            "change": None if self.change is None else percent(self.change.difference, signed=True),
            "p": None if self.change is None else round(self.change.p_value, 4),
            "verdict": None if self.change is None else self.change.words,
            "tokens": round(self.result.mean_tokens),
            "trained in": None if self.seconds is None else duration(self.seconds),
        }


def duration(seconds: float) -> str:
    """`47 s`, `3 min 05 s` or `2 h 14 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def staircase(run: Path, benchmark: str | None = None) -> list[Step]:
    """The steps of a run directory that have been evaluated, in order; on its only benchmark unless named.

    A step's change is against the step before it, problem by problem.
    """
    folders = [path for name in STEPS for path in sorted((run / name / "eval").glob("*")) if path.is_dir()]
    benchmarks = sorted({path.name for path in folders})
    if not benchmarks:
        raise UserError(f"no evaluation in `{run}`", hint="run `train all` with a benchmark, or `train eval`")
    if benchmark is None and len(benchmarks) > 1:
        raise UserError(f"`{run}` has {len(benchmarks)} benchmarks", hint=f"name one: {', '.join(benchmarks)}")
    chosen = benchmarks[0] if benchmark is None else benchmark
    steps: list[Step] = []
    for name in STEPS:
        path = run / name / "eval" / chosen / "eval.json"
        if path.is_file():
            result = EvalResult.read(path)
            change = compare(steps[-1].result, result) if steps else None
            steps.append(Step(name, result, change, _seconds(run / name)))
    if not steps:
        raise UserError(f"no evaluation on `{chosen}` in `{run}`", hint=f"there are {', '.join(benchmarks)}")
    return steps


def compare(first: EvalResult, second: EvalResult) -> Comparison:
    """How much more of the same problems' samples the second model gets right."""
    require_same_problems(second.model, [problem.prompt_id for problem in second.problems], first)
    return paired_comparison(first.scores(), second.scores(), seed=0)


def require_same_problems(model: str, prompt_ids: Sequence[str], other: EvalResult) -> None:
    """A `UserError` where `model` is asked other problems of a benchmark than those of `other`."""
    if list(prompt_ids) != [problem.prompt_id for problem in other.problems]:
        raise UserError(
            f"`{model}` and `{other.model}` were asked different problems of `{other.benchmark}`",
            hint="evaluate both on the same file",
        )


def _seconds(stage: Path) -> float | None:
    """Training time of a stage, summed over its steps."""
    path = stage / "metrics.jsonl"
    if not path.is_file():
        return None
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sum(line["seconds"] for line in lines)


# --- picture --------------------------------------------------------------------------------------


def draw_staircase(steps: Sequence[Step], path: Path) -> list[Path]:
    """The steps drawn as a staircase, to `path` with the suffixes `.png` and `.svg`; returns both."""
    with pictures.picture(path, max(7.5, 1.4 + 1.55 * len(steps)), 4.8) as figure:
        axes = figure.add_subplot()
        _draw_treads(axes, steps)
        _draw_changes(axes, steps)
        _label(axes, steps)
    return pictures.files(path)


def _draw_treads(axes: "Axes", steps: Sequence[Step]) -> None:
    """A tread for each step: pass@1 over its interval, and pass@k as the ceiling above it."""
    for place, step in enumerate(steps):
        one = step.result.pass_at[1]
        left, right = place - 0.5, place + 0.5
        axes.fill_between([left, right], 100 * one.low, 100 * one.high, color=_SKY, alpha=0.35, linewidth=0)
        axes.plot([left, right], [100 * one.mean] * 2, color=pictures.BLUE, linewidth=3, solid_capstyle="butt")
        if place:
            before = 100 * steps[place - 1].result.pass_at[1].mean
            axes.plot([left, left], [before, 100 * one.mean], color=pictures.BLUE, linewidth=1)
        largest = max(step.result.pass_at)
        if largest > 1:
            ceiling = 100 * step.result.pass_at[largest].mean
            axes.plot([left + 0.06, right - 0.06], [ceiling] * 2, color=_GREY, linewidth=1.2, linestyle=(0, (4, 3)))
            _note(
                axes, f"{ceiling:.1f}", (right - 0.06, ceiling), 2, ha="right", fontsize=8.5, color=_COLOURS["no gain"]
            )


def _draw_changes(axes: "Axes", steps: Sequence[Step]) -> None:
    """The accuracy above each tread, and below it what it gained."""
    for place, step in enumerate(steps):
        one = step.result.pass_at[1]
        _note(axes, f"{100 * one.mean:.1f} %", (place, 100 * one.high), 3, fontsize=12, fontweight="bold")
        if step.change is not None:
            words = f"{100 * step.change.difference.mean:+.1f}  {step.change.words}"
            _note(axes, words, (place, 100 * one.low), -4, fontsize=9.5, color=_COLOURS[step.change.words])


def _note(axes: "Axes", text: str, at: tuple[float, float], points: float, *, ha: str = "center", **font: Any) -> None:
    """Write `text` that many points above (below, where negative) a place, over whatever lines are there."""
    axes.annotate(
        text,
        at,
        xytext=(0, points),
        textcoords="offset points",
        ha=ha,
        va="bottom" if points > 0 else "top",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
        **font,
    )


def _label(axes: "Axes", steps: Sequence[Step]) -> None:
    """Titles, axes and the scale."""
    first = steps[0].result
    largest = max(first.pass_at)
    highest = max(100 * interval.high for step in steps for interval in step.result.pass_at.values())
    axes.set_ylim(-9, min(108, highest + 12))
    axes.set_xlim(-0.55, len(steps) - 0.45)
    axes.set_yticks(np.arange(0, min(100, highest + 12) + 1, 20))
    axes.set_ylabel("problems solved, %")
    names = [f"{_TITLES[step.name]}\n{duration(step.seconds) if step.seconds else ' '}" for step in steps]
    axes.set_xticks(range(len(steps)), names)
    pictures.bare(axes, "y")
    ceiling = f"; dashed: pass@{largest}" if largest > 1 else ""
    axes.set_title(
        f"{first.benchmark}: {first.num_problems:,} problems × {first.num_samples} samples\n",
        loc="left",
        fontsize=12,
        fontweight="bold",
    )
    axes.text(
        0,
        1.02,
        f"pass@1 with its 95 % interval, change against the step before{ceiling}",
        transform=axes.transAxes,
        fontsize=9.5,
        color="#555555",
    )
