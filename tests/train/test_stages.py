"""`train all`: stages in order, each from the one before, skipped when finished; and the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tiny_models import tiny_model
from toy_shards import toy_shards

from curate import pipeline
from pipelines import config
from pipelines.errors import UserError
from pipelines.tables import STAGES
from train import checkpoint
from train.cli import app
from train.stages import CONFIGS, check_shards, in_process, stage_configs, stages_of, train_all

ROOT = Path(__file__).parents[2]
RECIPE = {
    "steps": ["midtrain", "sft", "dpo"],
    "midtrain": {"max_length": 256, "max_steps": 2},
    "sft": {"max_length": 256, "max_steps": 2},
    "dpo": {"max_length": 256, "max_steps": 2},
}


def command(*arguments: object) -> None:
    """`train ARGUMENTS` in this process."""
    app([str(argument) for argument in arguments], standalone_mode=False)


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`train ARGUMENTS` in its own."""
    line = [sys.executable, "-m", "train.cli", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT)


def test_each_stage_starts_from_the_one_before_and_is_done_once(tmp_path: Path):
    shards, model, out = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m")), tmp_path / "run"
    done = list(train_all(RECIPE, shards, model, out))
    assert [(step.stage, step.made) for step in done] == [("midtrain", True), ("sft", True), ("dpo", True)]
    before = model
    for step in done:
        lineage = json.loads((step.folder / "tracemill.json").read_text())
        assert lineage["model_digest"] == checkpoint.model_digest(before)
        before = str(step.folder)
    assert [step.made for step in train_all(RECIPE, shards, model, out)] == [False] * 3
    changed = {**RECIPE, "sft": {"max_length": 256, "max_steps": 1}}
    with pytest.raises(UserError, match="max_steps: 2 -> 1"):
        list(train_all(changed, shards, model, out))
    assert [step.made for step in train_all(changed, shards, model, out, replace=True)] == [False, True, True]


def test_what_others_have_put_into_a_folder_is_never_removed(tmp_path: Path):
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    before = sorted(shards.rglob("*"))
    with pytest.raises(UserError, match="holds other things than a run of training, among them `") as caught:
        command("sft", "--shards", shards, "--model", model, "--out", shards, "--set", "sft.max_length=256")
    assert "--out" in caught.value.hint
    assert [path for path in sorted(shards.rglob("*")) if path.name != ".lock"] == before
    run = tmp_path / "run"
    short = ("--shards", shards, "--model", model, "--out", run, "--set", "sft.max_length=256")
    command("sft", *short, "--set", "sft.max_steps=1")
    (run / "notes.txt").write_text("keep me")
    command("sft", *short, "--set", "sft.max_steps=2", "--replace")
    assert (run / "notes.txt").read_text() == "keep me"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_first_try_that_was_refused_binds_nobody(tmp_path: Path):
    shards, model, run = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m")), tmp_path / "run"
    common = ("--shards", shards, "--model", model, "--out", run, "--set", "sft.max_steps=1")
    with pytest.raises(UserError, match="no usable row"):
        command("sft", *common, "--set", "sft.max_length=2")
    assert (run / "run.json").is_file()
    command("sft", *common, "--set", "sft.max_length=256")
    with pytest.raises(UserError, match="begun with another sft config"):
        command("sft", *common, "--set", "sft.max_length=128")


def test_a_stage_whose_command_is_killed_saves_says_so_and_leaves(tmp_path: Path):
    shards, model, run = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m")), tmp_path / "run"
    line = ["all", "--shards", shards, "--model", model, "--out", run, "--set", "midtrain.max_length=256"]
    with (tmp_path / "said").open("w") as said:
        started = subprocess.Popen(
            [sys.executable, "-m", "train.cli", *map(str, line), "--set", "midtrain.epochs=100000"],
            stderr=said,
            cwd=ROOT,
        )
        log = run / "midtrain" / "metrics.jsonl"
        wait_until(lambda: log.is_file() and log.read_text().count("\n") > 2)
        children = psutil.Process(started.pid).children(recursive=True)
        started.kill()
        started.wait()
        wait_until(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))
    assert "midtrain was told to stop after" in (tmp_path / "said").read_text()
    assert list((run / "midtrain").glob("step-*"))


