import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from scripted_policy import ScriptedPolicy, sum_prompts

from pipelines import parquet
from pipelines.errors import UserError
from pipelines.tables import SHARDS
from train.prompts import load_prompts, prompts_from
from train.rollouts import RolloutConfig, sample_step, step_sampling, write_samples
from train.step_report import mastered, without_signal
from verifiers import VerifierPool

RIGHT = {f"{index} + 1": rf"\boxed{{{index + 1}}}" for index in range(8)}
WRONG = r"\boxed{-7}"
MIXED = {problem: [right, WRONG] for problem, right in RIGHT.items()}


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(num_workers=1) as pool:
        yield pool


def step_of(sampler, pool, number=4, *, step=0, cursor=0, temperature=1.0, **settings):
    config = RolloutConfig(**{"prompts_per_step": 2, "group_size": 4, "max_tokens": 64, **settings})
    prompts, stop = sum_prompts(number), threading.Event()
    return sample_step(sampler, pool, prompts, config, step=step, cursor=cursor, temperature=temperature, stop=stop)


def test_a_mixed_group_is_used_whole(pool):
    sampler = ScriptedPolicy(MIXED)
    rollouts = step_of(sampler, pool)
    assert [group.refusal for group in rollouts.groups] == [None, None]
    assert all(len(group.trained) == 4 for group in rollouts.used)
    assert [sample.wanted.sample_index for sample in rollouts.groups[0].samples] == [0, 1, 2, 3]
    assert sorted(sample.reward for sample in rollouts.groups[0].samples) == [-1.0, -1.0, 1.0, 1.0]
    assert rollouts.cursor == 2
    assert {config.top_p for _, config in sampler.asked} == {1.0}


def test_each_sample_has_its_own_id_and_seed_and_they_repeat(pool):
    first, second = ScriptedPolicy(MIXED), ScriptedPolicy(MIXED)
    step_of(first, pool)
    step_of(second, pool)
    assert [request for request, _ in first.asked] == [request for request, _ in second.asked]
    assert len({request.id for request, _ in first.asked}) == 8
    assert len({request.seed for request, _ in first.asked}) == 8
    other = ScriptedPolicy(MIXED)
    step_of(other, pool, step=1)
    assert not {request.id for request, _ in first.asked} & {request.id for request, _ in other.asked}


def test_groups_without_signal_are_replaced(pool):
    order = [prompt.messages[0]["content"] for _, prompt in prompts_from(sum_prompts(4), 0, seed=0)]
    easy = {**MIXED, order[0]: [RIGHT[order[0]]], order[1]: [RIGHT[order[1]], RIGHT[order[1]], RIGHT[order[1]], WRONG]}
    rollouts = step_of(ScriptedPolicy(easy), pool)
    assert [group.refusal for group in rollouts.groups] == ["all_correct", "too_easy", None, None]
    assert len(rollouts.used) == 2
    assert rollouts.cursor == 4


def test_a_hard_prompt_is_sampled_again_until_one_is_right(pool):
    order = [prompt.messages[0]["content"] for _, prompt in prompts_from(sum_prompts(4), 0, seed=0)]
    hard = {**MIXED, order[0]: [WRONG] * 9 + [RIGHT[order[0]]] + [WRONG] * 90}
    rollouts = step_of(ScriptedPolicy(hard), pool, max_group_size=16)
    group = rollouts.groups[0]
    # 4, then 8, then 16: the tenth is right. Balanced: it and one wrong one.
    assert (group.asked, len(group.samples), len(group.trained)) == (16, 16, 2)
    assert sum(sample.reward for sample in group.trained) == 0
    assert [sample.wanted.sample_index for sample in group.samples] == list(range(16))
    assert rollouts.cursor == 2, "the other group was used at once"


def test_a_hopeless_prompt_is_given_up_at_the_cap_and_replaced(pool):
    order = [prompt.messages[0]["content"] for _, prompt in prompts_from(sum_prompts(4), 0, seed=0)]
    hopeless = {**MIXED, order[0]: [WRONG]}
    rollouts = step_of(ScriptedPolicy(hopeless), pool, max_group_size=6)
    assert [(group.refusal, group.asked) for group in rollouts.groups] == [("all_wrong", 6), (None, 4), (None, 4)]


def test_rounds_are_bounded_and_a_step_without_signal_says_why(pool):
    sampler = ScriptedPolicy({problem: [right] for problem, right in RIGHT.items()})
    rollouts = step_of(sampler, pool, number=8, max_rounds=2)
    assert len(rollouts.groups) == 4, "two rounds of two prompts"
    assert mastered(rollouts)
    words = without_signal(rollouts, 7)
    assert words.message == "step 8: none of 4 groups has signal: 4 all correct"
    assert "harder prompts" in words.hint


def test_no_prompt_is_asked_twice_in_a_step(pool):
    sampler = ScriptedPolicy({problem: [right] for problem, right in RIGHT.items()})
    rollouts = step_of(sampler, pool, number=3, max_rounds=10, cursor=2)
    assert len({group.prompt.prompt_id for group in rollouts.groups}) == len(rollouts.groups) == 3


