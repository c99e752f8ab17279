"""`train plan`: its memory against what a process really takes, its steps against what a run really makes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from toy_shards import answer, question, toy_shards

from pipelines.errors import UserError
from train.batches import load_conversations
from train.cli import app
from train.dpo import DpoConfig, train_dpo
from train.flops import ACCELERATORS
from train.model import load_tokenizer
from train.optim import make_optimizer
from train.plan import Memory, StagePlan, model_config, model_row, plan_stage, state_bytes, step_memory, unit_lengths
from train.sft import MidtrainConfig, SftConfig, train_midtrain, train_sft

ROOT = Path(__file__).parents[2]

MEASURE = """
import resource, sys
from pipelines.memory import peak_bytes
from train.batches import Document, collate
from train.lora import add_lora
from train.losses import sft_loss
from train.model import batch_logprobs, load_model
from train.optim import autocast, clip_gradient, make_optimizer, move
import numpy as np

folder, length, recompute, precision, rank = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[6])
now = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
document = lambda size: Document("", np.zeros(size, np.int32), np.arange(size) > 0)
def passes(model, size):
    for _ in range(2):
        batch = collate([document(size)])
        with autocast(precision, "cpu"):
            logprobs, _ = batch_logprobs(model, batch)
        sft_loss(logprobs, size).backward()
def load(name):
    model = load_model(name, max_length=length, recompute=recompute)
    if rank:
        add_lora(model, rank, 0)
    return model
passes(load(sys.argv[5]), 8)  # what libraries load when first used
before = now()
model = load(folder)
optimizer = make_optimizer(model, 1e-5)
for _ in range(2):
    passes(model, length)
    clip_gradient(model)
    move(optimizer, 1e-5)
