"""Publish: freeze a run directory as a numbered version and make it visible in one step.

A version never changes: one that exists with other content is an error, one that exists with the
same content is left as it is, so an interrupted publish is simply run again. The three kinds of
place differ in what one step is: a folder is renamed, in object storage `VERSION.json` comes last,
the Hub takes a commit on the parent we saw, and a tag.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fsspec import AbstractFileSystem  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub import errors as hub_errors

from curate.card import STAGE, card_text, write_card
from pipelines import runner, versions
from pipelines.errors import UserError
from pipelines.versions import RECORD, OnBytes, Reference, Version


@dataclass(frozen=True)
class Published:
    """A version and where it is; `new` is False where it had been published before."""

    version: Version
    location: str
    new: bool


def publish(
    root: Path, destination: str, version: str, *, cards: Path | None = None, on_bytes: OnBytes | None = None
) -> Published:
    """Publish `root` as `version` of `destination`: a folder, an fsspec URL, or `hf:ORG/NAME`.

    The last part of the destination is the data set's name. A card that is missing or stale is
    written first, in `root` too. `cards` is a folder that gets a copy of
    the card as `NAME-VERSION.md`; `on_bytes` hears of bytes stored.
    """
    reference = Reference(destination, versions.checked_number(version))
    if runner.state(root, STAGE) != "done":
        write_card(root)
    with tempfile.TemporaryDirectory(prefix="tracemill-publish-") as scratch:
        card = Path(scratch) / "README.md"
        card.write_text(card_text(root, reference.name, version), encoding="utf-8")
        manifest = root / "manifest.json"
        extra = {"README.md": card, **({"manifest.json": manifest} if manifest.is_file() else {})}
        frozen = versions.freeze(root, reference.name, version, extra)
        paths = versions.version_files(root, extra)
        store = _place(reference)
        new = store(reference, frozen, paths, on_bytes)
        if cards is not None:
            runner.write_text(cards / f"{reference.name}-{version}.md", card.read_text(encoding="utf-8"))
    return Published(frozen, f"{destination}@{version}", new)


Store = Callable[[Reference, Version, Mapping[str, Path], OnBytes | None], bool]
"""Puts a version and its files (path in the version -> file) at a place; False where it was there already."""


def _place(reference: Reference) -> Store:
    if reference.location.startswith("hf:"):
        return _to_hub
    filesystem, _ = versions.open_location(reference.location)
    return _to_folder if isinstance(filesystem, LocalFileSystem) else _to_objects


def _same(found: str, frozen: Version, reference: Reference) -> bool:
    """True where the record that is there is the one to be published; any other is a `UserError`."""
    where = f"{reference.location}@{reference.version}"
    if versions.parse_record(found, f"{where}/{RECORD}") == frozen:
        return True
    raise UserError(f"`{where}` exists with other content", hint="a version never changes: take the next number")


# --- a folder -------------------------------------------------------------------------------------


def _to_folder(reference: Reference, frozen: Version, paths: Mapping[str, Path], on_bytes: OnBytes | None) -> bool:
    """Gather the files in `VERSION.partial`, which a publish that was cut off leaves for the next, and rename it."""
    folder = Path(versions.open_location(reference.location)[1])
    target, staging = folder / reference.version, folder / f"{reference.version}.partial"
    with runner.locked(folder):
        if target.exists():
            record = target / RECORD
            if not record.is_file():
                raise UserError(f"`{target}` exists and is no version", hint="move it away, or take another number")
            return not _same(record.read_text(encoding="utf-8"), frozen, reference)
        for place, file in frozen.files.items():
            copy = staging / place
            if not (copy.is_file() and versions.sha256(copy) == file.sha256):
                _copy(paths[place], copy)
            if versions.sha256(copy) != file.sha256:
                raise UserError(f"`{paths[place]}` changed while it was published", hint="publish again")
            if on_bytes is not None:
                on_bytes(file.size)
        versions.drop_strangers(staging, frozen)
        runner.write_text(staging / RECORD, frozen.to_json())
        staging.rename(target)
    return True


def _copy(source: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as original, copy.open("wb") as file:
        shutil.copyfileobj(original, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())


# --- object storage -------------------------------------------------------------------------------


def _to_objects(reference: Reference, frozen: Version, paths: Mapping[str, Path], on_bytes: OnBytes | None) -> bool:
    """Claim the number, store the files, then the record, which alone makes them a version.

    The claim, `VERSION.partial`, is made only if there is none: without it, two publishers would mix
    their files under one number before the record could tell them apart.
    """
    filesystem, target = versions.open_location(reference.location, reference.version)
    record, claim = f"{target}/{RECORD}", f"{target}.partial"
    try:
        filesystem.makedirs(target, exist_ok=True)
        _claim(filesystem, claim, frozen, reference)
        if filesystem.exists(record):
            filesystem.rm_file(claim)
            return not _same(filesystem.cat_file(record).decode(), frozen, reference)
        for place, file in frozen.files.items():
            filesystem.makedirs(f"{target}/{place}".rsplit("/", 1)[0], exist_ok=True)
            filesystem.put_file(str(paths[place]), f"{target}/{place}")
            if on_bytes is not None:
                on_bytes(file.size)
        for stranger in set(filesystem.find(target)) - {f"{target}/{place}" for place in frozen.files}:
            filesystem.rm_file(stranger)
        filesystem.pipe_file(record, frozen.to_json().encode(), mode="create")
        filesystem.rm_file(claim)
    except OSError as error:
        raise UserError(f"cannot publish to `{reference.location}`: {error}", hint="run it again") from None
    return True


def _claim(filesystem: AbstractFileSystem, claim: str, frozen: Version, reference: Reference) -> None:
    """Make the claim, or take up our own that an interrupted publish has left."""
    try:
        filesystem.pipe_file(claim, frozen.to_json().encode(), mode="create")
    except FileExistsError:
        if versions.parse_record(filesystem.cat_file(claim).decode(), claim) != frozen:
            raise UserError(
                f"`{reference.location}@{reference.version}` is being published with other content",
                hint=f"take the next number; if that publish was given up, delete `{claim}`",
            ) from None


# --- the Hugging Face Hub -------------------------------------------------------------------------


def _to_hub(reference: Reference, frozen: Version, paths: Mapping[str, Path], on_bytes: OnBytes | None) -> bool:
    """Commit the files on the head we saw, then tag the commit; the tag makes the version.

    A repository that does not exist is made, private: to open it is a person's decision.
    """
    hub, repository = HfApi(), reference.location.removeprefix("hf:")
    try:
        hub.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
        tags = hub.list_repo_refs(repository, repo_type="dataset").tags
        if any(tag.name == reference.version for tag in tags):
            filesystem, path = versions.open_location(reference.location, reference.version)
            return not _same(filesystem.cat_file(f"{path}/{RECORD}").decode(), frozen, reference)
        head = hub.repo_info(repository, repo_type="dataset").sha
        held = set(hub.list_repo_files(repository, repo_type="dataset", revision=head))
        files: dict[str, str | bytes] = {place: str(paths[place]) for place in frozen.files}
        files[RECORD] = frozen.to_json().encode()
        commit = hub.create_commit(
            repository,
            [
                *(CommitOperationAdd(path_in_repo=place, path_or_fileobj=file) for place, file in files.items()),
                *(CommitOperationDelete(path_in_repo=place) for place in sorted(held - {*files, ".gitattributes"})),
            ],
            commit_message=f"Version {reference.version}",
            repo_type="dataset",
            parent_commit=head,
        )
        hub.create_tag(repository, tag=reference.version, revision=commit.oid, repo_type="dataset")
    except hub_errors.HfHubHTTPError as error:
        if error.response.status_code in (409, 412):
            raise UserError(f"`{repository}` was changed by somebody else meanwhile", hint="publish again") from None
        raise UserError(f"the Hub refused `{repository}`: {error}", hint="check its name and your token") from None
    except (hub_errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # httpx's, by way of the Hub's client
        raise UserError(f"cannot reach the Hub: {error}", hint="check the network and run it again") from None
    if on_bytes is not None:
        on_bytes(frozen.num_bytes)
    return True
