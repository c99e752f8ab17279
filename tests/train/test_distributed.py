"""Two processes on a CPU (gloo) train as one does, and their checkpoints are read by any number."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model
from torch.testing import assert_close
from toy_shards import toy_shards
from transformers import AutoModelForCausalLM

from pipelines.config import Config
from pipelines.errors import UserError
from train.batches import Document, collate, plan_epoch
from train.distributed import gathered, processes, rank, scorer, size, whole
from train.dpo import DpoConfig, train_dpo
from train.model import compile_layers, load_model
from train.sft import MidtrainConfig, SftConfig, train_midtrain, train_sft

FAST = {"learning_rate": 1e-3, "precision": "fp32", "max_length": 512, "batch_size": 4, "weight_decay": 0.1}
DOCUMENT = Document("d", np.arange(5, 45, dtype=np.int32), np.arange(40) > 0)
STAGES: dict[str, tuple[type[Config], Callable[..., Path]]] = {
    "midtrain": (MidtrainConfig, train_midtrain),
    "sft": (SftConfig, train_sft),
    "dpo": (DpoConfig, train_dpo),
}


def started(function: Callable[..., Any], *arguments: Any) -> list[BaseProcess]:
    """`function(*arguments)` in two processes that are set up as `torchrun` sets them up."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.sft", "train.dpo"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=_as_rank, args=(each, port, function, arguments)) for each in range(2)]
    for process in processes:
        process.start()
    return processes


