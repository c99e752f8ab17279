"""Annotate: what a prompt is about, how hard it is, and how its rollouts look.

A row stage over rollouts (the only one that reads their text), then a set stage that sums its labels
and the verdicts up by prompt.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from curate.frames import read_frame, to_frame
from pipelines import parquet
from pipelines.config import Config
from pipelines.reasoning import TRUNCATED
from pipelines.runner import Outcome, Stage, run_row_stage, run_set_stage
from pipelines.tables import PROMPT_ANNOTATIONS, ROLLOUT_ANNOTATIONS

STAGE = Stage("annotate", reads=("rollouts",), writes=("annotations/rollouts",))
PROMPT_STAGE = Stage(
    "annotate_prompts", reads=("prompts", "annotations/rollouts", "verdicts"), writes=("annotations/prompts",)
)
STAGES = (STAGE, PROMPT_STAGE)


class AnnotateConfig(Config):
    """Nothing to choose yet: every annotation is a measurement."""


CONFIG = AnnotateConfig


DOMAINS: dict[str, str] = {
    **{name: name for name in ("algebra", "arithmetic", "calculus", "geometry", "number theory", "statistics")},
    **{name: name for name in ("linear algebra", "discrete mathematics", "logic", "analysis", "precalculus")},
    **dict.fromkeys(["prealgebra", "intermediate algebra", "elementary algebra", "abstract algebra"], "algebra"),
    **dict.fromkeys(["counting & probability", "counting and probability", "combinatorics"], "counting & probability"),
    **dict.fromkeys(["probability", "probability theory"], "counting & probability"),
    **dict.fromkeys(["trigonometry", "pre-calculus"], "precalculus"),
    **dict.fromkeys(["differential equations", "integral calculus", "differential calculus"], "calculus"),
    **dict.fromkeys(["real analysis", "complex analysis", "mathematical analysis"], "analysis"),
    **dict.fromkeys(["elementary mathematics", "prealgebra arithmetic"], "arithmetic"),
    **dict.fromkeys(["plane geometry", "solid geometry", "analytic geometry"], "geometry"),
}
"""A source's word for a domain, lower case -> ours. A word that is not here stays as the source has it."""

LEVELS = ("elementary", "middle school", "high school", "college", "graduate")
"""Levels of arXiv:2504.21233, easiest first."""

_LEVEL_NAMES: dict[str, str] = {
    **{level: level for level in LEVELS},
    **dict.fromkeys(["elementary school", "primary school", "grade school", "primary"], "elementary"),
    **dict.fromkeys(["junior high school", "middle"], "middle school"),
    **dict.fromkeys(["secondary school", "high", "competition", "olympiad"], "high school"),
    **dict.fromkeys(["undergraduate", "university"], "college"),
    **dict.fromkeys(["phd", "research"], "graduate"),
    # MATH (arXiv:2103.03874): AMC 8 to AMC 12 and AIME.
    **dict.fromkeys(["level 1", "level 2"], "middle school"),
    **dict.fromkeys(["level 3", "level 4", "level 5"], "high school"),
}

_SOURCE_LEVELS: tuple[tuple[str, str], ...] = (
    (r"elementary", "elementary"),
    (r"high.?school", "high school"),
    (r"gsm8k|svamp|multiarith|asdiv", "elementary"),
    (r"aime|\bamc|olymp|hmmt|\bimo", "high school"),
    (r"college|minerva|theoremqa", "college"),
    (r"gpqa", "graduate"),
)
"""Level of a source that states none: a pattern of its name (lower case), first match."""

_RATINGS = ((7.5, "graduate"), (5.0, "college"), (3.0, "high school"), (1.0, "middle school"), (0.0, "elementary"))
"""Least difficulty of a level where a source (DeepMath, DeepScaleR) rates from 0 to 10; the cuts are ours."""

_BATCH_ROWS = 256
_SAMPLE_BYTES = 32 << 10
"""zlib looks back 32 KiB, so the last 32 KiB of a trace show any loop it ends in."""
_LOOP_PROBE = 32
_REFLECTION = (
    r"(?i)\b(?:wait|hold on|let me (?:double[- ])?(?:check|verify|reconsider|re-?check|think again)|double[- ]check"
    r"|on second thought|i made a mistake|alternatively)\b"
)


