"""What the page finds rows by: narrow columns of every problem and rollout, held in DuckDB's memory, sorted.

It is made once, when the page starts, from the label tables; text stays in its Parquet files, of which a page reads
those that hold its rows. A problem's `place` in the order of the list is what pages go on from.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from curate import sql
from pipelines import parquet

Row = dict[str, Any]

SEARCHED_CHARS = 2000
"""So much of a problem is held, shown in the list and searched."""


@dataclass(frozen=True)
class Index:
    """A run directory, ready to be asked for a page."""

    connection: duckdb.DuckDBPyConnection
    """With the tables' views, and `page.problems` and `page.rollouts`."""
    root: Path
    home: Path
    """Where the problems are: `root`, but for a run of RL, which has rollouts alone."""
    rollout_files: list[Path]
    prompt_files: list[Path]
    """`file` of `page.rollouts` and `page.problems` counts these, from 1."""
    facets: dict[str, list[Row]]
    """What can be filtered by: `name` and `rows` of each choice."""

    def rows(self, statement: str, values: Row | None = None) -> list[Row]:
        """The rows of an SQL statement of ours; every value that comes from outside is in `values`."""
        return _rows(self.connection, statement, values)

    def labels(self, table: str, files: Iterable[Path]) -> tuple[str, Row]:
        """What to select the labels of some files of rollouts from, and the values in it.

        They are in the label files of the same names; where one is not there, anywhere in the table.
        """
        name = table.replace("/", "_")
        paths = [self.root / table / path.name for path in files]
        if all(path.is_file() for path in paths):
            return f"read_parquet(${name})", {name: [str(path.resolve()) for path in paths]}
        return name, {}


@contextmanager
def opened(root: Path, home: Path | None = None) -> Iterator[Index]:
    """The index of a run directory; `home` holds its problems where it has none itself."""
    home = home or root
    with sql.tables_of({"main": root, "home": home}) as connection:
        rollout_files, prompt_files = parquet.table_files(root, "rollouts"), parquet.table_files(home, "prompts")
        connection.execute("CREATE SCHEMA page")
        connection.execute(_WORDS)
        source, values = _with_files("home.prompts", prompt_files)
        values |= {"most": SEARCHED_CHARS, "unsampled": home == root}
        connection.execute(_PROBLEMS.format(prompts=source), values)
        source, values = _with_files("rollouts", rollout_files)
        connection.execute(_ROLLOUTS.format(rollouts=source), values)
        connection.execute(_PAIRS)
        facets = {name: _rows(connection, statement) for name, statement in _FACETS.items()}
        yield Index(connection, root, home, rollout_files, prompt_files, facets)


def _with_files(view: str, files: Sequence[Path]) -> tuple[str, Row]:
    """What to select a table with its `filename` from, and the values in it."""
    values = {"files": [str(path.resolve()) for path in files]}
    if files:
        return "read_parquet($files, filename = true)", values
    return f"(SELECT *, '' AS filename FROM {view})", values  # noqa: S608  # a view of ours, without rows


# Few different strings, a million times each: a number instead takes a byte and is compared as one.
_WORDS = """
CREATE TYPE page.word AS ENUM (
    SELECT DISTINCT word FROM (
        SELECT verdict AS word FROM verdicts UNION ALL SELECT rule FROM verdicts UNION ALL SELECT model FROM rollouts
        UNION ALL SELECT refusal FROM selections UNION ALL SELECT 'chosen'
    ) WHERE word IS NOT NULL ORDER BY word
)
"""
_PROBLEMS = """
CREATE TABLE page.problems AS
WITH held AS (
    SELECT DISTINCT ON (prompt_id) prompt_id, source, source_id, domain, level, answer,
           left(problem, $most) AS problem, CAST(list_position($files, filename) AS INTEGER) AS file
    FROM {prompts}
),
choices AS (
    SELECT id AS prompt_id, any_value(coalesce(refusal, 'chosen')) FILTER (stage = 'dpo') AS dpo,
           any_value(coalesce(refusal, 'chosen')) FILTER (stage = 'rl') AS rl
    FROM selections WHERE stage IN ('dpo', 'rl') GROUP BY id
)
SELECT CAST(row_number() OVER (ORDER BY source NULLS LAST, length(source_id), source_id, prompt_id) AS INTEGER)
           AS place, prompt_id, file, problem, lower(problem) AS words, source, answer,
       coalesce(a.domain, h.domain) AS domain, coalesce(a.level, h.level) AS level,
       CAST(dpo AS page.word) AS dpo, CAST(rl AS page.word) AS rl
FROM held h FULL JOIN (SELECT DISTINCT prompt_id, true AS sampled FROM rollouts) USING (prompt_id)
LEFT JOIN home.annotations_prompts a USING (prompt_id) LEFT JOIN choices USING (prompt_id)
WHERE sampled OR $unsampled
ORDER BY place
"""
_ROLLOUTS = """
CREATE TABLE page.rollouts AS
WITH choices AS (
    SELECT id AS rollout_id, any_value(coalesce(refusal, 'chosen')) FILTER (stage = 'midtrain') AS midtrain,
           any_value(coalesce(refusal, 'chosen')) FILTER (stage = 'sft') AS sft
    FROM selections WHERE stage IN ('midtrain', 'sft') GROUP BY id
)
SELECT p.place, r.rollout_id, CAST(list_position($files, r.filename) AS INTEGER) AS file, r.sample_index, r.step,
       CAST(r.model AS page.word) AS model, CAST(v.verdict AS page.word) AS verdict, CAST(v.rule AS page.word) AS rule,
       coalesce(a.num_tokens, r.completion_tokens) AS num_tokens,
       CAST(midtrain AS page.word) AS midtrain, CAST(sft AS page.word) AS sft
FROM {rollouts} r JOIN page.problems p USING (prompt_id)
LEFT JOIN verdicts v USING (rollout_id) LEFT JOIN annotations_rollouts a USING (rollout_id)
LEFT JOIN choices USING (rollout_id)
ORDER BY place
"""
_PAIRS = """
CREATE TABLE page.pairs AS
SELECT place, chosen_id, rejected_id FROM dpo JOIN page.problems USING (prompt_id) ORDER BY place
"""

_COUNT = "SELECT {column} AS name, count(*) AS rows FROM page.{table} WHERE name IS NOT NULL GROUP BY ALL ORDER BY ALL"
_FACETS = {
    **{f"{name}s": _COUNT.format(column=name, table="problems") for name in ("source", "domain", "level")},
    **{f"{name}s": _COUNT.format(column=name, table="rollouts") for name in ("verdict", "rule", "model")},
    "choices": """
        SELECT stage || ':' || coalesce(refusal, 'chosen') AS name, count(*) AS rows FROM selections
        GROUP BY stage, refusal
        ORDER BY list_position(['midtrain', 'sft', 'dpo', 'rl'], stage), refusal NULLS FIRST
    """,
    "steps": """
        SELECT step AS name, count(*) AS rows, count(*) FILTER (verdict = 'correct') AS correct
        FROM page.rollouts WHERE step IS NOT NULL GROUP BY ALL ORDER BY ALL
    """,
}


def _rows(connection: duckdb.DuckDBPyConnection, statement: str, values: Row | None = None) -> list[Row]:
    # Requests run in threads; a cursor is for one of them.
    cursor = connection.cursor()
    try:
        result = cursor.execute(statement, values)
        names = [column[0] for column in result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    finally:
        cursor.close()
