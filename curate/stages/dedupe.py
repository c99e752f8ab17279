"""Dedupe: label problems that are the same problem, and traces that are the same trace.

A set stage over text, which it streams. Problems are the same if their words, numbers and signs are
equal (exact), or if most of their shingles are shared *and* their reference answers do not differ *and*
their numbers and signs are equal in order (minhash): a template with other numbers, another sign, or
another question about the same numbers is another problem. Where both answers are known, equal and no mere
words, one problem may have numbers and signs beside the other's: a source is named, a note added. Traces are
compared within their problem, those with the same answer; across problems only whole equal traces count.

With `semantic_model`, problems whose vectors are alike are one as well (semantic), if they have one known
answer and the same numbers: other words about the same thing.

Kept member of a problem's cluster: has a reference answer, then the better source (`prefer`), then most
rollouts, then longest text, then stored first. Of a trace's cluster: finished, then longest, then first.
"""

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field

from curate import shingles
from curate.bytewise import folded_fingerprints, word_shingles
from curate.clusters import Alike, Described, Kind, label
from curate.frames import num_rollouts, problem_text, read_frame
from pipelines.config import Config
from pipelines.errors import UserError
from pipelines.runner import Outcome, Stage, run_set_stage
from pipelines.tables import DUPLICATES

STAGE = Stage("dedupe", reads=("prompts", "rollouts"), writes=("duplicates",), version=2)


class DedupeConfig(Config):
    """What counts as the same, and which of the same is kept."""

    problem_similarity: float = Field(0.6, gt=0, le=1)
    """Least true Jaccard similarity of two problems' 3-token shingles."""
    trace_similarity: float = Field(0.85, gt=0, le=1)
    """Least true Jaccard similarity of two traces' 5-word shingles, within a problem."""
    prefer: tuple[str, ...] = ()
    """Sources by trust, best first; those not named come after them."""
    traces: bool = True
    """Whether rollouts are compared at all; it reads all their text."""
    across_min_chars: int = Field(200, ge=0)
    """Shorter traces ("The answer is 4.") may be equal under two problems without being copies."""
    semantic_model: str = ""
    """Folder of an encoder; no such pass where empty."""
    semantic_similarity: float = Field(0.9, gt=0, le=1)
    """Least cosine similarity of two problems' vectors."""


_PROBLEM_SHINGLE, _TRACE_SHINGLE = 3, 5
_PROBLEM_BAND, _TRACE_BAND = 4, 6
"""Slots of a band: 32 bands of 4 propose 98.8 % of the pairs of Jaccard 0.6, 21 of 6 99.9 % of those of 0.85."""
_ANSWER_CHARS = 200
_LETTERS = {letter: place for place, letter in enumerate("ABCDEFGHIJ")}


def run(root: Path, config: DedupeConfig, *, replace: bool = False) -> Outcome:
    """Make the `duplicates` table of a run directory."""
    weights = _weights(Path(config.semantic_model)) if config.semantic_model else []
    return run_set_stage(
        root,
        STAGE,
        config,
        lambda: {"duplicates": [dedupe(root, config)]},
        replace=replace,
        side_inputs=weights,
    )


def _weights(model: Path) -> list[str]:
    """Digests of a model's files: another model in the same folder makes the labels stale."""
    digests = []
    for path in sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "blake2b").hexdigest()[:32])
    return digests


def dedupe(root: Path, config: DedupeConfig) -> pa.Table:
    """The `duplicates` rows: every member of every cluster of two or more, kept or not, cluster by cluster."""
    counts = num_rollouts(root)
    _check_sources(root, config.prefer)
    labels = [label(root, _problems(config), counts)]
    if config.traces and not counts.is_empty():
        sampled_twice = counts.filter(pl.col("num_rollouts") > 1)["prompt_id"]
        labels.append(label(root, _traces(sampled_twice, config), None))
    return pl.concat(labels).sort("kind", "cluster", "id").to_arrow().cast(DUPLICATES)


def _check_sources(root: Path, prefer: tuple[str, ...]) -> None:
    known = set(read_frame(root, "prompts", ["source"])["source"].unique()) if prefer else set()
    for source in prefer:
        if source not in known:
            raise UserError(f"no problem comes from `{source}`", hint=f"sources: {', '.join(sorted(known))}")


