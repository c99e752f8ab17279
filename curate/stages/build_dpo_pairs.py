"""Build DPO pairs: a right trace preferred to a wrong one of the same problem.

A set stage over labels; text is read for the pairs chosen, and for `hardest` to compare traces. Right
and wrong come from the verifier (arXiv:2504.21233, section 3): what it could not judge is on neither
side, so there are no ties. The student learns any difference of length with the preference:
`length_bias` measures it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field

from curate import shingles
from curate.candidates import READS, first_reason, problem_lookup, prompt_candidates, rollout_candidates
from curate.conservation import conserved
from curate.frames import read_frame, read_rows
from pipelines.config import Config
from pipelines.conversation import INSTRUCTIONS, Message, assistant_message, user_message
from pipelines.errors import UserError
from pipelines.runner import Batches, Outcome, Stage, run_set_stage
from pipelines.tables import SELECTIONS, SHARDS

STAGE = Stage("build_dpo_pairs", reads=READS, writes=("selections/pairs", "shards/dpo"))


class BuildDpoPairsConfig(Config):
    """The paper pairs right with wrong rollouts; how many and which is not published."""

    instruction: str = "mathematics"
    """Key of `INSTRUCTIONS`: what the user's turn asks. The one the rollouts were sampled with."""
    seed: int = 0
    strategy: Literal["one-to-one", "all-products", "hardest", "length-matched"] = "one-to-one"
    """one-to-one: each trace once, at random. all-products: every right with every wrong one.
    hardest: each right one with the wrong one whose text is nearest. length-matched: each trace
    once, pairs of the nearest lengths first."""
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


_BATCH_ROWS = 512
_CHUNK_PAIRS = 1024
"""Pairs whose text is held in memory at a time."""


def run(root: Path, config: BuildDpoPairsConfig, *, replace: bool = False) -> Outcome:
    """Make the selections and the shard of DPO."""
    if config.instruction not in INSTRUCTIONS:
        raise UserError(f"no instruction `{config.instruction}`", hint=f"one of: {', '.join(INSTRUCTIONS)}")
    return run_set_stage(root, STAGE, config, lambda: build_dpo_pairs(root, config), replace=replace)


def build_dpo_pairs(root: Path, config: BuildDpoPairsConfig) -> dict[str, Batches]:
    """Both tables of the stage: a selection for each prompt, and the pairs as a stream.

    No pair at all is a `UserError`.
    """
    rollouts, prompts = rollout_candidates(root), prompt_candidates(root)
    sided = _sided(rollouts.with_row_index("row"), config)
    pairs = choose_pairs(root, sided, config)
    if pairs.is_empty():
        groups = sided["prompt_id"].n_unique()
        raise UserError(
            f"`{root / STAGE.writes[1]}` would have 0 pairs: none of {groups} groups mixes right and wrong traces",
            hint="sample more per prompt, e.g., `curate generate --samples 16`",
        )
    cut = pairs if config.max_pairs is None else pairs.sort("turn", "order").head(config.max_pairs)
    refusals = _refusals(prompts, rollouts, sided, pairs, cut)
    selections = prompts.select(pl.lit("dpo").alias("stage"), id="prompt_id", prompt_id="prompt_id")
    table = selections.with_columns(refusals).to_arrow().cast(SELECTIONS)
    conserved(table, {"dpo": prompts.height})
    return {"selections/pairs": [table], "shards/dpo": _shard(root, cut, config)}


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


def _sided(rollouts: pl.DataFrame, config: BuildDpoPairsConfig) -> pl.DataFrame:
    """The rollouts that may stand in a pair, with `right`, their `group`, and their seeded `order`."""
    verdict = pl.col("verdict")
    rejected = verdict == "incorrect"
    if config.reject_no_answer:
        rejected |= verdict == "no_answer"
    truncated = pl.lit(config.reject_truncated) | ~pl.col("truncated")
    labelled = pl.col("num_tokens").is_not_null()
    usable = labelled & ~(pl.col("contaminated") | pl.col("duplicate_problem") | pl.col("duplicate_trace"))
    right = (verdict == "correct") & ~pl.col("truncated")
    sided = rollouts.filter(usable & (right | (rejected & truncated))).with_columns(right=verdict == "correct")
    group = ["prompt_id"] if config.across_models else ["prompt_id", "model", "sampling_id"]
    return sided.select(
        "row",
        "rollout_id",
        "prompt_id",
        "num_tokens",
        "right",
        pl.concat_str(group, separator="\n").alias("group"),
        pl.Series("order", shingles.fingerprints(sided["rollout_id"], config.seed)),
    ).sort("order", "rollout_id")


# --- pairing --------------------------------------------------------------------------------------


