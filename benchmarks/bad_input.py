"""What people bring, at full size: how `curate` ends, what it says, what it takes.

    python benchmarks/bad_input.py WORK [--gigabytes 5]

WORK is made, and removed afterwards. The big files are traces of about 34 KB: JSON lines, and the same as Parquet in
one row group, as pandas writes what fits in memory; that is twice the space on disk, and once in memory while the
Parquet file is made. Every command is the one a user types, in a process of its own. A problem with a million rollouts
is `python benchmarks/curate_scale.py WORK --rollouts 2000 --heavy 1000000`.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import planted
import pyarrow as pa
import pyarrow.parquet as pq
from curate_scale import lines_of, processor_seconds, watched

Row = dict[str, str]

_SENTENCES = 30
"""Made-up traces that make one long trace."""
_SAMPLES = 4


def long_rows(num_bytes: int) -> Iterator[Row]:
    """Rows of about so many bytes in all: four traces a problem, every third of them wrong."""
    rng = np.random.default_rng(0)
    pool = planted.traces(rng, 20_000).to_list()
    written = number = 0
    while written < num_bytes:
        asked, off = number // _SAMPLES, number % 3 == 0
        thought = "\n".join(pool[place] for place in rng.integers(0, len(pool), _SENTENCES))
        row = {
            "problem": f"What is ${asked} + {asked + 1}$ in the end?",
            "answer": str(2 * asked + 1),
            "completion": f"<think>\n{thought}\n</think>\n\\boxed{{{2 * asked + 1 + off}}}",
            "model": "made up",
        }
        yield row
        written += sum(map(len, row.values()))
        number += 1


def few(wrong: bool, count: int = 40) -> list[Row]:
    """Short traces, four a problem; every second one is wrong, or none."""
    rows = []
    for number in range(count):
        asked, off = number // _SAMPLES, wrong and number % 2
        answer = f"\\boxed{{{2 * asked + 1 + off}}}"
        rows.append(
            {"problem": f"What is ${asked} + {asked + 1}$?", "answer": str(2 * asked + 1), "completion": answer}
        )
    return rows


def write_lines(path: Path, rows: Iterable[Row]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def write_one_group(path: Path, lines: Path) -> Path:
    """The rows of `lines` as Parquet, in one row group, without compression."""
    from pyarrow import json as arrow_json

    table = arrow_json.read_json(lines, read_options=arrow_json.ReadOptions(block_size=64 << 20))
    pq.write_table(table, path, row_group_size=table.num_rows, compression="none", use_dictionary=False)
    assert pq.read_metadata(path).num_row_groups == 1
    return path


# --- cases ----------------------------------------------------------------------------------------


class Cases:
    """What was asked of `curate`, a row each."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self.rows: list[Row] = []

    def run(self, what: str, *arguments: object, word: str = "error:") -> None:
        """Run `curate` with `arguments`; keeps how it ended, what it took, and the line with `word`, or the last."""
        command = [sys.executable, "-m", "curate.cli", *map(str, arguments)]
        started, used = time.monotonic(), processor_seconds()
        with tempfile.TemporaryFile("w+") as output:
            code, peak = watched(command, output)
            output.seek(0)
            said = [line for line in output.read().splitlines() if line.strip() and not line.startswith("hint:")]
        line = next((line for line in said if word in line), said[-1])
        seconds, cpu = time.monotonic() - started, processor_seconds() - used
        row = {"what": what, "exit code": f"{code}", "seconds": f"{seconds:.1f}", "CPU s": f"{cpu:.1f}"}
        self.rows.append({**row, "peak MB": f"{peak / 1e6:,.0f}", "says": line.replace(f"{self._work}/", "")})
        print(self.rows[-1], file=sys.stderr, flush=True)


def curate(*arguments: object) -> None:
    """Run a command that is no case of its own."""
    subprocess.run([sys.executable, "-m", "curate.cli", *map(str, arguments)], check=True, stdout=sys.stderr)


def big_files(cases: Cases, work: Path, gigabytes: float) -> None:
    lines = write_lines(work / "big.jsonl", long_rows(round(gigabytes * 1e9)))
    cases.run(f"JSON lines of {gigabytes:g} GB", "import", lines, "--out", work / "lines")
    shutil.rmtree(work / "lines", ignore_errors=True)
    group = write_one_group(work / "big.parquet", lines)
    lines.unlink()
    cases.run(f"Parquet of {gigabytes:g} GB in one row group", "import", group, "--out", work / "group")
    shutil.rmtree(work / "group", ignore_errors=True)
    group.unlink()


def broken_files(cases: Cases, work: Path) -> None:
    folder = work / "several"
    folder.mkdir()
    for number in range(3):
        pq.write_table(pa.Table.from_pylist(few(wrong=True)), folder / f"{number}.parquet")
    whole = (folder / "1.parquet").read_bytes()
    (folder / "1.parquet").write_bytes(whole[: len(whole) // 2])
    cases.run("a truncated Parquet file in a folder", "import", folder, "--out", work / "folder")
    out = work / "out"
    write_lines(work / "few.jsonl", few(wrong=True))
    curate("import", work / "few.jsonl", "--out", out, "--set", "import.rows_per_file=10")
    file = sorted((out / "rollouts").iterdir())[1]
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    cases.run("a truncated file in a run directory", "verify", out)
    file.write_bytes(whole)
    cases.run("mended, and verified again", "verify", out)


def empty_input(cases: Cases, work: Path) -> None:
    whole = {**few(wrong=True)[0], "model": "m"}
    gaps = [whole, *({**whole, name: empty} for name in whole for empty in ("", " \n"))]
    cases.run("empty strings", "import", write_lines(work / "gaps.jsonl", gaps), "--out", work / "gaps")
    for name, content in (
        ("no rows", ""),
        ("no problem in it", '{"answer": "4"}\n'),
        ("an empty problem", '{"problem": "", "answer": "4"}\n'),
    ):
        heldout = work / "heldout.jsonl"
        heldout.write_text(content)
        cases.run(f"a benchmark file with {name}", "decontaminate", work / "out", "--against", heldout)


def lopsided(cases: Cases, work: Path) -> None:
    out = work / "right"
    curate("import", write_lines(work / "right.jsonl", few(wrong=False)), "--out", out)
    for stage in ("verify", "dedupe", "annotate"):
        curate(stage, out)
    cases.run("more SFT rows than there are", "split", out, "--set", "split.sft_size=1000000", word="asked for")
    cases.run("a pool without wrong rollouts", "build-dpo-pairs", out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder to make")
    parser.add_argument("--gigabytes", type=float, default=5.0, help="size of each big file; 0 for none")
    options = parser.parse_args()
    options.work.mkdir(parents=True)
    cases = Cases(options.work)
    try:
        broken_files(cases, options.work)
        empty_input(cases, options.work)
        lopsided(cases, options.work)
        if options.gigabytes:
            big_files(cases, options.work, options.gigabytes)
    finally:
        shutil.rmtree(options.work)
    print(*lines_of(cases.rows), sep="\n")


if __name__ == "__main__":
    main()
