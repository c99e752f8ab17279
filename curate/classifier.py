"""A linear classifier over TF-IDF of words, trained in seconds on the problems whose source states a label."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import polars as pl

from curate import shingles

MIN_LABELLED = 500
"""Fewer labelled problems train nothing that deserves the name."""
MIN_OF_LABEL = 50
"""A label with fewer problems is never given."""
_MOST_LABELLED = 40_000
"""So many labelled problems, in an order that their ids decide, are enough."""
_HELD_OUT = 10
"""Every tenth problem is left out of training and judged by the result."""
_NUM_FEATURES = 1 << 18
_SEED = 1
_WORDS = r"\\?[A-Za-z]+|[-+*/^=<>%|!]"
"""Words, LaTeX commands and signs; numbers say little about a domain."""


class Accuracy(NamedTuple):
    """How often a classifier says what the source says, on held-out problems."""

    trained_on: int
    held_out: int
    labels: int
    accuracy_rate: float
    most_common_rate: float
    """What saying the most common label always would reach."""


class Classifier(NamedTuple):
    """Texts to labels, and how far to trust it."""

    predict: Callable[[Sequence[str]], list[str]]
    accuracy: Accuracy


def sample(labelled: pl.DataFrame) -> pl.DataFrame:
    """The rows of `prompt_id`, `label` to train on, in an order of their own; none where too few are labelled.

    The same rows give the same sample, in whatever order they come.
    """
    labelled = labelled.filter(pl.len().over("label") >= MIN_OF_LABEL)
    if labelled.height < MIN_LABELLED or labelled["label"].n_unique() < 2:
        return labelled.clear()
    return shuffled(labelled).head(_MOST_LABELLED)


def shuffled(labelled: pl.DataFrame) -> pl.DataFrame:
    """The rows in an order that their `prompt_id` decides."""
    order = pl.Series("order", shingles.fingerprints(labelled["prompt_id"], _SEED))
    return labelled.with_columns(order).sort("order", "prompt_id").drop("order")


def train(problems: pl.DataFrame) -> Classifier | None:
    """A classifier from the rows of a `sample` with their `text`; None from none."""
    if problems.is_empty():
        return None
    tested = pl.int_range(pl.len()) % _HELD_OUT == 0
    test, rest = problems.filter(tested), problems.filter(~tested)
    model = _fitted(rest["text"].to_list(), rest["label"].to_list())

    def predict(texts: Sequence[str]) -> list[str]:
        return [str(label) for label in model.predict(texts)]

    hits = int((pl.Series(predict(test["text"].to_list())) == test["label"]).sum())
    common = int((test["label"] == rest["label"].mode().sort()[0]).sum())
    numbers = rest.height, test.height, rest["label"].n_unique()
    return Classifier(predict, Accuracy(*numbers, hits / test.height, common / test.height))


def _fitted(texts: list[str], labels: list[str]) -> Any:
    # Heavy, and needed only where some problems are labelled and others are not.
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer  # type: ignore[import-untyped]
    from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]
    from sklearn.svm import LinearSVC  # type: ignore[import-untyped]

    # Hashed features: no dictionary of all word pairs is held in memory.
    counts = HashingVectorizer(
        token_pattern=_WORDS, ngram_range=(1, 2), n_features=_NUM_FEATURES, norm=None, alternate_sign=False
    )
    model = make_pipeline(counts, TfidfTransformer(sublinear_tf=True), LinearSVC(C=0.5, random_state=0))
    return model.fit(texts, labels)
