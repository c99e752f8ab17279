"""Tell a completion's reasoning from its response, whatever the model wrapped it in.

A tag counts where it stands at the start or the end of its line; in the middle of a line, or in
quotes, it is talked about, not used. Only where no such closing tag follows does the first one
close (`<think>short</think>answer`). After the first close the response has begun: from there on a
tag counts at the start of a line only. Text before the first tag belongs to the reasoning, for it
was written before the answer. Nothing is lost but the tags. One scan over the text.
"""

import re
from typing import NamedTuple

NONE = "none"
"""No reasoning channel: the whole text is the response."""
TAGS = "tags"
"""One block between the expected tags."""
OPENED = "opened"
"""The open tag stood in the prompt: the text has a closing tag only."""
DELIMITER = "delimiter"
"""One block between another known pair of delimiters."""
TRUNCATED = "truncated"
"""Opened and never closed: all is reasoning, the response is empty."""
DOUBLED = "doubled"
"""A tag twice, or several blocks: all blocks are reasoning, the response follows the last close."""
COLUMN = "column"
"""The source kept the reasoning in a field of its own."""

FORMS = (NONE, TAGS, OPENED, DELIMITER, TRUNCATED, DOUBLED, COLUMN)

THINK = ("<think>", "</think>")
OTHER_DELIMITERS = (
    THINK,
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
)
"""Pairs looked for, in this order, where the expected one is absent."""

_SOLUTION = ("<|begin_of_solution|>", "<|end_of_solution|>")
_MESSAGE = re.compile(r"<\|channel\|>(analysis|commentary|final)[^<]*<\|message\|>")
_MESSAGE_END = re.compile(r"<\|(?:end|return|start|channel|call)\|>")
_QUOTES = frozenset("`'\"‘’“”")


class Reasoning(NamedTuple):
    """A completion in two parts, which hold all of its text but the tags."""

    reasoning: str | None
    """None: the completion has no reasoning channel (an empty one is an empty string)."""
    response: str
    form: str
    """One of `FORMS`."""


def split_reasoning(
    text: str,
    *,
    finish_reason: str | None = None,
    opened: bool = False,
    delimiters: tuple[str, str] = THINK,
) -> Reasoning:
    """The reasoning and the response of a completion, and how they were told apart.

    `opened` says that the prompt ended with the open tag: a text that never closes it is all
    reasoning. A block that opens after the response has begun and never closes is `truncated` where
    `finish_reason` is `length`; otherwise it stays in the response as it is.
    """
    split = _split_tags(text, delimiters, TAGS, finish_reason, opened)
    if split is None:
        split = _split_channels(text)
    for pair in OTHER_DELIMITERS:
        if split is None and pair != delimiters:
            split = _split_tags(text, pair, DELIMITER, finish_reason, opened=False)
    return split or Reasoning(None, text, NONE)


def join_columns(reasoning: str, response: str) -> Reasoning:
    """Reasoning and response that a source keeps in two fields.

    Tags around the field's text are taken off. Where the response brings a block of its own the row
    is `doubled`; a block that repeats the field stands once.
    """
    outer = split_reasoning(reasoning)
    thought = reasoning.strip() if outer.reasoning is None else f"{outer.reasoning}\n\n{outer.response}".strip()
    inner = split_reasoning(response)
    if inner.reasoning is None or inner.form == TRUNCATED:
        return Reasoning(thought, response, COLUMN)
    if inner.reasoning not in ("", thought):
        thought = f"{thought}\n\n{inner.reasoning}"
    return Reasoning(thought, inner.response, DOUBLED)


class _Tag(NamedTuple):
    start: int
    end: int
    opens: bool
    starts_line: bool
    ends_line: bool
    last: bool
    """Nothing but white space follows."""


