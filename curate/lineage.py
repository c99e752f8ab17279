"""Lineage: from a trained model or a row back to the rollouts, verdicts, settings and sources it was made from."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb

from curate import sql
from curate.counting import count_rows, opened
from pipelines import parquet, runner, versions
from pipelines.commands import table_text
from pipelines.errors import UserError
from pipelines.tables import STAGES

Found = dict[str, Any]

_ID = re.compile(r"[0-9a-f]{24}")
_CHECKPOINT = "tracemill.json"


def lineage(of: str, data: Path) -> Found:
    """What a checkpoint's folder, or the row with this id, comes from; `data` holds the tables.

    Without them a checkpoint still names the models before it, and the version it was trained on.
    """
    if _ID.fullmatch(of) and not Path(of).exists():
        return {"row": _row(of, data), "data": _made(data)}
    models = list(_models(Path(of)))
    if not data.is_dir():
        return {"models": models}
    return {
        "models": models,
        "rollouts": [_trained_on(model, data) for model in models if model["stage"] in STAGES],
        "data": _made(data),
    }


def lines(found: Found) -> Iterator[str]:
    """A lineage as text, from the end back to the beginning."""
    for model in found.get("models", ()):
        yield f"{model['folder']}: {model['stage']} by tracemill {model['code']}, {model['steps']} steps"
        yield f"  config {json.dumps(model['config'])}"
        if model.get("version"):
            yield "  data {name}@{version}, content {content}".format(**model["version"])
        yield f"  from {model['model']}"
    for trained in found.get("rollouts", ()):
        yield f"\n{trained['stage']}: {trained['rows']:,} rows, {trained['said']}\n{table_text(trained['made_by'])}"
    for table, rows in found.get("row", {}).items():
        for row in rows:
            yield f"{table}:"
            yield from (f"  {name}: {_short(value)}" for name, value in row.items() if value is not None)
    if "data" not in found:
        yield "\nwhere its data is, `--data` says: then the rollouts and their settings are shown too"
        return
    yield f"\n{found['data']['name']}, made by:"
    for stage, entry in found["data"]["stages"].items():
        yield f"  {stage} (version {entry['version']}, tracemill {entry['code']}) {json.dumps(entry['config'])}"


def _short(value: Any) -> str:
    text = "".join(character if character.isprintable() else " " for character in str(value))
    return text if len(text) <= 200 else f"{text[:200]} … ({len(text):,} characters)"


# --- models ---------------------------------------------------------------------------------------


def _models(folder: Path) -> Iterator[Found]:
    """The checkpoint, the one it was trained from, and so on, until a model that was not trained here."""
    seen = set[Path]()
    if not (folder / _CHECKPOINT).is_file():
        raise UserError(
            f"`{folder}` is neither a checkpoint of `train` nor the id of a row",
            hint="a folder with `tracemill.json`, or 24 hexadecimal digits",
        )
    while (folder / _CHECKPOINT).is_file() and folder.resolve() not in seen:
        seen.add(folder.resolve())
        stated = json.loads((folder / _CHECKPOINT).read_text(encoding="utf-8"))
        yield {"folder": str(folder), **stated}
        folder = Path(stated["model"])


def _trained_on(model: Mapping[str, Any], data: Path) -> Found:
    """Who sampled what a stage was trained on, and whether `data` holds just the shards it was trained on."""
    stage = model["stage"]
    files = {path.name: parquet.facts(path).digest for path in parquet.table_files(data, f"shards/{stage}")}
    same = files == model["shards"]
    with opened(data) as connection:
        rows = count_rows(connection, f"SELECT count(*) AS rows FROM {stage}")[0]["rows"]  # noqa: S608
        made_by = count_rows(connection, _MADE_BY.format(traces=_TRACES[stage]))
    said = f"the very shards in `{data}`" if same else f"other shards than those in `{data}`, shown are those"
    return {"stage": stage, "same": same, "rows": rows, "said": said, "made_by": made_by}


_TRACES = {
    "midtrain": "SELECT 'chosen' AS side, rollout_id, prompt_id FROM midtrain",
    "sft": "SELECT 'chosen' AS side, rollout_id, prompt_id FROM sft",
    "dpo": "SELECT 'chosen' AS side, chosen_id AS rollout_id, prompt_id FROM dpo "
    "UNION ALL SELECT 'rejected', rejected_id, prompt_id FROM dpo",
    "rl": "SELECT 'problem' AS side, NULL::VARCHAR AS rollout_id, prompt_id FROM rl",
}
"""Shard -> its rows as traces, or as problems where it has none."""

_MADE_BY = """
SELECT side, p.source, p.licence, model, temperature, top_p, max_tokens, v.verifier, v.verdict, count(*) AS rows
FROM ({traces}) t LEFT JOIN rollouts r USING (rollout_id) LEFT JOIN verdicts v USING (rollout_id)
     LEFT JOIN prompts p ON p.prompt_id = t.prompt_id
