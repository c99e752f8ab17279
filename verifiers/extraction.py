r"""The final answer that a response states, and the rule that found it.

Rules, in order of trust: a JSON object with an `answer` field; `<answer>` tags; a final answer stated again
after the last box; the last `\boxed{}`; `####` on the last line; the last "the answer is ..."; a response
that is nothing but an answer; the last formula or number. A last box that never closes is no answer, whatever
else is there. Every pattern is linear in the text: a response is hostile until shown otherwise.
"""

import json
import re
from dataclasses import dataclass

MAX_ANSWER_CHARS = 4000
"""Nobody states a longer final answer; what is longer is text that swallowed its closing brace."""

_TAIL_CHARS = 2000
"""How far from the end a formula or number may stand and still be called final."""


@dataclass(frozen=True, slots=True)
class Extraction:
    """The answer as written, or None; `rule` names what found it, or why nothing was found."""

    answer: str | None
    rule: str


def extract_answer(response: str) -> Extraction:
    """The final answer of a response; reasoning in `<think>` tags and text after the end of turn do not count."""
    text = final_part(response)
    if text is None:
        return Extraction(None, "unclosed_reasoning")
    for rule, find in _RULES:
        found = find(text)
        if found is None and rule == "boxed" and _boxes(text):
            return Extraction(None, "unterminated_box")
        if found is None:
            continue
        answer = found.strip()
        if not answer or len(answer) > MAX_ANSWER_CHARS:
            return Extraction(None, f"empty_{rule}" if not answer else f"overlong_{rule}")
        return Extraction(answer, rule)
    return Extraction(None, "nothing_stated")


_END_OF_TURN = re.compile(r"<\|(?:im_end|im_start|endoftext|eot_id|end|user|return)\|>|<｜end▁of▁sentence｜>")


_NEXT_QUESTION = re.compile(r"\n(?:Question|Q|Problem)\s?:")


def final_part(response: str) -> str | None:
    """`response` after its reasoning and up to its end of turn; None where the reasoning never ends."""
    _, closed, rest = response.rpartition("</think>")
    if not closed and "<think>" in response:
        return None
    end = _END_OF_TURN.search(rest)
    rest = rest[: end.start()] if end else rest
    runaway = _NEXT_QUESTION.search(rest)
    # A base model that goes on with a question of its own has answered the one it was asked.
    if runaway and (_STATEMENT.search(rest, 0, runaway.start()) or _BOX.search(rest, 0, runaway.start())):
        return rest[: runaway.start()]
    return rest


