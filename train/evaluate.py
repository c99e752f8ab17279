"""Evaluate: how often a model is right, with the interval that its number of samples earns.

P problems, S samples of each. Samples are stored as `rollouts` and `verdicts` below
`OUT/eval/BENCHMARK`, under ids made of the model's weights and the settings: the same question is
never sampled twice, and a killed evaluation goes on where it stopped.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipelines import parquet
from pipelines.benchmarks import benchmark_name, load_benchmark
from pipelines.config import Config
from pipelines.conversation import user_message
from pipelines.errors import UserError
from pipelines.runner import locked
from pipelines.samplers import Engine, open_sampler
from pipelines.sampling import Refusal, Sampler, SamplingConfig
from pipelines.tables import content_id
from train.answers import answer_votes
from train.checkpoint import model_digest, room
from train.loop import stop_signal
from train.prompts import Prompt
from train.results import EvalResult, ProblemScore
from train.rollouts import Wanted, missing_samples, store_samples, verdict_table, wanted_sample
from train.staircase import require_same_problems
from train.statistics import bootstrap_interval, cons_at_k, pass_at_k, tied
from verifiers import VERIFIERS, VERSIONS, Job, Outcome, Question, Verdict, VerifierPool, gold_fault, reward

_log = logging.getLogger(__name__)


class EvalConfig(Config):
    """How a model is examined; the values of arXiv:2504.21233, section 5, but for the number of samples."""

    samples: int = Field(8, ge=1)
    """Samples of each problem. With 30 problems (AIME) take 64: three leave an interval of 30 points."""
    runs: int = Field(1, ge=1)
    """Separate runs of so many samples, reported with their mean and spread; the paper's figures are of 3 runs of 1."""
    temperature: float = Field(0.6, ge=0)
    top_p: float = Field(0.95, gt=0, le=1)
    max_tokens: int = Field(32768, ge=1)
    instruction: Literal["mathematics", "none"] = "mathematics"
    """Of `conversation.INSTRUCTIONS`; problems with options take the wording for choices, or none either."""
    seed: int = 0
    engine: Engine = "auto"
    """What samples; see `pipelines.samplers.open_sampler`."""
    server_url: str | None = None
    max_model_len: int | None = Field(None, ge=2)
    """Longest prompt and completion together; the engine's choice where None."""

    def sampling(self) -> SamplingConfig:
        return SamplingConfig(temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_tokens)


@dataclass(frozen=True)
class _Exam:
    """One benchmark put to one model: what is asked, under which ids, and where it is stored."""

    name: str
    folder: Path
    table: pa.Table
    prompts: list[Prompt]
    wanted: list[list[Wanted]]
    set_aside: Counter[str]

    @property
    def judging(self) -> str:
        """Digest of what verdicts depend on beside the samples: verifiers and reference answers."""
        references = [[one.prompt_id, one.verifier, one.question.answer, one.question.choices] for one in self.prompts]
        return content_id("judging", VERSIONS, references)


def evaluate(
    config: EvalConfig,
    model: str,
    on: Sequence[str],
    out: Path,
    *,
    sampler: Sampler | None = None,
    against: Sequence[EvalResult] = (),
) -> list[EvalResult]:
    """`model` on every benchmark of `on` (names or files), in order; each also as `out/eval/BENCHMARK/eval.json`.

    `sampler` stands in for the one that `config` would open; it is not closed. Other problems than those of `against`,
    which the results are to be compared with, are a `UserError` before anything is sampled.
    """
    weights = model_weights(model, config)
    # Unreadable benchmarks are found before a model is loaded.
    exams = {benchmark_name(benchmark): _prepare(config, weights, benchmark, out) for benchmark in on}
    if len(exams) < len(on):
        raise UserError(
            f"two of the benchmarks {', '.join(on)} have one name", hint="name each once; `NAME=FILE` names a file anew"
        )
    for exam, other in zip(exams.values(), against, strict=False):
        require_same_problems(model, [prompt.prompt_id for prompt in exam.prompts], other)
    results = []
    with room(out), ExitStack() as stack:
        pool = stack.enter_context(VerifierPool())
        for exam in exams.values():
            stack.enter_context(locked(exam.folder))
            parquet.write_file(exam.folder / "prompts" / "00000.parquet", "prompts", [exam.table])
            started = time.monotonic()
            _judge_again(exam, pool)
            missing = missing_samples(exam.folder, chain.from_iterable(exam.wanted))
            if missing:
                if sampler is None:
                    sampler = open_sampler(
                        model,
                        engine=config.engine,
                        server_url=config.server_url,
                        max_model_len=config.max_model_len,
                        log_dir=out / "logs",
                    )
                    stack.callback(sampler.close)
                source, sampling = f"eval:{exam.name}", config.sampling()
                with stop_signal() as stop:
                    refused = store_samples(
                        exam.folder, sampler, pool, missing, sampling, source, stop=stop, judged_by=exam.judging
                    )
                if stop.is_set():
                    raise UserError(
                        f"eval was told to stop; what was sampled is stored in `{exam.folder}`",
                        hint="the same command goes on from there",
                    )
                _tell_refused(exam, refused, sum(map(len, exam.wanted)))
            seconds = _earlier_seconds(exam, config, weights) + (time.monotonic() - started if missing else 0.0)
            result = _result(exam, config, model, weights, seconds, pool)
            result.write(exam.folder / "eval.json")
            results.append(result)
    return results


