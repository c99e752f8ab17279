"""A run directory of made-up problems and traces whose faults are planted, so that what a stage finds can be counted.

Text is put together from phrases with other names and numbers each time, so that two problems or traces share words
as real ones do, and nothing but the planted copies is a copy. All choices come from one seed. The truth stands in
`truth/prompts.parquet` and `truth/rollouts.parquet` beside the tables.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines import parquet
from pipelines.tables import PROMPTS, ROLLOUTS, content_id, prompt_id

PROBLEM_SHARE = 0.16
"""Problems per rollout: 1M rollouts of 160K problems."""
_FILE_PROBLEMS = 5_000
"""Problems whose rollouts make one file."""
_FILE_ROLLOUTS = 30_000
"""Rollouts of the heavy problem that make one file."""

# What is planted among the problems, as shares of all; among the rollouts, loops as a share of those cut.
COPIES = {"respaced": 0.02, "reworded": 0.02, "wrapped": 0.01}
RENUMBERED = 0.05
LEAKS = {"verbatim": 0.0025, "instructed": 0.0025, "formatted": 0.0025, "gapped": 0.0025}
LEAKS_RENUMBERED = 0.005
_VERDICTS = {"correct": 0.52, "incorrect": 0.38, "no_answer": 0.04, "cut": 0.06}
_LOOPS, _NEAR_TRACES, _STRAY_TRACES = 0.2, 0.02, 0.002


def _phrases(text: str, separator: str = "|") -> list[str]:
    return text.split(separator)


_WHO = _phrases(
    "Ana Boris Chen Dara Emil Farah Goro Hana Ivo Jun Kofi Lena Mateo Nadia Omar Priya Quin Rosa Samir Tala", " "
)
_FIELDS = {
    "algebra": ("polynomial coefficient root expression equation variable system factor limit exponent", "high school"),
    "geometry": ("triangle circle radius chord square diagonal angle rectangle tangent hexagon", "high school"),
    "number theory": ("divisor remainder prime integer multiple digit residue cube modulus quotient", "college"),
    "counting & probability": ("marble deck coin seat committee card ball draw arrangement path", "middle school"),
    "arithmetic": ("apple ticket basket coin crate page marathon bottle ribbon lamp", "elementary"),
}  # fmt: skip
_VERBS = _phrases("counts measures compares collects arranges divides draws doubles records examines marks sorts", " ")
_HOW = _phrases(
    "with great care|before the bell rings|on a sheet of paper|for the third time|without any help|in a single row|"
    "along the river bank|during the long recess|as the teacher asked|from left to right|with a borrowed ruler|"
    "while the others wait|under the old bridge|in order of size|for a small wager|at the village fair"
)
_ASK = _phrases(
    "What is the largest possible value of the sum|How many are left at the end|Find the total that remains|"
    "Determine the smallest number that works|What is the ratio of the two|Compute the exact value|"
    "How many ways are there to do so|By how much does the second exceed the first|"
    "What must be added to make both equal|Find the value that satisfies every condition"
)
_STEPS = _phrases(
    "So we first|Then we should|Now let us|Next one can|It follows that we|From the condition we|Because of that we|"
    "Wait, let me check whether we|Looking again we|In the second case we|Alternatively we|Put differently we"
)
_DO = _phrases(
    "expand the product on the left|isolate the unknown|substitute back into the relation|count the remaining cases|"
    "square both sides|collect the like terms|use the symmetry of the figure|apply the same bound twice|"
    "split the interval at the middle|write the total as a difference|compare the two remainders|"
    "draw the missing segment|fix the first element and vary the rest|list the small values by hand|"
    "move everything to one side|treat the two halves separately|drop the term that vanishes|round up to the next whole"
)
_WHY = _phrases(
    "since nothing else depends on it|which keeps the parity unchanged|because the order does not matter|"
    "as the question suggests|so that the bound becomes sharp|and the rest cancels|by the previous step|"
    "which is what we wanted|although it looks circular at first|and this can be verified directly|"
    "without losing any solution|where both factors are positive|given that the sum is fixed|up to a harmless sign"
)


def make(root: Path, num_rollouts: int, seed: int = 0, heavy: int = 0) -> Path:
    """Write `prompts`, `rollouts` and the truth below `root`; returns the file of the benchmark whose items leak.

    One problem gets `heavy` rollouts on top.
    """
    rng = np.random.default_rng(seed)
    problems = _problems(rng, round(num_rollouts * PROBLEM_SHARE))
    items = problems.filter(pl.col("kind") == "item")
    benchmark = root / "benchmark.jsonl"
    root.mkdir(parents=True, exist_ok=True)
    lines = (
        json.dumps({"problem": text, "answer": gold}) for text, gold in items.select("problem", "gold").iter_rows()
    )
    benchmark.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    pool = problems.filter(pl.col("kind") != "item")
    pool = pool.with_columns(pl.Series("prompt_id", [prompt_id(text) for text in pool["problem"]]))
    assert pool["prompt_id"].is_unique().all(), "two planted problems have one id"
    _write_prompts(root, pool)
    _write(root / "truth/prompts.parquet", pool.select("prompt_id", "kind", "copy_of"))
    _write_rollouts(root, rng, pool.select("prompt_id", "gold", "source"), num_rollouts, heavy)
    return benchmark


def _write(path: Path, frame: pl.DataFrame) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path)


# --- problems -------------------------------------------------------------------------------------


def _problems(rng: np.random.Generator, num_problems: int) -> pl.DataFrame:
    """`problem`, `gold`, `domain`, `level`, `source`, `kind`, `copy_of` of every problem and benchmark item, shuffled.

    `kind` is original, a key of `COPIES`, renumbered, `leak:` and a key of `LEAKS`, leak-renumbered, or item.
    `copy_of` is the number of the original that it repeats.
    """
    copies = {kind: round(share * num_problems) for kind, share in COPIES.items()}
    leaks = {kind: max(1, round(share * num_problems)) for kind, share in LEAKS.items()}
    num_renumbered, num_others = round(RENUMBERED * num_problems), max(1, round(LEAKS_RENUMBERED * num_problems))
    num_items = sum(leaks.values()) + num_others
    num_originals = num_problems - sum(copies.values()) - sum(leaks.values()) - num_renumbered - num_others
    base = _originals(rng, num_originals + num_items)
    originals, items = base.head(num_originals), base.tail(num_items)
    parts = [originals, items.with_columns(kind=pl.lit("item"))]
    victims = iter(np.split(rng.permutation(num_originals), np.cumsum([*copies.values(), num_renumbered])))
    parts += [_varied(originals[next(victims)], kind) for kind in copies]
    renumbered = originals[next(victims)]
    parts.append(_renumbered(rng, renumbered).with_columns(kind=pl.lit("renumbered")))
    leaked = iter(np.split(np.arange(num_items), np.cumsum(list(leaks.values()))))
    parts += [_varied(items[next(leaked)], kind).with_columns(kind=pl.lit(f"leak:{kind}")) for kind in leaks]
    parts.append(_renumbered(rng, items[next(leaked)]).with_columns(kind=pl.lit("leak-renumbered")))
    everything = pl.concat(parts)
    return everything[rng.permutation(everything.height)]


def _originals(rng: np.random.Generator, count: int) -> pl.DataFrame:
    """Problems of three or four sentences with five numbers each, no two alike."""
    names = list(_FIELDS)
    field = rng.integers(0, len(names), count)
    numbers = rng.integers(2, 1000, (count, 5))
    nouns = [np.array(_FIELDS[name][0].split())[rng.integers(0, 10, (count, 3))] for name in names]
    noun = np.choose(field[:, None], nouns)
    who, other = (_picked(rng, _WHO, count) for _ in range(2))
    verb, how, how_too, ask = (_picked(rng, pool, count) for pool in (_VERBS, _HOW, _HOW, _ASK))
    frame = pl.DataFrame(
        {
            "row": np.arange(count), "who": who, "other": other, "verb": verb, "how": how, "too": how_too, "ask": ask,
            **{f"noun{k}": noun[:, k] for k in range(3)}, **{f"n{k}": numbers[:, k] for k in range(5)},
        }
    )  # fmt: skip
    text = pl.format(
        "{} {} ${}$ of the {} {}, and every {} is worth ${}$ points. Later {} takes away ${}+{}$ of them {} and "
        "leaves a {} of size $\\frac{{{}}}{{7}}$ behind. {}?",
        "who", "verb", "n0", "noun0", "how", "noun1", "n1", "other", "n2", "n3", "too", "noun2", "n4", "ask",
    )  # fmt: skip
    labelled = rng.random(count) < 0.7
    levels = np.array([_FIELDS[name][1] for name in names])[field]
    return frame.select(text.alias("problem"), copy_of="row").with_columns(
        pl.Series("gold", _golds(rng, count)),
        pl.Series("domain", np.array(names)[field]).set(pl.Series(~labelled), None),
        pl.Series("level", levels).set(pl.Series(~labelled), None),
        pl.Series("source", np.where(labelled, "labelled-set", "bare-set")),
        kind=pl.lit("original"),
    )


def _picked(rng: np.random.Generator, pool: Sequence[str], count: int) -> npt.NDArray[np.str_]:
    return np.array(pool)[rng.integers(0, len(pool), count)]


def _golds(rng: np.random.Generator, count: int) -> list[str]:
    """Whole numbers, thousands, fractions in lowest terms, decimals, roots, points."""
    kind = rng.choice(6, count, p=[0.55, 0.1, 0.15, 0.08, 0.07, 0.05])
    a, b = rng.integers(1, 1000, count), rng.integers(2, 40, count)
    forms = ("{a}", "{c},{d:03}", "\\frac{{{p}}}{{{q}}}", "{a}.{b}7", "{b}\\sqrt{{{s}}}", "({a}, {b})")
    squarefree = [2, 3, 5, 6, 7, 10, 11, 13]
    return [
        forms[k].format(a=x, b=y, c=y, d=x, p=y * (x % 17 + 1) + 1, q=y, s=squarefree[x % 8])
        for k, x, y in zip(kind.tolist(), a.tolist(), b.tolist(), strict=True)
    ]


def _varied(problems: pl.DataFrame, kind: str) -> pl.DataFrame:
    """Copies of `problems`, changed as somebody who passes a problem on changes it."""
    text = pl.col("problem")
    how = {
        "verbatim": text,
        "respaced": text.str.replace_all("$", " ", literal=True).str.replace_all("+", r"\,+\,", literal=True),
        "reworded": text.str.replace("of the", "from the", literal=True).str.replace(
            "Later", "After that", literal=True
        ),
        "wrapped": pl.concat_str(pl.lit("Solve the following problem. "), text),
        "instructed": pl.format("Please solve this step by step.\n\n{}\n\nPut the answer in a box.", text),
        "formatted": text.str.replace_all(r"\$|\\left|\\right", "").str.replace_all(r"([+=])", " $1 "),
        "gapped": text.map_elements(_gapped, return_dtype=pl.String),
    }
    return problems.with_columns(how[kind].alias("problem"), kind=pl.lit(kind))


def _gapped(text: str) -> str:
    """Every seventh word left out, but for numbers."""
    return " ".join(word for k, word in enumerate(text.split(" ")) if k % 7 != 6 or any(c.isdigit() for c in word))


def _renumbered(rng: np.random.Generator, problems: pl.DataFrame) -> pl.DataFrame:
    """The same words about other numbers: other problems, with other answers."""
    first = pl.Series("first", rng.integers(1000, 9000, problems.height).astype(str))
    text = pl.concat_str(
        pl.col("problem").str.extract(r"^([^$]*\$)"), "first", pl.col("problem").str.extract(r"(?s)^[^$]*\$\d+(.*)$")
    )
    changed = problems.with_columns(first).with_columns(problem=text).drop("first")
    return changed.with_columns(pl.Series("gold", _golds(rng, problems.height)))


def _write_prompts(root: Path, pool: pl.DataFrame) -> None:
    prompts = pool.select(
        "prompt_id",
        "problem",
        pl.lit(None, pl.List(pl.String)).alias("choices"),
        pl.col("gold").alias("answer"),
        pl.lit(None, pl.String).alias("solution"),
        pl.lit("mathematics").alias("verifier"),
        "source",
        pl.col("prompt_id").alias("source_id"),
        pl.lit("MIT").alias("licence"),
        "domain",
        "level",
    )
    parquet.write_file(root / "prompts/00000.parquet", "prompts", [prompts.to_arrow().cast(PROMPTS)])


# --- rollouts -------------------------------------------------------------------------------------


def _write_rollouts(root: Path, rng: np.random.Generator, pool: pl.DataFrame, num_rollouts: int, heavy: int) -> None:
    """Rollouts of every problem, as many as can be shared out evenly, in files of `_FILE_PROBLEMS` problems.

    Then those of the heavy problem, an original, in files of `_FILE_ROLLOUTS`.
    """
    sizes = _group_sizes(rng, pool.height, num_rollouts)
    jobs = [
        (pool.slice(first, _FILE_PROBLEMS), sizes[first : first + _FILE_PROBLEMS], 0)
        for first in range(0, pool.height, _FILE_PROBLEMS)
    ]
    original = pool.head(1)
    jobs += [
        (original, np.array([min(_FILE_ROLLOUTS, heavy - first)]), 100 + first)
        for first in range(0, heavy, _FILE_ROLLOUTS)
    ]
    truth = []
    for number, job in enumerate(jobs):
        made = _rollouts(rng, *job)
        table = made.select(_rollout_columns()).to_arrow().cast(ROLLOUTS)
        parquet.write_file(root / f"rollouts/{number:05}.parquet", "rollouts", [table])
        truth.append(made.select("rollout_id", "prompt_id", "verdict", "copy", "root", "loops"))
    _write(root / "truth/rollouts.parquet", pl.concat(truth))


def _group_sizes(rng: np.random.Generator, problems: int, rollouts: int) -> npt.NDArray[np.int64]:
    """4 to 8 rollouts a problem, `rollouts` in all."""
    sizes = rng.integers(4, 9, problems)
    while (left := rollouts - int(sizes.sum())) != 0:
        at = rng.permutation(problems)[: abs(left)]
        sizes[at] += np.sign(left)
    return sizes


def _rollouts(
    rng: np.random.Generator, asked: pl.DataFrame, sizes: npt.NDArray[np.int64], first_index: int
) -> pl.DataFrame:
    """The rollouts of some problems, so many of each from `first_index` on, with what was planted in each."""
    count = int(sizes.sum())
    problem = np.repeat(np.arange(asked.height), sizes)
    index = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    verdict = rng.choice(list(_VERDICTS), count, p=list(_VERDICTS.values()))
    loops = (rng.random(count) < _LOOPS) & (verdict == "cut")
    gold = asked["gold"][problem]
    wrong = asked["gold"][rng.permutation(asked.height)][problem]
    wrong = pl.Series([_other(text) if text == right else text for text, right in zip(wrong, gold, strict=True)])
    stated = pl.Series(np.where(verdict == "correct", _restated(rng, gold), wrong))
    frame = pl.DataFrame(
        {
            "prompt_id": asked["prompt_id"][problem], "source": asked["source"][problem], "sample_index": index,
            "gold": gold,
            "problem": problem, "verdict": verdict, "loops": loops, "stated": stated, "trace": traces(rng, count),
        }
    )  # fmt: skip
    frame = _with_copies(rng, frame)
    ids = [
        content_id(asked_id, k + first_index) for asked_id, k in frame.select("prompt_id", "sample_index").iter_rows()
    ]
    loop = pl.concat_str("trace", pl.lit(" But wait, that gives the same value again, so I must start over." * 40))
    finished = pl.format("The value we want is $\\boxed{{{}}}$.", "stated")
    silent = pl.lit("I could not bring this to an end and leave it here.")
    cut = pl.col("verdict") == "cut"
    response = pl.when(cut).then(pl.lit("")).when(pl.col("verdict") == "no_answer").then(silent).otherwise(finished)
    return frame.with_columns(
        pl.col("sample_index") + first_index,
        pl.Series("rollout_id", ids),
        pl.Series("root", ids)[frame["donor"]],
        response=response,
        reasoning=pl.when("loops").then(loop).otherwise("trace"),
    )


def _other(text: str) -> str:
    return f"{text}1" if text.isdigit() else "77777"


def _restated(rng: np.random.Generator, golds: pl.Series) -> pl.Series:
    """The golds, a third of them written in another way that means the same."""
    other = (
        golds.str.replace(r"^(\d+),(\d{3})$", "$1$2")
        .str.replace(r"^\\frac\{(\d+)\}\{(\d+)\}$", r"\dfrac{$1}{$2}")
        .str.replace(r"^(\d+)\.(\d+)7$", "$1.${2}70")
        .str.replace(r"^\((\d+), (\d+)\)$", r"\left($1,$2\right)")
        .str.replace(r"^(\d{1,3})$", "$1.0")
    )
    return pl.Series(np.where(rng.random(len(golds)) < 0.33, other, golds))


def traces(rng: np.random.Generator, count: int) -> pl.Series:
    """Chains of 4 to 60 sentences, about 1.2 KB on average, with sums in them that are right."""
    pool = pl.Series([f"{step} {do} {why}, and" for step, do, why in product(_STEPS, _DO, _WHY)])
    lengths = np.clip(rng.lognormal(2.3, 0.5, count), 4, 60).astype(np.int64)
    total = int(lengths.sum())
    a, b = rng.integers(2, 10_000, total), rng.integers(2, 10_000, total)
    sentences = pl.DataFrame({"say": pool[rng.integers(0, len(pool), total)], "a": a, "b": b, "sum": a + b}).select(
        text=pl.format("{} {} + {} = {}.", "say", "a", "b", "sum")
    )
    owner = pl.Series("owner", np.repeat(np.arange(count), lengths))
    return sentences.group_by(owner, maintain_order=True).agg(pl.col("text").str.join(" "))["text"]


def _with_copies(rng: np.random.Generator, frame: pl.DataFrame) -> pl.DataFrame:
    """Some traces repeat the first of their problem almost word by word, some one of another problem exactly."""
    count = frame.height
    chance = rng.random(count)
    near = (chance < _NEAR_TRACES) & (frame["sample_index"] > 0).to_numpy()
    stray = (chance > 1 - _STRAY_TRACES) & (frame["problem"] > 0).to_numpy()
    first = np.arange(count) - frame["sample_index"].to_numpy()
    donor = np.where(near, first, np.where(stray, first - 1, np.arange(count)))
    # A copy of a copy would have no donor of its own text.
    near, stray = near & ~(near | stray)[donor], stray & ~(near | stray)[donor]
    # Two problems may have one answer, and then the other's trace would be right here too.
    foreign = (frame["gold"][donor] != frame["gold"]) & (frame["stated"][donor] != frame["gold"])
    stray &= foreign.to_numpy()
    donor = np.where(near | stray, donor, np.arange(count))
    given = frame.select("trace", "stated", "verdict", "loops")[donor]
    planted = pl.DataFrame({"near": near, "stray": stray})
    slightly = pl.col("trace").str.replace("we", "one", literal=True)
    # Another problem's trace states another problem's answer.
    foreign = pl.col("stray") & (pl.col("verdict") == "correct")
    copied = pl.concat([given, planted], how="horizontal").select(
        "stated",
        "loops",
        pl.when("near").then(slightly).otherwise("trace").alias("trace"),
        pl.when(foreign).then(pl.lit("incorrect")).otherwise("verdict").alias("verdict"),
        pl.when("near").then(pl.lit("near")).when("stray").then(pl.lit("stray")).alias("copy"),
    )
    return frame.with_columns(*copied, pl.Series("donor", donor))


def _rollout_columns() -> Iterator[pl.Expr]:
    cut = pl.col("verdict") == "cut"
    made = {
        "model": pl.lit("planted"),
        "sampling_id": pl.lit("planted"),
        "reasoning_form": pl.when(cut).then(pl.lit("truncated")).otherwise(pl.lit("tags")),
        "finish_reason": pl.when(cut).then(pl.lit("length")).otherwise(pl.lit("stop")),
        "completion_tokens": ((pl.col("reasoning").str.len_bytes() + pl.col("response").str.len_bytes()) // 4),
    }
    for field in ROLLOUTS:
        if field.name in made:
            yield made[field.name].alias(field.name)
        elif field.name in ("rollout_id", "prompt_id", "sample_index", "reasoning", "response", "source"):
            yield pl.col(field.name)
        else:
            yield pl.lit(None).alias(field.name)
