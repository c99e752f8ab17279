"""SFT and mid-training: the loop against invariances, and its files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_model
from torch.testing import assert_close
from toy_shards import toy_shards

from pipelines.errors import UserError
from train.sft import MidtrainConfig, SftConfig, train_midtrain, train_sft

FAST = {"learning_rate": 1e-3, "precision": "fp32", "max_length": 512}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]


def test_one_batch_of_eight_equals_eight_micro_batches_of_one(tmp_path: Path):
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    whole = train_sft(SftConfig(batch_size=8, max_steps=3, **FAST), shards, model, tmp_path / "whole")
    parts = train_sft(SftConfig(batch_size=8, max_steps=3, micro_tokens=1, **FAST), shards, model, tmp_path / "parts")
    assert [line["loss"] for line in lines(whole)] == pytest.approx([line["loss"] for line in lines(parts)], abs=1e-5)
    for name, tensor in weights(whole).items():
        assert_close(tensor, weights(parts)[name], atol=1e-4, rtol=0)


def test_the_learning_rate_steps_with_the_optimizer_and_not_with_the_micro_batches(tmp_path: Path):
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    rates = [
        [line["learning_rate"] for line in lines(train_sft(config, shards, model, tmp_path / str(config.micro_tokens)))]
        for config in (SftConfig(batch_size=2, epochs=1, micro_tokens=size, **FAST) for size in (1, 1000))
    ]
    assert rates[0] == rates[1]
    assert len(set(rates[0])) == 4


def test_packed_rows_train_as_the_same_documents_unpacked(tmp_path: Path):
    # All rows in one step: packed or not, the same targets and the same gradient.
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    packed = train_midtrain(MidtrainConfig(max_steps=1, **FAST), shards, model, tmp_path / "packed")
    single = train_sft(SftConfig(max_steps=1, **FAST), shards, model, tmp_path / "single")
    assert lines(packed)[0]["loss"] == pytest.approx(lines(single)[0]["loss"], abs=1e-5)
    assert lines(packed)[0]["grad_norm"] == pytest.approx(lines(single)[0]["grad_norm"], rel=1e-4)


def test_the_first_loss_is_that_of_the_plain_model(tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from train.batches import load_conversations

    shards, path = toy_shards(tmp_path / "out"), tiny_model(tmp_path / "m")
    folder = train_sft(SftConfig(max_steps=1, **FAST), shards, str(path), tmp_path / "run")
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    documents, _ = load_conversations(shards, "sft", tokenizer, 512)
    total, count = 0.0, 0
    for document in documents:
        tokens, trained = torch.from_numpy(document.tokens).long(), torch.from_numpy(document.trained)
        labels = torch.where(trained, tokens, -100)[1:]
        logits = plain(tokens[None]).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        count += int(trained.sum())
    assert lines(folder)[0]["loss"] == pytest.approx(total / count, abs=1e-5)


def test_training_learns_and_its_log_says_so(tmp_path: Path):
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    config = SftConfig(max_length=512, batch_size=8, epochs=30, learning_rate=5e-3)
    log = lines(train_sft(config, shards, model, tmp_path / "run"))
    assert [line["step"] for line in log] == list(range(30))
    assert log[-1]["loss"] < 0.3 * log[0]["loss"]
    assert log[0]["learning_rate"] == pytest.approx(5e-3 / 3)
    assert {"grad_norm", "tokens", "tokens_per_s", "seconds", "waited"} <= set(log[0])


def test_midtraining_splits_what_is_longer_than_a_row(tmp_path: Path):
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    config = MidtrainConfig(**{**FAST, "max_length": 32}, every_token=True, max_steps=1, batch_size=64)
    folder = train_midtrain(config, shards, model, tmp_path / "run")
    rows = json.loads((folder / "tracemill.json").read_text())["rows"]
    assert rows["rows"] == rows["kept"] == 8
    assert rows["pieces"] >= 8


def test_max_length_beyond_the_models_positions_becomes_them(tmp_path: Path):
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m", max_positions=48))
    folder = train_sft(SftConfig(max_steps=1, precision="fp32"), shards, model, tmp_path / "run")
    rows = json.loads((folder / "tracemill.json").read_text())["rows"]
    assert rows["refused: too_long"] > 0
    assert rows["rows"] == rows["kept"] + rows["refused: too_long"]


def test_a_finished_run_is_left_alone_and_another_config_is_refused(tmp_path: Path):
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    config = SftConfig(max_steps=1, **FAST)
    folder = train_sft(config, shards, model, tmp_path / "run")
    made = folder.stat().st_mtime_ns
    assert train_sft(config, shards, model, tmp_path / "run") == folder
    assert folder.stat().st_mtime_ns == made
    changed = SftConfig(**{**FAST, "learning_rate": 0.5}, max_steps=1)
    with pytest.raises(UserError, match=r"learning_rate: 0.001 -> 0.5"):
        train_sft(changed, shards, model, tmp_path / "run")
    assert folder.stat().st_mtime_ns == made
    train_sft(changed, shards, model, tmp_path / "run", replace=True)
    assert json.loads((folder / "tracemill.json").read_text())["config"]["learning_rate"] == 0.5
