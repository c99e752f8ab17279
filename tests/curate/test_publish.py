"""Publish: a version appears whole, once, and never changes."""

import re
from collections.abc import Iterator
from pathlib import Path

import datasets
import fsspec
import pytest
from object_store import BUCKET, object_store
from run_directories import small_run, write_rows
from typer.testing import CliRunner

from curate import cli, cli_looking
from curate.card import check_card
from curate.stages.publish import publish
from pipelines import parquet, versions
from pipelines.errors import UserError
from pipelines.versions import Reference, fetch


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return small_run(tmp_path / "out")


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    with object_store() as environment:
        yield environment


@pytest.fixture(params=["folder", "memory", "s3"])
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "sets/sums")
    if request.param == "s3":
        request.getfixturevalue("store")
        return f"s3://{BUCKET}/{tmp_path.name}/sums"
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    return "memory://bucket/sums"


def test_round_trip(run: Path, destination: str, tmp_path: Path):
    published = publish(run, destination, "1.0.0")
    assert published.new
    assert published.version.name == "sums"
    version, _ = fetch(Reference(destination, "1.0.0"), tmp_path / "copy")
    assert version == published.version
    for place in version.files:
        if place.endswith(".parquet"):
            assert (tmp_path / "copy" / place).read_bytes() == (run / place).read_bytes()
    assert "# sums 1.0.0" in (tmp_path / "copy/README.md").read_text()
    assert check_card(tmp_path / "copy") == []


def test_publishing_the_same_again_does_nothing(run: Path, destination: str):
    first = publish(run, destination, "1.0.0")
    again = publish(run, destination, "1.0.0")
    assert not again.new
    assert again.version == first.version


def test_a_version_never_changes(run: Path, destination: str, tmp_path: Path):
    first = publish(run, destination, "1.0.0")
    other = small_run(tmp_path / "other", changed=True)
    with pytest.raises(UserError, match="exists with other content"):
        publish(other, destination, "1.0.0")
    assert fetch(Reference(destination, "1.0.0"), tmp_path / "copy")[0] == first.version
    assert publish(other, destination, "1.1.0").new


def test_a_bad_number_publishes_nothing(run: Path, tmp_path: Path):
    with pytest.raises(UserError, match="semantic version"):
        publish(run, str(tmp_path / "sets/sums"), "1.0")
    assert not (tmp_path / "sets").exists()


def test_a_publish_that_was_cut_off_is_continued(run: Path, destination: str, tmp_path: Path):
    filesystem, target = versions.open_location(destination, "1.0.0")
    staging = _staging(filesystem, target)
    filesystem.makedirs(f"{staging}/rollouts", exist_ok=True)
    filesystem.pipe_file(f"{staging}/rollouts/00000.parquet", b"half a fi")
    filesystem.pipe_file(f"{staging}/rollouts/00001.parquet", b"of another run")
    with pytest.raises(UserError, match="no version"):
        fetch(Reference(destination, "1.0.0"), tmp_path / "copy")
    publish(run, destination, "1.0.0")
    version, _ = fetch(Reference(destination, "1.0.0"), tmp_path / "copy")
    assert list(versions.faults(tmp_path / "copy", version)) == []
    assert not filesystem.exists(f"{target}/rollouts/00001.parquet")


def test_of_two_publishers_at_once_one_wins_and_the_other_is_told(run: Path, destination: str, tmp_path: Path):
    other = small_run(tmp_path / "other", changed=True)
    told: list[str] = []

    def intrude(num_bytes: int) -> None:
        if not told:
            with pytest.raises(UserError) as refusal:
                publish(other, destination, "1.0.0")
            told.append(refusal.value.message)

    first = publish(run, destination, "1.0.0", on_bytes=intrude)
    assert "in use" in told[0] or "being published with other content" in told[0]
    version, _ = fetch(Reference(destination, "1.0.0"), tmp_path / "copy")
    assert version == first.version


def test_what_an_interrupted_publish_has_stored_is_not_stored_again(run: Path, destination: str):
    filesystem, target = versions.open_location(destination, "1.0.0")
    stop = KeyboardInterrupt("the plug is pulled")

    def pull(num_bytes: int) -> None:
        if filesystem.exists(f"{_staging(filesystem, target)}/duplicates/00000.parquet"):
            raise stop

    with pytest.raises(KeyboardInterrupt):
        publish(run, destination, "1.0.0", on_bytes=pull)
    kept = filesystem.info(f"{_staging(filesystem, target)}/duplicates/00000.parquet")
    publish(run, destination, "1.0.0")
    now = filesystem.info(f"{target}/duplicates/00000.parquet")
    stamps = [info.get("LastModified") or info.get("created") for info in (kept, now)]
    assert stamps[0] == stamps[1] is not None


