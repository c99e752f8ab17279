"""Annotate: what a prompt is about, how hard it is, and how its rollouts look.

A row stage over rollouts (the only one that reads their text), then a set stage that sums its labels
and the verdicts up by prompt.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from pydantic import Field

from curate.classifier import Accuracy
from curate.frames import aligned_frames, gathered, to_frame
from curate.judging import Judge, judge_identity, opened_judge
from curate.label_judge import read_labels
from curate.measures import REFLECTION, answer_position, compression_ratio, language_switches, repeated_share
from curate.problem_labels import CLASSIFIER, problem_labels
from pipelines import __version__, parquet
from pipelines.config import Config
from pipelines.progress import progress
from pipelines.reasoning import TRUNCATED
from pipelines.runner import Outcome, Stage, record, run_row_stage, run_set_stage
from pipelines.tables import PROMPT_ANNOTATIONS, ROLLOUT_ANNOTATIONS

STAGE = Stage("annotate", reads=("rollouts",), writes=("annotations/rollouts",), version=2)
PROMPT_STAGE = Stage(
    "annotate_prompts",
    reads=("prompts", "annotations/rollouts", "verdicts"),
    writes=("annotations/prompts",),
    version=2,
)
STAGES = (STAGE, PROMPT_STAGE)


class AnnotateConfig(Config):
    """All else is measured."""

    classifier: bool = True
    """Whether a domain or level that no source states is learned from the sources that state theirs."""
    judge: str | None = None
    """A model that says them instead, problem by problem: as `--teacher` of `curate generate`."""
    judge_server: str | None = None
    """URL of an OpenAI-compatible server; where a judge runs changes no label."""
    judge_max_tokens: int = Field(4096, ge=16)
    """Tokens of a reply, its reasoning included; a longer one says nothing."""
    judge_check: int = Field(200, ge=0)
    """Problems whose source states its label that the judge is asked about too, so that its worth is known."""

    def resolved(self) -> dict[str, Any]:
        """As of any config, without the server, and without a judge's settings where there is none."""
        values = self.model_dump(mode="json", exclude={"judge_server"})
        return {name: value for name, value in values.items() if self.judge or not name.startswith("judge")}


CONFIG = AnnotateConfig


@dataclass(frozen=True)
class AnnotateReport(Outcome):
    """What was done, and what was asked of a judge, where there is one."""

    judge: Judge | None = None

    def lines(self) -> list[str]:
        """The report in words."""
        if not self.made:
            return [f"nothing to do, {self.kept} files are fresh"]
        lines = [f"{self.made} files made, {self.kept} kept, {self.rows:,} rows in {self.seconds:.1f} s"]
        if self.judge is not None:
            lines.append(self.judge.counts.words(self.judge.name, "problems"))
        return lines


_BATCH_ROWS = 256


def run(root: Path, config: AnnotateConfig, *, replace: bool = False, part: tuple[int, int] | None = None) -> Outcome:
    """Make both annotation tables of a run directory; a directory without rollouts gets the prompts' only.

    A task of an executor (`part`) annotates its share of the rollouts files, and no prompts.
    """
    outcomes = []
    if parquet.table_files(root, "rollouts"):
        outcomes.append(run_row_stage(root, STAGE, config, _annotate_file, replace=replace, part=part))
    if part is not None:
        return outcomes[0]
    with _opened(root, config) as judge:
        outcomes.append(
            run_set_stage(
                root,
                PROMPT_STAGE,
                config,
                lambda: {"annotations/prompts": [annotate_prompts(root, config, judge)]},
                replace=replace,
                side_inputs=judge_identity(config.judge, config.judge_server),
            )
        )
    return AnnotateReport(
        STAGE.name,
        sum(outcome.made for outcome in outcomes),
        sum(outcome.kept for outcome in outcomes),
        sum(outcome.rows for outcome in outcomes),
        sum(outcome.seconds for outcome in outcomes),
        judge,
    )


