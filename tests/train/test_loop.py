"""The loop where things go wrong: NaN, a leap of the loss, and a signal to stop."""

import json
import logging
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model
from toy_shards import answer, question, toy_shards, write_shard

from pipelines.errors import UserError
from train.loop import Done, Guard, _ahead, spike, stop_signal
from train.sft import SftConfig, train_sft

FAST = {"learning_rate": 1e-3, "precision": "fp32", "max_length": 512}
CALM = [2.0, 2.1] * 8
"""Sixteen costs of mean 2.05 and deviation 0.05: a leap is one above 2.05 + max(0.3, 1.025)."""


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def done(cost: float) -> Done:
    return Done(sums={"loss": cost}, cost=cost, worst=(cost, ("a", "b", "c", "d", "e")))


@pytest.mark.parametrize(
    ("cost", "recent", "leaps"),
    [
        (3.0, CALM, False),
        (3.1, CALM, True),
        (3.1, CALM[1:], False),  # fifteen steps tell nothing
        (9.0, [1.0, 3.0] * 8, True),  # deviation 1: a leap is one above 2 + max(6, 1)
        (7.9, [1.0, 3.0] * 8, False),
        (0.0, CALM, False),
    ],
)
def test_a_spike_is_six_deviations_and_half_the_mean_above_it(cost: float, recent: list[float], leaps: bool):
    assert spike(cost, recent) == leaps


def test_warn_goes_on_and_takes_the_new_level_for_granted(caplog: pytest.LogCaptureFixture):
    guard = Guard("sft", "warn", list(CALM))
    with caplog.at_level(logging.WARNING):
        assert guard.trusts(20, done(9.0), 1.0)
    assert "sft step 21: the loss is 9, 2.05 on average before" in caplog.text
    assert "rows a, b, c, d and 1 more" in caplog.text
    assert guard.recent == [*CALM, 9.0]


def test_skip_leaves_steps_out_but_not_for_ever():
    guard = Guard("sft", "skip", list(CALM))
    assert guard.trusts(20, done(2.0), 1.0)
    for step in range(21, 30):
        assert not guard.trusts(step, done(math.nan if step % 2 else 9.0), 1.0)
    assert guard.recent == [*CALM, 2.0]
    with pytest.raises(UserError, match="sft step 31"):
        guard.trusts(30, done(9.0), 1.0)


def test_stop_names_the_step_and_its_rows():
    with pytest.raises(UserError, match=r"dpo step 3: the loss is 9.*rows a, b, c, d and 1 more") as raised:
        Guard("dpo", "stop", list(CALM)).trusts(2, done(9.0), 1.0)
    assert "dpo.on_spike=skip" in str(raised.value.hint)


@pytest.mark.parametrize(("cost", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan)])
def test_what_is_not_finite_never_goes_on(cost: float, norm: float):
    with pytest.raises(UserError, match="step 1: the loss is"):
        Guard("sft", "warn", []).trusts(0, done(cost), norm)


def test_only_the_last_64_steps_are_remembered():
    guard = Guard("sft", "warn", [])
    for step in range(100):
        guard.trusts(step, done(float(step)), 1.0)
    assert guard.recent == [float(step) for step in range(36, 100)]


def test_weights_of_nan_stop_the_run_and_name_its_rows(tmp_path: Path):
    shards, path = toy_shards(tmp_path / "out"), tiny_model(tmp_path / "m")
    weights = load_file(path / "model.safetensors")
    broken = {name: tensor * math.nan for name, tensor in weights.items()}
    save_file(broken, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"sft step 1: the loss is nan.*rows r00\d, r00\d"):
        train_sft(SftConfig(**FAST), shards, str(path), tmp_path / "run")