GROUP BY ALL ORDER BY side, rows DESC, p.source, model, v.verdict, temperature, top_p, max_tokens, p.licence, v.verifier
"""


# --- rows -----------------------------------------------------------------------------------------


def _row(row_id: str, data: Path) -> dict[str, list[Found]]:
    """Table -> what it says of a problem or rollout; a rollout's problem with it."""
    with opened(data) as connection:
        rollouts = count_rows(connection, f"SELECT * FROM rollouts WHERE rollout_id = '{row_id}'")  # noqa: S608
        problem = rollouts[0]["prompt_id"] if rollouts else row_id
        found = {"rollouts": rollouts} if rollouts else {}
        for view, condition in _SAYS.items():
            rows = _rows(connection, view, condition.format(row=row_id, problem=problem))
            found |= {view: rows} if rows else {}
    if not found:
        raise UserError(f"no row `{row_id}` in `{data}`", hint="give the run directory or version with --data")
    return found


_SAYS = {
    "prompts": "prompt_id = '{problem}'",
    "verdicts": "rollout_id = '{row}'",
    "overrides": "id IN ('{row}', '{problem}')",
    "duplicates": "id IN ('{row}', '{problem}')",
    "contamination": "prompt_id = '{problem}'",
    "annotations_prompts": "prompt_id = '{problem}'",
    "annotations_rollouts": "rollout_id = '{row}'",
    "selections": "id IN ('{row}', '{problem}')",
    "midtrain": "'{row}' IN (rollout_id, prompt_id)",
    "sft": "'{row}' IN (rollout_id, prompt_id)",
    "dpo": "'{row}' IN (chosen_id, rejected_id, prompt_id)",
    "rl": "prompt_id = '{problem}'",
}
"""View -> which of its rows speak of a row or its problem; ids are hexadecimal digits, checked before."""


def _rows(connection: duckdb.DuckDBPyConnection, view: str, condition: str) -> list[Found]:
    # A shard repeats the texts of the row.
    columns = "* EXCLUDE (" + ", ".join(_TEXTS[view]) + ")" if view in _TEXTS else "*"
    assert view in sql.VIEWS
    return count_rows(connection, f"SELECT {columns} FROM {view} WHERE {condition} LIMIT 50")  # noqa: S608


_TEXTS = {
    "midtrain": ("messages",),
    "sft": ("messages",),
    "dpo": ("prompt", "chosen", "rejected"),
    "rl": ("prompt",),
}


# --- settings -------------------------------------------------------------------------------------


def _made(data: Path) -> Found:
    """Name of the tables, their content digest where they are a version, and the settings of their stages."""
    version = versions.read_version(data)
    stages = runner.read_manifest(data)["stages"]
    return {
        "name": f"{version.name}@{version.version}" if version else str(data),
        "content": version.content if version else None,
        "stages": {
            name: {key: entry[key] for key in ("version", "code", "config", "inputs")}
            for name, entry in stages.items()
            if entry.get("config")
        },
    }