def _staging(filesystem: fsspec.AbstractFileSystem, target: str) -> str:
    return target + (".partial" if isinstance(filesystem, fsspec.get_filesystem_class("file")) else "")


def test_a_bucket_that_does_not_exist_is_said_and_not_made(run: Path, store: dict[str, str]):
    with pytest.raises(UserError, match="cannot publish to `s3://no-such-bucket/sums`"):
        publish(run, "s3://no-such-bucket/sums", "1.0.0")
    assert not fsspec.filesystem("s3").exists("s3://no-such-bucket")


def test_the_card_is_published_and_copied_with_its_pictures(run: Path, tmp_path: Path):
    publish(run, str(tmp_path / "sets/sums"), "1.0.0", cards=tmp_path / "cards")
    published = tmp_path / "sets/sums/1.0.0"
    copied = tmp_path / "cards/sums-1.0.0.md"
    for card in (published / "README.md", copied):
        pictures = re.findall(r"\]\(([^)]*\.png)\)", card.read_text())
        assert len(pictures) == 2
        assert all((card.parent / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    differing = set(copied.read_text().splitlines()) ^ set((published / "README.md").read_text().splitlines())
    assert all(".png" in line for line in differing)


def test_the_card_says_what_changed_since_the_version_before(run: Path, tmp_path: Path):
    destination = str(tmp_path / "sets/sums")
    publish(run, destination, "1.0.0")
    assert "## Changes since" not in (tmp_path / "sets/sums/1.0.0/README.md").read_text()
    publish(small_run(tmp_path / "other", changed=True), destination, "1.1.0")
    card = (tmp_path / "sets/sums/1.1.0/README.md").read_text()
    assert "## Changes since sums@1.0.0" in card
    assert "| verdicts | 24 | 28 | 4 | 0 | 1 |" in card
    assert "| sft | removed | now refused: incorrect | 1 |" in card
    assert check_card(tmp_path / "sets/sums/1.1.0") == []
    assert not publish(run, destination, "1.0.0").new
    publish(run, destination, "1.0.1")
    assert "## Changes since sums@1.0.0" in (tmp_path / "sets/sums/1.0.1/README.md").read_text()


def test_the_published_folder_opens_in_datasets(run: Path, tmp_path: Path):
    publish(run, str(tmp_path / "sets/sums"), "1.0.0")
    folder = tmp_path / "sets/sums/1.0.0"
    assert datasets.get_dataset_config_names(str(folder)) == ["midtrain", "sft", "dpo", "rl"]
    for kind, rows in {"midtrain": 7, "sft": 7, "dpo": 2, "rl": 5}.items():
        loaded = datasets.load_dataset(str(folder), kind, split="train", cache_dir=str(tmp_path / "cache"))
        assert loaded.num_rows == rows


def test_folders_of_this_machine_are_not_published(tmp_path: Path):
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text('{"problem": "How many primes are there below one hundred and seven?", "answer": "27"}\n')
    publish(small_run(tmp_path / "out", against=[f"mine={heldout}"]), str(tmp_path / "sets/sums"), "1.0.0")
    folder = tmp_path / "sets/sums/1.0.0"
    assert '"mine=heldout.jsonl"' in (folder / "manifest.json").read_text()
    for place in ("manifest.json", "README.md", "croissant.json", "VERSION.json"):
        assert str(tmp_path) not in (folder / place).read_text()
    assert check_card(folder) == []


def test_secrets_are_reported(run: Path, tmp_path: Path):
    rows = parquet.read_table(run / "rollouts/00000.parquet", "rollouts").to_pylist()
    rows[0]["response"] = "my token is hf_" + "aB3" * 11
    write_rows(run, "rollouts", rows)
    (row,) = publish(run, str(tmp_path / "sets/sums"), "1.0.0").personal
    assert (row["kind"], row["rows"]) == ("Hugging Face token", 1)
    card = (tmp_path / "sets/sums/1.0.0/README.md").read_text()
    assert "| Hugging Face token | rollouts | 1 | 1 | 1 |" in card
    assert "aB3aB3" not in card


def test_no_command_writes_into_a_version(run: Path, tmp_path: Path):
    publish(run, str(tmp_path / "sets/sums"), "1.0.0")
    version = tmp_path / "sets/sums/1.0.0"
    files = {path: path.read_bytes() for path in version.rglob("*") if path.is_file()}
    writing = [
        (cli.app, ["annotate", str(version)]),
        (cli.app, ["import", str(run), "--out", str(version)]),
        (cli.app, ["verify", str(version), "--report"]),
        (cli_looking.commands, ["card", str(version)]),
    ]
    for app, command in writing:
        with pytest.raises(UserError, match="is a published version"):
            CliRunner().invoke(app, command, catch_exceptions=False)
    assert {path: path.read_bytes() for path in version.rglob("*") if path.is_file()} == files