def test_a_leap_of_the_loss_is_left_out_where_asked(tmp_path: Path):
    # One row, whose text is of another alphabet, costs far more than the equal ones before it.
    shards, model = tmp_path / "out", str(tiny_model(tmp_path / "m"))
    usual = {"messages": question(1) + answer(1, 3), "prompt_id": "p", "source": "sums"}
    rows = [{**usual, "rollout_id": f"r{k:03}"} for k in range(30)]
    write_shard(shards, "sft", rows)
    taught = train_sft(SftConfig(**{**FAST, "learning_rate": 5e-3}, batch_size=5), shards, model, tmp_path / "taught")
    odd = [{"role": "assistant", "content": "\u00e9\u00f1\u00fc" * 20}]
    write_shard(shards, "sft", [*rows, {**usual, "messages": question(1) + odd, "rollout_id": "odd"}])
    settings = {**FAST, "batch_size": 1, "epochs": 1, "seed": 1}
    skipping, going_on = (
        lines(train_sft(SftConfig(**settings, on_spike=what), shards, str(taught), tmp_path / what).parent)
        for what in ("skip", "warn")
    )
    at = max(range(len(skipping)), key=lambda step: skipping[step]["loss"])
    assert 16 <= at < 30, "the seed brings the odd row after enough others and before some"
    assert going_on[:at][-1]["loss"] == skipping[at - 1]["loss"] < 0.1 * skipping[at]["loss"]
    assert going_on[at + 1]["loss"] != skipping[at + 1]["loss"]
    with pytest.raises(UserError, match=rf"sft step {at + 1}: .* rows odd"):
        train_sft(SftConfig(**settings, on_spike="stop"), shards, str(taught), tmp_path / "stop")


def test_a_second_ctrl_c_ends_at_once():
    before = hear_ctrl_c()
    try:
        with stop_signal() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def hear_ctrl_c() -> Any:
    """A shell that starts tests in the background has it ignored."""
    return signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_saves_and_a_later_run_goes_on_bitwise(tmp_path: Path, number: signal.Signals):
    shards, model, run = toy_shards(tmp_path / "out"), str(tiny_model(tmp_path / "m")), tmp_path / "run"
    config = SftConfig(**FAST, batch_size=2, micro_tokens=1, epochs=10, save_every=1000)
    whole = train_sft(config, shards, model, tmp_path / "whole")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.sft"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_tells_its_end, args=(sender, config, shards, model, run))
    process.start()
    log = run / "metrics.jsonl"
    while process.is_alive() and not (log.is_file() and len(log.read_text().splitlines()) > 5):
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, number)
    message, hint = receiver.recv()
    process.join()
    assert "sft was told to stop after" in message
    assert "the same command goes on" in hint
    (saved,) = run.glob("step-*")
    assert len(lines(run)) == json.loads((saved / "state/loop.json").read_text())["step"] > 5
    resumed = train_sft(config, shards, model, run)
    assert [line["loss"] for line in lines(run)] == [line["loss"] for line in lines(tmp_path / "whole")]
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def _tells_its_end(sender, config: SftConfig, shards: Path, model: str, run: Path) -> None:
    hear_ctrl_c()
    try:
        train_sft(config, shards, model, run)
        sender.send(("finished", ""))
    except UserError as error:
        sender.send((error.message, error.hint))


def test_the_next_value_is_made_in_a_thread_while_one_is_used():
    made: list[tuple[int, bool]] = []

    def values() -> Iterator[int]:
        for value in range(3):
            made.append((value, threading.current_thread() is threading.main_thread()))
            yield value
        raise OSError("no more")

    coming = _ahead(values(), torch.device("cpu"))
    assert [next(coming), next(coming), next(coming)] == [0, 1, 2]
    assert made == [(0, False), (1, False), (2, False)]
    with pytest.raises(OSError, match="no more"):
        next(coming)
    left = threading.active_count()
    with closing(_ahead(iter(range(9)), torch.device("cpu"))) as coming:
        assert next(coming) == 0
    assert threading.active_count() == left


def test_a_signal_is_noted_within_the_block_only_and_threads_have_none():
    before = signal.getsignal(signal.SIGTERM)
    with stop_signal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(1)
    assert signal.getsignal(signal.SIGTERM) is before
    seen: list[bool] = []

    def elsewhere() -> None:
        with stop_signal() as stop:
            seen.append(stop.is_set())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [False]
