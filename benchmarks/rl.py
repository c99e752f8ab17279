"""RL beside TRL: seconds a step, tokens, peak memory and what is learned, from one model at equal samples.

python benchmarks/rl.py demo                    # the folder of a finished `make demo`
python benchmarks/rl.py demo --sides ours TRL --steps 40 --threads 2

Each side begins with `--model` and takes `--steps` steps on the same prompts in the same order, `--group` samples of
each of `--prompts` prompts at temperature 1, our verifier's +1 and -1 as the reward, every group trained on: the
remedies of `train rl` are off. The objective is the same (a token's clipped ratio, summed over the update and divided
by its tokens; advantages over the group's deviation; no KL), and so are optimizer, rate, precision (fp32) and limits.
What differs: TRL samples a step's rollouts as one batch, padded, until the longest has ended, and pads again to train,
`--micro` sequences a pass; ours admits rows as places become free and trains without padding, about as many sequences a
pass. TRL takes the sample's deviation, ours the population's (advantages of a group of 8 are 7 % larger). With vLLM,
which TRL runs on GPUs only, tokens are weighed for the sampler's arithmetic as by default.

Sides run one after another in processes of their own. Seconds are medians over the steps but the first, of the wall
clock, so run it alone; `CPU s` are those of the processor, which other work disturbs little. Sampling holds the rewards
on either side. Memory is the peak of the process's resident memory before anything is evaluated, the verifier's
processes not counted; `above imports` is without what the imports alone hold. The trained models are then evaluated on
`--on`, which no step has seen, `--samples` samples a problem at temperature 0.6.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from pipelines.commands import table_text
from pipelines.memory import peak_bytes

sys.path[0] = str(Path(__file__).parents[1])  # beside this file, `import train` would find another file

SIDES = ("ours", "TRL", "ours, vLLM")
LEARNING_RATE = 2e-4
MAX_TOKENS = 192
MAX_LENGTH = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="has out/shards/rl, run/sft/final and heldout.jsonl")
    parser.add_argument("--model", type=Path, help="where RL begins [DEMO/run/sft/final]")
    parser.add_argument("--on", type=Path, help="problems with answers [DEMO/heldout.jsonl]")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=16, help="of a step")
    parser.add_argument("--group", type=int, default=8, help="samples of a prompt")
    parser.add_argument("--micro", type=int, default=32, help="sequences of a forward pass")
    parser.add_argument("--samples", type=int, default=2, help="of each problem that is evaluated")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.model = arguments.model or arguments.demo / "run/sft/final"
    arguments.on = arguments.on or arguments.demo / "heldout.jsonl"
    if arguments.prompts * arguments.group % arguments.micro:
        parser.error("--micro must divide the rollouts of a step: TRL asks for it")
    if arguments.side:
        print(json.dumps(run_side(arguments)))
        return
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="rl-") as work:
        arguments.work = Path(work)
        found = {side: side_process(side, arguments) for side in arguments.sides}
        print(f"{arguments.prompts} prompts x {arguments.group} a step, {arguments.threads} thread(s), fp32, on a CPU")
        print(table_text(speed_rows(found)), end="\n\n")
        print(table_text(learning_rows(found, arguments)))


def side_process(side: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What `run_side` says, run in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--work", str(arguments.work), "--side", side]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{side}: {done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def speed_rows(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A line a side: medians over the steps but the first, and how they compare with the first side's."""
    first = next(iter(found.values()))
    rows = []
    for side, run in found.items():
        second, cpu, sampling, training = (_median(run[key]) for key in ("seconds", "cpu", "sampling", "training"))
        rows.append(
            {
                "side": side,
                "steps": len(run["seconds"]),
                "s a step": f"{second:.2f}",
                "sampling": f"{sampling:.2f}",
                "training": f"{training:.2f}",
                "against the first": f"{second / _median(first['seconds']):.2f} x",
                "CPU s": f"{cpu:.2f}",
                "of it": f"{cpu / _median(first['cpu']):.2f} x",
                "rollouts": run["rollouts"],
                "tokens sampled": run["tokens"],
                "tokens/s": round(sum(run["step_tokens"][1:]) / sum(run["sampling"][1:])),
                "peak MB": round(run["peak_mb"]),
                "above imports": round(run["peak_mb"] - run["imports_mb"]),
            }
        )
    return rows


def _median(steps: list[float]) -> float:
    return statistics.median(steps[1:] or steps)


