"""Build DPO pairs: a right trace preferred to a wrong one of the same problem.

A set stage over labels; text is read for the pairs chosen, and for `hardest` to compare traces. Right
and wrong come from the verifier (arXiv:2504.21233, section 3): what it could not judge is on neither
side, so there are no ties. The student learns any difference of length with the preference:
`length_bias` measures it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa
from pydantic import Field

from curate import shingles, spill
from curate.candidates import READS, first_reason, problem_lookup, prompt_candidates, rollout_candidates
from curate.conservation import conservation_lines, conserved, counted
from curate.frames import read_frame, read_rows
from curate.pairing import Strategy, choose_pairs
from curate.presence import presence_line, stage_problems
from pipelines import parquet
from pipelines.config import Config
from pipelines.conversation import INSTRUCTIONS, Message, assistant_message, user_message
from pipelines.errors import UserError
from pipelines.runner import Batches, Outcome, Stage, run_set_stage
from pipelines.tables import SELECTIONS, SHARDS

STAGE = Stage(
    "build_dpo_pairs", reads=(*READS, "selections/split"), writes=("selections/pairs", "shards/dpo"), version=2
)


class BuildDpoPairsConfig(Config):
    """The paper pairs right with wrong rollouts; how many and which is not published."""

    instruction: str = "mathematics"
    """Key of `INSTRUCTIONS`: what the user's turn asks. The one the rollouts were sampled with."""
    seed: int = 0
    strategy: Strategy = "length-matched"
    """length-matched: each trace once, pairs of the nearest lengths first. one-to-one: each trace once, at
    random. all-products: every right with every wrong one. hardest: each right one with the wrong one whose
    text is nearest."""
    pairs_per_problem: int = Field(4, ge=1)
    traces_per_side: int = Field(16, ge=1)
    """Right, and wrong, traces of one problem that are considered."""
    max_pairs: int | None = Field(None, ge=1)
    reject_no_answer: bool = False
    """Whether a trace without a final answer may be rejected; it teaches to finish."""
    reject_truncated: bool = False
    """Whether a trace cut off at its token limit may be rejected."""
    across_models: bool = False
    """Whether chosen and rejected may come from different models or sampling settings."""
    apart_from: tuple[Literal["midtrain", "sft", "rl"], ...] = ()
    """Stages whose problems have no pairs; empty, as in the paper, lets a problem be in several stages."""


_BATCH_ROWS = 512
_PART_PAIRS = 256
"""Pairs that are written at a time."""
_TOKEN_BYTES = 4


