"""Places that keep versions: each puts a version's files away so that it appears whole, once, or not at all.

The three kinds differ in what one step is: a folder is renamed; in object storage `VERSION.json` comes last; the Hub
takes a commit on the parent we saw, and a tag.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from fsspec import AbstractFileSystem  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub import errors as hub_errors

from pipelines import runner, versions
from pipelines.errors import UserError
from pipelines.versions import RECORD, OnBytes, Reference, Version

Store = Callable[[Reference, Version, Mapping[str, Path], OnBytes | None], bool]
"""Puts a version and its files (path in the version -> file) at a place; False where it was there already."""


def place_of(reference: Reference) -> Store:
    """How versions are stored at a location."""
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

    The claim, `VERSION.partial`, and the record are made only if there is none (a conditional put): without the
    claim, two publishers would mix their files under one number before the record could tell them apart.
    """
    filesystem, target = versions.open_location(reference.location, reference.version)
    record, claim = f"{target}/{RECORD}", f"{target}.partial"
    try:
        _claim(filesystem, claim, frozen, reference)
        filesystem.invalidate_cache()  # what others stored meanwhile counts
        if filesystem.exists(record):
            filesystem.rm_file(claim)
            return not _same(filesystem.cat_file(record).decode(), frozen, reference)
        held = filesystem.find(target, detail=True)
        for place, file in frozen.files.items():
            path = f"{target}/{place}"
            if held.get(path, {}).get("size") != file.size or _sha256(filesystem, path) != file.sha256:
                filesystem.put_file(str(paths[place]), path)
            if on_bytes is not None:
                on_bytes(file.size)
        for stranger in set(held) - {f"{target}/{place}" for place in frozen.files}:
            filesystem.rm_file(stranger)
        new = _finish(filesystem, record, frozen, reference)
        filesystem.rm_file(claim)
    except versions.network_errors() as error:
        raise UserError(f"cannot publish to `{reference.location}`: {error}", hint="run it again") from None
    return new


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


def _finish(filesystem: AbstractFileSystem, record: str, frozen: Version, reference: Reference) -> bool:
    """Store the record; False where somebody who publishes the same was sooner."""
    try:
        filesystem.pipe_file(record, frozen.to_json().encode(), mode="create")
    except FileExistsError:
        return not _same(filesystem.cat_file(record).decode(), frozen, reference)
    return True


def _sha256(filesystem: AbstractFileSystem, path: str) -> str:
    with filesystem.open(path, "rb") as file:
        found = hashlib.sha256()
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


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
            return not _same(_record_on_hub(repository, reference.version), frozen, reference)
        commit = _commit(hub, repository, frozen, paths)
        # Where nothing had changed there was no commit, and the head may be somebody else's by now.
        _same(_record_on_hub(repository, commit), frozen, reference)
        hub.create_tag(repository, tag=reference.version, revision=commit, repo_type="dataset")
    except hub_errors.HfHubHTTPError as error:
        if error.response.status_code in (409, 412):
            raise UserError(f"`{repository}` was changed by somebody else meanwhile", hint="publish again") from None
        raise UserError(f"the Hub refused `{repository}`: {error}", hint="check its name and your token") from None
    except ValueError as error:
        raise UserError(f"the Hub's client refused `{repository}`: {error}", hint="see its message") from None
    except versions.network_errors() as error:
        raise UserError(f"cannot publish to the Hub: {error}", hint="check the network and run it again") from None
    if on_bytes is not None:
        on_bytes(frozen.num_bytes)
    return True


def _commit(hub: HfApi, repository: str, frozen: Version, paths: Mapping[str, Path]) -> str:
    """Make the repository hold the version's files and no others; returns the commit's id.

    The Hub refuses the commit where its parent, the head we saw, is no longer the head.
    """
    head = hub.repo_info(repository, repo_type="dataset").sha
    held = set(hub.list_repo_files(repository, repo_type="dataset", revision=head))
    files: dict[str, str | bytes] = {place: str(paths[place]) for place in frozen.files}
    files[RECORD] = frozen.to_json().encode()
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(path_in_repo=place, path_or_fileobj=file) for place, file in files.items()),
        *(CommitOperationDelete(path_in_repo=place) for place in sorted(held - {*files, ".gitattributes"})),
    ]
    commit = hub.create_commit(
        repository,
        operations,
        commit_message=f"Version {frozen.version}",
        repo_type="dataset",
        parent_commit=head,
    )
    return commit.oid


def _record_on_hub(repository: str, revision: str) -> str:
    filesystem, path = versions.open_location(f"hf:{repository}", revision)
    text: bytes = filesystem.cat_file(f"{path}/{RECORD}")
    return text.decode("utf-8", "replace")
