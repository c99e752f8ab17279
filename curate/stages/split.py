"""Split: choose from one labelled pool what each training stage gets, and say why the rest is not chosen.

A set stage over labels; text is read for what was chosen only. The paper's contracts
(arXiv:2504.21233, sections 3 and 4): mid-training takes every verified trace; SFT a compact subset
balanced over domain and level; RL the prompts that are hard but solvable, with even lengths.
Preference pairs have a stage of their own. What copies a held-out benchmark is in none of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa
from pydantic import Field

from curate import overrides, shingles, spill
from curate.candidates import (
    READS,
    first_reason,
    problem_lookup,
    prompt_candidates,
    rollout_candidates,
    verdict_reasons,
)
from curate.conservation import conservation_lines, conserved, counted
from curate.frames import read_frame, read_rows
from curate.presence import presence_line
from pipelines import parquet
from pipelines.config import Config
from pipelines.conversation import INSTRUCTIONS, assistant_message, user_message
from pipelines.errors import UserError
from pipelines.runner import Batches, Outcome, Stage, run_set_stage
from pipelines.tables import SELECTIONS, SHARDS
from verifiers import Job, Question, VerifierPool
from verifiers import Outcome as Word

STAGE = Stage(
    "split", reads=READS, writes=("selections/split", "shards/midtrain", "shards/sft", "shards/rl"), version=2
)


class SplitConfig(Config):
    """The paper's defaults where it states them; the other numbers are ours."""

    instruction: str = "mathematics"
    """Key of `INSTRUCTIONS`: what the user's turn asks. The one the rollouts were sampled with."""
    seed: int = 0
    """Orders the candidates where only some fit."""
    midtrain_max_tokens: int | None = None
    """Longest trace for mid-training; None takes all."""
    sft_size: int = Field(10_000, ge=0)
    """Traces for SFT: "compact" (paper); the number is ours. Where fewer qualify, all of them, and it is said."""
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
    rl_sources: tuple[str, ...] = ()
    """Sources whose prompts RL takes; empty takes all. One that was never sampled is new to the student."""
    rl_pass_rate_min: float = Field(0.0, ge=0, lt=1)
    """A prompt's pass rate must exceed this: 0 leaves out what was never solved."""
    rl_pass_rate_max: float = Field(0.5, gt=0, le=1)
    """Highest pass rate of an RL prompt (paper, section 4: for example 50 %)."""
    rl_length_ratio_max: float = Field(2.0, ge=1)
    """Highest p90 / p10 of a prompt's rollout lengths; the paper's metric and threshold are not published."""
    rl_without_rollouts: bool = False
    """Whether a prompt that was never sampled may be in RL."""
    rl_apart_from: tuple[Literal["midtrain", "sft"], ...] = ()
    """Stages whose problems RL leaves alone; empty, as in the paper, lets a problem be in several stages."""


_BATCH_ROWS = 512