@contextmanager
def _opened(root: Path, config: AnnotateConfig) -> Iterator[Judge | None]:
    """The judge, who is shown at work, or nobody."""
    if config.judge is None:
        yield None
        return
    folder = root / "annotations" / "prompts"
    with (
        opened_judge(config.judge, config.judge_server, config.judge_max_tokens, folder) as judge,
        progress(f"judge {judge.name}", unit="problems") as advance,
    ):
        judge.readable = lambda reply: read_labels(reply) is not None
        judge.on_reply = advance
        yield judge


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
    ends = [(reasoning or "", response) for reasoning, response in frame.select("reasoning", "response").iter_rows()]
    loops = [repeated_share(reasoning.encode(), response.encode()) for reasoning, response in ends]
    num_chars = pl.col("text").str.len_chars().cast(pl.Int32)
    labels = frame.select(
        "rollout_id",
        "prompt_id",
        num_chars.alias("num_chars"),
        pl.coalesce(pl.col("completion_tokens"), (num_chars + 3) // 4).alias("num_tokens"),
        truncated=((pl.col("finish_reason") == "length").fill_null(False) | (pl.col("reasoning_form") == TRUNCATED)),
        compression_ratio=pl.Series([compression_ratio(text) for text in texts], dtype=pl.Float32),
        repeated_share=pl.Series(loops, dtype=pl.Float32),
        num_reflections=pl.col("text").str.count_matches(REFLECTION).cast(pl.Int32),
        num_language_switches=language_switches(frame["text"]),
        answer_position=pl.Series([answer_position(text) for text in texts], dtype=pl.Float32),
    )
    return labels.select(ROLLOUT_ANNOTATIONS.names).to_arrow().cast(ROLLOUT_ANNOTATIONS)


# --- prompts --------------------------------------------------------------------------------------


def annotate_prompts(root: Path, config: AnnotateConfig, judge: Judge | None = None) -> pa.Table:
    """One row of `annotations/prompts` a prompt, in order; what classifier and judge are worth goes to the manifest."""
    labels, accuracies = problem_labels(root, learn=config.classifier, judge=judge, judge_check=config.judge_check)
    _record_accuracies(root, accuracies)
    counts = _rollout_counts(root, labels["prompt_id"])
    labels = labels.with_row_index("place").join(counts, on="place", how="left", maintain_order="left")
    labels = labels.with_columns(pl.col("num_rollouts", "num_correct", "num_judged").fill_null(0))
    low, high = _wilson(pl.col("num_correct"), pl.col("num_judged"))
    labels = labels.with_columns(pass_rate=_pass_rate(), pass_rate_low=low, pass_rate_high=high)
    return labels.select(PROMPT_ANNOTATIONS.names).to_arrow().cast(PROMPT_ANNOTATIONS)


def _record_accuracies(root: Path, accuracies: Mapping[str, Accuracy]) -> None:
    # Before the table that it speaks of: a kill between the two makes both again.
    rows = [{"label": name, **accuracy._asdict()} for name, accuracy in accuracies.items()]
    entry = {"code": __version__, "config": {}, "inputs": [], "outputs": {}, "version": PROMPT_STAGE.version}
    record(root, CLASSIFIER, {**entry, "accuracy": rows})


def _rollout_counts(root: Path, prompt_ids: pl.Series) -> pl.DataFrame:
    """`place` of a prompt in `prompt_ids`, and the numbers of its rollouts; only prompts that have some.

    Held for each rollout are nine bytes: place, tokens, verdict.
    """
    places = pl.DataFrame({"prompt_id": prompt_ids}).with_row_index("place")
    columns = {"annotations/rollouts": ["prompt_id", "num_tokens"], "verdicts": ["verdict"]}
    parts = [pl.DataFrame(schema={"place": pl.UInt32, "num_tokens": pl.Int32, "correct": pl.Boolean})]
    for frame in gathered(aligned_frames(root, "rollout_id", columns)):
        right, judged = pl.col("verdict") == "correct", pl.col("verdict").is_in(["correct", "incorrect", "no_answer"])
        outcome = pl.when(judged).then(right).alias("correct")
        parts.append(frame.join(places, on="prompt_id").select("place", "num_tokens", outcome))
    return pl.concat(parts).group_by("place").agg(*_counts())


def _counts() -> list[pl.Expr]:
    """Numbers of one prompt's rollouts; `correct` is null where not judged. Whole sums: their order cannot show."""
    n, tokens = pl.len(), pl.col("num_tokens").cast(pl.Int64)
    total, squares = tokens.sum(), (tokens * tokens).sum()
    # Sample variance; max(0) for what rounding leaves of equal lengths.
    variance = ((squares - total * total / n) / (n - 1)).clip(0)
    # A rollout has a token at least: its end.
    p10, p90 = (tokens.clip(1).quantile(share, "linear") for share in (0.1, 0.9))
    return [
        n.cast(pl.Int32).alias("num_rollouts"),
        pl.col("correct").sum().cast(pl.Int32).alias("num_correct"),
        pl.col("correct").count().cast(pl.Int32).alias("num_judged"),
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
