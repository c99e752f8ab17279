r"""One plain spelling for an answer: delimiters, fonts and spacing removed, operators made ASCII.

`\left(\dfrac{1}{2},\; \text{ and }\; 12{,}000\right)` becomes `(\frac{1}{2}, ,∧ 12000)`. Text keeps its
quotes (`5"cm"`), so that a unit is never taken for a product of variables; `,∧` and `,∨` are the commas
that were written "and" and "or".
"""

import re
from functools import lru_cache

from verifiers.glyphs import ascii_spelling
from verifiers.units import unit_of

_DRESSING = frozenset(
    re.findall(
        r"\S+",
        "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr bigm limits nolimits mathstrut strut "
        "! displaystyle textstyle scriptstyle boxed fbox framebox rm bf it small large Large vec overrightarrow "
        "underline mathrm mathbf mathit mathsf text mbox operatorname textbf bm boldsymbol boldmath mathop hat "
        "normalsize huge Huge ensuremath emph",
    )
)

_COMMANDS = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac", "frac", "nicefrac", "sfrac"), r"\frac"),
    **dict.fromkeys(("binom", "dbinom", "tbinom"), r"\binom"),
    **dict.fromkeys(("le", "leq", "leqslant", "leqq"), "<="),
    **dict.fromkeys(("ge", "geq", "geqslant", "geqq"), ">="),
    **dict.fromkeys(("ne", "neq"), "!="),
    **dict.fromkeys(("times", "cdot", "ast", "cdotp"), "*"),
    **dict.fromkeys(("approx", "simeq", "doteq", "thickapprox"), "≈"),
    **dict.fromkeys(("lbrace", "{"), r"\{"),
    **dict.fromkeys(("rbrace", "}"), r"\}"),
    **dict.fromkeys(("lbrack", "["), "["),
    **dict.fromkeys(("rbrack", "]"), "]"),
    **dict.fromkeys(("lvert", "rvert", "vert", "mid"), "|"),
    **dict.fromkeys(("lor", "vee"), ",∨ "),
    **dict.fromkeys(("land", "wedge"), ",∧ "),
    **dict.fromkeys(("circ", "degree", "degrees"), "°"),
    **dict.fromkeys(("emptyset", "varnothing"), "∅"),
    **dict.fromkeys(("varepsilon", "epsilon"), r"\epsilon"),
    **dict.fromkeys(("varphi", "phi"), r"\phi"),
    **dict.fromkeys(("prime",), "'"),
    **dict.fromkeys(("setminus", "backslash", "smallsetminus"), r"\setminus"),
    **dict.fromkeys(("ldots", "dots", "cdots", "dotsc", "dotsb"), r"\ldots"),
    **dict.fromkeys(("imath",), "i"),
    **dict.fromkeys(("jmath",), "j"),
    **dict.fromkeys(("lt",), "<"),
    **dict.fromkeys(("gt",), ">"),
    **dict.fromkeys(("in", "isin"), "∈"),
    **dict.fromkeys(("infty", "infin"), "∞"),
    **dict.fromkeys(("R", "reals", "Reals"), "ℝ"),
    "Z": "ℤ",
    "N": "ℕ",
    "Q": "ℚ",
    "div": "/",
    "colon": ":",
    "cup": "∪",
    "bigcup": "∪",
    "cap": "∩",
    "pi": "π",
    "pm": "±",
    "mp": "∓",
    "langle": "(",
    "rangle": ")",
    "cents": "¢",
    "cent": "¢",
    "pounds": "£",
    "euro": "€",
    "%": "%",
    "$": "$",
    "#": "#",
    "_": "_",
    **dict.fromkeys(_DRESSING, ""),
    **dict.fromkeys((",", ";", ":", ">", " ", "quad", "qquad", "enspace", "thinspace", "hfill", "(", ")", "\n"), " "),
}
"""What a command is rewritten to; a command that is not listed stays."""

_FUNCTIONS = frozenset(
    re.findall(
        r"\S+",
        "arcsin arccos arctan arccot sinh cosh tanh sin cos tan sec csc cot ln log exp cis gcd lcm max min deg sgn "
        "arsinh arcosh artanh arcsinh arccosh arctanh",
    )
)

_VARIABLES = "nrtuvwxyz"

