"""Decontaminate: label prompts that hold a benchmark's problem, with the evidence.

A set stage over problem text, which it streams past an index of the benchmarks. A long benchmark
problem is found by the share of its 5-token shingles that stand in the prompt (letters and digits
only, so respacing and wrappers do not hide it), a short one by 3-token shingles that keep signs and
LaTeX commands. Then the numbers decide: a prompt that has other numbers where the benchmark's stand
is another problem, not a copy.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import ne
from pathlib import Path
from statistics import median_low
from typing import Any

import polars as pl
import pyarrow as pa
from pydantic import Field

from curate import shingles
from curate.frames import problem_text, to_frame
from pipelines import parquet
from pipelines.benchmarks import load_benchmark
from pipelines.config import Config
from pipelines.errors import UserError
from pipelines.runner import Outcome, Stage, run_set_stage
from pipelines.tables import CONTAMINATION, PROMPTS, content_id

STAGE = Stage("decontaminate", reads=("prompts",), writes=("contamination",))


class DecontaminateConfig(Config):
    """Which benchmarks, and how much of a problem is a hit."""

    against: tuple[str, ...] = ()
    """Benchmarks by name, or files of held-out problems."""
    long_containment: float = Field(0.2, gt=0, le=1)
    """Least share of a long item's shingles found in the prompt."""
    short_containment: float = Field(0.6, gt=0, le=1)
    """The same for an item below `short_tokens`."""
    short_tokens: int = Field(13, ge=0)
    """Items with fewer words and numbers count as short."""


@dataclass(frozen=True)
class _Index:
    """Benchmark items of one length class and where their shingles stand."""

    method: str
    size: int
    threshold: float
    items: pl.DataFrame
    """`benchmark`, `item`, `tokens`, `num_shingles`."""
    shingles: pl.DataFrame
    """`item_row`, `shingle`."""


_BATCH_ROWS = 4096
_EVIDENCE_CHARS = 400
_JOINS = frozenset("+-*/^")
_PHRASE_ITEMS = 4
"""Shingles of so many items of one benchmark are phrases ("as a common fraction") and do not count."""
_TOKEN_SHARE = 0.6
"""Least share of an item's tokens in the stretch of the prompt where the item would stand."""


def run(root: Path, config: DecontaminateConfig, *, replace: bool = False) -> Outcome:
    """Make the `contamination` table of a run directory."""
    benchmarks = _load(config.against)
    digests = [content_id(name, _content(table)) for name, table in benchmarks.items()]
    prompts = (
        batch
        for path in parquet.table_files(root, "prompts")
        for batch in parquet.read_batches(path, "prompts", batch_rows=_BATCH_ROWS)
    )
    return run_set_stage(
        root,
        STAGE,
        config,
        lambda: {"contamination": decontaminate(prompts, benchmarks, config)},
        replace=replace,
        side_inputs=digests,
    )


def _load(names: Sequence[str]) -> dict[str, pa.Table]:
    """Each benchmark by the name its problems carry."""
    if not names:
        raise UserError("no benchmark to decontaminate against", hint="e.g., `--against aime24,math500,heldout.jsonl`")
    benchmarks: dict[str, pa.Table] = {}
    for name in names:
        table = load_benchmark(name)
        if not table.num_rows:
            raise UserError(f"benchmark `{name}` has no problems", hint="check the file")
        called = str(table["source"][0].as_py())
        if called in benchmarks:
            raise UserError(f"two benchmarks are called `{called}`", hint="name one of them, as in `NAME=FILE`")
        benchmarks[called] = table
    return benchmarks


def _content(benchmark: pa.Table) -> list[list[Any]]:
    return [benchmark["source_id"].to_pylist(), benchmark["prompt_id"].to_pylist()]


def decontaminate(
    prompts: Iterable[pa.RecordBatch], benchmarks: Mapping[str, pa.Table], config: DecontaminateConfig
) -> Iterator[pa.RecordBatch]:
    """The `contamination` rows of each batch: one for each prompt and benchmark item found in it."""
    indexes = _indexes(benchmarks, config)
    for batch in prompts:
        found = [hit for index in indexes for hit in _hits(batch, index)]
        found.sort(key=lambda hit: (hit["prompt_id"], hit["benchmark"], hit["item"]))
        yield pa.RecordBatch.from_pylist(found, schema=CONTAMINATION)


