"""Diff: rows added, removed and changed between two run directories or versions, by id and with reasons."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow.parquet as pq

from curate import markdown, sql
from curate.counting import Row, count_rows
from curate.sql import VIEWS
from pipelines import parquet, versions
from pipelines.commands import table_text
from pipelines.errors import UserError
from pipelines.tables import STAGES, TABLES

Form = Literal["text", "json", "markdown"]

_KEYS: dict[str, tuple[str, ...]] = {
    "prompts": ("prompt_id",),
    "rollouts": ("rollout_id",),
    "verdicts": ("rollout_id",),
    "duplicates": ("kind", "id"),
    "overrides": ("kind", "id"),
    "contamination": ("prompt_id", "benchmark", "item", "method"),
    "annotations_prompts": ("prompt_id",),
    "annotations_rollouts": ("rollout_id",),
    "selections": ("stage", "id"),
    "midtrain": ("rollout_id",),
    "sft": ("rollout_id",),
    "dpo": ("chosen_id", "rejected_id"),
    "rl": ("prompt_id",),
}
"""View -> the columns that name a row. `refusals` have no id and are only counted."""

_LABELS = {"verdicts": "verdict", "duplicates": "keep", "contamination": "benchmark", "selections": "refusal"}
"""View -> the column whose value is the reason: added and removed rows are counted by it, changes by old and new."""

_SELECTED_BY = {"midtrain": "rollout_id", "sft": "rollout_id", "dpo": "prompt_id", "rl": "prompt_id"}
"""Shard -> the column by which `selections` name its rows."""


@dataclass(frozen=True)
class Reason:
    """Why `rows` rows were `what`: `added`, `removed` or `changed`."""

    what: str
    reason: str
    rows: int


@dataclass(frozen=True)
class TableDiff:
    """One table of two directories."""

    table: str
    before: int
    after: int
    added: int
    removed: int
    changed: int
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Diff:
    """What changed from `a` to `b`, table by table."""

    a: str
    b: str
    tables: tuple[TableDiff, ...]
    shards: tuple[Row, ...]
    """Rows of each shard kind by source, before and after."""
    schemas: tuple[str, ...]
    """Columns that a table gained, lost, or has with another type, a sentence each."""

    @property
    def empty(self) -> bool:
        """Whether both hold the same rows."""
        return not any(table.added or table.removed or table.changed for table in self.tables)


def diff(a: Path, b: Path, *, memory_limit: str = "2GB") -> Diff:
    """What changed from directory `a` to directory `b`. Rows are matched by id and compared by all their columns."""
    with sql.tables_of({"a": a, "b": b}, memory_limit=memory_limit) as connection:
        tables = tuple(_table_diff(connection, view) for view in VIEWS)
        shards = tuple(count_rows(connection, _SHARDS))
    return Diff(_label(a), _label(b), tables, shards, tuple(_schema_changes(a, b)))


_SIDES = " UNION ALL ".join(
    f"SELECT '{stage}' AS stage, {place} AS place, source, '{side}' AS side FROM {side}.{stage}"  # noqa: S608
    for place, stage in enumerate(STAGES)
    for side in ("a", "b")
)
_SHARDS = f"""
SELECT stage, source, count(*) FILTER (side = 'a') AS before, count(*) FILTER (side = 'b') AS after
FROM ({_SIDES}) GROUP BY stage, place, source ORDER BY place, after DESC, source
"""  # noqa: S608


def _schema_changes(a: Path, b: Path) -> Iterator[str]:
    for table in TABLES:
        before, after = _columns(a, table), _columns(b, table)
        if not (before and after):
            continue
        for name in [*before, *(name for name in after if name not in before)]:
            if name not in after:
                yield f"`{table}` lost column `{name}`"
            elif name not in before:
                yield f"`{table}` gained column `{name}` ({after[name]})"
            elif before[name] != after[name]:
                yield f"`{table}.{name}` is {after[name]}, was {before[name]}"


def _columns(root: Path, table: str) -> dict[str, str]:
    """Column -> type, over all files of a table."""
    return {field.name: str(field.type) for path in parquet.table_files(root, table) for field in pq.read_schema(path)}


def _label(folder: Path) -> str:
    """`name@version` of a published version, else the path."""
    version = versions.read_version(folder)
    return f"{version.name}@{version.version}" if version else str(folder)


def _table_diff(connection: duckdb.DuckDBPyConnection, view: str) -> TableDiff:
    before, after = (_count(connection, f"{side}.{view}") for side in ("a", "b"))
    if view not in _KEYS:
        return TableDiff(view, before, after, max(0, after - before), max(0, before - after), 0, ())
    keys = ", ".join(_KEYS[view])
    label = _LABELS.get(view, "NULL")
    for statement in (_ROWS.format(side="a"), _ROWS.format(side="b"), _CHANGES):
        connection.execute(statement.replace("KEYS", keys).replace("LABEL", label).replace("VIEW", view))
    counts = dict(connection.execute("SELECT what, count(*) FROM changes GROUP BY what").fetchall())
    added, removed, changed = (counts.get(what, 0) for what in ("added", "removed", "changed"))
    return TableDiff(view, before, after, added, removed, changed, _reasons(connection, view))


# Rows are compared by their hashes: one pass over each side, whatever the text's length.
_ROWS = """
CREATE OR REPLACE TEMP TABLE {side}_rows AS
SELECT KEYS, CAST(LABEL AS VARCHAR) AS label, hash(t) AS content, true AS present FROM {side}.VIEW t
"""
_CHANGES = """
CREATE OR REPLACE TEMP TABLE changes AS
SELECT KEYS, x.label AS old, y.label AS new,
       CASE WHEN x.present IS NULL THEN 'added' WHEN y.present IS NULL THEN 'removed' ELSE 'changed' END AS what
