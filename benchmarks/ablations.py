"""Ablations on the pocket models: RL without each remedy, and a base that is fine-tuned on a few long traces.

python benchmarks/ablations.py remedies demo work          # demo: the folder of a finished `make demo`
python benchmarks/ablations.py naive demo work --seeds 0 1 2

`remedies` trains the DPO model by the recipe's `[rl]`, whole and with each of the paper's three remedies off, over as
many sampled tokens (`STEPS`: what a step samples differs). The demo's RL problems were never sampled, so that its
`split` cannot tell even lengths: here the DPO model samples each of them 8 times at temperature 1 first. Few are
uneven in the recipe's sense (p90 / p10 of the lengths above 2), so "even" is the half with the lower ratios, and
without the remedy as many problems are drawn from all.

`naive` makes a base that knows something short (mid-training on the shortest third of each level's right traces) and
fine-tunes it, and the recipe's mid-trained model, by `[sft]` on the 100 longest right traces.

Every model is evaluated on DEMO/heldout.jsonl. Intervals are over problems, their scores averaged over the seeds; the
seeds stand beside. What is finished in WORK is not done again.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

sys.path.insert(0, str(Path(__file__).parents[1]))  # beside this file, `import train` would find another file

from pipelines import parquet
from pipelines.commands import table_text
from pipelines.config import load_recipe
from pipelines.runner import write_text
from pipelines.tables import content_id
from train import pictures
from train.evaluate import EvalConfig, evaluate
from train.grpo import RlConfig, train_rl
from train.results import EvalResult, percent
from train.sft import MidtrainConfig, SftConfig, train_midtrain, train_sft
from train.stages import in_process
from train.statistics import Floats, bootstrap_interval, paired_comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RECIPE = load_recipe(Path("pocket"))
PILOT_SAMPLES = 8
LONG_TRACES = 100
SHORT_SHARE = 1 / 3


@dataclass(frozen=True)
class Arm:
    """One way to train, for every seed: a line of the table."""

    name: str
    results: list[EvalResult]
    against: "Arm | None" = None
    facts: dict[str, Any] = field(default_factory=dict)
    """Further columns."""

    def scores(self) -> Floats:
        """Share of correct samples of each problem, averaged over the seeds, shape (P,)."""
        return np.mean([result.scores() for result in self.results], axis=0)

    def row(self) -> dict[str, Any]:
        each = [100 * result.pass_at[1].mean for result in self.results]
        change = paired_comparison(self.against.scores(), self.scores(), seed=0) if self.against else None
        return {
            "model": self.name,
            **self.facts,
            "pass@1": percent(bootstrap_interval(self.scores(), seed=0)),
            "seeds": " ".join(f"{one:.1f}" for one in each),
            "deviation": round(float(np.std(each, ddof=1)), 1) if len(each) > 1 else None,
            "against": self.against.name if self.against else None,
            "change": percent(change.difference, signed=True) if change else None,
            "p": round(change.p_value, 4) if change else None,
            "verdict": change.words if change else None,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["remedies", "naive"])
    parser.add_argument("demo", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=4, help="of each problem that is evaluated")
    parser.add_argument("--steps", type=int, default=RECIPE["rl"]["steps"], help="of RL whole [the recipe's]")
    parser.add_argument("--without", nargs="*", choices=list(REMEDIES)[1:], default=list(REMEDIES)[1:], help="remedies")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, a thread each")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    arms = list({"remedies": remedies, "naive": naive}[arguments.what](arguments))
    rows = [arm.row() for arm in arms]
    print(table_text(rows, dict.fromkeys(name for row in rows for name in row)))
    write_text(arguments.work / f"{arguments.what}.json", json.dumps(rows, indent=1) + "\n")
    print(f"picture: {draw(arms, arguments.work / f'{arguments.what}.png')}")


def examined(arguments: argparse.Namespace, model: Path, out: Path) -> EvalResult:
    """The model on the held-out problems, as the recipe evaluates but for the number of samples."""
    config = EvalConfig.parse({**RECIPE["eval"], "samples": arguments.samples}, "eval")
    (result,) = in_process(evaluate, config, str(model), [str(arguments.demo / "heldout.jsonl")], out)
    return result


def each_seed(arguments: argparse.Namespace, runs: Sequence[Callable[[int], EvalResult]]) -> list[list[EvalResult]]:
    """What every run came to with every seed, `--jobs` at once; seed by seed, so that a stop leaves whole ones."""
    with ThreadPoolExecutor(arguments.jobs) as pool:
        started = {
            (number, seed): pool.submit(run, seed) for seed in arguments.seeds for number, run in enumerate(runs)
        }
        return [[started[number, seed].result() for seed in arguments.seeds] for number in range(len(runs))]


# --- RL without each remedy -----------------------------------------------------------------------

EVEN, DRAWN = "even", "drawn"
REMEDIES: dict[str, tuple[str, dict[str, Any]]] = {
    "whole": (EVEN, {}),
    "no rebalancing": (EVEN, {"rebalance": False, "max_group_size": RECIPE["rl"]["group_size"], "max_pass_rate": 1.0}),
    "no annealing": (EVEN, {"start_temperature": 1.0, "end_temperature": 1.0}),
    "lengths as they come": (DRAWN, {}),
}
"""Arm -> its prompts and what differs from the recipe."""

STEPS = {"whole": 1.0, "no rebalancing": 1.06, "no annealing": 1.2, "lengths as they come": 1.0}
"""Steps against those of the whole, so that all sample about as many tokens: measured on other problems."""


def remedies(arguments: argparse.Namespace) -> Iterator[Arm]:
    """The DPO model, RL whole, and RL without each remedy."""
    start = arguments.demo / "run/dpo/final"
    choose_prompts(arguments, start)
    names = ["whole", *arguments.without]
    results = each_seed(arguments, [lambda seed, name=name: reinforced(arguments, start, name, seed) for name in names])
    before = Arm("DPO", [examined(arguments, start, arguments.work / "dpo")])
    yield before
    arms: dict[str, Arm] = {}
    for name, found in zip(names, results, strict=True):
        lines = [metrics(run_folder(arguments, name, seed)) for seed in arguments.seeds]
        tokens = np.mean([sum(line["rollouts"] * line["length_mean"] for line in run) for run in lines])
        facts = {"steps": len(lines[0]), "tokens sampled": round(float(tokens))}
        arms[name] = Arm(name, found, before if name == "whole" else arms["whole"], facts)
        yield arms[name]


def run_folder(arguments: argparse.Namespace, name: str, seed: int) -> Path:
    return Path(arguments.work / name.replace(" ", "-") / str(seed))


def reinforced(arguments: argparse.Namespace, start: Path, name: str, seed: int) -> EvalResult:
    """RL from `start` as arm `name` with that seed, evaluated."""
    prompts, changes = REMEDIES[name]
    steps = round(arguments.steps * STEPS[name])
    config = RlConfig.parse({**RECIPE["rl"], **changes, "steps": steps, "seed": seed}, "rl")
    out = run_folder(arguments, name, seed)
    final = in_process(train_rl, config, arguments.work / prompts, str(start), out)
    return examined(arguments, final, out)


def metrics(run: Path) -> list[dict[str, float]]:
    """A run's steps."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def choose_prompts(arguments: argparse.Namespace, start: Path) -> None:
    """Shards of the problems with even lengths, and of as many drawn from all; says what was found."""
    asked = arguments.demo / "rl-problems.jsonl"
    pilot = arguments.work / "pilot"
    recipe = {**RECIPE["eval"], "samples": PILOT_SAMPLES, "temperature": 1.0, "top_p": 1.0}
    in_process(evaluate, EvalConfig.parse(recipe, "eval"), str(start), [str(asked)], pilot)
    shards = parquet.read_table(parquet.table_files(arguments.demo / "out", "shards/rl"), "shards/rl")
    found = duckdb.sql(
        f"""SELECT prompt_id, quantile_cont(completion_tokens, 0.9) / quantile_cont(completion_tokens, 0.1) AS ratio,
                   avg((verdict = 'correct')::INT) AS pass_rate
            FROM '{pilot}/eval/rl-problems/rollouts/*.parquet'
            JOIN '{pilot}/eval/rl-problems/verdicts/*.parquet' USING (rollout_id, prompt_id)
            SEMI JOIN shards USING (prompt_id) GROUP BY ALL ORDER BY ratio, prompt_id"""
    ).to_arrow_table()
    ids = found["prompt_id"].to_pylist()
    half = len(ids) // 2
    ratios, pass_rates = (found[name].to_numpy() for name in ("ratio", "pass_rate"))
    print(
        f"{len(ids):,} problems, {PILOT_SAMPLES} samples each: p90 / p10 of the lengths {np.median(ratios):.2f} in the "
        f"middle, above 2 in {np.sum(ratios > 2)}; even: at most {ratios[half - 1]:.2f}; pass rate of these "
        f"{100 * np.mean(pass_rates[:half]):.1f} %, of all {100 * np.mean(pass_rates):.1f} %"
    )
    drawn = sorted(ids, key=lambda one: content_id("drawn", 0, one))[:half]
    for name, chosen in ((EVEN, ids[:half]), (DRAWN, drawn)):
        write_shard(arguments.work / name, "rl", shards, "prompt_id", chosen)


