"""TRL's trainers take the shards as they are: one step each."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from tiny_models import tiny_model
from toy_shards import toy_shards

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its supported range of vLLM ends below the one we sample with
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

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
