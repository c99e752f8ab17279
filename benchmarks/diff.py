"""Diff and digest of two versions with many rollouts: seconds, and the most memory held.

`python benchmarks/diff.py --rollouts 1000000 --folder build/diff`
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.diff import count_table, diff
from pipelines import parquet
from pipelines.commands import table_text
from pipelines.content import directory_content
from pipelines.memory import peak_bytes
from pipelines.tables import TABLES, content_id

_BATCH = 10_000
_SAMPLES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=1_000_000)
    parser.add_argument("--chars", type=int, default=400, help="characters of a trace")
    parser.add_argument("--folder", type=Path, default=Path("build/diff"))
    settings = parser.parse_args()
    a, b = settings.folder / "a", settings.folder / "b"
    for root, shift in ((a, 0), (b, settings.rollouts // 100)):
        if not (root / "verdicts").is_dir():
            write_run(root, settings.rollouts, shift, settings.chars)
    rows = [measured("diff", lambda: diff(a, b)), measured("content digest of one", lambda: directory_content(a))]
    print(table_text(rows))
    print(table_text(count_table(diff(a, b))))


def measured(what: str, work: Callable[[], Any]) -> dict[str, Any]:
    """Seconds and peak memory of `work` in a process of its own."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def run() -> None:
        started = time.perf_counter()
        work()
        results.put((time.perf_counter() - started, peak_bytes() / 2**20))

    process = context.Process(target=run)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{what} failed")
    seconds, peak = results.get()
    return {"what": what, "seconds": seconds, "peak_MiB": peak}


def write_run(root: Path, rollouts: int, shift: int, chars: int) -> None:
    """Rollouts `shift` to `shift + rollouts` and their verdicts; of every thousandth the verdict depends on `shift`."""

    def tables(name: str, row: Callable[[int], dict[str, Any]]) -> Iterator[pa.RecordBatch]:
        for start in range(shift, shift + rollouts, _BATCH):
            numbers = range(start, min(start + _BATCH, shift + rollouts))
            yield pa.RecordBatch.from_pylist([row(number) for number in numbers], schema=TABLES[name])

    parquet.write_file(root / "rollouts/00000.parquet", "rollouts", tables("rollouts", lambda n: _rollout(n, chars)))
    parquet.write_file(root / "verdicts/00000.parquet", "verdicts", tables("verdicts", lambda n: _verdict(n, shift)))


def _rollout(number: int, chars: int) -> dict[str, Any]:
    text = f"{number} plus {number % 97} is {number + number % 97}. "
    return {
        "rollout_id": content_id("r", number),
        "prompt_id": content_id("p", number // _SAMPLES),
        "model": "m",
        "sample_index": number % _SAMPLES,
        "sampling_id": "s",
        "temperature": 0.6,
        "top_p": 0.95,
        "max_tokens": 4096,
        "seed": number,
        "reasoning": (text * (chars // len(text) + 1))[:chars],
        "response": f"\\boxed{{{number}}}",
        "reasoning_form": "tags",
        "finish_reason": "stop",
        "completion_tokens": chars // 4,
        "source": f"source-{number % 5}",
    }


def _verdict(number: int, shift: int) -> dict[str, Any]:
    return {
        "rollout_id": content_id("r", number),
        "prompt_id": content_id("p", number // _SAMPLES),
        "verdict": "incorrect" if number % 3 == 0 or (shift and number % 1000 == 1) else "correct",
        "extracted": str(number),
        "rule": "boxed:exact_number",
        "verifier": "mathematics@2",
    }


if __name__ == "__main__":
    main()
