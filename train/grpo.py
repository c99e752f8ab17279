"""GRPO: sample groups from the policy, reward them by verifier, and move towards what was right."""

import json
import logging
import os
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipelines.errors import UserError
from pipelines.sampling import Sampler
from train import checkpoint
from train.advantages import annealed_temperature
from train.ahead import Ahead, Ask
from train.grpo_update import UpdateConfig, sampler_mismatch, update_policy
from train.loop import stop_signal, stopped
from train.metrics import metrics_log
from train.model import default_device, load_model, load_tokenizer, usable_length
from train.monitors import Finding, Monitor, MonitorConfig, Watch
from train.optim import Schedule, learning_rate_at, make_optimizer
from train.pilot import PilotConfig, pilot
from train.policy_sampler import Current, PolicySamplerConfig, open_policy_sampler
from train.prompts import Prompt, load_prompts, write_prompts
from train.rollouts import StepRollouts, sample_step, step_sampling, write_rewards, write_samples
from train.step_report import describe, mastered, without_signal
from verifiers import VerifierPool

_log = logging.getLogger(__name__)


class RlConfig(PilotConfig, UpdateConfig, MonitorConfig, PolicySamplerConfig):
    """Reinforcement learning with verifiable reward; what is sampled and how it is learned from are in the bases."""

    steps: int = Field(100, ge=1)
    schedule: Schedule = "constant"
    """Of the learning rate over the steps, towards 0 (open)."""
    seed: int = 0
    reference: bool = True
    """Keep the starting policy in memory, so that its KL is logged every step."""
    max_length: int = Field(25600, ge=2)
    """Tokens of prompt and completion together (paper), for sampler and trainer."""
    save_every: int = Field(10, ge=1)
    """Steps between checkpoints: what a kill can cost; SIGTERM costs none."""

    def temperature(self, step: int) -> float:
        """At which a step samples, and is trained."""
        return annealed_temperature(step, self.steps, self.start_temperature, self.end_temperature, self.anneal_over)

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        return learning_rate_at(step, self.steps, self.learning_rate, 0.0, self.schedule)


