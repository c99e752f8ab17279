"""How pictures of training look and are saved: the same numbers give the same bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, BLUE = "#222222", "#0072B2"


@contextmanager
def picture(path: Path, width: float, height: float) -> "Iterator[Figure]":
    """A figure of that many inches, which the end of this block saves as `path` with the suffixes `.png` and `.svg`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "tracemill", "svg.fonttype": "none", "font.size": 10, "text.color": INK}):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        png, svg = files(path)
        figure.savefig(png, dpi=160, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None})


def files(path: Path) -> list[Path]:
    """What `picture` writes for `path`."""
    return [path.with_suffix(".png"), path.with_suffix(".svg")]


def bare(axes: "Axes", grid: Literal["x", "y"], colour: str = "#e6e6e6") -> None:
    """Nothing around what is drawn, and lines of one direction behind it."""
    axes.tick_params(length=0)
    axes.grid(axis=grid, color=colour, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
