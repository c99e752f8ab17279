"""`curate view` on made-up rollouts: start, first page, filtered pages, a problem, an override; time and memory.

    python benchmarks/view.py WORK [--rollouts 1000000] [--repeats 10] [--keep]

WORK is made; the tables of a run directory are written there first (`benchmarks/planted.py`, the labels taken from what
was planted), and removed afterwards unless --keep; a later run finds them and goes on. Then `curate view` is started in
a process of its own, and asked over HTTP, one request after another. `ms` are from the request to the last byte: when
the page is asked for the first time, and the median and the slowest of the times after. `cpu` is the processor time of
the server, of both its cores, for each of these. `peak` is the most resident memory of the server.
"""

import argparse
import http.client
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import planted
import polars as pl
import psutil
import pyarrow as pa

from pipelines import parquet
from pipelines.tables import TABLES

Row = dict[str, Any]

_RULES = {"correct": "boxed:exact_number", "incorrect": "boxed:unequal"}


# --- the run directory ----------------------------------------------------------------------------


def make(root: Path, num_rollouts: int) -> None:
    """Write every table the page reads, unless an earlier run did."""
    if (root / "made").is_file():
        return
    shutil.rmtree(root, ignore_errors=True)
    planted.make(root, num_rollouts)
    truth = pl.read_parquet(root / "truth/rollouts.parquet").with_columns(
        verdict=pl.col("verdict").replace("cut", "no_answer"), truncated=pl.col("verdict") == "cut"
    )
    for path in parquet.table_files(root, "rollouts"):
        _write_labels(root, path, truth)
    refusal = pl.when(pl.col("verdict") != "correct").then(pl.col("verdict"))
    ids = pl.col("rollout_id").alias("id")
    split = [
        truth.select(pl.lit(stage).alias("stage"), ids, "prompt_id", refusal.alias("refusal")) for stage in _TRACES
    ]
    problems = truth.group_by("prompt_id", maintain_order=True).agg(right=(pl.col("verdict") == "correct").mean())
    easy = pl.when(pl.col("right") > 0.5).then(pl.lit("pass_rate_high")).alias("refusal")
    split.append(problems.select(pl.lit("rl").alias("stage"), pl.col("prompt_id").alias("id"), "prompt_id", easy))
    _write(root / "selections/split/00000.parquet", "selections/split", pl.concat(split))
    _write_pairs(root, truth)
    (root / "made").touch()


_TRACES = ("midtrain", "sft")


def _write_pairs(root: Path, truth: pl.DataFrame) -> None:
    """A pair for each problem that has a right and a wrong trace, without text: the page reads that of `rollouts`."""
    sides = [
        truth.filter(pl.col("verdict") == verdict)
        .group_by("prompt_id", maintain_order=True)
        .agg(pl.col("rollout_id").first().alias(name))
        for verdict, name in (("correct", "chosen_id"), ("incorrect", "rejected_id"))
    ]
    pairs = sides[0].join(sides[1], on="prompt_id", maintain_order="left").to_dicts()
    empty = {"prompt": [], "chosen": [], "rejected": [], "source": "planted"}
    rows = pa.Table.from_pylist([pair | empty for pair in pairs], schema=TABLES["shards/dpo"])
    parquet.write_file(root / "shards/dpo/00000.parquet", "shards/dpo", [rows])


def _write_labels(root: Path, path: Path, truth: pl.DataFrame) -> None:
    """The verdicts and annotations of one file of rollouts."""
    given = pl.from_arrow(parquet.read_table(path, "rollouts", ["rollout_id", "prompt_id", "completion_tokens"]))
    assert isinstance(given, pl.DataFrame)
    rows = given.join(truth.drop("prompt_id"), on="rollout_id", maintain_order="left")
    rule = pl.col("verdict").replace_strict(_RULES, default="none:no_answer")
    nothing = pl.lit(None, pl.String)
    verdicts = rows.select(
        "rollout_id",
        "prompt_id",
        "verdict",
        extracted=nothing,
        rule=rule,
        verifier=pl.lit("planted@1"),
        dissent=nothing,
    )
    _write(root / "verdicts" / path.name, "verdicts", verdicts)
    tokens = pl.col("completion_tokens")
    annotations = rows.select(
        "rollout_id", "prompt_id", num_chars=tokens * 4, num_tokens=tokens, truncated="truncated",
        compression_ratio=pl.lit(2.5), repeated_share=pl.lit(0.0), num_reflections=pl.lit(0),
        num_language_switches=pl.lit(0), answer_position=pl.lit(None, pl.Float32),
    )  # fmt: skip
    _write(root / "annotations/rollouts" / path.name, "annotations/rollouts", annotations)


