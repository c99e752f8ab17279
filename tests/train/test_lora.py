"""LoRA: small updates trained, ordinary checkpoints saved, nothing of it to be seen elsewhere."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_model
from torch.testing import assert_close
from toy_shards import toy_shards
from transformers import AutoModelForCausalLM

from train.batches import collate, load_conversations
from train.distributed import scorer
from train.dpo import DpoConfig, train_dpo
from train.lora import adapted, add_lora, merged_weights
from train.model import batch_logprobs, load_model, load_tokenizer
from train.sft import SftConfig, train_sft

FAST = {"learning_rate": 1e-2, "precision": "fp32", "max_length": 512, "batch_size": 4, "lora_rank": 4}


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("architecture", ["llama", "phi3", "qwen3"])
def test_updates_begin_at_zero_and_only_they_are_trained(tmp_path: Path, architecture: str):
    shards, path = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m", architecture))
    documents, _ = load_conversations(shards, "sft", load_tokenizer(path), 512)
    model, plain = load_model(path, max_length=512), load_model(path, max_length=512)
    add_lora(model, 4, seed=0)
    batch = collate(documents)
    logprobs_M = scorer(model)(batch)
    assert torch.equal(logprobs_M, batch_logprobs(plain, batch)[0])
    logprobs_M.sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".layers." in name and ".lora_" in name for name in trained)


@pytest.mark.parametrize("recompute", ["off", "full"])
def test_a_checkpoint_holds_merged_weights_that_transformers_loads(tmp_path: Path, recompute: str):
    shards, path = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m", "phi3"))
    folder = train_sft(SftConfig(**FAST, epochs=4, recompute=recompute), shards, path, tmp_path / "run")
    before, after = (load_file(Path(name) / "model.safetensors") for name in (path, folder))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith("_proj.weight")}
    log = lines(tmp_path / "run")
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    AutoModelForCausalLM.from_pretrained(folder)


def test_merged_weights_score_as_the_adapted_model_does(tmp_path: Path):
    shards, path = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    documents, _ = load_conversations(shards, "sft", load_tokenizer(path), 512)
    model, plain = load_model(path, max_length=512), load_model(path, max_length=512)
    add_lora(model, 4, seed=0)
    assert adapted(model)
    assert not adapted(plain)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
        plain.load_state_dict(merged_weights(model), strict=False)
        batch = collate(documents)
        ours_M, before_M = batch_logprobs(model, batch)[0], batch_logprobs(load_model(path, max_length=512), batch)[0]
        assert_close(batch_logprobs(plain, batch)[0], ours_M, atol=1e-4, rtol=0)
        assert (ours_M - before_M).abs().max() > 0.01


def test_the_reference_of_lora_dpo_is_the_model_without_it(tmp_path: Path):
    shards, path = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    config = DpoConfig(**FAST, epochs=3, save_every=2)
    train_dpo(config, shards, path, tmp_path / "run")
    log = lines(tmp_path / "run")
    assert log[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert log[-1]["margin"] > log[0]["margin"]
    train_dpo(DpoConfig(**{**FAST, "lora_rank": 0}, max_steps=1), shards, path, tmp_path / "plain")
    tables = [next((tmp_path / run).glob("reference-*.safetensors")) for run in ("run", "plain")]
    assert torch.equal(*(load_file(table)["logprobs_P2"] for table in tables))


def test_a_lora_run_resumes_bitwise(tmp_path: Path):
    shards, path = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    config = SftConfig(**FAST, epochs=3, save_every=2)
    whole = train_sft(config, shards, path, tmp_path / "run")
    weights = load_file(whole / "model.safetensors")
    losses = [line["loss"] for line in lines(tmp_path / "run")]
    # What a kill after the last step but before the end leaves: the checkpoint of step 4, no result.
    whole.rename(tmp_path / "whole")
    resumed = train_sft(config, shards, path, tmp_path / "run")
    assert [line["loss"] for line in lines(tmp_path / "run")] == losses
    assert all(torch.equal(weights[name], tensor) for name, tensor in load_file(resumed / "model.safetensors").items())
