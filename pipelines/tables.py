"""The only definition of the tables: Arrow schemas, their version, and the ids.

A table is a folder of Parquet files. Text is stored in `prompts`, `rollouts` and the shards; every
other table is a narrow label keyed by id. Ids are content hashes, known before the work is done, so
to resume is to subtract the ids already stored.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 1
"""Version of a table that names no other: one whose columns changed does, so that the rest stay readable."""

VERDICTS = ("correct", "incorrect", "no_answer", "timeout", "gold_unreadable", "undecided")
STAGES = ("midtrain", "sft", "dpo", "rl")
"""Training stages, in order: the shard kinds."""

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))


def _schema(
    name: str,
    fields: Sequence[tuple[str, pa.DataType] | tuple[str, pa.DataType, bool]],
    version: int = SCHEMA_VERSION,
) -> pa.Schema:
    columns = [pa.field(field[0], field[1], nullable=len(field) == 3 and field[2]) for field in fields]
    metadata = {b"tracemill.table": name.encode(), b"tracemill.schema_version": str(version).encode()}
    return pa.schema(columns).with_metadata(metadata)


OPTIONAL = True

PROMPTS = _schema(
    "prompts",
    [
        ("prompt_id", pa.string()),
        ("problem", pa.large_string()),
        ("choices", pa.list_(pa.string()), OPTIONAL),  # option texts in order A, B, C ...
        ("answer", pa.string(), OPTIONAL),  # reference answer: mathematics, or the letter of a choice
        ("solution", pa.large_string(), OPTIONAL),
        ("verifier", pa.string()),  # key of `verifiers.VERIFIERS`
        ("source", pa.string()),
        ("source_id", pa.string()),
        ("licence", pa.string(), OPTIONAL),
        ("domain", pa.string(), OPTIONAL),  # as the source states it
        ("level", pa.string(), OPTIONAL),  # as the source states it
    ],
)

ROLLOUTS = _schema(
    "rollouts",
    [
        ("rollout_id", pa.string()),
        ("prompt_id", pa.string()),
        ("model", pa.string()),
        ("sample_index", pa.int32()),
        ("sampling_id", pa.string()),  # digest of instruction and sampling settings
        ("temperature", pa.float32(), OPTIONAL),
        ("top_p", pa.float32(), OPTIONAL),
        ("max_tokens", pa.int32(), OPTIONAL),
        ("seed", pa.int64(), OPTIONAL),
        ("reasoning", pa.large_string(), OPTIONAL),  # None: the completion has no separate reasoning
        ("response", pa.large_string()),  # what follows the reasoning; may be empty
        ("reasoning_form", pa.string()),  # how reasoning was told from the answer; see pipelines/reasoning.py
        ("finish_reason", pa.string(), OPTIONAL),  # stop, length; None where the source does not say
        ("prompt_tokens", pa.int32(), OPTIONAL),
        ("completion_tokens", pa.int32(), OPTIONAL),
        ("step", pa.int32(), OPTIONAL),  # RL step or evaluation step that sampled it
        ("upstream_label", pa.bool_(), OPTIONAL),  # an imported row's verdict by its makers
        ("source", pa.string()),
        ("source_id", pa.string(), OPTIONAL),
    ],
)

VERDICT_LABELS = _schema(
    "verdicts",
    [
        ("rollout_id", pa.string()),
        ("prompt_id", pa.string()),
        ("verdict", pa.string()),  # one of VERDICTS
        ("extracted", pa.string(), OPTIONAL),
        ("rule", pa.string()),
        ("verifier", pa.string()),  # name@version, of a judge with its model: judge@1:qwq-32b
        ("dissent", pa.string(), OPTIONAL),  # what another verifier said, where it said something else
    ],
    version=2,
)

DUPLICATES = _schema(
    "duplicates",
    [
        ("id", pa.string()),  # prompt_id or rollout_id
        ("kind", pa.string()),  # problem, trace
        ("cluster", pa.string()),  # id of the member that is kept
        ("keep", pa.bool_()),
        ("method", pa.string()),  # exact, minhash, semantic
        ("similarity", pa.float32()),  # true Jaccard with the kept member, [0, 1]
    ],
)

CONTAMINATION = _schema(
    "contamination",
    [
        ("prompt_id", pa.string()),
        ("benchmark", pa.string()),
        ("item", pa.string()),  # the benchmark's own id of the item
        ("method", pa.string()),
        ("score", pa.float32()),  # share of the item's shingles found, [0, 1]
        ("evidence", pa.large_string()),  # matched text
    ],
)

PROMPT_ANNOTATIONS = _schema(
    "prompt_annotations",
    [
        ("prompt_id", pa.string()),
        ("domain", pa.string(), OPTIONAL),
        ("domain_from", pa.string()),  # source, judge, classifier, none
        ("level", pa.string(), OPTIONAL),
        ("level_from", pa.string()),
        ("num_rollouts", pa.int32()),
        ("num_correct", pa.int32()),
        ("num_judged", pa.int32()),  # verdict correct, incorrect or no_answer
        ("pass_rate", pa.float32(), OPTIONAL),  # num_correct / num_judged
        ("pass_rate_low", pa.float32(), OPTIONAL),  # 95 % Wilson interval
        ("pass_rate_high", pa.float32(), OPTIONAL),
        ("length_mean", pa.float32(), OPTIONAL),  # of rollouts, in tokens (characters / 4 where unknown)
        ("length_std", pa.float32(), OPTIONAL),
        ("length_ratio", pa.float32(), OPTIONAL),  # p90 / p10
    ],
)

ROLLOUT_ANNOTATIONS = _schema(
    "rollout_annotations",
    [
        ("rollout_id", pa.string()),
        ("prompt_id", pa.string()),
        ("num_chars", pa.int32()),  # reasoning and response together
        ("num_tokens", pa.int32()),  # the sampler's count, else characters / 4
        ("truncated", pa.bool_()),
        ("compression_ratio", pa.float32()),  # raw bytes / zlib bytes; loops go far above 10
        ("repeated_share", pa.float32()),  # share of the text that a looping suffix covers, [0, 1]
        ("num_reflections", pa.int32()),  # "wait", "let me check", ...
        ("num_language_switches", pa.int32()),  # words of another script than the word before
        ("answer_position", pa.float32(), OPTIONAL),  # where the last box opens, [0, 1]
    ],
    version=2,
)

SELECTIONS = _schema(
    "selections",
    [
        ("stage", pa.string()),  # one of STAGES
        ("id", pa.string()),  # rollout_id (midtrain, sft), prompt_id (rl, dpo)
        ("prompt_id", pa.string()),
        ("refusal", pa.string(), OPTIONAL),  # None: chosen
    ],
)

REFUSALS = _schema(
    "refusals",
    [
        ("stage", pa.string()),  # import, generate
        ("source", pa.string()),
        ("row", pa.int64(), OPTIONAL),  # zero-based row (or line) in the source
        ("id", pa.string(), OPTIONAL),  # rollout_id where it was known
        ("reason", pa.string()),
        ("detail", pa.large_string()),  # error or offending text, cut to a few KB
    ],
)

OVERRIDES = _schema(
    "overrides",
    [
        ("id", pa.string()),  # rollout_id (verdict), prompt_id (gold)
        ("kind", pa.string()),  # verdict: a reader says otherwise; gold: the reference answer is bad
        ("prompt_id", pa.string()),
        ("verdict", pa.string(), OPTIONAL),  # what a reader says of the rollout: correct, incorrect, undecided
        ("note", pa.string(), OPTIONAL),  # why, in the reader's words
    ],
)

REWARDS = _schema(
    "rewards",
    [
        ("rollout_id", pa.string()),
        ("prompt_id", pa.string()),
        ("step", pa.int32()),
        ("reward", pa.float32(), OPTIONAL),  # None: the verdict says nothing
        ("advantage", pa.float32(), OPTIONAL),  # None: not trained on
        ("group_refusal", pa.string(), OPTIONAL),  # why its group was not: all_wrong, all_correct, too_easy, unjudged
        ("logprob", pa.float32()),  # the sampler's, of the whole completion, in nats
    ],
)

_LINEAGE: list[tuple[str, pa.DataType]] = [("prompt_id", pa.string()), ("source", pa.string())]

SHARDS: dict[str, pa.Schema] = {
    "midtrain": _schema("midtrain", [("messages", _MESSAGES), ("rollout_id", pa.string()), *_LINEAGE]),
    "sft": _schema("sft", [("messages", _MESSAGES), ("rollout_id", pa.string()), *_LINEAGE]),
    "dpo": _schema(
        "dpo",
        [
            ("prompt", _MESSAGES),
            ("chosen", _MESSAGES),
            ("rejected", _MESSAGES),
            ("chosen_id", pa.string()),
            ("rejected_id", pa.string()),
            *_LINEAGE,
        ],
    ),
    "rl": _schema(
        "rl",
        [
            ("prompt", _MESSAGES),
            ("answer", pa.string()),
            ("choices", pa.list_(pa.string()), OPTIONAL),
            ("verifier", pa.string()),
            ("pass_rate", pa.float32(), OPTIONAL),
            *_LINEAGE,
        ],
    ),
}

TABLES: dict[str, pa.Schema] = {
    "prompts": PROMPTS,
    "rollouts": ROLLOUTS,
    "verdicts": VERDICT_LABELS,
    "duplicates": DUPLICATES,
    "contamination": CONTAMINATION,
    "annotations/prompts": PROMPT_ANNOTATIONS,
    "annotations/rollouts": ROLLOUT_ANNOTATIONS,
    "selections/split": SELECTIONS,
    "selections/pairs": SELECTIONS,
    "refusals": REFUSALS,
    "overrides": OVERRIDES,
    "rewards": REWARDS,
    **{f"shards/{stage}": schema for stage, schema in SHARDS.items()},
}
"""Folder below a run directory -> schema of the files in it."""


def content_id(*parts: Any) -> str:
    """Content hash of JSON-able parts, 24 hex digits (96 bits: no collision among 10^10 rows is expected)."""
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


_SPACE = re.compile(r"\s+")


def normalised_problem(problem: str) -> str:
    """`problem` in Unicode NFC with runs of white space folded; letters, numbers and LaTeX stay as they are.

    Not NFKC, which would turn x² into x2.
    """
    return _SPACE.sub(" ", unicodedata.normalize("NFC", problem)).strip()


def prompt_id(problem: str, choices: Sequence[str] | None = None) -> str:
    """Id of a problem: the hash of its normalised text, and of its options where it has some."""
    options = [normalised_problem(choice) for choice in choices] if choices else None
    return content_id("prompt", normalised_problem(problem), options)


def rollout_id(prompt_id: str, model: str, sampling: Mapping[str, Any], sample_index: int) -> str:
    """Id of a rollout, known before it is sampled."""
    return content_id("rollout", prompt_id, model, dict(sampling), sample_index)
