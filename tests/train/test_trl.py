"""TRL's trainers take the shards as they are, and come to our losses and gradients."""

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from tiny_models import tiny_model
from torch import Tensor, nn
from torch.testing import assert_close
from toy_shards import toy_shards
from transformers import AutoModelForCausalLM

from train.advantages import group_advantages
from train.batches import Document, collate, load_conversations, load_pairs
from train.dpo import DpoConfig, pair_logprobs, preference, train_dpo
from train.grpo_loss import grpo_loss, token_weights
from train.losses import sft_loss
from train.model import batch_logprobs, load_model, load_tokenizer
from train.sft import SftConfig, train_sft

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its supported range of vLLM ends below the one we sample with
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and accelerate's own, none of ours


def shard(shards: Path, stage: str) -> Dataset:
    cache = str(shards / "cache")
    return load_dataset("parquet", data_files=str(shards / f"shards/{stage}/*.parquet"), split="train", cache_dir=cache)


def settings(tmp_path: Path) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path / "trl"),
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def trained(trainer: Any) -> float:
    """Loss of the one step."""
    trainer.train()
    assert trainer.state.global_step == 1
    return trainer.state.log_history[-1]["train_loss"]


@pytest.mark.parametrize("stage", ["midtrain", "sft"])
def test_trl_sft_takes_a_step(tmp_path: Path, stage: str):
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    arguments = SFTConfig(**settings(tmp_path), packing=stage == "midtrain", max_length=256)
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=shard(shards, stage))
    assert trained(trainer) > 0


def test_trl_dpo_takes_a_step(tmp_path: Path):
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    trainer = DPOTrainer(model=model, args=DPOConfig(**settings(tmp_path)), train_dataset=shard(shards, "dpo"))
    assert trained(trainer) == pytest.approx(0.6931, abs=1e-3)


def test_trl_grpo_takes_a_step(tmp_path: Path):
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    seen: list[str] = []

    def reward(completions: list[Any], answer: list[str], **_: object) -> list[float]:
        seen.extend(answer)
        return [float(index) for index in range(len(completions))]

    arguments = GRPOConfig(**settings(tmp_path), num_generations=2, max_completion_length=8)
    GRPOTrainer(model=model, args=arguments, reward_funcs=reward, train_dataset=shard(shards, "rl")).train()
    assert set(seen) <= {str(2 * k + 1) for k in range(8)}
    assert len(seen) == 2


# --- the same numbers -----------------------------------------------------------------------------


def completions(shards: Path) -> Dataset:
    """The SFT shard with prompt and completion apart, so that TRL trains the assistant's tokens alone, as we do."""
    rows = [row["messages"] for row in shard(shards, "sft")]
    return Dataset.from_list([{"prompt": row[:1], "completion": row[1:]} for row in rows])


def one_gradient(trainer: Any) -> tuple[float, nn.Module]:
    """TRL's loss of its first batch, and its model with the gradient of that."""
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    loss.backward()
    return loss.item(), trainer.model


def assert_same_gradients(ours: nn.Module, theirs: nn.Module) -> None:
    got, expected = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert got.keys() == expected.keys()
    for name, parameter in expected.items():
        norm = float(parameter.grad.norm())
        assert norm > 0, name
        assert_close(got[name].grad, parameter.grad, rtol=0, atol=1e-5 * norm, msg=lambda text, n=name: f"{n}: {text}")


WHOLE = {"per_device_train_batch_size": 8, "logging_steps": 1, "max_length": 512, "gradient_checkpointing": False}
"""All rows in a batch: the order in which either side takes them does not matter."""


@pytest.mark.parametrize("architecture", ["phi3", "llama", "qwen3"])
@pytest.mark.parametrize("packing", [False, True])
def test_sft_has_trls_loss_and_gradient(tmp_path: Path, architecture: str, packing: bool):
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m", architecture))
    arguments = SFTConfig(**{**settings(tmp_path), **WHOLE}, packing=packing)
    expected, theirs = one_gradient(SFTTrainer(model=model, args=arguments, train_dataset=completions(shards)))
    ours = load_model(model, max_length=512)
    documents, _ = load_conversations(shards, "sft", load_tokenizer(model), 512)
    batch = collate(documents)
    loss = sft_loss(batch_logprobs(ours, batch)[0], len(batch.labels_M))
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert_same_gradients(ours, theirs)


