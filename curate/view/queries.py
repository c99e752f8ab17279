"""What the page shows: only the rows of one page, and only their text."""

from collections.abc import Sequence
from dataclasses import dataclass

from curate import overrides
from curate.view.filters import Filter, Values
from curate.view.index import Index, Row

PROBLEMS_A_PAGE = 40
ROLLOUTS_A_PAGE = 12
PAIRS_A_PAGE = 6
LISTED_CHARS = 400
MOST_CHARS = 200_000
"""A longer text is cut on the page, which says so."""


class TablesChangedError(Exception):
    """The files hold other rows than those that the index was made of."""


# --- the list -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listing:
    """One page of the list of problems."""

    problems: list[Row]
    """`place`, `prompt_id`, `problem` (its beginning), `source`, `domain`, `level`, `answer`, `verdicts`, `marked`."""
    total: int
    """Problems that pass the filter."""
    first: int
    """How many of them come before this page."""


def listing(index: Index, chosen: Filter) -> Listing:
    """The problems that pass the filter, a page of them."""
    passing, values = _passing(index, chosen)
    backward = chosen.before is not None and chosen.after is None
    side, order = ("<", "DESC") if backward else (">", "ASC")
    found = index.rows(
        f"WITH passing AS MATERIALIZED ({passing}) "  # noqa: S608  # SQL of ours, see `Filter`
        f"SELECT count(*) AS total, count(*) FILTER (place {side} $start) AS rest, (SELECT list(place ORDER BY place) "
        f"FROM (SELECT place FROM passing WHERE place {side} $start ORDER BY place {order} LIMIT {PROBLEMS_A_PAGE})) "
        "AS places FROM passing",
        {**values, "start": chosen.before if backward else chosen.after or 0},
    )[0]
    places: list[int] = found["places"] or []
    first = found["rest"] - len(places) if backward else found["total"] - found["rest"]
    return Listing(_listed(index, places), found["total"], first)


def neighbours(index: Index, chosen: Filter, place: int) -> tuple[str | None, str | None]:
    """Ids of the problems before and after `place` that pass the filter."""
    passing, values = _passing(index, chosen)
    found = index.rows(
        "WITH sides AS (SELECT max(place) FILTER (place < $place) AS one, min(place) FILTER (place > $place) AS other "  # noqa: S608
        f"FROM ({passing})) SELECT prompt_id, place FROM page.problems, sides WHERE place IN (one, other)",
        {**values, "place": place},
    )
    sides = {row["place"] < place: row["prompt_id"] for row in found}
    return sides.get(True), sides.get(False)


def _passing(index: Index, chosen: Filter) -> tuple[str, Values]:
    """SQL of the places of the problems that pass, and its values."""
    conditions, values = chosen.of_problems()
    if chosen.marked:
        conditions.append("prompt_id IN (SELECT unnest($marked))")
        values["marked"] = sorted({override.prompt_id for override in marks(index).values()})
    return f"SELECT place FROM page.problems WHERE {' AND '.join(conditions) or 'true'}", values  # noqa: S608


def _listed(index: Index, places: Sequence[int]) -> list[Row]:
    here = {"places": places}
    rows = index.rows(
        f"SELECT place, prompt_id, left(problem, {LISTED_CHARS}) AS problem, source, domain, level, answer "  # noqa: S608
        "FROM page.problems WHERE place IN (SELECT unnest($places)) ORDER BY place",
        here,
    )
    counts = index.rows(
        "SELECT place, verdict, count(*) AS rows FROM page.rollouts "
        "WHERE place IN (SELECT unnest($places)) AND verdict IS NOT NULL GROUP BY ALL ORDER BY ALL",
        here,
    )
    marked = {override.prompt_id for override in marks(index).values()}
    for row in rows:
        row["verdicts"] = {count["verdict"]: count["rows"] for count in counts if count["place"] == row["place"]}
        row["marked"] = row["prompt_id"] in marked
    return rows


# --- a problem ------------------------------------------------------------------------------------


