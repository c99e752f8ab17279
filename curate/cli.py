"""`curate`: parse, load config, call, print; here the stages, in `cli_looking` what looks at their tables."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from curate.cli_looking import card, commands, print_json
from pipelines.commands import run_command, table_text
from pipelines.errors import UserError

app = typer.Typer(
    help="Turn problems into verified, published reasoning data.\n\n"
    "Example: curate import problems.jsonl --out out/ && curate generate --teacher pocket --out out/ "
    "&& curate verify out/ && curate split out/",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # rich would double the time of --help
)

Root = Annotated[Path, typer.Argument(metavar="OUT", help="Run directory.", show_default=True)]
Out = Annotated[Path, typer.Option("--out", help="Run directory; continued, never overwritten.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="TOML file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="STAGE.KEY=VALUE", help="One setting; may be repeated.")
]
Replace = Annotated[bool, typer.Option("--replace", help="Make again what was made with another config.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and row counts; do nothing.")]
Spread = Annotated[str, typer.Option("--executor", help="inline, local, slurm or ray.")]
Tasks = Annotated[int, typer.Option("--tasks", help="Tasks the executor spreads the stage over.")]
Teacher = Annotated[str | None, typer.Option(help="Entry of `curate teachers`, model folder, or hf:NAME.")]
Server = Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible server.")]
Samples = Annotated[int | None, typer.Option(help="Rollouts per prompt (default 8).")]
UntilCorrect = Annotated[int | None, typer.Option(help="Instead: until so many are correct, or it is hopeless.")]
UntilWrong = Annotated[int | None, typer.Option(help="And until so many are wrong, or it is too easy.")]
MaxSamples = Annotated[int | None, typer.Option(help="And at most so many (default 64).")]


def main() -> None:
    """Entry point of the `curate` command."""
    app.add_typer(commands)
    run_command(app)


# --- stages ---------------------------------------------------------------------------------------


@app.command("import")
def import_(
    files: Annotated[list[str], typer.Argument(help="Files, folders or hf:ORG/NAME.")],
    out: Out = Path("out"),
    map_: Annotated[
        list[str] | None, typer.Option("--map", metavar="problem=COLUMN", help="Name a column of an unknown layout.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Name of the source; the file's name by default.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the source; kept in every row.")] = None,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
) -> None:
    """Bring in problems or traces: Parquet, JSONL, CSV, a folder, or hf:NAME.

    Example: curate import gsm8k.jsonl math.parquet --out out/
    """
    given = {"files": files, "map": _pairs(map_), "source": source, "licence": licence}
    _stage("import", out, recipe, overrides, replace, dry_run, given)


@app.command()
def generate(
    teacher: Teacher = None,
    out: Out = Path("out"),
    prompts: Annotated[str | None, typer.Option(help="Import this file of problems first.")] = None,
    samples: Samples = None,
    until_correct: UntilCorrect = None,
    until_wrong: UntilWrong = None,
    max_samples: MaxSamples = None,
    server: Server = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again what was refused.")] = False,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    executor: Spread = "inline",
    tasks: Tasks = 1,
) -> None:
    """Sample a teacher on every prompt; finished rollouts are never lost or paid for twice.

    Example: curate generate --teacher deepseek-r1 --prompts problems.jsonl --until-correct 4 --out out/
    """
    from curate.pipeline import section_of
    from pipelines.config import load_recipe
    from pipelines.executors import SpreadConfig

    if prompts is not None and not dry_run:
        _stage("import", out, None, None, False, False, {"files": [prompts]})
    loaded = load_recipe(recipe, overrides or ())
    adaptive = _adaptive(section_of(loaded, "generate"), until_correct, until_wrong, max_samples)
    given = {"teacher": teacher, "samples": samples, "server": server, "adaptive": adaptive}
    where = SpreadConfig.parse({**section_of(loaded, "spread"), "executor": executor, "tasks": tasks}, "spread")
    _stage("generate", out, recipe, overrides, replace, dry_run, given, retry_failed=retry_failed, where=where)


@app.command()
def plan(
    teacher: Teacher = None,
    out: Out = Path("out"),
    samples: Samples = None,
    until_correct: UntilCorrect = None,
    until_wrong: UntilWrong = None,
    max_samples: MaxSamples = None,
    server: Server = None,
    pilot: Annotated[int, typer.Option(help="Sample so many prompts first, to know; their rollouts count.")] = 0,
    tokens_per_second: Annotated[float | None, typer.Option(help="Of all GPUs together; else as measured.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs that are paid for; else those the teacher needs.")] = None,
    price_per_gpu_hour: Annotated[float | None, typer.Option(help="In any currency.")] = None,
    price_per_million_tokens: Annotated[float | None, typer.Option(help="Of generated tokens.")] = None,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
) -> None:
    """Say what `generate` will take: rollouts, tokens, hours, money, disk.

    Example: curate plan --teacher deepseek-r1 --pilot 20 --price-per-gpu-hour 2.5 --out out/
    """
    from curate.cost import CostConfig
    from curate.pipeline import section_of
    from curate.stages import generate as stage
    from pipelines.config import load_recipe
    from pipelines.versions import writable

    loaded = load_recipe(recipe, overrides or ())
    section = section_of(loaded, "generate")
    adaptive = _adaptive(section, until_correct, until_wrong, max_samples)
    given = {"teacher": teacher, "samples": samples, "server": server, "adaptive": adaptive}
    section.update({key: value for key, value in given.items() if value is not None})
    prices = {
        "tokens_per_second": tokens_per_second,
        "gpus": gpus,
        "price_per_gpu_hour": price_per_gpu_hour,
        "price_per_million_tokens": price_per_million_tokens,
    }
    known = {key: value for key, value in prices.items() if value is not None}
    cost = CostConfig.parse({**section_of(loaded, "cost"), **known}, "cost")
    config = stage.GenerateConfig.parse(section, "generate")
    if pilot:
        with writable(out):
            lines = stage.pilot(out, config, pilot, cost).lines()
        print("\n".join(f"pilot: {line}" for line in lines))
    print("\n".join(stage.estimate(out, config, cost).lines()))


@app.command()
def verify(
    root: Root = Path("out"),
    judge: Annotated[str | None, typer.Option(help="A model that looks again at what the rules rejected.")] = None,
    server: Annotated[str | None, typer.Option(help="URL of the judge's OpenAI-compatible server.")] = None,
    report: Annotated[bool, typer.Option("--report", help="Write OUT/reports/verify.md with a picture.")] = False,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    executor: Spread = "inline",
    tasks: Tasks = 1,
) -> None:
    """Say whether each rollout reaches its problem's reference answer.

    Example: curate verify out/ --report --set verify.second_opinion=rejected
    """
    given = {"judge": judge, "judge_server": server}
    _stage("verify", root, recipe, overrides, replace, dry_run, given, executor=executor, tasks=tasks)
    if report and not dry_run:
        from curate.report_card import write_report
        from pipelines.versions import writable

        with writable(root):
            written = write_report(root)
        print(f"report: wrote {written.text} and {written.picture}")


@app.command("calibrate-judge")
def calibrate_judge(
    cases: Annotated[list[str], typer.Argument(help="Labelled answers: files, folders or hf:ORG/NAME.")],
    judge: Annotated[str, typer.Option(help="Entry of `curate teachers`, model folder, or hf:NAME.")],
    server: Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible server.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for report and replies.")] = Path("judge"),
    limit: Annotated[int | None, typer.Option(help="Ask about so many answers at most.")] = None,
    max_false_rescue: Annotated[float, typer.Option(help="Highest rate at which a trusted judge rescues.")] = 0.05,
    max_tokens: Annotated[int, typer.Option(help="Tokens of a reply, its reasoning included.")] = 8192,
) -> None:
    """Score a judge against labelled answers before it is trusted with `curate verify --judge`.

    Example: curate calibrate-judge labelled.jsonl --judge qwq-32b --server http://localhost:8000/v1
    """
    from curate.calibrate import calibrate
    from pipelines.runner import locked

    with locked(out):
        found = calibrate(
            cases, judge, server, out, limit=limit, max_false_rescue=max_false_rescue, max_tokens=max_tokens
        )
    print(table_text(found.confusion()))
    print("\n".join(found.lines()))
    print(f"calibrate-judge: wrote {found.path}")


@app.command()
def dedupe(
    root: Root = Path("out"),
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
) -> None:
    """Label duplicate problems and traces; problems that differ in a number are not duplicates.

    Example: curate dedupe out/
    """
    _stage("dedupe", root, recipe, overrides, replace, dry_run, {})


@app.command()
def decontaminate(
    root: Root = Path("out"),
    against: Annotated[str | None, typer.Option(help="Benchmarks or files, comma-separated.")] = None,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
) -> None:
    """Label problems that touch a benchmark, with the matched text.

    Example: curate decontaminate out/ --against aime24,math500,heldout.jsonl
    """
    given = {"against": tuple(against.split(",")) if against else None}
    _stage("decontaminate", root, recipe, overrides, replace, dry_run, given)


@app.command()
def annotate(
    root: Root = Path("out"),
    judge: Annotated[str | None, typer.Option(help="A model that says domain and level where no source does.")] = None,
    server: Annotated[str | None, typer.Option(help="URL of the judge's OpenAI-compatible server.")] = None,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    executor: Spread = "inline",
    tasks: Tasks = 1,
) -> None:
    """Label pass rates, lengths, repetition, domain and level.

    Example: curate annotate out/
    """
    given = {"judge": judge, "judge_server": server}
    _stage("annotate", root, recipe, overrides, replace, dry_run, given, executor=executor, tasks=tasks)


@app.command()
def split(
    root: Root = Path("out"),
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
) -> None:
    """Choose the rows of the midtrain, sft and rl shards; every refusal has its reason.

    Example: curate split out/ --set split.sft_size=2000
    """
    _stage("split", root, recipe, overrides, replace, dry_run, {})


@app.command("build-dpo-pairs")
def build_dpo_pairs(
    root: Root = Path("out"),
    strategy: Annotated[str | None, typer.Option(help="length-matched, one-to-one, all-products or hardest.")] = None,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
) -> None:
    """Pair correct with incorrect rollouts of the same prompt.

    Example: curate build-dpo-pairs out/ --strategy length-matched
    """
    _stage("build_dpo_pairs", root, recipe, overrides, replace, dry_run, {"strategy": strategy})


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="TOML file, or the name of a shipped recipe.")],
    out: Out = Path("out"),
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
) -> None:
    """Run a recipe's stages in order, only what is missing or stale.

    Example: curate run pocket --out out/
    """
    from curate.pipeline import planned
    from pipelines.config import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    for name in planned(loaded):
        if name != "card":
            _stage(name, out, recipe, overrides, replace, dry_run, {})
        elif not dry_run:
            card(out)


# --- shared ---------------------------------------------------------------------------------------


def _stage(
    name: str,
    root: Path,
    recipe: Path | None,
    overrides: list[str] | None,
    replace: bool,
    dry_run: bool,
    given: dict[str, Any],
    executor: str = "inline",
    tasks: int = 1,
    **options: Any,
) -> None:
    """Run one stage with the settings of a recipe, `--set`, and the options `given` on the line (None: not given)."""
    from curate.pipeline import STEPS, run_step, section_of
    from pipelines.config import load_recipe
    from pipelines.versions import writable

    loaded = load_recipe(recipe, overrides or ())
    section_of(loaded, name).update({key: value for key, value in given.items() if value not in (None, {})})
    if name == "generate":
        from curate.cost import CostConfig

        options["cost"] = CostConfig.parse(section_of(loaded, "cost"), "cost")
    if dry_run:
        config = STEPS[name].parse(loaded, name)
        print_json({name: config.resolved()})
        if root.is_dir():
            from curate.status import status as read_status

            print(table_text(read_status(root).stages, ("stage", "state", "files", "rows")))
        if name == "generate":
            from curate.stages.generate import GenerateConfig, estimate

            assert isinstance(config, GenerateConfig)
            found = estimate(root, config, options["cost"])
            print_json({"plan": asdict(found.plan)})
            print("\n".join(found.lines()))
        return
    with writable(root):
        for line in run_step(root, name, loaded, replace=replace, executor=executor, tasks=tasks, **options):
            print(line, flush=True)


def _adaptive(
    section: dict[str, Any], until_correct: int | None, until_wrong: int | None, max_samples: int | None
) -> dict[str, Any] | None:
    """The recipe's adaptive sampling with the options given on the line; None where neither says anything."""
    given = {"until_correct": until_correct, "until_wrong": until_wrong, "max_samples": max_samples}
    known = {key: value for key, value in given.items() if value is not None}
    return {**(section.get("adaptive") or {}), **known} or None


def _pairs(options: list[str] | None) -> dict[str, str]:
    """`--map role=column` options, also several in one with commas."""
    pairs = {}
    for option in (part for text in options or () for part in text.split(",")):
        role, separator, column = option.partition("=")
        if not (separator and role and column):
            raise UserError(f"`--map {option}` is not ROLE=COLUMN", hint="e.g., --map problem=question")
        pairs[role.strip()] = column.strip()
    return pairs


if __name__ == "__main__":
    main()
