"""`curate lineage`: back from a trained model or a row to what it comes from."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_directories import MODEL, small_run

from curate.lineage import lineage, lines
from curate.stages.publish import publish
from pipelines import parquet, versions
from pipelines.errors import UserError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    publish(small_run(tmp_path / "out"), str(tmp_path / "sets/sums"), "1.0.0")
    return tmp_path / "sets/sums/1.0.0"


def checkpoint(folder: Path, stage: str, model: str, data: Path) -> Path:
    """The record that a checkpoint carries."""
    digests = {path.name: parquet.facts(path).digest for path in parquet.table_files(data, f"shards/{stage}")}
    record: dict[str, Any] = {
        "stage": stage,
        "code": "0.1.0",
        "model": model,
        "model_digest": "0",
        "shards": digests,
        "version": versions.cited(data),
        "config": {"learning_rate": 1e-5},
        "steps": 7,
    }
    folder.mkdir(parents=True)
    (folder / "tracemill.json").write_text(json.dumps(record))
    return folder


def test_a_checkpoint_walks_back_through_its_models_to_the_rollouts(data: Path, tmp_path: Path):
    first = checkpoint(tmp_path / "runs/sft/final", "sft", "pocket-base", data)
    second = checkpoint(tmp_path / "runs/dpo/final", "dpo", str(first), data)
    found = lineage(str(second), data)
    assert [model["stage"] for model in found["models"]] == ["dpo", "sft"]
    assert found["models"][1]["model"] == "pocket-base"
    dpo, sft = found["rollouts"]
    assert (dpo["same"], dpo["rows"], sft["rows"]) == (True, 2, 7)
    assert {(row["side"], row["verdict"], row["model"]) for row in dpo["made_by"]} == {
        ("chosen", "correct", MODEL),
        ("rejected", "incorrect", MODEL),
    }
    assert sum(row["rows"] for row in sft["made_by"]) == 7
    assert found["data"]["name"] == "sums@1.0.0"
    assert found["data"]["stages"]["generate"]["config"]["temperature"] == 0.6
    text = "\n".join(lines(found))
    assert f"data sums@1.0.0, content {found['data']['content']}" in text
    assert "dpo: 2 rows, the very shards" in text


def test_other_shards_than_those_trained_on_are_said(data: Path, tmp_path: Path):
    trained = checkpoint(tmp_path / "final", "rl", "pocket-base", data)
    other = small_run(tmp_path / "other", changed=True)
    (rl,) = lineage(str(trained), other)["rollouts"]
    assert not rl["same"]
    assert "other shards than those" in rl["said"]


def test_a_rollout_walks_back_to_its_problem_and_settings(data: Path):
    (rollout_id,) = parquet.read_table(data / "shards/sft/00000.parquet", "shards/sft")["rollout_id"][:1].to_pylist()
    found = lineage(rollout_id, data)["row"]
    assert found["rollouts"][0]["model"] == MODEL
    assert found["prompts"][0]["licence"] == "MIT"
    assert found["verdicts"][0]["verdict"] == "correct"
    assert {row["stage"] for row in found["selections"]} == {"midtrain", "sft", "dpo", "rl"}
    assert "messages" not in found["sft"][0]
    assert f"model: {MODEL}" in "\n".join(lines(lineage(rollout_id, data)))


def test_a_problem_is_a_row_too(data: Path):
    row = parquet.read_table(data / "prompts/00000.parquet", "prompts").to_pylist()[5]
    found = lineage(row["prompt_id"], data)["row"]
    assert "rollouts" not in found
    assert found["contamination"][0]["benchmark"] == "math500"


def test_what_is_neither_is_said(data: Path):
    with pytest.raises(UserError, match="neither a checkpoint"):
        lineage("no/such/folder", data)
    with pytest.raises(UserError, match="no row"):
        lineage("0" * 24, data)
