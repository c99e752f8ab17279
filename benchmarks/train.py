"""Training beside TRL: tokens/s and peak memory of packed training, SFT and DPO on one model and the same rows.

python benchmarks/train.py ../shared/data/rollouts/math_qwen25math_100x8.jsonl --precision fp32
python benchmarks/train.py ROLLOUTS.jsonl --jobs packed --device cuda --size 3.8b --vocab 200064 --length 16384 \
    --rows 64 --batch 8 --micro 1 --precision bf16

ROLLOUTS has `problem`, `completion` and, for DPO, `label` (is it right) on each line. Each side runs in a process of
its own, the sides by turns, `--rounds` times; a line is the median. Both take the same model, the same rows once (one
epoch), the same rows a step, the same optimizer and precision; activations are kept on a CPU, recomputed on a GPU.
Tokens are those of the conversations, padding never counted; the first step, and what is loaded before it, is left out
of the time. DPO's time holds that of the reference on either side. On a CPU seconds are the processor's, which other
work on the machine does not disturb: set OMP_NUM_THREADS=1. Memory is the peak of the process's resident memory
(of the GPU's allocator with `--device cuda`); `above imports` is without what the imports alone hold.
"""

import argparse
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import parquet
from pipelines.commands import table_text
from pipelines.memory import peak_bytes
from pipelines.tables import TABLES, prompt_id

sys.path[0] = str(Path(__file__).parents[1])  # beside this file, `import train` would find this file

