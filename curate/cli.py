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
As = Annotated[str, typer.Option("--as", help="text, json, or what the command names.")]


def main() -> None:
    """Entry point of the `curate` command."""
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


# --- looking --------------------------------------------------------------------------------------


@app.command()
def status(root: Root = Path("out"), form: As = "text") -> None:
    """Say what is there, what is missing or stale, and what to type next.

    Example: curate status out/
    """
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


@app.command()
def stats(
    root: Root = Path("out"),
    plots: Annotated[Path | None, typer.Option(help="Folder for PNG pictures.")] = None,
    form: As = "text",
) -> None:
    """Counts by source, verdict, rule, length, reason; pictures with --plots.

    Example: curate stats out/ --plots pictures/
    """
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


@app.command()
def sql(
    root: Annotated[Path, typer.Argument(metavar="OUT", help="Run directory.")],
    select: Annotated[str, typer.Argument(help="The statement.")],
    form: Annotated[str, typer.Option("--as", help="text, json, csv or parquet.")] = "text",
) -> None:
    """One SELECT over every table of a run directory, read-only, in DuckDB's dialect.

    Example: curate sql out/ "SELECT verdict, count(*) FROM verdicts GROUP BY 1"
    """
    from curate.sql import query, write_result

    result = query(root, select)
    if form == "text":
        print(table_text(result.to_pylist(), result.column_names))
    elif form in ("json", "csv", "parquet"):
        write_result(result, form, sys.stdout.buffer)  # type: ignore[arg-type]
    else:
        raise UserError(f"`--as {form}` is no form", hint="text, json, csv or parquet")


@app.command()
def view(
    root: Root = Path("out"),
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
) -> None:
    """Open a local page to read problems, traces and verdicts.

    Example: curate view out/
    """
    from curate.view.server import serve

    serve(root, port, lambda address: print(f"reading {root} at {address} (Ctrl-C ends)", flush=True))


@app.command()
def teachers() -> None:
    """List the teachers that have an entry.

    Example: curate teachers
    """
    from curate.teachers import teacher_rows

    print(table_text(teacher_rows()))


# --- versions -------------------------------------------------------------------------------------


@app.command()
def card(
    root: Root = Path("out"),
    name: Annotated[str | None, typer.Option(help="Name of the data set.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only compare.")] = False,
) -> None:
    """Write the dataset card, or check that its numbers are those of the tables.

    Example: curate card out/ --name arithmetic
    """
    from curate.card import check_card, write_card
    from pipelines.runner import locked

    if check:
        if differences := check_card(root):
            raise UserError(
                "the card differs from the tables:\n" + "\n".join(differences),
                hint=f"write it again: curate card {root}",
            )
        print(f"card: every number of {root / 'README.md'} is that of the tables")
        return
    with locked(root):
        print(f"card: wrote {write_card(root, name)}")


@app.command()
def publish(
    root: Root = Path("out"),
    to: Annotated[str, typer.Option("--to", help="Destination; its last part is the data set's name.")] = "",
    version: Annotated[str, typer.Option(help="Semantic version, e.g. 1.2.0.")] = "",
    cards: Annotated[Path | None, typer.Option(help="Folder that also gets the card, e.g. data_cards.")] = None,
) -> None:
    """Freeze a run directory as a numbered version: a folder, an fsspec URL, or hf:ORG/NAME.

    Example: curate publish out/ --to published/arithmetic --version 1.0.0
    """
    from curate.stages.publish import publish as publish_version
    from pipelines.progress import progress
    from pipelines.runner import locked

    if not (to and version):
        raise typer.BadParameter("--to DEST and --version X.Y.Z are both needed")
    with locked(root), progress("publish", unit="bytes") as advance:
        done = publish_version(root, to, version, cards=cards, on_bytes=advance)
    print(f"publish: {done.location} {'is published' if done.new else 'was published before, nothing to do'}")
    print(f"content {done.version.content}")


@app.command()
def fetch(
    version: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="As `publish` printed it.")],
    into: Annotated[Path | None, typer.Option(help="Folder to make; NAME-VERSION by default.")] = None,
    source: Annotated[str | None, typer.Option("--from", help="Folder or URL that holds NAME.")] = None,
) -> None:
    """Bring a published version here and check every digest.

    Example: curate fetch published/arithmetic@1.0.0 --into data/
    """
    from pipelines import versions
    from pipelines.progress import progress

    reference = versions.parse_reference(version, source)
    folder = into or Path(f"{reference.name}-{reference.version}")
    with progress("fetch", unit="bytes") as advance:
        _, fetched = versions.fetch(reference, folder, on_bytes=advance)
    print(
        f"fetch: {folder} holds {reference.name}@{reference.version}, {fetched} files fetched now, every digest checked"
    )


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="The earlier one.")],
    b: Annotated[Path, typer.Argument(help="The later one.")],
    form: Annotated[str, typer.Option("--as", help="text, json or markdown.")] = "text",
) -> None:
    """What changed from one run directory or version to another, with reasons.

    Example: curate diff data-1.0.0 data-1.1.0 --as markdown
    """
    from curate.diff import diff as find_diff
    from curate.diff import render

    print(render(find_diff(a, b), form))  # type: ignore[arg-type]  # an unknown form is refused there


@app.command()
def problems(
    path: Annotated[Path, typer.Argument(help="JSONL file to write.")],
    count: Annotated[int, typer.Option(help="Problems.")] = 1000,
    levels: Annotated[str, typer.Option(help="Numbers of steps, comma-separated.")] = "2,3,4,5",
    seed: Annotated[int, typer.Option(help="Another seed, other problems.")] = 0,
    exclude: Annotated[list[Path] | None, typer.Option(help="Files whose problems are not written.")] = None,
) -> None:
    """Write problems of the pocket world, to try everything on.

    Example: curate problems heldout.jsonl --count 500 --seed 1 --exclude problems.jsonl
    """
    from curate.problems import write_problem_file

    try:
        texts = {json.loads(line)["problem"] for file in exclude or () for line in file.read_text("utf-8").splitlines()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"`--exclude` is not a file that `curate problems` wrote: {error}") from None
    steps = [int(level) for level in levels.split(",")]
    written = write_problem_file(path, count=count, levels=steps, seed=seed, exclude=texts)
    print(f"problems: wrote {len(written):,} to {path}")


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
        _print_json({name: config.resolved()})
        if root.is_dir():
            from curate.status import status as read_status

            print(table_text(read_status(root).stages, ("stage", "state", "files", "rows")))
        return
    with locked(root):
        for line in run_step(root, name, loaded, replace=replace, executor=executor, tasks=tasks, **options):
            print(line, flush=True)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def _log(line: str) -> None:
    print(line, file=sys.stderr)


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