def run(root: Path, config: AnnotateConfig, *, replace: bool = False, part: tuple[int, int] | None = None) -> Outcome:
    """Make both annotation tables of a run directory; a directory without rollouts gets the prompts' only.

    A task of an executor (`part`) annotates its share of the rollouts files, and no prompts.
    """
    outcomes = []
    if parquet.table_files(root, "rollouts"):
        outcomes.append(run_row_stage(root, STAGE, config, _annotate_file, replace=replace, part=part))
    if part is not None:
        return outcomes[0]
    outcomes.append(
        run_set_stage(
            root, PROMPT_STAGE, config, lambda: {"annotations/prompts": [annotate_prompts(root)]}, replace=replace
        )
    )
    return Outcome(
        STAGE.name,
        sum(outcome.made for outcome in outcomes),
        sum(outcome.kept for outcome in outcomes),
        sum(outcome.rows for outcome in outcomes),
        sum(outcome.seconds for outcome in outcomes),
    )


# --- rollouts -------------------------------------------------------------------------------------

_ROLLOUT_COLUMNS = [
    "rollout_id",
    "prompt_id",
    "reasoning",
    "response",
    "reasoning_form",
    "finish_reason",
    "completion_tokens",
]


def _annotate_file(path: Path) -> Iterator[pa.Table]:
    for batch in parquet.read_batches(path, "rollouts", _ROLLOUT_COLUMNS, _BATCH_ROWS):
        yield annotate_rollouts(batch)