@dataclass(frozen=True)
class PairsReport(Outcome):
    """What was done, what became of every problem, and how long the two sides are."""

    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report in words."""
        if not self.made:
            return [f"nothing to do, {self.kept} files are fresh"]
        return [f"{self.made} files made, {self.rows:,} rows in {self.seconds:.1f} s", *self.notes]


def run(root: Path, config: BuildDpoPairsConfig, *, replace: bool = False) -> PairsReport:
    """Make the selections and the shard of DPO."""
    if config.instruction not in INSTRUCTIONS:
        raise UserError(f"no instruction `{config.instruction}`", hint=f"one of: {', '.join(INSTRUCTIONS)}")
    done = run_set_stage(root, STAGE, config, lambda: build_dpo_pairs(root, config), replace=replace)
    return PairsReport(**vars(done), notes=tuple(_notes(root)) if done.made else ())


def _notes(root: Path) -> Iterator[str]:
    yield from conservation_lines(counted(root, "selections/pairs"))
    yield presence_line(root, "dpo", ("midtrain", "sft", "rl"))
    bias = length_bias(root)
    yield f"chosen are {abs(bias):.1f} tokens {'longer' if bias > 0 else 'shorter'} than rejected on average"


def build_dpo_pairs(root: Path, config: BuildDpoPairsConfig) -> dict[str, Batches]:
    """Both tables of the stage: a selection for each prompt, and the pairs as a stream.

    No pair at all is a `UserError`.
    """
    prompts = prompt_candidates(root)
    rollouts = rollout_candidates(root, prompts)
    taken: dict[str, pl.Series] = {stage: _problems_of(root, stage) for stage in config.apart_from}
    sided = _sided(rollouts, taken, config)
    pairs = choose_pairs(root, sided, config.strategy, config.traces_per_side, config.pairs_per_problem)
    if pairs.is_empty():
        raise _no_pairs(root, sided)
    pairs = pairs.with_columns(rollouts["prompt_id"][pairs["row"]])
    cut = pairs if config.max_pairs is None else pairs.sort("turn", "order", "row").head(config.max_pairs)
    refusals = _refusals(prompts, rollouts, taken, sided, pairs["prompt_id"], cut["prompt_id"])
    selections = prompts.select(pl.lit("dpo").alias("stage"), id="prompt_id", prompt_id="prompt_id")
    table = selections.with_columns(refusals).to_arrow().cast(SELECTIONS)
    conserved(table, {"dpo": prompts.height})
    ids = rollouts["rollout_id"]
    chosen = cut.with_columns(chosen=ids[cut["row"]], rejected=ids[cut["row_wrong"]])
    return {"selections/pairs": [table], "shards/dpo": _shard(root, chosen, config)}


def _problems_of(root: Path, stage: str) -> pl.Series:
    parquet.require_files(root, f"shards/{stage}", hint=f"`apart_from` asks for it: run `curate split {root}` first")
    return stage_problems(root, stage)


def _no_pairs(root: Path, sided: pl.DataFrame) -> UserError:
    """The error for a pool that gives no pair, with what it lacks."""
    right = int(sided["right"].sum())
    mixed = sided.group_by("problem").agg(pl.col("right").n_unique()).filter(pl.col("right") == 2).height
    lacks = f"none of {sided['problem'].n_unique():,} groups mixes right and wrong traces"
    hint = "sample more per prompt, e.g., `curate generate --samples 16`"
    if right in (0, sided.height):
        lacks = f"of {sided.height:,} usable traces none is {'wrong' if right else 'right'}"
    elif mixed:
        lacks = f"{mixed:,} problems have right and wrong traces, none of them both from one model and setting"
        hint = "pair across models: `--set build_dpo_pairs.across_models=true`"
    return UserError(f"`{root / STAGE.writes[1]}` would have 0 pairs: {lacks}", hint=hint)


def length_bias(root: Path) -> float:
    """Mean of chosen minus rejected tokens over the pairs of a run directory; DPO learns this too."""
    pairs = read_frame(root, "shards/dpo", ["chosen_id", "rejected_id"])
    tokens = read_frame(root, "annotations/rollouts", ["rollout_id", "num_tokens"])
    joined = pairs.join(tokens, left_on="chosen_id", right_on="rollout_id").join(
        tokens, left_on="rejected_id", right_on="rollout_id", suffix="_rejected"
    )
    assert joined.height == pairs.height, "a pair's rollout has no annotation"
    chosen, rejected = (int(joined[name].cast(pl.Int64).sum()) for name in ("num_tokens", "num_tokens_rejected"))
    return (chosen - rejected) / max(1, pairs.height)


# --- sides ----------------------------------------------------------------------------------------


def _sided(rollouts: pl.DataFrame, taken: Mapping[str, pl.Series], config: BuildDpoPairsConfig) -> pl.DataFrame:
    """The rollouts that may stand in a pair, with `right`, their `group` and `problem`, and their seeded `order`.

    Rows are numbers alone: what a pair is made of is looked up when it is chosen.
    """
    verdict = pl.col("verdict")
    rejected = verdict == "incorrect"
    if config.reject_no_answer:
        rejected |= verdict == "no_answer"
    truncated = pl.lit(config.reject_truncated) | ~pl.col("truncated")
    labelled = pl.col("num_tokens").is_not_null()
    usable = labelled & ~(pl.col("contaminated") | pl.col("duplicate_problem") | pl.col("duplicate_trace"))
    for ids in taken.values():
        usable &= ~pl.col("prompt_id").is_in(ids.implode())
    right = (verdict == "correct") & ~pl.col("truncated")
    group = ["prompt_id"] if config.across_models else ["prompt_id", "model", "sampling_id"]
    sided = rollouts.with_row_index("row").filter(usable & (right | (rejected & truncated)))
    sided = sided.with_columns(
        pl.Series("order", shingles.fingerprints(sided["rollout_id"], config.seed)), right=verdict == "correct"
    )
    numbered = sided.select(
        "row",
        "num_tokens",
        "right",
        "order",
        problem=pl.col("prompt_id").rank("dense"),
        group=pl.struct(group).rank("dense"),
    )
    return numbered.sort("order", "row")


def _refusals(
    prompts: pl.DataFrame,
    rollouts: pl.DataFrame,
    taken: Mapping[str, pl.Series],
    sided: pl.DataFrame,
    paired: pl.Series,
    kept: pl.Series,
) -> pl.Series:
    """Why each prompt has no pair, null where it has one; `paired` and `kept` are ids before and after `max_pairs`."""
    verdict = pl.col("verdict")
    groups = rollouts.group_by("prompt_id").agg(
        num_right=(verdict == "correct").sum(), num_wrong=verdict.is_in(["incorrect", "no_answer"]).sum()
    )
    sides = sided.select("right", rollouts["prompt_id"][sided["row"]]).group_by("prompt_id")
    described = prompts.join(groups, on="prompt_id", how="left", maintain_order="left").join(
        sides.agg(num_chosen=pl.col("right").sum(), num_rejected=(~pl.col("right")).sum()),
        on="prompt_id",
        how="left",
        maintain_order="left",
    )
    counts = ("num_right", "num_wrong", "num_chosen", "num_rejected")
    described = described.with_columns(sampled=pl.col("num_right").is_not_null()).with_columns(
        pl.col(counts).fill_null(0)
    )
    reasons = {
        "contaminated": pl.col("contaminated"),
        "duplicate_problem": pl.col("duplicate_problem"),
        "no_gold": ~pl.col("has_gold"),
        "no_rollouts": ~pl.col("sampled"),
        "unjudged": pl.col("num_right") + pl.col("num_wrong") == 0,
        "all_correct": pl.col("num_wrong") == 0,
        "all_incorrect": pl.col("num_right") == 0,
        **{f"in_{stage}": pl.col("prompt_id").is_in(ids.implode()) for stage, ids in taken.items()},
        "no_usable_chosen": pl.col("num_chosen") == 0,
        "no_usable_rejected": pl.col("num_rejected") == 0,
        # Right and wrong come from different models or settings.
        "no_common_group": ~pl.col("prompt_id").is_in(paired.unique().implode()),
        "over_size": ~pl.col("prompt_id").is_in(kept.unique().implode()),
    }
    return described.select(first_reason(reasons).alias("refusal")).to_series()


# --- shard ----------------------------------------------------------------------------------------


def _shard(root: Path, pairs: pl.DataFrame, config: BuildDpoPairsConfig) -> Iterator[pa.RecordBatch]:
    """Rows of the dpo shard, in the order of the chosen rollouts.

    The two traces of a pair may lie anywhere in the table: their text is read in one pass and spilled.
    """
    problem_of = problem_lookup(root, pairs["prompt_id"])
    pairs = pairs.sort("row", "row_wrong")
    pairs = pairs.with_columns(bucket=spill.buckets((pairs["num_tokens"] + pairs["num_tokens_wrong"]) * _TOKEN_BYTES))
    wanted = pl.concat([pairs.select("bucket", "row"), pairs.select("bucket", row="row_wrong")]).unique()
    texts = read_rows(root, "rollouts", ["reasoning", "response"], wanted["row"].unique().sort(), _BATCH_ROWS)
    for bucket, rows in spill.regrouped(root / STAGE.writes[1], wanted, texts):
        answer_of = {
            row: assistant_message(reasoning, response)
            for row, reasoning, response in rows.select("row", "reasoning", "response").iter_rows()
        }
        for part in pairs.filter(pl.col("bucket") == bucket).iter_slices(_PART_PAIRS):
            shard = [_shard_row(pair, problem_of, answer_of, config) for pair in part.iter_rows(named=True)]
            yield pa.RecordBatch.from_pylist(shard, schema=SHARDS["dpo"])


def _shard_row(
    pair: Mapping[str, Any],
    problem_of: Callable[[str], Mapping[str, Any]],
    answer_of: Mapping[int, Message],
    config: BuildDpoPairsConfig,
) -> dict[str, Any]:
    problem = problem_of(pair["prompt_id"])
    return {
        "prompt": [user_message(problem["problem"], problem["choices"], config.instruction)],
        "chosen": [answer_of[pair["row"]]],
        "rejected": [answer_of[pair["row_wrong"]]],
        "chosen_id": pair["chosen"],
        "rejected_id": pair["rejected"],
        "prompt_id": pair["prompt_id"],
        "source": problem["source"],
    }