# --- index ----------------------------------------------------------------------------------------


def _indexes(benchmarks: Mapping[str, pa.Table], config: DecontaminateConfig) -> list[_Index]:
    items = pl.concat(
        [
            to_frame(table.select(["problem", "choices", "source_id"])).with_columns(benchmark=pl.lit(name))
            for name, table in benchmarks.items()
        ]
    )
    short = shingles.words(_without_figures(items["problem"])).list.len() < config.short_tokens
    long_items, short_items = items.filter(~short), items.filter(short)
    long_tokens = shingles.words(_without_figures(long_items["problem"]))
    # A short question ("Which of these is true?") is told from others by its options.
    short_tokens = shingles.words_and_signs(problem_text(short_items))
    return [
        _index("containment", 5, config.long_containment, long_items, long_tokens),
        _index("short_containment", 3, config.short_containment, short_items, short_tokens),
    ]


def _index(method: str, size: int, threshold: float, items: pl.DataFrame, tokens: pl.Series) -> _Index:
    sets = shingles.shingles(tokens, size).sets()
    of = items["benchmark"].gather(sets["row"])
    sets = sets.with_columns(phrase=pl.len().over("shingle", of) >= _PHRASE_ITEMS)
    # An item that is nothing but phrases is judged by them.
    sets = sets.filter(~pl.col("phrase") | pl.col("phrase").all().over("row")).drop("phrase").sort("row", "shingle")
    counts = sets.group_by("row").agg(num_shingles=pl.len())
    described = (
        items.select("benchmark", pl.col("source_id").alias("item"))
        .with_columns(tokens.alias("tokens"))
        .with_row_index("row")
        .join(counts, on="row", how="left", maintain_order="left")
    )
    return _Index(method, size, threshold, described, sets.rename({"row": "item_row"}))


def _without_figures(problems: pl.Series) -> pl.Series:
    """Copies of a problem often lack its figure's code."""
    return problems.str.replace_all(r"(?s)\[asy\].*?\[/asy\]", " ")


# --- scan -----------------------------------------------------------------------------------------


def _hits(prompts: pa.RecordBatch, index: _Index) -> Iterator[dict[str, Any]]:
    frame = to_frame(prompts)
    if index.method == "containment":
        tokens = shingles.words(_without_figures(problem_text(frame)))
    else:
        tokens = shingles.words_and_signs(problem_text(frame))
    shared = (
        shingles.shingles(tokens, index.size)
        .sets()
        .join(index.shingles, on="shingle")
        .group_by("row", "item_row")
        .agg(shared=pl.len())
        .join(index.items.select(item_row="row", num_shingles="num_shingles"), on="item_row")
        .with_columns(score=pl.col("shared") / pl.col("num_shingles"))
        .filter(pl.col("score") >= index.threshold)
        .sort("row", "item_row")
    )
    for row, item_row, score in shared.select("row", "item_row", "score").iter_rows():
        item = index.items.row(item_row, named=True)
        window = matched_window(tokens[row].to_list(), item["tokens"], index.size)
        if is_copy(window, item["tokens"]):
            yield {
                "prompt_id": frame["prompt_id"][row],
                "benchmark": item["benchmark"],
                "item": item["item"],
                "method": index.method,
                "score": score,
                "evidence": " ".join(window)[:_EVIDENCE_CHARS],
            }


def matched_window(prompt: Sequence[str], item: Sequence[str], size: int) -> Sequence[str]:
    """The tokens of `prompt` that stand where those of `item` would, judged by their common shingles."""
    size = min(size, len(item))
    places = {tuple(item[at : at + size]): at for at in reversed(range(len(item) - size + 1))}
    matches = [(at, places.get(tuple(prompt[at : at + size]), -1)) for at in range(len(prompt) - size + 1)]
    matches = [(at, place) for at, place in matches if place >= 0]
    middle = median_low(at - place for at, place in matches)
    # A stray phrase far from the rest is no part of the copy.
    matches = [(at, place) for at, place in matches if abs(at - place - middle) <= len(item)]
    (first, first_place), (last, last_place) = matches[0], matches[-1]
    start, stop = max(0, first - first_place), last + len(item) - last_place
    # "What is 12 * 9" is no part of "What is 12 * 9 + 5".
    if prompt[start - 1 : start] and prompt[start - 1] in _JOINS and not item[0].isalpha():
        start = max(0, start - 2)
    if prompt[stop : stop + 1] and prompt[stop] in _JOINS:
        stop += 2
    return prompt[start:stop]


