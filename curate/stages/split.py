"""Split: choose from one labelled pool what each training stage gets, and say why the rest is not chosen.

A set stage over labels; text is read for what was chosen only. The paper's contracts
(arXiv:2504.21233, sections 3 and 4): mid-training takes every verified trace; SFT a compact subset
balanced over domain and level; RL the prompts that are hard but solvable, with even lengths.
Preference pairs have a stage of their own.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
from pydantic import Field

from curate import shingles
from curate.candidates import (
    READS,
    first_reason,
    problem_lookup,
    prompt_candidates,
    rollout_candidates,
    verdict_reasons,
)
from curate.conservation import conserved
from curate.frames import read_frame, read_frames
from pipelines.config import Config
from pipelines.conversation import INSTRUCTIONS, assistant_message, user_message
from pipelines.errors import UserError
from pipelines.runner import Batches, Outcome, Stage, run_set_stage
from pipelines.tables import SELECTIONS, SHARDS
from verifiers import Job, Question, VerifierPool
from verifiers import Outcome as Word

STAGE = Stage("split", reads=READS, writes=("selections/split", "shards/midtrain", "shards/sft", "shards/rl"))


class SplitConfig(Config):
    """The paper's defaults where it states them; the other numbers are ours."""

    instruction: str = "mathematics"
    """Key of `INSTRUCTIONS`: what the user's turn asks. The one the rollouts were sampled with."""
    seed: int = 0
    """Orders the candidates where only some fit."""
    midtrain_max_tokens: int | None = None
    """Longest trace for mid-training; None takes all."""
    sft_size: int = Field(10_000, ge=0)
    """Traces for SFT at most: "compact" (paper); the number is ours."""
    sft_per_problem: int = Field(1, ge=1)
    """Traces of one problem at most."""
    sft_levels: tuple[str, ...] = ()
    """Levels (`annotations/prompts`) that SFT takes; empty takes all."""
    sft_min_tokens: int = Field(0, ge=0)
    sft_max_tokens: int = 20_000
    """The paper's SFT sequence length."""
    sft_max_repeated_share: float = Field(0.2, ge=0, le=1)
    """Traces that end in a longer loop are repetitive."""
    sft_max_compression: float = Field(8.0, ge=1)
    """So are traces that compress further than this."""
    rl_levels: tuple[str, ...] = ()
    """Levels that RL takes; empty takes all."""
    rl_pass_rate_min: float = Field(0.0, ge=0, lt=1)
    """A prompt's pass rate must exceed this: 0 leaves out what was never solved."""
    rl_pass_rate_max: float = Field(0.5, gt=0, le=1)
    """Highest pass rate of an RL prompt (paper, section 4: for example 50 %)."""
    rl_length_ratio_max: float = Field(2.0, ge=1)
    """Highest p90 / p10 of a prompt's rollout lengths; the paper's metric and threshold are not published."""
    rl_without_rollouts: bool = False
    """Whether a prompt that was never sampled may be in RL."""


_BATCH_ROWS = 512


def run(root: Path, config: SplitConfig, *, replace: bool = False) -> Outcome:
    """Make the selections and the shards of mid-training, SFT and RL."""
    if config.instruction not in INSTRUCTIONS:
        raise UserError(f"no instruction `{config.instruction}`", hint=f"one of: {', '.join(INSTRUCTIONS)}")
    return run_set_stage(root, STAGE, config, lambda: split(root, config), replace=replace)


def split(root: Path, config: SplitConfig) -> dict[str, Batches]:
    """Every table of the stage: all selections, and the shards as streams."""
    rollouts, prompts = rollout_candidates(root), prompt_candidates(root)
    midtrain = select_midtrain(rollouts, config)
    sft = select_sft(rollouts, config)
    rl = select_rl(prompts, _unreadable_golds(root, prompts, rollouts, config), config)
    selections = pl.concat(
        [
            _selections("midtrain", rollouts, "rollout_id", midtrain),
            _selections("sft", rollouts, "rollout_id", sft),
            _selections("rl", prompts, "prompt_id", rl),
        ]
    )
    table = selections.to_arrow().cast(SELECTIONS)
    conserved(table, {"midtrain": rollouts.height, "sft": rollouts.height, "rl": prompts.height})
    return {
        "selections/split": [table],
        "shards/midtrain": _trace_shard(root, "midtrain", rollouts, midtrain.is_null(), config),
        "shards/sft": _trace_shard(root, "sft", rollouts, sft.is_null(), config),
        "shards/rl": _rl_shard(root, prompts.filter(rl.is_null()), config),
    }


