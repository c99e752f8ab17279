"""Recognise the layout of a foreign dataset by its columns: a name, what shows it, how a row is read.

| layout | shown by | gold | traces |
| --- | --- | --- | --- |
| gsm8k | `question`, `answer` with `####` | after the `####` | |
| openr1 | `problem`, `generations`, `correctness_math_verify` | `answer` | every generation, labelled |
| metadata | `problem`, `deepseek_reasoning`, `deepseek_solution` | last box of `ground_truth_solution` | one |
| conversations | `conversations` (OpenThoughts, Bespoke-Stratos) | `answer` where there is one | one |
| messages | `messages` (chat rows, our midtrain and sft shards) | `answer` where there is one | one |
| preferences | `prompt`, `chosen`, `rejected` (our dpo shards) | | two, labelled true and false |
| s1k | `question` and a `…thinking_trajector…` column | `answer`, else `solution` (its box, or all of it) | by model |
| gpqa | `Question`, `Correct Answer`, `Incorrect Answer 1` | its letter after ordering | |
| limo | exactly `question`, `solution`, `answer` | `answer` | the solution: LIMO's are models' |
| math | `problem`, `solution`, no answer | last box of the solution | |
| rollouts | a problem and a completion column | `gold` or `answer` | one, or one for each of a list |
| problems | a problem column (with `choices`: a multiple choice); our prompts, our rl shards | `answer` | |
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.errors import UserError
from pipelines.fields import (
    BadRow,
    bare_answer,
    boxed_answer,
    hash_answer,
    one_exchange,
    plain_solution,
    required_text,
    short_text,
    turn_text,
)
from pipelines.reasoning import Reasoning
from pipelines.rows import (
    COLUMNS,
    Fields,
    Item,
    Problem,
    Reader,
    Trace,
    element,
    finish_of,
    item_of,
    label_of,
    read_plain,
    read_problem,
    split_columns,
)
from pipelines.tables import content_id, prompt_id

DEEPSEEK_R1 = "deepseek-ai/DeepSeek-R1"
GEMINI = "gemini-2.0-flash-thinking"


class Layout(NamedTuple):
    """A recognised layout."""

    name: str
    fits: Callable[[frozenset[str], Sequence[Fields]], bool]
    """`(columns, first rows) -> bool`."""
    read: Callable[[Fields, Reader], Item]
    """Raises `BadRow` for a row that cannot be used."""


def recognise(name: str, sample: Sequence[Fields], mapping: Mapping[str, str] | None = None) -> tuple[Layout, Reader]:
    """The layout of the dataset called `name` that begins with the rows in `sample`, and a reader for it.

    `mapping` (role -> column) settles the layout: roles it does not name keep their usual columns,
    but for those it uses. `UserError` for an unknown layout, role or column.
    """
    columns = frozenset(column for row in sample for column in row)
    if mapping:
        return Layout("mapped", lambda *_: True, read_plain), Reader(_mapped(name, columns, mapping))
    for layout in LAYOUTS:
        if layout.fits(columns, sample):
            return layout, Reader(COLUMNS)
    raise UserError(
        f"`{name}` has columns {_listed(columns)}: no known layout",
        hint="name them, e.g., --map problem=COLUMN,answer=COLUMN,completion=COLUMN",
    )


def _mapped(name: str, columns: frozenset[str], mapping: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    for role, column in mapping.items():
        if role not in COLUMNS:
            raise UserError(f"`--map {role}={column}`: no role `{role}`", hint=f"roles: {', '.join(COLUMNS)}")
        if column not in columns:
            raise UserError(f"`{name}` has no column `{column}`", hint=f"its columns: {_listed(columns)}")
    taken = set(mapping.values())
    usual = {role: tuple(column for column in names if column not in taken) for role, names in COLUMNS.items()}
    return {**usual, **{role: (column,) for role, column in mapping.items()}}


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(f"`{column}`" for column in sorted(columns)) or "none"


# --- what shows a layout --------------------------------------------------------------------------


def _has(*names: str) -> Callable[[frozenset[str], Sequence[Fields]], bool]:
    return lambda columns, _sample: columns >= set(names)


def _has_role(*roles: str) -> Callable[[frozenset[str], Sequence[Fields]], bool]:
    return lambda columns, _sample: all(columns & set(COLUMNS[role]) for role in roles)


def _is_gsm8k(columns: frozenset[str], sample: Sequence[Fields]) -> bool:
    return columns >= {"question", "answer"} and any("####" in str(row.get("answer")) for row in sample)


def _is_s1k(columns: frozenset[str], _sample: Sequence[Fields]) -> bool:
    return "question" in columns and any(trajectory in columns for _, trajectory, *_ in _S1K_TRACES)


def _is_math(columns: frozenset[str], _sample: Sequence[Fields]) -> bool:
    return columns >= {"problem", "solution"} and not columns & set(COLUMNS["answer"] + COLUMNS["completion"])


# --- rows -----------------------------------------------------------------------------------------


def _read_gsm8k(row: Fields, reader: Reader) -> Item:
    item = read_plain(row, reader)
    worked = short_text(row.get("answer"))
    problem = item.problem._replace(answer=hash_answer(worked), solution=plain_solution(worked))
    return item._replace(problem=problem)


def _read_math(row: Fields, reader: Reader) -> Item:
    problem = read_problem(row, reader)
    return Item(problem._replace(answer=boxed_answer(problem.solution)))


def _read_limo(row: Fields, reader: Reader) -> Item:
    problem = read_problem(row, reader)._replace(solution=None)
    return item_of(problem, 1, lambda _: Trace(reader.split(required_text(row.get("solution"), "completion"))))


def _read_openr1(row: Fields, reader: Reader) -> Item:
    generations = row.get("generations")
    if not isinstance(generations, list):
        raise BadRow("null_completion", f"`generations` is no list: {str(generations)[:500]}")

    def trace(index: int) -> Trace:
        finish_reason = finish_of(element(row.get("finish_reasons"), index))
        # "Not complete" says that the reasoning was never closed, whatever became of its tags.
        cut_off = element(row.get("is_reasoning_complete"), index) is False
        text = required_text(generations[index], "completion")
        label = label_of(element(row.get("correctness_math_verify"), index))
        return Trace(reader.split(text, finish_reason, opened=cut_off), DEEPSEEK_R1, finish_reason, label)

    return item_of(read_problem(row, reader), len(generations), trace)


def _read_metadata(row: Fields, reader: Reader) -> Item:
    solution = plain_solution(row.get("ground_truth_solution"))
    problem = read_problem(row, reader)._replace(solution=solution, answer=boxed_answer(solution))
    reasoning, answer = row.get("deepseek_reasoning"), row.get("deepseek_solution")
    return item_of(problem, 1, lambda _: Trace(split_columns(reasoning, answer, reader), DEEPSEEK_R1))


def _read_dialogue(row: Fields, reader: Reader) -> Item:
    asked, answered = one_exchange(row.get("conversations") or row.get("messages"))
    problem = read_problem(row, reader, asked)
    model = short_text(reader.value(row, "model"))
    finish_reason, label = finish_of(row.get("finish_reason")), label_of(reader.value(row, "label"))

    def trace(_: int) -> Trace:
        assert answered is not None
        return Trace(_split_turn(answered, reader, finish_reason), model, finish_reason, label)

    return item_of(problem, 0 if answered is None else 1, trace)


def _split_turn(turn: Mapping[str, Any], reader: Reader, finish_reason: str | None = None) -> Reasoning:
    reasoning = next((turn[key] for key in ("reasoning", "reasoning_content", "thinking") if turn.get(key)), None)
    return split_columns(reasoning, turn_text(turn), reader, finish_reason)


def _read_preferences(row: Fields, reader: Reader) -> Item:
    """`prompt`, `chosen` and `rejected` as texts or as messages (which may repeat the prompt)."""
    asked = row.get("prompt")
    text = asked if isinstance(asked, str) else one_exchange(asked)[0]

    def trace(index: int) -> Trace:
        side = row.get(("chosen", "rejected")[index])
        last = side[-1] if isinstance(side, list) and side else side
        split = _split_turn(last, reader) if isinstance(last, Mapping) else split_columns(None, last, reader)
        return Trace(split, short_text(reader.value(row, "model")), label=index == 0)

    return item_of(read_problem(row, reader, text), 2, trace)


_S1K_TRACES = (
    ("deepseek", "deepseek_thinking_trajectory", "deepseek_attempt", DEEPSEEK_R1),
    ("gemini", "gemini_thinking_trajectory", "gemini_attempt", GEMINI),
    ("s1k", "thinking_trajectories", "attempt", GEMINI),
)
"""Grade's prefix, reasoning column, response column, model; the last is s1K's first form."""


def _read_s1k(row: Fields, reader: Reader) -> Item:
    problem = read_problem(row, reader)
    if problem.answer is None:
        answer = boxed_answer(problem.solution) or bare_answer(problem.solution)
        problem = problem._replace(answer=answer)
    present = [trace for trace in _S1K_TRACES if row.get(trace[1]) is not None]

    def trace(index: int) -> Trace:
        prefix, trajectory, attempt, model = present[index]
        reasoning = short_text(row.get(trajectory), separator="\n\n")
        label = label_of(row.get(f"{prefix}_grade"))
        return Trace(split_columns(reasoning, element(row.get(attempt), 0), reader), model, label=label)

    return item_of(problem, len(present), trace)


def _read_gpqa(row: Fields, reader: Reader) -> Item:
    """The right answer stands first in the source: options are put in the order of a hash of prompt and text."""
    wrong = [short_text(row.get(f"Incorrect Answer {number}")) for number in (1, 2, 3)]
    right = short_text(row.get("Correct Answer"))
    options = [text for text in (right, *wrong) if text is not None]
    if right is None or len(options) < 2:
        raise BadRow("empty_choice", str([right, *wrong])[:500])
    problem = read_problem(row, reader)
    seed = prompt_id(problem.text, sorted(options))
    options.sort(key=lambda text: content_id(seed, text))
    return Item(
        Problem(
            text=problem.text,
            choices=tuple(options),
            answer="ABCD"[options.index(right)],
            solution=plain_solution(row.get("Explanation")),
            source_id=short_text(row.get("Record ID")),
            domain=short_text(row.get("Subdomain") or row.get("High-level domain")),
        )
    )


LAYOUTS: tuple[Layout, ...] = (
    Layout("gsm8k", _is_gsm8k, _read_gsm8k),
    Layout("openr1", _has("problem", "generations", "correctness_math_verify"), _read_openr1),
    Layout("metadata", _has("problem", "deepseek_reasoning", "deepseek_solution"), _read_metadata),
    Layout("conversations", _has("conversations"), _read_dialogue),
    Layout("messages", _has("messages"), _read_dialogue),
    Layout("preferences", _has("prompt", "chosen", "rejected"), _read_preferences),
    Layout("s1k", _is_s1k, _read_s1k),
    Layout("gpqa", _has("Question", "Correct Answer", "Incorrect Answer 1"), _read_gpqa),
    Layout("limo", lambda columns, _: columns == {"question", "solution", "answer"}, _read_limo),
    Layout("math", _is_math, _read_math),
    Layout("rollouts", _has_role("problem", "completion"), read_plain),
    Layout("problems", _has_role("problem"), read_plain),
)
"""In the order in which they are tried."""
