"""Real problems and rollouts through the whole: import, verify, label, shards, and a few steps of all four stages.

    python benchmarks/real_input.py DATA WORK

DATA is a folder with `problems/*.jsonl` and `rollouts/*.jsonl`; WORK is made. Every command is the one a user
types, and its output is printed as it is, so that what it says about these datasets can be read. The student is a
random Phi-3 with LongRoPE whose sequences pass the length its rotary embedding was made for.
"""

import subprocess
import sys
import time
from pathlib import Path

BENCHMARKS = ("math500", "aime24", "gsm8k_test")


def run(room: str, *arguments: object) -> None:
    line = f"{room} {' '.join(map(str, arguments))}"
    print(f"\n$ {line}", flush=True)
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", f"{room}.cli", *map(str, arguments)], check=False)
    print(f"# {time.monotonic() - started:.1f} s, exit code {done.returncode}", flush=True)
    if done.returncode:
        raise SystemExit(f"`{line}` failed")


def curate_all(data: Path, out: Path) -> None:
    # Problems first: they bring the golds that some files of rollouts lack.
    problems = [path for path in sorted((data / "problems").glob("*.jsonl")) if path.stem not in BENCHMARKS]
    run("curate", "import", *problems, *sorted((data / "rollouts").glob("*.jsonl")), "--out", out)
    run("curate", "verify", out)
    run("curate", "dedupe", out)
    against = ",".join(f"{name.removesuffix('_test')}={data / 'problems' / name}.jsonl" for name in BENCHMARKS)
    run("curate", "decontaminate", out, "--against", against)
    run("curate", "annotate", out)
    run("curate", "split", out)
    run("curate", "build-dpo-pairs", out, "--set", "build_dpo_pairs.across_models=true")
    run("curate", "card", out, "--name", "real-input")
    run("curate", "card", out, "--check")
    run("curate", "stats", out)
    run("curate", "status", out)


def train_all(out: Path, work: Path) -> None:
    student = work / "student"
    run(
        "train", "init", "--architecture", "phi3", "--size", "1m", "--shards", out, "--out", student,
        "--set", "init.longrope_from=2048",
    )  # fmt: skip
    settings = {
        "midtrain.max_length": 8192, "midtrain.batch_size": 2, "midtrain.max_steps": 2,
        "sft.max_length": 8192, "sft.batch_size": 4, "sft.max_steps": 2,
        "dpo.max_length": 8192, "dpo.batch_size": 2, "dpo.max_steps": 2,
    }  # fmt: skip
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    # A random student solves nothing, so its groups have no signal: RL is shown by `make demo`.
    for stage, model in (
        ("midtrain", student),
        ("sft", work / "run/midtrain/final"),
        ("dpo", work / "run/sft/final"),
    ):
        run("train", stage, "--shards", out, "--model", model, "--out", work / "run" / stage, *overrides)


def main() -> None:
    data, work = Path(sys.argv[1]), Path(sys.argv[2])
    out = work / "out"
    curate_all(data, out)
    train_all(out, work)


if __name__ == "__main__":
    main()
