"""Licences of the sources: which forbid to share what is made from them, and who said that it may be shared anyway."""

import re
from collections.abc import Sequence

import duckdb

from curate.counting import Row, count_rows
from pipelines.errors import UserError

_FORBIDS = (
    r"(^|-)nd(-|$)|no-?deriv",  # Creative Commons ND: what is made from it may not be shared
    r"all-rights-reserved|proprietary|confidential|internal",
    r"(no|not|non|without|forbidden|prohibit\w*)-(\w+-)?(redistribut\w*|shar(?!e-?alike)\w*|publish\w*|publication|distribut\w*)",
    r"(personal|private|research|evaluation)(-use)?-only",
)
"""Patterns over a licence's name in lower case, its words joined by `-`, that say its data may not be passed on."""

_OPEN = (
    r"(apache|mit|bsd|isc|zlib|unlicense|wtfpl|cc0|pddl|odc-by|odbl|cdla|openrail|gpl|lgpl|agpl|mpl|public-domain|"
    r"cc-by|ms-pl|ecl|afl|artistic|eupl|bsl|ncsa|postgresql|etalab)(-.*)?"
)


def sharing(licence: str | None) -> str:
    """What a licence says of sharing: `allowed`, `non-commercial`, `forbidden`, or `not known`."""
    name = normalised(licence or "")
    if any(re.search(pattern, name) for pattern in _FORBIDS):
        return "forbidden"
    if re.search(r"(^|-)nc(-|$)|non-?commercial", name):
        return "non-commercial"
    return "allowed" if re.fullmatch(_OPEN, name) else "not known"


def normalised(licence: str) -> str:
    """A licence's name in lower case with its words joined by `-`, without a leading `the` or a trailing `licence`."""
    words = re.sub(r"[\s_/,;:()]+", "-", licence.strip().lower()).strip("-")
    return re.sub(r"^the-|-licen[cs]e(d)?$", "", words)


def licences(connection: duckdb.DuckDBPyConnection) -> list[Row]:
    """Problems and rollouts by source and licence, with what the licence says of sharing."""
    rows = count_rows(
        connection,
        """
        WITH r AS (SELECT prompt_id, count(*) AS rollouts FROM rollouts GROUP BY prompt_id)
        SELECT source, licence, count(*) AS problems, CAST(coalesce(sum(rollouts), 0) AS BIGINT) AS rollouts
        FROM prompts LEFT JOIN r USING (prompt_id)
        GROUP BY source, licence ORDER BY problems DESC, source, licence
        """,
    )
    return [
        {
            "source": row["source"],
            "licence": row["licence"] or "not stated",
            "sharing": sharing(row["licence"]),
            "problems": row["problems"],
            "rollouts": row["rollouts"],
        }
        for row in rows
    ]


def refuse_unshareable(rows: Sequence[Row], accepted: Sequence[str]) -> None:
    """A `UserError` where a licence among `licences` forbids sharing and its name is not `accepted`."""
    acknowledged = {normalised(name) for name in accepted}
    blocking = [row for row in rows if row["sharing"] == "forbidden" and normalised(row["licence"]) not in acknowledged]
    if blocking:
        row = blocking[0]
        raise UserError(
            f"source `{row['source']}` ({row['problems']:,} problems): `{row['licence']}` forbids sharing",
            hint=f"leave the source out, or, if you may share it: `--accept-licence '{row['licence']}'`",
        )
