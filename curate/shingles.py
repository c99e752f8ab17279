"""Texts as sets of hashed token runs (shingles), and their MinHash signatures.

Numbers are tokens like any other: a text with other numbers has other shingles. Hashes are XXH3 of
the tokens mixed by fixed arithmetic, never polars' own `hash`, which may change between its
versions: the same text has the same shingles for ever.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import rensa
import xxhash

Hashes = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]

NUM_BANDS, ROWS_PER_BAND = 21, 6
"""A pair of Jaccard J shares a band with probability 1 - (1 - J^6)^21: 0.93 at 0.7, 0.998 at 0.8."""

NUM_SLOTS = 128
_MINHASH_SEED = 20250430
_MIX = np.uint64(0x9E3779B97F4A7C15)

# Sizes, fonts, spaces and delimiters: how mathematics is set, not what it says.
_TYPESETTING = (
    r"\\(?:left|right|[bB]ig{1,2}[lr]?|displaystyle|textstyle|limits|q?quad|[hv]space|text(?:bf|it|rm)?|"
    r"math(?:rm|bf|it)|operatorname|mbox|rm|bf|it)\b|\\[,;:!\s\\()\[\]]|[${}~&]"
)
_SAME_SIGN = {
    **dict.fromkeys(["−", "–", "—"], "-"),
    **dict.fromkeys(["×", "·", "⋅", "∗", "\\times", "\\cdot"], "*"),
    **dict.fromkeys(["÷", "\\div"], "/"),
    **dict.fromkeys(["≤", "⩽"], "<="),
    **dict.fromkeys(["≥", "⩾"], ">="),
    "≠": "!=",
    **dict.fromkeys(["\\dfrac", "\\tfrac"], "\\frac "),
    **dict.fromkeys(["'(", "’("], " prime ("),
    "π": "\\pi ",
    "∞": "\\infty ",
}
_SAME_COMMAND = {r"\\le(?:qslant|q)?(\PL|$)": "<=$1", r"\\ge(?:qslant|q)?(\PL|$)": ">=$1", r"\\neq?(\PL|$)": "!=$1"}
_WORDS = r"\p{Han}|\pL+|\d+(?:\.\d+)?"
_WORDS_AND_SIGNS = _WORDS + r"|[-+*/^=<>()|!%_\[\]]"

_NUMBER_WORD = (
    "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|"
    "nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|half|third|quarter|"
    "twice|thrice|double|triple"
)
NUMBER_WORDS = frozenset(_NUMBER_WORD.split("|"))
"""Numbers as words; "one" is left out, for it mostly is no number."""
_QUANTITY = rf"\b(?:{_NUMBER_WORD})\b|[^\pL\s]+"


def words(texts: pl.Series) -> pl.Series:
    """The lower-case words and numbers of each text, a list each; signs and LaTeX commands are left out.

    What is left survives respacing, a change of delimiters and lost dollar signs.
    """
    plain = _joined_thousands(texts).str.replace_all(r"\\\pL+", " ")
    return plain.str.to_lowercase().str.extract_all(_WORDS)


def words_and_signs(texts: pl.Series) -> pl.Series:
    """As `words`, with the signs of mathematics and the names of LaTeX commands.

    Two formulas that differ in a sign, a bracket or a function differ here; typesetting does not show.
    """
    texts = texts.str.replace_all(r"[_^]\{\s*\}", "")  # indices that say nothing, as in A_{}^{}
    same = texts.str.replace_many(list(_SAME_SIGN), list(_SAME_SIGN.values()), leftmost=True)
    for command, sign in _SAME_COMMAND.items():
        same = same.str.replace_all(command, sign)
    bare = _joined_thousands(same).str.replace_all(_TYPESETTING, " ")
    # "two-digit" is a word, "x-y" a difference.
    bare = bare.str.replace_all(r"(\pL{2})-(\pL{2})", "$1 $2")
    return bare.str.to_lowercase().str.extract_all(_WORDS_AND_SIGNS)


def _joined_thousands(texts: pl.Series) -> pl.Series:
    """1,000 and 1{,}000 as 1000, and \\frac12 as 1 2."""
    split = texts.str.replace_all(r"(\\[dt]?frac)\s*(\d)\s*(\d)", "$1 $2 $3")
    for _ in range(2):  # a second time for millions, whose groups overlap
        split = split.str.replace_all(r"(\d)(?:,(?:\\!)?|\{,\})(\d{3})\b", "$1$2")
    return split


def quantities(tokens: pl.Series) -> pl.Series:
    """What each list of `words_and_signs` says beside its words: numbers and signs in order, as one string."""
    return tokens.list.join(" ").str.extract_all(_QUANTITY).list.join(" ")


def fingerprints(texts: pl.Series, seed: int = 0) -> Hashes:
    """64-bit XXH3 of each string."""
    return np.fromiter((xxhash.xxh3_64_intdigest(text, seed) for text in texts), np.uint64, len(texts))


@dataclass(frozen=True, slots=True)
class Shingles:
    """Shingle hashes of many texts end to end; those of text i stand at `offsets[i]:offsets[i + 1]`."""

    hashes: Hashes
    offsets: Offsets

    def counts(self) -> Offsets:
        """Number of shingles of each text, repeats included."""
        return np.diff(self.offsets)

    def rows(self) -> Offsets:
        """The text each hash belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts())

    def sets(self) -> pl.DataFrame:
        """`row`, `shingle`: each text's distinct shingles, sorted."""
        frame = pl.DataFrame({"row": self.rows().astype(np.uint32), "shingle": self.hashes})
        return frame.unique().sort("row", "shingle")


