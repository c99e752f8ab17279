r"""Read single fields of foreign rows: text, golds, options, dialogues. Nothing is guessed."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any, NamedTuple

from pipelines.conversation import INSTRUCTIONS


class BadRow(Exception):  # noqa: N818 - a row's refusal, not a failure
    """A row, or a completion in it, that cannot be used: a reason and the text that shows it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


# --- text -----------------------------------------------------------------------------------------


def required_text(value: Any, field: str) -> str:
    """`value` as the text of `field`; a `BadRow` such as `empty_problem` where there is none to read."""
    if value is None:
        raise BadRow(f"null_{field}", f"the {field} is null or missing")
    if not isinstance(value, str):
        raise BadRow(f"not_text_{field}", f"the {field} is a {type(value).__name__}: {str(value)[:500]}")
    if not value.strip():
        raise BadRow(f"empty_{field}", repr(value[:500]))
    if all(unicodedata.category(character)[0] in "CZ" for character in value):
        raise BadRow(f"unprintable_{field}", repr(value[:500]))
    return value


def short_text(value: Any, separator: str = ", ") -> str | None:
    """A number, a word or a list of them as text; None for null, NaN, blank or anything else."""
    if isinstance(value, float):
        if value != value:
            return None
        value = int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, str | int | float):
        return str(value).strip() or None
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        parts = [part for part in (short_text(item) for item in value) if part is not None]
        return separator.join(parts) or None
    return None


_WRAPPERS = (
    INSTRUCTIONS["mathematics"],
    r"Let's think step by step and output the final answer within \boxed{}.",
    r"Return your final response within \boxed{}.",
    r"Solve the following math problem. Make sure to put the answer (and only answer) inside \boxed{}.",
)
"""Instructions that datasets put around their problems; a sampler and a shard add their own."""
_CHOICE_WRAPPER = re.compile(
    re.escape(INSTRUCTIONS["choice"].replace("{{}}", "{}")).replace(re.escape("{letters}"), "[A-Z](?:/[A-Z])*")
    + r"\s*$"
)


def bare_problem(text: str, choices: Sequence[str] = ()) -> str:
    """A problem without a known instruction before or behind it, and without `choices` printed under it."""
    bare = _CHOICE_WRAPPER.sub("", text.strip())
    for wording in _WRAPPERS:
        bare = bare.removeprefix(wording).removesuffix(wording).strip()
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False))
    return bare.removesuffix(options).strip() or text


# --- golds ----------------------------------------------------------------------------------------

_NOT_ANSWERS = frozenset({"proof", "not found", "notfound"})
"""What NuminaMath and its descendants write where a problem has no final answer."""
_CALCULATION = re.compile(r"<<[^<>\n]*>>")
_TWO_WORDS = re.compile(r"[A-Za-z]{2,}\s+[A-Za-z]{2,}")


def stated_answer(value: Any) -> str | None:
    """A gold that its own column states, as text; None where the column says that there is none."""
    answer = short_text(value)
    return None if answer is None or answer.lower() in _NOT_ANSWERS else answer


def hash_answer(solution: str | None) -> str | None:
    """What follows the last `####` of a GSM8K solution, as written (`72,000`)."""
    if solution is None or "####" not in solution:
        return None
    return stated_answer(solution.rpartition("####")[2])


def boxed_answer(solution: str | None) -> str | None:
    r"""Content of the last `\boxed{}` (or `\fbox{}`, `\boxed 5`) of a solution; None where none is whole."""
    if solution is None:
        return None
    start = max(solution.rfind(r"\boxed"), solution.rfind(r"\fbox"))
    if start < 0:
        return None
    rest = solution[start:].removeprefix(r"\boxed").removeprefix(r"\fbox").lstrip()
    if not rest.startswith("{"):
        word = re.match(r"[^\s$.,;]+", rest)
        return stated_answer(word[0]) if word else None
    depth, escaped = 0, False
    for index, character in enumerate(rest):
        if not escaped:
            depth += (character == "{") - (character == "}")
        if depth == 0:
            return stated_answer(rest[1:index])
        escaped = character == "\\" and not escaped
    return None


def bare_answer(solution: str | None) -> str | None:
    """A solution that is nothing but an answer: one short line without words in a row; else None."""
    text = short_text(solution)
    if text is None or "\n" in text or len(text) > 64 or _TWO_WORDS.search(text):
        return None
    return stated_answer(text)