def annotate_rollouts(rollouts: pa.RecordBatch) -> pa.Table:
    """One row of `annotations/rollouts` a rollout, in order."""
    frame = to_frame(rollouts).with_columns(
        text=pl.concat_str("reasoning", "response", separator="\n", ignore_nulls=True)
    )
    texts = [text.encode() for text in frame["text"]]
    num_chars = pl.col("text").str.len_chars().cast(pl.Int32)
    labels = frame.select(
        "rollout_id",
        "prompt_id",
        num_chars.alias("num_chars"),
        pl.coalesce(pl.col("completion_tokens"), (num_chars + 3) // 4).alias("num_tokens"),
        truncated=((pl.col("finish_reason") == "length").fill_null(False) | (pl.col("reasoning_form") == TRUNCATED)),
        compression_ratio=pl.Series([compression_ratio(text) for text in texts], dtype=pl.Float32),
        repeated_share=pl.Series([repeated_share(text) for text in texts], dtype=pl.Float32),
        num_reflections=pl.col("text").str.count_matches(_REFLECTION).cast(pl.Int32),
        answer_position=pl.Series([answer_position(text) for text in texts], dtype=pl.Float32),
    )
    return labels.to_arrow().cast(ROLLOUT_ANNOTATIONS)


def compression_ratio(text: bytes) -> float:
    """Bytes per zlib byte of the text's last 32 KiB; prose has 2 to 3, loops far above 10. 1 for no text."""
    tail = text[-_SAMPLE_BYTES:]
    return len(tail) / len(zlib.compress(tail, 1)) if tail else 1.0


def repeated_share(text: bytes) -> float:
    """Share of `text` that its looping end covers: a stretch repeated at least three times; 0 without a loop.

    Linear in time: the distance from the last bytes to where they stood before is the period, if
    there is one, and then the loop reaches back to the first byte that differs from the one a period later.
    """
    probe = text[-_LOOP_PROBE:]
    if len(probe) < _LOOP_PROBE:
        return 0.0
    before = len(text) - 1
    # The probe may stand more than once in a period, so a few distances are tried.
    for _ in range(4):
        at = text.rfind(probe, 0, before)
        if at < 0:
            return 0.0
        period = len(text) - _LOOP_PROBE - at
        covered = _periodic_end(text, period)
        if covered >= max(3 * period, 2 * _LOOP_PROBE):
            return covered / len(text)
        before = at + _LOOP_PROBE - 1
    return 0.0


def _periodic_end(text: bytes, period: int) -> int:
    """Length of the longest end of `text` in which every byte equals the one `period` later."""
    codes = np.frombuffer(text, np.uint8)
    differs = np.flatnonzero(codes[:-period] != codes[period:])
    return len(text) - (int(differs[-1]) + 1 if len(differs) else 0)


def answer_position(text: bytes) -> float | None:
    """Where the last box opens, as a share of the text; None without a box."""
    at = text.rfind(b"\\boxed")
    return at / len(text) if at >= 0 else None


# --- prompts --------------------------------------------------------------------------------------


def annotate_prompts(root: Path) -> pa.Table:
    """One row of `annotations/prompts` a prompt, in order."""
    prompts = read_frame(root, "prompts", ["prompt_id", "source", "domain", "level"]).unique(
        "prompt_id", keep="first", maintain_order=True
    )
    rollouts = read_frame(root, "annotations/rollouts", ["rollout_id", "prompt_id", "num_tokens"])
    verdicts = read_frame(root, "verdicts", ["rollout_id", "verdict"])
    counts = rollouts.join(verdicts, on="rollout_id", how="left").group_by("prompt_id").agg(*_counts())
    labels = prompts.join(counts, on="prompt_id", how="left", maintain_order="left").with_columns(
        pl.col("num_rollouts", "num_correct", "num_judged").fill_null(0)
    )
    labels = labels.with_columns(domain=_domain(), level=_level()).with_columns(
        domain_from=_from("domain"), level_from=_from("level"), pass_rate=_pass_rate()
    )
    low, high = _wilson(pl.col("num_correct"), pl.col("num_judged"))
    labels = labels.with_columns(pass_rate_low=low, pass_rate_high=high)
    return labels.select(PROMPT_ANNOTATIONS.names).to_arrow().cast(PROMPT_ANNOTATIONS)


def _counts() -> list[pl.Expr]:
    """Numbers of one prompt's rollouts. Sums are of whole numbers, so their order cannot show."""
    n, tokens = pl.len(), pl.col("num_tokens").cast(pl.Int64)
    total, squares = tokens.sum(), (tokens * tokens).sum()
    # Sample variance; max(0) for what rounding leaves of equal lengths.
    variance = ((squares - total * total / n) / (n - 1)).clip(0)
    # A rollout has a token at least: its end.
    p10, p90 = (tokens.clip(1).quantile(share, "linear") for share in (0.1, 0.9))
    return [
        n.cast(pl.Int32).alias("num_rollouts"),
        (pl.col("verdict") == "correct").sum().cast(pl.Int32).alias("num_correct"),
        pl.col("verdict").is_in(["correct", "incorrect", "no_answer"]).sum().cast(pl.Int32).alias("num_judged"),
        (total / n).alias("length_mean"),
        pl.when(n > 1).then(variance.sqrt()).alias("length_std"),
        pl.when(n > 1).then(p90 / p10).alias("length_ratio"),
    ]


def _pass_rate() -> pl.Expr:
    return pl.when(pl.col("num_judged") > 0).then(pl.col("num_correct") / pl.col("num_judged"))


def _wilson(correct: pl.Expr, judged: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """95 % Wilson score interval of a proportion, null for no trials (Wilson 1927, eq. for p)."""
    z = 1.959963984540054
    rate, n = correct / judged, judged.cast(pl.Float64)
    middle = rate + z * z / (2 * n)
    half = z * (rate * (1 - rate) / n + z * z / (4 * n * n)).sqrt()
    scale = 1 + z * z / n
    bounds = ((middle - half) / scale).clip(0, 1), ((middle + half) / scale).clip(0, 1)
    low, high = (pl.when(judged > 0).then(bound) for bound in bounds)
    return low, high


def _domain() -> pl.Expr:
    # "college_math.algebra" and "MMLU/high_school_physics" carry their set in front.
    stated = pl.col("domain").str.to_lowercase().str.replace(r"^.*[./]", "").str.replace_all("_", " ")
    return _stated(stated).replace(DOMAINS)


def _level() -> pl.Expr:
    stated = _stated(pl.col("level").str.to_lowercase().str.replace_all("_", " "))
    rating = stated.cast(pl.Float64, strict=False)
    # The five levels of MATH also come as bare numbers.
    is_math = pl.col("source").str.contains(r"(?i)\bmath\b") & rating.is_in([1.0, 2.0, 3.0, 4.0, 5.0])
    numbered = pl.when(is_math).then(pl.format("level {}", rating.cast(pl.Int32))).otherwise(_rated(rating))
    named = pl.when(rating.is_null() & ~stated.str.contains("?", literal=True)).then(stated)
    by_source = pl.lit(None, pl.String)
    for pattern, level in reversed(_SOURCE_LEVELS):
        matches = pl.col("source").str.to_lowercase().str.contains(pattern)
        by_source = pl.when(matches).then(pl.lit(level)).otherwise(by_source)
    return pl.coalesce(numbered, named, by_source).replace(_LEVEL_NAMES)


def _rated(rating: pl.Expr) -> pl.Expr:
    return pl.coalesce(*(pl.when(rating >= least).then(pl.lit(level)) for least, level in _RATINGS))


def _stated(text: pl.Expr) -> pl.Expr:
    text = text.str.strip_chars()
    return pl.when(text != "").then(text)


def _from(column: str) -> pl.Expr:
    return pl.when(pl.col(column).is_null()).then(pl.lit("none")).otherwise(pl.lit("source"))
