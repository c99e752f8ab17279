"""`curate`: parse, load config, call, print."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.commands import run_command, table_text
from pipelines.errors import UserError

app = typer.Typer(
    help="Turn problems into verified, published reasoning data.\n\n"
    "Example: curate import problems.jsonl --out out/ && curate generate --teacher pocket --out out/ "
    "&& curate verify out/ && curate split out/",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
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
As = Annotated[str, typer.Option("--as", help="text, json, or what the command names.")]


def main() -> None:
    """Entry point of the `curate` command."""
    run_command(app)


# --- stages ---------------------------------------------------------------------------------------


@app.command("import", help="Bring in problems or traces: Parquet, JSONL, CSV, a folder, or hf:NAME.")
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
    """Example: curate import gsm8k.jsonl math.parquet --out out/"""
    given = {"files": files, "map": _pairs(map_), "source": source, "licence": licence}
    _stage("import", out, recipe, overrides, replace, dry_run, given)


@app.command(help="Sample a teacher on every prompt; finished rollouts are never lost or paid for twice.")
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
    """Example: curate generate --teacher deepseek-r1 --prompts problems.jsonl --out out/"""
    if prompts is not None and not dry_run:
        _stage("import", out, None, None, False, False, {"files": [prompts]})
    given = {"teacher": teacher, "samples": samples, "server": server}
    _stage("generate", out, recipe, overrides, replace, dry_run, given, retry_failed=retry_failed)


@app.command(help="Say whether each rollout reaches its problem's reference answer.")
def verify(
    root: Root = Path("out"),
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    executor: Spread = "inline",
    tasks: Tasks = 1,
) -> None:
    """Example: curate verify out/ --set verify.timeout_s=10"""
    _stage("verify", root, recipe, overrides, replace, dry_run, {}, executor=executor, tasks=tasks)


@app.command(help="Label duplicate problems and traces; problems that differ in a number are not duplicates.")
def dedupe(
    root: Root = Path("out"),
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
) -> None:
    """Example: curate dedupe out/"""
    _stage("dedupe", root, recipe, overrides, replace, dry_run, {})


@app.command(help="Label problems that touch a benchmark, with the matched text.")
def decontaminate(
    root: Root = Path("out"),
    against: Annotated[str | None, typer.Option(help="Benchmarks or files, comma-separated.")] = None,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
) -> None:
    """Example: curate decontaminate out/ --against aime24,math500,heldout.jsonl"""
    given = {"against": tuple(against.split(",")) if against else None}
    _stage("decontaminate", root, recipe, overrides, replace, dry_run, given)


@app.command(help="Label pass rates, lengths, repetition, domain and level.")
def annotate(
    root: Root = Path("out"),
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    executor: Spread = "inline",
    tasks: Tasks = 1,
) -> None:
    """Example: curate annotate out/"""
    _stage("annotate", root, recipe, overrides, replace, dry_run, {}, executor=executor, tasks=tasks)


@app.command(help="Choose the rows of the midtrain, sft and rl shards; every refusal has its reason.")
def split(
    root: Root = Path("out"),
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
) -> None:
    """Example: curate split out/ --set split.sft_size=2000"""
    _stage("split", root, recipe, overrides, replace, dry_run, {})


@app.command("build-dpo-pairs", help="Pair correct with incorrect rollouts of the same prompt.")
def build_dpo_pairs(
    root: Root = Path("out"),
    strategy: Annotated[
        str | None, typer.Option(help="one-to-one, all-products, hardest or length-matched.")
    ] = None,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
) -> None:
    """Example: curate build-dpo-pairs out/ --strategy length-matched"""
    _stage("build_dpo_pairs", root, recipe, overrides, replace, dry_run, {"strategy": strategy})


@app.command(help="Run a recipe's stages in order, only what is missing or stale.")
def run(
    recipe: Annotated[Path, typer.Argument(help="TOML file, or the name of a shipped recipe.")],
    out: Out = Path("out"),
    overrides: Overrides = None,
    replace: Replace = False,
    dry_run: DryRun = False,
) -> None:
    """Example: curate run pocket --out out/"""
    from curate.pipeline import planned
    from pipelines.config import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    for name in planned(loaded):
        if name == "card":
            _card(out, dry_run)
        else:
            _stage(name, out, recipe, overrides, replace, dry_run, {})


# --- looking --------------------------------------------------------------------------------------


@app.command(help="Say what is there, what is missing or stale, and what to type next.")
def status(root: Root = Path("out"), form: As = "text") -> None:
    """Example: curate status out/"""
    from curate.status import status as read_status

    found = read_status(root)
    if form == "json":
        _print_json({name: getattr(found, name) for name in ("stages", "refusals", "choices", "conservation")})
        return
    print(table_text(found.stages))
    for title in ("refusals", "conservation"):
        if rows := getattr(found, title):
            print(f"\n{title}\n{table_text(rows)}")
    print(f"\nnext: {found.next_command}" if found.next_command else "\neverything is done")


@app.command(help="Counts by source, verdict, rule, length, reason; pictures with --plots.")
def stats(
    root: Root = Path("out"),
    plots: Annotated[Path | None, typer.Option(help="Folder for PNG pictures.")] = None,
    form: As = "text",
) -> None:
    """Example: curate stats out/ --plots pictures/"""
    from curate.stats import stats as read_stats

    summaries = read_stats(root)
    if form == "json":
        _print_json({summary.title: summary.rows for summary in summaries})
    else:
        print("\n\n".join(f"{summary.title}\n{table_text(summary.rows)}" for summary in summaries))
    if plots is not None:
        from curate.plots import plots as draw

        for path in draw(root, plots):
            _log(f"wrote {path}")


@app.command(help="One SELECT over every table of a run directory, read-only, in DuckDB's dialect.")
def sql(
    root: Annotated[Path, typer.Argument(metavar="OUT", help="Run directory.")],
    select: Annotated[str, typer.Argument(help="The statement.")],
    form: Annotated[str, typer.Option("--as", help="text, json, csv or parquet.")] = "text",
) -> None:
    """Example: curate sql out/ "SELECT verdict, count(*) FROM verdicts GROUP BY 1" """
    from curate.sql import query, write_result

    result = query(root, select)
    if form == "text":
        print(table_text(result.to_pylist(), result.column_names))
    elif form in ("json", "csv", "parquet"):
        write_result(result, form, sys.stdout.buffer)  # type: ignore[arg-type]
    else:
        raise UserError(f"`--as {form}` is no form", hint="text, json, csv or parquet")


@app.command(help="Open a local page to read problems, traces and verdicts.")
def view(
    root: Root = Path("out"),
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
) -> None:
    """Example: curate view out/"""
    from curate.view.server import serve

    serve(root, port, lambda address: print(f"reading {root} at {address} (Ctrl-C ends)", flush=True))


@app.command(help="List the teachers that have an entry.")
def teachers() -> None:
    """Example: curate teachers"""
    from curate.teachers import teacher_rows

    print(table_text(teacher_rows()))


# --- versions -------------------------------------------------------------------------------------


@app.command(help="Write the dataset card, or check that its numbers are those of the tables.")
def card(
    root: Root = Path("out"),
    name: Annotated[str | None, typer.Option(help="Name of the data set.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only compare.")] = False,
) -> None:
    """Example: curate card out/ --name arithmetic"""
    from curate.card import check_card, write_card
    from pipelines.runner import locked

    if check:
        if differences := check_card(root):
            raise UserError(
                "the card differs from the tables:\n" + "\n".join(differences), hint=f"write it again: curate card {root}"
            )
        print(f"card: every number of {root / 'README.md'} is that of the tables")
        return
    with locked(root):
        print(f"card: wrote {write_card(root, name)}")
