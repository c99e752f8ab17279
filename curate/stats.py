"""Numbers of a run directory, counted by DuckDB over the narrow tables; text is never read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from curate import sql

Row = dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """A titled table: every row has the same keys. Keys that end in `_rate` are shares in [0, 1]."""

    title: str
    rows: list[Row]


def stats(root: Path) -> list[Summary]:
    """Every summary of `root` that has rows, in the order in which a trace travels."""
    with opened(root) as connection:
        return [summary for summarise in SUMMARIES for summary in [summarise(connection)] if summary.rows]


@contextmanager
def opened(root: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection for the summaries: the tables' views, and two of our own."""
    with sql.tables(root) as connection:
        connection.execute(_LENGTHS)
        connection.execute(_GROUPS)
        yield connection


# Lengths are the annotation's where there is one, else the sampler's count.
_LENGTHS = """
CREATE VIEW lengths AS
SELECT r.rollout_id, coalesce(a.num_tokens, r.completion_tokens) AS num_tokens,
       coalesce(a.truncated, r.finish_reason = 'length', false) AS truncated
FROM rollouts r LEFT JOIN annotations_rollouts a USING (rollout_id)
"""

# As `curate annotate` counts: a timeout or an unreadable reference answer says nothing about the rollout.
_GROUPS = """
CREATE VIEW groups AS
SELECT prompt_id, count(*) AS num_rollouts,
       count(*) FILTER (verdict = 'correct') AS num_correct,
       count(*) FILTER (verdict IN ('correct', 'incorrect', 'no_answer')) AS num_judged
FROM verdicts GROUP BY prompt_id
"""


def count_rows(connection: duckdb.DuckDBPyConnection, statement: str) -> list[Row]:
    """The rows of an SQL statement of ours, as dicts."""
    # A cursor of its own: summaries may be asked for by several threads.
    cursor = connection.cursor().execute(statement)
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


# --- summaries ------------------------------------------------------------------------------------


def sources(connection: duckdb.DuckDBPyConnection) -> Summary:
    """Problems, rollouts and verdicts by source."""
    rows = count_rows(
        connection,
        """
        WITH p AS (SELECT source, count(*) AS problems FROM prompts GROUP BY source),
        r AS (
            SELECT r.source, count(*) AS rollouts, count(DISTINCT model) AS models, count(v.verdict) AS verified,
                   count(*) FILTER (v.verdict = 'correct') AS correct,
                   count(*) FILTER (v.verdict = 'incorrect') AS incorrect,
                   count(*) FILTER (v.verdict = 'no_answer') AS no_answer
            FROM rollouts r LEFT JOIN verdicts v USING (rollout_id) GROUP BY r.source
        )
        SELECT source, coalesce(problems, 0) AS problems, coalesce(models, 0) AS models,
               coalesce(rollouts, 0) AS rollouts, coalesce(correct, 0) AS correct,
               coalesce(incorrect, 0) AS incorrect, coalesce(no_answer, 0) AS no_answer,
               coalesce(verified - correct - incorrect - no_answer, 0) AS undecided
        FROM p FULL JOIN r USING (source) ORDER BY rollouts DESC, problems DESC, source
        """,
    )
    return Summary("Sources", rows)


def licences(connection: duckdb.DuckDBPyConnection) -> Summary:
    """Problems by licence, as their sources state it."""
    rows = count_rows(
        connection,
        """
        SELECT coalesce(licence, 'not stated') AS licence, count(*) AS problems,
               string_agg(DISTINCT source, ', ' ORDER BY source) AS sources
        FROM prompts GROUP BY ALL ORDER BY problems DESC, licence
        """,
    )
    return Summary("Licences", rows)


def models(connection: duckdb.DuckDBPyConnection) -> Summary:
    """Who wrote the rollouts, at which settings."""
    rows = count_rows(
        connection,
        """
        SELECT model, temperature, top_p, max_tokens, count(*) AS rollouts, count(DISTINCT prompt_id) AS problems,
               avg(completion_tokens) AS mean_tokens
        FROM rollouts GROUP BY ALL ORDER BY rollouts DESC, model, temperature, top_p, max_tokens
        """,
    )
    return Summary("Models", rows)


def composition(connection: duckdb.DuckDBPyConnection) -> Summary:
    """Problems and rollouts by source, domain and level."""
    rows = count_rows(
        connection,
        """
        SELECT p.source, coalesce(a.domain, p.domain, 'unknown') AS domain,
               coalesce(a.level, p.level, 'unknown') AS level,
               count(*) AS problems, CAST(coalesce(sum(g.num_rollouts), 0) AS BIGINT) AS verified_rollouts,
               sum(g.num_correct) / nullif(sum(g.num_judged), 0) AS correct_rate
        FROM prompts p LEFT JOIN annotations_prompts a USING (prompt_id) LEFT JOIN groups g USING (prompt_id)
        GROUP BY ALL ORDER BY problems DESC, source, domain, level
        """,
    )
    return Summary("Composition", rows)


