"""Groups of rollouts from the current policy, with token ids, log-probabilities, verdicts and rewards."""

import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from pipelines import parquet
from pipelines.config import Config
from pipelines.progress import progress
from pipelines.reasoning import Reasoning, split_reasoning
from pipelines.sampling import Completion, Refusal, Request, Sampler, SamplingConfig
from pipelines.tables import REWARDS, ROLLOUTS, VERDICT_LABELS, content_id, rollout_id
from train.advantages import group_refusal, rebalanced
from train.prompts import Prompt, prompts_from
from verifiers import Job, Verdict, VerifierPool, reward

_SECONDS_A_FILE = 60.0
_SAMPLES_A_FILE = 1024
"""Samples are stored when this many, or this much time, has come together: what a kill can cost."""


class RolloutConfig(Config):
    """What the policy is asked in one step, and which groups it learns from."""

    prompts_per_step: int = Field(64, ge=1)
    """Groups in one update; groups without signal are replaced by further prompts."""
    group_size: int = Field(8, ge=2)
    """Rollouts of a prompt in its first round."""
    max_group_size: int = Field(32, ge=2)
    """A group without a correct rollout is doubled up to this; `group_size` turns it off."""
    max_rounds: int = Field(10, ge=1)
    """Rounds of sampling in one step, to fill the update; after the last it takes the groups there are."""
    rebalance: bool = True
    """Train on every correct rollout and as many incorrect ones."""
    max_pass_rate: float = Field(0.5, gt=0, le=1)
    """Groups with a higher share of correct rollouts are replaced; 1 keeps them."""
    max_tokens: int = Field(16384, ge=1)
    """New tokens of a rollout at most."""
    start_temperature: float = Field(1.0, gt=0)
    end_temperature: float = Field(0.6, gt=0)
    anneal_over: float = Field(0.5, ge=0, le=1)
    """Share of the steps over which the temperature falls."""
    curriculum: bool = False
    """Ask prompts from easy to hard, by their pass rate; see `prompts.prompts_from`."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A sample still to be taken; its id and seed are known before."""

    rollout_id: str
    prompt: Prompt
    sample_index: int
    seed: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample taken and judged."""

    wanted: Wanted
    completion: Completion
    reasoning: Reasoning
    verdict: Verdict

    @property
    def is_finite(self) -> bool:
        """Whether the sampler's log-probabilities are numbers."""
        return all(math.isfinite(logprob) for logprob in self.completion.logprobs)

    @property
    def reward(self) -> float | None:
        """The verdict's reward; None where it says nothing, or the sampler's log-probabilities are not numbers."""
        return reward(self.verdict.outcome) if self.is_finite else None


@dataclass(slots=True)
class Group:
    """All samples of one prompt in one step."""

    prompt: Prompt
    samples: list[Sample] = field(default_factory=list)
    asked: int = 0
    """Samples asked for so far; those refused are missing from `samples`."""
    refusal: str | None = "unjudged"
    """Why it is not trained on (see `advantages.group_refusal`); None where it is."""
    trained: list[Sample] = field(default_factory=list)
    """The samples the update takes."""


@dataclass(frozen=True, slots=True)
class StepRollouts:
    """Everything one step sampled. `cursor` is the next prompt's place in the endless order."""

    groups: list[Group]
    refusals: list[Refusal]
    cursor: int

    @property
    def used(self) -> list[Group]:
        """The groups with signal, in prompt order."""
        return [group for group in self.groups if group.refusal is None]

    @property
    def samples(self) -> list[Sample]:
        return [sample for group in self.groups for sample in group.samples]


# --- sampling -------------------------------------------------------------------------------------


def sample_step(
    sampler: Sampler,
    pool: VerifierPool,
    prompts: Sequence[Prompt],
    config: RolloutConfig,
    *,
    step: int,
    cursor: int,
    temperature: float,
    stop: threading.Event,
) -> StepRollouts | None:
    """Groups from the current policy until `prompts_per_step` of them have signal, in at most `max_rounds` rounds.

    Each round doubles the groups without a correct rollout and draws new prompts in the place of
    groups that cannot teach. A prompt is asked once a step at most. None if told to `stop` before it was whole.
    """
    sampling = step_sampling(config, temperature)
    identity = {**sampling.resolved(), "seed": config.seed, "step": step}
    fresh = prompts_from(prompts, cursor, config.seed, curriculum=config.curriculum)
    groups: list[Group] = []
    refusals: list[Refusal] = []
    for _ in range(config.max_rounds):
        growing = [g for g in groups if g.refusal == "all_wrong" and g.asked < config.max_group_size]
        num_used = sum(group.refusal is None for group in groups)
        if num_used == config.prompts_per_step:
            break
        asking = {group.prompt.prompt_id: group for group in growing}
        for place, prompt in islice(fresh, config.prompts_per_step - num_used - len(growing)):
            cursor, asking[prompt.prompt_id] = place, Group(prompt)
        groups += [group for group in asking.values() if not group.asked]
        wanted = [
            wanted_sample(group.prompt, sampler.model, identity, index)
            for group in asking.values()
            for index in range(group.asked, _next_size(group, config))
        ]
        for result in judged_samples(sampler, pool, wanted, sampling, logprobs=True):
            if stop.is_set():
                return None
            if isinstance(result, Refusal):
                refusals.append(result)
            else:
                asking[result.wanted.prompt.prompt_id].samples.append(result)
        for group in asking.values():
            group.asked = _next_size(group, config)
            _settle(group, config)
    return StepRollouts(groups, refusals, cursor)


