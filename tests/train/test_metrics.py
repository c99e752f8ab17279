"""The log of a run: a line for a person, a row for a program, a bar on a terminal, event files where asked for."""

import io
import json
import logging
import os
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from toy_shards import toy_shards

from train.flops import Accelerator, accelerator, matrix_parameters, mfu, step_flops
from train.metrics import metrics_log, peak_memory_gb, sparkline, step_line
from train.model import load_model
from train.stages import log_to_stderr

ROOT = Path(__file__).parents[2]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def write_steps(out: Path, first: int, last: int, stage: str = "sft", **options: object) -> None:
    with metrics_log(out, stage, 10, first, **options) as log:
        for step in range(first, last):
            log(step, loss=2.0 - step / 10, learning_rate=1e-5, grad_norm=0.5, tokens=1000, waited=0.0)


def test_a_line_has_what_follows_from_time_and_memory(tmp_path: Path):
    write_steps(tmp_path, 0, 2)
    first, second = rows(tmp_path)
    assert (first["step"], first["loss"], second["loss"]) == (0, 2.0, 1.9)
    assert second["tokens_per_s"] == pytest.approx(1000 / second["seconds"])
    assert second["waited_rate"] == 0.0
    assert 0.05 < first["memory_gb"] <= second["memory_gb"] < 1000
    assert "mfu" not in first  # no accelerator


def test_lines_that_a_killed_run_left_are_dropped(tmp_path: Path):
    write_steps(tmp_path, 0, 4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut off
    write_steps(tmp_path, 2, 5)
    assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2, 3, 4]


def test_a_step_is_one_line_of_a_dozen_columns_at_most(tmp_path: Path):
    measured = {"memory_gb": 61.2, "tokens_per_s": 12345.6, "waited_rate": 0.004, "mfu": 0.412, "seconds": 3.0}
    line = {"step": 11, "loss": 1.2345, "grad_norm": 0.5, "learning_rate": 1e-5, "tokens": 4096, **measured}
    assert step_line("sft", 400, line, 3725.0) == (
        "sft 12/400  loss 1.23  grad 0.5  lr 1e-05  tokens/s 12,346  mfu 0.412  GB 61.2  waited 0.004  1 h 02 min left"
    )
    many = dict.fromkeys(("reward", "pass_rate", "rollouts", "unjudged", "groups_used", "groups_all_wrong", "refused",
                          "length_mean", "length_spread", "truncation_rate", "entropy", "kl", "clip_rate", "cap_rate",
                          "mismatch_mean", "mismatch_max", "temperature", "sampling_s", "training_s"), 0.5)  # fmt: skip
    shown = step_line("rl", 24, {**line, **many}, 60.0)
    assert len(shown.split("  ")) <= 1 + 12
    assert shown.startswith("rl 12/24  reward 0.5  pass rate 0.5")


def test_a_terminal_gets_a_bar_with_the_course_of_the_loss(tmp_path: Path):
    terminal = Terminal()
    write_steps(tmp_path, 0, 10, stream=terminal)
    assert "10/10" in terminal.getvalue()
    assert sparkline([2.0 - step / 10 for step in range(10)]) in terminal.getvalue()
    log = io.StringIO()
    write_steps(tmp_path, 0, 10, stream=log)
    assert log.getvalue() == ""  # a log has its lines, and nothing else


def test_a_sparkline_runs_from_the_lowest_to_the_highest():
    assert sparkline([0.0, 3.5, 7.0]) == "▁▅█"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([]) == ""


def test_lines_go_to_the_stderr_of_the_moment():
    before = logging.getLogger().handlers[:]
    logging.getLogger().handlers.clear()
    try:
        log_to_stderr()
        with redirect_stderr(io.StringIO()) as later:
            logging.getLogger("train.metrics").info("sft 1/2  loss 1")
        assert later.getvalue() == "sft 1/2  loss 1\n"
    finally:
        logging.getLogger().handlers[:] = before


def test_event_files_hold_every_value_and_no_step_twice(tmp_path: Path):
    shards, model, out = toy_shards(tmp_path / "out"), tiny_model(tmp_path / "m"), tmp_path / "run"
    line = [sys.executable, "-m", "train.cli", "sft", "--shards", shards, "--model", model, "--out", out]
    settings = ["sft.max_length=256", "sft.max_steps=3", "sft.batch_size=4"]
    command = [*map(str, line), *(part for setting in settings for part in ("--set", setting)), "--tensorboard"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    for key in ("loss", "learning_rate", "grad_norm", "tokens_per_s", "memory_gb"):
        found = [(event.step, event.value) for event in events.Scalars(key)]
        assert found == [(row["step"], pytest.approx(row[key], rel=1e-6)) for row in rows(out)]


def test_flops_of_a_tied_and_an_untied_model(tmp_path: Path):
    # Llama, D 64, F 128, V 263, 2 layers, 2 heads of 32, 1 of keys: a layer has 64*64 (q) + 2 * 64*32 (k, v)
    # + 64*64 (o) + 3 * 64*128 = 36,864 parameters in matrices, the head 263*64 = 16,832.
    tied = load_model(str(tiny_model(tmp_path / "t")), max_length=64)
    untied = load_model(str(tiny_model(tmp_path / "u", tied=False)), max_length=64)
    matrices = 2 * 36_864 + 263 * 64
    assert matrix_parameters(tied) == matrix_parameters(untied) == matrices
    # Two documents of 10 and 20 tokens: 30 tokens, 500 squared; attention 6 * 2 layers * 2 heads * 32 * 500.
    assert step_flops(tied, 30, 500) == 6 * matrices * 30 + 6 * 2 * 2 * 32 * 500


def test_operations_of_frozen_matrices_and_the_share_of_several_devices(tmp_path: Path):
    model = load_model(str(tiny_model(tmp_path / "m")), max_length=64)
    whole = step_flops(model, 30, 500)
    device = Accelerator(flops=whole, memory_gb=1.0)
    assert mfu(model, 30, 500, 2.0, device, 1) == pytest.approx(0.5)
    assert mfu(model, 30, 500, 2.0, device, 4) == pytest.approx(0.125)
    # Without the gradients of the layers' 2 * 36,864 parameters: 2 of 6 operations each.
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".layers." not in name)
    assert step_flops(model, 30, 500) == whole - 2 * 2 * 36_864 * 30


@pytest.mark.parametrize(
    ("name", "flops"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA H100 PCIe", 756e12)],
)
def test_an_accelerator_is_found_by_its_name(name: str, flops: float):
    found = accelerator(name)
    assert found is not None
    assert found.flops == flops
    assert accelerator("Abacus") is None


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory_gb()
    held = torch.ones(int((before + 0.3) * 1e9 / 4))  # 0.3 GB above anything before
    assert peak_memory_gb() >= before + 0.25
    del held
