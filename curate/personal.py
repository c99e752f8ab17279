"""Personal data and secrets in the texts of a run directory: found, counted by kind, never shown whole.

Patterns are searched by DuckDB, whose engine (RE2) takes time linear in the text whatever it holds. What is found
is a candidate: an address may be made up, a key may be revoked. Names and telephone numbers are not searched for.
"""

from pathlib import Path

import duckdb

from curate.counting import Row, count_rows, opened

PATTERNS: dict[str, str] = {
    "email": r"\b[A-Za-z0-9][A-Za-z0-9._%+-]*@(?:[A-Za-z0-9][A-Za-z0-9-]*\.)+[A-Za-z]{2,24}\b",
    "private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "AWS access key": r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b",
    "GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})",
    "Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "API key": r"\b(?:sk|pk|rk)[-_](?:[a-z]+[-_])*[A-Za-z0-9_-]{24,}",
    "Slack token": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    "Google API key": r"\bAIza[A-Za-z0-9_-]{35}",
    "JSON web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    "password in a URL": r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"'<>{}]+:[^\s/:@\"'<>{}]+@[A-Za-z0-9]",
}
"""Kind -> RE2 pattern. A key needs a prefix that says so: a long number or word alone is none, mathematics is full of
both."""

_NOT_PERSONAL = r"@(?:.*\.)?(?:example\.(?:com|net|org)|example|invalid|localhost|test)$"
"""Addresses that belong to nobody (RFC 2606)."""

_TEXTS = {"prompts": ("prompt_id", ("problem", "solution")), "rollouts": ("rollout_id", ("reasoning", "response"))}
"""View -> its id and the columns with text; shards repeat these texts."""


def personal(connection: duckdb.DuckDBPyConnection) -> list[Row]:
    """A row for each kind and table in which it was found: rows with it, occurrences, distinct ones."""
    return count_rows(
        connection,
        f"SELECT kind, table_name AS found_in, count(DISTINCT id) AS rows, count(*) AS occurrences, "  # noqa: S608
        f"count(DISTINCT found) AS distinct_ones FROM ({_findings()}) GROUP BY ALL ORDER BY rows DESC, kind, found_in",
    )


def findings(root: Path, limit: int = 1000) -> list[Row]:
    """Where each was found: kind, table, id of the row, and what was found, masked but for its ends."""
    with opened(root) as connection:
        return count_rows(
            connection,
            "SELECT DISTINCT kind, table_name AS found_in, source, id, "  # noqa: S608
            "left(found, 4) || '…' || right(found, 2) AS masked "
            f"FROM ({_findings()}) ORDER BY ALL LIMIT {limit}",
        )


def _findings() -> str:
    """SQL for every occurrence: kind, table, id, source, text found."""
    parts = []
    for view, (key, columns) in _TEXTS.items():
        for column in columns:
            for kind, pattern in PATTERNS.items():
                quoted = pattern.replace("'", "''")
                parts.append(
                    f"SELECT '{kind}' AS kind, '{view}' AS table_name, {key} AS id, source, "  # noqa: S608
                    f"unnest(regexp_extract_all({column}, '{quoted}')) AS found "
                    f"FROM {view} WHERE regexp_matches({column}, '{quoted}')"
                )
    union = " UNION ALL ".join(parts)
    return f"SELECT * FROM ({union}) WHERE kind <> 'email' OR NOT regexp_matches(found, '{_NOT_PERSONAL}', 'i')"  # noqa: S608
