r"""One plain spelling for an answer: delimiters, fonts, spacing and look-alikes removed, operators made ASCII.

`\left(\dfrac{1}{2},\; \text{ and }\; 12{,}000\right)` becomes `(\frac{1}{2}, , 12000)`. Text keeps its
quotes (`5"cm"`), so that a unit is never taken for a product of variables.
"""

import re
import unicodedata
from functools import lru_cache

_DRESSING = frozenset(
    re.findall(
        r"\S+",
        "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr bigm limits nolimits mathstrut strut "
        "! displaystyle textstyle scriptstyle boxed fbox rm bf it small large Large vec overrightarrow underline "
        "mathrm mathbf mathit mathsf text mbox operatorname textbf bm boldsymbol",
    )
)

_COMMANDS = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac", "frac"), r"\frac"),
    **dict.fromkeys(("binom", "dbinom", "tbinom", "choose"), r"\binom"),
    **dict.fromkeys(("le", "leq", "leqslant", "leqq"), "<="),
    **dict.fromkeys(("ge", "geq", "geqslant", "geqq"), ">="),
    **dict.fromkeys(("ne", "neq"), "!="),
    **dict.fromkeys(("times", "cdot", "ast", "cdotp"), "*"),
    **dict.fromkeys(("approx", "simeq", "doteq", "thickapprox", "sim"), "≈"),
    **dict.fromkeys(("lbrace", "{"), r"\{"),
    **dict.fromkeys(("rbrace", "}"), r"\}"),
    **dict.fromkeys(("lbrack", "["), "["),
    **dict.fromkeys(("rbrack", "]"), "]"),
    **dict.fromkeys(("lvert", "rvert", "vert", "mid"), "|"),
    **dict.fromkeys(("lor", "vee", "land", "wedge"), ", "),
    **dict.fromkeys(("circ", "degree", "degrees"), "°"),
    **dict.fromkeys(("emptyset", "varnothing"), "∅"),
    **dict.fromkeys(("varepsilon", "epsilon"), r"\epsilon"),
    **dict.fromkeys(("varphi", "phi"), r"\phi"),
    **dict.fromkeys(("prime",), "'"),
    "lt": "<",
    "gt": ">",
    "div": "/",
    "colon": ":",
    "cup": "∪",
    "cap": "∩",
    "in": "∈",
    "infty": "∞",
    "pi": "π",
    "pm": "±",
    "mp": "∓",
    "langle": "(",
    "rangle": ")",
    "%": "%",
    "$": "$",
    "#": "#",
    "_": "_",
    **dict.fromkeys(_DRESSING, ""),
    **dict.fromkeys((",", ";", ":", ">", " ", "quad", "qquad", "enspace", "thinspace", "hfill", "(", ")", "\n"), " "),
}
"""What a command is rewritten to; a command that is not listed stays."""

_FUNCTIONS = frozenset(
    ("arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sin", "cos", "tan", "sec", "csc", "cot", "ln", "log", "exp")
)

_LOOKALIKES = str.maketrans(
    {
        **dict.fromkeys("−‐‑‒–—﹣－", "-"),
        **dict.fromkeys("×⋅∙·∗•", "*"),
        **dict.fromkeys("÷∕⁄", "/"),
        **dict.fromkeys("≤⩽≦", "<="),
        **dict.fromkeys("≥⩾≧", ">="),
        **dict.fromkeys("，、", ","),
        **dict.fromkeys("⟨〈", "("),
        **dict.fromkeys("⟩〉", ")"),
        **dict.fromkeys("⋃", "∪"),
        **dict.fromkeys("′’‘", "'"),
        **dict.fromkeys("“”", '"'),
        "≠": "!=",
        "∶": ":",
        "；": ";",
        "√": r"\sqrt ",
        "∛": r"\sqrt[3]",
        "º": "°",
        "。": ".",
        **{char: f"^{{{digit}}}" for char, digit in zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True)},
        **{char: f"_{{{digit}}}" for char, digit in zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True)},
        **{
            char: rf"\frac{{{digits[0]}}}{{{digits[1]}}}"
            for char, digits in zip("½⅓⅔¼¾⅕⅛⅙", ("12", "13", "23", "14", "34", "15", "18", "16"), strict=True)
        },
    }
)

# A carriage through JSON or Python source turns `\frac` into form feed + `rac`.
_ESCAPE_DAMAGE = str.maketrans({"\f": r"\f", "\b": r"\b", "\a": r"\a", "\v": r"\v"})
_TAB_DAMAGE = re.compile(r"\t(?=(?:imes|ext|frac|heta|an|au|riangle)(?![a-z]))")