def write_shard(root: Path, stage: str, rows: pa.Table, column: str, chosen: Sequence[str]) -> None:
    """The rows whose `column` is among the chosen, as shards of their own."""
    kept = rows.filter(pc.is_in(rows[column], value_set=pa.array(chosen)))
    parquet.write_file(root / "shards" / stage / "00000.parquet", f"shards/{stage}", [kept])


# --- a few long traces ----------------------------------------------------------------------------


def naive(arguments: argparse.Namespace) -> Iterator[Arm]:
    """Two bases, each before and after fine-tuning on the longest traces; the whole recipe beside them."""
    choose_traces(arguments)
    whole = arguments.demo / "run"
    short, long, fitted = (arguments.work / name for name in ("short", "long", "fitted"))

    def short_base(seed: int) -> EvalResult:
        config = MidtrainConfig.parse({**RECIPE["midtrain"], "seed": seed}, "midtrain")
        out = short / str(seed)
        return examined(arguments, in_process(train_midtrain, config, short, "pocket-base", out), out)

    def tuned(base: Path, out: Path, seed: int) -> EvalResult:
        config = SftConfig.parse({**RECIPE["sft"], "seed": seed}, "sft")
        return examined(arguments, in_process(train_sft, config, long, str(base), out), out)

    def short_tuned(seed: int) -> EvalResult:
        short_base(seed)
        return tuned(short / str(seed) / "final", long / "short" / str(seed), seed)

    def recipe_tuned(seed: int) -> EvalResult:
        return tuned(whole / "midtrain/final", fitted / str(seed), seed)

    after_short, after_recipe = each_seed(arguments, [short_tuned, recipe_tuned])
    (before_short,) = each_seed(arguments, [short_base])
    longest = f"{LONG_TRACES} longest traces"
    base = Arm("short traces", before_short)
    middle = Arm("mid-training", [examined(arguments, whole / "midtrain/final", arguments.work / "midtrain")])
    yield base
    yield Arm(f"short traces, then {longest}", after_short, base)
    yield middle
    yield Arm(f"mid-training, then {longest}", after_recipe, middle)
    for stage, title in (("sft", "mid-training, then SFT"), ("dpo", "… then DPO")):
        yield Arm(title, [examined(arguments, whole / stage / "final", arguments.work / stage)], middle)


