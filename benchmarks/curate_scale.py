"""All label stages, `split` and `build-dpo-pairs` on planted data: time, memory, text read and written, what is found.

    python benchmarks/curate_scale.py WORK [--rollouts 10000 100000] [--heavy 0] [--stages dedupe] [--keep]

WORK is made; each size gets a run directory in it, removed afterwards unless --keep. Every stage runs in a process of
its own, as the command line would run it. `CPU` is the processor time of that process and of those it has waited for:
it depends less than seconds on what else the machine does, so growth is told of it. `peak` is the resident memory of
that process and of all processes it starts, together, sampled 20 times a second; pages that processes share are counted
in each. `read` and `written` are the bytes of trace text (reasoning, response, and a shard's messages) that pass
through `pipelines.parquet`.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import planted
import psutil
from planted import LEAKS

STAGES = (
    "verify",
    "dedupe",
    "decontaminate",
    "annotate",
    "split",
    "build_dpo_pairs hardest",
    "build_dpo_pairs one-to-one",
    "build_dpo_pairs",
    "card",
)
"""A stage, with its strategy where it runs twice; the pairs that stay are those of the default."""
Row = dict[str, Any]


# --- one stage, in a process of its own -----------------------------------------------------------


def run_directory(work: Path, num_rollouts: int) -> Path:
    """Where the run of this size lies."""
    return work / f"planted-{num_rollouts}"


def run_step(name: str, root: Path, num_rollouts: int, seed: int, heavy: int) -> Row:
    """Make the planted tables, or run one stage on them: its seconds, and the bytes of trace text that passed."""
    from curate.card import write_card
    from curate.pipeline import STEPS
    from pipelines import parquet

    text = {"read": 0, "written": 0}
    read, write = parquet.read_batches, parquet.write_file

    def counted(batches: Iterable[Any], way: str) -> Iterator[Any]:
        for batch in batches:
            text[way] += sum(batch[column].nbytes for column in batch.schema.names if column in _TEXT)
            yield batch

    parquet.read_batches = lambda *given, **named: counted(read(*given, **named), "read")
    parquet.write_file = lambda path, table, batches, *rest: write(path, table, counted(batches, "written"), *rest)
    started, used = time.monotonic(), processor_seconds()
    stage, _, strategy = name.partition(" ")
    if stage == "make":
        planted.make(root, num_rollouts, seed, heavy)
    elif stage == "card":
        write_card(root)
    else:
        given = {"against": [str(root / "benchmark.jsonl")]} if stage == "decontaminate" else {}
        given |= {"strategy": strategy} if strategy else {}
        STEPS[stage].load().run(root, STEPS[stage].parse({stage: given}, stage), replace=True)
    seconds, cpu = time.monotonic() - started, processor_seconds() - used
    return {"seconds": seconds, "cpu": cpu, "rollouts": num_rollouts + heavy, **text}


def processor_seconds() -> float:
    """Processor time that this process and its ended children have had."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


_TEXT = ("reasoning", "response", "messages", "chosen", "rejected")


# --- watching it ----------------------------------------------------------------------------------


def measure(work: Path, num_rollouts: int, seed: int, heavy: int, stages: Sequence[str]) -> list[Row]:
    """Make a run directory of so many rollouts and run `stages` on it: a row each."""
    root = run_directory(work, num_rollouts)
    shutil.rmtree(root, ignore_errors=True)
    me = [sys.executable, __file__, str(work), "--rollouts", num_rollouts, "--seed", seed, "--heavy", heavy]
    rows = []
    for name in ("make", *stages):
        code, peak = watched([str(part) for part in (*me, "--step", name)])
        if code:
            raise SystemExit(f"`{name}` failed")
        rows.append({"stage": name, "peak": peak, **json.loads((root / "report.json").read_text())})
        print(
            f"{name} {rows[-1]['seconds']:.1f} s, CPU {rows[-1]['cpu']:.1f} s, peak {peak / 1e6:,.0f} MB",
            file=sys.stderr,
            flush=True,
        )
    return rows


def watched(command: list[str], output: IO[str] | None = None) -> tuple[int, int]:
    """Run a command; its exit code, and the most resident bytes that it and everything it started held."""
    process = subprocess.Popen(command, stdout=output, stderr=output)
    parent, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            peak = max(peak, sum(_resident(member) for member in (parent, *parent.children(recursive=True))))
        time.sleep(0.05)
    return process.returncode, peak


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


# --- what was found -------------------------------------------------------------------------------