def reasoning_forms(connection: duckdb.DuckDBPyConnection) -> Summary:
    """How reasoning was told from the answer, and how sampling ended."""
    rows = count_rows(
        connection,
        """
        SELECT reasoning_form, coalesce(finish_reason, 'unknown') AS finish_reason, count(*) AS rollouts,
               count(*) / sum(count(*)) OVER () AS share_rate
        FROM rollouts GROUP BY ALL ORDER BY rollouts DESC, reasoning_form, finish_reason
        """,
    )
    return Summary("Reasoning forms", rows)


def verdicts(connection: duckdb.DuckDBPyConnection) -> Summary:
    """Rollouts by verdict."""
    rows = count_rows(
        connection,
        """
        SELECT verdict, count(*) AS rollouts, count(*) / sum(count(*)) OVER () AS share_rate
        FROM verdicts GROUP BY verdict ORDER BY rollouts DESC, verdict
        """,
    )
    return Summary("Verdicts", rows)


def rules(connection: duckdb.DuckDBPyConnection) -> Summary:
    """Rollouts by the rule that decided."""
    rows = count_rows(
        connection,
        """
        SELECT verifier, rule, verdict, count(*) AS rollouts, count(*) / sum(count(*)) OVER () AS share_rate
        FROM verdicts GROUP BY ALL ORDER BY rollouts DESC, verifier, rule, verdict
        """,
    )
    return Summary("Rules", rows)


def upstream_agreement(connection: duckdb.DuckDBPyConnection) -> Summary:
    """What the makers of imported rollouts said (rows) against our verdicts (columns)."""
    rows = count_rows(
        connection,
        """
        SELECT CASE WHEN upstream_label THEN 'right' ELSE 'wrong' END AS upstream,
               count(*) FILTER (verdict = 'correct') AS correct, count(*) FILTER (verdict = 'incorrect') AS incorrect,
               count(*) FILTER (verdict = 'no_answer') AS no_answer,
               count(*) FILTER (verdict NOT IN ('correct', 'incorrect', 'no_answer')) AS undecided
        FROM rollouts JOIN verdicts USING (rollout_id)
        WHERE upstream_label IS NOT NULL GROUP BY upstream_label ORDER BY upstream
        """,
    )
    return Summary("Upstream labels", rows)


def pass_rates(connection: duckdb.DuckDBPyConnection) -> Summary:
    """Problems by pass rate: all wrong, tenths between, all right; problems without a judged rollout are left out."""
    rows = count_rows(
        connection,
        """
        WITH tenths AS (
            SELECT num_rollouts, CASE WHEN num_correct = 0 THEN -1 WHEN num_correct = num_judged THEN 10
                   ELSE (10 * num_correct) // num_judged END AS tenth
            FROM groups WHERE num_judged > 0
        )
        SELECT tenth, count(*) AS problems, avg(num_rollouts) AS mean_rollouts FROM tenths GROUP BY tenth ORDER BY tenth
        """,
    )
    return Summary("Pass rates", [{"pass_rate": _tenth(row.pop("tenth")), **row} for row in rows])


def lengths(connection: duckdb.DuckDBPyConnection) -> Summary:
    """Percentiles of rollout lengths in tokens, by verdict."""
    rows = count_rows(
        connection,
        """
        SELECT coalesce(verdict, 'not verified') AS verdict, count(*) AS rollouts, avg(num_tokens) AS mean,
               quantile_disc(num_tokens, [0.1, 0.5, 0.9, 0.99]) AS percentiles, max(num_tokens) AS max,
               avg(CAST(truncated AS INTEGER)) AS truncated_rate
        FROM lengths LEFT JOIN verdicts USING (rollout_id)
        WHERE num_tokens IS NOT NULL GROUP BY verdict ORDER BY rollouts DESC, verdict
        """,
    )
    names = ("p10", "p50", "p90", "p99")
    for row in rows:
        row.update(zip(names, row.pop("percentiles"), strict=True))
    order = ("verdict", "rollouts", "mean", *names, "max", "truncated_rate")
    return Summary("Lengths", [{name: row[name] for name in order} for row in rows])


def duplicates(connection: duckdb.DuckDBPyConnection) -> Summary:
    """Labelled duplicates by kind and method."""
    rows = count_rows(
        connection,
        """
        SELECT kind, method, count(DISTINCT cluster) AS clusters, count(*) FILTER (NOT keep) AS repeats,
               avg(similarity) FILTER (NOT keep) AS mean_similarity
        FROM duplicates GROUP BY ALL ORDER BY kind, method
        """,
    )
    return Summary("Duplicates", rows)


def contamination(connection: duckdb.DuckDBPyConnection) -> Summary:
    """Problems that overlap a benchmark, by benchmark and method."""
    rows = count_rows(
        connection,
        """
        SELECT benchmark, method, count(DISTINCT prompt_id) AS problems, count(DISTINCT item) AS items,
               min(score) AS lowest_score
        FROM contamination GROUP BY ALL ORDER BY benchmark, method
        """,
    )
    return Summary("Contamination", rows)


