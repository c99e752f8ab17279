r"""Multiple choice: does the response choose the option that the reference names?

A choice may be a letter in any dress (`(B).`, `\boxed{\text{B}}`, `Answer: B`), or the text or value of
an option. The article "A" and the pronoun "I" are no choices, nor is a letter that is ruled out ("not A").
"""

import re
from collections.abc import Iterator
from functools import lru_cache

from verifiers.equality import same_answer
from verifiers.extraction import boxed_answer, final_part, json_answer, statement_value
from verifiers.latex import plain
from verifiers.mathematics import storable
from verifiers.verdict import VERSIONS, Outcome, Question, Verdict

NAME = VERSIONS["choice"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTERS_UNTOLD = 10
"""Letters that count where the options are not given: A to J."""
_MAX_STATEMENTS = 8
_STATEMENT_CHARS = 300


def verify(question: Question, response: str) -> Verdict:
    """The verdict on the option that `response` chooses."""
    fault = gold_fault(question)
    if fault is not None:
        return Verdict(Outcome.GOLD_UNREADABLE, None, fault, NAME)
    text = final_part(response)
    if text is None:
        return Verdict(Outcome.NO_ANSWER, None, "unclosed_reasoning", NAME)
    gold = gold_letter(question)
    for rule, stated in _statements(text):
        letter, how = _chosen(stated, question.choices)
        if letter is not None:
            outcome = Outcome.CORRECT if letter == gold else Outcome.INCORRECT
            return Verdict(outcome, storable(stated.strip()[:_STATEMENT_CHARS]), f"{rule}:{how}", NAME)
        if rule in ("json", "boxed") and question.choices:
            return Verdict(Outcome.INCORRECT, storable(stated), f"{rule}:no_option", NAME)
    return Verdict(Outcome.NO_ANSWER, None, "nothing_chosen", NAME)


def gold_fault(question: Question) -> str | None:
    """Why the reference cannot be used, or None: it must name one of the options."""
    if not question.answer.strip():
        return "no_gold"
    letter = gold_letter(question)
    if letter is None:
        return "gold_names_no_option"
    if len(question.choices) == 1:
        return "one_option"
    return None


@lru_cache(maxsize=65536)
def gold_letter(question: Question) -> str | None:
    """The letter that the reference answer names; None where it names none of the options."""
    answer = question.answer.strip()
    letters = _letters(question.choices)
    lettered = re.match(r"\(?([A-Z])(?:[).:\s]|$)", answer)
    if lettered and lettered.group(1) in letters:
        return lettered.group(1)
    for _, stated in _statements(answer):
        letter, _ = _chosen(stated, question.choices)
        if letter is not None:
            return letter
    return _option_of(answer, question.choices)


def _letters(choices: tuple[str, ...]) -> str:
    return LETTERS[: len(choices) or _LETTERS_UNTOLD]


# --- what the response states ---------------------------------------------------------------------

_STATEMENT = re.compile(
    r"\b(?:answer|option|choice)\b[^.\n:=$\\]{0,60}?\b(?:is|are|be|choose|select)\b"
    r"|\b(?:answer|option|choice)\b[ \t]*\**[ \t]*[:=：]"
    r"|\b(?:réponse|respuesta|antwort|risposta|resposta)\b\s*(?:est|es|ist|è|é|:)"
    r"|答案\s*(?:是|为|：|:)",
    re.IGNORECASE,
)
_PICKED = re.compile(
    r"\b(?:option|choice|answer)\s*\(?([A-Z])\)?\s*(?:is|seems)\s*(?:the\s*)?(?:only\s*)?(?:correct|right|best|answer)",
    re.IGNORECASE,
)
_LEADING = re.compile(r"^[\s*(\[{$\\]*([A-Z])(?:[)\]}*$]|[.:,。，、](?!\w)|\s*$|[^\x00-\x7f])")
_CLOSING = re.compile(r"(?:\(([A-Z])\)|(?<![\w'’])([A-Z])(?![\w'’]))[\s).*。!]*$")


def _statements(text: str) -> Iterator[tuple[str, str]]:
    """What may be the choice, most trusted first: rule and text."""
    for rule, find in (("json", json_answer), ("boxed", boxed_answer)):
        found = find(text)
        if found:
            yield rule, found
    picked = list(_PICKED.finditer(text))
    for match in reversed(list(_STATEMENT.finditer(text))[-_MAX_STATEMENTS:]):
        if picked and picked[-1].start() >= match.start():
            break
        yield "stated", text[match.end() : match.end() + _STATEMENT_CHARS].lstrip(" \t\n:*_")
    if picked:
        yield "stated", picked[-1].group(1).upper()
    leading = _LEADING.match(text)
    if leading:
        yield "leading", leading.group(1)
    sentence = re.split(r"[.!?。]\s|\n", text.strip()[-_STATEMENT_CHARS:])[-1]
    closing = _CLOSING.search(sentence)
    if closing and not _FORMULA.search(sentence) and not _RULED_OUT.search(sentence[: closing.start()]):
        yield "last", closing.group(1) or closing.group(2)


_FORMULA = re.compile(r"[\\$=<>^]")

# --- from a statement to a letter -----------------------------------------------------------------

_CANDIDATE = re.compile(r"(?<![A-Za-z0-9'’\\-])([(\[{*]*)([A-Z])([)\]}*]*)(?![A-Za-z0-9'’-])")
_RULED_OUT = re.compile(
    r"(?:\bnot|n['’]t be|\bcannot be|\bnon|\bnor|\brather than|\bexcept|不是)\s*"
    r"(?:option|answer|choice)?\s*(?:[(\[{*]*[A-Z][)\]}*]*\s*(?:,|or|and|nor)\s*)*$"
)
_WORD_AFTER = re.compile(r"\s+[a-z]")
_FORMULA_AFTER = re.compile(r"\(|\s*[=+*/^_<>|∪∩-]\s*[\w\\(]")
_LINK_AFTER = re.compile(r"\s+(?:because|since|as|and|or|but|is|was|seems|with|which|for|non)\b")


def _chosen(statement: str, choices: tuple[str, ...]) -> tuple[str | None, str]:
    """The letter of the option that a statement chooses, and how it is told."""
    letter = letter_in(statement, _letters(choices))
    if letter is not None:
        return letter, "letter"
    option = _option_of(statement_value(statement[:_STATEMENT_CHARS]) or statement, choices)
    return option, "option_text"


def letter_in(statement: str, letters: str) -> str | None:
    """The first letter in a statement that is chosen, not an article, not ruled out and not part of a formula."""
    text = plain(statement.partition("\n\n")[0][:_STATEMENT_CHARS]).replace('"', " ")
    alone = re.fullmatch(r"[\s(\[{*]*([A-Za-z])[\s)\]}*.,:]*", text)
    if alone:
        return alone.group(1).upper() if alone.group(1).upper() in letters else None
    for match in _CANDIDATE.finditer(text):
        opening, letter, after = match.group(1), match.group(2), text[match.end() :]
        if letter not in letters or _RULED_OUT.search(text[max(0, match.start() - 40) : match.start()]):
            continue
        is_word = letter in "AI" and not opening and _WORD_AFTER.match(after) and not _LINK_AFTER.match(after)
        if opening or not (is_word or _FORMULA_AFTER.match(after)):
            return letter
    return None


def _option_of(answer: str, choices: tuple[str, ...]) -> str | None:
    """The letter of the one option that equals `answer` in text or value; None where none or several do."""
    equal = [
        letter
        for letter, option in zip(LETTERS, choices, strict=False)
        if answer.strip() == option.strip() or same_answer(option, answer)[0] is True
    ]
    return equal[0] if len(equal) == 1 else None