FROM a_rows x FULL JOIN b_rows y USING (KEYS)
WHERE x.present IS NULL OR y.present IS NULL OR x.content <> y.content
"""


def _reasons(connection: duckdb.DuckDBPyConnection, view: str) -> tuple[Reason, ...]:
    if view in _LABELS:
        statement = _LABEL_REASONS.replace("COLUMN", _LABELS[view])
    elif view in _SELECTED_BY:
        statement = _SHARD_REASONS.format(stage=view, view=view, key=_KEYS[view][0], selected_by=_SELECTED_BY[view])
    else:
        statement = _changed_columns(view)
    return tuple(Reason(*row) for row in connection.execute(statement).fetchall())


# A verdict that became another says so; an added or removed one says what it is or was.
_LABEL_REASONS = """
SELECT what, CASE what
    WHEN 'added' THEN 'COLUMN ' || coalesce(new, 'chosen')
    WHEN 'removed' THEN 'COLUMN ' || coalesce(old, 'chosen')
    ELSE CASE WHEN old IS DISTINCT FROM new
              THEN 'COLUMN ' || coalesce(old, 'chosen') || ' → ' || coalesce(new, 'chosen')
              ELSE 'other columns' END
    END AS reason, count(*) AS rows
FROM changes GROUP BY ALL ORDER BY what, rows DESC, reason
"""

# A row that is no longer in a shard was refused there, or what it was made from is gone; and the other way round.
_SHARD_REASONS = """
WITH rows AS (
    SELECT c.what, coalesce(x.{selected_by}, y.{selected_by}) AS id
    FROM changes c LEFT JOIN a.{view} x ON c.{key} = x.{key} LEFT JOIN b.{view} y ON c.{key} = y.{key}
),
chosen AS (
    SELECT r.what, r.id, o.id IS NOT NULL AS was_there, o.refusal AS old, n.id IS NOT NULL AS is_there, n.refusal AS new
    FROM rows r LEFT JOIN (SELECT * FROM a.selections WHERE stage = '{stage}') o ON o.id = r.id
                LEFT JOIN (SELECT * FROM b.selections WHERE stage = '{stage}') n ON n.id = r.id
)
SELECT what, CASE
    WHEN what = 'changed' THEN 'text or labels changed'
    WHEN what = 'added' AND NOT was_there THEN 'new'
    WHEN what = 'added' THEN coalesce('was refused: ' || old, 'paired anew')
    WHEN NOT is_there THEN 'gone from the tables'
    ELSE coalesce('now refused: ' || new, 'paired anew') END AS reason, count(*) AS rows