def learning_rows(found: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A line a side: the model that it trained, compared problem by problem with the one it began with."""
    from train.evaluate import EvalConfig, evaluate
    from train.results import percent
    from train.staircase import compare

    config = EvalConfig(samples=arguments.samples, max_tokens=MAX_TOKENS, max_model_len=MAX_LENGTH)
    (start,) = evaluate(config, str(arguments.model), [str(arguments.on)], arguments.work / "start")
    rows: list[dict[str, Any]] = []
    first = None
    for side, run in found.items():
        (result,) = evaluate(config, run["model"], [str(arguments.on)], Path(run["model"]).parent)
        first = first or result
        change, difference = compare(start, result), compare(first, result)
        rows.append(
            {
                "side": side,
                "start": percent(start.pass_at[1]),
                "pass@1": percent(result.pass_at[1]),
                "change": percent(change.difference, signed=True),
                "p": f"{change.p_value:.4f}",
                "against the first": percent(difference.difference, signed=True),
                "its p": f"{difference.p_value:.4f}",
                "tokens": round(result.mean_tokens),
                "reward of the first and last steps": _ends(run["rewards"]),
            }
        )
    return rows


def _ends(rewards: list[float]) -> str:
    few = min(4, len(rewards))
    return f"{statistics.mean(rewards[:few]):+.2f} to {statistics.mean(rewards[-few:]):+.2f}"


# --- one side, in a process of its own ------------------------------------------------------------


def run_side(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train; seconds, tokens and mean reward of each step, the model's folder, and the peak of memory."""
    import torch

    torch.set_num_threads(arguments.threads)
    folder = arguments.work / arguments.side.replace(", ", "-").lower()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = _trl(arguments) if arguments.side == "TRL" else _ours(arguments)
        imports_mb = peak_bytes() / 1e6
        found = run(folder)
    return {**found, "tokens": sum(found["step_tokens"]), "imports_mb": imports_mb, "peak_mb": peak_bytes() / 1e6}


class Clock(logging.Handler):
    """Wall and processor time at each mark; a log line of `train.metrics`, one a step, is one."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[tuple[float, float]] = []
        self.mark()

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        self.mark()

    def mark(self) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))

    def seconds(self) -> dict[str, list[float]]:
        """Of each step, by the wall and by the processor; the first step's hold what is loaded before it."""
        steps = list(pairwise(self.marks))
        return {
            "seconds": [after[0] - before[0] for before, after in steps],
            "cpu": [after[1] - before[1] for before, after in steps],
        }


def _ours(arguments: argparse.Namespace) -> Callable[[Path], dict[str, Any]]:
    from train.grpo import RlConfig, train_rl

    clock = Clock()
    logging.getLogger("train.metrics").addHandler(clock)
    logging.getLogger("train.metrics").setLevel(logging.INFO)
    config = RlConfig(
        steps=arguments.steps,
        prompts_per_step=arguments.prompts,
        group_size=arguments.group,
        max_group_size=arguments.group,
        max_rounds=1,
        rebalance=False,
        max_pass_rate=1.0,
        max_tokens=MAX_TOKENS,
        max_length=MAX_LENGTH,
        start_temperature=1.0,
        end_temperature=1.0,
        learning_rate=LEARNING_RATE,
        importance="token" if "vLLM" in arguments.side else "none",
        micro_tokens=arguments.micro * 160,
        reference=False,
        precision="fp32",
        engine="vllm" if "vLLM" in arguments.side else "transformers",
        save_every=10**6,
    )

    def run(folder: Path) -> dict[str, Any]:
        final = train_rl(config, arguments.demo / "out", str(arguments.model), folder)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return {
            "model": str(final),
            "rollouts": sum(line["rollouts"] for line in lines),
            **clock.seconds(),
            "sampling": [line["sampling_s"] for line in lines],
            "training": [line["training_s"] for line in lines],
            "step_tokens": [round(line["rollouts"] * line["length_mean"]) for line in lines],
            "rewards": [line["reward"] for line in lines],
        }

    return run


def _trl(arguments: argparse.Namespace) -> Callable[[Path], dict[str, Any]]:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOTrainer

    from train.prompts import load_prompts, prompts_from
    from verifiers import Job, Question, VerifierPool, reward

    clock = Clock()
    sampling: list[float] = []
    step_tokens: list[int] = []
    rewards: list[float] = []

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.mark()

    class Timed(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            started = time.perf_counter()
            done = super()._generate_and_score_completions(inputs)
            sampling.append(time.perf_counter() - started)
            return done

    def run(folder: Path) -> dict[str, Any]:
        prompts = load_prompts(arguments.demo / "out")
        asked = [one for _, one in islice(prompts_from(prompts, 0, 0), arguments.steps * arguments.prompts)]
        rows = Dataset.from_list(
            [{"prompt": list(one.messages), "answer": one.question.answer, "verifier": one.verifier} for one in asked]
        )
        with VerifierPool() as pool:

            def score(
                completions: Any, completion_ids: Any, answer: Any, verifier: Any, **_: object
            ) -> list[float | None]:
                texts = [messages[-1]["content"] for messages in completions]
                jobs = (
                    Job(one, Question(gold, ()), text) for one, gold, text in zip(verifier, answer, texts, strict=True)
                )
                given = [reward(verdict.outcome) for verdict in pool.verify(jobs)]
                step_tokens.append(sum(map(len, completion_ids)))
                rewards.append(statistics.mean(value for value in given if value is not None))
                return given

            trainer = Timed(
                model=str(arguments.model),
                args=_trl_settings(arguments, folder / "trl"),
                reward_funcs=score,
                train_dataset=rows,
                callbacks=[Steps()],
            )
            trainer.train()
        trainer.save_model(str(folder / "final"))
        AutoTokenizer.from_pretrained(arguments.model).save_pretrained(folder / "final")
        times = clock.seconds()
        return {
            "model": str(folder / "final"),
            "rollouts": arguments.group * len(asked),
            **times,
            "sampling": sampling,
            "training": [whole - part for whole, part in zip(times["seconds"], sampling, strict=True)],
            "step_tokens": step_tokens,
            "rewards": rewards,
        }

    return run


def _trl_settings(arguments: argparse.Namespace, folder: Path) -> Any:
    """TRL's `GRPOConfig` for what `_ours` does."""
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=str(folder),
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.micro,
        gradient_accumulation_steps=arguments.prompts * arguments.group // arguments.micro,
        num_generations=arguments.group,
        max_completion_length=MAX_TOKENS,
        temperature=1.0,
        shuffle_dataset=False,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        optim="adamw_torch_fused",
        epsilon_high=0.28,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"},
    )


if __name__ == "__main__":
    main()
