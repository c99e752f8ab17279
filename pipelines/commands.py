"""What both commands share: how errors are shown, and the shape of a summary line."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import UserError


def run_command(app: Callable[[], Any]) -> None:
    """Run a typer app; a `UserError` becomes two lines on stderr and exit code 1 (usage errors exit with 2)."""
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"error: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        raise SystemExit(1) from None
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone; that is no error of ours.
        sys.stderr.close()
        raise SystemExit(0) from None


def folder_or_version(text: str | Path) -> Path:
    """The folder that an option names: itself, or that of a published version, `NAME@1.2.0`, fetched where needed.

    An option's default comes here too, as a path.
    """
    from pipelines.versions import folder_of

    return folder_of(str(text))


def table_text(rows: Sequence[Mapping[str, Any]], columns: Iterable[str] | None = None) -> str:
    """`rows` as aligned plain text with a header; numbers stand right. Empty for no rows."""
    if not rows:
        return ""
    names = list(columns) if columns is not None else list(rows[0])
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    numeric = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in names]
    lines = [names, *cells]
    return "\n".join(
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}"
    # Text from models may hold control characters that drive a terminal.
    return "".join(character if character.isprintable() else "�" for character in str(value))