FROM chosen GROUP BY ALL ORDER BY what, rows DESC, reason
"""


_COLUMN_REASONS = """
WITH differing AS (
    SELECT unnest([DIFFERING]) AS name
    FROM (SELECT KEYS FROM changes WHERE what = 'changed') JOIN a.VIEW x USING (KEYS) JOIN b.VIEW y USING (KEYS)
)
SELECT 'changed' AS what, name AS reason, count(*) AS rows FROM differing
WHERE name IS NOT NULL GROUP BY name ORDER BY rows DESC, name
"""


def _changed_columns(view: str) -> str:
    """SQL that counts changed rows by each column that differs."""
    names = [name for name in TABLES[VIEWS[view][0]].names if name not in _KEYS[view]]
    differing = ", ".join(f"CASE WHEN x.{name} IS DISTINCT FROM y.{name} THEN '{name}' END" for name in names)
    return _COLUMN_REASONS.replace("DIFFERING", differing).replace("KEYS", ", ".join(_KEYS[view])).replace("VIEW", view)


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    (count,) = connection.table(table).count("*").fetchall()[0]
    return int(count)


# --- as text --------------------------------------------------------------------------------------


def render(found: Diff, form: Form = "text") -> str:
    """The diff as plain text, JSON, or Markdown for a changelog."""
    if form == "json":
        return json.dumps(asdict(found), indent=1, ensure_ascii=False)
    counts, reasons, shards = count_table(found), reason_table(found), list(found.shards)
    if form == "text":
        parts = [table_text(counts), table_text(reasons), table_text(shards), "\n".join(found.schemas)]
        tables = "\n\n".join(part for part in parts if part)
        return f"{found.a} -> {found.b}\n\n{tables or 'both are empty'}"
    if form != "markdown":
        raise UserError(f"no form `{form}`", hint="text, json or markdown")
    parts = [markdown.table(rows, most=100) for rows in (counts, reasons, shards)]
    parts.append("\n".join(f"- {line}" for line in found.schemas))
    return "\n\n".join([f"## {found.a} → {found.b}", *(part for part in parts if part)])


COUNTS = ("table", "before", "after", "added", "removed", "changed")
REASONS = ("table", "what", "reason", "rows")


def count_table(found: Diff) -> list[Row]:
    """Rows before and after, added, removed and changed, of each table that has any."""
    return [{name: getattr(table, name) for name in COUNTS} for table in found.tables if table.before or table.after]


def reason_table(found: Diff) -> list[Row]:
    """Why rows were added, removed or changed, table by table."""
    return [{"table": table.table, **asdict(reason)} for table in found.tables for reason in table.reasons]


# --- as a picture ---------------------------------------------------------------------------------

_COLOURS = {"added": "#3b8c5a", "removed": "#b8483e", "changed": "#c98a2b"}


def draw_diff(found: Diff, path: Path) -> Path:
    """A picture: rows added, removed and changed by table, and rows of each shard by source, before and after."""
    from matplotlib.figure import Figure

    counts, shards = count_table(found), found.shards
    figure = Figure(figsize=(11, 1.4 + 0.34 * max(len(counts), len(shards), 1)), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [row["table"] for row in counts]
    start = [0] * len(counts)
    for what, colour in _COLOURS.items():
        values = [row[what] for row in counts]
        left.barh(names, values, left=start, color=colour, label=what)
        start = [before + value for before, value in zip(start, values, strict=True)]
    left.set_title("rows by table", fontsize=10)
    labels = [f"{row['stage']}: {markdown.escaped(row['source'])[:40]}" for row in shards]
    places = range(len(shards))
    right.barh(
        [place - 0.2 for place in places], [row["before"] for row in shards], 0.4, color="#9aa7b8", label="before"
    )
    right.barh([place + 0.2 for place in places], [row["after"] for row in shards], 0.4, color="#3c6ea5", label="after")
    right.set_yticks(list(places), labels)
    right.set_title("rows of each shard by source", fontsize=10)
    for axes in (left, right):
        axes.invert_yaxis()
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=8)
    figure.suptitle(f"{found.a} → {found.b}".replace("$", r"\$"), fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return path