def choose_traces(arguments: argparse.Namespace) -> None:
    """Shards of the shortest third of each level's traces, for mid-training, and of the longest, for SFT."""
    out = arguments.demo / "out"
    shards = parquet.read_table(parquet.table_files(out, "shards/midtrain"), "shards/midtrain")
    lengths = duckdb.sql(
        f"""SELECT rollout_id, completion_tokens AS tokens,
                   percent_rank() OVER (PARTITION BY level ORDER BY completion_tokens, rollout_id) AS place
            FROM shards JOIN '{out}/rollouts/*.parquet' USING (rollout_id, prompt_id)
            JOIN (SELECT prompt_id, level FROM '{out}/prompts/*.parquet') USING (prompt_id)
            ORDER BY tokens DESC, rollout_id"""
    ).to_arrow_table()
    short = lengths.filter(pc.less(lengths["place"], SHORT_SHARE))
    long = lengths.slice(0, LONG_TRACES)
    for name, stage, chosen in (("short", "midtrain", short), ("long", "sft", long)):
        tokens = chosen["tokens"].to_numpy()
        print(
            f"{name}: {len(tokens):,} traces of {tokens.min()} to {tokens.max()} tokens, {tokens.mean():.0f} on average"
        )
        write_shard(arguments.work / name, stage, shards, "rollout_id", chosen["rollout_id"].to_pylist())


# --- picture --------------------------------------------------------------------------------------


def draw(arms: Sequence[Arm], path: Path) -> Path:
    """pass@1 of every arm: the mean with its interval, a ring for each seed, dashes to what it is held against."""
    with pictures.picture(path, 8, 1.1 + 0.55 * len(arms)) as figure:
        _draw_arms(figure.add_subplot(), arms)
    return path


def _draw_arms(axes: "Axes", arms: Sequence[Arm]) -> None:
    ink, blue, grey = pictures.INK, pictures.BLUE, "#9a9a9a"
    for place, arm in enumerate(arms):
        interval = bootstrap_interval(arm.scores(), seed=0)
        low, mean, high = (100 * value for value in (interval.low, interval.mean, interval.high))
        axes.plot([low, high], [place, place], color="#56B4E9", alpha=0.45, linewidth=9, solid_capstyle="butt")
        axes.plot([mean, mean], [place - 0.2, place + 0.2], color=blue, linewidth=2.5)
        seeds = [100 * result.pass_at[1].mean for result in arm.results]
        axes.plot(seeds, [place] * len(seeds), "o", markersize=5, markerfacecolor="white", color=ink)
        words = f"{mean:.1f} %"
        if arm.against is not None:
            before = 100 * float(np.mean(arm.against.scores()))
            axes.plot([before, mean], [place, place], color=grey, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
            words += f"   {arm.row()['change'].split()[0]} {arm.row()['verdict']}"
            high = max(high, before)
        right = max(high, *seeds)
        axes.annotate(words, (right, place), xytext=(8, 0), textcoords="offset points", va="center", color=ink)
    axes.set_yticks(range(len(arms)), [arm.name for arm in arms])
    axes.invert_yaxis()
    axes.margins(x=0.22)
    axes.set_xlabel("problems solved, %: mean and 95 % interval over problems; rings: seeds")
    pictures.bare(axes, "x")


if __name__ == "__main__":
    main()
