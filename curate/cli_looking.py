"""The commands of `curate` that look at a run directory, and those that make versions of it."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.commands import folder_or_version, table_text
from pipelines.errors import UserError

commands = typer.Typer()

Root = Annotated[Path, typer.Argument(metavar="OUT", help="Run directory.", show_default=True)]
Readable = Annotated[
    Path,
    typer.Argument(metavar="OUT", help="Run directory, or NAME@VERSION.", show_default=True, parser=folder_or_version),
]
As = Annotated[str, typer.Option("--as", help="text, json, or what the command names.")]


# --- looking --------------------------------------------------------------------------------------


@commands.command()
def status(root: Readable = Path("out"), form: As = "text") -> None:
    """Say what is there, what is missing or stale, and what to type next.

    Example: curate status out/
    """
    from curate.status import status as read_status

    found = read_status(root)
    if form == "json":
        names = ("version", "stages", "refusals", "choices", "overrides", "conservation")
        print_json({name: getattr(found, name) for name in names})
        return
    print(table_text(found.stages))
    for title in ("refusals", "overrides", "conservation"):
        if rows := getattr(found, title):
            print(f"\n{title}\n{table_text(rows)}")
    if found.version is not None:
        print(f"\n{found.version} is published: it never changes")
    else:
        print(f"\nnext: {found.next_command}" if found.next_command else "\neverything is done")


@commands.command()
def stats(
    root: Readable = Path("out"),
    plots: Annotated[Path | None, typer.Option(help="Folder for PNG pictures.")] = None,
    form: As = "text",
) -> None:
    """Counts by source, verdict, rule, length, reason; pictures with --plots.

    Example: curate stats out/ --plots pictures/
    """
    from curate.stats import stats as read_stats

    summaries = read_stats(root)
    if form == "json":
        print_json({summary.title: summary.rows for summary in summaries})
    else:
        print("\n\n".join(f"{summary.title}\n{table_text(summary.rows)}" for summary in summaries))
    if plots is not None:
        from curate.plots import plots as draw

        for path in draw(root, plots):
            _log(f"wrote {path}")


@commands.command()
def sql(
    root: Readable,
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


@commands.command()
def view(
    root: Readable = Path("out"),
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
    prompts: Annotated[
        Path | None, typer.Option(help="What holds the problems, for a run of RL.", parser=folder_or_version)
    ] = None,
) -> None:
    """Open a local page to search, read and mark problems, traces and verdicts.

    A published version is shown as it is: nothing can be marked there.

    Example: curate view out/
    """
    from curate.view.server import serve

    serve(root, port, lambda address: print(f"reading {root} at {address} (Ctrl-C ends)", flush=True), home=prompts)


@commands.command()
def teachers() -> None:
    """List the teachers that have an entry.

    Example: curate teachers
    """
    from curate.teachers import teacher_rows

    print(table_text(teacher_rows()))


# --- versions -------------------------------------------------------------------------------------


@commands.command()
def card(
    root: Root = Path("out"),
    name: Annotated[str | None, typer.Option(help="Name of the data set.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only compare.")] = False,
) -> None:
    """Write the dataset card, or check that its numbers are those of the tables.

    Example: curate card out/ --name arithmetic
    """
    from curate.card import check_card, write_card
    from pipelines.versions import writable

    if check:
        if differences := check_card(root):
            raise UserError(
                "the card differs from the tables:\n" + "\n".join(differences),
                hint=f"write it again: curate card {root}",
            )
        print(f"card: every number of {root / 'README.md'} is that of the tables")
        return
    with writable(root):
        print(f"card: wrote {write_card(root, name)}")


@commands.command()
def publish(
    root: Root = Path("out"),
    to: Annotated[str, typer.Option("--to", help="Destination; its last part is the data set's name.")] = "",
    version: Annotated[str, typer.Option(help="Semantic version, e.g. 1.2.0.")] = "",
    since: Annotated[
        Path | None, typer.Option(help="Version to compare with on the card.", parser=folder_or_version)
    ] = None,
    accept_licence: Annotated[
        list[str] | None, typer.Option(help="Share what is under this licence though it forbids it.")
    ] = None,
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
        done = publish_version(
            root, to, version, since=since, accepted=accept_licence or (), cards=cards, on_bytes=advance
        )
    print(f"publish: {done.location} {'is published' if done.new else 'was published before, nothing to do'}")
    print(f"content {done.version.content}")
    for row in done.personal:
        _log(f"warning: {row['rows']:,} {row['found_in']} hold what looks like an {row['kind']}: `curate scan {root}`")


@commands.command()
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


@commands.command()
def diff(
    a: Annotated[Path, typer.Argument(help="The earlier run directory or version.", parser=folder_or_version)],
    b: Annotated[Path, typer.Argument(help="The later one.", parser=folder_or_version)],
    form: Annotated[str, typer.Option("--as", help="text, json or markdown.")] = "text",
    picture: Annotated[Path | None, typer.Option(help="PNG file to draw as well.")] = None,
) -> None:
    """What changed from one run directory or version to another, with reasons.

    Example: curate diff published/sums@1.0.0 published/sums@1.1.0 --as markdown
    """
    from curate.diff import diff as find_diff
    from curate.diff import draw_diff, render

    found = find_diff(a, b)
    print(render(found, form))  # type: ignore[arg-type]  # an unknown form is refused there
    if picture is not None:
        _log(f"wrote {draw_diff(found, picture)}")


@commands.command("check-version")
def check_version(
    folder: Annotated[Path, typer.Argument(help="Folder of a version, or NAME@VERSION.", parser=folder_or_version)],
) -> None:
    """Check every file of a version, and its rows, against their digests.

    Example: curate check-version data/
    """
    from pipelines import versions

    version = versions.checked_folder(folder)
    print(f"check-version: {version.name}@{version.version}, every one of {len(version.files)} files is as published")
    print(f"content {version.content}")


@commands.command()
def scan(root: Readable = Path("out"), form: As = "text") -> None:
    """List what looks like personal data or a secret in problems and traces, masked, with the rows' ids.

    Example: curate scan out/
    """
    from curate.personal import findings

    rows = findings(root)
    if form == "json":
        print_json(rows)
    else:
        print(table_text(rows) or "scan: nothing found")


@commands.command()
def lineage(
    of: Annotated[str, typer.Argument(metavar="CHECKPOINT|ROW", help="Folder of a checkpoint, or id of a row.")],
    data: Annotated[
        Path, typer.Option("--data", help="Run directory or NAME@VERSION it is from.", parser=folder_or_version)
    ] = Path("out"),
    form: As = "text",
) -> None:
    """Walk back from a trained model or a row to the rollouts, verdicts, settings and sources it comes from.

    Example: curate lineage runs/first/sft/final --data out/
    """
    from curate.lineage import lineage as trace_back
    from curate.lineage import lines

    found = trace_back(of, data)
    if form == "json":
        print_json(found)
    else:
        print("\n".join(lines(found)))


@commands.command()
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


def print_json(value: Any) -> None:
    """A value as JSON on stdout."""
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def _log(line: str) -> None:
    print(line, file=sys.stderr)