# --- what is compared -----------------------------------------------------------------------------


def _problems(config: DedupeConfig) -> Kind:
    rank = {source: place for place, source in enumerate(config.prefer)}

    def describe(prompts: pl.DataFrame) -> Described:
        tokens = shingles.words_and_signs(problem_text(prompts))
        quantities = shingles.quantities(tokens)
        answers = shingles.words_and_signs(_answers(prompts)).list.join(" ")
        answer = np.where(answers == "", np.uint64(0), shingles.fingerprints(answers))
        no_gold = (answers == "").cast(pl.Int64) * (len(rank) + 1)
        trust = prompts["source"].replace_strict(rank, default=len(rank), return_dtype=pl.Int64)
        facts = {
            "exact": shingles.fingerprints(tokens.list.join(" ")),
            "block": shingles.fingerprints(quantities),
            "quantities": quantities,
            "answer": answer,
            "voucher": np.where(answers.str.contains(r"\d"), answer, np.uint64(0)),
            "tier": no_gold + trust,
            "length": prompts["problem"].str.len_chars(),
            "empty": tokens.list.len() == 0,
        }
        return pl.DataFrame(facts), shingles.shingles(tokens, _PROBLEM_SHINGLE)

    columns = ("prompt_id", "problem", "choices", "answer", "source")
    alike = None
    if config.semantic_model:
        alike = Alike(Path(config.semantic_model), problem_text, config.semantic_similarity)
    return Kind("problem", "prompts", "prompt_id", columns, describe, _PROBLEM_BAND, config.problem_similarity, alike)


def _answers(prompts: pl.DataFrame) -> pl.Series:
    """Each reference answer, empty where there is none; of a letter the option it stands for."""
    place = pl.col("answer").str.strip_chars().replace_strict(_LETTERS, default=None, return_dtype=pl.Int64)
    option = pl.col("choices").list.get(place, null_on_oob=True)
    return prompts.select(pl.coalesce(option, "answer", pl.lit(""))).to_series()


def _traces(sampled_twice: pl.Series, config: DedupeConfig) -> Kind:
    # Sorted once: a search in all ids for each batch would cost more than the batch.
    neighboured = np.sort(shingles.fingerprints(sampled_twice))

    def describe(rollouts: pl.DataFrame) -> Described:
        whole = pl.concat_str("reasoning", "response", separator="\n", ignore_nulls=True)
        text = rollouts.select(whole.alias("text")).to_series()
        problem, exact = shingles.fingerprints(rollouts["prompt_id"]), folded_fingerprints(text)
        short = (text.str.len_chars() < config.across_min_chars).to_numpy()
        facts = {
            "exact": np.where(short, shingles.mixed(exact, problem), exact),
            # Near-equal traces with other answers are a right and a wrong one, and both are wanted.
            "block": shingles.mixed(problem, shingles.fingerprints(_conclusions(rollouts["response"]))),
            "quantities": [None] * len(text),
            "answer": np.zeros(len(text), np.uint64),
            "voucher": np.zeros(len(text), np.uint64),
            "tier": (rollouts["finish_reason"] == "length").fill_null(False).cast(pl.Int64),
            "length": text.str.len_chars(),
            "empty": text.str.strip_chars() == "",
        }
        # A trace without neighbours needs no shingles.
        alone = np.searchsorted(neighboured, problem, "left") == np.searchsorted(neighboured, problem, "right")
        compared = text.set(pl.Series(alone), "")
        return pl.DataFrame(facts), word_shingles(compared, _TRACE_SHINGLE)

    columns = ("rollout_id", "prompt_id", "reasoning", "response", "finish_reason")
    return Kind("trace", "rollouts", "rollout_id", columns, describe, _TRACE_BAND, config.trace_similarity)


def _conclusions(responses: pl.Series) -> pl.Series:
    """What each response ends on, roughly: its last box without white space, else its last number."""
    pieces = responses.str.split("\\boxed")
    box = pieces.list.last().str.head(_ANSWER_CHARS).str.replace_all(r"\s", "")
    inner = box.str.extract(r"^\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}").fill_null(box)
    number = responses.str.tail(_ANSWER_CHARS).str.extract_all(r"\d+(?:\.\d+)?").list.last().fill_null("")
    return inner.zip_with(pieces.list.len() > 1, number)
