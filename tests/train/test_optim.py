"""Optimizers: what is kept, what moves by which rule, and what is stored and found again."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_model
from torch import nn
from torch.testing import assert_close
from toy_shards import toy_shards

from train.model import load_model
from train.optim import LeanAdamW, OptimizerKind, make_optimizer, move
from train.sft import SftConfig, train_sft


def trained(kind: OptimizerKind, steps: int = 20) -> tuple[nn.Linear, torch.optim.Optimizer]:
    """A layer that learned to double its input, and its optimizer."""
    torch.manual_seed(0)
    layer, inputs = nn.Linear(8, 8), torch.randn(64, 8)
    optimizer = make_optimizer(layer, 1e-2, 0.1, kind)
    for _ in range(steps):
        (layer(inputs) - 2 * inputs).square().mean().backward()
        move(optimizer, 1e-2)
    return layer, optimizer


def test_bf16_states_halve_the_memory_and_follow_fp32_ones():
    exact, _ = trained("adamw")
    lean, optimizer = trained("adamw-bf16")
    states = optimizer.state[lean.weight]
    assert states["exp_avg"].dtype == states["exp_avg_sq"].dtype == torch.bfloat16
    # Twenty steps of at most about 0.01 each; bf16 keeps three digits of each.
    assert_close(lean.weight, exact.weight, atol=4e-3, rtol=0)
    assert not torch.equal(lean.weight, exact.weight)


def test_lean_adamw_by_hand():
    # First step: mean and square are corrected to g and g^2, so the step is lr g / |g| = lr, after decay by lr wd.
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    parameter.grad = torch.tensor([0.5, -3.0])
    LeanAdamW([{"params": [parameter], "weight_decay": 0.1}], 0.01).step()
    assert_close(parameter.detach(), torch.tensor([1.0 * 0.999 - 0.01, -2.0 * 0.999 + 0.01]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("architecture", "tied"), [("llama", True), ("phi3", False)])
def test_muon_moves_the_matrices_inside_the_layers_only(tmp_path: Path, architecture: str, tied: bool):
    model = load_model(str(tiny_model(tmp_path / "m", architecture, tied=tied)), max_length=64)
    optimizer = make_optimizer(model, 1e-3, kind="muon")
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    move(optimizer, 1e-3)
    for name, parameter in model.named_parameters():
        by_muon = "momentum_buffer" in optimizer.state[parameter]
        assert by_muon == (".layers." in name and parameter.ndim == 2), name
        assert parameter.grad is None


@pytest.mark.parametrize("kind", ["adamw", "adamw-bf16", "muon"])
def test_every_optimizer_learns_and_resumes_bitwise(tmp_path: Path, kind: str):
    shards, model, run = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m")), tmp_path / "run"
    config = SftConfig(
        max_length=512, precision="fp32", batch_size=4, learning_rate=2e-3, epochs=8, optimizer=kind, save_every=15
    )
    whole = train_sft(config, shards, model, run)
    log = (run / "metrics.jsonl").read_text().splitlines()
    whole.rename(tmp_path / "whole")
    resumed = train_sft(config, shards, model, run)
    assert [line.split('"seconds')[0] for line in log[:15]] != []
    expected, found = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", resumed))
    start = load_file(Path(model) / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert all(not torch.equal(expected[name], start[name]) for name in expected)
