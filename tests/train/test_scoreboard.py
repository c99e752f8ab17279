"""The table, the comparison and the picture that `train eval` shows."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from scripted_policy import ScriptedPolicy

from pipelines.errors import UserError
from train import cli
from train.evaluate import EvalConfig, evaluate
from train.results import EvalResult
from train.scoreboard import compared, draw_results, earlier_results

NUMBERS = range(2, 14)
CONFIG = EvalConfig(samples=4, max_tokens=64, runs=2)


def asked(folder: Path, name: str = "sums") -> str:
    rows = [{"problem": f"{number} + 1", "answer": str(number + 1)} for number in NUMBERS]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / f"{name}.jsonl")


def answers(num_right: int) -> ScriptedPolicy:
    """Right `num_right` times of four."""
    texts = {number: [number + 1] * num_right + [number] * (4 - num_right) for number in NUMBERS}
    return ScriptedPolicy({f"{n} + 1": [rf"\boxed{{{text}}}" for text in each] for n, each in texts.items()})


def evaluated(folder: Path, num_right: int, name: str = "sums") -> EvalResult:
    model = f"hf:somebody/right-{num_right}"
    (result,) = evaluate(CONFIG, model, [asked(folder, name)], folder, sampler=answers(num_right))
    return result


def test_two_models_are_compared_problem_by_problem(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    worse, better = evaluated(tmp_path / "a", 1), evaluated(tmp_path / "b", 3)
    (other,) = earlier_results(["sums"], tmp_path / "a")
    assert other == worse
    versus = compared(better, other, tmp_path / "b")
    row = versus.row()
    assert row["pass@1"].startswith("75.0 [")
    assert row["against"].startswith("25.0 [")
    assert row["difference"] == "+50.0 [+50.0, +50.0]"
    # Twelve differences of one sign: by chance once in 2^11.
    assert versus.change.p_value == pytest.approx(2**-11, abs=5e-4)
    assert row["verdict"] == "helps"
    stored = json.loads((tmp_path / "b" / "eval" / "sums" / "against.json").read_text())
    assert stored["against"]["weights"] == worse.weights
    assert stored["difference"]["mean"] == 0.5
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        compared(replace(better, config={**better.config, "temperature": 1.0}), other, tmp_path / "b")
    assert "`temperature` is 1.0 here, there 0.6" in caplog.text


def test_models_that_were_asked_other_problems_are_not_compared(tmp_path: Path):
    result = evaluated(tmp_path, 2)
    fewer = replace(result, problems=result.problems[1:])
    with pytest.raises(UserError, match="different problems"):
        compared(result, fewer, tmp_path)
    with pytest.raises(UserError, match="no evaluation"):
        earlier_results(["sums", "products"], tmp_path)


def test_the_picture_shows_every_benchmark_and_is_the_same_every_time(tmp_path: Path):
    results = [evaluated(tmp_path, 3), evaluated(tmp_path, 3, "more")]
    others = [evaluated(tmp_path / "other", 1)] * 2
    png, svg = draw_results(results, tmp_path / "pictures" / "results", others)
    with Image.open(png) as picture:
        assert picture.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
        assert picture.width > 400
    text = svg.read_text()
    for words in ("sums", "more", "12 × 8", "75.0 %", "pass@8", "cons@8", "right-3", "right-1, pass@1"):
        assert words in text, words
    first = png.read_bytes(), svg.read_bytes()
    draw_results(results, tmp_path / "pictures" / "results", others)
    assert (png.read_bytes(), svg.read_bytes()) == first


def test_the_command_compares_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Everything was sampled before: the command finds it all and loads no model."""
    evaluated(tmp_path / "a", 1)
    evaluated(tmp_path / "b", 3)
    settings = ["eval.max_tokens=64"]
    benchmarks = f" {asked(tmp_path / 'b')}, "
    model, out = "hf:somebody/right-3", tmp_path / "b"
    cli.eval_(model, benchmarks, out, samples=4, runs=2, against=tmp_path / "a", overrides=settings)
    shown = capsys.readouterr().out
    assert "2 runs" in shown
    assert "75.0 ± 0.0" in shown
    assert "against hf:somebody/right-1:" in shown
    assert "+50.0 [+50.0, +50.0]" in shown
    assert (out / "eval" / "results.png").is_file()
    with pytest.raises(UserError, match="no evaluation"):
        cli.eval_(model, benchmarks, out, against=tmp_path / "nowhere", overrides=settings)
    with pytest.raises(UserError, match="no benchmark to evaluate on"):
        cli.eval_(model, " ,", out)