def _split_tags(
    text: str, delimiters: tuple[str, str], plain_form: str, finish_reason: str | None, opened: bool
) -> Reasoning | None:
    """The split by one pair of tags; None where the text does not use them."""
    tags = _find_tags(text, delimiters)
    edge_close_ahead, close_ahead = _closes_ahead(tags)
    used: list[_Tag] = []
    inside, closed, doubled, end = opened, False, False, len(text)
    for index, tag in enumerate(tags):
        answering = closed and not inside
        if tag.opens:
            may_stay_open = not answering or finish_reason == "length"
            if not (tag.starts_line or (tag.ends_line and not inside and not closed)):
                continue
            if not (close_ahead[index] or may_stay_open):
                continue
            doubled |= closed or (inside and bool(used))
            inside = True
        elif answering:
            if not (tag.starts_line or tag.last):
                continue
            doubled = True
            if tag.last:  # a stray close behind the answer
                end = tag.start
                continue
        else:
            if not (tag.starts_line or tag.ends_line) and edge_close_ahead[index]:
                continue
            inside, closed = False, True
        used.append(tag)
    if not used and not opened:
        return None
    if inside:
        return Reasoning(_between(text, used), "", TRUNCATED)
    form = DOUBLED if doubled else plain_form if used[0].opens else OPENED
    return Reasoning(_between(text[: used[-1].start], used), _response(text[used[-1].end : end]), form)


def _find_tags(text: str, delimiters: tuple[str, str]) -> list[_Tag]:
    """Every tag of the pair that is not in quotes, with its place in its line."""
    opening, closing = delimiters
    if opening not in text and closing not in text:
        return []
    matches = list(re.finditer(f"{re.escape(closing)}|{re.escape(opening)}", text))
    text_end = len(text.rstrip())
    tags: list[_Tag] = []
    previous_end, after_tag_at_start = 0, True
    for index, match in enumerate(matches):
        start, end = match.span()
        gap = text[previous_end:start].rstrip(" \t")
        starts_line = gap.endswith("\n") or (gap == "" and after_tag_at_start)
        following = text[end : matches[index + 1].start() if index + 1 < len(matches) else len(text)]
        rest = following.lstrip(" \t")
        quoted = text[start - 1 : start] in _QUOTES and text[end : end + 1] in _QUOTES
        if not quoted:
            ends_line = rest.startswith(("\n", "\r")) or end >= text_end
            tags.append(_Tag(start, end, match[0] == opening, starts_line, ends_line, end >= text_end))
        # A tag right behind a closing tag, or behind a tag that starts the line, starts a line too.
        previous_end, after_tag_at_start = end, not quoted and (starts_line or match[0] == closing)
    return tags


def _closes_ahead(tags: list[_Tag]) -> tuple[list[bool], list[bool]]:
    """For each tag, what follows it: a close at an edge of its line before the next block opens, and any close.

    A close with nothing behind it does not count as the former: it would leave no response.
    """
    edge, any_close = [False] * len(tags), [False] * len(tags)
    edge_seen = close_seen = False
    for index in range(len(tags) - 1, -1, -1):
        edge[index], any_close[index] = edge_seen, close_seen
        tag = tags[index]
        if tag.opens:
            edge_seen = edge_seen and not tag.starts_line
        else:
            close_seen = True
            edge_seen = edge_seen or ((tag.starts_line or tag.ends_line) and not tag.last)
    return edge, any_close


def _between(text: str, used: list[_Tag]) -> str:
    """`text` without the tags in use."""
    pieces, position = [], 0
    for tag in used:
        pieces.append(text[position : tag.start])
        position = tag.end
    pieces.append(text[position:])
    return "".join(pieces).strip()


def _response(text: str) -> str:
    """`text` without white space around it, and without OpenThoughts' solution markers."""
    text = text.strip()
    if text.startswith(_SOLUTION[0]):
        text = text.removeprefix(_SOLUTION[0]).removesuffix(_SOLUTION[1]).strip()
    return text


def _split_channels(text: str) -> Reasoning | None:
    """The split of a gpt-oss completion: `analysis` and `commentary` messages, then a `final` one."""
    messages = list(_MESSAGE.finditer(text))
    if not messages:
        return None
    bodies: dict[bool, list[str]] = {True: [], False: []}
    if text[: messages[0].start()].strip():
        bodies[False].append(text[: messages[0].start()].removesuffix("<|start|>assistant").strip())
    for index, message in enumerate(messages):
        stop = messages[index + 1].start() if index + 1 < len(messages) else len(text)
        ending = _MESSAGE_END.search(text, message.end(), stop)
        body = text[message.end() : ending.start() if ending else stop]
        bodies[message[1] == "final"].append(body.strip())
    reasoning = "\n\n".join(body for body in bodies[False] if body)
    if not bodies[True]:
        return Reasoning(reasoning, "", TRUNCATED)
    return Reasoning(reasoning, "\n\n".join(bodies[True]), DELIMITER)