_TEXT_COMMAND = re.compile(
    r"\\(text|mbox|hbox|textbf|textit|textrm|textnormal|textsf|mathrm|mathbf|mathit|mathsf|mathtt|operatorname\*?"
    r"|mathcal|boldsymbol|bm|rm)\s*\{([^{}]*)\}"
)
_SYMBOL_FONTS = frozenset(("mathbf", "mathit", "mathcal", "boldsymbol", "bm"))
_BLACKBOARD = re.compile(r"\\(?:mathbb|Bbb)\s*\{?\s*([A-Z])\s*\}?")
_COMMAND = re.compile(r"\\([a-zA-Z]+|.)(?:\s+(?=[^a-zA-Z]))?", re.DOTALL)
_DOUBLED = re.compile(r"\\\\(?=[a-zA-Z(){}\[\],;!%$])")
_DOUBLED_IN_ROWS = re.compile(r"\\\\(?=(?:[dtc]?frac|sqrt)\s*[\[{])")  # a row begins with no bare `frac`
_NULL_DELIMITER = re.compile(r"\\(?:left|right)\s*\.")
_SPACING = re.compile(
    r"\\[hv]space\*?\s*\{[^{}]*\}|\\(?:phantom|hphantom|vphantom)\s*\{[^{}]*\}|\\(?:label|tag)\s*\{[^{}]*\}"
)
_DISPLAYED = re.compile(r"\s*\\\[((?:(?!\\\]).)*)\\\][\s.]*", re.DOTALL)
_NEXT_LINE = re.compile(r"\$\s*\n\s*\$(?!\$)")
_SEGMENT = re.compile(r"\\overline\s*\{\s*([A-Z]{2})\s*\}")
_COLOR = re.compile(r"\\(?:text)?color\s*\{[^{}]*\}")
_NEXT_EQUATION = re.compile(
    r"\\q?quad\s*(?=(?:[A-Za-z]|\\[a-z]+)\s*(?:_\s*\{?\w+\}?)?(?:\([a-z]\))?\s*(?:=|\\equiv|\\in(?![a-z])))"
)
_INFIX = re.compile(r"\{([^{}]*)\\(over|choose)(?![a-zA-Z])([^{}]*)\}")
_DOTTED = re.compile(r"(\.[0-9]*)\\dot\s*\{?([0-9])\}?(?:([0-9]*)\\dot\s*\{?([0-9])\}?)?")
_THOUSANDS_LATEX = re.compile(r"(?<=[0-9])(?:\s?\{,\s?\}|,?\\!|\\[,;:> ])\s*(?=[0-9]{3}(?![0-9]))")
_GROUPED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])|(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?![0-9])")
_LINK = re.compile(r"\s*(?<![A-Za-z\\])(and|or)(?![A-Za-z])\s*|(?<=[0-9)}])(and|or)(?=[A-Z(\\0-9-])")
_ELLIPSIS = re.compile(r"\.{3,}")
_TIMES_TEN = re.compile(r"(?<=[0-9])\s*x\s*(?=10\s*\^)")
_SPACES = re.compile(r"\s+")
_BEHIND_NUMBER = re.compile(r"[0-9)}](?:\s|~|\\[,;: ]){0,3}\Z")
_STRING_END = re.compile(r'(?:\."|",)[,;:}\]]*\Z')
"""The end of a JSON string that an answer was cut out of; `5"` are inches."""
_INCHES = re.compile(r'[0-9][0-9./ ]*"')
_MAX_LAYERS = 8
"""Layers of dressing that are taken off; nobody wears more, and each costs a pass over the text."""


def plain(text: str) -> str:
    """The plain spelling of an answer, "and" and "or" as commas; idempotent but for text in quotes."""
    spelling = linked(text)
    return spelling.replace(",∧", ",").replace(",∨", ",") if "∧" in spelling or "∨" in spelling else spelling


@lru_cache(maxsize=8192)
def linked(text: str) -> str:
    """The plain spelling of an answer that still tells "and" (`,∧`) from "or" (`,∨`)."""
    text = _ELLIPSIS.sub(r"\\ldots ", ascii_spelling(_NEXT_LINE.sub("$, $", text) if "\n" in text else text))
    if "\\" in text or "{," in text:
        text = _without_commands(text)
    text = text.replace("**", "^") if re.search(r"[\w)]\*\*[\w(]", text) else text.replace("**", "")
    text = _SPACES.sub(" ", text.replace("==", "=").replace("≈=", "≈").replace("~", " "))
    text = re.sub(r"\^\s*\{\s*°\s*([CF]?)\s*\}|\^\s*°", r"°\1", text)
    text = text.replace("=<", "<=").replace("=>", ">=") if "=<" in text or "=>" in text else text
    text = unwrapped(_LINK.sub(_link, _TIMES_TEN.sub("*", text)))
    return f'{text[:-1]} "inches"' if _INCHES.fullmatch(text) else text


def _link(match: re.Match[str]) -> str:
    return ",∧ " if (match.group(1) or match.group(2)) == "and" else ",∨ "


