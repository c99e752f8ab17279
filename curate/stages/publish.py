"""Publish: freeze a run directory as a numbered version and make it visible in one step.

A version never changes: one that exists with other content is an error, one that exists with the
same content is left as it is, so an interrupted publish is simply run again.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate.card import CROISSANT, PICTURES, STAGE, card_text, croissant_text, without_folder, write_card
from curate.counting import Row, opened
from curate.diff import count_table, diff, reason_table
from curate.licences import licences, refuse_unshareable
from curate.personal import personal
from curate.places import place_of
from pipelines import runner, versions
from pipelines.tables import STAGES
from pipelines.versions import RECORD, OnBytes, Reference, Version


@dataclass(frozen=True)
class Published:
    """A version and where it is; `new` is False where it had been published before."""

    version: Version
    location: str
    new: bool
    personal: list[Row]
    """What looks like personal data or secrets in it, by kind and table."""


def publish(
    root: Path,
    destination: str,
    version: str,
    *,
    since: Path | None = None,
    accepted: Sequence[str] = (),
    cards: Path | None = None,
    on_bytes: OnBytes | None = None,
) -> Published:
    """Publish `root` as `version` of `destination`: a folder, an fsspec URL, or `hf:ORG/NAME`.

    The last part of the destination is the data set's name. A card that is missing or stale is written first, in
    `root` too; the published one tells what changed since the version in the folder `since`, by default the one
    before where the destination is a folder. A source whose licence forbids sharing is a `UserError` unless the
    licence is `accepted`. `cards` is a folder that gets a copy of the card with its pictures; `on_bytes` hears of
    bytes stored.
    """
    reference = Reference(destination, versions.checked_number(version))
    with opened(root) as connection:
        refuse_unshareable(licences(connection), accepted)
        found = personal(connection)
    if runner.state(root, STAGE) != "done" or not (root / CROISSANT).is_file():
        write_card(root)
    with tempfile.TemporaryDirectory(prefix="tracemill-publish-") as scratch:
        extra = _beside_the_tables(root, reference, since or _version_before(reference), Path(scratch))
        frozen = versions.freeze(root, reference.name, version, extra)
        new = place_of(reference)(reference, frozen, versions.version_files(root, extra), on_bytes)
        if cards is not None:
            _copy_card(extra, cards, f"{reference.name}-{version}")
    return Published(frozen, f"{destination}@{version}", new, found)


def _version_before(reference: Reference) -> Path | None:
    """The folder of the highest version below this one; None where there is none, or the destination is no folder."""
    if "://" in reference.location or reference.location.startswith("hf:"):
        return None
    folder = Path(reference.location)
    order = versions.precedence(reference.version)
    earlier = [record.parent for record in folder.glob(f"*/{RECORD}") if versions.is_number(record.parent.name)]
    below = [path for path in earlier if versions.precedence(path.name) < order]
    return max(below, key=lambda path: versions.precedence(path.name), default=None)


def _beside_the_tables(root: Path, reference: Reference, since: Path | None, scratch: Path) -> dict[str, Path]:
    """Path in the version -> file, of what a version holds besides its tables; what names the version is made here."""
    name, version = reference.name, reference.version
    changes = None if since is None else _changes(since, root)
    manifest = _without_folders(runner.read_manifest(root))
    manifest["stages"][STAGE.name]["changes"] = changes
    pictures = {place: root / place for place in PICTURES if (root / place).is_file()}
    made = {
        "README.md": card_text(root, name, version, picture=bool(pictures), changes=changes),
        CROISSANT: croissant_text(root, name, version),
        "manifest.json": json.dumps(manifest, indent=1, sort_keys=True) + "\n",
    }
    for place, text in made.items():
        (scratch / place).write_text(text, encoding="utf-8")
    return {**{place: scratch / place for place in made}, **pictures}


def _without_folders(value: Any) -> Any:
    """A manifest without the folders of the machine it was made on."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return without_folder(value) if isinstance(value, str) else value


def _changes(since: Path, root: Path) -> dict[str, Any]:
    """What changed from the version in `since`, as the card shows it."""
    found = diff(since, root)
    reasons = [row for row in reason_table(found) if row["table"] in STAGES]
    return {"since": found.a, "counts": count_table(found), "reasons": reasons}


def _copy_card(extra: dict[str, Path], cards: Path, name: str) -> None:
    """The card as `NAME.md` in `cards`, with its pictures beside it as `NAME-PICTURE`."""
    cards.mkdir(parents=True, exist_ok=True)
    text = extra["README.md"].read_text(encoding="utf-8")
    for picture in set(PICTURES) & set(extra):
        beside = f"{name}-{Path(picture).name}"
        text = text.replace(f"({picture})", f"({beside})")
        partial = cards / f".{beside}.partial"
        shutil.copyfile(extra[picture], partial)
        partial.replace(cards / beside)
    runner.write_text(cards / f"{name}.md", text)