def train_rl(
    config: RlConfig,
    shards: Path,
    model: str,
    out: Path,
    *,
    sampler: Sampler | None = None,
    device: str | None = None,
    replace: bool = False,
) -> Path:
    """Train `model` on the prompts of `shards/rl`; returns the trained model's folder, `out/final`.

    `out` also receives every rollout, verdict and reward, one file a step, and is a run directory itself: `curate
    annotate OUT` and `curate build-dpo-pairs OUT` make the pairs of another round. A run that was killed goes on
    from its last checkpoint and ends as if it had not been; SIGTERM saves the last finished step and ends it by a
    `UserError`. Prompts without signal are a `UserError`, but for prompts that the policy has come to master: these
    end the run. `sampler` stands in for the one that `config` would open, and is never given new weights.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("`train rl` trains in one process", hint="start it without torchrun")
    with ExitStack() as stack:
        stack.enter_context(checkpoint.run_folder(out))
        lineage = checkpoint.begin(out, "rl", config, shards, model, replace=replace)
        if (out / "final").is_dir():
            return out / "final"
        run, first_step = _open(stack, config, lineage, shards, model, out, sampler, device or default_device())
        log = stack.enter_context(metrics_log(out, "rl", config.steps, first_step, model=run.policy))
        monitor = Monitor(config, map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()))
        done = first_step
        for step in range(first_step, config.steps):
            started = time.monotonic()
            rollouts = _take(run, step)
            if not rollouts.used:
                break
            sampled = time.monotonic()
            row = {**describe(rollouts), **_learn(run, step, rollouts), "temperature": config.temperature(step)}
            log(step, **row, sampling_s=sampled - started, training_s=time.monotonic() - sampled)
            done = step + 1
            heed(monitor.look(row), config.stop_on, step)
            if done % config.save_every == 0 and done < config.steps:
                _save(run, done)
                _log.info("rl, from the first steps to the last: %s", monitor.course())
        checkpoint.save(out / "final", run.policy, run.tokenizer, lineage, step=done)
        if run.ahead is not None:
            run.ahead.forget()
        _log.info("rl is done, from the first steps to the last: %s", monitor.course())
    return out / "final"


@dataclass
class Run:
    """What a run holds while it goes on."""

    config: RlConfig
    lineage: Mapping[str, Any]
    out: Path
    policy: PreTrainedModel
    reference: PreTrainedModel | None
    optimizer: Optimizer
    tokenizer: PreTrainedTokenizerBase
    sampler_name: str
    ask: Ask
    ahead: Ahead | None
    stop: threading.Event
    cursor: int
    """Place of the next prompt, after the last finished step."""


def _open(
    stack: ExitStack,
    config: RlConfig,
    lineage: Mapping[str, Any],
    shards: Path,
    model: str,
    out: Path,
    sampler: Sampler | None,
    device: str,
) -> tuple[Run, int]:
    """The run at its latest checkpoint and the steps done by then; the pilot is over."""
    if config.one_step_off and config.importance == "none":
        raise UserError(
            "`rl.one_step_off` trains on rollouts of older weights, which nothing would mend",
            hint="another `rl.importance` than `none`",
        )
    if config.one_step_off and config.sleep:
        raise UserError("with `rl.one_step_off` the sampler never rests", hint="leave out `rl.sleep`")
    stop = stack.enter_context(stop_signal())
    prompts, tokenizer = load_prompts(shards), load_tokenizer(model)
    max_length = usable_length(model, config.max_length)
    policy = load_model(model, max_length=max_length, device=device)
    keep_reference = config.reference or config.kl_weight > 0
    reference = load_model(model, max_length=max_length, device=device) if keep_reference else None
    optimizer = make_optimizer(policy, config.learning_rate)
    first_step, extra = checkpoint.resume(out, policy, optimizer)
    ahead = Ahead(policy, out, first_step) if config.one_step_off else None
    current: Current = nullcontext
    if sampler is None:
        sampled = policy if ahead is None else ahead.lagging
        sampler, current = open_policy_sampler(
            config, model, sampled, tokenizer, max_length=max_length, precision=config.precision, out=out
        )
        stack.callback(sampler.close)
    pool = stack.enter_context(VerifierPool())
    if config.pilot:
        write_prompts(out / "pilot", shards, prompts)
        with current():
            prompts = pilot(sampler, pool, prompts, config, out, stop)
    if config.curriculum and all(prompt.pass_rate is None for prompt in prompts):
        raise UserError(
            "`rl.curriculum` goes by the pass rates of prompts, and none of them has one",
            hint="`train rl --pilot` measures them",
        )
    write_prompts(out, shards, prompts)
    if ahead is not None:
        stack.callback(ahead.close, stop)
    ask = _asker(config, sampler, current, pool, prompts, stop)
    cursor = extra.get("cursor", 0)
    name = sampler.model
    run = Run(config, lineage, out, policy, reference, optimizer, tokenizer, name, ask, ahead, stop, cursor)
    return run, first_step


def _asker(
    config: RlConfig,
    sampler: Sampler,
    current: Current,
    pool: VerifierPool,
    prompts: Sequence[Prompt],
    stop: threading.Event,
) -> Ask:
    """A function that samples a step from the weights of the moment."""

    def ask(step: int, cursor: int) -> StepRollouts | None:
        temperature = config.temperature(step)
        with current():
            return sample_step(
                sampler, pool, prompts, config, step=step, cursor=cursor, temperature=temperature, stop=stop
            )

    return ask


def _take(run: Run, step: int) -> StepRollouts:
    """The step's rollouts, stored; none is used where the policy has mastered the prompts, and training ends.

    A `UserError` if told to stop, with the steps before saved, or if there is nothing to learn.
    """
    if run.ahead is not None:
        rollouts = run.ahead.take(run.ask, step, run.cursor)
    else:
        rollouts = None if run.stop.is_set() else run.ask(step, run.cursor)
    if rollouts is None or run.stop.is_set():
        _save(run, step)
        raise stopped("rl", step, run.config.steps, run.out)
    sampling = step_sampling(run.config, run.config.temperature(step))
    write_samples(run.out, file_name(step), rollouts.samples, run.sampler_name, sampling, "rl", step=step)
    if not rollouts.used:
        write_rewards(run.out, file_name(step), rollouts.groups, {}, step)
        fault = without_signal(rollouts, step)
        if step == 0 or not mastered(rollouts):
            _save(run, step)
            raise fault
        _log.warning("%s; training ends here: %s", fault.message, fault.hint)
    return rollouts


def _learn(run: Run, step: int, rollouts: StepRollouts) -> dict[str, float]:
    """Move the policy by the step's rollouts, with `one_step_off` while the next step's are sampled.

    Returns what the update came to.
    """
    config, temperature, max_tokens = run.config, run.config.temperature(step), run.config.max_tokens
    row: dict[str, float] = {}
    if run.ahead is not None:
        row["mismatch_lagging"] = sampler_mismatch(
            run.ahead.lagging, rollouts.used, config, temperature=temperature, max_tokens=max_tokens
        )
        if step + 1 < config.steps:
            run.ahead.catch_up(run.policy)
            run.ahead.begin(run.ask, step + 1, rollouts.cursor)
    moved, advantages = update_policy(
        run.policy,
        run.reference,
        run.optimizer,
        rollouts.used,
        config,
        temperature=temperature,
        max_tokens=max_tokens,
        learning_rate=config.rate(step),
    )
    write_rewards(run.out, file_name(step), rollouts.groups, advantages, step)
    run.cursor = rollouts.cursor
    return row | moved


def file_name(step: int) -> str:
    """Of a step's rollouts, verdicts and rewards."""
    return f"{step:05d}.parquet"


def _save(run: Run, done: int) -> None:
    """A checkpoint of the first `done` steps; of none there is nothing to save."""
    folder = run.out / f"step-{done:08d}"
    if done == 0 or folder.is_dir():
        return
    if run.ahead is not None:
        run.ahead.keep(done)
    cursor = {"cursor": run.cursor}
    checkpoint.save(folder, run.policy, run.tokenizer, run.lineage, optimizer=run.optimizer, step=done, extra=cursor)
    if run.ahead is not None:
        run.ahead.forget(done)


def heed(findings: Iterable[Finding], stop_on: Collection[Watch], step: int) -> None:
    """Warn of what a monitor has found; what `stop_on` names is a `UserError`."""
    for finding in findings:
        words = f"step {step + 1}: {finding.words}"
        if finding.watch in stop_on:
            raise UserError(f"{words}, and `stop_on` names `{finding.watch}`", hint=finding.hint)
        _log.warning("%s: %s", words, finding.hint)