_TEXT_COMMAND = re.compile(
    r"\\(?:text|mbox|hbox|textbf|textit|textrm|textnormal|textsf|mathrm|mathbf|mathit|mathsf|mathtt|operatorname\*?"
    r"|mathcal|boldsymbol|bm)\s*\{([^{}]*)\}"
)
_BLACKBOARD = re.compile(r"\\mathbb\s*\{?\s*([A-Z])\s*\}?")
_COMMAND = re.compile(r"\\([a-zA-Z]+|.)(?:\s+(?=[^a-zA-Z]))?", re.DOTALL)
_DOUBLED = re.compile(r"\\\\(?=[a-zA-Z(){}\[\],;!%$])")
_NULL_DELIMITER = re.compile(r"\\(?:left|right)\s*\.")
_SPACING = re.compile(r"\\[hv]space\*?\s*\{[^{}]*\}|\\(?:phantom|hphantom|vphantom)\s*\{[^{}]*\}|\\label\s*\{[^{}]*\}")
_THOUSANDS_LATEX = re.compile(r"(?<=[0-9])(?:\{,\}|,?\\[,!;:> ]|,\\!)\s*(?=[0-9]{3}(?![0-9]))")
_GROUPED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])|(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?![0-9])")
_LINK = re.compile(r"\s*(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])\s*|(?<=[0-9)}])(?:and|or)(?=[A-Z(\\0-9-])")
_TIMES_TEN = re.compile(r"(?<=[0-9])\s*x\s*(?=10\s*\^)")
_SPACES = re.compile(r"\s+")
_BEHIND_NUMBER = re.compile(r"[0-9)}]\s{0,3}\Z")
_MAX_LAYERS = 8
"""Layers of dressing that are taken off; nobody wears more, and each costs a pass over the text."""


@lru_cache(maxsize=8192)
def plain(text: str) -> str:
    """The plain spelling of an answer; idempotent on what it returns but for text in quotes."""
    text = _ascii(text)
    if "\\" in text or "{,}" in text:
        text = _without_commands(text)
    text = text.replace("**", "^") if re.search(r"[\w)]\*\*[\w(]", text) else text.replace("**", "")
    text = text.replace("==", "=").replace("≈=", "≈").replace("~", " ")
    text = re.sub(r"\^\s*\{\s*°\s*\}|\^\s*°", "°", text)
    text = text.replace("=<", "<=").replace("=>", ">=") if "=<" in text or "=>" in text else text
    text = _LINK.sub(", ", _TIMES_TEN.sub("*", text))
    return unwrapped(_SPACES.sub(" ", text))


def _ascii(text: str) -> str:
    """`text` with look-alikes made plain and invisible characters gone."""
    text = _TAB_DAMAGE.sub(r"\\t", text) if "\t" in text else text
    text = text.translate(_ESCAPE_DAMAGE)
    if not text.isascii():
        text = text.translate(_LOOKALIKES)
        text = "".join(_letter(char) for char in text)
    elif not text.isprintable():
        text = "".join(char if char.isprintable() else " " for char in text)
    return text


def _letter(char: str) -> str:
    """A character's plain form: full-width and mathematical letters folded, format and control characters dropped."""
    if char.isascii():
        return char if char.isprintable() else " "
    category = unicodedata.category(char)
    if category in ("Cf", "Cs", "Co", "Cn", "Mn"):
        return ""
    if category in ("Zs", "Zl", "Zp", "Cc"):
        return " "
    return unicodedata.normalize("NFKC", char)


def _without_commands(text: str) -> str:
    """`text` with its LaTeX commands rewritten; matrices keep `\\begin`, `\\end`, `\\\\` and `&`."""
    has_rows = "\\begin" in text
    text = text.replace("$", "") if "\\$" not in text else re.sub(r"(?<!\\)\$", "", text)
    if not has_rows:
        text = _DOUBLED.sub(r"\\", text)
    text = _NULL_DELIMITER.sub("", text)
    text = _THOUSANDS_LATEX.sub("", text)
    text = _BLACKBOARD.sub(r" \1\1 ", _SPACING.sub(" ", text))
    text = _TEXT_COMMAND.sub(_text, text)
    return _COMMAND.sub(lambda match: _command(match, has_rows), text)


def _text(match: re.Match[str]) -> str:
    content = match.group(1).replace("~", " ").replace("\\", "")
    word = content.strip()
    if word in ("and", "or", "and/or", ","):
        return ", "
    if word in _FUNCTIONS:
        return f"\\{word} "
    if len(word) != 1 and not re.search(r"[A-Za-z]{2}|[A-Za-z]\.|[^\x00-\x7f]", word):
        return f" {word} "
    before = match.string[max(0, match.start() - 4) : match.start()]
    if before.rstrip().endswith(("_", "_{")):
        return re.sub(r"\W", "", word)
    # A lone letter is a symbol, unless it stands behind a number as a unit does.
    is_symbol = len(word) == 1 and (word in "eidC" or not _BEHIND_NUMBER.search(before))
    return word if is_symbol else f'"{word}"'


def _command(match: re.Match[str], has_rows: bool) -> str:
    name = match.group(1)
    if name == "\\":
        return "\\\\" if has_rows else " "
    plain_name = _COMMANDS.get(name)
    if plain_name is None:
        return f"\\{name} " if name.isalpha() else name
    return f"{plain_name} " if plain_name.startswith("\\") and plain_name[-1].isalpha() else plain_name


def unwrapped(text: str) -> str:
    """`text` without the marks around it: dollar signs of mathematics, braces, emphasis, a closing full stop."""
    for _ in range(_MAX_LAYERS):
        previous = text
        text = text.strip(" \t\n`*").rstrip(".,;:").lstrip(",;:").strip()
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