TRL_LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sigmoid": ({"loss_types": ["sigmoid"], "loss_weights": [1.0]}, {}),
    # TRL's sigmoid has no smoothing of its own; on a single pair, its `aot` is the smoothed sigmoid.
    "smoothed": ({"loss_types": ["aot"], "loss_weights": [1.0], "label_smoothing": 0.1}, {"label_smoothing": 0.1}),
    "nll": ({"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]}, {"nll_weight": 0.3}),
    "sigmoid_norm": ({"loss_types": ["sigmoid_norm"], "loss_weights": [1.0]}, {"length_normalised": True}),
    # TRL's IPO compares means over a completion's tokens.
    "ipo": ({"loss_types": ["ipo"], "loss_weights": [1.0]}, {"loss": "ipo", "length_normalised": True}),
}
"""Kind -> attributes of TRL's trainer, our settings."""


@pytest.mark.parametrize("architecture", ["phi3", "llama", "qwen3"])
def test_dpo_has_trls_losses_and_gradients(tmp_path: Path, architecture: str):
    model, anchor = tiny_model(tmp_path / "m", architecture), tiny_model(tmp_path / "r", architecture, seed=1)
    ours, reference = (load_model(str(path), max_length=512) for path in (model, anchor))
    for rows, kinds in ((1, ["smoothed"]), (8, ["sigmoid", "nll", "sigmoid_norm", "ipo"])):
        shards = toy_shards(tmp_path / f"out{rows}", rows)
        trainer = DPOTrainer(
            model=str(model),
            ref_model=AutoModelForCausalLM.from_pretrained(anchor),
            args=DPOConfig(**{**settings(tmp_path), **WHOLE}, beta=0.1),
            train_dataset=shard(shards, "dpo"),
        )
        pairs, _ = load_pairs(shards, load_tokenizer(str(model)), 512)
        batch = collate([side for pair in pairs for side in pair])
        with torch.no_grad():
            reference_P2 = pair_logprobs(batch_logprobs(reference, batch)[0], batch)
        for kind in kinds:
            attributes, options = TRL_LOSSES[kind]
            for name, value in attributes.items():
                assert hasattr(trainer, name)
                setattr(trainer, name, value)
            trainer.model.zero_grad()
            ours.zero_grad()
            expected, theirs = one_gradient(trainer)
            objective = preference([list(pair) for pair in pairs], reference_P2, DpoConfig(beta=0.1, **options))
            cost, _ = objective(batch_logprobs(ours, batch)[0], batch, range(rows), range(rows))
            cost.backward()
            assert cost.item() == pytest.approx(expected, rel=1e-5), kind
            assert_same_gradients(ours, theirs)


def trls_rollouts(trainer: Any) -> dict[str, Tensor]:
    """One batch sampled and scored by TRL's own trainer, as its loss takes it."""
    trainer.model.train()
    return trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))


def twelve(tmp_path: Path, trainer: type, **options: Any) -> Any:
    """A trainer of TRL's with three groups of four: one right; one unjudged and two right; none right."""
    rewards = [1.0, -1.0, -1.0, -1.0, 1.0, None, 1.0, -1.0, -1.0, -1.0, -1.0, -1.0]
    settings_of = {GRPOTrainer: GRPOConfig, RLOOTrainer: RLOOConfig}[trainer]
    arguments = {**settings(tmp_path), "per_device_train_batch_size": 12, "num_generations": 4, "beta": 0.0}
    arguments |= {"max_completion_length": 8, "temperature": 0.8, "gradient_checkpointing": False}
    return trainer(
        model=str(tiny_model(tmp_path / "m")),
        args=settings_of(**arguments, **options),
        reward_funcs=lambda completions, **_: rewards[: len(completions)],
        train_dataset=shard(toy_shards(tmp_path / "out"), "rl"),
    )


def test_advantages_are_trls(tmp_path: Path):
    rewards = torch.tensor([[1.0, -1, -1, -1], [1, 0, 1, -1], [-1, -1, -1, -1]])
    valid = torch.ones(3, 4, dtype=torch.bool)
    valid[1, 1] = False  # unjudged
    # TRL divides by the sample's deviation, and adds 1e-4 to it; we take the population's.
    shrunk = torch.tensor([[3 / 4], [2 / 3], [1.0]]).sqrt()
    grpo = twelve(tmp_path / "grpo", GRPOTrainer)
    assert_close(
        trls_rollouts(grpo)["advantages"].view(3, 4), group_advantages(rewards, valid) * shrunk, rtol=2e-4, atol=0
    )
    grpo.scale_rewards = "none"
    assert_close(trls_rollouts(grpo)["advantages"].view(3, 4), group_advantages(rewards, valid, "dr_grpo"))
    rloo = twelve(tmp_path / "rloo", RLOOTrainer)
    assert_close(trls_rollouts(rloo)["advantages"].view(3, 4), group_advantages(rewards, valid, "rloo"))


TRL_GRPO: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({"loss_type": "grpo"}, {"averaging": "sequence"}),
    "dapo": ({"loss_type": "dapo"}, {"averaging": "token"}),
    "dr_grpo": ({"loss_type": "dr_grpo"}, {"averaging": "constant"}),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.05},
        {"averaging": "sequence", "surrogate": "gspo", "clip_low": 0.05, "clip_high": 0.05},
    ),
    # TRL bounds CISPO's ratio from above only, and by the ratio itself.
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.28}, {"surrogate": "cispo", "clip_low": 1.0}),
    "kl": ({"loss_type": "dapo", "beta": 0.1}, {"kl_weight": 0.1}),
    "importance": (
        {"loss_type": "dapo", "beta": 0.1, "use_vllm": True, "vllm_importance_sampling_correction": True},
        {"kl_weight": 0.1, "importance": "token"},
    ),
}
"""Kind -> attributes of TRL's trainer, our settings; without them, tokens' ratios clipped to 0.8 and 1.28."""


