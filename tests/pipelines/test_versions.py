"""Versions: what is fetched is what was published, to the byte, or nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from run_directories import small_run

from pipelines import versions
from pipelines.commands import folder_or_version
from pipelines.content import digest
from pipelines.errors import UserError
from pipelines.versions import RECORD, Reference, fetch, freeze, parse_reference, read_version, version_files


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A version 1.0.0 of `sums`, laid out by hand as a publisher would."""
    run = small_run(tmp_path / "out")
    folder = tmp_path / "sets/sums/1.0.0"
    frozen = freeze(run, "sums", "1.0.0", {})
    for place, path in version_files(run, {}).items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / place)
    (folder / RECORD).write_text(frozen.to_json())
    return folder


def reference(published: Path) -> Reference:
    return Reference(str(published.parent), "1.0.0")


@pytest.mark.parametrize("number", ["1.2.0", "0.0.1", "10.20.30", "2.0.0-rc.1"])
def test_semantic_versions(number: str):
    assert versions.checked_number(number) == number


@pytest.mark.parametrize("number", ["1.2", "v1.2.0", "1.02.0", "1.2.0.0", "latest", "", "1.2.0/../..", "1.2.0\n"])
def test_other_numbers_are_refused(number: str):
    with pytest.raises(UserError, match="semantic version"):
        versions.checked_number(number)


def test_references():
    assert parse_reference("sums@1.0.0", "/sets/") == Reference("/sets/sums", "1.0.0")
    assert parse_reference("hf:org/sums@1.0.0") == Reference("hf:org/sums", "1.0.0")
    assert parse_reference("s3://bucket/a@b/sums@1.0.0").location == "s3://bucket/a@b/sums"
    assert Reference("hf:org/sums", "1.0.0").name == Reference("hf:sums", "1.0.0").name == "sums"
    with pytest.raises(UserError, match="not NAME@VERSION"):
        parse_reference("sums")


def test_the_content_digest_is_of_the_tables_alone(tmp_path: Path):
    run = small_run(tmp_path / "out")
    card = tmp_path / "card.md"
    card.write_text("one")
    first = freeze(run, "sums", "1.0.0", {"README.md": card})
    card.write_text("two")
    second = freeze(run, "sums", "1.0.1", {"README.md": card})
    assert first.content == second.content
    assert first.files["README.md"] != second.files["README.md"]
    other = freeze(small_run(tmp_path / "other", changed=True), "sums", "1.0.0", {})
    assert other.content != first.content
    assert first.files["rollouts/00000.parquet"].rows == 24


def test_an_empty_directory_cannot_be_frozen(tmp_path: Path):
    with pytest.raises(UserError, match="holds no tables"):
        freeze(tmp_path, "sums", "1.0.0", {})


def test_fetch_gives_the_same_bytes(published: Path, tmp_path: Path):
    heard: list[int] = []
    version, fetched = fetch(reference(published), tmp_path / "copy", heard.append)
    assert fetched == len(version.files) == 14
    assert sum(heard) == version.num_bytes
    assert read_version(tmp_path / "copy") == version
    for path in published.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "copy" / path.relative_to(published)).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "sets", "copy"}


def test_fetching_again_verifies_and_downloads_nothing(published: Path, tmp_path: Path):
    fetch(reference(published), tmp_path / "copy")
    assert fetch(reference(published), tmp_path / "copy")[1] == 0
    flip_a_byte(tmp_path / "copy/rollouts/00000.parquet")
    with pytest.raises(UserError, match=r"`rollouts/00000.parquet` was altered"):
        fetch(reference(published), tmp_path / "copy")


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_one_flipped_byte_in_any_file_is_found_and_named(published: Path, tmp_path: Path):
    for path in sorted(path for path in published.rglob("*") if path.is_file()):
        place = path.relative_to(published).as_posix()
        before = path.read_bytes()
        flip_a_byte(path)
        with pytest.raises(UserError, match=place):
            fetch(reference(published), tmp_path / "copy")
        assert not (tmp_path / "copy").exists()
        path.write_bytes(before)
    fetch(reference(published), tmp_path / "copy")


def test_a_missing_file_is_named(published: Path, tmp_path: Path):
    (published / "verdicts/00000.parquet").unlink()
    with pytest.raises(UserError, match=r"verdicts/00000.parquet` is missing"):
        fetch(reference(published), tmp_path / "copy")


def test_a_fetch_that_was_cut_off_goes_on_where_it_stopped(published: Path, tmp_path: Path):
    staging = tmp_path / "copy.partial"
    whole, half = published / "prompts/00000.parquet", published / "rollouts/00000.parquet"
    (staging / "prompts").mkdir(parents=True)
    (staging / "rollouts").mkdir()
    shutil.copy(whole, staging / "prompts/00000.parquet")
    left = half.stat().st_size // 2
    (staging / "rollouts/00000.parquet.fetching").write_bytes(half.read_bytes()[:left])
    (staging / "shards").mkdir()
    (staging / "shards/of_another_version.parquet").write_bytes(b"x")
    heard: list[int] = []
    version, fetched = fetch(reference(published), tmp_path / "copy", heard.append)
    assert fetched == len(version.files) - 1
    assert sum(heard) == version.num_bytes - whole.stat().st_size - left
    assert list(versions.faults(tmp_path / "copy", version)) == []
    assert not (tmp_path / "copy/shards/of_another_version.parquet").exists()


