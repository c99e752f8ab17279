"""Training on a published version: by its name or in its folder, and the checkpoint says which version it was."""

import json
from pathlib import Path

import pytest
from run_directories import small_run
from tiny_models import tiny_model
from typer.testing import CliRunner

from curate.stages.publish import publish
from pipelines.errors import UserError
from pipelines.versions import fetch, parse_reference
from train.cli import app


def train_sft(shards: str, model: Path, out: Path) -> dict:
    """What the checkpoint of one step of SFT says of its origin."""
    settings = ("max_steps=1", "max_length=512", "precision=fp32")
    options = [part for setting in settings for part in ("--set", f"sft.{setting}")]
    line = ["sft", "--shards", shards, "--model", str(model), "--out", str(out), *options]
    CliRunner().invoke(app, line, catch_exceptions=False)
    return json.loads((out / "final/tracemill.json").read_text())


def test_a_checkpoint_records_the_version_it_was_trained_on(tmp_path: Path):
    model = tiny_model(tmp_path / "model")
    published = publish(small_run(tmp_path / "out"), str(tmp_path / "sets/sums"), "1.2.0").version
    name, copy = f"{tmp_path}/sets/sums@1.2.0", tmp_path / "copy"
    fetch(parse_reference(name), copy)
    by_name = train_sft(name, model, tmp_path / "by-name")
    assert by_name["version"] == {"name": "sums", "version": "1.2.0", "content": published.content}
    in_folder = train_sft(str(copy), model, tmp_path / "in-folder")
    assert (in_folder["version"], in_folder["shards"]) == (by_name["version"], by_name["shards"])


def test_a_version_that_was_altered_is_not_trained_on(tmp_path: Path):
    publish(small_run(tmp_path / "out"), str(tmp_path / "sets/sums"), "1.2.0")
    shard = tmp_path / "sets/sums/1.2.0/shards/sft/00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"`shards/sft/00000\.parquet`"):
        train_sft(f"{tmp_path}/sets/sums@1.2.0", tmp_path / "model", tmp_path / "run")
    assert not (tmp_path / "run").exists()