def test_ctrl_c_in_a_terminal_saves_and_says_so(tmp_path: Path):
    shards, model, run = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m")), tmp_path / "run"
    line = ["all", "--shards", shards, "--model", model, "--out", run, "--set", "midtrain.max_length=256"]
    # A shell that starts tests in the background has SIGINT ignored, which processes inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    started = subprocess.Popen(
        [sys.executable, "-m", "train.cli", *map(str, line), "--set", "midtrain.epochs=100000"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    log = run / "midtrain" / "metrics.jsonl"
    wait_until(lambda: log.is_file() and log.read_text().count("\n") > 2)
    os.killpg(started.pid, signal.SIGINT)
    _, said = started.communicate(timeout=120)
    assert started.returncode == 1
    assert "error: midtrain was told to stop after" in said
    assert "Traceback" not in said
    assert list((run / "midtrain").glob("step-*"))


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_missing_shards_are_found_before_anything_is_trained(tmp_path: Path):
    shards, model = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m"))
    (shards / "shards/dpo/00000.parquet").unlink()
    with pytest.raises(UserError, match=r"no Parquet files in .*dpo"):
        list(train_all(RECIPE, shards, model, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_error_in_a_stage_process_arrives_as_it_was(tmp_path: Path):
    with pytest.raises(UserError, match="no run directory") as raised:
        in_process(check_shards, tmp_path / "none", ["sft"])
    assert "curate split" in str(raised.value.hint)


def test_every_stage_may_stand_in_a_recipe():
    assert set(config.STEPS) == {*pipeline.STEPS, "card", *STAGES}
    assert set(config.SECTIONS) == {*pipeline.STEPS, *CONFIGS, "init", "cost", "spread"}


def test_a_recipe_names_the_stages_to_run():
    assert stages_of({}) == ["midtrain", "sft", "dpo", "rl"]
    assert stages_of({"steps": ["generate", "dpo", "sft"]}) == ["sft", "dpo"]
    with pytest.raises(UserError, match=r"unknown setting `sft.speed`"):
        stage_configs({"sft": {"speed": 1}})


def test_the_commands_train_a_student_made_from_the_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shards, student, out = toy_shards(tmp_path / "out"), tmp_path / "student", tmp_path / "run"
    command("init", "--shards", shards, "--out", student, "--set", "init.vocab_size=300", "--size", "1m")
    assert "train all" in capsys.readouterr().out
    arguments = ("sft", "--shards", shards, "--model", student, "--out", out, "--set", "sft.max_steps=1")
    command(*arguments, "--dry-run")
    plan = capsys.readouterr().out
    assert "sft: 8 rows" in plan
    assert '"max_steps": 1' in plan
    assert not out.exists()
    command(*arguments)
    assert capsys.readouterr().out.startswith("sft: 1 steps, loss")
    command(*arguments)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="max_steps: 1 -> 2") as refused:
        command(*arguments[:-1], "sft.max_steps=2")
    assert "--replace" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["sft", "--shards", "{tmp}/out", "--model", "{tmp}/none"], "no model"),
        (["sft", "--shards", "{tmp}/out", "--model", "{tmp}/m", "--set", "sft.speed=1"], "unknown setting"),
        (["all", "--shards", "{tmp}/out", "--model", "{tmp}/m", "--set", "stf.seed=1"], "no stage `stf`"),
        (["all", "--shards", "{tmp}/out", "--recipe", "none"], "no recipe"),
    ],
)
def test_a_mistake_is_a_user_error(tmp_path: Path, arguments: list[str], named: str):
    toy_shards(tmp_path / "out")
    tiny_model(tmp_path / "m")
    with pytest.raises(UserError, match=named):
        command(*(argument.format(tmp=tmp_path) for argument in arguments), "--out", tmp_path / "run")


def test_a_mistake_is_one_sentence_and_exit_code_1(tmp_path: Path):
    done = process("sft", "--shards", tmp_path / "none", "--model", "m", "--out", tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("error: no run directory")
    assert done.stderr.splitlines()[1].startswith("hint: ")
    assert "Traceback" not in done.stderr


def test_bad_usage_exits_with_two():
    assert process("sft", "--no-such-option").returncode == 2
