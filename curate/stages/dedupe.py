"""Dedupe: label problems that are the same problem, and traces that are the same trace.

A set stage over text, which it streams. Problems are the same if their words, numbers and signs are
equal (exact), or if most of their shingles are shared *and* their numbers and signs are equal in
order *and* their reference answers do not differ (minhash): a template with other numbers, another
sign, or another question about the same numbers is another problem. Traces are compared within
their problem; across problems only whole equal traces count.

Kept member of a problem's cluster: has a reference answer, then most rollouts, then longest text,
then smallest id. Of a trace's cluster: finished, then longest, then smallest id.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field

from curate import shingles
from curate.frames import num_rollouts, problem_text, read_frames, read_rows
from pipelines import parquet
from pipelines.config import Config
from pipelines.runner import Outcome, Stage, run_set_stage
from pipelines.tables import DUPLICATES

STAGE = Stage("dedupe", reads=("prompts", "rollouts"), writes=("duplicates",))


class DedupeConfig(Config):
    """What counts as the same."""

    problem_similarity: float = Field(0.7, gt=0, le=1)
    """Least true Jaccard similarity of two problems' 3-token shingles."""
    trace_similarity: float = Field(0.85, gt=0, le=1)
    """Least true Jaccard similarity of two traces' 5-token shingles, within a problem."""
    traces: bool = True
    """Whether rollouts are compared at all; it reads all their text."""
    across_min_chars: int = Field(200, ge=0)
    """Shorter traces ("The answer is 4.") may be equal under two problems without being copies."""


_PROBLEM_SHINGLE, _TRACE_SHINGLE = 3, 5
_BATCH_ROWS = 512
_CONFIRM_SHINGLES = 8_000_000
"""Shingles held at a time while candidate pairs are confirmed; about 0.5 GB."""

Sets = Callable[[pl.Series], pl.DataFrame]
"""Row numbers to their `Shingles.sets()`, read from the text again."""


def run(root: Path, config: DedupeConfig, *, replace: bool = False) -> Outcome:
    """Make the `duplicates` table of a run directory."""
    return run_set_stage(root, STAGE, config, lambda: {"duplicates": [dedupe(root, config)]}, replace=replace)


def dedupe(root: Path, config: DedupeConfig) -> pa.Table:
    """The `duplicates` rows: every member of every cluster of two or more, kept or not, cluster by cluster."""
    counts = num_rollouts(root)
    labels = [pl.DataFrame(schema=pl.Schema(DUPLICATES))]
    if _has_rows(root, "prompts"):
        labels.append(_problems(root, counts, config))
    if config.traces and not counts.is_empty():
        labels.append(_traces(root, counts, config))
    return pl.concat(labels).sort("kind", "cluster", "id").to_arrow().cast(DUPLICATES)


def _has_rows(root: Path, table: str) -> bool:
    return any(parquet.facts(path).rows for path in parquet.table_files(root, table))


# --- problems and traces --------------------------------------------------------------------------


def _problems(root: Path, counts: pl.DataFrame, config: DedupeConfig) -> pl.DataFrame:
    columns = ["prompt_id", "problem", "choices", "answer"]
    parts, keys = [], []
    for batch in read_frames(root, "prompts", columns, _BATCH_ROWS):
        tokens = shingles.words_and_signs(problem_text(batch))
        sets = shingles.shingles(tokens, _PROBLEM_SHINGLE)
        keys.append(shingles.bands(shingles.signatures(sets)))
        parts.append(
            batch.select(
                pl.col("prompt_id").alias("id"),
                pl.Series("size", sets.counts()),
                pl.Series("exact", shingles.fingerprints(tokens.list.join(" "))),
                pl.Series("block", shingles.fingerprints(shingles.quantities(tokens))),
                pl.Series("answer", shingles.words_and_signs(batch["answer"]).list.join(" ")),
                pl.Series("empty", tokens.list.len() == 0),
                pl.col("answer").is_null().alias("worse"),
                pl.col("problem").str.len_chars().alias("length"),
            )
        )
    rows = pl.concat(parts).join(counts, left_on="id", right_on="prompt_id", how="left", maintain_order="left")
    rows = rows.with_columns(pl.col("num_rollouts").fill_null(0)).with_row_index("row")
    best_first = rows.sort("worse", "num_rollouts", "length", "id", descending=[False, True, True, False])

    def sets_of(wanted: pl.Series) -> pl.DataFrame:
        texts = ((at, problem_text(batch)) for at, batch in read_rows(root, "prompts", columns, wanted, _BATCH_ROWS))
        return _shingle_sets(texts, shingles.words_and_signs, _PROBLEM_SHINGLE)

    return _label("problem", best_first, np.concatenate(keys), sets_of, config.problem_similarity)