def test_left_over_bytes_of_another_file_do_not_spoil_a_fetch(published: Path, tmp_path: Path):
    stale = tmp_path / "copy.partial/rollouts/00000.parquet.fetching"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"another version began like this")
    version, _ = fetch(reference(published), tmp_path / "copy")
    assert list(versions.faults(tmp_path / "copy", version)) == []


def test_a_folder_in_the_way_is_not_touched(published: Path, tmp_path: Path):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is another thing"):
        fetch(reference(published), tmp_path / "copy")
    assert (tmp_path / "copy/mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "place", ["../outside", "/etc/cron.d/x", "a/../../b", "a//b", "./a", "VERSION.json", "a\\..\\b", ""]
)
def test_a_record_cannot_write_outside_its_folder(published: Path, tmp_path: Path, place: str):
    facts = json.loads((published / RECORD).read_text())
    del facts["record"]
    facts["files"][place] = {"size": 1, "sha256": "0" * 64, "rows": None}
    facts["record"] = digest(facts)  # its author can sign what he likes
    (published / RECORD).write_text(json.dumps(facts))
    with pytest.raises(UserError, match="not a version record"):
        fetch(reference(published), tmp_path / "copy")


def test_an_unknown_version_is_named(published: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"no version `.*sums@1.0.1`"):
        fetch(Reference(str(published.parent), "1.0.1"), tmp_path / "copy")


def test_a_version_under_a_wrong_number_is_refused(published: Path, tmp_path: Path):
    published.rename(published.with_name("2.0.0"))
    with pytest.raises(UserError, match=r"holds version 1.0.0"):
        fetch(Reference(str(published.parent), "2.0.0"), tmp_path / "copy")


def test_precedence_is_that_of_semantic_versions():
    order = [
        "0.9.10",
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0-rc.2",
        "1.0.0-rc.10",
        "1.0.0",
        "1.10.0",
    ]
    assert sorted(set(order), key=versions.precedence) == order


def test_a_version_stands_for_its_folder(published: Path, tmp_path: Path):
    assert versions.folder_of(f"{published.parent}@1.0.0") == published
    assert versions.folder_of(str(tmp_path)) == folder_or_version(tmp_path) == tmp_path
    (tmp_path / "a@b").mkdir()
    assert versions.folder_of(str(tmp_path / "a@b")) == tmp_path / "a@b"
    with pytest.raises(UserError, match="no version"):
        versions.folder_of(f"{published.parent}@2.0.0")
    flip_a_byte(published / "shards/sft/00000.parquet")
    with pytest.raises(UserError, match=r"shards/sft/00000.parquet` was altered"):
        versions.folder_of(f"{published.parent}@1.0.0")


def test_a_version_that_is_kept_elsewhere_is_fetched_once(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRACEMILL_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.put(str(published), "/sets/sums/1.0.0", recursive=True)
    folder = versions.folder_of("memory://sets/sums@1.0.0")
    assert folder.is_relative_to(tmp_path / "cache")
    assert versions.cited(folder) == versions.cited(published)
    memory.store.clear()  # a version never changes: what is here is enough
    assert versions.folder_of("memory://sets/sums@1.0.0") == folder
    flip_a_byte(folder / "prompts/00000.parquet")
    with pytest.raises(UserError, match=r"prompts/00000.parquet` was altered"):
        versions.folder_of("memory://sets/sums@1.0.0")


def test_a_version_is_cited_by_name_number_and_content(published: Path, tmp_path: Path):
    version = read_version(published)
    assert version is not None
    assert versions.cited(published) == {"name": "sums", "version": "1.0.0", "content": version.content}
    assert versions.cited(tmp_path) is None


def test_every_file_and_every_row_of_a_version_is_checked(published: Path, tmp_path: Path):
    assert versions.checked_folder(published).name == "sums"
    (published / "stranger.txt").write_text("x")
    with pytest.raises(UserError, match=r"`stranger.txt` is not part of the version"):
        versions.checked_folder(published)
    (published / "stranger.txt").unlink()
    for path in sorted(path for path in published.rglob("*") if path.is_file()):
        before = path.read_bytes()
        flip_a_byte(path)
        with pytest.raises(UserError, match=path.relative_to(published).as_posix()):
            versions.checked_folder(published)
        path.write_bytes(before)
    with pytest.raises(UserError, match="is no version"):
        versions.checked_folder(tmp_path)


def test_a_record_whose_rows_are_others_is_found(published: Path, tmp_path: Path):
    """A publisher signs files of one run with the rows' digest of another."""
    other = freeze(small_run(tmp_path / "other", changed=True), "sums", "1.0.0", {})
    version = read_version(published)
    assert version is not None
    (published / RECORD).write_text(replace(version, tables=other.tables, content=other.content).to_json())
    with pytest.raises(UserError, match="the rows are not those of the record"):
        versions.checked_folder(published)