def plain_solution(value: Any) -> str | None:
    """A worked solution; GSM8K's calculator marks (`<<48/2=24>>`) and `####` line are taken out."""
    solution = short_text(value, separator="\n\n")
    if solution is not None and "####" in solution:
        solution = _CALCULATION.sub("", solution.rpartition("####")[0]).strip() or None
    return solution


# --- options --------------------------------------------------------------------------------------


class Options(NamedTuple):
    """The options of a multiple choice, as the source labels them."""

    labels: tuple[str, ...]
    texts: tuple[str, ...]


def read_options(value: Any) -> Options | None:
    """Options from a list of texts, a dict letter -> text, or `{text, label}`; None where there are fewer than two."""
    labels: list[Any] | None = None
    if isinstance(value, Mapping):
        if {"text", "label"} <= value.keys() and isinstance(value["text"], Sequence):
            texts, labels = list(value["text"]), list(value["label"])
        else:
            labels = sorted(key for key in value if value[key] is not None)
            texts = [value[label] for label in labels]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        texts = list(value)
        if texts and all(isinstance(item, Mapping) and {"text", "label"} <= item.keys() for item in texts):
            texts, labels = [item["text"] for item in texts], [item["label"] for item in texts]
    else:
        return None
    written = [short_text(text) for text in texts]
    if len(written) < 2 or len(written) > len(ascii_uppercase):
        return None
    if any(text is None for text in written):
        raise BadRow("empty_choice", str(value)[:500])
    if labels is None or len(labels) != len(written):
        labels = list(ascii_uppercase[: len(written)])
    return Options(tuple(str(label).strip() for label in labels), _unlettered([text for text in written if text]))


def _unlettered(texts: Sequence[str]) -> tuple[str, ...]:
    """Option texts without the letter that some sets write in front of each (`A)21`)."""
    patterns = [re.compile(rf"\(?{letter}[).:]\s*(?=\S)") for letter in ascii_uppercase[: len(texts)]]
    if all(pattern.match(text) for pattern, text in zip(patterns, texts, strict=True)):
        return tuple(pattern.sub("", text, count=1) for pattern, text in zip(patterns, texts, strict=True))
    return tuple(texts)


def option_letter(answer: Any, options: Options) -> str | None:
    """The letter (A, B, ... in the order of the options) of an answer given as label, zero-based index or text.

    An answer that names no option stays as it is written: the verifier calls it unreadable.
    """
    if isinstance(answer, int) and not isinstance(answer, bool) and str(answer) not in options.labels:
        return ascii_uppercase[answer] if 0 <= answer < len(options.texts) else str(answer)
    stated = stated_answer(answer)
    if stated is None:
        return None
    label = re.fullmatch(r"\(?(\w+)\)?[.:)]?", stated)
    for candidates, wanted in ((options.labels, label and label[1]), (options.texts, stated)):
        if wanted is not None and candidates.count(wanted) == 1:
            return ascii_uppercase[candidates.index(wanted)]
    return stated


# --- dialogues ------------------------------------------------------------------------------------

_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}


def one_exchange(messages: Any) -> tuple[str, Mapping[str, Any] | None]:
    """The user's text and the assistant's turn (None where nobody answered yet) of a dialogue of one exchange.

    Turns are `role`/`content` or `from`/`value`; system turns are left out.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise BadRow("bad_messages", f"not a list of turns: {str(messages)[:500]}")
    asked: list[Mapping[str, Any]] = []
    answered: list[Mapping[str, Any]] = []
    for turn in messages:
        if not isinstance(turn, Mapping):
            raise BadRow("bad_messages", f"a turn is not an object: {str(turn)[:500]}")
        role = str(turn.get("role", turn.get("from")))
        role = _ROLES.get(role, role)
        if role not in ("system", "user", "assistant"):
            raise BadRow("bad_messages", f"a turn of role {role[:100]!r}")
        if role != "system":
            (asked if role == "user" else answered).append(turn)
    if len(asked) > 1 or len(answered) > 1:
        raise BadRow("several_turns", f"{len(asked)} questions and {len(answered)} answers")
    if not asked:
        raise BadRow("null_problem", "no user turn")
    return required_text(turn_text(asked[0]), "problem"), answered[0] if answered else None


def turn_text(turn: Mapping[str, Any]) -> Any:
    """The content of a turn; the text parts of one that comes in parts."""
    content = turn.get("content", turn.get("value"))
    if isinstance(content, Sequence) and not isinstance(content, str):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return content
