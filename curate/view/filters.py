"""What the list is narrowed to: read from an address, written into one, and as conditions for DuckDB."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self
from urllib.parse import urlencode

from pipelines.tables import STAGES

Values = dict[str, Any]

_ID = re.compile(r"[0-9a-f]{24}")


@dataclass(frozen=True)
class Filter:
    """What a problem, and at least one of its rollouts, must be; empty strings and None mean everything."""

    text: str = ""
    """Part of the problem, letter case aside, or the id of a problem or rollout."""
    source: str = ""
    domain: str = ""
    level: str = ""
    marked: bool = False
    """Problems that a reader has marked."""
    choice: str = ""
    """`sft:chosen`, or `sft:` and the reason of a refusal."""
    verdict: str = ""
    rule: str = ""
    model: str = ""
    step: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None

    after: int | None = None
    """The place after which the page begins."""
    before: int | None = None
    """The place before which the page ends, where it does not begin after one."""
    page: int = 1
    """Of a problem's rollouts."""
    every: bool = False
    """Whether a problem is shown with all its rollouts, not only those that pass."""

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> Self:
        """The filter of an address; a number that is none is as if it were not there."""
        given: Values = {}
        for field in fields(cls):
            value = query.get(field.name, "").strip()
            if field.type is str:
                given[field.name] = value
            elif field.type is bool:
                given[field.name] = value == "1"
            elif value.isdecimal() and value.isascii() and len(value) < 10:
                given[field.name] = int(value)
        return cls(**given | {"page": max(1, given.get("page", 1))})

    def address(self, **changes: Any) -> str:
        """The query part of the address of this filter, changed; where the page begins is left out unless given."""
        at = replace(self, **{"after": None, "before": None, "page": 1, "every": False} | changes)
        given = {
            field.name: "1" if value is True else value
            for field in fields(at)
            if (value := getattr(at, field.name)) != field.default
        }
        return f"?{urlencode(given)}" if given else ""

    @property
    def narrows(self) -> bool:
        """Whether anything is filtered."""
        return bool(self.address())

    @property
    def narrows_rollouts(self) -> bool:
        """Whether a problem's rollouts may pass in part."""
        return len(self.of_rollouts()[0]) > 0

    def of_problems(self) -> tuple[list[str], Values]:
        """Conditions on `page.problems`, in SQL of ours, and their values: nothing of an address becomes SQL."""
        conditions, values = [], {}
        if _ID.fullmatch(self.text):
            conditions.append(
                "(prompt_id = $text OR place IN (SELECT place FROM page.rollouts WHERE rollout_id = $text))"
            )
            values["text"] = self.text
        elif self.text:
            conditions.append("contains(words, lower($text))")
            values["text"] = self.text
        for name in ("source", "domain", "level"):
            if value := getattr(self, name):
                conditions.append(f"{name} = ${name}")
                values[name] = value
        stage, _, reason = self.choice.partition(":")
        if stage in _OF_PROBLEMS:
            conditions.append(f"{stage} = TRY_CAST($choice AS page.word)")
            values["choice"] = reason
        elif self.choice and stage not in STAGES:
            conditions.append("false")
        rollouts, of_rollouts = self.of_rollouts()
        if rollouts:
            passing = " AND ".join(rollouts)
            conditions.append(f"place IN (SELECT place FROM page.rollouts WHERE {passing})")  # noqa: S608
        return conditions, values | of_rollouts

    def of_rollouts(self) -> tuple[list[str], Values]:
        """Conditions on `page.rollouts`, and their values."""
        conditions, values = [], {}
        for name in ("verdict", "rule", "model"):
            if value := getattr(self, name):
                conditions.append(f"{name} = TRY_CAST(${name} AS page.word)")
                values[name] = value
        stage, _, reason = self.choice.partition(":")
        if stage in STAGES and stage not in _OF_PROBLEMS:
            conditions.append(f"{stage} = TRY_CAST($choice AS page.word)")
            values["choice"] = reason
        for name, condition in _NUMBERS.items():
            if (number := getattr(self, name)) is not None:
                conditions.append(condition)
                values[name] = number
        return conditions, values


_OF_PROBLEMS = ("dpo", "rl")
"""Stages that choose problems; the others choose rollouts."""
_NUMBERS = {
    "step": "step = $step",
    "min_tokens": "num_tokens >= $min_tokens",
    "max_tokens": "num_tokens <= $max_tokens",
}