def model_weights(model: str, config: EvalConfig) -> str:
    """Digest of what answers: the model's files; name and address for a server."""
    if config.engine == "server" and config.server_url is None:
        raise UserError("engine `server` needs a URL", hint="--set eval.server_url=http://localhost:8000/v1")
    return model_digest(model) if config.server_url is None else content_id("server", config.server_url, model)


def _prepare(config: EvalConfig, weights: str, benchmark: str, out: Path) -> _Exam:
    table = load_benchmark(benchmark, need_answers=True)
    prompts, set_aside = [], Counter[str]()
    for row in table.to_pylist():
        question = Question(row["answer"], tuple(row["choices"] or ()))
        known = row["verifier"] in VERIFIERS
        fault = gold_fault(row["verifier"], question) if known else f"no verifier `{row['verifier']}`"
        if fault is None:
            message = user_message(row["problem"], row["choices"], config.instruction)
            prompts.append(Prompt(row["prompt_id"], (message,), row["verifier"], question))
        else:
            set_aside[fault] += 1
    if set_aside and prompts:
        counts = ", ".join(f"{fault} {count}" for fault, count in set_aside.items())
        _log.warning("%s: %d problems are set aside: %s", benchmark, set_aside.total(), counts)
    if not prompts:
        raise UserError(f"benchmark `{benchmark}`: no reference answer can be read: {dict(set_aside)}")
    prompts.sort(key=lambda prompt: prompt.prompt_id)
    identity = {**config.sampling().resolved(), "instruction": config.instruction, "seed": config.seed}
    indices = range(config.runs * config.samples)
    wanted = [[wanted_sample(prompt, weights, identity, index) for index in indices] for prompt in prompts]
    name = benchmark_name(benchmark)
    return _Exam(name, out / "eval" / name, table, prompts, wanted, set_aside)


# --- sampling -------------------------------------------------------------------------------------


def _tell_refused(exam: _Exam, refused: Sequence[Refusal], num_wanted: int) -> None:
    """Say what the sampler refused, which counts as wrong; a `UserError` where that is everything."""
    if not refused:
        return
    words = f"{exam.name}: the sampler refused {len(refused)} of {num_wanted} samples ({refused[0].detail})"
    if len(refused) == num_wanted:
        raise UserError(words, hint="a longer `eval.max_model_len`, or another model")
    _log.warning("%s: they count as wrong", words)


def _judge_again(exam: _Exam, pool: VerifierPool) -> None:
    """Judge stored samples that have no verdict (a run was killed), or one by another verifier or reference."""
    prompts = {prompt.prompt_id: prompt for prompt in exam.prompts}
    for path in parquet.table_files(exam.folder, "rollouts"):
        target = exam.folder / "verdicts" / path.name
        if target.is_file() and parquet.facts(target).made_from == exam.judging:
            continue
        rows = parquet.read_table(path, "rollouts", ["rollout_id", "prompt_id", "response"]).to_pylist()
        known = [row for row in rows if row["prompt_id"] in prompts]
        asked = [prompts[row["prompt_id"]] for row in known]
        jobs = (Job(one.verifier, one.question, row["response"]) for one, row in zip(asked, known, strict=True))
        verdicts = dict(zip([row["rollout_id"] for row in known], pool.verify(jobs), strict=True))
        unasked = Verdict(Outcome.UNDECIDED, None, "unasked", "none")  # no longer in the benchmark
        table = verdict_table(
            (row["rollout_id"], row["prompt_id"], verdicts.get(row["rollout_id"], unasked)) for row in rows
        )
        parquet.write_file(target, "verdicts", [table], exam.judging)


