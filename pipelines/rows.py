"""Foreign rows read as problems and traces, under columns that mean what they say.

Where a source states no gold the answer is None; it is never taken from a model's own words.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pipelines.fields import (
    BadRow,
    bare_problem,
    one_exchange,
    option_letter,
    plain_solution,
    read_options,
    required_text,
    short_text,
    stated_answer,
    turn_text,
)
from pipelines.reasoning import THINK, Reasoning, join_columns, split_reasoning
from pipelines.tables import prompt_id

Fields = Mapping[str, Any]
"""One foreign row: column -> value."""


class Problem(NamedTuple):
    """What a row says of its problem."""

    text: str
    choices: tuple[str, ...] = ()
    answer: str | None = None
    solution: str | None = None
    verifier: str | None = None
    """None: `choice` where there are options, else `mathematics`."""
    source_id: str | None = None
    licence: str | None = None
    domain: str | None = None
    level: str | None = None


class Trace(NamedTuple):
    """One completion of a row."""

    split: Reasoning
    model: str | None = None
    """None where the source does not say."""
    finish_reason: str | None = None
    label: bool | None = None
    """The verdict of the source's makers."""


class Item(NamedTuple):
    """A row, read: its problem, its traces, and the completions that could not be used."""

    problem: Problem
    traces: tuple[Trace, ...] = ()
    faults: tuple[BadRow, ...] = ()


COLUMNS: dict[str, tuple[str, ...]] = {
    "problem": ("problem", "question", "Problem", "Question", "prompt"),
    "answer": ("gold", "answer", "final_answer", "expected_answer", "ground_truth", "gold_answer", "answerKey"),
    "choices": ("choices", "options"),
    "solution": ("solution", "rationale"),
    "completion": ("completion", "response", "generation", "completions", "responses", "generations"),
    "reasoning": ("reasoning", "reasoning_content"),
    "model": ("model", "model_name", "generator"),
    "label": ("label_reviewed", "label", "is_correct"),
    "finish_reason": ("finish_reason", "finish_reasons"),
    "verifier": ("verifier",),
    "id": ("id", "uuid", "unique_id", "problem_id", "_id", "source_id"),
    "licence": ("licence", "license"),
    "domain": ("domain", "subject", "topic", "type", "category", "subfield", "problem_type"),
    "level": ("level", "difficulty"),
}
"""Roles, which `--map ROLE=COLUMN` can name, and the columns they are known by."""


class Reader(NamedTuple):
    """How columns are named, and how reasoning is told from the response."""

    columns: Mapping[str, tuple[str, ...]]
    """Role -> columns that may hold it; the first that is not null counts."""
    opened: bool = False
    delimiters: tuple[str, str] = THINK

    def value(self, row: Fields, role: str) -> Any:
        """The value of a role in a row, or None."""
        return next((row[name] for name in self.columns[role] if row.get(name) is not None), None)

    def split(self, text: str, finish_reason: str | None = None, opened: bool = False) -> Reasoning:
        """`split_reasoning` with this reader's settings."""
        return split_reasoning(
            text, finish_reason=finish_reason, opened=self.opened or opened, delimiters=self.delimiters
        )


def read_plain(row: Fields, reader: Reader) -> Item:
    """A problem, with the completions of the row where it has a column for them; `BadRow` without a problem."""
    problem = read_problem(row, reader)
    if not any(column in row for column in reader.columns["completion"]):
        return Item(problem)
    completion = reader.value(row, "completion")
    completions = completion if isinstance(completion, list) else [completion]
    return item_of(problem, len(completions), lambda index: _plain_trace(row, reader, completions[index], index))


def read_problem(row: Fields, reader: Reader, text: Any = None) -> Problem:
    """The problem of a row (a text or a dialogue of one turn); `text` where it stands in no column of its own."""
    asked = reader.value(row, "problem") if text is None else text
    problem = one_exchange(asked)[0] if isinstance(asked, list) else required_text(asked, "problem")
    options = read_options(reader.value(row, "choices"))
    choices = options.texts if options else ()
    stated = reader.value(row, "answer")
    return Problem(
        text=bare_problem(problem, choices),
        choices=choices,
        answer=option_letter(stated, options) if options else stated_answer(stated),
        solution=plain_solution(reader.value(row, "solution")),
        verifier=short_text(reader.value(row, "verifier")),
        source_id=short_text(reader.value(row, "id")),
        licence=short_text(reader.value(row, "licence")),
        domain=short_text(reader.value(row, "domain")),
        level=short_text(reader.value(row, "level")),
    )


def _plain_trace(row: Fields, reader: Reader, completion: Any, index: int) -> Trace:
    finish_reason = finish_of(element(reader.value(row, "finish_reason"), index))
    reasoning = element(reader.value(row, "reasoning"), index)
    completion = turn_text(completion) if isinstance(completion, Mapping) else completion
    return Trace(
        split_columns(reasoning, completion, reader, finish_reason),
        short_text(reader.value(row, "model")),
        finish_reason,
        label_of(element(reader.value(row, "label"), index)),
    )


def item_of(problem: Problem, num_completions: int, read: Callable[[int], Trace]) -> Item:
    """The item of a problem and its completions 0, 1, ...; those that `read` refuses are its faults."""
    traces: list[Trace] = []
    faults: list[BadRow] = []
    for index in range(num_completions):
        try:
            traces.append(read(index))
        except BadRow as fault:
            faults.append(fault)
    return Item(problem, tuple(traces), tuple(faults))


def split_columns(reasoning: Any, completion: Any, reader: Reader, finish_reason: str | None = None) -> Reasoning:
    """Reasoning and response of two values, the former of which may be null; `BadRow` where both are empty."""
    if isinstance(reasoning, str) and reasoning.strip():
        response = "" if completion is None else completion
        return join_columns(reasoning, required_text(response, "completion") if response != "" else "")
    return reader.split(required_text(completion, "completion"), finish_reason)


def element(value: Any, index: int) -> Any:
    """Element `index` of a list, None beyond its end; what is not a list holds for every index."""
    if not isinstance(value, list):
        return value
    return value[index] if index < len(value) else None


_FINISHES = {"eos": "stop", "end_turn": "stop", "max_tokens": "length", "max_new_tokens": "length"}


def finish_of(value: Any) -> str | None:
    """A finish reason in our words (`stop`, `length`), another as it is; None where the source does not say."""
    reason = short_text(value)
    return None if reason is None else _FINISHES.get(reason, reason)


def label_of(value: Any) -> bool | None:
    """A verdict of the source's makers: a boolean, or Yes/No; None for anything else."""
    if isinstance(value, str):
        return {"yes": True, "no": False, "true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def prompt_row(problem: Problem, source: str, source_id: str, licence: str | None = None) -> dict[str, Any]:
    """The row of `prompts` for a problem; `source_id` and `licence` are for rows that state none."""
    return {
        "prompt_id": prompt_id(problem.text, problem.choices),
        "problem": problem.text,
        "choices": list(problem.choices) or None,
        "answer": problem.answer,
        "solution": problem.solution,
        "verifier": problem.verifier or ("choice" if problem.choices else "mathematics"),
        "source": source,
        "source_id": problem.source_id or source_id,
        "licence": problem.licence or licence,
        "domain": problem.domain,
        "level": problem.level,
    }


def not_unicode(row: Mapping[str, Any]) -> str | None:
    """The column of a row that holds half a surrogate, which no table can store; None where all is well."""
    for column, value in row.items():
        for text in value if isinstance(value, list) else (value,):
            if isinstance(text, str):
                try:
                    text.encode()
                except UnicodeEncodeError:
                    return column
    return None
