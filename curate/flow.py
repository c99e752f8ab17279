"""Where rows go where rows are chosen: how many each reason refuses on the way into each training stage."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from curate.counting import Row, count_rows
from pipelines.tables import STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REASONS: dict[str, str] = {
    "contaminated": "its problem copies a benchmark's",
    "duplicate_problem": "its problem repeats another",
    "duplicate_trace": "repeats another trace",
    "no_gold": "no reference answer",
    "gold_unreadable": "reference answer not readable",
    "no_rollouts": "never sampled",
    "unjudged": "not verified, or nothing could be decided",
    "incorrect": "wrong answer",
    "no_answer": "states no answer",
    "undecided": "verifier cannot decide",
    "timeout": "verifier ran out of time",
    "all_correct": "no wrong trace",
    "all_incorrect": "no right trace",
    "truncated": "cut off",
    "no_usable_chosen": "right traces all cut off or repeats",
    "no_usable_rejected": "wrong traces all cut off or repeats",
    "no_common_group": "right and wrong from different models",
    "other_source": "source not asked for",
    "other_level": "level not asked for",
    "pass_rate_low": "never, or too seldom, solved",
    "pass_rate_high": "solved too often",
    "uneven_lengths": "lengths too uneven",
    "repetitive": "loops",
    "too_short": "too short",
    "too_long": "too long",
    "in_midtrain": "its problem is in midtrain",
    "in_sft": "its problem is in sft",
    "in_rl": "its problem is in rl",
    "over_cap": "enough traces of its problem",
    "over_size": "enough rows",
}
"""Reason of a refusal -> what it means, in about the order in which they are asked; the first that holds is given."""

_ENDS = ("candidates", "chosen")


def flow(connection: duckdb.DuckDBPyConnection) -> list[Row]:
    """A row for the candidates, for each reason, and for what was chosen, with a column for each stage.

    Candidates are rollouts (midtrain, sft) or problems (dpo, rl). A stage that was not made is null
    throughout, and so is a reason that a stage never gave.
    """
    counted = count_rows(
        connection,
        "SELECT stage, coalesce(refusal, 'chosen') AS reason, count(*) AS rows FROM selections GROUP BY ALL",
    )
    counts = {(row["reason"], row["stage"]): row["rows"] for row in counted}
    made = [stage for stage in STAGES if any(of == stage for _, of in counts)]
    if not made:
        return []
    met = {reason for reason, _ in counts} - set(_ENDS)
    reasons = [*(reason for reason in REASONS if reason in met), *sorted(met - set(REASONS))]
    totals = {stage: sum(rows for (_, of), rows in counts.items() if of == stage) for stage in made}
    rows: list[Row] = [{"reason": "candidates", "meaning": "", **{stage: totals.get(stage) for stage in STAGES}}]
    for reason in [*reasons, "chosen"]:
        found = {stage: counts.get((reason, stage)) for stage in STAGES}
        rows.append({"reason": reason, "meaning": REASONS.get(reason, ""), **found})
    return rows


# --- picture --------------------------------------------------------------------------------------

_LEAST_SHARE = 0.01
"""Smaller streams run together in one."""
_TRUNK, _BRANCH = "#3c6ea5", "#c98a2b"
_GROUND = {False: ("#ffffff", "#1f2328"), True: ("#0d1117", "#e6edf3")}
"""Dark or not -> ground and writing."""


def draw_flow(rows: Sequence[Row], path: Path, *, dark: bool = False) -> Path | None:
    """A picture of `flow`: a stream for each stage, out of which every reason branches off; None from no rows."""
    if not rows:
        return None
    from matplotlib.figure import Figure

    stages = [stage for stage in STAGES if rows[0][stage]]
    ground, ink = _GROUND[dark]
    figure = Figure(figsize=(10, 2.1 * max(1, len(stages))), dpi=120, layout="constrained", facecolor=ground)
    for axes, stage in zip(figure.subplots(max(1, len(stages)), squeeze=False)[:, 0], stages, strict=False):
        _draw_stage(axes, stage, {str(row["reason"]): row[stage] or 0 for row in rows}, ink)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})  # the same numbers, the same bytes
    return path


def _draw_stage(axes: "Axes", stage: str, counts: dict[str, int], ink: str) -> None:
    total, chosen = counts["candidates"], counts["chosen"]
    branches = [
        (reason, rows) for reason, rows in counts.items() if reason not in _ENDS and rows >= total * _LEAST_SHARE
    ]
    if rest := total - chosen - sum(rows for _, rows in branches):
        branches.append(("other", rest))
    bottom = 0.0
    for at, (reason, rows) in enumerate(branches):
        share = rows / total
        axes.fill_between([at, at + 1], [bottom, bottom], 1, color=_TRUNK, linewidth=0)
        _draw_branch(axes, at + 1, bottom, share)
        axes.text(at + 1.55, -0.42, f"{reason}\n{rows:,}", ha="center", va="top", fontsize=7, color=ink)
        bottom += share
    end = len(branches) + 1
    axes.fill_between([end - 1, end + 0.4], [bottom, bottom], 1, color=_TRUNK, linewidth=0)
    axes.text(end + 0.5, 1, f"{chosen:,} chosen", va="top", fontsize=9, color=ink)
    axes.text(-0.1, 1, f"{stage}\n{total:,}", ha="right", va="top", fontsize=9, color=ink)
    axes.set(xlim=(-1.2, end + 1.6), ylim=(-0.8, 1.05))
    axes.axis("off")


def _draw_branch(axes: "Axes", at: float, bottom: float, share: float) -> None:
    """A stream of height `share` that leaves the trunk's lower edge at `at` and turns down."""
    steps: list[Any] = [k / 20 for k in range(21)]
    eased = [step * step * (3 - 2 * step) for step in steps]
    low = [bottom - (bottom + 0.35) * ease for ease in eased]
    thin = [share * (1 - ease) + min(share, 0.12) * ease for ease in eased]
    high = [edge + height for edge, height in zip(low, thin, strict=True)]
    axes.fill_between([at + 0.55 * step for step in steps], low, high, color=_BRANCH, alpha=0.8, linewidth=0)