def _selections(stage: str, candidates: pl.DataFrame, identity: str, refusals: pl.Series) -> pl.DataFrame:
    return pl.DataFrame(
        {"id": candidates[identity], "prompt_id": candidates["prompt_id"], "refusal": refusals.cast(pl.String)}
    ).select(pl.lit(stage).alias("stage"), pl.all())


# --- choosing -------------------------------------------------------------------------------------


def select_midtrain(rollouts: pl.DataFrame, config: SplitConfig) -> pl.Series:
    """Refusal of each rollout for mid-training, null where chosen: as many verified traces as there are."""
    reasons = _pool_reasons()
    if config.midtrain_max_tokens is not None:
        reasons["too_long"] = pl.col("num_tokens") > config.midtrain_max_tokens
    return rollouts.select(first_reason(reasons).alias("refusal")).to_series()


def select_sft(rollouts: pl.DataFrame, config: SplitConfig) -> pl.Series:
    """Refusal of each rollout for SFT, null where chosen.

    Cells of domain × level are filled in turn, one trace each, until `sft_size` is reached: small
    cells give all they have, large ones share the rest evenly.
    """
    loops = pl.col("repeated_share") > config.sft_max_repeated_share
    reasons = {
        **_pool_reasons(),
        "other_level": _other_level(config.sft_levels),
        "repetitive": loops | (pl.col("compression_ratio") > config.sft_max_compression),
        "too_short": pl.col("num_tokens") < config.sft_min_tokens,
        "too_long": pl.col("num_tokens") > config.sft_max_tokens,
    }
    order = pl.Series("order", shingles.fingerprints(rollouts["rollout_id"], config.seed))
    rows = rollouts.select(first_reason(reasons).alias("refusal"), "prompt_id", "rollout_id", "domain", "level")
    rows = rows.with_columns(order).with_row_index("row")
    eligible = rows.filter(pl.col("refusal").is_null()).sort("order", "rollout_id")
    eligible = eligible.with_columns(in_problem=pl.int_range(pl.len()).over("prompt_id"))
    within = eligible.filter(pl.col("in_problem") < config.sft_per_problem)
    turn = pl.int_range(pl.len()).over("domain", "level").alias("turn")
    chosen = within.with_columns(turn).sort("turn", "order", "rollout_id").head(config.sft_size)
    left = {
        "over_cap": ~pl.col("row").is_in(within["row"].implode()),
        "over_size": ~pl.col("row").is_in(chosen["row"].implode()),
    }
    return rows.select(pl.coalesce("refusal", first_reason(left)).alias("refusal")).to_series()


def select_rl(prompts: pl.DataFrame, unreadable: pl.Series, config: SplitConfig) -> pl.Series:
    """Refusal of each prompt for RL, null where chosen; `unreadable` are ids whose gold no verifier can read."""
    sampled = pl.col("num_rollouts") > 0
    reasons = {
        "contaminated": pl.col("contaminated"),
        "duplicate_problem": pl.col("duplicate_problem"),
        "no_gold": ~pl.col("has_gold"),
        "gold_unreadable": pl.col("prompt_id").is_in(unreadable.implode()),
        "other_level": _other_level(config.rl_levels),
        "no_rollouts": ~sampled & (not config.rl_without_rollouts),
        "unjudged": sampled & (pl.col("num_judged") == 0),
        "pass_rate_low": pl.col("pass_rate") <= config.rl_pass_rate_min,
        "pass_rate_high": pl.col("pass_rate") > config.rl_pass_rate_max,
        "uneven_lengths": pl.col("length_ratio") > config.rl_length_ratio_max,
    }
    return prompts.select(first_reason(reasons).alias("refusal")).to_series()


