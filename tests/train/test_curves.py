"""Pictures of a run: both themes, every panel that has values, the same bytes for the same numbers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from pipelines.errors import UserError
from train.curves import draw_curves, running_mean


def run(folder: Path, num_steps: int) -> Path:
    folder.mkdir(parents=True)
    lines = [
        {"step": step, "loss": 2 * math.exp(-step / 30) + 0.05 * math.sin(7 * step), "grad_norm": 1.0,
         "learning_rate": 1e-5, "accuracy": 0.5 + step / 400, "margin": step / 50, "tokens_per_s": 9000 + step}
        for step in range(num_steps)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_light_and_a_dark_picture(tmp_path: Path):
    light, dark = (imread(path)[..., :3] for path in draw_curves(run(tmp_path / "dpo", 120), "dpo"))
    assert light.shape == dark.shape
    assert light.mean() > 0.8
    assert dark.mean() < 0.25
    assert light.std(axis=(0, 1)).min() > 0.02  # something is drawn


@pytest.mark.parametrize("num_steps", [1, 2, 30])
def test_short_runs_are_drawn_too(tmp_path: Path, num_steps: int):
    assert all(path.stat().st_size > 1000 for path in draw_curves(run(tmp_path / "sft", num_steps), "sft"))


def test_the_same_numbers_are_the_same_bytes(tmp_path: Path):
    first, second = (draw_curves(run(tmp_path / name, 20), "sft") for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_running_mean_by_hand():
    # Each with its two neighbours: (4 + 2) / 2; (4 + 2 + 6) / 3; (2 + 6 + 1) / 3; (6 + 1) / 2.
    np.testing.assert_allclose(running_mean(np.array([4.0, 2.0, 6.0, 1.0]), 3), [3, 4, 3, 3.5])


def test_a_folder_without_a_run_is_a_user_error(tmp_path: Path):
    with pytest.raises(UserError, match=r"no .*metrics.jsonl"):
        draw_curves(tmp_path, "sft")