JOBS = {
    "packed": ["ours", "TRL"],
    "sft": ["ours", "TRL"],
    "dpo": ["ours", "TRL", "TRL, reference first"],
}
"""Job -> sides; TRL computes DPO's reference within each step (its default), or before the first as we do."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rollouts", type=Path)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--architecture", default="phi3", choices=["phi3", "llama", "qwen3"])
    parser.add_argument("--size", default="5m", help="as of `train init`")
    parser.add_argument("--vocab", type=int, default=8192, help="rows of the head; the tokenizer learns 8192 at most")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a packed row, and most of a conversation")
    parser.add_argument("--rows", type=int, default=96, help="conversations, or half as many pairs")
    parser.add_argument(
        "--batch", type=int, default=16, help="conversations or pairs of a step; packed rows: a quarter"
    )
    parser.add_argument("--micro", type=int, default=4, help="of these in one forward pass")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", nargs=2, metavar=("JOB", "SIDE"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rows < 4 * arguments.batch:
        parser.error("--rows must be four times --batch at least: the first step is not counted")
    if arguments.side:
        print(json.dumps(run_side(*arguments.side, arguments)))
        return
    with tempfile.TemporaryDirectory(prefix="train-") as work:
        arguments.work = Path(work)
        mean, most = prepare(arguments)
        model = f"{arguments.architecture} {arguments.size}, vocabulary {arguments.vocab:,}"
        print(f"{model}, {arguments.precision}, {arguments.device}")
        print(f"conversations of {mean:,.0f} tokens on average, {most:,} at most")
        print(table_text([line for job in arguments.jobs for line in compare(job, arguments)]))


def compare(job: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A line a side: medians over the rounds, and how they compare with ours."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for number in range(arguments.rounds):
        sides = JOBS[job] if number % 2 == 0 else JOBS[job][::-1]
        for side in sides:
            command = [sys.executable, __file__, *sys.argv[1:], "--work", str(arguments.work), "--side", job, side]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
            if done.returncode != 0:
                sys.exit(f"{job}, {side}: {done.stderr[-3000:]}")
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    ours = _medians(found["ours"])
    lines = []
    for side in JOBS[job]:
        values = _medians(found[side])
        speeds = [run["tokens_per_s"] for run in found[side]]
        lines.append(
            {
                "job": job,
                "side": side,
                "tokens": round(values["tokens"]),
                "loss": values["loss"],
                "tokens/s": round(values["tokens_per_s"]),
                "from - to": f"{min(speeds):,.0f} - {max(speeds):,.0f}",
                "ours is": f"{ours['tokens_per_s'] / values['tokens_per_s']:.2f} x",
                "peak MB": round(values["peak_mb"]),
                "above imports": round(values["peak_mb"] - values["imports_mb"]),
                "ours takes": f"{ours['peak_mb'] / values['peak_mb']:.2f} x",
            }
        )
    return lines


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


# --- model and rows -------------------------------------------------------------------------------


def prepare(arguments: argparse.Namespace) -> tuple[float, int]:
    """Write shards and a random model under `work`; returns the mean and the largest length of a conversation."""
    from train.init import InitConfig, init_student

    rows = [json.loads(line) for line in arguments.rollouts.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    _write_shards(arguments.work, rows)  # all of them: the tokenizer's text
    tokenizer_vocab = min(8192, arguments.vocab)
    config = InitConfig(architecture=arguments.architecture, size="1m", vocab_size=tokenizer_vocab)
    _set_size(init_student(config, arguments.work, arguments.work / "model"), arguments)
    chosen = _fitting(rows, arguments)
    for path in arguments.work.glob("shards/*/*.parquet"):
        path.unlink()
    lengths = _write_shards(arguments.work, chosen[: arguments.rows], _pairs(chosen)[: arguments.rows // 2])
    (arguments.work / "lengths.json").write_text(json.dumps(lengths))
    return statistics.mean(lengths["sft"]), max(lengths["sft"])


def _set_size(folder: Path, arguments: argparse.Namespace) -> None:
    """The random model in `folder` made again, in the size and with the vocabulary asked for."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from train.init import SIZES

    shape = SIZES[arguments.size]
    heads = shape["num_attention_heads"]
    config = AutoConfig.from_pretrained(folder)
    groups = next(groups for groups in (heads // 3, heads // 2, heads) if heads % groups == 0)
    config.update({**shape, "num_key_value_heads": groups, "head_dim": shape["hidden_size"] // heads,
                   "vocab_size": max(config.vocab_size, arguments.vocab)})  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


def _messages(row: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["problem"]}, {"role": "assistant", "content": row["completion"]}]


def _fitting(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of at most `length` tokens: neither side has anything to cut off or refuse."""
    from train.batches import encode
    from train.model import load_tokenizer

    encoded = encode(load_tokenizer(str(arguments.work / "model")), [_messages(row) for row in rows],
                     [row["id"] for row in rows])  # fmt: skip
    fitting = []
    for row, document in zip(rows, encoded, strict=True):
        if not isinstance(document, str) and len(document) <= arguments.length:
            fitting.append({**row, "tokens": len(document)})
    return fitting


def _pairs(rows: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """A right and a wrong completion of one problem, each completion once."""
    by_problem: dict[str, dict[bool, list[dict[str, Any]]]] = defaultdict(lambda: {True: [], False: []})
    for row in rows:
        if "label" in row:
            by_problem[row["problem"]][row["label"]].append(row)
    return [pair for sides in by_problem.values() for pair in zip(sides[True], sides[False], strict=False)]


def _write_shards(
    root: Path, rows: list[dict[str, Any]], pairs: Iterable[tuple[dict[str, Any], dict[str, Any]]] = ()
) -> dict[str, list[int]]:
    """Shards as `curate split` writes them; returns the lengths of what each holds."""

    def conversation(row: dict[str, Any]) -> dict[str, Any]:
        return {"messages": _messages(row), "rollout_id": row["id"], "prompt_id": prompt_id(row["problem"]),
                "source": "benchmark"}  # fmt: skip

    preferences = [
        {"prompt": _messages(right)[:1], "chosen": _messages(right)[1:], "rejected": _messages(wrong)[1:],
         "chosen_id": right["id"], "rejected_id": wrong["id"], "prompt_id": prompt_id(right["problem"]),
         "source": "benchmark"}
        for right, wrong in pairs
    ]  # fmt: skip
    traces = [conversation(row) for row in rows]
    for stage, table in (("midtrain", traces), ("sft", traces), ("dpo", preferences)):
        if table:
            schema = TABLES[f"shards/{stage}"]
            parquet.write_file(root / f"shards/{stage}/00000.parquet", f"shards/{stage}",
                               [pa.Table.from_pylist(table, schema=schema)])  # fmt: skip
    return {
        "sft": [row.get("tokens", 0) for row in rows],
        "dpo": [right["tokens"] + wrong["tokens"] for right, wrong in pairs],
    }


# --- one side, in a process of its own ------------------------------------------------------------


def run_side(job: str, side: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Train one epoch; tokens and seconds after the first step, mean loss, and the peak of memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = _ours(job, arguments) if side == "ours" else _trl(job, side, arguments)
    imports_mb = _peak_mb(arguments.device)
    out = run()
    clock = out["clock"]
    tokens, seconds = sum(out["tokens"][1:]), clock.marks[-1] - clock.marks[-len(out["tokens"])]
    # The reference is worked out for every pair, also for those of the first step.
    seconds += clock.inside * tokens / sum(out["tokens"])
    return {
        "tokens": sum(out["tokens"]),
        "loss": statistics.mean(out["loss"]),
        "tokens_per_s": tokens / seconds,
        "imports_mb": imports_mb,
        "peak_mb": _peak_mb(arguments.device),
    }


def _peak_mb(device: str) -> float:
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    return peak_bytes() / 1e6


class Clock(logging.Handler):
    """Seconds of this process: between `mark`s, and inside `with clock:`, summed.

    A log line of `train.metrics`, one a step, is a mark.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.now = time.perf_counter if device == "cuda" else time.process_time
        self.marks: list[float] = []
        self.inside = 0.0

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        self.mark()

    def mark(self) -> None:
        self.marks.append(self.now())

    def __enter__(self) -> None:
        self.inside -= self.now()

    def __exit__(self, *_: object) -> None:
        self.inside += self.now()


def _batch(job: str, arguments: argparse.Namespace) -> int:
    return max(1, arguments.batch // 4) if job == "packed" else arguments.batch


def _ours(job: str, arguments: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    from train import dpo
    from train.sft import MidtrainConfig, SftConfig, train_midtrain, train_sft

    kind, train = {
        "packed": (MidtrainConfig, train_midtrain),
        "sft": (SftConfig, train_sft),
        "dpo": (dpo.DpoConfig, dpo.train_dpo),
    }[job]
    lengths = json.loads((arguments.work / "lengths.json").read_text())
    if job == "packed":
        micro_tokens = arguments.micro * arguments.length
    else:  # as many forward passes a step as TRL makes
        micro_tokens = max(max(lengths[job]), round(arguments.micro * statistics.mean(lengths[job])))
    config = kind(
        max_length=arguments.length,
        batch_size=_batch(job, arguments),
        micro_tokens=micro_tokens,
        learning_rate=1e-4,
        schedule="constant",
        warmup_rate=0.0,
        epochs=1,
        precision=arguments.precision,
        save_every=10**6,
    )
    clock, untimed = Clock(arguments.device), dpo.reference_logprobs
    logging.getLogger("train.metrics").addHandler(clock)
    logging.getLogger("train.metrics").setLevel(logging.INFO)

    def timed(*given: Any, **options: Any) -> Any:
        with clock:
            return untimed(*given, **options)

    dpo.reference_logprobs = timed

    def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=arguments.work) as out:
            folder = train(config, arguments.work, str(arguments.work / "model"), Path(out) / job,
                           device=arguments.device)  # fmt: skip
            lines = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
        return {
            "clock": clock,
            **{key: [line[key] for line in lines] for key in ("tokens", "seconds", "loss")},
        }

    return run


def _trl(job: str, side: str, arguments: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    from datasets import Dataset, disable_progress_bars, load_dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    disable_progress_bars()
    batch = _batch(job, arguments)
    settings: dict[str, Any] = {
        "output_dir": str(arguments.work / "trl"),
        "per_device_train_batch_size": min(arguments.micro, batch),
        "gradient_accumulation_steps": max(1, batch // arguments.micro),
        "max_length": arguments.length,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.95,
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "bf16": arguments.precision == "bf16",
        "gradient_checkpointing": arguments.device == "cuda",
        "use_cpu": arguments.device == "cpu",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "model_init_kwargs": {"dtype": "float32"},
    }
    stage = {"packed": "midtrain"}.get(job, job)
    rows = load_dataset("parquet", data_files=str(arguments.work / f"shards/{stage}/*.parquet"), split="train",
                        cache_dir=str(arguments.work / "cache"))  # fmt: skip

    clock = Clock(arguments.device)

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.mark()

    class TimedDPOTrainer(DPOTrainer):
        def _precompute_ref_logps(self, *given: Any) -> Dataset:
            with clock:
                return super()._precompute_ref_logps(*given)

    def run() -> dict[str, Any]:
        model = str(arguments.work / "model")
        if job == "dpo":
            options = DPOConfig(**settings, precompute_ref_log_probs=side != "TRL", beta=0.1)
            trainer = TimedDPOTrainer(model=model, args=options, train_dataset=rows, callbacks=[Steps()])
        else:
            apart = Dataset.from_list(
                [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in rows]
            )
            trainer = SFTTrainer(model=model, args=SFTConfig(**settings, packing=job == "packed"), train_dataset=apart,
                                 callbacks=[Steps()])  # fmt: skip
        trainer.train()
        lines = [line for line in trainer.state.log_history if "grad_norm" in line]
        counted = [0, *(line["num_tokens"] for line in lines)]
        return {
            "clock": clock,
            "tokens": [after - sooner for sooner, after in pairwise(counted)],
            "loss": [line["loss"] for line in lines],
        }

    return run


if __name__ == "__main__":
    main()
