"""Domain and level of a problem in one vocabulary, from what its source says of it."""

from collections.abc import Sequence

import polars as pl

LEVELS = ("elementary", "middle school", "high school", "college", "graduate")
"""Levels of arXiv:2504.21233, easiest first."""

DOMAINS = (
    *("arithmetic", "algebra", "number theory", "counting & probability", "geometry", "precalculus", "calculus"),
    *("linear algebra", "analysis", "statistics", "logic", "topology", "physics", "chemistry", "biology"),
    *("computer science", "puzzle", "other"),
)
"""Domains that a judge chooses from. Sources have more words than these, which stay theirs."""

_DOMAINS: dict[str, str] = {
    **dict.fromkeys(["prealgebra", "intermediate algebra", "elementary algebra", "abstract algebra"], "algebra"),
    **dict.fromkeys(["functional equation", "functional equations"], "algebra"),
    **dict.fromkeys(["counting & probability", "counting and probability", "combinatorics"], "counting & probability"),
    **dict.fromkeys(["probability", "probability theory"], "counting & probability"),
    **dict.fromkeys(["trigonometry", "pre-calculus"], "precalculus"),
    **dict.fromkeys(["differential equation", "differential equations", "vector calculus"], "calculus"),
    **dict.fromkeys(["integral calculus", "differential calculus"], "calculus"),
    **dict.fromkeys(["real analysis", "complex analysis", "mathematical analysis"], "analysis"),
    **dict.fromkeys(["addition", "subtraction", "multiplication", "division"], "arithmetic"),
    **dict.fromkeys(["common-division", "common-divison", "elementary mathematics"], "arithmetic"),
    **dict.fromkeys(["plane geometry", "solid geometry", "analytic geometry"], "geometry"),
}
"""A source's word for a domain, lower case -> ours. A word that is not here stays as the source has it."""

_NO_DOMAIN = ("math", "mathematics", "maths", "other", "others", "misc", "unknown", "none", "n/a", "?")
"""Words that say nothing about what a problem of mathematics is about."""

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
    (r"aime|\bamc|olym|hmmt|\bimo", "high school"),
    (r"college|minerva|theoremqa", "college"),
    (r"gpqa", "graduate"),
)
"""Level of a source that states none: a pattern of its name (lower case), first match."""
_DOMAIN_LEVELS = ((r"elementary.math", "elementary"), (r"high.?school", "high school"), (r"college", "college"))
"""The same for the word it has for the domain, as in MMLU's `high_school_physics`."""

_RATED_SOURCES = r"deepmath|deepscal|omni.?math"
"""Sources that rate from 0 to 10. Other numbers are on a scale that only their makers know."""
_RATINGS = ((7.5, "graduate"), (5.0, "college"), (3.0, "high school"), (1.0, "middle school"), (0.0, "elementary"))
"""Least rating of a level; the cuts are ours."""
_MATH = r"(?:^|[^a-z])math(?:[^a-z]|$)"
"""The five levels of MATH also come as bare numbers."""


def stated_domain() -> pl.Expr:
    """Our word for the column `domain`; null where the source says nothing."""
    # "college_math.algebra" and "MMLU/high_school_physics" carry their set in front, "(Fall 2010)" is a term.
    named = pl.col("domain").str.to_lowercase().str.replace_all("_", " ")
    bare = named.str.replace(r"^(?:[\pL\d -]+[./])+", "").str.replace(r"\s*\([^)]*\)\s*$", "")
    known = _stated(bare).replace(_DOMAINS)
    subject = _stated(known.str.replace(r"^(?:elementary|high school|college|introduction to) ", "")).replace(_DOMAINS)
    return pl.when(~subject.is_in(_NO_DOMAIN)).then(subject)


def stated_level() -> pl.Expr:
    """Our word for the column `level`, or for what the `source` is known to hold; null where neither says it."""
    source = pl.col("source").str.to_lowercase()
    stated = _stated(pl.col("level").str.to_lowercase().str.replace_all("_", " "))
    number = stated.cast(pl.Float64, strict=False)
    of_math = source.str.contains(_MATH) & number.is_in([1.0, 2.0, 3.0, 4.0, 5.0])
    numbered = pl.when(of_math).then(pl.format("level {}", number.cast(pl.Int32)))
    rated = pl.when(source.str.contains(_RATED_SOURCES)).then(_rated(number))
    named = pl.when(number.is_null() & ~stated.str.contains("?", literal=True)).then(stated)
    by_domain = _first_match(pl.col("domain").str.to_lowercase(), _DOMAIN_LEVELS)
    by_source = _first_match(source, _SOURCE_LEVELS)
    return pl.coalesce(numbered, rated, named, by_domain, by_source).replace(_LEVEL_NAMES)


def _first_match(text: pl.Expr, patterns: Sequence[tuple[str, str]]) -> pl.Expr:
    return pl.coalesce(*(pl.when(text.str.contains(pattern)).then(pl.lit(level)) for pattern, level in patterns))


def _rated(rating: pl.Expr) -> pl.Expr:
    return pl.coalesce(*(pl.when(rating >= least).then(pl.lit(level)) for least, level in _RATINGS))


def _stated(text: pl.Expr) -> pl.Expr:
    text = text.str.strip_chars()
    return pl.when(text != "").then(text)
