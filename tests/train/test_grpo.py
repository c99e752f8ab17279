import copy
import json
import logging
import math
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from scripted_policy import ScriptedPolicy
from tiny_models import tiny_model
from transformers import AutoConfig

from pipelines import parquet
from pipelines.errors import UserError
from pipelines.reasoning import split_reasoning
from pipelines.samplers.transformers import TransformersSampler
from pipelines.sampling import Completion, Request, SamplingConfig
from pipelines.tables import PROMPTS, SHARDS
from train.batches import collate, encode
from train.grpo import RlConfig, train_rl
from train.grpo_update import UpdateConfig, trained_rollouts, update_policy
from train.losses import sft_loss
from train.model import batch_logprobs, load_model, load_tokenizer
from train.optim import make_optimizer, update
from train.prompts import Prompt
from train.rollouts import Group, Sample, Wanted
from verifiers import Outcome, Question, Verdict

SMALL = RlConfig(
    steps=4,
    prompts_per_step=2,
    group_size=8,
    max_group_size=32,
    max_pass_rate=1.0,
    max_tokens=2,
    max_length=64,
    learning_rate=3e-3,
    precision="fp32",
    save_every=2,
)
PROBLEMS = ("first", "second", "third", "fourth")


@pytest.fixture(scope="session")
def digits_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model that answers anything with one digit, each about as often."""
    folder = tiny_model(tmp_path_factory.mktemp("models") / "digits")
    model, tokenizer = load_model(str(folder), max_length=64), load_tokenizer(str(folder))
    conversations = [
        [{"role": "user", "content": problem}, {"role": "assistant", "content": str(digit)}]
        for problem in PROBLEMS
        for digit in range(10)
    ]
    documents = encode(tokenizer, conversations, [str(index) for index in range(len(conversations))])
    batch = collate(documents)
    optimizer = make_optimizer(model, 1e-2)
    for _ in range(30):
        logprobs, _ = batch_logprobs(model, batch)
        sft_loss(logprobs, len(logprobs)).backward()
        update(model, optimizer, 1e-2)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """RL shards whose answer is always 7."""
    rows = [
        {
            "prompt": [{"role": "user", "content": problem}],
            "answer": "7",
            "choices": None,
            "verifier": "mathematics",
            "pass_rate": None,
            "prompt_id": problem,
            "source": "test",
        }
        for problem in PROBLEMS
    ]
    table = pa.Table.from_pylist(rows, schema=SHARDS["rl"])
    parquet.write_file(tmp_path / "out" / "shards" / "rl" / "00000.parquet", "shards/rl", [table])
    return tmp_path / "out"


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# --- the loop -------------------------------------------------------------------------------------


def test_a_policy_learns_to_emit_the_rewarded_token(digits_model: str, shards: Path, tmp_path: Path):
    config = SMALL.model_copy(update={"steps": 30, "save_every": 100})
    final = train_rl(config, shards, digits_model, tmp_path / "run")
    log = metrics(tmp_path / "run")
    assert log[0]["pass_rate"] < 0.4
    assert log[-1]["pass_rate"] > 0.8
    assert log[-1]["kl"] > log[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert log[-1]["entropy"] < log[0]["entropy"]
    assert max(line["mismatch_mean"] for line in log) < 1e-4, "the live policy is what samples"
    assert len(log) < 30, "with nothing left to learn the run ends"
    sampler = TransformersSampler.open("final", str(final))
    request = Request("one", ({"role": "user", "content": "first"},), 0)
    (done,) = sampler.sample([request], SamplingConfig(temperature=0.0, max_tokens=4))
    assert isinstance(done, Completion)
    assert done.text == "7"


@pytest.mark.parametrize(
    "options",
    [
        {"surrogate": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, "averaging": "sequence", "importance": "sequence"},
        {"surrogate": "cispo", "clip_low": 1.0, "averaging": "constant", "importance": "token_mask"},
        {"advantage": "rloo", "importance": "none", "overlong": "penalty", "overlong_tokens": 1},
    ],
)
def test_every_objective_teaches(digits_model: str, shards: Path, tmp_path: Path, options: dict):
    config = SMALL.model_copy(update={**options, "steps": 12, "updates_per_step": 2, "start_temperature": 1.0})
    train_rl(config, shards, digits_model, tmp_path / "run")
    rates = [line["pass_rate"] for line in metrics(tmp_path / "run")]
    assert rates[0] < 0.4
    assert max(rates[-3:]) > 0.7


def test_everything_sampled_is_stored_with_its_step(digits_model: str, shards: Path, tmp_path: Path):
    run = tmp_path / "run"
    train_rl(SMALL.model_copy(update={"steps": 2}), shards, digits_model, run)
    assert [path.name for path in parquet.table_files(run, "rollouts")] == ["00000.parquet", "00001.parquet"]
    for step, line in enumerate(metrics(run)):
        rollouts = parquet.read_table(run / "rollouts" / f"{step:05d}.parquet", "rollouts").to_pylist()
        verdicts = parquet.read_table(run / "verdicts" / f"{step:05d}.parquet", "verdicts").to_pylist()
        assert len(rollouts) == len(verdicts) == line["rollouts"]
        assert {row["step"] for row in rollouts} == {step}
        assert [row["temperature"] for row in rollouts] == pytest.approx([line["temperature"]] * len(rollouts))
        correct = sum(row["verdict"] == "correct" for row in verdicts)
        assert line["pass_rate"] == pytest.approx(correct / len(verdicts))
        assert line["reward"] == pytest.approx(2 * line["pass_rate"] - 1)
        rewards = parquet.read_table(run / "rewards" / f"{step:05d}.parquet", "rewards").to_pylist()
        assert {row["rollout_id"] for row in rewards} == {row["rollout_id"] for row in rollouts}
        assert np.mean([row["reward"] for row in rewards]) == pytest.approx(line["reward"])
        assert all(row["advantage"] is None or row["group_refusal"] is None for row in rewards)
        assert sum(row["advantage"] or 0.0 for row in rewards) == pytest.approx(0.0, abs=1e-4)


def test_a_run_is_a_run_directory_for_the_next_round_of_pairs(digits_model: str, shards: Path, tmp_path: Path):
    root = Path(shutil.copytree(shards, tmp_path / "root"))
    asked = parquet.read_table(root / "shards/rl/00000.parquet", "shards/rl")["prompt_id"].to_pylist()
    same = dict.fromkeys(PROMPTS.names) | {"problem": "?", "verifier": "mathematics", "source": "s", "source_id": "1"}
    rows = [same | {"prompt_id": one} for one in [*asked, "not asked"]]
    parquet.write_file(root / "prompts" / "a.parquet", "prompts", [pa.Table.from_pylist(rows, schema=PROMPTS)])
    train_rl(SMALL.model_copy(update={"steps": 1}), root, digits_model, tmp_path / "run")
    kept = parquet.read_table(tmp_path / "run/prompts/00000.parquet", "prompts")["prompt_id"].to_pylist()
    assert sorted(kept) == sorted(asked)


class AtStep(logging.Handler):
    """Does something where the log shows a step."""

    def __init__(self, text: str, act: Callable[[], None]) -> None:
        super().__init__()
        self._text = text
        self._act = act

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self._act()


def kill() -> None:
    """Nothing after it happens."""
    raise KeyboardInterrupt


def tell() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupted(config: RlConfig, shards: Path, model: str, run: Path, step: int, how: Callable[[], None]) -> None:
    logger = logging.getLogger("train.metrics")
    at_step = AtStep(f"rl {step}/{config.steps}", how)
    logger.addHandler(at_step)
    logger.setLevel(logging.INFO)
    words = f"told to stop after {step} of {config.steps} steps; they are saved"
    try:
        with pytest.raises(KeyboardInterrupt) if how is kill else pytest.raises(UserError, match=words):
            train_rl(config, shards, model, run)
    finally:
        logger.removeHandler(at_step)
        logger.setLevel(logging.NOTSET)


@pytest.mark.parametrize("one_step_off", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one(digits_model: str, shards: Path, tmp_path: Path, one_step_off: bool):
    config = SMALL.model_copy(update={"one_step_off": one_step_off})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_rl(config, shards, digits_model, whole)
    for how, saved in ((kill, 2), (tell, 3)):
        interrupted(config, shards, digits_model, broken, 3, how)
        assert [path.name for path in broken.glob("step-*")] == [f"step-{saved:08d}"]
        assert [path.stem for path in broken.glob("ahead/*")] == [f"{saved:08d}"] * one_step_off
        assert not (broken / "final").exists()
    train_rl(config, shards, digits_model, broken)
    assert not list(broken.glob("ahead/*")), "weights that only a resumed run needs"
    assert_same_run(whole, broken)


def assert_same_run(whole: Path, broken: Path) -> None:
    """To the bit, but for the time it took."""
    expected, resumed = (load_file(run / "final" / "model.safetensors") for run in (whole, broken))
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    for table in ("rollouts", "verdicts", "rewards"):
        digests = [[parquet.facts(path).digest for path in parquet.table_files(run, table)] for run in (whole, broken)]
        assert digests[0] == digests[1]
        assert len(digests[0]) == 4
    timing = {"seconds", "sampling_s", "training_s", "memory_gb"}
    logs = [[{key: line[key] for key in line.keys() - timing} for line in metrics(run)] for run in (whole, broken)]
    assert logs[0] == logs[1]


def test_one_step_off_lags_by_one_update_and_compares_like_with_like(digits_model: str, shards: Path, tmp_path: Path):
    config = SMALL.model_copy(update={"one_step_off": True, "learning_rate": 1e-3, "max_mismatch": 1e-3})
    train_rl(config, shards, digits_model, tmp_path / "run")
    log = metrics(tmp_path / "run")
    assert max(line["mismatch_lagging"] for line in log) < 1e-4, "the weights that sampled are those before the update"
    assert log[0]["mismatch_mean"] < 1e-4, "nothing has moved yet"
    assert min(line["mismatch_mean"] for line in log[1:]) > 1e-3, "one update lies between, and does not stop the run"


def test_a_sampler_that_stays_behind_is_found_though_a_lag_is_expected(digits_model: str, shards: Path, tmp_path: Path):
    left = load_model(digits_model, max_length=64)
    sampler = TransformersSampler.from_model(left, load_tokenizer(digits_model), "left", max_model_len=64)
    config = SMALL.model_copy(update={"one_step_off": True, "max_mismatch": 1e-3})
    with pytest.raises(UserError, match="the sampler is not the policy"):
        train_rl(config, shards, digits_model, tmp_path / "run", sampler=sampler)
    assert len(metrics(tmp_path / "run")) == 2, "step 1 had the weights of the start, step 2 was to have them too"


def test_the_pilot_decides_what_is_asked_and_the_curriculum_in_which_order(
    digits_model: str, shards: Path, tmp_path: Path
):
    run = tmp_path / "run"
    config = SMALL.model_copy(update={"pilot": True, "steps": 1, "curriculum": True, "pilot_pass_rates": (0.01, 1.0)})
    config = config.model_copy(update={"pilot_samples": 8, "prompts_per_step": 1})
    train_rl(config, shards, digits_model, run)
    chosen = parquet.read_table(parquet.table_files(run / "pilot", "selections/split"), "selections/split").to_pylist()
    kept = {row["id"] for row in chosen if row["refusal"] is None}
    assert len(chosen) == 4
    assert kept
    (line,) = metrics(run)
    asked = parquet.read_table(parquet.table_files(run, "rollouts"), "rollouts")["prompt_id"].to_pylist()
    verdicts = parquet.read_table(parquet.table_files(run / "pilot", "verdicts"), "verdicts").to_pylist()
    correct = Counter(row["prompt_id"] for row in verdicts if row["verdict"] == "correct")
    assert set(asked) <= kept
    assert round(10 * correct[asked[0]] / 16) == max(round(10 * correct[one] / 16) for one in kept), "easy ones first"
    assert {"reward_easy", "reward_medium", "reward_hard"} & line.keys()


def test_a_finished_run_is_left_alone_and_another_config_is_refused(digits_model: str, shards: Path, tmp_path: Path):
    run = tmp_path / "run"
    config = SMALL.model_copy(update={"steps": 1})
    final = train_rl(config, shards, digits_model, run)
    stamp = (final / "model.safetensors").stat().st_mtime_ns
    assert train_rl(config, shards, digits_model, run) == final
    assert (final / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="group_size: 8 -> 4"):
        train_rl(config.model_copy(update={"group_size": 4}), shards, digits_model, run)


def test_a_sampler_that_is_not_the_policy_stops_the_run(digits_model: str, shards: Path, tmp_path: Path):
    stale = load_model(digits_model, max_length=64)
    with torch.no_grad():
        stale.get_input_embeddings().weight.add_(0.05 * torch.randn_like(stale.get_input_embeddings().weight))
    sampler = TransformersSampler.from_model(stale, load_tokenizer(digits_model), "stale", max_model_len=64)
    with pytest.raises(UserError, match="the sampler is not the policy"):
        train_rl(SMALL, shards, digits_model, tmp_path / "run", sampler=sampler)
    assert not (tmp_path / "run" / "final").exists()


@pytest.mark.parametrize(
    ("text", "logprob", "words", "hint"),
    [
        (r"\boxed{8}", -0.5, "4 all wrong", "easier prompts"),
        (r"\boxed{7}", -0.5, "4 all correct", "harder prompts"),
        (None, -0.5, r"4 unjudged; the sampler refused 32 \(9000 prompt tokens\)", "a larger `rl.max_length`"),
        (r"\boxed{7}", math.nan, "4 unjudged; the sampler's log-probabilities of 32 rollouts are not numbers", "fp32"),
    ],
)
def test_a_first_step_that_teaches_nothing_stops_with_an_explanation(
    digits_model: str, shards: Path, tmp_path: Path, text: str | None, logprob: float, words: str, hint: str
):
    sampler = ScriptedPolicy({problem: [text] for problem in PROBLEMS}, logprob)
    config = SMALL.model_copy(update={"max_rounds": 4, "max_group_size": 8})
    with pytest.raises(UserError, match=f"^step 1: none of 4 groups has signal: {words}$") as error:
        train_rl(config, shards, digits_model, tmp_path / "run", sampler=sampler)
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"one_step_off": True, "importance": "none"}, "trains on rollouts of older weights"),
        ({"curriculum": True}, "goes by the pass rates of prompts, and none of them has one"),
        ({"one_step_off": True, "sleep": True}, "the sampler never rests"),
    ],
)
def test_settings_that_cannot_do_what_they_say_are_refused(
    digits_model: str, shards: Path, tmp_path: Path, settings: dict, words: str
):
    with pytest.raises(UserError, match=words):
        train_rl(SMALL.model_copy(update=settings), shards, digits_model, tmp_path / "run")


def test_a_problem_that_is_never_solved_does_not_keep_a_master_from_ending(
    digits_model: str, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    # The policy gets three problems right from the second step on; the fourth has a wrong answer.
    texts = {problem: [r"\boxed{7}", r"\boxed{8}"] * 4 + [r"\boxed{7}"] * 1000 for problem in PROBLEMS[:3]}
    sampler = ScriptedPolicy({**texts, PROBLEMS[3]: [r"\boxed{8}"]})
    config = SMALL.model_copy(update={"prompts_per_step": 3, "max_group_size": 8, "save_every": 100})
    config = config.model_copy(update={"max_mismatch": math.inf})
    final = train_rl(config, shards, digits_model, tmp_path / "run", sampler=sampler)
    assert "none of 4 groups has signal: 3 all correct, 1 all wrong; training ends here" in caplog.text
    assert json.loads((final / "tracemill.json").read_text())["steps"] == 1, "of four"
    assert len(parquet.table_files(tmp_path / "run", "rewards")) == 2, "those of the last step, too"


def test_where_nothing_is_ever_right_again_the_steps_before_are_saved(digits_model: str, shards: Path, tmp_path: Path):
    sampler = ScriptedPolicy(
        {problem: [r"\boxed{7}", r"\boxed{8}"] * 4 + [r"\boxed{8}"] * 1000 for problem in PROBLEMS}
    )
    config = SMALL.model_copy(update={"prompts_per_step": 4, "max_group_size": 8, "max_mismatch": math.inf})
    with pytest.raises(UserError, match="step 2: none of 4 groups has signal: 4 all wrong"):
        train_rl(config.model_copy(update={"save_every": 100}), shards, digits_model, tmp_path / "run", sampler=sampler)
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-00000001"]


def test_told_to_stop_in_an_update_nothing_more_is_sampled(
    digits_model: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[int] = []
    sample = TransformersSampler.sample

    def counted(self: TransformersSampler, *given: Any, **named: Any) -> Any:
        asked.append(1)
        return sample(self, *given, **named)

    monkeypatch.setattr(TransformersSampler, "sample", counted)
    at_the_signal: list[int] = []

    def tell_and_count() -> None:
        at_the_signal.append(len(asked))
        tell()

    interrupted(SMALL, shards, digits_model, tmp_path / "run", 2, tell_and_count)
    assert [len(asked)] == at_the_signal


def test_a_model_is_not_sampled_beyond_its_positions(digits_model: str, shards: Path, tmp_path: Path):
    positions = AutoConfig.from_pretrained(digits_model).max_position_embeddings
    config = SMALL.model_copy(update={"max_length": 100 * positions, "max_tokens": 50 * positions, "steps": 1})
    opened: list[int] = []

    def opens(*given: Any, max_length: int, **named: Any) -> Any:
        opened.append(max_length)
        raise UserError("seen")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.grpo.open_policy_sampler", opens)
        with pytest.raises(UserError, match="seen"):
            train_rl(config, shards, digits_model, tmp_path / "run")
    assert opened == [positions]


def test_prompts_longer_than_the_context_stop_with_an_explanation(digits_model: str, shards: Path, tmp_path: Path):
    config = SMALL.model_copy(update={"max_length": 4})
    with pytest.raises(UserError, match=r"the sampler refused 32 \(\d+ prompt tokens, the model reads 4 with its"):
        train_rl(config, shards, digits_model, tmp_path / "run")


# --- one update -----------------------------------------------------------------------------------


def sampled_groups(folder: str, num_correct: tuple[int, ...], temperature: float) -> list[Group]:
    """Groups of four completions of a model, the first few of each declared correct."""
    model = load_model(folder, max_length=64)
    sampler = TransformersSampler.from_model(model, load_tokenizer(folder), "policy", max_model_len=64)
    groups = []
    for index, correct in enumerate(num_correct):
        prompt = Prompt(f"p{index}", ({"role": "user", "content": PROBLEMS[index]},), "mathematics", Question("7"))
        wanted = [Wanted(f"p{index}-{number}", prompt, number, 100 * index + number) for number in range(4)]
        requests = [Request(one.rollout_id, prompt.messages, one.seed) for one in wanted]
        config = SamplingConfig(temperature=temperature, top_p=1.0, max_tokens=3 + index)
        done = {result.id: result for result in sampler.sample(requests, config, logprobs=True)}
        group = Group(prompt, asked=4, refusal=None)
        for number, one in enumerate(wanted):
            completion = done[one.rollout_id]
            assert isinstance(completion, Completion)
            outcome = Outcome.CORRECT if number < correct else Outcome.INCORRECT
            group.samples.append(
                Sample(one, completion, split_reasoning(completion.text), Verdict(outcome, None, "test", "test@1"))
            )
        group.trained = list(group.samples)
        groups.append(group)
    return groups


def plain_update(folder: str, groups: list[Group], temperature: float) -> dict[str, torch.Tensor]:
    """The weights after one on-policy step of plain SGD, every rollout by itself through an ordinary forward pass."""
    model = load_model(folder, max_length=64)
    items = trained_rollouts(groups, UpdateConfig(), 64)
    num_tokens = sum(len(item.sampler_logprobs) for item in items)
    loss = torch.zeros(())
    for item in items:
        batch = collate([item.document])
        logprobs, _ = batch_logprobs(model, batch, temperature=temperature)
        loss = loss - item.advantage * logprobs.sum() / num_tokens
    loss.backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    update(model, optimizer, 0.1)
    return dict(model.named_parameters())


@pytest.mark.parametrize("micro_tokens", [1, 40, 10_000])
def test_one_on_policy_update_is_reinforce_however_it_is_cut(tmp_path: Path, micro_tokens: int):
    folder = str(tiny_model(tmp_path / "tiny", hidden_size=32, initializer_range=0.3))
    groups = sampled_groups(folder, (1, 2, 3), temperature=0.7)
    expected = plain_update(folder, groups, temperature=0.7)
    policy = load_model(folder, max_length=64)
    config = UpdateConfig(learning_rate=0.1, micro_tokens=micro_tokens, precision="fp32")
    log, _ = update_policy(
        policy, None, torch.optim.SGD(policy.parameters()), groups, config, temperature=0.7, max_tokens=8
    )
    for name, weight in policy.named_parameters():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=1e-4)
    assert log["mismatch_max"] < 1e-4
    assert log["clip_rate"] == 0


def test_the_temperature_of_the_sampler_is_the_trainers(tmp_path: Path):
    folder = str(tiny_model(tmp_path / "tiny", hidden_size=32, initializer_range=0.3))
    groups = sampled_groups(folder, (1,), temperature=0.7)
    policy = load_model(folder, max_length=64)
    before = copy.deepcopy(policy.state_dict())
    config = UpdateConfig(precision="fp32", max_mismatch=0.01)
    with pytest.raises(UserError, match="not the policy"):
        update_policy(policy, None, torch.optim.SGD(policy.parameters()), groups, config, temperature=1.0, max_tokens=8)
    assert all(torch.equal(before[name], weight) for name, weight in policy.state_dict().items())


def test_a_trainer_without_numbers_is_told_from_a_sampler_that_differs(tmp_path: Path):
    folder = str(tiny_model(tmp_path / "tiny", hidden_size=32))
    groups = sampled_groups(folder, (1,), temperature=1.0)
    policy = load_model(folder, max_length=64)
    with torch.no_grad():
        next(policy.parameters())[0] = math.nan
    optimizer, config = torch.optim.SGD(policy.parameters()), UpdateConfig(precision="fp32")
    with pytest.raises(UserError, match="the trainer's log-probabilities are not numbers"):
        update_policy(policy, None, optimizer, groups, config, temperature=1.0, max_tokens=8)


def test_several_updates_measure_the_old_policy_once_and_clip(tmp_path: Path):
    folder = str(tiny_model(tmp_path / "tiny", hidden_size=32, initializer_range=0.3))
    groups = sampled_groups(folder, (1, 2, 3), temperature=1.0)
    policy = load_model(folder, max_length=64)
    reference = load_model(folder, max_length=64)
    config = UpdateConfig(learning_rate=1e-2, updates_per_step=3, precision="fp32", kl_weight=0.1)
    optimizer = make_optimizer(policy, 1e-2)
    log, _ = update_policy(policy, reference, optimizer, groups, config, temperature=1.0, max_tokens=8)
    assert log["mismatch_max"] < 1e-4, "measured before the first update, not after"
    assert log["clip_rate"] > 0, "the second and third update are off-policy"
    assert log["kl"] > 0


def test_two_groups_of_other_sizes_keep_their_own_advantages(tmp_path: Path):
    folder = str(tiny_model(tmp_path / "tiny", hidden_size=32))
    groups = sampled_groups(folder, (2, 1), temperature=1.0)
    groups[0].trained = groups[0].samples[1:3]
    advantages = [item.advantage for item in trained_rollouts(groups, UpdateConfig(advantage="dr_grpo"), 64)]
    # One right and one wrong: 1, -1. One right of four: 1.5 and three times -0.5.
    assert advantages == pytest.approx([1, -1, 1.5, -0.5, -0.5, -0.5])


def test_rollouts_that_were_cut_off_can_be_left_out_or_made_to_cost(tmp_path: Path):
    folder = str(tiny_model(tmp_path / "tiny", hidden_size=32))
    groups = sampled_groups(folder, (2,), temperature=1.0)
    assert {sample.completion.finish_reason for sample in groups[0].samples} == {"length"}
    policy = load_model(folder, max_length=64)
    optimizer = torch.optim.SGD(policy.parameters())
    config = UpdateConfig(overlong="mask", precision="fp32")
    with pytest.raises(UserError, match="every rollout of the step was cut off"):
        update_policy(policy, None, optimizer, groups, config, temperature=1.0, max_tokens=3)
    # All are as long: the penalty is the same for each, so that advantages stay.
    penalised = trained_rollouts(groups, UpdateConfig(overlong="penalty"), 3)
    assert [item.advantage for item in penalised] == pytest.approx([1, 1, -1, -1])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # vLLM and what it imports warn about themselves
def test_vllm_is_the_policy_of_one_update_ago_after_every_update(digits_model: str, shards: Path, tmp_path: Path):
    # Its head is tied: vLLM on a CPU keeps a packed copy of it, which a careless update leaves stale.
    config = SMALL.model_copy(update={"engine": "vllm", "steps": 3, "max_mismatch": 1e-3, "one_step_off": True})
    train_rl(config, shards, digits_model, tmp_path / "run")
    log = metrics(tmp_path / "run")
    assert len(log) > 1
    assert log[-1]["kl"] > 1e-3, "the policy has moved"
    assert max(line["mismatch_lagging"] for line in log) < 1e-3
