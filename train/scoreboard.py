"""Results of an evaluation side by side: against another model's, problem by problem, and as a picture."""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.runner import write_text
from train import pictures
from train.results import EvalResult, percent
from train.staircase import compare
from train.statistics import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_log = logging.getLogger(__name__)

_MAY_DIFFER = {"samples", "runs", "seed", "engine", "server_url", "max_model_len"}
"""Settings that say how often and by what a model is asked, not what."""

_GREY, _ORANGE = "#8a8a8a", "#D55E00"


@dataclass(frozen=True)
class Versus:
    """A model and another on the same problems of one benchmark."""

    result: EvalResult
    other: EvalResult
    change: Comparison
    """The model minus the other."""

    def row(self) -> dict[str, Any]:
        """One line of a table; accuracies and difference in percent with their 95 % intervals."""
        return {
            "benchmark": self.result.benchmark,
            "pass@1": percent(self.result.pass_at[1]),
            "against": percent(self.other.pass_at[1]),
            "difference": percent(self.change.difference, signed=True),
            "p": f"{self.change.p_value:.4f}",
            "verdict": self.change.words,
        }


def earlier_results(benchmarks: Iterable[str], folder: Path) -> list[EvalResult]:
    """What an evaluation with `--out folder` found on each of the benchmarks."""
    return [EvalResult.read(folder / "eval" / benchmark / "eval.json") for benchmark in benchmarks]


def compared(result: EvalResult, other: EvalResult, out: Path) -> Versus:
    """`result` beside another model's, written to `out/eval/BENCHMARK/against.json`; other settings are warned of."""
    for key in sorted((result.config.keys() & other.config.keys()) - _MAY_DIFFER):
        if result.config[key] != other.config[key]:
            words = "%s: the two were not asked alike: `%s` is %s here, there %s"
            _log.warning(words, result.benchmark, key, result.config[key], other.config[key])
    change = compare(other, result)
    against = {"model": other.model, "weights": other.weights, "config": other.config}
    text = json.dumps({"against": against, **asdict(change)}, indent=1)
    write_text(out / "eval" / result.benchmark / "against.json", f"{text}\n")
    return Versus(result, other, change)


# --- picture --------------------------------------------------------------------------------------


def draw_results(results: Sequence[EvalResult], path: Path, others: Sequence[EvalResult] = ()) -> list[Path]:
    """Each benchmark's accuracies with their intervals, to `path` with the suffixes `.png` and `.svg`; returns both.

    `others` are another model's results on the same benchmarks, drawn below each in grey.
    """
    with pictures.picture(path, 8, 1.7 + 0.75 * len(results)) as figure:
        axes = figure.add_subplot()
        for place, result in enumerate(results):
            _draw_result(axes, result, place, labelled=place == 0)
        for place, other in enumerate(others):
            name = f"{_name(other)}, pass@1" if place == 0 else None
            _draw_interval(axes, other, place + 0.28, _GREY, name)
        _label(axes, results)
    return pictures.files(path)


def _draw_result(axes: "Axes", result: EvalResult, place: int, *, labelled: bool) -> None:
    """pass@1 over its interval; the consensus and pass@k of all samples as marks beside it."""
    _draw_interval(axes, result, place, pictures.BLUE, "pass@1, 95 % interval" if labelled else None)
    axes.annotate(
        f"{100 * result.pass_at[1].mean:.1f} %",
        (100 * result.pass_at[1].mean, place),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        fontweight="bold",
    )
    for by_k, name, marker, colour in ((result.cons_at, "cons", "D", _ORANGE), (result.pass_at, "pass", "o", _GREY)):
        most = max(by_k, default=1)
        if most > 1:
            label = f"{name}@{most}" if labelled else None
            axes.plot(100 * by_k[most].mean, place, marker, mfc="white", mec=colour, ls="", ms=6, label=label)


def _draw_interval(axes: "Axes", result: EvalResult, height: float, colour: str, label: str | None) -> None:
    one = result.pass_at[1]
    axes.plot([100 * one.low, 100 * one.high], [height, height], color=colour, linewidth=3, alpha=0.5)
    axes.plot(100 * one.mean, height, "o", color=colour, ms=7, ls="", label=label)


def _label(axes: "Axes", results: Sequence[EvalResult]) -> None:
    """Names, scale and legend."""
    names = [f"{result.benchmark}\n{result.num_problems:,} × {result.num_samples}" for result in results]
    axes.set_yticks(range(len(results)), names)
    axes.set_ylim(len(results) - 0.4, -0.6)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("problems solved, %")
    pictures.bare(axes, "x")
    axes.set_title(_name(results[0]), loc="left", fontsize=12, fontweight="bold", pad=24)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, frameon=False, fontsize=9, handletextpad=0.3)


def _name(result: EvalResult) -> str:
    """The model as its folder and the one above call it: `rl/final`."""
    return "/".join(Path(result.model).parts[-2:])
