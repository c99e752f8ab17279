"""Pictures of a run directory: verdicts by source, pass rates, lengths."""

from collections.abc import Callable
from pathlib import Path

import duckdb
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from curate.stats import Row, count_rows, opened, pass_rates, sources

_COLOURS = {"correct": "#2f7d4f", "incorrect": "#b3403a", "no_answer": "#c98a2b", "undecided": "#7d7f86"}


def plots(root: Path, folder: Path) -> list[Path]:
    """PNG files in `folder`: verdicts by source, pass rates, lengths; only those that have something to show."""
    with opened(root) as connection:
        drawn = [
            _save(folder / "verdicts.png", sources(connection).rows, _draw_verdicts),
            _save(folder / "pass_rates.png", pass_rates(connection).rows, _draw_pass_rates),
            _save(folder / "lengths.png", _length_histogram(connection), _draw_lengths),
        ]
    return [path for path in drawn if path is not None]


def _length_histogram(connection: duckdb.DuckDBPyConnection) -> list[Row]:
    """Rollouts by verdict and bin; bin i holds lengths from 2^(i/4) tokens up to 2^((i+1)/4)."""
    return count_rows(
        connection,
        """
        SELECT coalesce(verdict, 'undecided') AS verdict, CAST(floor(4 * log2(num_tokens)) AS INTEGER) AS bin,
               count(*) AS rollouts
        FROM lengths LEFT JOIN verdicts USING (rollout_id) WHERE num_tokens > 0 GROUP BY ALL ORDER BY ALL
        """,
    )


def _save(path: Path, rows: list[Row], draw: Callable[[Axes, list[Row]], None]) -> Path | None:
    if not rows:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    draw(axes, rows)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})  # the same numbers, the same bytes
    return path


def _draw_verdicts(axes: Axes, rows: list[Row]) -> None:
    shown = rows[:20]
    names = [row["source"].replace("$", r"\$") for row in shown]  # `$` would start mathematics
    left = [0] * len(shown)
    for verdict, colour in _COLOURS.items():
        widths = [row[verdict] for row in shown]
        axes.barh(names, widths, left=left, color=colour, label=verdict.replace("_", " "))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("rollouts")
    axes.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.12))


def _draw_pass_rates(axes: Axes, rows: list[Row]) -> None:
    axes.bar([row["pass_rate"] for row in rows], [row["problems"] for row in rows], color="#3c6ea5")
    axes.set_xlabel("pass rate")
    axes.set_ylabel("problems")
    axes.tick_params(axis="x", rotation=45)


def _draw_lengths(axes: Axes, rows: list[Row]) -> None:
    first, last = min(row["bin"] for row in rows), max(row["bin"] for row in rows)
    edges = [2 ** (number / 4) for number in range(first, last + 2)]
    for verdict, colour in _COLOURS.items():
        counts = {row["bin"]: row["rollouts"] for row in rows if row["verdict"] == verdict}
        if counts:
            heights = [counts.get(number, 0) for number in range(first, last + 1)]
            axes.stairs(heights, edges, color=colour, label=verdict.replace("_", " "), linewidth=1.5)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:,.0f}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("length in tokens")
    axes.set_ylabel("rollouts")
    axes.legend(frameon=False)