# --- boxes ----------------------------------------------------------------------------------------

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*|(?<![\\A-Za-z])boxed(?=\{)")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_MAX_BOXES = 32
_ROUNDED = re.compile(r"\s*(?:\\approx|≈)")
_ROUNDED_AFTER = re.compile(r"[\s$\\()]*(?:\\approx|≈)[\s$\\()]*")

# What may stand between two boxes that are one answer: `\boxed{1} papers and \boxed{2} bins`.
_GAP_CHARS = 80
_MARKUP = re.compile(r"\\(?:text|mbox|quad|qquad)(?![a-zA-Z])|\\[()\[\],;! ]|[\s{}$.*~]+(?=\S)|[{}$*]")
_JOINT = re.compile(
    r"^(?:\s*[^\W\d]+){0,4}\s*(?:\(\w\)\s*)?(?:(?:,|;|&|and|or)\s*)+(?:[a-zA-Z]\w*(?:_\S+|\([^()]*\))?\s*=)?\s*$"
)
_SENTENCE_END = re.compile(r"[.!?][\s$\\)\]]*\s|\n\s*\n")
_TURN = re.compile(r"\b(?:so|thus|then|therefore|hence|but|not|no|instead|actually|wait|gives?)\b", re.IGNORECASE)


def boxed_answer(text: str) -> str | None:
    """The content of the last box; several boxes of one closing sentence are joined by commas.

    None where there is no box, or where the last one never closes: the response was cut off.
    """
    answers: list[str] = []
    following = len(text)
    for match in reversed(_boxes(text)):
        box = _box_content(text, match.end(), following)
        if box is None:
            break
        content, end = box
        gap = text[end:following]
        if answers and _is_rounding(answers[-1], gap):
            # `\boxed{\sqrt 2} \approx \boxed{1.414}`: what stands before the rounding is the answer.
            answers.clear()
        elif answers and not _joined(gap):
            break
        answers.append(content)
        following = match.start()
    if not answers:
        return None
    return ", ".join(dict.fromkeys(answer.strip() for answer in reversed(answers)))


def _boxes(text: str) -> list[re.Match[str]]:
    """Where the last `_MAX_BOXES` boxes begin."""
    # Looking for `box` from the end first costs a hundredth of the pattern's pass over a long text.
    start = len(text)
    for _ in range(_MAX_BOXES):
        at = text.rfind("box", 0, start)
        if at < 0:
            break
        start = at
    return list(_BOX.finditer(text, max(0, start - len("\\frame"))))


def _is_rounding(answer: str, gap: str) -> bool:
    """Whether a box only rounds the one that stands before it, with `gap` between them."""
    if _ROUNDED_AFTER.fullmatch(gap):
        return True
    return len(gap) <= _GAP_CHARS and _ROUNDED.match(answer) is not None and not _SENTENCE_END.search(gap)


def _box_content(text: str, start: int, stop: int) -> tuple[str, int] | None:
    """Content and end of the box whose argument starts at `start`; None if it does not close before `stop`."""
    if not text.startswith("{", start):
        token = re.compile(r"[^\s{}$\\]").match(text, start, stop)
        return (token.group(), token.end()) if token else None
    # `\boxed{5\}`, with a stray backslash before its end, closes only if a brace that ends no set may close it.
    return _braced(text, start, stop, "}") or _braced(text, start, stop, "\\}")


def _braced(text: str, start: int, stop: int, last: str) -> tuple[str, int] | None:
    depth = in_sets = 0
    for match in _BRACE.finditer(text, start, stop):
        mark = match.group()
        if mark == "{":
            depth += 1
        elif mark == "\\{":
            in_sets += 1
        elif mark == "\\}" and (in_sets or depth > 1 or mark != last):
            in_sets = max(0, in_sets - 1)
        elif mark in ("}", last):
            depth -= 1
            if depth == 0:
                return text[start + 1 : match.start()], match.end()
    return None


def _joined(gap: str) -> bool:
    """Whether two boxes with `gap` between them belong to one answer."""
    if len(gap) > _GAP_CHARS or _SENTENCE_END.search(gap) or _TURN.search(gap):
        return False
    words = _MARKUP.sub(" ", gap).strip()
    return re.search(r"[\w=]", words) is None or _JOINT.match(words) is not None


def restated_answer(text: str) -> str | None:
    """A final answer stated once more after the last box: `#### 5`, "Final answer: 5"."""
    box = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if box < 0:
        return None
    after = text[box:]
    stated = hashed_answer(after)
    final = list(_FINAL.finditer(after))
    if stated is None and final:
        stated = stated_answer(after[final[-1].start() :])
    return stated if stated and is_bare(stated) and re.search(r"[0-9]|\\[a-z]", _QUIET_BOX.sub("", stated)) else None


_FINAL = re.compile(r"\bfinal answer\b", re.IGNORECASE)
_QUIET_BOX = re.compile(r"\\f?box(?:ed)?.*", re.DOTALL)


# --- JSON -----------------------------------------------------------------------------------------

_JSON_FIELD = re.compile(r'"(?:final_)?answer"\s*:\s*')
_JSON_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_JSON_NUMBER = re.compile(r"[^\s,{}\[\]\"]+")


def json_answer(text: str) -> str | None:
    """The `answer` field of a response that is one JSON object, fenced or not; broken escapes are forgiven."""
    body = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    if not (body.startswith("{") and body.endswith("}")) or '"' not in body:
        return None
    fields = list(_JSON_FIELD.finditer(body))
    if not fields:
        return None
    start = fields[-1].end()
    string = _JSON_STRING.match(body, start)
    if string is None:
        number = _JSON_NUMBER.match(body, start)
        return number.group() if number else None
    try:
        value = json.loads(string.group(), strict=False)
    except json.JSONDecodeError:
        value = string.group(1)
    # A box inside the field is the same statement, dressed twice.
    return boxed_answer(str(value)) or str(value)


_TAG = re.compile(r"<answer>([^<]*(?:<(?!/?answer>)[^<]*)*)</answer>", re.IGNORECASE)


def tagged_answer(text: str) -> str | None:
    """What stands between the last `<answer>` and `</answer>`; a box or statement inside it is read as one."""
    last = None
    for last in _TAG.finditer(text):  # noqa: B007
        pass
    if last is None:
        return None
    inside = last.group(1)
    return boxed_answer(inside) or (inside if is_bare(inside) else stated_answer(inside) or inside)


# --- statements -----------------------------------------------------------------------------------


def hashed_answer(text: str) -> str | None:
    """What follows `####` on the last line, GSM8K's way; elsewhere it is a heading."""
    _, hashes, rest = text.rstrip().rpartition("####")
    return rest if hashes and "\n" not in rest.strip() else None


_STATEMENT = re.compile(
    r"\banswer\b[^.,\n:=$\\]{0,80}?\b(?:is|are|equals|be)\b"
    r"|\banswer\b[ \t]*\**[ \t]*[:=：]"
    r"|^[ \t#*]*(?:final )?answer\b[ \t*]*[-–—][ \t]+"
    r"|^[ \t]*(?:#{1,6}[ \t]*)?\**(?:the )?(?:final )?answer\**[ \t]*$"
    r"|\banswer\b[ \t]*(?=\$|\\[(\[])"
    r"|^[ \t]*A:"
    r"|\b(?:réponse|respuesta|antwort|risposta|resposta)\b\s*(?:est|es|ist|è|é|:)"
    r"|答案\s*(?:是|为|：|:)",
    re.IGNORECASE | re.MULTILINE,
)
_MATH = re.compile(r"\$\$(.+?)\$\$|\$((?:[^$\\]|\\.)+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_MARKS = " \t\r\n:*_`"
_ADVERB = re.compile(
    r"(?:(?:indeed|therefore|thus|simply|just|exactly|equal to|given by|then|also|now|approximately|about|roughly"
    r"|around|clearly)\b[\s:,]*)+",
    re.IGNORECASE,
)
_BULLET = re.compile(r"(?<![\s:*_])[\s:*_]*(?<=\n)[^\S\n]{0,8}-\s+")
_ASIDE = re.compile(r",?\s*\(?(?:i\.\s?e\.|e\.\s?g\.|that is,|equivalently|in other words|which\b)", re.IGNORECASE)
_COMMENT = re.compile(
    r"(?:correct|right|wrong|incorrect|consistent|valid|accurate|verified|confirmed|reasonable|not|still|in the"
    r"|a|an|the|found|obtained|unique|expressed)\b",
    re.IGNORECASE,
)
_MAX_STATEMENTS = 8


def stated_answer(text: str) -> str | None:
    """What the last "the answer is ..." states; "the answer is correct" states nothing."""
    for match in reversed(_statements(text)):
        rest = _BULLET.sub("", text[match.end() : match.end() + _TAIL_CHARS], count=1)
        statement = _ADVERB.sub("", rest.lstrip(_MARKS), count=1)
        value = statement_value(statement)
        if value and not (_COMMENT.match(value) and not re.search(r"[0-9]|\\[a-z(]", value)):
            return value
    return None


_STATING = ("answer", "a:", "réponse", "respuesta", "antwort", "risposta", "resposta", "答案")
"""What is in every statement, in small letters."""


def _statements(text: str) -> list[re.Match[str]]:
    """The last `_MAX_STATEMENTS` statements."""
    lower = text.lower()
    words = [word for word in _STATING if word in lower]
    if len(lower) != len(text):  # small letters may be more letters: `İ`
        return list(_STATEMENT.finditer(text))[-_MAX_STATEMENTS:] if words else []
    # The pattern is slow, so it only sees the lines of these words, each with the line after it.
    found: list[re.Match[str]] = []
    start = len(text)
    for _ in range(2 * _MAX_STATEMENTS):
        at = max((lower.rfind(word, 0, start) for word in words), default=-1)
        if at < 0 or len(found) >= _MAX_STATEMENTS:
            return found[-_MAX_STATEMENTS:]
        stop, start = start, text.rfind("\n", 0, at) + 1
        line_end = text.find("\n", at, stop)
        next_end = text.find("\n", line_end + 1, stop) if line_end >= 0 else -1
        found[:0] = _STATEMENT.finditer(text, start, next_end if next_end >= 0 else stop)
    return list(_STATEMENT.finditer(text))[-_MAX_STATEMENTS:]


def statement_value(statement: str) -> str:
    """The answer inside the words that state it; empty where they state none."""
    statement = statement.lstrip(_MARKS)
    aside = _ASIDE.search(statement, 1)
    sentence = _first_sentence(statement[: aside.start()] if aside else statement).rstrip(_MARKS)
    if is_bare(sentence):
        return sentence
    copula = max(sentence.rfind(" is "), sentence.rfind(" are "), sentence.rfind(" equals "))
    if copula >= 0:
        value = sentence[copula:].lstrip(" ").partition(" ")[2].lstrip(_MARKS)
        if is_bare(value) or _MATH.search(value) or _NUMBER.search(value):
            sentence = value
        if is_bare(sentence):
            return sentence
    formulas = list(_MATH.finditer(sentence))
    if formulas:
        return _joined_formulas(sentence, formulas)
    number = last_number(sentence)
    return sentence if number is None else number


def _joined_formulas(sentence: str, formulas: list[re.Match[str]]) -> str:
    """The last formula, with the ones before it that `and`, `or` or a comma ties to it."""
    first = formulas[-1]
    for earlier in reversed(formulas[:-1]):
        gap = sentence[earlier.end() : first.start()].strip()
        if gap.strip(", ") not in ("", "and", "or"):
            break
        first = earlier
    return sentence[first.start() : formulas[-1].end()]


_STOP = re.compile(r"\.(?=\s|$|\*|#)|####|\n|[。！]|\.\.|\$\$|\$|\\[()\[\]]")


def _first_sentence(text: str) -> str:
    """`text` up to its first full stop or line end outside mathematics."""
    closing = ""
    for match in _STOP.finditer(text):
        mark = match.group()
        if closing:
            closing = "" if mark == closing else closing
        elif mark in ("$", "$$"):
            # A dollar sign without a partner is money.
            closing = mark if text.find(mark, match.end()) >= 0 else ""
        elif mark in ("\\(", "\\["):
            closing = "\\)" if mark == "\\(" else "\\]"
        elif mark not in ("\\)", "\\]"):
            return text[: match.start()]
    return text


_QUIET = re.compile(r"\\(?:text|mbox|textbf|textnormal|mathrm|textit|operatorname)\s*\{[^{}]*\}|\\[a-zA-Z]+|\\.")
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ ,'’-]+[^\W\d_]+)+")
_LINKS = {"and", "or"}
# A verb, a label, or a script that writes no formulas: a sentence, however short.
_SENTENCE = re.compile(r"\b(?:is|are|equals|was)\b|^\s*[^\W\d_]{3,}\s*:|[\u0590-\u1fff\u3040-\uabff\uac00-\ud7ff]")


def is_bare(text: str) -> bool:
    """Whether `text` is an answer and nothing else: one line, no run of words but `and`, `or` and a unit."""
    if not text or len(text) > 400 or "\n" in text.strip() or _SENTENCE.search(text):
        return False
    return not _is_prose(text)


def _is_prose(text: str) -> bool:
    """Whether more than two words stand in a row outside commands and text groups."""
    for run in _WORDS.finditer(_QUIET.sub(" 0 ", text)):
        words = [word for word in re.split(r"[ ,'’-]+", run.group()) if word not in _LINKS]
        if len(words) > 2:
            return True
    return False


def whole_answer(text: str) -> str | None:
    """The response itself where it is short and nothing but an answer."""
    body = text.strip()
    if not is_bare(body) or _MATH.search(body, 1) or _is_cut_off(body):
        return None
    words = [word for word in re.findall(r"[A-Za-z]{2,}", _QUIET.sub("", body)) if word not in _LINKS]
    return body if len(words) <= 1 else None


# --- the last formula or number -------------------------------------------------------------------

_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.^/\\])(?:(?<![\w)}])[-−]\s?)?[$€£]?"
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+,[0-9]{2}(?![0-9,])|[0-9]+)(?:\.[0-9]+)?(?:\s?/\s?[0-9]+)?(?:\s?\\?%)?(?![A-Z0-9])"
    r"|(?<![0-9A-Za-z])\.[0-9]+"
    r"|-?[0-9]*\\[dtc]?frac\s*\{[^{}]{1,80}\}\s*\{[^{}]{1,80}\}"
)


def _is_cut_off(text: str) -> bool:
    """Whether the text stops inside a formula; a lone dollar sign without LaTeX behind it is money."""
    paragraph = text[text.rfind("\n\n") + 1 :]
    return paragraph.count("$") % 2 == 1 and re.search(r"\\[a-z]|\^", paragraph[paragraph.rfind("$") :]) is not None


_NUMBER_CHARS = 256
"""The last number is nearly always so near the end; looking there first saves most of the time."""


def last_number(text: str) -> str | None:
    """The last number written in digits."""
    for start in (max(0, len(text) - _NUMBER_CHARS), 0):
        last = None
        for last in _NUMBER.finditer(text, start):  # noqa: B007
            pass
        # One at the very beginning may have begun before it.
        if start == 0 or (last and last.start() > start + _NUMBER_CHARS // 2):
            break
    return last.group() if last else None


def last_formula_or_number(text: str) -> str | None:
    """The formula or number that stands last, within reach of the end; none where the text stops inside a formula."""
    if _is_cut_off(text):
        return None
    tail = text[-_TAIL_CHARS:]
    formulas = [match for match in _MATH.finditer(tail) if not _is_prose(match.group())]
    if not formulas:
        return last_number(tail)
    after = last_number(tail[formulas[-1].end() :])
    joined = _joined_formulas(tail, formulas)
    several = joined if _ASSIGNMENTS.fullmatch(joined) else next(filter(None, formulas[-1].groups()))
    return after or several


# `$x = 1$ and $y = 2$` is one answer; of `$5x = 30$ and $x = 6$` the last formula is.
_ASSIGNMENT = r"\$\s*\\?[A-Za-z]+\w*\s*=[^$=]{1,80}\$"
_ASSIGNMENTS = re.compile(rf"{_ASSIGNMENT}(?:[ ,]+(?:and|or)?\s*{_ASSIGNMENT})+")

_RULES = (
    ("json", json_answer),
    ("tagged", tagged_answer),
    ("restated", restated_answer),
    ("boxed", boxed_answer),
    ("hashes", hashed_answer),
    ("stated", stated_answer),
    ("whole", whole_answer),
    ("last", last_formula_or_number),
)