def _traces(root: Path, counts: pl.DataFrame, config: DedupeConfig) -> pl.DataFrame:
    columns = ["rollout_id", "prompt_id", "reasoning", "response", "finish_reason"]
    groups = counts.filter(pl.col("num_rollouts") > 1)["prompt_id"].implode()
    parts, keys = [], []
    for batch in read_frames(root, "rollouts", columns, _BATCH_ROWS):
        text = _trace_text(batch)
        # A trace without neighbours needs no signature.
        compared = text.set(~batch["prompt_id"].is_in(groups), "")
        sets = shingles.shingles(shingles.words(compared), _TRACE_SHINGLE)
        keys.append(shingles.bands(shingles.signatures(sets)))
        parts.append(
            batch.select(
                pl.col("rollout_id").alias("id"),
                pl.Series("size", sets.counts()),
                *_trace_keys(batch, text, config.across_min_chars),
                pl.lit(None, pl.String).alias("answer"),
                pl.Series("empty", text.str.len_bytes() == 0),
                (pl.col("finish_reason") == "length").fill_null(False).alias("worse"),
                pl.Series("length", text.str.len_chars()),
            )
        )
    best_first = pl.concat(parts).with_row_index("row").sort("worse", "length", "id", descending=[False, True, False])

    def sets_of(wanted: pl.Series) -> pl.DataFrame:
        texts = ((at, _trace_text(batch)) for at, batch in read_rows(root, "rollouts", columns, wanted, _BATCH_ROWS))
        return _shingle_sets(texts, shingles.words, _TRACE_SHINGLE)

    return _label("trace", best_first, np.concatenate(keys), sets_of, config.trace_similarity)


def _trace_text(rollouts: pl.DataFrame) -> pl.Series:
    text = pl.concat_str("reasoning", "response", separator="\n", ignore_nulls=True)
    return rollouts.select(text.str.replace_all(r"\s+", " ").str.strip_chars().alias("text")).to_series()


def _trace_keys(rollouts: pl.DataFrame, text: pl.Series, across_min_chars: int) -> tuple[pl.Series, pl.Series]:
    """What equal traces share (`exact`), and what near-equal ones must share (`block`)."""
    problem, exact = shingles.fingerprints(rollouts["prompt_id"]), shingles.fingerprints(text)
    short = (text.str.len_chars() < across_min_chars).to_numpy()
    # Near-equal traces that end on different numbers are a right and a wrong one, and both are wanted.
    last_number = rollouts["response"].str.extract_all(r"\d+(?:\.\d+)?").list.last().fill_null("")
    return (
        pl.Series("exact", np.where(short, shingles.mixed(exact, problem), exact)),
        pl.Series("block", shingles.mixed(problem, shingles.fingerprints(last_number))),
    )


# --- clusters -------------------------------------------------------------------------------------