print(peak_bytes() - before)
"""


def measured(folder: Path, warm_up: Path, length: int, recompute: str, precision: str, lora_rank: int) -> int:
    """Bytes that a process takes for two optimizer steps of two micro-batches each, beyond what its imports take.

    glibc is told to give freed memory back at once; by itself it keeps half as much again and more.
    """
    command = [sys.executable, "-c", MEASURE, folder, str(length), recompute, precision, warm_up, lora_rank]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize(
    ("architecture", "recompute", "precision", "lora_rank", "within"),
    [
        ("phi3", "off", "fp32", 0, 0.1),
        ("qwen3", "full", "fp32", 0, 0.1),
        ("phi3", "off", "bf16", 0, 0.15),  # oneDNN holds buffers of its own
        ("llama", "off", "fp32", 8, 0.1),
    ],
)
def test_memory_is_what_a_process_takes(
    tmp_path: Path, architecture: str, recompute: str, precision: str, lora_rank: int, within: float
):
    shape = {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 768}
    folder, warm_up = tiny_model(tmp_path / "m", architecture, **shape), tiny_model(tmp_path / "w", architecture)
    memory = step_memory(
        model_config(str(folder)), [2048], "cpu", recompute=recompute, precision=precision, lora_rank=lora_rank
    )
    taken = measured(folder, warm_up, 2048, recompute, precision, lora_rank)
    assert memory.total / taken == pytest.approx(1, abs=within)


def test_the_parts_of_memory(tmp_path: Path):
    config = model_config(str(tiny_model(tmp_path / "m")))
    size = 4 * model_row(str(tmp_path / "m"))["parameters"]
    plain = step_memory(config, [512], "cpu", precision="fp32")
    assert (plain.weights, plain.gradients, plain.optimizer, plain.copies) == (size, size, 2 * size, 0)
    twice = step_memory(config, [512, 512], "cpu", precision="fp32")
    assert twice.activations == pytest.approx(2 * plain.activations, rel=0.1)
    assert step_memory(config, [512], "cpu", precision="fp32", recompute="full").activations < plain.activations
    assert step_memory(config, [512], "cpu", copies=2).copies == 2 * size
    lean = step_memory(config, [512], "cpu", optimizer="adamw-bf16")
    assert lean.optimizer == size
    lora = step_memory(config, [512], "cpu", precision="fp32", lora_rank=2)
    assert lora.weights - size == lora.gradients == lora.optimizer / 2 > 0
    assert lora.activations < plain.activations  # no gradient of the head in the making


def test_the_bf16_copies_of_weights_do_not_outlive_their_layer(tmp_path: Path):
    config = model_config(str(tiny_model(tmp_path / "m", hidden_size=128, num_layers=8)))
    memory = step_memory(config, [8], "cpu", recompute="full")
    assert memory.activations < memory.weights / 4  # all of them would be half


@pytest.mark.parametrize("kind", ["adamw", "adamw-bf16", "muon"])
def test_optimizer_states_are_what_an_optimizer_holds(kind: str):
    model = torch.nn.Sequential(torch.nn.Embedding(10, 8), torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = make_optimizer(model, 1e-3, kind=kind)
    expected = state_bytes(optimizer)
    optimizer.step()
    held = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert sum(value.nbytes for value in held) == expected


@pytest.mark.parametrize(
    ("name", "billions"), [("phi-4-mini", 3.836), ("llama-3.2-3b", 3.213), ("qwen3-4b", 4.022), ("qwen3-1.7b", 1.721)]
)
def test_known_architectures_have_their_published_size(name: str, billions: float):
    assert model_row(name)["parameters"] / 1e9 == pytest.approx(billions, abs=0.001)


def test_steps_and_tokens_are_those_of_the_run(tmp_path: Path):
    shards, model = toy_shards(tmp_path / "out", rows=13), str(tiny_model(tmp_path / "m"))
    options = {"max_length": 256, "batch_size": 4, "epochs": 2, "precision": "fp32"}
    for stage, config, train in (
        ("midtrain", MidtrainConfig(**options), train_midtrain),
        ("sft", SftConfig(**{**options, "max_steps": 5}), train_sft),
        ("dpo", DpoConfig(**options), train_dpo),
    ):
        plan = plan_stage(stage, config, shards, model, "cpu")
        folder = train(config, shards, model, tmp_path / stage)
        lines = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
        assert plan.steps == len(lines)
        assert plan.tokens == pytest.approx(sum(line["tokens"] for line in lines), rel=0.15)  # the last step is short
    documents, _ = load_conversations(shards, "sft", load_tokenizer(model), 256)
    whole = plan_stage("sft", SftConfig(**options), shards, model, "cpu")
    assert whole.tokens == 2 * sum(map(len, documents))
    assert (whole.rows, whole.units) == (13, 13)


def test_hours_follow_from_speed_or_from_the_device():
    plan = StagePlan("sft", Memory(1, 1, 2, 0, 1), 10, 10, 1, tokens=7_200_000, flops=989e12 * 3600)
    assert plan.hours(ACCELERATORS["H100"], 0.5, None) == pytest.approx(2.0)
    assert plan.hours(ACCELERATORS["H100"], 0.5, 1000.0) == pytest.approx(2.0)
    assert plan.hours(None, 0.5, None) is None


def test_the_command_prints_three_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shards = toy_shards(tmp_path / "out")
    arguments = ["plan", "--shards", str(shards), "--model", str(tiny_model(tmp_path / "m")), "--gpu", "cpu"]
    app([*arguments, "--set", "sft.max_steps=3"], standalone_mode=False)
    model, memory, steps = capsys.readouterr().out.strip().split("\n\n")
    assert "in matrices" in model
    assert [line.split()[0] for line in memory.splitlines()] == ["stage", "midtrain", "sft", "dpo", "rl"]
    assert steps.splitlines()[2].split()[:4] == ["sft", "8", "8", "3"]
    with pytest.raises(UserError, match="no accelerator `V100`"):
        app([*arguments[:-1], "V100"], standalone_mode=False)


def test_a_known_architecture_needs_no_folder(tmp_path: Path):
    shards = toy_shards(tmp_path / "out")
    texts = [sum(len(turn["content"]) for turn in question(k) + answer(k, 2 * k + 1, padding=k % 5)) for k in range(8)]
    lengths = unit_lengths("sft", SftConfig(), shards, "qwen3-1.7b", 512)
    assert lengths == [[round(characters / 3)] for characters in texts]
    assert [len(unit) for unit in unit_lengths("dpo", DpoConfig(), shards, "qwen3-1.7b", 512)] == [2] * 8
    with pytest.raises(UserError, match="no model `phi-5`") as raised:
        model_config("phi-5")
    assert "phi-4-mini" in str(raised.value.hint)


def test_what_becomes_of_a_long_conversation(tmp_path: Path):
    shards = toy_shards(tmp_path / "out", rows=1)
    (whole,) = unit_lengths("sft", SftConfig(), shards, "qwen3-1.7b", 512)
    short = whole[0] - 1
    assert unit_lengths("sft", SftConfig(), shards, "qwen3-1.7b", short) == []
    assert unit_lengths("sft", SftConfig(overlong="truncate"), shards, "qwen3-1.7b", short) == [[short]]
    assert unit_lengths("midtrain", MidtrainConfig(), shards, "qwen3-1.7b", short) == [[short], [1]]
    assert unit_lengths("dpo", DpoConfig(), shards, "qwen3-1.7b", 10) == []
