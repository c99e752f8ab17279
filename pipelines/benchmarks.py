"""Benchmarks by name or file, as tables of `prompts`: what evaluation asks and decontamination searches for."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from pipelines.errors import UserError
from pipelines.fields import BadRow
from pipelines.foreign import SUFFIXES, ForeignRows, Unreadable, open_rows, stem
from pipelines.layouts import recognise
from pipelines.rows import Problem, not_unicode, prompt_row
from pipelines.tables import PROMPTS

FOLDER_VARIABLE = "TRACEMILL_BENCHMARKS"
"""Environment variable: a folder of local copies, `NAME.jsonl`, `NAME.parquet` or `NAME.csv`."""


class Benchmark(NamedTuple):
    """Where a benchmark is on the Hugging Face hub."""

    dataset: str
    split: str
    config: str = ""
    problems: int = 0
    """How many it has."""

    @property
    def source(self) -> str:
        """As `open_rows` takes it."""
        return f"hf:{self.dataset}:{self.config}:{self.split}"


BENCHMARKS: dict[str, Benchmark] = {
    "aime24": Benchmark("HuggingFaceH4/aime_2024", "train", problems=30),
    "aime25": Benchmark("math-ai/aime25", "test", problems=30),
    "amc23": Benchmark("math-ai/amc23", "test", problems=40),
    "math500": Benchmark("HuggingFaceH4/MATH-500", "test", problems=500),
    "gsm8k": Benchmark("openai/gsm8k", "test", "main", problems=1319),
    "gpqa": Benchmark("Idavidrein/gpqa", "train", "gpqa_diamond", problems=198),
    "olympiadbench": Benchmark("Hothan/OlympiadBench", "train", "OE_TO_maths_en_COMP", problems=674),
}
"""Name -> where it is. GPQA's makers ask that its text is not shown online; its dataset wants a log-in."""


def load_benchmark(name_or_file: str, *, need_answers: bool = False) -> pa.Table:
    """The problems of a benchmark, in its order, each problem once, with the schema of `prompts`.

    `name_or_file` is a name of `BENCHMARKS`, a file or folder, or `NAME=FILE` for a copy under that
    name. A registered name is looked for in the folder that TRACEMILL_BENCHMARKS names before the
    hub is asked. `UserError` for what cannot be read: a benchmark with holes is none.
    """
    source, name = _source(name_or_file), benchmark_name(name_or_file)
    rows = open_rows(source)
    problems: dict[str, dict[str, object]] = {}
    for number, problem in _problems(rows):
        row = prompt_row(problem, name, f"row {number}")
        first = problems.setdefault(str(row["prompt_id"]), row)
        if need_answers and first["answer"] != row["answer"]:
            raise UserError(
                f"benchmark `{name_or_file}`, row {number}: a problem that stands above with another answer: "
                f"{row['answer']!r}, not {first['answer']!r}",
                hint="a problem has one reference answer: mend the file",
            )
    unanswered = sum(row["answer"] is None for row in problems.values())
    if need_answers and unanswered:
        raise UserError(
            f"benchmark `{name_or_file}`: {unanswered} of {len(problems)} problems have no reference answer",
            hint="an evaluation needs an answer for each problem: in a column `answer`, or in another file",
        )
    return pa.Table.from_pylist(list(problems.values()), schema=PROMPTS)


def benchmark_name(name_or_file: str) -> str:
    """What a benchmark and its folder are called: its name, the name in `NAME=FILE`, or its file's without suffix."""
    name, equals, _ = name_or_file.partition("=")
    if not equals or Path(name_or_file).exists():
        name = name_or_file if name_or_file in BENCHMARKS else _file_name(name_or_file)
    if not name or name.startswith(".") or "/" in name:
        raise UserError(f"benchmark `{name_or_file}`: `{name}` cannot be its name", hint="name it, as in NAME=FILE")
    return name


def _source(name_or_file: str) -> str:
    """What `open_rows` takes for a benchmark."""
    _, equals, file = name_or_file.partition("=")
    if equals and not Path(name_or_file).exists():
        if not file:
            raise UserError(f"benchmark `{name_or_file}` names no file", hint="NAME=FILE")
        return file
    if name_or_file in BENCHMARKS:
        return _local_copy(name_or_file) or BENCHMARKS[name_or_file].source
    if name_or_file.startswith("hf:") or Path(name_or_file).exists():
        return name_or_file
    raise UserError(
        f"no benchmark `{name_or_file}`, and no such file",
        hint=f"name a file, NAME=FILE, or one of: {', '.join(BENCHMARKS)}",
    )


def _file_name(source: str) -> str:
    """What a file, a folder or a dataset of the hub is called, without the suffix of its format."""
    if source.startswith("hf:"):
        return source.rpartition("/")[2]
    path = Path(source)
    return stem(path if path.name not in ("", "..") else path.resolve())


def _local_copy(name: str) -> str | None:
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is None:
        return None
    if not Path(folder).is_dir():
        raise UserError(f"{FOLDER_VARIABLE} names `{folder}`, which is no folder", hint="correct or unset it")
    found = (Path(folder) / f"{name}{suffix}" for suffix in SUFFIXES)
    return next((str(path) for path in found if path.is_file()), None)


def _problems(rows: ForeignRows) -> Iterator[tuple[int, Problem]]:
    """Row number and problem of every row; `UserError` at the first that cannot be read."""
    sample = [row.values for row in rows.peek()]
    if not sample:
        raise UserError(f"`{rows.source}` has no rows that can be read", hint="check that it is the file you mean")
    layout, reader = recognise(rows.source, sample)
    for row in rows.read():
        try:
            if isinstance(row, Unreadable):
                raise BadRow(row.reason, row.detail)
            problem = layout.read(row.values, reader).problem
            if not_unicode({**problem._asdict(), "choices": list(problem.choices)}):
                raise BadRow("not_unicode", repr(problem.text[:100]))
        except BadRow as fault:
            raise UserError(
                f"benchmark `{rows.source}`, row {row.number}: {fault.reason}: {fault.detail[:200]}",
                hint="a benchmark is read whole or not at all: mend the row",
            ) from None
        yield row.number, problem