def test_grpo_has_trls_losses_and_gradients(tmp_path: Path):
    """Each objective on the rollouts that TRL sampled, with ratios far from 1: values and gradients of all weights."""
    # TRL's KL is k3 as ours is, unless it is told (its default) to weigh it by the ratio.
    trainer = twelve(tmp_path, GRPOTrainer, epsilon_high=0.28, use_bias_correction_kl=False)
    trainer.current_gradient_accumulation_steps = 1  # known to TRL once it trains
    rollouts = trls_rollouts(trainer)
    mask_BT = rollouts["completion_mask"].bool()
    pairs = [
        (prompt[prompt_mask.bool()].numpy(), answer[answer_mask].numpy())
        for prompt, prompt_mask, answer, answer_mask in zip(
            rollouts["prompt_ids"], rollouts["prompt_mask"], rollouts["completion_ids"], mask_BT, strict=True
        )
    ]
    batch = collate(
        [Document("", np.concatenate(pair), np.arange(sum(map(len, pair))) >= len(pair[0])) for pair in pairs]
    )
    ours = load_model(str(tmp_path / "m"), max_length=512)
    logprobs_N = batch_logprobs(ours, batch, temperature=0.8)[0].detach()
    torch.manual_seed(0)
    old_N, reference_N, sampler_N = (logprobs_N + 0.3 * torch.randn(len(logprobs_N)) for _ in range(3))
    lengths_S = mask_BT.sum(dim=1)
    weigh = partial(token_weights, num_tokens=len(logprobs_N), num_sequences=12, most=8)
    rollouts["old_per_token_logps"] = padded(old_N, mask_BT)
    rollouts["ref_per_token_logps"] = padded(reference_N, mask_BT)
    rollouts["importance_sampling_ratio"] = padded((old_N - sampler_N).exp().clamp(max=2.0), mask_BT)
    usual = {name: getattr(trainer, name) for attributes, _ in TRL_GRPO.values() for name in attributes}
    for kind, (attributes, options) in TRL_GRPO.items():
        for name, value in {**usual, **attributes}.items():
            setattr(trainer, name, value)
        trainer.model.zero_grad()
        ours.zero_grad()
        expected = trainer._compute_loss(trainer.model, rollouts)
        expected.backward()
        result = grpo_loss(
            batch_logprobs(ours, batch, temperature=0.8)[0],
            old_N,
            rollouts["advantages"][batch.document_M],
            weigh(lengths_S, options.get("averaging", "token"))[batch.document_M],
            batch.document_M,
            sampler_logprobs_N=sampler_N if "importance" in options else None,
            reference_logprobs_N=reference_N,
            **{name: value for name, value in options.items() if name != "averaging"},
        )
        result.loss.backward()
        assert result.clipped > 0, "ratios far enough from 1 to be bounded"
        assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5), kind
        assert_same_gradients(ours, trainer.model)


def padded(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Values of the completions' tokens, one after another, where the mask has these tokens."""
    return torch.zeros(mask_BT.shape).masked_scatter(mask_BT, values_N)


def trl_trajectory(trainer: Any) -> list[tuple[float, float]]:
    trainer.train()
    return [(line["loss"], line["grad_norm"]) for line in trainer.state.log_history if "grad_norm" in line]


def our_trajectory(folder: Path) -> list[tuple[float, float]]:
    lines = map(json.loads, (folder.parent / "metrics.jsonl").read_text().splitlines())
    return [(line["loss"], line["grad_norm"]) for line in lines]


def test_five_steps_are_trls_five_steps(tmp_path: Path):
    """Loss and gradient norm of each step through both public trainers: the optimizer is the same as well."""
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    schedule = {"max_steps": 5, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "adam_beta2": 0.95}
    theirs = {**settings(tmp_path), **WHOLE, **schedule}
    ours = {"max_length": 512, "batch_size": 8, "learning_rate": 1e-3, "schedule": "constant", "warmup_rate": 0.0}
    ours |= {"precision": "fp32", "epochs": 5}
    sft = trl_trajectory(SFTTrainer(model=model, args=SFTConfig(**theirs), train_dataset=completions(shards)))
    dpo = trl_trajectory(
        DPOTrainer(model=model, args=DPOConfig(**theirs, beta=0.1), train_dataset=shard(shards, "dpo"))
    )
    for expected, folder in (
        (sft, train_sft(SftConfig(**ours), shards, model, tmp_path / "sft")),
        (dpo, train_dpo(DpoConfig(**ours), shards, model, tmp_path / "dpo")),
    ):
        got = our_trajectory(folder)
        assert len(got) == len(expected) == 5
        assert [value for step in got for value in step] == pytest.approx(
            [value for step in expected for value in step], rel=1e-3
        )
        assert abs(got[0][0] - got[-1][0]) > 0.01  # it moved