def ended(processes: list[BaseProcess]) -> list[int | None]:
    """Their exit codes."""
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def _as_rank(each: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    names = {"RANK": each, "LOCAL_RANK": each, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    function(*arguments)


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(ours: Path, theirs: Path) -> None:
    """Losses, norms and weights agree within the rounding of fp32 sums in another order."""
    for key in ("loss", "grad_norm", "learning_rate", "tokens"):
        assert [line[key] for line in lines(ours)] == pytest.approx([line[key] for line in lines(theirs)], rel=2e-4)
    weights = [load_file(run / "final" / "model.safetensors") for run in (ours, theirs)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert_close(tensor, weights[1][name], atol=1e-4, rtol=0)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    # Seven rows in steps of four: the last step has fewer units than micro-batches fit, and a rank runs dry.
    return toy_shards(tmp_path / "out", rows=7)


@pytest.mark.parametrize(
    ("stage", "architecture", "tied", "settings"),
    [
        ("midtrain", "phi3", True, {"recompute": "selective"}),
        ("sft", "qwen3", False, {"optimizer": "adamw-bf16"}),
        ("sft", "llama", True, {"lora_rank": 2, "recompute": "full"}),
        # Its Newton-Schulz iteration needs whole matrices, and runs in bf16: three digits of what a step moves.
        ("sft", "phi3", False, {"optimizer": "muon", "max_steps": 2, "learning_rate": 5e-4}),
        ("dpo", "phi3", True, {}),
    ],
)
def test_two_ranks_train_as_one(
    tmp_path: Path, shards: Path, stage: str, architecture: str, tied: bool, settings: dict[str, Any]
):
    model = str(tiny_model(tmp_path / "m", architecture, tied=tied))
    kind, train = STAGES[stage]
    config = kind(**{**FAST, **settings}, epochs=2, micro_tokens=100)
    train(config, shards, model, tmp_path / "one")
    assert ended(started(train, config, shards, model, tmp_path / "two")) == [0, 0]
    assert_same_training(tmp_path / "two", tmp_path / "one")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "final")
    head, embedding = loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight
    assert (head is embedding) == tied


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_run_goes_on_with_two_ranks_bitwise_and_with_one(
    tmp_path: Path, shards: Path, number: signal.Signals
):
    model = str(tiny_model(tmp_path / "m"))
    config = SftConfig(**FAST, epochs=8, save_every=3)
    assert ended(started(train_sft, config, shards, model, tmp_path / "whole")) == [0, 0]
    run, log = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    ranks = started(train_sft, config, shards, model, run)
    while ranks[0].is_alive() and not (log.is_file() and len(log.read_text().splitlines()) > 4):
        time.sleep(0.01)
    for process in ranks:
        assert process.pid is not None
        os.kill(process.pid, number)
    ended(ranks)
    assert not (run / "final").exists()
    shutil.copytree(run, tmp_path / "alone")
    assert ended(started(train_sft, config, shards, model, run)) == [0, 0]
    assert [line["loss"] for line in lines(run)] == [line["loss"] for line in lines(tmp_path / "whole")]
    resumed, whole = (load_file(folder / "final/model.safetensors") for folder in (run, tmp_path / "whole"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    train_sft(config, shards, model, tmp_path / "alone")
    assert_same_training(tmp_path / "alone", tmp_path / "whole")


def _on_a_small_disk(config: SftConfig, shards: Path, model: str, run: Path) -> None:
    """Train where no file of the second rank may grow beyond 10 kB; each rank writes down its error."""
    if os.environ["RANK"] == "1":
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        train_sft(config, shards, model, run)
    except UserError as error:
        (run / f"error-{os.environ['RANK']}").write_text(error.message)


def test_a_full_disk_of_one_rank_is_one_sentence_of_both(tmp_path: Path, shards: Path):
    model, run = str(tiny_model(tmp_path / "m")), tmp_path / "run"
    config = SftConfig(**FAST, epochs=8, save_every=3)
    assert ended(started(_on_a_small_disk, config, shards, model, run)) == [0, 0]
    errors = [(run / f"error-{each}").read_text() for each in range(2)]
    assert all(error.startswith(f"no room to write to `{run}`") for error in errors)
    assert not list(run.glob("step-*"))
    assert not list(run.glob(".saving-*"))


def _compiled_gradients(model: str, recompute: str, out: Path) -> None:
    """Gradients of a model whose layers are compiled and sharded, whole; written down by the first rank."""
    with processes("cpu"):
        policy = load_model(model, max_length=64, recompute=recompute)
        compile_layers(policy, backend="aot_eager")
        scorer(policy)(collate([DOCUMENT])).sum().backward()
        found = {name: whole(parameter.grad) / size() for name, parameter in policy.named_parameters()}
        if rank() == 0:
            save_file(found, out)


def test_compiled_layers_of_two_ranks_have_the_gradients_of_plain_ones(tmp_path: Path):
    model = str(tiny_model(tmp_path / "m"))
    assert ended(started(_compiled_gradients, model, "full", tmp_path / "found")) == [0, 0]
    plain, found = load_model(model, max_length=64), load_file(tmp_path / "found")
    scorer(plain)(collate([DOCUMENT])).sum().backward()
    for name, parameter in plain.named_parameters():
        assert_close(found[name], parameter.grad, atol=1e-4, rtol=1e-4)


def _checks_of_a_rank(model: str, out: Path) -> None:
    """What two ranks know of each other, and of a sharded model; written down by each."""
    with processes("cpu"):
        policy = load_model(model, max_length=64)
        numbers = sum(parameter.numel() for parameter in policy.parameters())
        scorer(policy)
        held = sum(parameter.to_local().numel() for parameter in policy.parameters())
        tied = policy.get_input_embeddings().weight is policy.get_output_embeddings().weight
        facts = {"size": size(), "ranks": gathered(rank()), "share": held / numbers, "tied": tied}
        (out / f"{rank()}.json").write_text(json.dumps(facts))


def test_a_rank_holds_half_of_the_weights_and_a_tied_head_stays_tied(tmp_path: Path):
    assert ended(started(_checks_of_a_rank, str(tiny_model(tmp_path / "m")), tmp_path)) == [0, 0]
    facts = [json.loads((tmp_path / f"{each}.json").read_text()) for each in range(2)]
    assert all(fact["size"] == 2 and fact["ranks"] == [0, 1] and fact["tied"] for fact in facts)
    assert sum(fact["share"] for fact in facts) == pytest.approx(1)
    assert max(fact["share"] for fact in facts) < 0.55


def test_ranks_share_a_step_without_changing_it():
    lengths = [30, 5, 20, 7, 40, 9, 11]
    alone, shared = (plan_epoch(lengths, 4, 40, seed=0, epoch=0, num_ranks=ranks) for ranks in (1, 3))
    for step, shares in zip(alone, shared, strict=True):
        assert len(shares) == 3
        assert len({len(share) for share in shares}) == 1, "every rank passes through the model equally often"
        units = [unit for share in shares for micro in share for unit in micro]
        assert sorted(units) == sorted(unit for micro in step[0] for unit in micro)


def test_one_process_is_one_rank_and_shards_nothing(tmp_path: Path):
    with processes("cpu"):
        assert (rank(), size(), gathered("x")) == (0, 1, ["x"])
        policy = load_model(str(tiny_model(tmp_path / "m")), max_length=64)
        assert scorer(policy).policy is policy
        assert all(type(parameter) is torch.nn.Parameter for parameter in policy.parameters())
