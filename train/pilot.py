"""The pilot: which prompts the policy that a run starts from answers at even lengths.

The first remedy of arXiv:2504.21233 (section 4), whose metric and threshold are not published. Everything is below
`OUT/pilot`, a run directory of its own: `rollouts` and `verdicts`, and in `selections/split` why a prompt was refused.
"""

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from pipelines import parquet
from pipelines.commands import table_text
from pipelines.errors import UserError
from pipelines.sampling import Sampler
from pipelines.tables import SELECTIONS
from train.prompts import Prompt
from train.rollouts import RolloutConfig, missing_samples, step_sampling, store_samples, wanted_sample
from verifiers import Outcome, VerifierPool, reward

_log = logging.getLogger(__name__)


class PilotConfig(RolloutConfig):
    """Which prompts are worth a run."""

    pilot: bool = False
    """Sample every prompt before the first step, and ask only those of even length (`train rl --pilot`)."""
    pilot_rounds: int = Field(2, ge=1)
    """Rounds of sampling; a prompt whose lengths are uneven after one is not asked in the next."""
    pilot_samples: int = Field(4, ge=2)
    """Rollouts of a prompt in one round."""
    max_length_ratio: float = Field(2.0, ge=1)
    """Highest p90 / p10 of the tokens of a prompt's rollouts in the pilot."""
    pilot_pass_rates: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest pass rate that the pilot keeps."""

    @field_validator("pilot_pass_rates")
    @classmethod
    def _in_order(cls, rates: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= rates[0] <= rates[1] <= 1:
            raise ValueError("two shares from 0 to 1, the lower one first")
        return rates


@dataclass(slots=True)
class Trial:
    """What the pilot saw of one prompt."""

    lengths: list[int] = field(default_factory=list)
    """Tokens of each rollout."""
    rewards: list[float] = field(default_factory=list)
    """Of those that a verifier could judge."""

    @property
    def length_ratio(self) -> float:
        """p90 / p10 of the lengths, interpolated as in `curate annotate`."""
        low, high = np.quantile(np.maximum(self.lengths, 1), [0.1, 0.9])
        return float(high / low)

    @property
    def pass_rate(self) -> float | None:
        return fmean(reward > 0 for reward in self.rewards) if self.rewards else None

    def refusal(self, config: PilotConfig) -> str | None:
        """Why its prompt is not trained on, in the words of `curate split`; None where it is."""
        low, high = config.pilot_pass_rates
        if not self.lengths:
            return "no_rollouts"
        if self.length_ratio > config.max_length_ratio:
            return "uneven_lengths"
        if self.pass_rate is None:
            return "unjudged"
        if self.pass_rate < low:
            return "pass_rate_low"
        return "pass_rate_high" if self.pass_rate > high else None


def pilot(
    sampler: Sampler,
    pool: VerifierPool,
    prompts: Sequence[Prompt],
    config: PilotConfig,
    out: Path,
    stop: threading.Event,
) -> list[Prompt]:
    """Those of `prompts` that the sampler, at the start temperature, answers at even lengths, with their pass rates.

    A pilot that was killed, or told to `stop` (a `UserError`), goes on with the samples that are missing; a finished
    one is read from `out/pilot`.
    """
    root = out / "pilot"
    chosen = root / "selections" / "split" / "00000.parquet"
    if not chosen.is_file():
        _sample(sampler, pool, prompts, config, root, stop)
    trials = _trials(root, prompts, config.pilot_rounds * config.pilot_samples)
    refusals = {prompt_id: trial.refusal(config) for prompt_id, trial in trials.items()}
    if not chosen.is_file():
        picture = _draw(root / "lengths.png", trials, refusals, config.max_length_ratio)
        rows = [{"stage": "rl", "id": one, "prompt_id": one, "refusal": why} for one, why in refusals.items()]
        parquet.write_file(chosen, "selections/split", [pa.Table.from_pylist(rows, schema=SELECTIONS)])
        _log.info("pilot: %d prompts\n%s\npicture: %s", len(prompts), table_text(_table(trials, refusals)), picture)
    kept = [prompt for prompt in prompts if refusals[prompt.prompt_id] is None]
    if not kept:
        counts = ", ".join(f"{number} {why}" for why, number in Counter(refusals.values()).most_common())
        raise UserError(
            f"the pilot keeps none of {len(prompts)} prompts: {counts}",
            hint="a larger `rl.max_length_ratio` or wider `rl.pilot_pass_rates`, with `--replace`; or other prompts",
        )
    return [replace(prompt, pass_rate=trials[prompt.prompt_id].pass_rate) for prompt in kept]


def _sample(
    sampler: Sampler,
    pool: VerifierPool,
    prompts: Sequence[Prompt],
    config: PilotConfig,
    root: Path,
    stop: threading.Event,
) -> None:
    """Round by round, whatever is missing in `root`."""
    sampling = step_sampling(config, config.start_temperature)
    identity = {**sampling.resolved(), "seed": config.seed, "step": "pilot"}
    for stored in range(0, config.pilot_rounds * config.pilot_samples, config.pilot_samples):
        trials = _trials(root, prompts, stored)
        asked = [one for one in prompts if not stored or trials[one.prompt_id].refusal(config) != "uneven_lengths"]
        indices = range(stored, stored + config.pilot_samples)
        wanted = [wanted_sample(prompt, sampler.model, identity, index) for prompt in asked for index in indices]
        missing = missing_samples(root, wanted)
        refused = store_samples(root, sampler, pool, missing, sampling, "pilot", stop=stop)
        if stop.is_set():
            raise UserError(
                f"rl was told to stop in its pilot; what was sampled is stored in `{root}`",
                hint="the same command goes on from there",
            )
        if refused:
            _log.warning("pilot: the sampler refused %d of %d (%s)", len(refused), len(wanted), refused[0].detail)


def _trials(root: Path, prompts: Sequence[Prompt], num_samples: int) -> dict[str, Trial]:
    """What is stored of each prompt's first `num_samples` samples, by prompt id in the order of `prompts`."""
    trials = {prompt.prompt_id: Trial() for prompt in prompts}
    files = parquet.table_files(root, "verdicts")
    verdicts = parquet.read_table(files, "verdicts", ["verdict"]).to_pylist()
    # A rollouts file without its verdicts is one that a kill left; where both are there, their rows are aligned.
    columns = ["prompt_id", "sample_index", "completion_tokens"]
    rollouts = parquet.read_table([root / "rollouts" / path.name for path in files], "rollouts", columns).to_pylist()
    for rollout, verdict in zip(rollouts, verdicts, strict=True):
        if rollout["sample_index"] < num_samples:
            trial = trials[rollout["prompt_id"]]
            trial.lengths.append(rollout["completion_tokens"])
            if (rewarded := reward(Outcome(verdict["verdict"]))) is not None:
                trial.rewards.append(rewarded)
    return trials


