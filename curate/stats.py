"""Numbers of a run directory, counted by DuckDB over the narrow tables; text is never read."""

from collections.abc import Callable
from pathlib import Path

import duckdb

from curate.chosen import choices, conservation, pairs, presence, shards
from curate.counting import Row, Summary, count_rows, opened
from curate.overlaps import benchmarks_by_source, repeats_by_source

__all__ = ["SUMMARIES", "Row", "Summary", "choices", "conservation", "count_rows", "opened", "stats"]


def stats(root: Path) -> list[Summary]:
    """Every summary of `root` that has rows, in the order in which a trace travels."""
    with opened(root) as connection:
        return [summary for summarise in SUMMARIES for summary in [summarise(connection)] if summary.rows]


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
               avg(num_tokens) AS mean_tokens
        FROM rollouts JOIN lengths USING (rollout_id)
        GROUP BY ALL ORDER BY rollouts DESC, model, temperature, top_p, max_tokens
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


def overrides(connection: duckdb.DuckDBPyConnection) -> Summary:
    """What readers have marked in `curate view`, and how much of it `curate verify` has respected since."""
    rows = count_rows(
        connection,
        """
        SELECT o.kind, coalesce(o.verdict, 'bad') AS said, count(*) AS marks, count(o.note) AS notes,
               count(*) FILTER (CASE WHEN o.kind = 'verdict' THEN v.rule = 'override' AND v.verdict = o.verdict
                   ELSE o.id IN (SELECT prompt_id FROM verdicts WHERE rule = 'override:bad_gold') END) AS in_verdicts
        FROM overrides o LEFT JOIN verdicts v ON o.kind = 'verdict' AND v.rollout_id = o.id
        GROUP BY ALL ORDER BY ALL
        """,
    )
    return Summary("Overrides", rows)


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
               avg(CAST(truncated AS INTEGER)) FILTER (ending_known) AS truncated_rate
        FROM lengths LEFT JOIN verdicts USING (rollout_id)
        WHERE num_tokens IS NOT NULL GROUP BY verdict ORDER BY rollouts DESC, verdict
        """,
    )
    names = ("p10", "p50", "p90", "p99")
    for row in rows:
        row.update(zip(names, row.pop("percentiles"), strict=True))
    order = ("verdict", "rollouts", "mean", *names, "max", "truncated_rate")
    return Summary("Lengths", [{name: row[name] for name in order} for row in rows])


def trace_marks(connection: duckdb.DuckDBPyConnection) -> Summary:
    """How the traces look, by verdict: loops, compression, second thoughts, and where the last box opens."""
    rows = count_rows(
        connection,
        """
        SELECT coalesce(verdict, 'not verified') AS verdict, count(*) AS rollouts,
               avg(CAST(repeated_share > 0.2 AS INTEGER)) AS looping_rate,
               avg(CAST(compression_ratio > 8 AS INTEGER)) AS repetitive_rate,
               avg(num_reflections) AS mean_reflections, avg(CAST(num_reflections > 0 AS INTEGER)) AS reflecting_rate,
               avg(CAST(num_language_switches > 0 AS INTEGER)) AS switching_rate,
               count(answer_position) / count(*) AS boxed_rate, median(answer_position) AS median_answer_position
        FROM annotations_rollouts LEFT JOIN verdicts USING (rollout_id)
        GROUP BY verdict ORDER BY rollouts DESC, verdict
        """,
    )
    return Summary("Marks of traces", rows)


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


def domains(connection: duckdb.DuckDBPyConnection) -> Summary:
    """Problems by domain and level, and how often their rollouts are right."""
    rows = count_rows(
        connection,
        """
        SELECT coalesce(domain, 'unknown') AS domain, count(*) AS problems,
               count(*) FILTER (level = 'elementary') AS elementary,
               count(*) FILTER (level = 'middle school') AS middle_school,
               count(*) FILTER (level = 'high school') AS high_school,
               count(*) FILTER (level = 'college') AS college, count(*) FILTER (level = 'graduate') AS graduate,
               CAST(sum(num_rollouts) AS BIGINT) AS rollouts,
               sum(num_correct) / nullif(sum(num_judged), 0) AS correct_rate
        FROM annotations_prompts GROUP BY ALL ORDER BY problems DESC, domain
        """,
    )
    return Summary("Domains and levels", rows)


def label_origins(connection: duckdb.DuckDBPyConnection) -> Summary:
    """Who says what a problem is about and how hard it is: its source, a judge, a classifier, or nobody."""
    rows = count_rows(
        connection,
        """
        SELECT label, said_by, count(*) AS problems, count(*) / sum(count(*)) OVER (PARTITION BY label) AS share_rate
        FROM (SELECT 'domain' AS label, domain_from AS said_by FROM annotations_prompts
              UNION ALL SELECT 'level', level_from FROM annotations_prompts)
        GROUP BY label, said_by ORDER BY label, problems DESC, said_by
        """,
    )
    return Summary("Labels", rows)


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
    domains,
    label_origins,
    models,
    refusals,
    reasoning_forms,
    verdicts,
    rules,
    overrides,
    upstream_agreement,
    pass_rates,
    lengths,
    trace_marks,
    duplicates,
    repeats_by_source,
    contamination,
    benchmarks_by_source,
    choices,
    conservation,
    shards,
    presence,
    pairs,
)


def _tenth(tenth: int) -> str:
    """`none` right, `0.3–0.4`, `all` right."""
    if tenth in (-1, 10):
        return "none" if tenth == -1 else "all"
    return f"{tenth / 10:.1f}–{(tenth + 1) / 10:.1f}"
