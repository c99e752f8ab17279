"""The front matter of a card: what the Hugging Face Hub and `datasets` read of it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData

from curate.counting import Row, count_rows
from curate.licences import normalised
from pipelines import parquet
from pipelines.tables import SHARDS

_LICENCES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "c-uda",
    "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "gpl-2.0", "gpl-3.0", "isc", "lgpl-3.0", "mit",
    "mpl-2.0", "odbl", "odc-by", "openrail", "pddl", "unlicense",
}  # fmt: skip
"""Identifiers the Hub knows; any other licence is `other`."""

_TASKS = ["text-generation", "question-answering"]
_TAGS = ["reasoning", "chain-of-thought", "synthetic", "mathematics", "tracemill"]

_LANGUAGES = {
    "en": r"(?i)\b(the|of|is|are|what|how|find|and|many|each|if|which)\b",
    "zh": r"\p{Han}",
    "ja": r"[\p{Hiragana}\p{Katakana}]",
    "ko": r"\p{Hangul}",
}
"""Language -> RE2 pattern that a problem in it matches; Chinese only where there is no kana."""
_LEAST_SHARE = 0.01
"""Share of the problems from which a language is listed."""


def front_matter(
    root: Path, name: str, version: str | None, shards: Sequence[Row], licences: Sequence[Row], languages: Sequence[str]
) -> DatasetCardData:
    """One config for each shard kind that has rows, with its features and sizes; `sft` opens by default."""
    kinds = [str(row["shard"]) for row in shards]
    configs: list[dict[str, Any]] = []
    for kind in kinds:
        files = [{"split": "train", "path": f"shards/{kind}/*.parquet"}]
        configs.append({"config_name": kind, "data_files": files, **({"default": True} if kind == "sft" else {})})
    identifiers = licence_ids(licences)
    facts: dict[str, Any] = {
        "pretty_name": name,
        "license": identifiers[0] if len(identifiers) == 1 else identifiers,
        "task_categories": _TASKS,
        "tags": _TAGS,
        "size_categories": [_size_category(sum(row["rows"] for row in shards))],
    }
    if languages:
        facts["language"] = list(languages)
    if configs:
        facts["configs"] = configs
        facts["dataset_info"] = [_dataset_info(root, kind) for kind in kinds]
    if version is not None:
        facts["version"] = version
    return DatasetCardData(**facts)


def licence_ids(rows: Sequence[Row]) -> list[str]:
    """The licences of the problems as the Hub spells them: `unknown` where none is stated, `other` for the rest."""
    stated = {str(row["licence"]) for row in rows} or {"not stated"}
    return sorted({_licence_id(licence) for licence in stated})


def _licence_id(licence: str) -> str:
    name = normalised(licence)
    return "unknown" if name == "not-stated" else name if name in _LICENCES else "other"


def languages(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Codes of the languages that at least 1 % of the problems are written in, of the few that are recognised."""
    counted = ", ".join(
        f"count(*) FILTER (regexp_matches(problem, '{pattern}')"
        + (f" AND NOT regexp_matches(problem, '{_LANGUAGES['ja']}')" if code == "zh" else "")
        + f") / count(*) AS {code}"
        for code, pattern in _LANGUAGES.items()
    )
    (shares,) = count_rows(connection, f"SELECT {counted} FROM prompts")  # noqa: S608
    return [code for code, share in shares.items() if (share or 0) >= _LEAST_SHARE]


def _size_category(num_rows: int) -> str:
    bounds = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
    return next((label for bound, label in bounds if num_rows < bound), "10M<n<100M")


def _dataset_info(root: Path, kind: str) -> dict[str, Any]:
    """Features, rows and bytes of a config, from the schema and the footers."""
    files = parquet.table_files(root, f"shards/{kind}")
    footers = [pq.read_metadata(path) for path in files]
    num_bytes = sum(
        footer.row_group(group).total_byte_size for footer in footers for group in range(footer.num_row_groups)
    )
    rows = sum(footer.num_rows for footer in footers)
    return {
        "config_name": kind,
        "features": [{"name": field.name, **_feature(field.type)} for field in SHARDS[kind]],
        "splits": [{"name": "train", "num_bytes": num_bytes, "num_examples": rows}],
        "download_size": sum(path.stat().st_size for path in files),
        "dataset_size": num_bytes,
    }


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """A column's type as `datasets` writes it."""
    if not pa.types.is_list(kind):
        return {"dtype": _dtype(kind)}
    if pa.types.is_struct(kind.value_type):
        return {"list": [{"name": part.name, "dtype": _dtype(part.type)} for part in kind.value_type]}
    return {"list": _dtype(kind.value_type)}


def _dtype(kind: pa.DataType) -> str:
    return {"float": "float32", "double": "float64"}.get(str(kind), str(kind))


def stated(card: str, key: str) -> str | None:
    """The value of a plain key in a card's front matter."""
    found = re.search(rf"^{key}: *['\"]?(.*?)['\"]?$", card, re.MULTILINE)
    return found[1] if found else None