# --- scoring --------------------------------------------------------------------------------------


def _earlier_seconds(exam: _Exam, config: EvalConfig, weights: str) -> float:
    """Seconds already spent on the same model with the same settings, if on fewer samples."""
    path = exam.folder / "eval.json"
    if not path.is_file():
        return 0.0
    earlier = EvalResult.read(path)
    asked_alike = {**earlier.config, "samples": config.samples, "runs": config.runs} == config.resolved()
    return earlier.seconds if earlier.weights == weights and asked_alike else 0.0


def _result(
    exam: _Exam, config: EvalConfig, model: str, weights: str, seconds: float, pool: VerifierPool
) -> EvalResult:
    verdicts, lengths = _stored(exam)
    ids_PS = [[one.rollout_id for one in wanted_S] for wanted_S in exam.wanted]
    outcome_PS = [[verdicts.get(one, (Outcome.UNDECIDED, None))[0] for one in ids_S] for ids_S in ids_PS]
    extracted_PS = [[verdicts.get(one, (Outcome.UNDECIDED, None))[1] for one in ids_S] for ids_S in ids_PS]
    correct_PS = np.array([[outcome == Outcome.CORRECT for outcome in outcomes] for outcomes in outcome_PS])
    votes_PS = answer_votes(extracted_PS, correct_PS, exam.prompts, pool)
    num_correct_P = correct_PS.sum(axis=1)
    num_samples = config.runs * config.samples
    num_samples_P = np.full(len(exam.prompts), num_samples)
    sizes = sample_sizes(num_samples)
    finished = [lengths[one] for ids_S in ids_PS for one in ids_S if one in lengths]
    return EvalResult(
        benchmark=exam.name,
        model=model,
        weights=weights,
        config=config.resolved(),
        num_problems=len(exam.prompts),
        num_samples=num_samples,
        pass_at={k: bootstrap_interval(pass_at_k(num_samples_P, num_correct_P, k), config.seed) for k in sizes},
        cons_at={
            k: bootstrap_interval(cons_at_k(votes_PS, correct_PS, k, config.seed), config.seed) for k in sizes if k > 2
        },
        truncation_rate=float(np.mean([reason == "length" for reason, _ in finished])) if finished else 0.0,
        mean_tokens=float(np.mean([tokens for _, tokens in finished if tokens is not None] or [0])),
        num_unjudged=sum(reward(outcome) is None for outcomes in outcome_PS for outcome in outcomes),
        set_aside=dict(exam.set_aside),
        seconds=round(seconds, 2),
        problems=[
            ProblemScore(prompt.prompt_id, int(num_correct))
            for prompt, num_correct in zip(exam.prompts, num_correct_P, strict=True)
        ],
        num_tied=int(tied(votes_PS).sum()),
        run_means=correct_PS.reshape(len(exam.prompts), config.runs, config.samples).mean(axis=(0, 2)).tolist(),
    )


def sample_sizes(num_samples: int) -> list[int]:
    """The k of pass@k and cons@k: powers of two, and all samples."""
    return sorted({2**power for power in range(num_samples.bit_length())} | {num_samples})


def _stored(
    exam: _Exam,
) -> tuple[dict[str, tuple[Outcome, str | None]], dict[str, tuple[str | None, int | None]]]:
    """Stored (outcome, extracted) and (finish reason, tokens), by rollout id."""
    verdicts = parquet.read_table(
        parquet.table_files(exam.folder, "verdicts"), "verdicts", ["rollout_id", "verdict", "extracted"]
    ).to_pylist()
    rollouts = parquet.read_table(
        parquet.table_files(exam.folder, "rollouts"), "rollouts", ["rollout_id", "finish_reason", "completion_tokens"]
    ).to_pylist()
    return (
        {row["rollout_id"]: (Outcome(row["verdict"]), row["extracted"]) for row in verdicts},
        {row["rollout_id"]: (row["finish_reason"], row["completion_tokens"]) for row in rollouts},
    )