def choices(connection: duckdb.DuckDBPyConnection) -> Summary:
    """Where rows are chosen: for each stage, rows in, chosen, and refused by reason."""
    rows = count_rows(
        connection,
        """
        WITH counted AS (
            SELECT stage, coalesce(refusal, 'chosen') AS choice, count(*) AS rows FROM selections GROUP BY ALL
        )
        SELECT stage, choice, rows, rows / sum(rows) OVER (PARTITION BY stage) AS share_rate FROM counted
        ORDER BY list_position(['midtrain', 'sft', 'dpo', 'rl'], stage), choice <> 'chosen', rows DESC, choice
        """,
    )
    return Summary("Choices", rows)


def conservation(connection: duckdb.DuckDBPyConnection) -> Summary:
    """Rows in = chosen + refused, and chosen = rows in the shard, for each stage; `holds` says whether they are.

    Rows in are counted where they come from: rollouts (midtrain, sft) or problems (dpo, rl).
    """
    rows = count_rows(
        connection,
        """
        WITH origin AS (
            SELECT 'midtrain' AS stage, (SELECT count(*) FROM rollouts) AS rows_in,
                   (SELECT count(*) FROM midtrain) AS in_shard UNION ALL
            SELECT 'sft', (SELECT count(*) FROM rollouts), (SELECT count(*) FROM sft) UNION ALL
            SELECT 'dpo', (SELECT count(*) FROM prompts), (SELECT count(DISTINCT prompt_id) FROM dpo) UNION ALL
            SELECT 'rl', (SELECT count(*) FROM prompts), (SELECT count(*) FROM rl)
        ),
        counted AS (
            SELECT stage, count(*) FILTER (refusal IS NULL) AS chosen, count(refusal) AS refused
            FROM selections GROUP BY stage
        )
        SELECT stage, rows_in, chosen, refused, in_shard, rows_in = chosen + refused AND chosen = in_shard AS holds
        FROM counted JOIN origin USING (stage)
        ORDER BY list_position(['midtrain', 'sft', 'dpo', 'rl'], stage)
        """,
    )
    return Summary("Conservation", rows)


def shards(connection: duckdb.DuckDBPyConnection) -> Summary:
    """Rows, problems and tokens of each shard kind; tokens are those of the traces (of a pair: both)."""
    rows = count_rows(
        connection,
        """
        WITH shards AS (
            SELECT 1 AS place, 'midtrain' AS shard, prompt_id, source, [rollout_id] AS traces FROM midtrain UNION ALL
            SELECT 2, 'sft', prompt_id, source, [rollout_id] FROM sft UNION ALL
            SELECT 3, 'dpo', prompt_id, source, [chosen_id, rejected_id] FROM dpo UNION ALL
            SELECT 4, 'rl', prompt_id, source, []::VARCHAR[] FROM rl
        ),
        tokens AS (
            SELECT shard, CAST(sum(num_tokens) AS BIGINT) AS tokens
            FROM (SELECT shard, unnest(traces) AS rollout_id FROM shards) JOIN lengths USING (rollout_id) GROUP BY shard
        )
        SELECT shard, count(*) AS rows, count(DISTINCT prompt_id) AS problems, count(DISTINCT source) AS sources,
               any_value(tokens) AS tokens
        FROM shards LEFT JOIN tokens USING (shard) GROUP BY shard, place ORDER BY place
        """,
    )
    return Summary("Shards", rows)


def pairs(connection: duckdb.DuckDBPyConnection) -> Summary:
    """DPO pairs and their length bias: a policy learns length where the chosen side is mostly the longer or shorter."""
    rows = count_rows(
        connection,
        """
        SELECT count(*) AS pairs, count(DISTINCT d.prompt_id) AS problems, avg(c.num_tokens) AS chosen_mean_tokens,
               avg(r.num_tokens) AS rejected_mean_tokens,
               avg(CAST(c.num_tokens < r.num_tokens AS INTEGER)) AS chosen_shorter_rate,
               quantile_cont(c.num_tokens / nullif(r.num_tokens, 0), 0.5) AS median_length_ratio
        FROM dpo d LEFT JOIN lengths c ON c.rollout_id = d.chosen_id LEFT JOIN lengths r ON r.rollout_id = d.rejected_id
        HAVING count(*) > 0
        """,
    )
    return Summary("Preference pairs", rows)


def refusals(connection: duckdb.DuckDBPyConnection) -> Summary:
    """Rows that could not be used when they were read or sampled, by reason."""
    rows = count_rows(
        connection,
        """
        SELECT stage, source, reason, count(*) AS rows FROM refusals
        GROUP BY ALL ORDER BY rows DESC, stage, source, reason
        """,
    )
    return Summary("Refusals", rows)


SUMMARIES: tuple[Callable[[duckdb.DuckDBPyConnection], Summary], ...] = (
    sources,
    licences,
    composition,
    models,
    refusals,
    reasoning_forms,
    verdicts,
    rules,
    upstream_agreement,
    pass_rates,
    lengths,
    duplicates,
    contamination,
    choices,
    conservation,
    shards,
    pairs,
)


def _tenth(tenth: int) -> str:
    """`none` right, `0.3–0.4`, `all` right."""
    if tenth in (-1, 10):
        return "none" if tenth == -1 else "all"
    return f"{tenth / 10:.1f}–{(tenth + 1) / 10:.1f}"
