"""What `split` and `build-dpo-pairs` choose from: rollouts and prompts beside every label they have."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from curate.frames import read_frame, read_frames
from pipelines import parquet

READS = (
    "prompts",
    "rollouts",
    "verdicts",
    "duplicates",
    "contamination",
    "annotations/prompts",
    "annotations/rollouts",
)
"""Tables that the choosing stages depend on."""

_ROLLOUT_LABELS = ["rollout_id", "num_tokens", "truncated", "compression_ratio", "repeated_share"]
_PROMPT_LABELS = ["prompt_id", "domain", "level", "num_rollouts", "num_judged", "pass_rate", "length_ratio"]


def prompt_candidates(root: Path) -> pl.DataFrame:
    """A row for each prompt, in file order: `prompt_id`, `verifier`, `has_gold`, labels, and flags.

    The flags are `contaminated` and `duplicate_problem`; a label table that was not made flags nothing.
    """
    columns = ["prompt_id", "answer", "verifier"]
    prompts = read_frame(root, "prompts", columns).unique("prompt_id", keep="first", maintain_order=True)
    annotations = read_frame(root, "annotations/prompts", _PROMPT_LABELS)
    contaminated = read_frame(root, "contamination", ["prompt_id"])["prompt_id"].unique()
    return (
        prompts.with_columns(
            has_gold=pl.col("answer").is_not_null() & (pl.col("answer").str.strip_chars() != ""),
            contaminated=pl.col("prompt_id").is_in(contaminated.implode()),
            duplicate_problem=pl.col("prompt_id").is_in(_not_kept(root, "problem").implode()),
        )
        .drop("answer")
        .join(annotations, on="prompt_id", how="left", maintain_order="left")
        .with_columns(pl.col("num_rollouts", "num_judged").fill_null(0))
    )


def rollout_candidates(root: Path) -> pl.DataFrame:
    """A row for each rollout, in file order: ids, `model`, `sampling_id`, verdict, labels, and flags.

    The flags are those of its prompt, and `duplicate_trace`.
    """
    needed = {"verdicts": "verify", "annotations/rollouts": "annotate", "annotations/prompts": "annotate"}
    if parquet.table_files(root, "rollouts"):
        for table, verb in needed.items():
            parquet.require_files(root, table, hint=f"run `curate {verb} {root}` first")
    rollouts = read_frame(root, "rollouts", ["rollout_id", "prompt_id", "model", "sampling_id"])
    verdicts = read_frame(root, "verdicts", ["rollout_id", "verdict"])
    annotations = read_frame(root, "annotations/rollouts", _ROLLOUT_LABELS)
    flags = ["prompt_id", "has_gold", "contaminated", "duplicate_problem", "domain", "level"]
    return (
        rollouts.with_columns(duplicate_trace=pl.col("rollout_id").is_in(_not_kept(root, "trace").implode()))
        .join(prompt_candidates(root).select(flags), on="prompt_id", how="left", maintain_order="left")
        .join(verdicts, on="rollout_id", how="left", maintain_order="left")
        .join(annotations, on="rollout_id", how="left", maintain_order="left")
    )


def _not_kept(root: Path, kind: str) -> pl.Series:
    duplicates = read_frame(root, "duplicates", ["id", "kind", "keep"])
    return duplicates.filter((pl.col("kind") == kind) & ~pl.col("keep"))["id"]


def problem_lookup(root: Path, prompt_ids: pl.Series) -> Callable[[str], dict[str, Any]]:
    """`prompt_id` -> `problem`, `choices`, `answer`, `verifier`, `source`; only the given ones are held in memory."""
    columns = ["prompt_id", "problem", "choices", "answer", "verifier", "source"]
    wanted = prompt_ids.unique().implode()
    parts = [batch.filter(pl.col("prompt_id").is_in(wanted)) for batch in read_frames(root, "prompts", columns, 65536)]
    problems = pl.concat(parts).unique("prompt_id", keep="first", maintain_order=True)
    places = {prompt_id: place for place, prompt_id in enumerate(problems["prompt_id"])}
    return lambda prompt_id: problems.row(places[prompt_id], named=True)


def first_reason(reasons: Mapping[str, pl.Expr]) -> pl.Expr:
    """The first reason whose condition holds, in the mapping's order; null where none does."""
    return pl.coalesce(*(pl.when(condition).then(pl.lit(reason)) for reason, condition in reasons.items()))


def verdict_reasons() -> dict[str, pl.Expr]:
    """Why a rollout is not known to be right; `unjudged` is one that came after verification or annotation."""
    verdict = pl.col("verdict")
    return {
        "no_gold": ~pl.col("has_gold"),
        "unjudged": verdict.is_null() | pl.col("num_tokens").is_null(),
        **{name: verdict == name for name in ("gold_unreadable", "incorrect", "no_answer", "undecided", "timeout")},
    }