def _pool_reasons() -> dict[str, pl.Expr]:
    """Why a rollout is in no set of traces, in the order in which reasons are given."""
    return {
        **{name: pl.col(name) for name in ("contaminated", "duplicate_problem", "duplicate_trace")},
        **verdict_reasons(),
        "truncated": pl.col("truncated"),
    }


def _other_level(levels: tuple[str, ...]) -> pl.Expr:
    return ~pl.col("level").is_in(levels).fill_null(False) if levels else pl.lit(False)


def _unreadable_golds(root: Path, prompts: pl.DataFrame, rollouts: pl.DataFrame, config: SplitConfig) -> pl.Series:
    """Ids of prompts whose reference answer no verifier can read: by their verdicts, or asked where there is none."""
    seen = rollouts.filter(pl.col("verdict") == "gold_unreadable")["prompt_id"].unique()
    if not config.rl_without_rollouts:
        return seen
    unseen = prompts.filter((pl.col("num_rollouts") == 0) & pl.col("has_gold"))["prompt_id"]
    columns = ["prompt_id", "verifier", "answer", "choices"]
    golds = read_frame(root, "prompts", columns).filter(pl.col("prompt_id").is_in(unseen.implode()))
    jobs = (
        Job(verifier, Question(answer, tuple(choices or ())), "") for _, verifier, answer, choices in golds.iter_rows()
    )
    if golds.is_empty():
        return seen
    # In the pool, where a reference answer that takes for ever is cut short.
    with VerifierPool(num_workers=2) as pool:
        verdicts = list(pool.verify(jobs))
    faulty = [
        prompt_id
        for prompt_id, verdict in zip(golds["prompt_id"], verdicts, strict=True)
        if verdict.outcome in (Word.GOLD_UNREADABLE, Word.TIMEOUT)
    ]
    return pl.concat([seen, pl.Series("prompt_id", faulty, dtype=pl.String)])


# --- shards ---------------------------------------------------------------------------------------


def _trace_shard(
    root: Path, stage: str, rollouts: pl.DataFrame, chosen: pl.Series, config: SplitConfig
) -> Iterator[pa.RecordBatch]:
    """Rows of the midtrain or sft shard, in rollout order; `chosen` is a mask over all rollouts."""
    if not chosen.any():
        return
    problem_of = problem_lookup(root, rollouts.filter(chosen)["prompt_id"])
    at = 0
    for batch in read_frames(root, "rollouts", ["rollout_id", "prompt_id", "reasoning", "response"], _BATCH_ROWS):
        here = batch.filter(chosen.slice(at, batch.height))
        at += batch.height
        rows = []
        for row in here.iter_rows(named=True):
            problem = problem_of(row["prompt_id"])
            question = user_message(problem["problem"], problem["choices"], config.instruction)
            rows.append(
                {
                    "messages": [question, assistant_message(row["reasoning"], row["response"])],
                    "rollout_id": row["rollout_id"],
                    "prompt_id": row["prompt_id"],
                    "source": problem["source"],
                }
            )
        yield pa.RecordBatch.from_pylist(rows, schema=SHARDS[stage])


def _rl_shard(root: Path, prompts: pl.DataFrame, config: SplitConfig) -> Iterator[pa.RecordBatch]:
    if prompts.is_empty():
        return
    problem_of = problem_lookup(root, prompts["prompt_id"])
    for part in prompts.select("prompt_id", "pass_rate").iter_slices(_BATCH_ROWS):
        rows = []
        for prompt_id, pass_rate in part.iter_rows():
            problem = problem_of(prompt_id)
            rows.append(
                {
                    "prompt": [user_message(problem["problem"], problem["choices"], config.instruction)],
                    "pass_rate": pass_rate,
                    **{name: problem[name] for name in ("answer", "choices", "verifier", "prompt_id", "source")},
                }
            )
        yield pa.RecordBatch.from_pylist(rows, schema=SHARDS["rl"])
