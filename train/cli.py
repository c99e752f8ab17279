"""`train`: parse, load config, call, print."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands import folder_or_version, run_command, table_text
from pipelines.errors import UserError

if TYPE_CHECKING:
    from pipelines.config import Config, Recipe

app = typer.Typer(
    help="Train a small reasoning model on the shards that `curate` made.\n\n"
    "Example: train all --shards out/ --model pocket-base --out runs/first --on heldout.jsonl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # rich would double the time of --help
)

Shards = Annotated[Path, typer.Option("--shards", help="Run directory, or NAME@VERSION.", parser=folder_or_version)]
Model = Annotated[str, typer.Option("--model", help="Model folder, shipped model, or hf:ORG/NAME.")]
Out = Annotated[Path, typer.Option("--out", help="Run directory; continued, never overwritten.")]
On = Annotated[str | None, typer.Option("--on", help="Benchmarks or files, comma-separated.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="TOML file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="STAGE.KEY=VALUE", help="One setting; may be repeated.")
]
Replace = Annotated[bool, typer.Option("--replace", help="Train again what was trained with another config.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and row counts; do nothing.")]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write event files in each stage's folder too.")]

_FINISHED = "nothing to do: `{}` is finished"


def main() -> None:
    """Entry point of the `train` command."""
    run_command(app)


@app.command("all")
def all_(
    shards: Shards = Path("out"),
    model: Model = "pocket-base",
    out: Out = Path("runs/run"),
    on: On = None,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    tensorboard: TensorBoard = False,
) -> None:
    """Mid-training, SFT, DPO and RL in order, skipping what is finished.

    Example: train all --shards out/ --model pocket-base --out runs/first --set sft.learning_rate=2e-5
    """
    from train import stages

    settings = _recipe(recipe, overrides)
    names = stages.stages_of(settings)
    if dry_run:
        configs = stages.stage_configs(settings)
        _show({name: configs[name] for name in (*names, *(["eval"] if on else []))}, stages.check_shards(shards, names))
        return
    stages.log_to_stderr()
    _ask_for_events(tensorboard)
    benchmarks = _benchmarks(on)
    for done in stages.train_all(settings, shards, model, out, on=benchmarks, replace=replace):
        print(_summary(done.stage, done.folder) if done.made else _FINISHED.format(done.folder), flush=True)
    for benchmark in benchmarks:
        _show_staircase(out, benchmark)


@app.command()
def midtrain(
    shards: Shards = Path("out"),
    model: Model = "pocket-base",
    out: Out = Path("runs/run/midtrain"),
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    tensorboard: TensorBoard = False,
) -> None:
    """Mid-training: as many verified traces as there are, packed.

    Example: train midtrain --shards out/ --model pocket-base --out runs/first/midtrain
    """
    _stage("midtrain", shards, model, out, recipe, overrides, replace, dry_run, tensorboard)


@app.command()
def sft(
    shards: Shards = Path("out"),
    model: Model = "runs/run/midtrain/final",
    out: Out = Path("runs/run/sft"),
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    tensorboard: TensorBoard = False,
) -> None:
    """Supervised fine-tuning on a compact, clean set: the model learns when to stop.

    Example: train sft --shards out/ --model runs/first/midtrain/final --out runs/first/sft
    """
    _stage("sft", shards, model, out, recipe, overrides, replace, dry_run, tensorboard)


@app.command()
def dpo(
    shards: Shards = Path("out"),
    model: Model = "runs/run/sft/final",
    out: Out = Path("runs/run/dpo"),
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    tensorboard: TensorBoard = False,
) -> None:
    """Rollout DPO: right traces preferred to wrong ones.

    Example: train dpo --shards out/ --model runs/first/sft/final --out runs/first/dpo --set dpo.beta=0.5
    """
    _stage("dpo", shards, model, out, recipe, overrides, replace, dry_run, tensorboard)


@app.command()
def rl(
    shards: Shards = Path("out"),
    model: Model = "runs/run/dpo/final",
    out: Out = Path("runs/run/rl"),
    pilot: Annotated[
        bool, typer.Option("--pilot", help="First sample every prompt; train on those answered at even lengths.")
    ] = False,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    tensorboard: TensorBoard = False,
) -> None:
    """Reinforcement learning with verifiable reward (GRPO).

    Example: train rl --shards out/ --model runs/first/dpo/final --out runs/first/rl --pilot --set rl.steps=50
    """
    overrides = [*(overrides or []), "rl.pilot=true"] if pilot else overrides
    _stage("rl", shards, model, out, recipe, overrides, replace, dry_run, tensorboard)


@app.command("eval")
def eval_(
    model: Model = "pocket-base",
    on: On = "aime24,math500,gpqa",
    out: Out = Path("runs/eval"),
    samples: Annotated[int | None, typer.Option(help="Samples of each problem.")] = None,
    runs: Annotated[
        int | None, typer.Option(help="Separate runs of so many samples; mean and spread are shown.")
    ] = None,
    against: Annotated[Path | None, typer.Option(help="--out of another model's evaluation, to compare with.")] = None,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
) -> None:
    """Sample a model on benchmarks: pass@k and cons@k with 95 % intervals; compare two models problem by problem.

    Example: train eval --model runs/first/rl/final --on aime24,heldout.jsonl --samples 16 --against runs/first/dpo
    """
    from pipelines.benchmarks import benchmark_name, load_benchmark
    from train import scoreboard, stages
    from train.evaluate import EvalConfig, evaluate

    settings = _recipe(recipe, overrides)
    given = {"samples": samples, "runs": runs}
    settings.setdefault("eval", {}).update({key: value for key, value in given.items() if value is not None})
    config = EvalConfig.parse(settings.get("eval", {}), "eval")
    benchmarks = _benchmarks(on)
    if not benchmarks:
        raise UserError("no benchmark to evaluate on", hint="e.g., --on aime24,math500")
    if dry_run:
        for benchmark in benchmarks:
            print(f"{benchmark}: {load_benchmark(benchmark, need_answers=True).num_rows:,} problems")
        _show({"eval": config}, {})
        return
    stages.log_to_stderr()
    # What is not there to compare with is found before anything is sampled.
    others = scoreboard.earlier_results(map(benchmark_name, benchmarks), against) if against else []
    results = evaluate(config, model, benchmarks, out, against=others)
    print(table_text([result.row() for result in results]))
    if against:
        print(f"\nagainst {others[0].model}:")
        print(table_text([scoreboard.compared(*pair, out).row() for pair in zip(results, others, strict=True)]))
    pictures = scoreboard.draw_results(results, out / "eval" / "results", others)
    print(f"picture: {', '.join(map(str, pictures))}")


@app.command()
def plan(
    shards: Shards = Path("out"),
    model: Annotated[str, typer.Option("--model", help="As for training, or e.g. phi-4-mini: no folder needed.")] = (
        "pocket-base"
    ),
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    gpu: Annotated[str, typer.Option(help="The accelerator, e.g. H100, H200, A100, RTX 4090; or cpu.")] = "H100",
    mfu: Annotated[float, typer.Option(help="Share of its peak that training uses.", min=0.001, max=1)] = 0.3,
    tokens_per_s: Annotated[
        float | None, typer.Option(help="Speed, where it is known; instead of --mfu.", min=0.001)
    ] = None,
) -> None:
    """Parameters, memory by part, steps and hours of a recipe's stages, before anything is loaded.

    Example: train plan --shards out/ --model phi-4-mini --recipe phi4-mini --gpu H100
    """
    from train import stages
    from train.flops import ACCELERATORS, accelerator
    from train.plan import memory_row, model_row, plan_stage, steps_row

    settings = _recipe(recipe, overrides)
    names = stages.stages_of(settings)
    stages.check_shards(shards, names)
    configs = stages.stage_configs(settings)
    device = accelerator(gpu)
    if device is None and gpu != "cpu":
        raise UserError(f"no accelerator `{gpu}` in the table", hint=f"there are {', '.join(ACCELERATORS)}, or cpu")
    plans = [plan_stage(name, configs[name], shards, model, "cuda" if device else "cpu") for name in names]
    print(table_text([model_row(model)]), end="\n\n")
    print(table_text([memory_row(plan, device) for plan in plans]), end="\n\n")
    print(table_text([steps_row(plan, plan.hours(device, mfu, tokens_per_s)) for plan in plans]))


@app.command()
def init(
    out: Annotated[Path, typer.Option("--out", help="Folder of the new model.")],
    shards: Shards = Path("out"),
    architecture: Annotated[str | None, typer.Option(help="phi3, llama or qwen3.")] = None,
    size: Annotated[str | None, typer.Option(help="1m, 5m, 20m, 100m or 3.8b.")] = None,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
) -> None:
    """Make a random student with a tokenizer trained on the shards.

    Example: train init --architecture phi3 --size 5m --shards out/ --out models/student
    """
    from train import stages
    from train.init import InitConfig, init_student

    given = {"architecture": architecture, "size": size}
    settings = {**_recipe(recipe, overrides).get("init", {}), **{k: v for k, v in given.items() if v is not None}}
    stages.log_to_stderr()
    folder = init_student(InitConfig.parse(settings, "init"), shards, out)
    print(f"init: `{folder}`; train it with `train all --shards {shards} --model {folder}`")


# --- what the commands share ----------------------------------------------------------------------


def _stage(
    stage: str,
    shards: Path,
    model: str,
    out: Path,
    recipe: Path | None,
    overrides: list[str] | None,
    replace: bool,
    dry_run: bool,
    tensorboard: bool,
) -> None:
    from train import stages
    from train.curves import draw_curves

    config = stages.CONFIGS[stage].parse(_recipe(recipe, overrides).get(stage, {}), stage)
    rows = stages.check_shards(shards, [stage])
    if dry_run:
        _show({stage: config}, rows)
        return
    stages.log_to_stderr()
    _ask_for_events(tensorboard)
    before = stages.made_at(out / "final")
    folder = stages.TRAINERS[stage](config, shards, model, out, replace=replace)
    if int(os.environ.get("RANK", "0")) > 0:
        return  # the first of torchrun's processes speaks for all
    if stages.made_at(folder) == before:
        print(_FINISHED.format(folder))
        return
    print(_summary(stage, folder))
    print(f"pictures: {', '.join(map(str, draw_curves(out, stage)))}")


def _benchmarks(on: str | None) -> list[str]:
    return [name.strip() for name in (on or "").split(",") if name.strip()]


def _ask_for_events(tensorboard: bool) -> None:
    """Through the environment, which the processes of the stages inherit."""
    from train.metrics import TENSORBOARD

    if tensorboard:
        os.environ[TENSORBOARD] = "1"


def _recipe(recipe: Path | None, overrides: list[str] | None) -> "Recipe":
    """The recipe with the overrides, which must name a section that `train` reads."""
    from pipelines.config import load_recipe
    from train.stages import CONFIGS

    known = [*CONFIGS, "init"]
    for override in overrides or ():
        section, dot, _ = override.partition("=")[0].partition(".")
        if dot and "=" in override and section not in known:
            raise UserError(f"`--set {override}`: no stage `{section}`", hint=f"stages are {', '.join(known)}")
    return load_recipe(recipe, overrides or ())


def _show(configs: Mapping[str, "Config"], rows: Mapping[str, int]) -> None:
    for stage, config in configs.items():
        if stage in rows:
            print(f"{stage}: {rows[stage]:,} rows")
        print(json.dumps({stage: config.resolved()}, indent=1))


def _summary(stage: str, folder: Path) -> str:
    """One line: steps, loss or reward from the first step to the last, time."""
    lines = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    measure = "reward" if "reward" in lines[0] else "loss"
    change = f"{measure} {lines[0][measure]:.4g} -> {lines[-1][measure]:.4g}"
    seconds = sum(line["seconds"] for line in lines)
    return f"{stage}: {len(lines):,} steps, {change}, {seconds:,.0f} s, `{folder}`"


def _show_staircase(out: Path, benchmark: str) -> None:
    from pipelines.benchmarks import benchmark_name
    from train.staircase import draw_staircase, staircase

    steps: list[Any] = staircase(out, benchmark_name(benchmark))
    pictures = draw_staircase(steps, out / f"staircase-{benchmark_name(benchmark)}")
    print(table_text([step.row() for step in steps]))
    print(f"picture: {', '.join(str(path) for path in pictures)}")


if __name__ == "__main__":
    main()