# A cluster of n copies is n - 1 finds, whichever member is kept: its k-th copy and the k-th label of it are one `id`.
_FINDS = {
    "right answers": ("SELECT rollout_id AS id FROM planted WHERE verdict = 'correct'", "correct"),
    "wrong answers": ("SELECT rollout_id AS id FROM planted WHERE verdict = 'incorrect'", "incorrect"),
    "no answer": ("SELECT rollout_id AS id FROM planted WHERE verdict IN ('no_answer', 'cut')", "no_answer"),
}
_LABELLED_VERDICT = "SELECT rollout_id AS id FROM verdicts WHERE verdict = '{}'"
_COPIES = ("'respaced'", "'reworded'", "'wrapped'")
_QUERIES: dict[str, tuple[str, str]] = {
    **{what: (planted, _LABELLED_VERDICT.format(verdict)) for what, (planted, verdict) in _FINDS.items()},
    "copied problems": (
        f"SELECT CAST(copy_of AS VARCHAR) AS id FROM problems WHERE kind IN ({', '.join(_COPIES)})",
        f"""SELECT CASE WHEN a.copy_of = b.copy_of AND a.kind IN ('original', {", ".join(_COPIES)})
                    AND b.kind IN ('original', {", ".join(_COPIES)}) THEN CAST(a.copy_of AS VARCHAR) ELSE d.id END AS id
            FROM duplicates d JOIN problems a ON a.prompt_id = d.id JOIN problems b ON b.prompt_id = d.cluster
            WHERE d.kind = 'problem' AND NOT d.keep""",
    ),
    "copied traces": (
        "SELECT root || row_number() OVER (PARTITION BY root) AS id FROM planted WHERE copy IS NOT NULL",
        """SELECT CASE WHEN a.root = b.root THEN a.root || row_number() OVER (PARTITION BY a.root) ELSE d.id END AS id
           FROM duplicates d JOIN planted a ON a.rollout_id = d.id JOIN planted b ON b.rollout_id = d.cluster
           WHERE d.kind = 'trace' AND NOT d.keep""",
    ),
    "leaked problems": (
        "SELECT prompt_id AS id FROM problems WHERE kind LIKE 'leak:%'",
        "SELECT DISTINCT prompt_id AS id FROM contamination",
    ),
    **{
        f"- {kind}": (
            f"SELECT prompt_id AS id FROM problems WHERE kind = 'leak:{kind}'",
            f"SELECT prompt_id AS id FROM problems WHERE kind = 'leak:{kind}' AND prompt_id IN "
            "(SELECT prompt_id FROM contamination)",
        )
        for kind in LEAKS
    },
    "cut traces": (
        "SELECT rollout_id AS id FROM planted WHERE verdict = 'cut'",
        "SELECT rollout_id AS id FROM annotations WHERE truncated",
    ),
    "looping traces": (
        "SELECT rollout_id AS id FROM planted WHERE loops",
        "SELECT rollout_id AS id FROM annotations WHERE repeated_share > 0.2",
    ),
}
_NEVER: dict[str, tuple[str, str]] = {
    "problems with other numbers, found as copies": (
        "SELECT prompt_id FROM problems WHERE kind = 'renumbered'",
        "SELECT id FROM duplicates JOIN problems ON prompt_id = id WHERE NOT keep AND problems.kind = 'renumbered'",
    ),
    "benchmark problems with other numbers, found as leaks": (
        "SELECT prompt_id FROM problems WHERE kind = 'leak-renumbered'",
        "SELECT DISTINCT prompt_id FROM contamination JOIN problems USING (prompt_id) WHERE kind = 'leak-renumbered'",
    ),
    "wrong traces in midtrain": (
        "FROM midtrain",
        "SELECT rollout_id FROM midtrain WHERE rollout_id NOT IN (FROM right_ids)",
    ),
    "leaked problems in a shard": (
        "SELECT prompt_id FROM midtrain UNION SELECT prompt_id FROM dpo UNION SELECT prompt_id FROM rl",
        "SELECT prompt_id FROM problems WHERE kind LIKE 'leak:%' AND (prompt_id IN (SELECT prompt_id FROM midtrain) "
        "OR prompt_id IN (SELECT prompt_id FROM dpo) OR prompt_id IN (SELECT prompt_id FROM rl))",
    ),
    "wrong traces chosen in a pair": ("FROM dpo", "SELECT chosen_id FROM dpo WHERE chosen_id NOT IN (FROM right_ids)"),
    "right traces rejected in a pair": (
        "FROM dpo",
        "SELECT rejected_id FROM dpo WHERE rejected_id IN (FROM right_ids)",
    ),
}
"""What must not happen -> where it could, and where it did."""


