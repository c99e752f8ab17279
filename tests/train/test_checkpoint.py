"""Checkpoints: resumed equals run once, bit for bit; whole or not there; loadable by others."""

import errno
import json
import multiprocessing
import resource
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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


def killed_when(
    reached: Callable[[Path], bool], train: Callable[..., Path], config: Config, shards: Path, model: str, run: Path
) -> None:
    """Train in a process and kill it once `reached(run)`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.sft", "train.dpo"])
    process = context.Process(target=train, args=(config, shards, model, run))
    process.start()
    while process.is_alive() and not reached(run):
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def killed_after(steps: int, *arguments: Any) -> None:
    """Train in a process and kill it once it has logged more than `steps` steps."""

    def reached(run: Path) -> bool:
        log = run / "metrics.jsonl"
        return log.is_file() and len(log.read_text().splitlines()) > steps

    killed_when(reached, *arguments)


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


def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(tmp_path: Path):
    shards, model, run = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m")), tmp_path / "run"
    config = SftConfig(max_length=512, batch_size=3, epochs=6, learning_rate=1e-3, save_every=2, precision="fp32")
    whole = train_sft(config, shards, model, tmp_path / "whole")
    for done in (2, 8):
        later = f".saving-step-{done + 2:08d}"
        killed_when(lambda run, name=later: (run / name).is_dir(), train_sft, config, shards, model, run)
        assert checkpoint.latest(run) in {run / f"step-{steps:08d}" for steps in (done, done + 2)}
    resumed = train_sft(config, shards, model, run)
    assert not list(run.glob(".saving-*"))
    assert losses(run) == losses(tmp_path / "whole")
    assert all(torch.equal(weights(whole)[name], tensor) for name, tensor in weights(resumed).items())


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


def test_what_is_written_in_the_background_is_what_there_was_when_it_began(tmp_path: Path):
    path, folder = str(tiny_model(tmp_path / "m")), tmp_path / "step-00000001"
    model, tokenizer = load_model(path, max_length=64), load_tokenizer(path)
    optimizer, go_on = make_optimizer(model, 1e-3), threading.Event()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    random = torch.get_rng_state()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(go_on.wait)
        writer = checkpoint.Writer(pool, pytest.fail)
        checkpoint.save(folder, model, tokenizer, {}, optimizer=optimizer, step=1, writer=writer)
        optimizer.step()
        torch.rand(3)
        assert checkpoint.latest(tmp_path) is None
        go_on.set()
        writer.finish()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(folder).items())
    state = load_file(folder / "state" / "state.safetensors")
    assert torch.equal(state["rng/cpu"], random)
    assert {float(value) for key, value in state.items() if key.startswith("step/")} == {1.0}
    assert weights(folder).keys() == load_file(Path(path) / "model.safetensors").keys()


def test_an_error_in_the_background_is_told_at_once_and_raised_when_asked():
    failed = threading.Event()

    def write(_group: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with checkpoint.background(failed.set) as writer:
        writer.finish()
        writer.start(write)
        assert failed.wait(10)
        with pytest.raises(OSError, match="No space left"):
            writer.finish()
        writer.finish()


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


@pytest.mark.parametrize("shape", [{"hidden_size": 32}, {"num_layers": 1}, {"num_layers": 3}, {"tied": False}])
def test_a_checkpoint_of_another_model_is_refused_and_nothing_of_it_loaded(tmp_path: Path, shape: dict[str, int]):
    path = str(tiny_model(tmp_path / "m"))
    model = load_model(path, max_length=64)
    checkpoint.save(tmp_path / "step-1", model, load_tokenizer(path), {}, optimizer=make_optimizer(model, 1), step=1)
    other = load_model(str(tiny_model(tmp_path / "n", seed=1, **shape)), max_length=64)
    before = {name: parameter.clone() for name, parameter in other.named_parameters()}
    with pytest.raises(UserError, match="checkpoint of another model"):
        checkpoint.restore(tmp_path / "step-1", other, make_optimizer(other, 1))
    assert all(torch.equal(before[name], parameter) for name, parameter in other.named_parameters())


def _on_a_small_disk(sender, largest: int, config: SftConfig, shards: Path, model: str, run: Path) -> None:
    """Train where no file may grow beyond `largest` bytes; tells the error's two sentences."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    try:
        train_sft(config, shards, model, run)
    except UserError as error:
        sender.send((error.message, error.hint))


@pytest.mark.parametrize(("largest", "save_every"), [(100_000, 4), (600_000, 2)])
def test_a_full_disk_is_one_sentence_and_the_earlier_checkpoint_is_whole(tmp_path: Path, largest: int, save_every: int):
    # 100 kB are too little for the weights of the result, 600 kB for the optimizer's state of a checkpoint.
    shards, model, run = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m")), tmp_path / "run"
    settings = {"max_length": 512, "batch_size": 4, "learning_rate": 1e-3, "precision": "fp32", "epochs": 6}
    config = SftConfig(**settings, save_every=save_every)
    killed_when(lambda run: checkpoint.latest(run) is not None, train_sft, config, shards, model, run)
    (kept,) = run.glob("step-*")
    before = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_on_a_small_disk, args=(sender, largest, config, shards, model, run))
    process.start()
    message, hint = receiver.recv()
    process.join()
    assert message.startswith(f"no room to write to `{run}`")
    assert "\n" not in message
    assert "goes on from what is stored" in hint
    assert {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()} == before
    assert not list(run.glob(".saving-*"))
    resumed, whole = train_sft(config, shards, model, run), train_sft(config, shards, model, tmp_path / "whole")
    assert all(torch.equal(weights(whole)[name], tensor) for name, tensor in weights(resumed).items())


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