def step_sampling(config: RolloutConfig, temperature: float) -> SamplingConfig:
    """How a step samples. `top_p` stays 1: a truncated distribution's log-probabilities are not the policy's."""
    return SamplingConfig(temperature=temperature, top_p=1.0, max_tokens=config.max_tokens)


def _next_size(group: Group, config: RolloutConfig) -> int:
    return min(2 * group.asked, config.max_group_size) if group.asked else config.group_size


def wanted_sample(prompt: Prompt, model: str, identity: dict[str, Any], sample_index: int) -> Wanted:
    """A sample of `prompt`, its id and seed made from all that it depends on; `identity` holds the run's `seed`."""
    sample_id = rollout_id(prompt.prompt_id, model, identity, sample_index)
    return Wanted(sample_id, prompt, sample_index, sample_seed(sample_id, identity["seed"]))


def sample_seed(sample_id: str, seed: int) -> int:
    """Seed of one sample, below 2^63: a function of the run's seed and the sample's id."""
    return int(content_id("seed", seed, sample_id)[:15], 16)


def _settle(group: Group, config: RolloutConfig) -> None:
    """Say whether a group has signal, and which of its samples are trained on."""
    # Samples finish in any order.
    group.samples.sort(key=lambda sample: sample.wanted.sample_index)
    rewards = [sample.reward for sample in group.samples]
    group.refusal = group_refusal(rewards, config.max_pass_rate)
    if group.refusal is not None:
        return
    if config.rebalance:
        ids = [sample.wanted.rollout_id for sample in group.samples]
        group.trained = [group.samples[index] for index in rebalanced(rewards, ids, config.seed)]
    else:
        group.trained = [sample for sample in group.samples if sample.reward is not None]


def judged_samples(
    sampler: Sampler,
    pool: VerifierPool,
    wanted: Sequence[Wanted],
    sampling: SamplingConfig,
    *,
    logprobs: bool = False,
) -> Iterator[Sample | Refusal]:
    """Every wanted sample with its verdict, in the order in which the sampler finishes; verified while it samples.

    If the sampler fails, what it has finished is judged and given first.
    """
    by_id = {one.rollout_id: one for one in wanted}
    requests = (Request(one.rollout_id, one.prompt.messages, one.seed) for one in wanted)
    judging: deque[tuple[Wanted, Completion, Reasoning]] = deque()
    refused: deque[Refusal] = deque()
    failures: list[Exception] = []

    def finished() -> Iterator[Completion | Refusal]:
        try:
            yield from sampler.sample(requests, sampling, logprobs=logprobs)
        except Exception as error:
            failures.append(error)

    def jobs() -> Iterator[Job]:
        for completion in finished():
            if isinstance(completion, Refusal):
                refused.append(completion)
                continue
            one = by_id[completion.id]
            parts = split_reasoning(
                completion.text, finish_reason=completion.finish_reason, opened=completion.opens_reasoning
            )
            judging.append((one, completion, parts))
            yield Job(one.prompt.verifier, one.prompt.question, parts.response)

    for verdict in pool.verify(jobs()):
        yield Sample(*judging.popleft(), verdict)
    assert not judging, "a verdict for every completion"
    yield from refused
    for failure in failures:
        raise failure


# --- tables ---------------------------------------------------------------------------------------