@dataclass(frozen=True)
class SplitReport(Outcome):
    """What was done, what became of every candidate, and what the one who asked should know."""

    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report in words."""
        if not self.made:
            return [f"nothing to do, {self.kept} files are fresh"]
        return [f"{self.made} files made, {self.rows:,} rows in {self.seconds:.1f} s", *self.notes]


def run(root: Path, config: SplitConfig, *, replace: bool = False) -> SplitReport:
    """Make the selections and the shards of mid-training, SFT and RL."""
    if config.instruction not in INSTRUCTIONS:
        raise UserError(f"no instruction `{config.instruction}`", hint=f"one of: {', '.join(INSTRUCTIONS)}")
    done = run_set_stage(root, STAGE, config, lambda: split(root, config), replace=replace)
    return SplitReport(**vars(done), notes=tuple(_notes(root, config)) if done.made else ())


def _notes(root: Path, config: SplitConfig) -> Iterator[str]:
    counts = counted(root, "selections/split")
    yield from conservation_lines(counts)
    if "sft" in counts and (found := counts["sft"].kept) < config.sft_size:
        yield f"sft: {config.sft_size:,} traces were asked for, {found:,} qualify: all of them are taken"
    yield presence_line(root, "rl", ("midtrain", "sft"))
    if not parquet.table_files(root, "contamination"):
        yield (
            "no benchmark was searched for, so problems of an evaluation may be in every shard: "
            f"`curate decontaminate {root} --against NAMES`"
        )


def split(root: Path, config: SplitConfig) -> dict[str, Batches]:
    """Every table of the stage, as streams."""
    prompts = prompt_candidates(root)
    rollouts = rollout_candidates(root, prompts)
    midtrain, sft = select_midtrain(rollouts, config), select_sft(rollouts, config)
    taken = {
        stage: rollouts.filter(refusal.is_null())["prompt_id"].unique()
        for stage, refusal in (("midtrain", midtrain), ("sft", sft))
    }
    unreadable = _unreadable_golds(root, prompts, rollouts, config)
    rl = select_rl(prompts, unreadable, {stage: taken[stage] for stage in config.rl_apart_from}, config)
    chosen = (
        ("midtrain", rollouts.select(id="rollout_id", prompt_id="prompt_id"), midtrain),
        ("sft", rollouts.select(id="rollout_id", prompt_id="prompt_id"), sft),
        ("rl", prompts.select(id="prompt_id", prompt_id="prompt_id"), rl),
    )
    traces = _trace_shards(root, rollouts["prompt_id"], midtrain.is_null(), sft.is_null(), config)
    of_midtrain, of_sft = spill.one_after_the_other(root, SHARDS["sft"], traces)
    return {
        "selections/split": (_selections(*one) for one in chosen),
        "shards/midtrain": of_midtrain,
        "shards/sft": of_sft,
        "shards/rl": _rl_shard(root, prompts.filter(rl.is_null()), config),
    }


def _selections(stage: str, ids: pl.DataFrame, refusals: pl.Series) -> pa.Table:
    rows = ids.select(pl.lit(stage).alias("stage"), "id", "prompt_id", refusals.cast(pl.String).alias("refusal"))
    table = rows.to_arrow().cast(SELECTIONS)
    conserved(table, {stage: ids.height})
    return table


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
        "other_level": _other_than("level", config.sft_levels),
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


def select_rl(
    prompts: pl.DataFrame, unreadable: pl.Series, apart_from: Mapping[str, pl.Series], config: SplitConfig
) -> pl.Series:
    """Refusal of each prompt for RL, null where chosen.

    `unreadable` are ids whose gold no verifier can read, `apart_from` by stage those that RL leaves to it.
    """
    sampled = pl.col("num_rollouts") > 0
    reasons = {
        "contaminated": pl.col("contaminated"),
        "duplicate_problem": pl.col("duplicate_problem"),
        "no_gold": ~pl.col("has_gold"),
        "gold_unreadable": pl.col("prompt_id").is_in(unreadable.implode()),
        "other_source": _other_than("source", config.rl_sources),
        "other_level": _other_than("level", config.rl_levels),
        "no_rollouts": ~sampled & (not config.rl_without_rollouts),
        "unjudged": sampled & (pl.col("num_judged") == 0),
        "pass_rate_low": pl.col("pass_rate") <= config.rl_pass_rate_min,
        "pass_rate_high": pl.col("pass_rate") > config.rl_pass_rate_max,
        "uneven_lengths": pl.col("length_ratio") > config.rl_length_ratio_max,
        **{f"in_{stage}": pl.col("prompt_id").is_in(ids.implode()) for stage, ids in apart_from.items()},
    }
    return prompts.select(first_reason(reasons).alias("refusal")).to_series()


def _pool_reasons() -> dict[str, pl.Expr]:
    """Why a rollout is in no set of traces, in the order in which reasons are given."""
    return {
        **{name: pl.col(name) for name in ("contaminated", "duplicate_problem", "duplicate_trace")},
        **verdict_reasons(),
        "truncated": pl.col("truncated"),
    }


def _other_than(column: str, wanted: tuple[str, ...]) -> pl.Expr:
    return ~pl.col(column).is_in(wanted).fill_null(False) if wanted else pl.lit(False)


def _unreadable_golds(root: Path, prompts: pl.DataFrame, rollouts: pl.DataFrame, config: SplitConfig) -> pl.Series:
    """Ids of prompts whose reference answer no verifier can read: by their verdicts, or asked where there is none.

    With them those that a reader calls bad.
    """
    seen = rollouts.filter(pl.col("verdict") == "gold_unreadable")["prompt_id"]
    seen = pl.concat([seen, overrides.bad_golds(overrides.read_marks(root))]).unique()
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


def _trace_shards(
    root: Path, prompt_ids: pl.Series, midtrain: pl.Series, sft: pl.Series, config: SplitConfig
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Rows of the midtrain and of the sft shard, in rollout order, batch by batch of one pass over the text.

    `prompt_ids` has a row for each rollout; so have `midtrain` and `sft`, which say whether it is chosen.
    """
    wanted = midtrain | sft
    if not wanted.any():
        return
    problem_of = problem_lookup(root, prompt_ids.filter(wanted))
    columns = ["rollout_id", "prompt_id", "reasoning", "response"]
    for numbers, batch in read_rows(root, "rollouts", columns, wanted.arg_true(), _BATCH_ROWS):
        rows = [_trace_row(row, problem_of(row["prompt_id"]), config) for row in batch.iter_rows(named=True)]
        of_midtrain, of_sft = (list(compress(rows, chosen.gather(numbers))) for chosen in (midtrain, sft))
        yield (
            pa.RecordBatch.from_pylist(of_midtrain, schema=SHARDS["midtrain"]),
            pa.RecordBatch.from_pylist(of_sft, schema=SHARDS["sft"]),
        )


def _trace_row(rollout: Mapping[str, Any], problem: Mapping[str, Any], config: SplitConfig) -> dict[str, Any]:
    question = user_message(problem["problem"], problem["choices"], config.instruction)
    return {
        "messages": [question, assistant_message(rollout["reasoning"], rollout["response"])],
        "rollout_id": rollout["rollout_id"],
        "prompt_id": rollout["prompt_id"],
        "source": problem["source"],
    }


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