def _without_commands(text: str) -> str:
    """`text` with its LaTeX commands rewritten; matrices keep `\\begin`, `\\end`, `\\\\` and `&`."""
    has_rows = "\\begin" in text
    displayed = _DISPLAYED.fullmatch(text)
    text = displayed.group(1) if displayed else text
    text = text.replace("$", "") if "\\$" not in text else re.sub(r"(?<!\\)\$", "", text)
    text = (_DOUBLED_IN_ROWS if has_rows else _DOUBLED).sub(r"\\", text)
    text = _THOUSANDS_LATEX.sub("", _NULL_DELIMITER.sub("", text))
    text = _NEXT_EQUATION.sub(", ", text) if "quad" in text and "=" in text else text
    text = _COLOR.sub("", text) if "color" in text else text
    text = _INFIX.sub(_prefixed, text) if "\\over" in text or "\\choose" in text else text
    text = _DOTTED.sub(_overlined, text) if "\\dot" in text else text
    text = _SEGMENT.sub(r"\1", text) if "\\over" in text else text
    text = _BLACKBOARD.sub(_number_set, _SPACING.sub(" ", text))
    text = _TEXT_COMMAND.sub(_text, text)
    return _COMMAND.sub(lambda match: _command(match, has_rows), text)


def _prefixed(match: re.Match[str]) -> str:
    return rf"\{'frac' if match.group(2) == 'over' else 'binom'}{{{match.group(1)}}}{{{match.group(3)}}}"


def _overlined(match: re.Match[str]) -> str:
    """`0.\\dot{1}4285\\dot{7}` as `0.\\overline{142857}`."""
    digits, first, middle, last = match.groups()
    return rf"{digits}\overline{{{first}{middle or ''}{last or ''}}}"


def _number_set(match: re.Match[str]) -> str:
    return {"R": "ℝ", "Z": "ℤ", "N": "ℕ", "Q": "ℚ", "C": "ℂ"}.get(match.group(1), f" {match.group(1) * 2} ")


def _text(match: re.Match[str]) -> str:
    content = match.group(2).replace("~", " ").replace("\\", "")
    word = content.strip()
    if word in ("and", "or", "and/or", ","):
        return {"and": ",∧ ", "or": ",∨ "}.get(word, ", ")
    before = match.string[max(0, match.start() - 7) : match.start()]
    if word in _FUNCTIONS and not (word == "min" and _BEHIND_NUMBER.search(before)):
        return f"\\{word} "
    if before.rstrip().endswith(("_", "_{")):
        return re.sub(r"\W", "", word)
    if len(word) != 1 and not re.search(r"[A-Za-z]{2}|[A-Za-z]\.|[^\x00-\x7f]", word):
        return f' "{word}" ' if _BEHIND_NUMBER.search(before) and unit_of(word) else f" {word} "
    # A lone letter is a symbol, unless it stands behind a number as a unit does.
    font = match.group(1) in _SYMBOL_FONTS
    is_symbol = len(word) == 1 and (font or word in "eidC" or not _BEHIND_NUMBER.search(before))
    # `\circ\text{C}` is not the command `\circC`.
    return f"{' ' * before[-1:].isalpha()}{word}" if is_symbol else f'"{word}"'


def _command(match: re.Match[str], has_rows: bool) -> str:
    name = match.group(1)
    if name == "\\":
        return "\\\\" if has_rows else " "
    plain_name = _COMMANDS.get(name)
    if plain_name is None and name[:-1] in _FUNCTIONS and name[-1] in _VARIABLES:
        return f"\\{name[:-1]} {name[-1]}"  # \cotx
    if plain_name is None:
        return f"\\{name} " if name.isalpha() else name
    return f"{plain_name} " if plain_name.startswith("\\") and plain_name[-1].isalpha() else plain_name


def unwrapped(text: str) -> str:
    """`text` without the marks around it: dollar signs of mathematics, braces, emphasis, a closing full stop."""
    for _ in range(_MAX_LAYERS):
        previous = text
        text = text.strip(" \t\n`*")
        if text.count('"') == 1:
            text = _STRING_END.sub("", text)
        text = text.rstrip(".,;:").lstrip(",;:").strip()
        if text.count("$") >= 2 and text.startswith("$") and text.endswith("$"):
            text = text[1:-1]
        if text.startswith("{") and closing(text, 0) == len(text) - 1:
            text = text[1:-1]
        if text == previous:
            break
    is_money = text.count("$") == 1 and re.match(r"-?\s*\$\s*[0-9.]", text)
    return text if is_money else text.replace("$", "")


def grouped_digits_joined(text: str) -> str:
    """`text` with `12,000` and `12 000` written `12000`."""
    return _GROUPED.sub(lambda match: match.group().replace(",", "").replace(" ", ""), text)


_OPENING = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


def closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`, whatever its shape (`[0, 1)` is one group); -1 if none."""
    depth = 0
    for index in range(start, len(text)):
        depth += _OPENING.get(text[index], 0)
        if depth == 0:
            return index
    return -1


def split_top(text: str, separators: str) -> list[str]:
    """`text` cut at the separators that stand outside all brackets and quotes."""
    if not any(separator in text for separator in separators):
        return [text]
    parts, depth, start, quoted = [], 0, 0, False
    for index, char in enumerate(text):
        if char == '"':
            quoted = not quoted
        elif not quoted:
            depth += _OPENING.get(char, 0)
            if depth <= 0 and char in separators:
                parts.append(text[start:index])
                start = index + 1
    parts.append(text[start:])
    return parts