# --- words and picture ----------------------------------------------------------------------------


def _table(trials: Mapping[str, Trial], refusals: Mapping[str, str | None]) -> list[dict[str, Any]]:
    """A row for the prompts that are kept, and one for each reason why others are not."""
    rows = []
    for why, number in Counter(refusals.values()).most_common():
        group = [trial for prompt_id, trial in trials.items() if refusals[prompt_id] == why]
        rates = [trial.pass_rate for trial in group if trial.pass_rate is not None]
        ratios = [trial.length_ratio for trial in group if trial.lengths]
        rows.append(
            {
                "outcome": why or "kept",
                "prompts": number,
                "rollouts": sum(len(trial.lengths) for trial in group),
                "p90/p10": median(ratios) if ratios else None,
                "pass rate": fmean(rates) if rates else None,
            }
        )
    return rows


def _draw(path: Path, trials: Mapping[str, Trial], refusals: Mapping[str, str | None], limit: float) -> Path:
    """Spread of lengths before and after: p90 / p10 of each prompt, and each rollout against its prompt's median."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    before = [trial for trial in trials.values() if trial.lengths]
    after = [trial for prompt_id, trial in trials.items() if refusals[prompt_id] is None]
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(10, 3.4), layout="constrained", facecolor="white")
        panels = figure.subplots(1, 2)
        for group, name, colour in ((before, "before", "#BBBBBB"), (after, "kept", "#0072B2")):
            ratios = [trial.length_ratio for trial in group]
            lengths = [length / max(1.0, median(trial.lengths)) for trial in group for length in trial.lengths]
            for axes, values, most in ((panels[0], ratios, 4 * limit), (panels[1], lengths, 4.0)):
                bins = np.linspace(1.0 if axes is panels[0] else 0.0, most, 43)
                label = f"{name}: {len(group):,} prompts"
                axes.hist(np.clip(values, None, most), bins=bins.tolist(), color=colour, label=label)
        panels[0].axvline(limit, color="#D55E00", linewidth=1)
        panels[0].set_title("p90 ÷ p10 of a prompt's tokens", loc="left")
        panels[1].set_title("tokens of a rollout ÷ median of its prompt", loc="left")
        for axes in panels:
            axes.legend(frameon=False, loc="upper right")
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=130, metadata={"Software": None})
    return path