def test_without_rebalancing_all_judged_samples_are_used(pool):
    order = [prompt.messages[0]["content"] for _, prompt in prompts_from(sum_prompts(4), 0, seed=0)]
    texts = {**MIXED, order[0]: [RIGHT[order[0]], WRONG, WRONG, WRONG]}
    balanced = step_of(ScriptedPolicy(texts), pool)
    plain = step_of(ScriptedPolicy(texts), pool, rebalance=False)
    assert (len(balanced.groups[0].trained), len(plain.groups[0].trained)) == (2, 4)


def test_refusals_are_counted_and_the_rest_goes_on(pool):
    order = [prompt.messages[0]["content"] for _, prompt in prompts_from(sum_prompts(4), 0, seed=0)]
    rollouts = step_of(ScriptedPolicy({**MIXED, order[0]: [None]}), pool)
    assert [group.refusal for group in rollouts.groups] == ["unjudged", None, None]
    assert len(rollouts.refusals) == 4
    everything = step_of(ScriptedPolicy({problem: [None] for problem in RIGHT}), pool, number=2)
    assert not mastered(everything)
    assert "2 unjudged; the sampler refused 8 (9000 prompt tokens)" in without_signal(everything, 0).message


def test_log_probabilities_that_are_not_numbers_leave_the_rollout_out(pool):
    rollouts = step_of(ScriptedPolicy(MIXED, logprob=math.nan), pool)
    assert {group.refusal for group in rollouts.groups} == {"unjudged"}


def test_every_pass_is_another_shuffle_of_all_prompts():
    prompts = sum_prompts(5)
    passes = [[prompt.prompt_id for _, prompt in prompts_from(prompts, 5 * epoch, seed=0)] for epoch in range(3)]
    assert all(sorted(one) == sorted(prompt.prompt_id for prompt in prompts) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    places = [place for place, _ in prompts_from(prompts, 3, seed=0)]
    assert places[:2] == [4, 5]
    assert len(places) == 5, "the next shuffle skips what has come"


def test_a_curriculum_goes_from_easy_to_hard_with_a_shuffle_among_equals():
    rates = (0.1, None, 0.9, 0.52, 0.48, None, 0.9, 0.9)
    prompts = [replace(prompt, pass_rate=rate) for prompt, rate in zip(sum_prompts(8), rates, strict=True)]
    passes = [[prompt for _, prompt in prompts_from(prompts, 8 * epoch, seed=0, curriculum=True)] for epoch in range(3)]
    for one in passes:
        bands = [None if prompt.pass_rate is None else round(10 * prompt.pass_rate) for prompt in one]
        assert bands == [9, 9, 9, 5, 5, 1, None, None]
    assert len({tuple(prompt.prompt_id for prompt in one) for one in passes}) > 1
    difficulties = [prompt.difficulty for prompt in passes[0]]
    assert difficulties == ["easy"] * 3 + ["medium"] * 2 + ["hard", None, None]


def test_rollouts_and_verdicts_are_stored_side_by_side(pool, tmp_path: Path):
    order = [prompt.messages[0]["content"] for _, prompt in prompts_from(sum_prompts(4), 0, seed=0)]
    texts = {**MIXED, order[0]: [f"<think>\neasy\n</think>\n\n{RIGHT[order[0]]}", "so it is..."]}
    rollouts = step_of(ScriptedPolicy(texts), pool, temperature=0.75)
    sampling = step_sampling(RolloutConfig(max_tokens=64), 0.75)
    write_samples(tmp_path, "00003.parquet", rollouts.samples, "scripted", sampling, "rl", step=3)
    stored = parquet.read_table(tmp_path / "rollouts" / "00003.parquet", "rollouts").to_pylist()
    verdicts = parquet.read_table(tmp_path / "verdicts" / "00003.parquet", "verdicts").to_pylist()
    assert len(stored) == 8
    assert [row["rollout_id"] for row in stored] == [row["rollout_id"] for row in verdicts]
    assert (stored[0]["reasoning"], stored[0]["response"]) in {("easy", RIGHT[order[0]]), (None, "so it is...")}
    assert {row["step"] for row in stored} == {3}
    assert {row["temperature"] for row in stored} == {0.75}
    assert {row["finish_reason"] for row in stored} == {"stop", "length"}
    assert {row["verdict"] for row in verdicts} == {"correct", "incorrect", "no_answer"}


def test_prompts_come_from_the_rl_shards(tmp_path: Path):
    row = {
        "prompt": [{"role": "user", "content": "2 + 2"}],
        "answer": "4",
        "choices": None,
        "verifier": "mathematics",
        "pass_rate": 0.5,
        "prompt_id": "p",
        "source": "test",
    }
    table = pa.Table.from_pylist([row, {**row, "prompt_id": "a", "choices": ["3", "4"]}], schema=SHARDS["rl"])
    parquet.write_file(tmp_path / "shards" / "rl" / "00000.parquet", "shards/rl", [table])
    first, second = load_prompts(tmp_path)
    assert (first.prompt_id, first.question.choices) == ("a", ("3", "4"))
    assert (second.messages, second.question.answer) == (({"role": "user", "content": "2 + 2"},), "4")
    parquet.write_file(tmp_path / "shards" / "rl" / "00000.parquet", "shards/rl", [SHARDS["rl"].empty_table()])
    with pytest.raises(UserError, match="0 prompts"):
        load_prompts(tmp_path)
    with pytest.raises(UserError, match="no run directory"):
        load_prompts(tmp_path / "missing")
