"""Curves: how a stage went, step by step, as a picture for light pages and one for dark ones."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import UserError
from train import pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COMMON = {"grad_norm": "gradient norm", "learning_rate": "learning rate", "tokens_per_s": "tokens a second"}
_PANELS: dict[str, dict[str, str]] = {
    "midtrain": {"loss": "loss, nats a token", **_COMMON},
    "sft": {"loss": "loss, nats a token", **_COMMON},
    "dpo": {"loss": "loss", "accuracy": "pairs the right way round", "margin": "margin of rewards", **_COMMON},
    "rl": {
        "reward": "reward",
        "pass_rate": "pass rate",
        "length_mean": "tokens of a completion",
        "entropy": "entropy, nats a token",
        "mismatch_mean": "sampler against trainer, nats",
        "grad_norm": "gradient norm",
    },
}
"""Stage -> column of `metrics.jsonl` -> title of its panel."""

_COLUMNS = 3
_THEMES = {
    "curves": {"paper": "white", "ink": "#222222", "grid": "#e6e6e6", "raw": "#56B4E9", "smooth": "#0072B2"},
    "curves-dark": {"paper": "#15171a", "ink": "#e8e8e8", "grid": "#33373d", "raw": "#2f6f99", "smooth": "#7cc7f2"},
}
"""File name -> colours; blue on both, so that a picture in a page and its dark twin say the same."""


def draw_curves(folder: Path, stage: str) -> list[Path]:
    """`curves.png` and `curves-dark.png` in a stage's folder, from its `metrics.jsonl`; returns both."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"no `{path}`", hint=f"run `train {stage}` first")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    panels = {key: title for key, title in _PANELS[stage].items() if any(key in line for line in lines)}
    return [_draw(folder / f"{name}.png", stage, lines, panels, colours) for name, colours in _THEMES.items()]


def _draw(
    path: Path, stage: str, lines: Sequence[Mapping[str, float]], panels: Mapping[str, str], colours: dict[str, str]
) -> Path:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = -(-len(panels) // _COLUMNS)
    ink = colours["ink"]
    with mpl.rc_context({"font.size": 9, "text.color": ink, "xtick.color": ink, "ytick.color": ink}):
        figure = Figure(figsize=(10, 0.5 + 2.4 * rows), layout="constrained", facecolor=colours["paper"])
        grid = figure.subplots(rows, _COLUMNS, squeeze=False).flat
        for axes, (key, title) in zip(grid, panels.items(), strict=False):
            _draw_panel(axes, key, [(line["step"] + 1, line[key]) for line in lines if key in line], title, colours)
        for axes in list(grid)[len(panels) :]:
            axes.set_visible(False)
        figure.suptitle(f"{stage}: {len(lines):,} steps", x=0.01, ha="left", fontweight="bold")
        figure.savefig(path, dpi=130, metadata={"Software": None})  # the same numbers, the same bytes
    return path


def _draw_panel(
    axes: "Axes", key: str, points: Sequence[tuple[float, float]], title: str, colours: dict[str, str]
) -> None:
    """Every step as it was, and above it the mean of the steps around; a schedule needs none."""
    from matplotlib.ticker import MaxNLocator

    steps, values = np.array(points, dtype=float).T
    window = _window(len(points))
    plain = key == "learning_rate" or len(points) < window + 4
    axes.plot(
        steps,
        values,
        color=colours["smooth" if plain else "raw"],
        linewidth=1,
        marker="." if len(points) < 40 else None,
    )
    if not plain:
        axes.plot(steps, running_mean(values, window), color=colours["smooth"], linewidth=2)
    axes.set_title(title, loc="left", fontsize=9.5)
    axes.set_facecolor(colours["paper"])
    pictures.bare(axes, "y", colours["grid"])
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _window(num_steps: int) -> int:
    """Steps that a mean is taken over, an odd number: about a twentieth of them, three at least."""
    return max(3, num_steps // 20 | 1)


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean of each value and its neighbours, `window` in all and fewer at the ends, shape as `values`."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    starts = np.maximum(0, places - window // 2)
    ends = np.minimum(len(values), places + window // 2 + 1)
    means: NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    return means
