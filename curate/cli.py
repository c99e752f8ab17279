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
    teacher: Annotated[str | None, typer.Option(help="Entry of `curate teachers`, model folder, or hf:NAME.")] = None,
    out: Out = Path("out"),
    prompts: Annotated[str | None, typer.Option(help="Import this file of problems first.")] = None,
    samples: Annotated[int | None, typer.Option(help="Rollouts per prompt (default 8).")] = None,
    server: Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible server.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again what was refused.")] = False,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
) -> None:
    """Sample a teacher on every prompt; finished rollouts are never lost or paid for twice.

    Example: curate generate --teacher deepseek-r1 --prompts problems.jsonl --out out/
    """
    if prompts is not None and not dry_run:
        _stage("import", out, None, None, False, False, {"files": [prompts]})
    given = {"teacher": teacher, "samples": samples, "server": server}
    _stage("generate", out, recipe, overrides, replace, dry_run, given, retry_failed=retry_failed)


@app.command()
def verify(
    root: Root = Path("out"),
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    executor: Spread = "inline",
    tasks: Tasks = 1,
) -> None:
    """Say whether each rollout reaches its problem's reference answer.

    Example: curate verify out/ --set verify.timeout_s=10
    """
    _stage("verify", root, recipe, overrides, replace, dry_run, {}, executor=executor, tasks=tasks)


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
    _stage("annotate", root, recipe, overrides, replace, dry_run, {}, executor=executor, tasks=tasks)


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
    strategy: Annotated[str | None, typer.Option(help="one-to-one, all-products, hardest or length-matched.")] = None,
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
    from pipelines.runner import locked

    loaded = load_recipe(recipe, overrides or ())
    section_of(loaded, name).update({key: value for key, value in given.items() if value not in (None, {})})
    if dry_run:
        config = STEPS[name].parse(loaded, name)
        print_json({name: config.resolved()})
        if root.is_dir():
            from curate.status import status as read_status

            print(table_text(read_status(root).stages, ("stage", "state", "files", "rows")))
        if name == "generate":
            from curate.stages.generate import GenerateConfig, plan

            assert isinstance(config, GenerateConfig)
            print_json({"plan": asdict(plan(root, config))})
        return
    with locked(root):
        for line in run_step(root, name, loaded, replace=replace, executor=executor, tasks=tasks, **options):
            print(line, flush=True)


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
