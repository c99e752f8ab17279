"""Domain and level of every problem: as its source states them, else learned from the sources that do."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from curate import classifier
from curate.classifier import Accuracy, Classifier
from curate.domains import stated_domain, stated_level
from curate.frames import problem_text, read_frame, read_frames

CLASSIFIER = "classifier"
"""Entry of the manifest: how often the classifiers say what a source says, on held-out problems."""

_BATCH_ROWS = 4096


def problem_labels(root: Path, *, learn: bool) -> tuple[pl.DataFrame, dict[str, Accuracy]]:
    """A row for each problem in order: `prompt_id`, `domain`, `domain_from`, `level`, `level_from`.

    With `learn`, what no source states comes from a classifier, where enough problems are labelled to
    train one; its accuracy on held-out problems comes beside, by label.
    """
    stated = read_frame(root, "prompts", ["prompt_id", "source", "domain", "level"])
    stated = stated.unique("prompt_id", keep="first", maintain_order=True)
    labels = stated.select("prompt_id", *_stated())
    learned = _classifiers(root, labels) if learn else {}
    if learned:
        labels = labels.join(_guesses(root, learned), on="prompt_id", how="left", maintain_order="left")
    columns = [expr for name in ("domain", "level") for expr in _filled(name, f"{name}_guess" in labels.columns)]
    return labels.select("prompt_id", *columns), {name: found.accuracy for name, found in learned.items()}


def _stated() -> tuple[pl.Expr, pl.Expr]:
    return stated_domain().alias("domain"), stated_level().alias("level")


def _filled(name: str, guessed: bool) -> tuple[pl.Expr, pl.Expr]:
    stated, guess = pl.col(name), pl.col(f"{name}_guess") if guessed else pl.lit(None, pl.String)
    learned = pl.when(guess.is_not_null()).then(pl.lit("classifier")).otherwise(pl.lit("none"))
    origin = pl.when(stated.is_not_null()).then(pl.lit("source")).otherwise(learned)
    return pl.coalesce(stated, guess).alias(name), origin.alias(f"{name}_from")


def _classifiers(root: Path, labels: pl.DataFrame) -> dict[str, Classifier]:
    """A classifier for each column that is stated for some problems and not for others."""
    samples = {
        name: classifier.sample(labels.select("prompt_id", label=name).drop_nulls())
        for name in ("domain", "level")
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
    parts = [
        batch.select("prompt_id", problem_text(batch).alias("text")).filter(pl.col("prompt_id").is_in(wanted.implode()))
        for batch in read_frames(root, "prompts", ["prompt_id", "problem", "choices"], _BATCH_ROWS)
    ]
    return pl.concat(parts).unique("prompt_id", keep="first")


def _guesses(root: Path, learned: Mapping[str, Classifier]) -> pl.DataFrame:
    """`prompt_id` and `NAME_guess` of problems whose source does not state NAME; null where it does."""
    parts = []
    columns = ["prompt_id", "problem", "choices", "source", "domain", "level"]
    for batch in read_frames(root, "prompts", columns, _BATCH_ROWS):
        asked = batch.select("prompt_id", problem_text(batch).alias("text"), *_stated())
        parts.append(asked.select("prompt_id", *(_guess(asked, name, found) for name, found in learned.items())))
    return pl.concat(parts).unique("prompt_id", keep="first")


def _guess(asked: pl.DataFrame, name: str, learned: Classifier) -> pl.Series:
    missing = asked.with_row_index("row").filter(pl.col(name).is_null())
    guesses = learned.predict(missing["text"].to_list()) if missing.height else []
    return pl.Series(f"{name}_guess", [None] * asked.height, dtype=pl.String).scatter(missing["row"], guesses)
