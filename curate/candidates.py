"""What `split` and `build-dpo-pairs` choose from: rollouts and prompts beside every label they have."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from curate import overrides
from curate.frames import aligned_frames, gathered, read_frame, read_frames
from pipelines import parquet

READS = (
    "prompts",
    "rollouts",
    "verdicts",
    "duplicates",
    "contamination",
    "annotations/prompts",
    "annotations/rollouts",
    "overrides",
)
"""Tables that the choosing stages depend on."""

_ROLLOUT_COLUMNS = {
    "rollouts": ["prompt_id", "model", "sampling_id"],
    "verdicts": ["verdict"],
    "annotations/rollouts": ["num_tokens", "truncated", "compression_ratio", "repeated_share"],
}
_PROMPT_LABELS = ["prompt_id", "domain", "level", "num_rollouts", "num_judged", "pass_rate", "length_ratio"]


def prompt_candidates(root: Path) -> pl.DataFrame:
    """A row for each prompt, in file order: `prompt_id`, `verifier`, `source`, `has_gold`, labels, and flags.

    The flags are `contaminated` and `duplicate_problem`; a label table that was not made flags nothing.
    """
    columns = ["prompt_id", "answer", "verifier", "source"]
    prompts = read_frame(root, "prompts", columns).unique("prompt_id", keep="first", maintain_order=True)
    annotations = read_frame(root, "annotations/prompts", _PROMPT_LABELS)
    copies = read_frame(root, "duplicates", ["id", "kind", "cluster", "keep"]).filter(pl.col("kind") == "problem")
    repeated = copies.filter(~pl.col("keep"))["id"]
    return (
        prompts.with_columns(
            has_gold=pl.col("answer").is_not_null() & (pl.col("answer").str.strip_chars() != ""),
            contaminated=pl.col("prompt_id").is_in(_contaminated(root, copies).implode()),
            duplicate_problem=pl.col("prompt_id").is_in(repeated.implode()),
        )
        .drop("answer")
        .join(annotations, on="prompt_id", how="left", maintain_order="left")
        .with_columns(pl.col("num_rollouts", "num_judged").fill_null(0))
        .with_columns(_as_numbers("domain", "level"))
    )


def _contaminated(root: Path, copies: pl.DataFrame) -> pl.Series:
    """Ids of the problems that hold a benchmark's, and of every copy of one of them: a copy may hide what it is."""
    found = read_frame(root, "contamination", ["prompt_id"])["prompt_id"].unique()
    dirty = copies.filter(pl.col("id").is_in(found.implode()))["cluster"]
    beside = copies.filter(pl.col("cluster").is_in(pl.concat([dirty, found]).implode()))["id"]
    return pl.concat([found, dirty, beside]).unique()


def rollout_candidates(root: Path, prompts: pl.DataFrame) -> pl.DataFrame:
    """A row for each rollout, in file order: ids, `model`, `sampling_id`, verdict, labels, and flags.

    The flags are those of its prompt in `prompts` (`prompt_candidates`), and `duplicate_trace`. A reader's word
    stands in the place of a verdict (`curate/overrides.py`).
    """
    needed = {"verdicts": "verify", "annotations/rollouts": "annotate", "annotations/prompts": "annotate"}
    if parquet.table_files(root, "rollouts"):
        for table, verb in needed.items():
            parquet.require_files(root, table, hint=f"run `curate {verb} {root}` first")
    copies = read_frame(root, "duplicates", ["id", "kind", "keep"])
    repeated = copies.filter((pl.col("kind") == "trace") & ~pl.col("keep"))["id"].implode()
    flags = prompts.select("prompt_id", "has_gold", "contaminated", "duplicate_problem", "domain", "level")
    marks = overrides.read_marks(root)
    parts = [
        overrides.respecting(part, marks)
        .with_columns(_as_numbers("model", "sampling_id", "verdict"))
        .with_columns(duplicate_trace=pl.col("rollout_id").is_in(repeated))
        .join(flags, on="prompt_id", how="left", maintain_order="left")
        for part in gathered(aligned_frames(root, "rollout_id", _ROLLOUT_COLUMNS))
    ]
    return pl.concat(parts)


def _as_numbers(*columns: str) -> list[pl.Expr]:
    """Columns of few different strings as numbers of these: a million rows then are some megabytes."""
    return [pl.col(name).cast(pl.Categorical) for name in columns]


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