@contextmanager
def opened(root: Path) -> Iterator[Any]:
    """A connection with the tables of a run and the truth about them."""
    import duckdb

    files = {
        "verdicts": "verdicts", "duplicates": "duplicates", "contamination": "contamination",
        "annotations": "annotations/rollouts", "dpo": "shards/dpo", "midtrain": "shards/midtrain", "rl": "shards/rl",
    }  # fmt: skip
    with duckdb.connect() as connection:
        for view, folder in files.items():
            connection.execute(f"CREATE VIEW {view} AS FROM '{root}/{folder}/*.parquet'")
        connection.execute(f"CREATE VIEW problems AS FROM '{root}/truth/prompts.parquet'")
        connection.execute(f"CREATE VIEW planted AS FROM '{root}/truth/rollouts.parquet'")
        connection.execute("CREATE VIEW right_ids AS SELECT rollout_id FROM planted WHERE verdict = 'correct'")
        yield connection


def finds(connection: Any) -> list[Row]:
    """For everything planted: how many there are, how many labels, and how many of them are right."""
    rows = []
    for what, (truth, labelled) in _QUERIES.items():
        counts = connection.sql(
            f"WITH p AS ({truth}), l AS ({labelled}) SELECT (SELECT count(*) FROM p), (SELECT count(*) FROM l), "
            "(SELECT count(*) FROM l SEMI JOIN p USING (id))"
        )
        there, labels, right = counts.fetchall()[0]
        recall, precision = (f"{100 * right / count:.2f} %" if count else "–" for count in (there, labels))
        rows.append(
            {"planted": what, "there": there, "labels": labels, "right": right}
            | {"recall": recall, "precision": precision}
        )
    return rows


def slips(connection: Any) -> list[Row]:
    """What must not happen: in how many it could, and in how many it did."""
    return [
        {"must not happen": what}
        | {name: connection.sql(query).count("*").fetchall()[0][0] for name, query in (("of", where), ("found", found))}
        for what, (where, found) in _NEVER.items()
    ]


# --- report ---------------------------------------------------------------------------------------


def stage_lines(rows: list[Row], smaller: list[Row] | None) -> list[str]:
    """The stages as a table; with the rows of a smaller size, how much longer and bigger each has become."""
    head = ["stage", "seconds", "CPU s", "rows/CPU s", "peak MB", "read MB", "written MB", "× CPU", "× peak"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    before = {row["stage"]: row for row in smaller or ()}
    for row in rows:
        growth = ["–", "–"]
        if row["stage"] in before:
            growth = [f"{row[key] / before[row['stage']][key]:.1f}" for key in ("cpu", "peak")]
        numbers = [f"{row['seconds']:.1f}", f"{row['cpu']:.1f}", f"{row['rollouts'] / row['cpu']:,.0f}"]
        numbers.append(f"{row['peak'] / 1e6:,.0f}")
        numbers += [f"{row[key] / 1e6:,.1f}" for key in ("read", "written")]
        lines.append("| " + " | ".join([row["stage"].replace("_", "-"), *numbers, *growth]) + " |")
    return lines


def lines_of(rows: list[Row]) -> list[str]:
    """Rows as a table: the first column is a name, the others are numbers."""
    cells = [[f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()] for row in rows]
    rule = "| --- |" + " ---: |" * (len(rows[0]) - 1)
    return ["| " + " | ".join(rows[0]) + " |", rule, *("| " + " | ".join(row) + " |" for row in cells)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder to make run directories in")
    parser.add_argument("--rollouts", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--heavy", type=int, default=0, help="rollouts of one problem on top")
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=STAGES, help="these alone; finds are not counted"
    )
    parser.add_argument("--keep", action="store_true", help="leave the run directories")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        root = run_directory(options.work, options.rollouts[0])
        report = run_step(options.step, root, options.rollouts[0], options.seed, options.heavy)
        (root / "report.json").write_text(json.dumps(report))
        return
    smaller = None
    for num_rollouts in options.rollouts:
        rows = measure(options.work, num_rollouts, options.seed, options.heavy, options.stages)
        root = run_directory(options.work, num_rollouts)
        size = sum(path.stat().st_size for path in root.rglob("*.parquet"))
        print(f"\n{num_rollouts:,} rollouts, {size / 1e6:,.0f} MB of tables\n", *stage_lines(rows, smaller), sep="\n")
        if set(options.stages) == set(STAGES):
            with opened(root) as connection:
                print("", *lines_of(finds(connection)), "", *lines_of(slips(connection)), sep="\n", flush=True)
        smaller = rows
        if not options.keep:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