def store_samples(
    root: Path,
    sampler: Sampler,
    pool: VerifierPool,
    missing: Sequence[Wanted],
    sampling: SamplingConfig,
    source: str,
    *,
    stop: threading.Event | None = None,
    judged_by: str = "",
) -> list[Refusal]:
    """Take the `missing_samples` of `root` and store them there, file by file.

    Returns what the sampler refused. If told to `stop`, or if the sampler fails, what was taken by then is stored.
    `judged_by` as in `write_samples`.
    """
    taken: list[Sample] = []
    refused: list[Refusal] = []
    stored = parquet.table_files(root, "verdicts")
    number, stored_at = (int(stored[-1].stem) + 1 if stored else 0), time.monotonic()

    def store() -> None:
        # Rollouts that a kill left without verdicts are written over.
        write_samples(root, f"{number:05d}.parquet", taken, sampler.model, sampling, source, judged_by=judged_by)

    try:
        with progress(source, len(missing), "samples") as advance:
            for result in judged_samples(sampler, pool, missing, sampling):
                advance()
                if isinstance(result, Refusal):
                    refused.append(result)
                else:
                    taken.append(result)
                if stop is not None and stop.is_set():
                    break
                if len(taken) >= _SAMPLES_A_FILE or (taken and time.monotonic() - stored_at > _SECONDS_A_FILE):
                    store()
                    taken, number, stored_at = [], number + 1, time.monotonic()
    finally:
        if taken:
            store()
    return refused


def missing_samples(root: Path, wanted: Iterable[Wanted]) -> list[Wanted]:
    """Those of the `wanted` samples that are not stored in `root` with a verdict."""
    verdicts = parquet.table_files(root, "verdicts")
    stored = set(parquet.read_table(verdicts, "verdicts", ["rollout_id"])["rollout_id"].to_pylist())
    return [one for one in wanted if one.rollout_id not in stored]


def write_samples(
    root: Path,
    name: str,
    samples: Sequence[Sample],
    model: str,
    sampling: SamplingConfig,
    source: str,
    *,
    step: int | None = None,
    judged_by: str = "",
) -> None:
    """Write `samples` as file `name` of the `rollouts` and the `verdicts` of `root`, each whole or not at all.

    `judged_by` goes into the footer of the verdicts, as what they were made from.
    """
    verdicts = verdict_table((one.wanted.rollout_id, one.wanted.prompt.prompt_id, one.verdict) for one in samples)
    parquet.write_file(root / "rollouts" / name, "rollouts", [_rollouts(samples, model, sampling, source, step)])
    parquet.write_file(root / "verdicts" / name, "verdicts", [verdicts], judged_by)


def _rollouts(
    samples: Sequence[Sample], model: str, sampling: SamplingConfig, source: str, step: int | None
) -> pa.Table:
    same_in_all = {
        "model": model,
        "sampling_id": content_id("sampling", sampling.resolved()),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "step": step,
        "upstream_label": None,
        "source": source,
        "source_id": None,
    }
    rows = [
        {
            **same_in_all,
            "rollout_id": sample.wanted.rollout_id,
            "prompt_id": sample.wanted.prompt.prompt_id,
            "sample_index": sample.wanted.sample_index,
            "seed": sample.wanted.seed,
            "reasoning": sample.reasoning.reasoning,
            "response": sample.reasoning.response,
            "reasoning_form": sample.reasoning.form,
            "finish_reason": sample.completion.finish_reason,
            "prompt_tokens": sample.completion.prompt_tokens,
            "completion_tokens": sample.completion.completion_tokens,
        }
        for sample in samples
    ]
    return pa.Table.from_pylist(rows, schema=ROLLOUTS)


def write_rewards(root: Path, name: str, groups: Sequence[Group], advantages: Mapping[str, float], step: int) -> None:
    """Write what a step made of its samples as file `name` of the `rewards` of `root`; `advantages` by rollout id."""
    rows = [
        {
            "rollout_id": sample.wanted.rollout_id,
            "prompt_id": group.prompt.prompt_id,
            "step": step,
            "reward": sample.reward,
            "advantage": advantages.get(sample.wanted.rollout_id),
            "group_refusal": group.refusal,
            "logprob": sum(sample.completion.logprobs),
        }
        for group in groups
        for sample in group.samples
    ]
    parquet.write_file(root / "rewards" / name, "rewards", [pa.Table.from_pylist(rows, schema=REWARDS)])


def verdict_table(verdicts: Iterable[tuple[str, str, Verdict]]) -> pa.Table:
    """Rows of `verdicts` from (rollout id, prompt id, verdict)."""
    rows = [
        {
            "rollout_id": rollout,
            "prompt_id": prompt,
            "verdict": verdict.outcome.value,
            "extracted": verdict.extracted,
            "rule": verdict.rule,
            "verifier": verdict.verifier,
        }
        for rollout, prompt, verdict in verdicts
    ]
    return pa.Table.from_pylist(rows, schema=VERDICT_LABELS)
