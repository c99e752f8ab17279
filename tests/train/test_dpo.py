"""DPO: where it starts, where it goes, and the stored reference."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_model
from torch.testing import assert_close
from toy_shards import toy_shards
from transformers import AutoModelForCausalLM, AutoTokenizer

from train.batches import load_pairs
from train.dpo import DpoConfig, train_dpo

FAST = {"max_length": 512, "batch_size": 4, "learning_rate": 1e-3, "precision": "fp32", "warmup_rate": 0.0}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]


def stored_reference(run: Path) -> tuple[Path, torch.Tensor]:
    (path,) = run.glob("reference-*.safetensors")
    return path, load_file(path)["logprobs_P2"]


@pytest.mark.parametrize("architecture", ["llama", "phi3", "qwen3"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_starts_at_log_2(tmp_path: Path, architecture: str, precision: str):
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m", architecture))
    config = DpoConfig(**{**FAST, "precision": precision}, max_steps=1, micro_tokens=200, label_smoothing=0.1)
    (first,) = lines(train_dpo(config, shards, model, tmp_path / "run"))
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert first["margin"] == pytest.approx(0, abs=1e-5)


def test_the_reference_is_the_starting_models_summed_completion_logprobs(tmp_path: Path):
    shards, path = toy_shards(tmp_path / "out"), tiny_model(tmp_path / "m")
    train_dpo(DpoConfig(**FAST, max_steps=2), shards, str(path), tmp_path / "run")
    _, reference_P2 = stored_reference(tmp_path / "run")
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    pairs, _ = load_pairs(shards, tokenizer, 512)
    for pair, stored in zip(pairs, reference_P2, strict=True):
        for document, value in zip(pair, stored, strict=True):
            tokens, trained = torch.from_numpy(document.tokens).long(), torch.from_numpy(document.trained)
            with torch.no_grad():
                logprobs = plain(tokens[None]).logits[0, :-1].log_softmax(dim=1).gather(1, tokens[1:, None])[:, 0]
            assert_close(value, logprobs[trained[1:]].sum(), atol=1e-3, rtol=0)


def test_pairs_in_one_batch_or_in_many_train_the_same(tmp_path: Path):
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    runs = [
        lines(train_dpo(DpoConfig(**FAST, nll_weight=0.3, micro_tokens=budget), shards, model, tmp_path / str(budget)))
        for budget in (1, 100_000)
    ]
    for key in ("loss", "nll", "margin", "reward_chosen", "logprobs_rejected", "length_chosen", "grad_norm"):
        assert [line[key] for line in runs[0]] == pytest.approx([line[key] for line in runs[1]], rel=1e-3, abs=1e-4)


def test_length_normalised_margins_are_of_mean_logprobs(tmp_path: Path):
    # All pairs in each step and a constant rate: the second step's log is of the model that one step makes.
    shards, path = toy_shards(tmp_path / "out"), tiny_model(tmp_path / "m")
    settings = {**FAST, "batch_size": 8, "beta": 1.0, "length_normalised": True, "schedule": "constant"}
    moved = train_dpo(DpoConfig(**settings, epochs=1), shards, str(path), tmp_path / "one")
    _, second = lines(train_dpo(DpoConfig(**settings, epochs=2), shards, str(path), tmp_path / "two"))
    pairs, _ = load_pairs(shards, AutoTokenizer.from_pretrained(path), 512)
    models = [AutoModelForCausalLM.from_pretrained(name) for name in (moved, path)]
    gains = [mean_logratio(chosen, *models) - mean_logratio(rejected, *models) for chosen, rejected in pairs]
    assert second["margin"] == pytest.approx(sum(gains) / 8, abs=1e-4)
    assert second["loss"] == pytest.approx(sum(math.log1p(math.exp(-gain)) for gain in gains) / 8, abs=1e-4)
    assert second["loss"] < math.log(2) - 1e-3


def mean_logratio(document, policy, reference) -> float:
    """Mean over the targets of how much likelier the policy finds them than the reference."""
    tokens, trained = torch.from_numpy(document.tokens).long(), torch.from_numpy(document.trained)
    with torch.no_grad():
        ours, theirs = (
            model(tokens[None]).logits[0, :-1].log_softmax(dim=1).gather(1, tokens[1:, None])[:, 0][trained[1:]]
            for model in (policy, reference)
        )
    return float((ours - theirs).mean())


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_the_margin_grows(tmp_path: Path, loss: str):
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    log = lines(train_dpo(DpoConfig(**FAST, epochs=5, loss=loss), shards, model, tmp_path / "run"))
    assert log[-1]["margin"] > 0.1
    assert log[-1]["accuracy"] == 1.0
    assert log[-1]["loss"] < log[0]["loss"]


def test_the_nll_term_keeps_the_chosen_completions_likely(tmp_path: Path):
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    bare, anchored = (
        lines(train_dpo(DpoConfig(**FAST, epochs=5, nll_weight=weight), shards, model, tmp_path / str(weight)))[-1]
        for weight in (0.0, 1.0)
    )
    assert anchored["logprobs_chosen"] > bare["logprobs_chosen"]


def test_the_reference_is_computed_once_for_a_model_data_and_settings(tmp_path: Path):
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    run = tmp_path / "run"
    folder = train_dpo(DpoConfig(**FAST, max_steps=1), shards, model, run)
    path, reference_P2 = stored_reference(run)
    # Another run over the same file reads it: with a reference moved by 10 nats a side, the margin is not 0.
    for left in (run / "run.json", folder):
        left.rename(tmp_path / f"old-{left.name}")
    from safetensors.torch import save_file

    save_file({"logprobs_P2": reference_P2 + torch.tensor([10.0, 0.0])}, path)
    (first,) = lines(train_dpo(DpoConfig(**FAST, max_steps=1), shards, model, run))
    assert first["reward_chosen"] == pytest.approx(-1.0, abs=1e-4)  # beta 0.1 times -10
    other = train_dpo(DpoConfig(**FAST, max_steps=1), shards, str(tiny_model(tmp_path / "n", seed=1)), tmp_path / "b")
    assert stored_reference(other.parent)[0].name != path.name