def is_copy(window: Sequence[str], item: Sequence[str]) -> bool:
    """Whether `window` can be a copy of `item`: it has most of its tokens, and hardly a number that `item` lacks."""
    have, want = Counter(window), Counter(item)
    have_numbers, want_numbers = _numbers(have), _numbers(want)
    shared = (have & want).total() >= _TOKEN_SHARE * want.total()
    foreign = (have_numbers - want_numbers).total()
    present = (have_numbers & want_numbers).total()
    return shared and foreign <= have_numbers.total() // 20 and 3 * present >= want_numbers.total()


def _numbers(tokens: Counter[str]) -> Counter[str]:
    return Counter(
        {token: count for token, count in tokens.items() if not token.isalpha() or token in shingles.NUMBER_WORDS}
    )


# --- recall ---------------------------------------------------------------------------------------


def measure_recall(
    name: str, benchmark: pa.Table, clean: pa.Table, config: DecontaminateConfig
) -> list[dict[str, Any]]:
    """How much of `benchmark` (a `prompts` table) is found in planted copies of it, and what is found in `clean`.

    A row for each way of copying: `benchmark`, `copies`, `planted`, `found`, `rate`. Of `new numbers`
    (another problem) and `clean` (prompts known to be no copies) nothing should be found.
    """
    rows = []
    for copies, rewrite in COPIES.items():
        problems = [str(problem) for problem in benchmark["problem"].to_pylist()]
        changed = [rewrite(problem) for problem in problems]
        planted = _with_problems(benchmark, changed)
        if copies == "new numbers":
            planted = planted.filter(pa.array(list(map(ne, problems, changed))))
        rows.append(_recall_row(name, copies, planted, benchmark, config))
    return [*rows, _recall_row(name, "clean", clean, benchmark, config)]


def _prefixed(problem: str) -> str:
    return f"Solve the following math problem step by step. Put the answer on the last line.\n\n{problem}"


def _respaced(problem: str) -> str:
    return re.sub(r"([{}^_+\-=*/()])", r" \1 ", problem.replace("$", ""))


def _every_7th_word_dropped(problem: str) -> str:
    return " ".join(word for place, word in enumerate(problem.split(), start=1) if place % 7)


def _new_numbers(problem: str) -> str:
    return re.sub(r"\d+", lambda match: str(int(match[0][:18]) + 3 + match.start() % 5), problem)


COPIES: dict[str, Callable[[str], str]] = {
    "verbatim": str,
    "prefixed": _prefixed,
    "respaced": _respaced,
    "words dropped": _every_7th_word_dropped,
    "new numbers": _new_numbers,
}


def _with_problems(prompts: pa.Table, problems: Sequence[str]) -> pa.Table:
    field = PROMPTS.field("problem")
    return prompts.set_column(prompts.schema.get_field_index("problem"), field, pa.array(problems, field.type))


def _recall_row(
    name: str, copies: str, prompts: pa.Table, benchmark: pa.Table, config: DecontaminateConfig
) -> dict[str, Any]:
    # By place, not by id: copies keep the id of their original.
    places = pa.array([str(place) for place in range(prompts.num_rows)], pa.string())
    numbered = prompts.set_column(prompts.schema.get_field_index("prompt_id"), PROMPTS.field("prompt_id"), places)
    hits = decontaminate(numbered.to_batches(_BATCH_ROWS), {name: benchmark}, config)
    found = len({place for batch in hits for place in batch["prompt_id"].to_pylist()})
    rate = found / prompts.num_rows if prompts.num_rows else None
    return {"benchmark": name, "copies": copies, "planted": prompts.num_rows, "found": found, "rate": rate}
