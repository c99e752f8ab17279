import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import UserError
from train.results import EvalResult, ProblemScore
from train.staircase import draw_staircase, duration, staircase
from train.statistics import bootstrap_interval, pass_at_k

SAMPLES = 4


def result_of(num_correct: list[int], model: str) -> EvalResult:
    correct = np.array(num_correct)
    num_samples = np.full(len(correct), SAMPLES)
    return EvalResult(
        benchmark="sums",
        model=model,
        weights=model,
        config={},
        num_problems=len(correct),
        num_samples=SAMPLES,
        pass_at={k: bootstrap_interval(pass_at_k(num_samples, correct, k), 0) for k in (1, 2, 4)},
        cons_at={},
        truncation_rate=0.0,
        mean_tokens=20.0,
        num_unjudged=0,
        set_aside={},
        seconds=1.0,
        problems=[ProblemScore(f"p{index:03d}", int(number)) for index, number in enumerate(correct)],
    )


def write_step(run: Path, name: str, num_correct: list[int], seconds: float | None = None) -> None:
    result_of(num_correct, name).write(run / name / "eval" / "sums" / "eval.json")
    if seconds is not None:
        lines = [json.dumps({"step": step, "seconds": seconds / 2}) for step in range(2)]
        (run / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def test_the_words_follow_the_paired_interval(tmp_path: Path):
    base = [0, 0, 1, 0, 2] * 20
    write_step(tmp_path, "base", base)
    write_step(tmp_path, "midtrain", [number + 2 for number in base], seconds=61)
    write_step(tmp_path, "sft", [number + 2 for number in base[1:]] + [base[0] + 2], seconds=30)
    write_step(tmp_path, "rl", [max(0, number - 1) for number in base], seconds=8000)
    steps = staircase(tmp_path)
    assert [step.name for step in steps] == ["base", "midtrain", "sft", "rl"], "dpo was not evaluated"
    assert [step.change.words if step.change else None for step in steps] == [None, "helps", "no gain", "hurts"]
    assert [step.seconds for step in steps] == [None, 61, 30, 8000]
    row = steps[1].row()
    assert row["pass@1"].startswith("65.0 ["), "(0.6 + 2) / 4"
    assert row["change"] == "+50.0 [+50.0, +50.0]"
    assert row["trained in"] == "1 min 01 s"


def test_the_picture_is_light_and_the_same_every_time(tmp_path: Path):
    write_step(tmp_path, "base", [0] * 30)
    write_step(tmp_path, "sft", [1, 3] * 15, seconds=5)
    steps = staircase(tmp_path)
    png, svg = draw_staircase(steps, tmp_path / "pictures" / "staircase")
    with Image.open(png) as picture:
        assert picture.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
        assert picture.width > 400
    text = svg.read_text()
    for words in ("Base", "SFT", "50.0 %", "+50.0  helps", "30 problems × 4 samples"):
        assert words in text, words
    first = png.read_bytes(), svg.read_bytes()
    draw_staircase(steps, tmp_path / "pictures" / "staircase")
    assert (png.read_bytes(), svg.read_bytes()) == first


def test_a_run_without_evaluations_says_what_to_do(tmp_path: Path):
    with pytest.raises(UserError, match="no evaluation"):
        staircase(tmp_path)
    write_step(tmp_path, "base", [1, 2])
    with pytest.raises(UserError, match="no evaluation on `aime24`"):
        staircase(tmp_path, "aime24")
    (tmp_path / "sft" / "eval" / "aime24").mkdir(parents=True)
    with pytest.raises(UserError, match="2 benchmarks"):
        staircase(tmp_path)


def test_different_problems_are_not_compared(tmp_path: Path):
    write_step(tmp_path, "base", [1, 2, 3])
    write_step(tmp_path, "sft", [1, 2])
    with pytest.raises(UserError, match="different problems"):
        staircase(tmp_path)


def test_a_broken_evaluation_is_named(tmp_path: Path):
    path = tmp_path / "base" / "eval" / "sums" / "eval.json"
    write_step(tmp_path, "base", [1, 2])
    path.write_text('{"benchmark": "sums"}')
    with pytest.raises(UserError, match="is not an evaluation"):
        staircase(tmp_path)


def test_results_survive_the_disk(tmp_path: Path):
    result = result_of([0, 4, 2], "m")
    result.write(tmp_path / "eval.json")
    assert EvalResult.read(tmp_path / "eval.json") == result
    assert result.scores().tolist() == [0.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("seconds", "text"), [(47.4, "47 s"), (185, "3 min 05 s"), (8040, "2 h 14 min"), (59.6, "1 min 00 s")]
)
def test_duration(seconds: float, text: str):
    assert duration(seconds) == text
