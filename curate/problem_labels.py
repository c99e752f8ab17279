"""Domain and level of every problem: as its source states them, else a judge's, else learned from what sources say."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from curate import classifier
from curate.classifier import Accuracy, Classifier
from curate.domains import DOMAINS, LEVELS, stated_domain, stated_level
from curate.frames import problem_text, read_frame, read_frames
from curate.judging import Judge
from curate.label_judge import Labels, ask_labels

CLASSIFIER = "classifier"
"""Entry of the manifest: how often classifiers and judge say what a source says, on problems held out from them."""

_NAMES = ("domain", "level")
_SAYERS = ("judge", "classifier")
"""Who says what no source states, first the one that is believed first."""

_BATCH_ROWS = 4096


def problem_labels(
    root: Path, *, learn: bool, judge: Judge | None = None, judge_check: int = 0
) -> tuple[pl.DataFrame, dict[str, Accuracy]]:
    """A row for each problem in order: `prompt_id`, `domain`, `domain_from`, `level`, `level_from`.

    What no source states the `judge` is asked, and with `learn` the rest comes from a classifier, where enough
    problems are labelled to train one. What both are worth comes beside, by label: a classifier's accuracy on
    held-out problems, and the judge's on `judge_check` problems whose source says it.
    """
    stated = read_frame(root, "prompts", ["prompt_id", "source", "domain", "level"])
    stated = stated.unique("prompt_id", keep="first", maintain_order=True)
    labels = stated.select("prompt_id", *_stated())
    learned = _classifiers(root, labels) if learn else {}
    accuracies = {name: found.accuracy for name, found in learned.items()}
    if learned:
        labels = labels.join(_guesses(root, learned), on="prompt_id", how="left", maintain_order="left")
    if judge is not None:
        accuracies |= _judge_accuracies(root, labels, judge, judge_check)
        labels = labels.join(_asked(root, labels, judge), on="prompt_id", how="left", maintain_order="left")
    columns = [expr for name in _NAMES for expr in _filled(name, labels.columns)]
    return labels.select("prompt_id", *columns), accuracies


def _stated() -> tuple[pl.Expr, pl.Expr]:
    return stated_domain().alias("domain"), stated_level().alias("level")


def _filled(name: str, columns: list[str]) -> tuple[pl.Expr, pl.Expr]:
    said = {"source": name, **{sayer: f"{name}_{sayer}" for sayer in _SAYERS if f"{name}_{sayer}" in columns}}
    origins = [pl.when(pl.col(column).is_not_null()).then(pl.lit(sayer)) for sayer, column in said.items()]
    return pl.coalesce(*said.values()).alias(name), pl.coalesce(*origins, pl.lit("none")).alias(f"{name}_from")


# --- the judge ------------------------------------------------------------------------------------


def _asked(root: Path, labels: pl.DataFrame, judge: Judge) -> pl.DataFrame:
    """`prompt_id` and `NAME_judge` of the problems of which a source leaves something open."""
    unsaid = labels.filter(pl.any_horizontal(pl.col(*_NAMES).is_null()))["prompt_id"]
    parts = [_labels_said(batch, judge) for batch in _text_batches(root, unsaid)]
    columns = ("prompt_id", *(f"{name}_judge" for name in _NAMES))
    return pl.concat(parts or [pl.DataFrame(schema=dict.fromkeys(columns, pl.String))]).unique(
        "prompt_id", keep="first"
    )


def _judge_accuracies(root: Path, labels: pl.DataFrame, judge: Judge, number: int) -> dict[str, Accuracy]:
    """How often the judge says what the source says, on the first `number` problems in an order of their own."""
    words = {"domain": DOMAINS, "level": LEVELS}
    accuracies = {}
    for name in _NAMES:
        stated = labels.select("prompt_id", label=name).filter(pl.col("label").is_in(words[name]))
        chosen = classifier.shuffled(stated).head(number)
        texts = _texts(root, chosen["prompt_id"])
        if texts.height:
            said = chosen.join(_labels_said(texts, judge), on="prompt_id", maintain_order="left")
            hits = int((said["label"] == said[f"{name}_judge"]).fill_null(False).sum())
            most_common = int(said["label"].value_counts()["count"].max())  # type: ignore[arg-type]
            numbers = 0, said.height, said["label"].n_unique()
            accuracies[f"{name}, judge"] = Accuracy(*numbers, hits / said.height, most_common / said.height)
    return accuracies


def _labels_said(texts: pl.DataFrame, judge: Judge) -> pl.DataFrame:
    """`prompt_id` and `NAME_judge` of rows of `prompt_id`, `text`."""
    said = [labels or Labels(None, None) for labels in ask_labels(judge, texts["text"].to_list())]
    columns = {f"{name}_judge": pl.Series([getattr(one, name) for one in said], dtype=pl.String) for name in _NAMES}
    return texts.select("prompt_id").with_columns(**columns)


# --- the classifier -------------------------------------------------------------------------------


def _classifiers(root: Path, labels: pl.DataFrame) -> dict[str, Classifier]:
    """A classifier for each column that is stated for some problems and not for others."""
    samples = {
        name: classifier.sample(labels.select("prompt_id", label=name).drop_nulls())
        for name in _NAMES
        if labels[name].null_count()
    }
    wanted = pl.concat([sample["prompt_id"] for sample in samples.values()]) if samples else None
    if wanted is None or wanted.is_empty():
        return {}
    texts = _texts(root, wanted.unique())
    rows = {name: part.join(texts, on="prompt_id", maintain_order="left") for name, part in samples.items()}
    trained = {name: classifier.train(part) for name, part in rows.items()}
    return {name: found for name, found in trained.items() if found is not None}


def _texts(root: Path, wanted: pl.Series) -> pl.DataFrame:
    return pl.concat(_text_batches(root, wanted)).unique("prompt_id", keep="first", maintain_order=True)


def _text_batches(root: Path, wanted: pl.Series) -> Iterator[pl.DataFrame]:
    """`prompt_id` and `text` of the wanted problems, batch by batch."""
    for batch in read_frames(root, "prompts", ["prompt_id", "problem", "choices"], _BATCH_ROWS):
        texts = batch.select("prompt_id", problem_text(batch).alias("text"))
        yield texts.filter(pl.col("prompt_id").is_in(wanted.implode()))


def _guesses(root: Path, learned: Mapping[str, Classifier]) -> pl.DataFrame:
    """`prompt_id` and `NAME_classifier` of problems whose source does not state NAME; null where it does."""
    parts = []
    columns = ["prompt_id", "problem", "choices", "source", "domain", "level"]
    for batch in read_frames(root, "prompts", columns, _BATCH_ROWS):
        asked = batch.select("prompt_id", problem_text(batch).alias("text"), *_stated())
        parts.append(asked.select("prompt_id", *(_guess(asked, name, found) for name, found in learned.items())))
    return pl.concat(parts).unique("prompt_id", keep="first")


def _guess(asked: pl.DataFrame, name: str, learned: Classifier) -> pl.Series:
    missing = asked.with_row_index("row").filter(pl.col(name).is_null())
    guesses = learned.predict(missing["text"].to_list()) if missing.height else []
    return pl.Series(f"{name}_classifier", [None] * asked.height, dtype=pl.String).scatter(missing["row"], guesses)
