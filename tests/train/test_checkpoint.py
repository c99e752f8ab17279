"""Checkpoints: resumed equals run once, bit for bit; whole or not there; loadable by others."""

import json
import multiprocessing
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_model
from torch.testing import assert_close
from toy_shards import toy_shards
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.config import Config
from pipelines.errors import UserError
from train import checkpoint
from train.attention import layout
from train.dpo import DpoConfig, train_dpo
from train.model import load_model, load_tokenizer
from train.optim import make_optimizer
from train.sft import SftConfig, train_sft


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def killed_after(steps: int, train: Callable[..., Path], config: Config, shards: Path, model: str, run: Path) -> None:
    """Train in a process and kill it once it has logged more than `steps` steps."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.sft", "train.dpo"])
    process = context.Process(target=train, args=(config, shards, model, run))
    process.start()
    log = run / "metrics.jsonl"
    while process.is_alive() and not (log.is_file() and len(log.read_text().splitlines()) > steps):
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_sft_run_resumed_equals_an_uninterrupted_one_bitwise(tmp_path: Path):
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    config = SftConfig(max_length=512, batch_size=3, epochs=6, learning_rate=1e-3, save_every=5, precision="bf16")
    whole = train_sft(config, shards, model, tmp_path / "whole")
    killed_after(5, train_sft, config, shards, model, tmp_path / "run")
    assert not (tmp_path / "run" / "final").exists()
    resumed = train_sft(config, shards, model, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name


def test_a_resumed_dpo_run_equals_an_uninterrupted_one_bitwise(tmp_path: Path):
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    settings = {"max_length": 512, "batch_size": 2, "learning_rate": 1e-3, "precision": "fp32", "epochs": 5}
    config = DpoConfig(**settings, save_every=3)
    whole = train_dpo(config, shards, model, tmp_path / "whole")
    killed_after(3, train_dpo, config, shards, model, tmp_path / "run")
    resumed = train_dpo(config, shards, model, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name


def test_a_checkpoint_is_whole_or_absent_and_only_the_last_is_kept(tmp_path: Path):
    path = str(tiny_model(tmp_path / "m"))
    model, tokenizer = load_model(path, max_length=64), load_tokenizer(path)
    optimizer = make_optimizer(model, 1e-3)
    out = tmp_path / "run"
    for step in (1, 2):
        checkpoint.save(out / f"step-{step:08d}", model, tokenizer, {"stage": "sft"}, optimizer=optimizer, step=step)
    assert sorted(path.name for path in out.iterdir()) == ["step-00000002"]
    # What a kill in the middle of saving leaves is not taken for a checkpoint.
    (out / "step-00000002").rename(out / ".saving-step-00000003")
    assert checkpoint.latest(out) is None
    checkpoint.save(out / "step-00000003", model, tokenizer, {"stage": "sft"}, optimizer=optimizer, step=3)
    assert checkpoint.latest(out) == out / "step-00000003"


def test_restore_brings_back_weights_optimizer_and_random_state(tmp_path: Path):
    path = str(tiny_model(tmp_path / "m"))
    model, tokenizer = load_model(path, max_length=64), load_tokenizer(path)
    optimizer = make_optimizer(model, 1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    checkpoint.save(tmp_path / "step-1", model, tokenizer, {}, optimizer=optimizer, step=1, extra={"cursor": 7})
    expected = torch.rand(3)
    other = load_model(path, max_length=64)
    other_optimizer = make_optimizer(other, 1e-3)
    assert checkpoint.restore(tmp_path / "step-1", other, other_optimizer) == (1, {"cursor": 7})
    assert torch.equal(torch.rand(3), expected)
    for (name, ours), theirs in zip(other.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        for key, value in optimizer.state[theirs].items():
            assert torch.equal(other_optimizer.state[ours][key], value), (name, key)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path):
    path = str(tiny_model(tmp_path / "m"))
    model = load_model(path, max_length=64)
    checkpoint.save(tmp_path / "step-1", model, load_tokenizer(path), {}, optimizer=make_optimizer(model, 1), step=1)
    other = load_model(str(tiny_model(tmp_path / "n", hidden_size=32)), max_length=64)
    with pytest.raises(UserError, match="checkpoint of another model"):
        checkpoint.restore(tmp_path / "step-1", other, make_optimizer(other, 1))


@pytest.mark.parametrize("architecture", ["llama", "phi3", "qwen3"])
def test_transformers_loads_a_checkpoint_and_stops_at_the_end_of_turn(tmp_path: Path, architecture: str):
    shards, model = toy_shards(tmp_path / "out", rows=2), str(tiny_model(tmp_path / "m", architecture))
    config = SftConfig(max_length=512, batch_size=2, epochs=80, learning_rate=5e-3, schedule="constant")
    folder = train_sft(config, shards, model, tmp_path / "run")
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert plain.config.use_cache
    messages = [{"role": "user", "content": "What is 1 + 2?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    (tokens,) = plain.generate(**prompt, max_new_tokens=100, do_sample=False)[:, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(tokens) == "<think>\n1 + 2 = 3 ok\n</think>\n\n\\boxed{3}<|end|>"


def test_a_checkpoint_of_a_pinned_longrope_model_answers_short_prompts_as_it_was_trained(tmp_path: Path):
    path = str(tiny_model(tmp_path / "m", "phi3", longrope_from=64))
    pinned = load_model(path, max_length=256)
    checkpoint.save(tmp_path / "final", pinned, load_tokenizer(path), {})
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        hidden = pinned.base_model(
            tokens, position_ids=tokens, use_cache=False, documents=layout([40], tokens.device, varlen=False)
        ).last_hidden_state
        assert_close(plain.base_model(tokens).last_hidden_state, hidden, atol=1e-5, rtol=0)


def test_lineage_leads_back_to_data_model_and_config(tmp_path: Path):
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    folder = train_sft(SftConfig(max_steps=1, max_length=512), shards, model, tmp_path / "run")
    lineage = json.loads((folder / "tracemill.json").read_text())
    assert lineage["stage"] == "sft"
    assert lineage["shards"] == checkpoint.shard_digests(shards, "sft")
    assert lineage["model_digest"] == checkpoint.model_digest(model)
    assert lineage["config"]["max_steps"] == lineage["steps"] == 1
    assert checkpoint.model_digest(str(folder)) != lineage["model_digest"]