def problem(index: Index, prompt_id: str) -> Row | None:
    """A problem with its labels and counts; None if there is none of this id."""
    found = index.rows("SELECT place, dpo, rl, file FROM page.problems WHERE prompt_id = $id", {"id": prompt_id})
    if not found:
        return None
    place, file = found[0]["place"], found[0]["file"]
    of_id = {"id": prompt_id}
    asked = []
    if file is not None:  # a run of RL has rollouts of problems that may lie elsewhere
        where = {"file": str(index.prompt_files[file - 1].resolve()), "most": MOST_CHARS}
        asked = index.rows(_PROBLEM, of_id | where)
    counts = index.rows(
        "SELECT verdict, count(*) AS rows FROM page.rollouts WHERE place = $place GROUP BY ALL ORDER BY ALL",
        {"place": place},
    )
    return {
        **(asked[0] if asked else dict.fromkeys(_PROBLEM_COLUMNS)),
        "prompt_id": prompt_id,
        "place": place,
        "choices": _choices(("dpo", "rl"), found[0]),
        "contamination": index.rows("FROM home.contamination WHERE prompt_id = $id ORDER BY ALL", of_id),
        "repeats": index.rows(
            "SELECT cluster, method FROM home.duplicates WHERE kind = 'problem' AND id = $id AND NOT keep", of_id
        ),
        "verdicts": {row["verdict"]: row["rows"] for row in counts if row["verdict"] is not None},
        "num_rollouts": sum(row["rows"] for row in counts),
        "num_pairs": _count(index, "FROM page.pairs WHERE place = $place", {"place": place}),
    }


_PROBLEM_COLUMNS = (
    *("problem", "options", "answer", "solution", "verifier", "source", "source_id", "licence", "domain", "level"),
    *("pass_rate", "pass_rate_low", "pass_rate_high"),
)
_PROBLEM = """
SELECT left(p.problem, $most) AS problem, p.choices AS options, p.answer, left(p.solution, $most) AS solution,
       p.verifier, p.source, p.source_id, p.licence, coalesce(a.domain, p.domain) AS domain,
       coalesce(a.level, p.level) AS level, a.pass_rate, a.pass_rate_low, a.pass_rate_high
FROM (SELECT * FROM read_parquet($file) WHERE prompt_id = $id) p
LEFT JOIN (SELECT * FROM home.annotations_prompts WHERE prompt_id = $id) a USING (prompt_id)
"""


@dataclass(frozen=True)
class Rollouts:
    """One page of a problem's rollouts."""

    rows: list[Row]
    total: int
    steps: dict[int, tuple[int, int]]
    """RL step -> rollouts of the problem at that step, and how many of them are correct."""


def rollouts(index: Index, place: int, prompt_id: str, chosen: Filter) -> Rollouts:
    """The problem's rollouts that pass the filter, a page of them, with their labels; steps in order."""
    conditions, values = ([], {}) if chosen.every else chosen.of_rollouts()
    where = " AND ".join(["place = $place", *conditions])
    values["place"] = place
    page = index.rows(
        f"SELECT rollout_id, file, midtrain, sft FROM page.rollouts WHERE {where} "  # noqa: S608
        f"ORDER BY step NULLS FIRST, model, sample_index, rollout_id LIMIT {ROLLOUTS_A_PAGE} OFFSET $offset",
        {**values, "offset": (chosen.page - 1) * ROLLOUTS_A_PAGE},
    )
    rows = _texts(index, prompt_id, page)
    for row, found in zip(rows, page, strict=True):
        row["choices"] = _choices(("midtrain", "sft"), found)
        row["answer"] = _around(row["response"], row["extracted"])
    steps = index.rows(
        "SELECT step, count(*) AS rows, count(*) FILTER (verdict = 'correct') AS correct FROM page.rollouts "
        "WHERE place = $place AND step IS NOT NULL GROUP BY step ORDER BY step",
        {"place": place},
    )
    return Rollouts(
        rows,
        _count(index, f"FROM page.rollouts WHERE {where}", values),
        {row["step"]: (row["rows"], row["correct"]) for row in steps},
    )


def _texts(index: Index, prompt_id: str, found: Sequence[Row]) -> list[Row]:
    """The problem's rollouts named in `found` (`rollout_id`, `file`), in its order, with text and labels."""
    if not found:
        return []
    # The files that hold them, and no others.
    files = [index.rollout_files[number - 1] for number in sorted({row["file"] for row in found})]
    verdicts, of_verdicts = index.labels("verdicts", files)
    annotations, of_annotations = index.labels("annotations/rollouts", files)
    rewards, of_rewards = index.labels("rewards", files)
    ids = [row["rollout_id"] for row in found]
    rows = index.rows(
        _ROLLOUTS.format(verdicts=verdicts, annotations=annotations, rewards=rewards),
        {"files": [str(path.resolve()) for path in files], "id": prompt_id, "ids": ids, "most": MOST_CHARS}
        | of_verdicts
        | of_annotations
        | of_rewards,
    )
    by_id = {row["rollout_id"]: row for row in rows}
    if len(by_id) < len(ids):
        raise TablesChangedError
    return [by_id[id_] for id_ in ids]