def choose_pairs(root: Path, sided: pl.DataFrame, config: BuildDpoPairsConfig) -> pl.DataFrame:
    """The pairs before `max_pairs`: `prompt_id`, `chosen` and `rejected` with their rows, `turn` in the problem."""
    place = pl.int_range(pl.len()).over("group", "right").alias("place")
    considered = sided.with_columns(place).filter(pl.col("place") < config.traces_per_side)
    right, wrong = (considered.filter(pl.col("right") == side).drop("right") for side in (True, False))
    products = right.join(wrong.drop("prompt_id"), on="group", suffix="_wrong")
    # The first pairs of a problem share as few traces as can be.
    spread = pl.max_horizontal("place", "place_wrong")
    products = products.sort(spread, "order", "order_wrong", "rollout_id", "rollout_id_wrong")
    if config.strategy == "one-to-one":
        pairs = products.filter(pl.col("place") == pl.col("place_wrong"))
    elif config.strategy == "all-products":
        pairs = products
    elif config.strategy == "hardest":
        pairs = _nearest_texts(root, products)
    else:
        gap = (pl.col("num_tokens") - pl.col("num_tokens_wrong")).abs()
        pairs = _each_once(products.with_columns(gap=gap).sort("gap", "order", "order_wrong"))
    pairs = pairs.with_columns(turn=pl.int_range(pl.len()).over("prompt_id"))
    return pairs.filter(pl.col("turn") < config.pairs_per_problem).select(
        "prompt_id",
        chosen="rollout_id",
        rejected="rollout_id_wrong",
        chosen_row="row",
        rejected_row="row_wrong",
        turn="turn",
        order="order",
    )


def _each_once(products: pl.DataFrame) -> pl.DataFrame:
    """Greedy matching: the first of `products`, then the first that shares no trace with it, and so on."""
    taken = []
    while not products.is_empty():
        first = products.filter(pl.col("row").is_first_distinct() & pl.col("row_wrong").is_first_distinct())
        taken.append(first)
        products = products.join(first, on="row", how="anti", maintain_order="left")
        products = products.join(first, on="row_wrong", how="anti", maintain_order="left")
    return pl.concat(taken).sort("gap", "order", "order_wrong") if taken else products


def _nearest_texts(root: Path, products: pl.DataFrame) -> pl.DataFrame:
    """For each right trace the wrong one of most similar text, by MinHash; the most similar pairs first."""
    rows = pl.concat([products["row"], products["row_wrong"]]).unique().sort()
    parts = [np.zeros((0, shingles.NUM_SLOTS), np.uint32)]
    for _, batch in read_rows(root, "rollouts", ["reasoning", "response"], rows, _BATCH_ROWS):
        text = batch.select(pl.concat_str("reasoning", "response", separator="\n", ignore_nulls=True)).to_series()
        parts.append(shingles.signatures(shingles.shingles(shingles.words(text), 5)))
    signatures = np.concatenate(parts)
    left, right = (signatures[rows.search_sorted(products[name]).to_numpy()] for name in ("row", "row_wrong"))
    near = products.with_columns(pl.Series("similarity", (left == right).mean(axis=1)))
    ranked = near.sort("similarity", "order", "order_wrong", descending=[True, False, False])
    return ranked.unique("row", keep="first", maintain_order=True)


def _refusals(
    prompts: pl.DataFrame, rollouts: pl.DataFrame, sided: pl.DataFrame, pairs: pl.DataFrame, cut: pl.DataFrame
) -> pl.Series:
    """Why each prompt has no pair, null where it has one."""
    verdict = pl.col("verdict")
    groups = rollouts.group_by("prompt_id").agg(
        num_right=(verdict == "correct").sum(), num_wrong=verdict.is_in(["incorrect", "no_answer"]).sum()
    )
    sides = sided.group_by("prompt_id").agg(num_chosen=pl.col("right").sum(), num_rejected=(~pl.col("right")).sum())
    described = prompts.join(groups, on="prompt_id", how="left", maintain_order="left").join(
        sides, on="prompt_id", how="left", maintain_order="left"
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
        "no_usable_chosen": pl.col("num_chosen") == 0,
        "no_usable_rejected": pl.col("num_rejected") == 0,
        # Right and wrong come from different models or settings.
        "no_common_group": ~pl.col("prompt_id").is_in(pairs["prompt_id"].unique().implode()),
        "over_size": ~pl.col("prompt_id").is_in(cut["prompt_id"].unique().implode()),
    }
    return described.select(first_reason(reasons).alias("refusal")).to_series()


# --- shard ----------------------------------------------------------------------------------------


def _shard(root: Path, pairs: pl.DataFrame, config: BuildDpoPairsConfig) -> Iterator[pa.RecordBatch]:
    """Rows of the dpo shard, in the order of the chosen rollouts."""
    problem_of = problem_lookup(root, pairs["prompt_id"])
    for part in pairs.sort("chosen_row", "rejected_row").iter_slices(_CHUNK_PAIRS):
        answer_of = _answers(root, pl.concat([part["chosen_row"], part["rejected_row"]]).unique().sort())
        rows = []
        for pair in part.iter_rows(named=True):
            problem = problem_of(pair["prompt_id"])
            rows.append(
                {
                    "prompt": [user_message(problem["problem"], problem["choices"], config.instruction)],
                    "chosen": [answer_of[pair["chosen_row"]]],
                    "rejected": [answer_of[pair["rejected_row"]]],
                    "chosen_id": pair["chosen"],
                    "rejected_id": pair["rejected"],
                    "prompt_id": pair["prompt_id"],
                    "source": problem["source"],
                }
            )
        yield pa.RecordBatch.from_pylist(rows, schema=SHARDS["dpo"])


def _answers(root: Path, wanted: pl.Series) -> dict[int, Message]:
    """The assistant's turn of each rollout, by row number."""
    return {
        row: assistant_message(reasoning, response)
        for rows, batch in read_rows(root, "rollouts", ["reasoning", "response"], wanted, _BATCH_ROWS)
        for row, (reasoning, response) in zip(rows, batch.iter_rows(), strict=True)
    }