def _write(path: Path, table: str, frame: pl.DataFrame) -> None:
    parquet.write_file(path, table, [frame.to_arrow().cast(pa.schema(TABLES[table]))])


# --- the page -------------------------------------------------------------------------------------


def measure(root: Path, repeats: int) -> list[Row]:
    """Start the page on `root` and ask for everything: a row for each kind of page."""
    rows = []
    started = time.monotonic()
    with served(root) as (address, process):
        seconds = time.monotonic() - started
        for what, paths in _asked(address).items():
            spent = psutil.Process(process.pid).cpu_times()
            times = [[_get(address, path)[0] for _ in range(repeats)] for path in paths]
            first = max(one[0] for one in times)
            later = sorted(ms for one in times for ms in one[1:])
            now = psutil.Process(process.pid).cpu_times()
            cpu = 1000 * (now.user + now.system - spent.user - spent.system) / (len(paths) * repeats)
            rows.append(
                {"page": what, "first": first, "median": statistics.median(later), "slowest": later[-1], "cpu": cpu}
            )
            print(f"{what}: {rows[-1]['median']:.0f} ms", file=sys.stderr, flush=True)
        peak = _peak(process.pid)
    print(f"ready after {seconds:.1f} s, peak {peak / 1e6:,.0f} MB")
    return rows


@contextmanager
def served(root: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`curate view` in a process of its own, with its address."""
    command = [Path(sys.executable).with_name("curate"), "view", root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split(" at ")[1].split()[0], process
        finally:
            process.terminate()


def _peak(pid: int) -> int:
    """Most resident bytes a process has held, as Linux counts them."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def _asked(address: str) -> dict[str, list[str]]:
    """What is measured -> addresses below the page's; several problems, as text lies in other files."""
    first = _get(address, "")[1]
    middle = _get(address, "?after=80000")[1]
    ids = re.findall(r"problem/([0-9a-f]{24})", first)[:2] + re.findall(r"problem/([0-9a-f]{24})", middle)[:2]
    verdict = urlencode({"verdict": "incorrect", "rule": _RULES["incorrect"], "min_tokens": 500})
    return {
        "first page": [""],
        "page from the middle": ["?after=80000"],
        "filter: source, domain, level": ["?source=labelled-set&domain=algebra&level=high+school"],
        "filter: verdict, rule, length": [f"?{verdict}", f"?{verdict}&after=80000"],
        "filter: stage and reason": ["?choice=sft:no_answer", "?choice=rl:pass_rate_high"],
        "search: a common word": ["?text=marathon"],
        "search: nothing found": [f"?text={quote('marathon of the zebras')}"],
        "search: an id": [f"?text={ids[-1]}"],
        "a problem, its rollouts": [f"problem/{id_}" for id_ in ids],
        "a problem in a filter": [f"problem/{id_}?verdict=incorrect" for id_ in ids],
        "pairs of a problem": [f"problem/{id_}/pairs" for id_ in ids],
    }


def _get(address: str, path: str) -> tuple[float, str]:
    """Milliseconds to the last byte, and the page."""
    at = urlsplit(address)
    started = time.perf_counter()
    connection = http.client.HTTPConnection(at.netloc, timeout=120)
    connection.request("GET", at.path + path)
    response = connection.getresponse()
    page = response.read().decode()
    elapsed = 1000 * (time.perf_counter() - started)
    connection.close()
    assert response.status == 200, (path, response.status)
    return elapsed, page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder to make the run directory in")
    parser.add_argument("--rollouts", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--keep", action="store_true", help="leave the run directory")
    options = parser.parse_args()
    root = options.work / f"rollouts-{options.rollouts}"
    make(root, options.rollouts)
    load = psutil.getloadavg()[0]
    rows = measure(root, options.repeats)
    print(f"{options.rollouts:,} rollouts; load of the machine {load:.1f} before, {psutil.getloadavg()[0]:.1f} after\n")
    print("| page | first ms | median ms | slowest ms | cpu ms |", "| --- | ---: | ---: | ---: | ---: |", sep="\n")
    for row in rows:
        print(f"| {row['page']} | {' | '.join(f'{row[name]:.0f}' for name in ('first', 'median', 'slowest', 'cpu'))} |")
    if not options.keep:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