def _label(kind: str, best_first: pl.DataFrame, keys: shingles.Hashes, sets_of: Sets, threshold: float) -> pl.DataFrame:
    """The `duplicates` rows among `best_first`: `row`, `id`, `size`, `exact`, `block`, `answer`, `empty`.

    `keys` has the band keys of each `row`. Members are numbered by rank, so the smallest of a
    cluster is the one to keep.
    """
    rows = best_first.filter(~pl.col("empty")).unique("id", keep="first", maintain_order=True).with_row_index("rank")
    rows = rows.with_columns(head=pl.col("rank").min().over("exact"), copies=pl.len().over("exact"))
    heads = rows.filter((pl.col("rank") == pl.col("head")) & (pl.col("size") > 0))
    near = _near_pairs(heads, keys, sets_of, threshold)
    kept = shingles.clusters(rows.height, near)
    rows = rows.with_columns(pl.Series("kept", kept[rows["head"].to_numpy()], dtype=pl.UInt32))
    rows = rows.filter(pl.len().over("kept") > 1)
    best = rows.filter(pl.col("rank") == pl.col("kept")).select("kept", cluster="id", kept_exact="exact")
    rows = rows.join(best, on="kept").join(_similarities(rows, heads, sets_of), on="head", how="left")
    same = pl.col("exact") == pl.col("kept_exact")
    alone = (pl.col("rank") == pl.col("kept")) & (pl.col("copies") == 1)
    return rows.select(
        "id",
        pl.lit(kind).alias("kind"),
        "cluster",
        (pl.col("rank") == pl.col("kept")).alias("keep"),
        pl.when(same & ~alone).then(pl.lit("exact")).otherwise(pl.lit("minhash")).alias("method"),
        pl.when(same).then(1.0).otherwise(pl.col("similarity")).cast(pl.Float32).alias("similarity"),
    )


def _near_pairs(heads: pl.DataFrame, keys: shingles.Hashes, sets_of: Sets, threshold: float) -> pl.DataFrame:
    """`a`, `b`: ranks of confirmed near-duplicates among `heads`."""
    found = shingles.candidate_pairs(keys[heads["row"].to_numpy()], heads["block"].to_numpy())
    pairs = _pairs(heads, found["a"], found["b"])
    pairs = pairs.filter((pl.col("answer_a") == pl.col("answer_b")).fill_null(True))
    return pairs.filter(_jaccard(pairs, sets_of) >= threshold).select(a="rank_a", b="rank_b")


def _similarities(rows: pl.DataFrame, heads: pl.DataFrame, sets_of: Sets) -> pl.DataFrame:
    """`head`, `similarity`: of each exact group of a cluster with the member kept."""
    groups = rows.select("head", "kept").unique().filter(pl.col("head") != pl.col("kept")).sort("head")
    position = heads.select("rank").with_row_index("position")
    at = [
        groups.join(position, left_on=name, right_on="rank", maintain_order="left")["position"]
        for name in ("head", "kept")
    ]
    pairs = _pairs(heads, *at)
    return pairs.select(head="rank_a", similarity=_jaccard(pairs, sets_of))


def _pairs(heads: pl.DataFrame, a: pl.Series, b: pl.Series) -> pl.DataFrame:
    """`heads` at positions `a` beside `heads` at positions `b`, columns with `_a` and `_b`."""
    kept = heads.select("rank", "row", "size", "answer")
    return pl.concat(
        [kept[a].select(pl.all().name.suffix("_a")), kept[b].select(pl.all().name.suffix("_b"))], how="horizontal"
    )


def _jaccard(pairs: pl.DataFrame, sets_of: Sets) -> pl.Series:
    """True Jaccard similarity of each pair, `_CONFIRM_SHINGLES` at a time."""
    chunk = (pairs["size_a"] + pairs["size_b"]).cum_sum() // _CONFIRM_SHINGLES
    found = [pl.Series("similarity", [], dtype=pl.Float32)]
    for part in pairs.select(a="row_a", b="row_b").with_columns(chunk=chunk).partition_by("chunk", maintain_order=True):
        wanted = pl.concat([part["a"], part["b"]]).unique().sort()
        found.append(shingles.jaccard(part, sets_of(wanted)))
    return pl.concat(found)


# --- reading --------------------------------------------------------------------------------------


def _shingle_sets(
    texts: Iterator[tuple[pl.Series, pl.Series]], tokens_of: Callable[[pl.Series], pl.Series], size: int
) -> pl.DataFrame:
    """`row`, `shingle` for texts that come with their row numbers."""
    parts = [pl.DataFrame(schema={"row": pl.UInt32, "shingle": pl.UInt64})]
    for at, text in texts:
        found = shingles.shingles(tokens_of(text), size).sets()
        parts.append(found.with_columns(row=at.cast(pl.UInt32).gather(found["row"])))
    return pl.concat(parts)
