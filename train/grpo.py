"""GRPO: sample groups from the policy, reward them by verifier, and move towards what was right."""

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from pydantic import Field

from pipelines.errors import UserError
from pipelines.sampling import Sampler
from train import checkpoint
from train.advantages import annealed_temperature
from train.grpo_update import UpdateConfig, update_policy
from train.metrics import metrics_log
from train.model import default_device, load_model, load_tokenizer
from train.monitors import Finding, Monitor, MonitorConfig, Watch
from train.optim import make_optimizer
from train.policy_sampler import PolicySamplerConfig, Refresh, open_policy_sampler
from train.rollouts import (
    Group,
    RolloutConfig,
    StepRollouts,
    load_prompts,
    mastered,
    sample_step,
    step_sampling,
    without_signal,
    write_prompts,
    write_rewards,
    write_samples,
)
from verifiers import VerifierPool

_log = logging.getLogger(__name__)


class RlConfig(RolloutConfig, UpdateConfig, MonitorConfig, PolicySamplerConfig):
    """Reinforcement learning with verifiable reward; what is sampled and how it is learned from are in the bases."""

    steps: int = Field(100, ge=1)
    seed: int = 0
    reference: bool = True
    """Keep the starting policy in memory, so that its KL is logged every step."""
    max_length: int = Field(25600, ge=2)
    """Tokens of prompt and completion together (paper), for sampler and trainer."""
    save_every: int = Field(10, ge=1)
    """Steps between checkpoints: what a kill can cost."""


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
    from its last checkpoint and ends as if it had not been. Prompts without signal are a `UserError`, but for
    prompts that the policy has come to master: these end the run. `sampler` stands in for the one that
    `config` would open, and is never given new weights.
    """
    with ExitStack() as stack:
        stack.enter_context(checkpoint.run_folder(out))
        lineage = checkpoint.begin(out, "rl", config, shards, model, replace=replace)
        if (out / "final").is_dir():
            return out / "final"
        prompts = load_prompts(shards)
        write_prompts(out, shards, prompts)
        tokenizer = load_tokenizer(model)
        device = device or default_device()
        policy = load_model(model, max_length=config.max_length, device=device)
        keep_reference = config.reference or config.kl_weight > 0
        reference = load_model(model, max_length=config.max_length, device=device) if keep_reference else None
        optimizer = make_optimizer(policy, config.learning_rate)
        first_step, extra = checkpoint.resume(out, policy, optimizer)
        cursor = extra.get("cursor", 0)
        refresh: Refresh | None = None
        if sampler is None:
            sampler, refresh = open_policy_sampler(
                config, model, policy, tokenizer, max_length=config.max_length, precision=config.precision
            )
            stack.callback(sampler.close)
        pool = stack.enter_context(VerifierPool())
        log = stack.enter_context(metrics_log(out, "rl", config.steps, first_step, model=policy))
        monitor = Monitor(config)
        for step in range(first_step, config.steps):
            started = time.monotonic()
            temperature = annealed_temperature(
                step, config.steps, config.start_temperature, config.end_temperature, config.anneal_over
            )
            if refresh is not None:
                refresh()
            rollouts = sample_step(sampler, pool, prompts, config, step=step, cursor=cursor, temperature=temperature)
            sampling = step_sampling(config, temperature)
            write_samples(out, f"{step:05d}.parquet", rollouts.samples, sampler.model, sampling, "rl", step=step)
            if not rollouts.used:
                fault = without_signal(rollouts, step)
                if step == 0 or not mastered(rollouts):
                    raise fault
                _log.warning("%s; training ends here: %s", fault.message, fault.hint)
                break
            sampled = time.monotonic()
            moved, advantages = update_policy(
                policy,
                reference,
                optimizer,
                rollouts.used,
                config,
                temperature=temperature,
                max_tokens=config.max_tokens,
            )
            write_rewards(out, f"{step:05d}.parquet", rollouts.groups, advantages, step)
            cursor = rollouts.cursor
            times = {"sampling_s": sampled - started, "training_s": time.monotonic() - sampled}
            described = {**describe(rollouts), **moved}
            log(step, **described, temperature=temperature, **times)
            heed(monitor.look(described), config.stop_on, step)
            if (step + 1) % config.save_every == 0 and step + 1 < config.steps:
                folder, cursors = out / f"step-{step + 1:08d}", {"cursor": cursor}
                checkpoint.save(folder, policy, tokenizer, lineage, optimizer=optimizer, step=step + 1, extra=cursors)
        checkpoint.save(out / "final", policy, tokenizer, lineage, step=config.steps)
    return out / "final"


def heed(findings: Iterable[Finding], stop_on: Collection[Watch], step: int) -> None:
    """Warn of what a monitor has found; what `stop_on` names is a `UserError`."""
    for finding in findings:
        words = f"step {step + 1}: {finding.words}"
        if finding.watch in stop_on:
            raise UserError(f"{words}, and `stop_on` names `{finding.watch}`", hint=finding.hint)
        _log.warning("%s: %s", words, finding.hint)


# --- words for the log ----------------------------------------------------------------------------


def describe(rollouts: StepRollouts) -> dict[str, float]:
    """What one step sampled, in numbers: the same columns every step."""
    samples = rollouts.samples
    rewards = [sample.reward for sample in samples if sample.reward is not None]
    lengths = [len(sample.completion.token_ids) for sample in samples]
    refusals = Counter(group.refusal for group in rollouts.groups)
    return {
        "reward": float(np.mean(rewards)),
        "pass_rate": float(np.mean([reward > 0 for reward in rewards])),
        "rollouts": len(samples),
        "unjudged": len(samples) - len(rewards),
        "groups_used": refusals[None],
        "groups_all_wrong": refusals["all_wrong"],
        "groups_all_correct": refusals["all_correct"],
        "groups_too_easy": refusals["too_easy"],
        "groups_unjudged": refusals["unjudged"],
        "refused": len(rollouts.refusals),
        "length_mean": float(np.mean(lengths)),
        "length_spread": float(np.mean([_length_spread(group) for group in rollouts.groups if group.samples])),
        "truncation_rate": float(np.mean([sample.completion.finish_reason == "length" for sample in samples])),
    }


def _length_spread(group: Group) -> float:
    """Standard deviation of a group's lengths relative to their mean."""
    lengths = [len(sample.completion.token_ids) for sample in group.samples]
    return float(np.std(lengths) / np.mean(lengths))