_ROLLOUTS = """
SELECT r.rollout_id, r.model, r.sample_index, r.temperature, r.step, r.reasoning_form, r.finish_reason,
       r.upstream_label, r.source, left(r.reasoning, $most) AS reasoning, left(r.response, $most) AS response,
       coalesce(length(r.reasoning), 0) + length(r.response) AS num_chars,
       coalesce(length(r.reasoning), 0) > $most OR length(r.response) > $most AS cut,
       coalesce(a.num_tokens, r.completion_tokens) AS num_tokens, a.truncated, a.repeated_share,
       v.verdict, v.extracted, v.rule, v.verifier, v.dissent, d.cluster AS repeats,
       w.reward, w.advantage, w.group_refusal
FROM (SELECT * FROM read_parquet($files) WHERE prompt_id = $id AND rollout_id IN (SELECT unnest($ids))) r
LEFT JOIN (SELECT * FROM {verdicts} WHERE prompt_id = $id AND rollout_id IN (SELECT unnest($ids))) v USING (rollout_id)
LEFT JOIN (SELECT * FROM {annotations} WHERE prompt_id = $id AND rollout_id IN (SELECT unnest($ids))) a
    USING (rollout_id)
LEFT JOIN (SELECT * FROM {rewards} WHERE prompt_id = $id AND rollout_id IN (SELECT unnest($ids))) w USING (rollout_id)
LEFT JOIN (SELECT * FROM duplicates WHERE kind = 'trace' AND id IN (SELECT unnest($ids)) AND NOT keep) d
    ON d.id = r.rollout_id
"""


def _choices(stages: Sequence[str], row: Row) -> list[Row]:
    """What each stage decided, in the form of `selections`."""
    return [
        {"stage": stage, "refusal": None if row[stage] == "chosen" else row[stage]}
        for stage in stages
        if row[stage] is not None
    ]


def _around(response: str, extracted: str | None) -> tuple[str, str, str]:
    """The response in three parts: before the extracted answer's last occurrence, the answer, after it."""
    at = response.rfind(extracted) if extracted else -1
    if extracted is None or at < 0:
        return response, "", ""
    return response[:at], extracted, response[at + len(extracted) :]


# --- pairs ----------------------------------------------------------------------------------------


def pairs(index: Index, place: int, prompt_id: str, page: int) -> list[tuple[Row, Row]]:
    """A page of the problem's DPO pairs: the chosen and the rejected rollout, with text and labels."""
    found = index.rows(
        f"SELECT chosen_id, rejected_id FROM page.pairs WHERE place = $place "  # noqa: S608
        f"ORDER BY ALL LIMIT {PAIRS_A_PAGE} OFFSET $offset",
        {"place": place, "offset": (page - 1) * PAIRS_A_PAGE},
    )
    ids = sorted({pair[side] for pair in found for side in ("chosen_id", "rejected_id")})
    files = index.rows(
        "SELECT rollout_id, file FROM page.rollouts WHERE place = $place AND rollout_id IN (SELECT unnest($ids))",
        {"place": place, "ids": ids},
    )
    texts = {row["rollout_id"]: row for row in _texts(index, prompt_id, files)}
    return [(texts[pair["chosen_id"]], texts[pair["rejected_id"]]) for pair in found]


# --- marks ----------------------------------------------------------------------------------------


def marks(index: Index) -> overrides.Overrides:
    """What readers have marked: verdicts beside the rollouts, reference answers beside the problems."""
    return {**overrides.read(index.home), **overrides.read(index.root)}


def is_known(index: Index, prompt_id: str, rollout_id: str | None) -> bool:
    """Whether there is such a problem, with such a rollout where one is named."""
    rollout = "" if rollout_id is None else "AND place IN (SELECT place FROM page.rollouts WHERE rollout_id = $rollout)"
    values = {"id": prompt_id} | ({} if rollout_id is None else {"rollout": rollout_id})
    return _count(index, f"FROM page.problems WHERE prompt_id = $id {rollout}", values) > 0


def _count(index: Index, from_where: str, values: Values) -> int:
    return int(index.rows(f"SELECT count(*) AS n {from_where}", values)[0]["n"])
