"""What the page shows, asked of DuckDB: only the rows of one page, and only their text."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self
from urllib.parse import urlencode

import duckdb

Row = dict[str, Any]

PROBLEMS_A_PAGE = 40
ROLLOUTS_A_PAGE = 12
MOST_CHARS = 200_000
"""A longer text is cut on the page, which says so."""


@dataclass(frozen=True)
class Filter:
    """What the list is narrowed to; empty strings mean everything."""

    text: str = ""
    """Part of the problem, letter case aside."""
    source: str = ""
    verdict: str = ""
    """Problems with at least one such rollout."""
    choice: str = ""
    """`sft:chosen`, or `sft:` and the reason of a refusal."""
    page: int = 1

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> Self:
        """The filter of an address; a page that is no number is the first."""
        page = query.get("page", "1")
        known = {name: query.get(name, "").strip() for name in ("text", "source", "verdict", "choice")}
        return cls(**known, page=max(1, int(page)) if page.isdecimal() and len(page) < 9 else 1)

    def address(self, page: int | None = None) -> str:
        """The query part of the address that shows this filter, at `page`."""
        at = self if page is None else replace(self, page=page)
        given = {name: value for name, value in vars(at).items() if value and not (name == "page" and value == 1)}
        return f"?{urlencode(given)}" if given else ""


@dataclass(frozen=True)
class Listing:
    """One page of the list of problems."""

    problems: list[Row]
    """`prompt_id`, `problem` (its beginning), `source`, `domain`, `level`, `answer`, `verdicts` (verdict -> count)."""
    total: int
    """Problems on all pages."""


def facets(connection: duckdb.DuckDBPyConnection) -> dict[str, list[Row]]:
    """What can be filtered by, with counts: `sources`, `verdicts`, `choices`."""
    return {
        "sources": _rows(connection, "SELECT source AS name, count(*) AS rows FROM prompts GROUP BY 1 ORDER BY 1"),
        "verdicts": _rows(connection, "SELECT verdict AS name, count(*) AS rows FROM verdicts GROUP BY 1 ORDER BY 1"),
        "choices": _rows(
            connection,
            "SELECT stage || ':' || coalesce(refusal, 'chosen') AS name, count(*) AS rows "
            "FROM selections GROUP BY stage, refusal "
            "ORDER BY list_position(['midtrain', 'sft', 'dpo', 'rl'], stage), refusal NULLS FIRST",
        ),
    }


def listing(connection: duckdb.DuckDBPyConnection, chosen: Filter) -> Listing:
    """The problems that pass the filter, a page of them."""
    where, values = _conditions(chosen)
    total = _rows(connection, f"SELECT count(*) AS total FROM prompts WHERE {where}", values)[0]["total"]  # noqa: S608
    # Sorted by narrow columns first; problem text is read for the page alone.
    page = _rows(
        connection,
        f"SELECT prompt_id FROM prompts WHERE {where} "  # noqa: S608
        f"ORDER BY source, length(source_id), source_id, prompt_id LIMIT {PROBLEMS_A_PAGE} OFFSET $offset",
        {**values, "offset": (chosen.page - 1) * PROBLEMS_A_PAGE},
    )
    ids = [row["prompt_id"] for row in page]
    problems = _rows(connection, _PROBLEMS, {"ids": ids})
    counts = _rows(
        connection,
        "SELECT prompt_id, verdict, count(*) AS rows FROM verdicts WHERE prompt_id IN (SELECT unnest($ids)) "
        "GROUP BY ALL ORDER BY ALL",
        {"ids": ids},
    )
    by_id = {row["prompt_id"]: {**row, "verdicts": {}} for row in problems}
    for row in counts:
        by_id[row["prompt_id"]]["verdicts"][row["verdict"]] = row["rows"]
    return Listing([by_id[id_] for id_ in ids], total)


_PROBLEMS = """
SELECT p.prompt_id, left(p.problem, 400) AS problem, p.source, coalesce(a.domain, p.domain) AS domain,
       coalesce(a.level, p.level) AS level, p.answer
