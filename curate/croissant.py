"""Croissant metadata (mlcommons.org/croissant/1.0) of the shards, for search engines and loaders."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipelines.tables import SHARDS

_TERMS = (
    "citeAs", "column", "conformsTo", "data", "dataType", "equivalentProperty", "examples", "extract", "field",
    "fileObject", "fileProperty", "fileSet", "format", "includes", "isLiveDataset", "jsonPath", "key", "md5",
    "parentField", "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate", "separator",
    "source", "subField", "transform",
)  # fmt: skip
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    **{term: f"cr:{term}" for term in _TERMS},
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
}
"""The context that the format's own examples carry."""

_DESCRIPTIONS = {
    "midtrain": "Conversations for mid-training: a problem, and a trace that ends in its answer.",
    "sft": "Conversations for supervised fine-tuning.",
    "dpo": "Preference pairs: a right and a wrong trace of one problem.",
    "rl": "Problems with reference answers, for reinforcement learning.",
}


def croissant(name: str, version: str | None, kinds: Sequence[str], licences: Sequence[str]) -> dict[str, Any]:
    """The JSON-LD document: a file set and a record set for each shard kind."""
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "description": "Problems, sampled reasoning traces with verdicts, and the shards a student is trained on.",
        "citeAs": f"{name} {version or ''}".rstrip() + ", a data set made with tracemill",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "license": list(licences),
        "version": version or "0.0.0",
        "keywords": ["reasoning", "chain-of-thought", "synthetic", "mathematics"],
        "distribution": [_file_set(kind) for kind in kinds],
        "recordSet": [_record_set(kind, SHARDS[kind]) for kind in kinds],
    }


def _file_set(kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{kind}-files",
        "name": f"{kind}-files",
        "description": f"Parquet files of {kind}.",
        "encodingFormat": "application/x-parquet",
        "includes": f"shards/{kind}/*.parquet",
    }


def _record_set(kind: str, schema: pa.Schema) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": kind,
        "name": kind,
        "description": _DESCRIPTIONS[kind],
        "field": [_field(kind, field) for field in schema],
    }


def _field(kind: str, field: "pa.Field[Any]") -> dict[str, Any]:
    """A column; a list of turns is a repeated field with a field for each key of a turn."""
    where = f"{kind}/{field.name}"
    source = {"fileSet": {"@id": f"{kind}-files"}, "extract": {"column": field.name}}
    described = {"@type": "cr:Field", "@id": where, "name": where}
    if not pa.types.is_list(field.type):
        return {**described, "dataType": _data_type(field.type), "source": source}
    if not pa.types.is_struct(field.type.value_type):
        return {**described, "dataType": _data_type(field.type.value_type), "repeated": True, "source": source}
    parts = [
        {
            "@type": "cr:Field",
            "@id": f"{where}/{part.name}",
            "name": f"{where}/{part.name}",
            "dataType": _data_type(part.type),
            "source": {**source, "transform": {"jsonPath": part.name}},
        }
        for part in field.type.value_type
    ]
    return {**described, "repeated": True, "subField": parts}


def _data_type(kind: pa.DataType) -> str:
    if pa.types.is_floating(kind):
        return "sc:Float"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    return "sc:Boolean" if pa.types.is_boolean(kind) else "sc:Text"
