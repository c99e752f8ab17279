"""How far public problem sets repeat each other, and how much of each touches the benchmarks that judge its users.

    python benchmarks/public_sets.py FOLDER [--against math500 gsm8k_test aime24] [--show 0] [--seed 0]

FOLDER holds one `NAME.jsonl` for each set. All problems stand in one table, each under its set; `dedupe` clusters them
and `decontaminate` searches the sets for the problems of `--against`. With --show, so many random pairs of either are
printed, to be judged by eye.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.stages.decontaminate import DecontaminateConfig, decontaminate
from curate.stages.dedupe import DedupeConfig, dedupe
from pipelines import parquet
from pipelines.benchmarks import load_benchmark
from pipelines.tables import PROMPTS
from verifiers import VERIFIERS, Outcome, Question

Row = dict[str, Any]


def load(folder: Path) -> dict[str, pa.Table]:
    """Each set by name, its problems with ids of their own, so that equal ones of two sets stay two."""
    sets = {path.stem: load_benchmark(f"{path.stem}={path}") for path in sorted(folder.glob("*.jsonl"))}
    return {name: _with_ids(name, table) for name, table in sets.items()}


def _with_ids(name: str, table: pa.Table) -> pa.Table:
    ids = pa.array([f"{name}/{number:06}" for number in range(table.num_rows)])
    return table.set_column(PROMPTS.get_field_index("prompt_id"), PROMPTS.field("prompt_id"), ids)


def duplicates(sets: dict[str, pa.Table]) -> list[Row]:
    """The labels of `dedupe` over all sets."""
    with tempfile.TemporaryDirectory() as folder:
        parquet.write_file(Path(folder) / "prompts/00000.parquet", "prompts", list(sets.values()))
        started = time.perf_counter()
        labels: list[Row] = dedupe(Path(folder), DedupeConfig()).to_pylist()
    problems = sum(table.num_rows for table in sets.values())
    print(f"dedupe: {problems:,} problems of {len(sets)} sets in {time.perf_counter() - started:.1f} s")
    return labels


def print_duplicates(sets: dict[str, pa.Table], labels: list[Row]) -> None:
    """What each set repeats of itself and of others, and which sets share most."""
    members: dict[str, list[str]] = {}
    for row in labels:
        members.setdefault(row["cluster"], []).append(row["id"])
    methods = Counter(row["method"] for row in labels if not row["keep"])
    print(f"{len(members):,} clusters, {sum(methods.values()):,} problems too many: {dict(methods)}")
    inside, outside, shared = Counter[str](), Counter[str](), Counter[tuple[str, str]]()
    for ids in members.values():
        counts = Counter(row_id.split("/")[0] for row_id in ids)
        for name, count in counts.items():
            inside[name] += count - 1
            outside[name] += count if len(counts) > 1 else 0
        shared.update(combinations(sorted(counts), 2))
    print(f"\n{'set':28} {'problems':>8} {'repeats itself':>14} {'stand elsewhere':>15}")
    for name, table in sets.items():
        if inside[name] or outside[name]:
            share = f"({outside[name] / table.num_rows:.0%})"
            print(f"{name:28} {table.num_rows:8,} {inside[name]:14,} {outside[name]:8,} {share:>6}")
    print("\nshared by two sets")
    for (first, second), count in shared.most_common(25):
        print(f"{count:6,}  {first}, {second}")


def contamination(sets: dict[str, pa.Table], against: list[str]) -> list[Row]:
    """The hits of `decontaminate` in every set that is not itself searched for."""
    items = {name: sets[name] for name in against}
    searched = [batch for name, table in sets.items() if name not in items for batch in table.to_batches(4096)]
    started = time.perf_counter()
    hits = [row for batch in decontaminate(searched, items, DecontaminateConfig()) for row in batch.to_pylist()]
    print(f"\ndecontaminate: {sum(map(len, searched)):,} problems in {time.perf_counter() - started:.1f} s")
    prompts = {row["prompt_id"]: row for table in sets.values() for row in table.to_pylist()}
    of_item = {(name, row["source_id"]): row for name in against for row in sets[name].to_pylist()}
    print(
        f"{'set':28} {'problems':>8}"
        + "".join(f"{name:>12} {'(its items)':>12} {'same answer':>12}" for name in against)
    )
    for name, table in sets.items():
        ours = [row for row in hits if row["prompt_id"].startswith(f"{name}/")]
        counts = [
            touching([(prompts[row["prompt_id"]], of_item[at, row["item"]]) for row in ours if row["benchmark"] == at])
            for at in against
        ]
        if ours:
            shown = "".join(f"{found:12,} {f'({touched:,})':>12} {alike:12,}" for found, touched, alike in counts)
            print(f"{name:28} {table.num_rows:8,}{shown}")
    for name in against:
        leaked = {row["item"] for row in hits if row["benchmark"] == name}
        print(f"of {name}, {len(leaked):,} of {items[name].num_rows:,} problems stand in some other set")
    return hits


def touching(pairs: list[tuple[Row, Row]]) -> tuple[int, int, int]:
    """Of problems and the items they touch: how many problems, how many items, problems with the item's answer."""
    found = {prompt["prompt_id"] for prompt, _ in pairs}
    touched = {item["prompt_id"] for _, item in pairs}
    alike = {prompt["prompt_id"] for prompt, item in pairs if same_answer(prompt, item)}
    return len(found), len(touched), len(alike)


def same_answer(prompt: Row, item: Row) -> bool:
    """Whether a problem has the answer of the item it touches; one that has another asks something else."""
    have, want = (_answer(row) for row in (prompt, item))
    if have is None or want is None:
        return False
    return VERIFIERS["mathematics"](Question(want), f"\\boxed{{{have}}}").outcome is Outcome.CORRECT


def _answer(row: Row) -> str | None:
    """The reference answer; of a letter the option it stands for."""
    answer, options = row["answer"], row["choices"]
    place = "ABCDEFGHIJ".find((answer or "?").strip())
    return options[place] if options and 0 <= place < len(options) else answer


def show(title: str, pairs: list[tuple[str, str, float]], problems: dict[str, str], count: int, seed: int) -> None:
    """So many random pairs, with their score."""
    shuffled = random.Random(seed)
    for first, second, score in shuffled.sample(pairs, min(count, len(pairs))):
        print(f"\n--- {title} {score:.2f}: {first}, {second}")
        print(f"{problems[first][:400]}\n  | {problems[second][:400]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--against", nargs="+", default=["math500", "gsm8k_test", "aime24"])
    parser.add_argument("--show", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sets = load(given.folder)
    labels = duplicates(sets)
    print_duplicates(sets, labels)
    hits = contamination(sets, given.against)
    if given.show:
        text = {row["prompt_id"]: row["problem"] for table in sets.values() for row in table.to_pylist()}
        ids = {(name, row["source_id"]): row["prompt_id"] for name in given.against for row in sets[name].to_pylist()}
        near = [(row["id"], row["cluster"], row["similarity"]) for row in labels if row["similarity"] < 1]
        show("near-duplicates", near, text, given.show, given.seed)
        found = [(row["prompt_id"], ids[row["benchmark"], row["item"]], row["score"]) for row in hits]
        show("hit", found, text, given.show, given.seed)


if __name__ == "__main__":
    sys.exit(main())