FROM prompts p LEFT JOIN annotations_prompts a USING (prompt_id) WHERE p.prompt_id IN (SELECT unnest($ids))
"""


def _conditions(chosen: Filter) -> tuple[str, Row]:
    """SQL of ours with named parameters, and their values: nothing from the address becomes SQL."""
    conditions: list[str] = ["true"]
    values: Row = {}
    if chosen.text:
        conditions.append("contains(lower(problem), lower($text))")
        values["text"] = chosen.text
    if chosen.source:
        conditions.append("source = $source")
        values["source"] = chosen.source
    if chosen.verdict:
        conditions.append("prompt_id IN (SELECT prompt_id FROM verdicts WHERE verdict = $verdict)")
        values["verdict"] = chosen.verdict
    if chosen.choice:
        conditions.append(
            "prompt_id IN (SELECT prompt_id FROM selections "
            "WHERE stage = $stage AND coalesce(refusal, 'chosen') = $refusal)"
        )
        values["stage"], _, values["refusal"] = chosen.choice.partition(":")
    return " AND ".join(conditions), values


def problem(connection: duckdb.DuckDBPyConnection, prompt_id: str) -> Row | None:
    """A problem with its labels: `contamination`, `duplicates`, `choices`; None if there is none of this id."""
    values = {"id": prompt_id, "most": MOST_CHARS}
    found = _rows(connection, _PROBLEM, values)
    if not found:
        return None
    only_id = {"id": prompt_id}
    return {
        **found[0],
        "contamination": _rows(connection, "FROM contamination WHERE prompt_id = $id ORDER BY ALL", only_id),
        "duplicates": _rows(connection, "FROM duplicates WHERE kind = 'problem' AND id = $id ORDER BY ALL", only_id),
        "choices": _rows(connection, "FROM selections WHERE id = $id ORDER BY stage", only_id),
        "verdicts": {
            row["verdict"]: row["rows"]
            for row in _rows(
                connection,
                "SELECT verdict, count(*) AS rows FROM verdicts WHERE prompt_id = $id GROUP BY ALL ORDER BY ALL",
                only_id,
            )
        },
        "num_rollouts": _rows(connection, "SELECT count(*) AS n FROM rollouts WHERE prompt_id = $id", only_id)[0]["n"],
    }


_PROBLEM = """
SELECT p.prompt_id, left(p.problem, $most) AS problem, p.choices AS options, p.answer,
       left(p.solution, $most) AS solution, p.verifier, p.source, p.source_id, p.licence,
       coalesce(a.domain, p.domain) AS domain, coalesce(a.level, p.level) AS level, a.pass_rate, a.pass_rate_low,
       a.pass_rate_high
FROM prompts p LEFT JOIN annotations_prompts a USING (prompt_id) WHERE p.prompt_id = $id
"""


def rollouts(connection: duckdb.DuckDBPyConnection, prompt_id: str, verdict: str, page: int) -> list[Row]:
    """A page of the problem's rollouts, with their labels; only those with `verdict` where it is not empty."""
    values = {"id": prompt_id, "verdict": verdict, "most": MOST_CHARS, "offset": (page - 1) * ROLLOUTS_A_PAGE}
    rows = _rows(connection, f"{_ROLLOUTS} LIMIT {ROLLOUTS_A_PAGE} OFFSET $offset", values)
    ids = [row["rollout_id"] for row in rows]
    choices = _rows(connection, "FROM selections WHERE id IN (SELECT unnest($ids)) ORDER BY stage", {"ids": ids})
    for row in rows:
        row["choices"] = [choice for choice in choices if choice["id"] == row["rollout_id"]]
        row["answer"] = _around(row["response"], row["extracted"])
    return rows


_ROLLOUTS = """
SELECT r.rollout_id, r.model, r.sample_index, r.temperature, r.step, r.reasoning_form, r.finish_reason,
       r.upstream_label, r.source, left(r.reasoning, $most) AS reasoning, left(r.response, $most) AS response,
       coalesce(length(r.reasoning), 0) + length(r.response) AS num_chars,
       coalesce(length(r.reasoning), 0) > $most OR length(r.response) > $most AS cut,
       coalesce(a.num_tokens, r.completion_tokens) AS num_tokens, a.truncated, a.repeated_share,
       v.verdict, v.extracted, v.rule, v.verifier, d.cluster AS repeats
FROM rollouts r
LEFT JOIN verdicts v USING (rollout_id) LEFT JOIN annotations_rollouts a USING (rollout_id)
LEFT JOIN duplicates d ON d.kind = 'trace' AND d.id = r.rollout_id AND NOT d.keep
WHERE r.prompt_id = $id AND ($verdict = '' OR v.verdict = $verdict)
ORDER BY r.model, r.step NULLS FIRST, r.sample_index, r.rollout_id
"""


def _around(response: str, extracted: str | None) -> tuple[str, str, str]:
    """The response in three parts: before the extracted answer's last occurrence, the answer, after it."""
    at = response.rfind(extracted) if extracted else -1
    if extracted is None or at < 0:
        return response, "", ""
    return response[:at], extracted, response[at + len(extracted) :]


def _rows(connection: duckdb.DuckDBPyConnection, statement: str, values: Row | None = None) -> list[Row]:
    # Requests run in threads; a cursor is for one of them.
    cursor = connection.cursor()
    try:
        result = cursor.execute(statement, values)
        names = [column[0] for column in result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    finally:
        cursor.close()