def shingles(tokens: pl.Series, size: int) -> Shingles:
    """Hashes of every run of `size` tokens; a text with fewer tokens is one shingle, an empty one none."""
    lengths = tokens.list.len().fill_null(0).to_numpy().astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    flat = _token_hashes(tokens.explode(empty_as_null=False, keep_nulls=False))
    rolled = flat.copy()
    whole = rolled.copy()  # at the start of a short text: the hash of all its tokens
    for width in range(2, size + 1):
        ends = flat[width - 1 :]
        rolled[: len(ends)] = mixed(rolled[: len(ends)], ends)
        first = starts[:-1][lengths == width]
        whole[first] = rolled[first]
    counts = np.where(lengths >= size, lengths - size + 1, np.minimum(lengths, 1))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - starts[:-1], counts)
    short = np.repeat(lengths < size, counts)
    return Shingles(np.where(short, whole[position], rolled[position]), offsets)


def _token_hashes(flat: pl.Series) -> Hashes:
    encoded = flat.to_arrow().dictionary_encode()
    hashes: Hashes = fingerprints(pl.Series(encoded.dictionary))[pl.Series(encoded.indices).to_numpy()]
    return hashes


def mixed(left: Hashes, right: Hashes) -> Hashes:
    """One hash of two, order-sensitive; arithmetic modulo 2^64."""
    both: Hashes = (left ^ (right + _MIX + (left << np.uint64(6)) + (left >> np.uint64(2)))) * _MIX
    return both ^ (both >> np.uint64(32))


def signatures(sets: Shingles) -> npt.NDArray[np.uint32]:
    """R-MinHash signatures, shape (texts, 128); the share of equal slots estimates Jaccard similarity."""
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        np.ascontiguousarray(sets.hashes), sets.offsets.astype(np.uint64), NUM_SLOTS, _MINHASH_SEED
    )
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(-1, NUM_SLOTS)


def bands(signature: npt.NDArray[np.uint32]) -> Hashes:
    """Locality-sensitive keys of each signature, shape (texts, `NUM_BANDS`): similar texts share one."""
    slots = signature[:, : NUM_BANDS * ROWS_PER_BAND].reshape(-1, NUM_BANDS, ROWS_PER_BAND).astype(np.uint64)
    keys = slots[:, :, 0]
    for slot in range(1, ROWS_PER_BAND):
        keys = mixed(keys, slots[:, :, slot])
    return keys


def candidate_pairs(keys: Hashes, block: Hashes, reach: int = 64) -> pl.DataFrame:
    """`a` < `b`: rows of one block that share a key in some band, each pair once.

    `keys` is (rows, bands), `block` (rows,). In a bucket of many rows each meets its next `reach`
    only, so a bucket of n rows costs n × `reach` and clusters still hang together.
    """
    found = [pl.DataFrame({"a": [], "b": []}, schema={"a": pl.UInt32, "b": pl.UInt32})]
    for band in range(keys.shape[1]):
        key = mixed(keys[:, band], block)
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        for step in range(1, min(reach, len(order) - 1) + 1):
            same = ordered[:-step] == ordered[step:]
            if not same.any():
                break
            rows = {"a": order[:-step][same], "b": order[step:][same]}
            found.append(pl.DataFrame(rows, schema={"a": pl.UInt32, "b": pl.UInt32}))
    return pl.concat(found).unique().sort("a", "b")


def jaccard(pairs: pl.DataFrame, sets: pl.DataFrame) -> pl.Series:
    """True Jaccard similarity of each pair (`a`, `b`) of rows of `Shingles.sets()`, in the pairs' order."""
    sizes = sets.group_by("row").agg(size=pl.len())
    shared = (
        pairs.select("a", "b")
        .join(sets.rename({"row": "a"}), on="a")
        .join(sets.rename({"row": "b"}), on=["b", "shingle"])
        .group_by("a", "b")
        .agg(shared=pl.len())
    )
    counted = (
        pairs.select("a", "b")
        .join(sizes.rename({"row": "a", "size": "size_a"}), on="a", how="left", maintain_order="left")
        .join(sizes.rename({"row": "b", "size": "size_b"}), on="b", how="left", maintain_order="left")
        .join(shared, on=["a", "b"], how="left", maintain_order="left")
        .with_columns(pl.col("shared").fill_null(0).cast(pl.Int64))
    )
    either = pl.col("size_a").cast(pl.Int64) + pl.col("size_b").cast(pl.Int64) - pl.col("shared")
    return counted.select((pl.col("shared") / either).cast(pl.Float32).alias("similarity")).to_series()


def clusters(num_rows: int, pairs: pl.DataFrame) -> Offsets:
    """For each row the smallest row it is joined to by `pairs` (`a`, `b`), directly or through others."""
    parent = list(range(num_rows))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for a, b in pairs.select("a", "b").iter_rows():
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return np.fromiter((root(row) for row in range(num_rows)), np.int64, num_rows)
