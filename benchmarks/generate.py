"""What `curate generate` adds to its engine: `engine`, `overhead` and `resume`.

python benchmarks/generate.py engine --engine transformers --prompts 300
python benchmarks/generate.py overhead --prompts 100000
python benchmarks/generate.py resume --rollouts 1000000
"""

import argparse
import itertools
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa

from curate.cost import CostConfig
from curate.problems import write_problems
from curate.stages.generate import GenerateConfig, estimate, generate
from curate.teachers import TEACHERS, Teacher
from curate.wanted import Task, task_of
from pipelines import parquet
from pipelines.commands import table_text
from pipelines.memory import peak_bytes
from pipelines.samplers import open_sampler
from pipelines.samplers.scripted import ScriptedSampler
from pipelines.sampling import Completion, Refusal, Request, Sampler, SamplingConfig
from pipelines.tables import PROMPTS, ROLLOUTS, prompt_id

TRACE = "<think>" + "so we add seven and carry the one, " * 60 + "</think>The answer is \\boxed{7}."
"""About as many bytes as a short trace: 2 KB."""
SAMPLES = 8
SCRIPTED = Teacher("hf:scripted", "hf:scripted", max_tokens=4096)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    engine = commands.add_parser("engine", help="tokens/s beside the engine alone, on the same requests")
    engine.add_argument("--engine", default="transformers", choices=["transformers", "vllm"])
    engine.add_argument("--prompts", type=int, default=300)
    engine.add_argument("--samples", type=int, default=4)
    engine.add_argument("--rounds", type=int, default=4)
    overhead = commands.add_parser("overhead", help="time per rollout and peak memory with a scripted sampler")
    overhead.add_argument("--prompts", type=int, default=100_000)
    overhead.add_argument("--samples", type=int, default=1)
    resume = commands.add_parser("resume", help="time to go on from a run with so many finished rollouts")
    resume.add_argument("--rollouts", type=int, default=1_000_000)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="generate-"))
    try:
        run = {"engine": bench_engine, "overhead": bench_overhead, "resume": bench_resume}[arguments.command]
        print(table_text(run(root, arguments)))
    finally:
        shutil.rmtree(root)


class Counted:
    """A sampler that counts tokens, and the processor time its engine takes in this thread."""

    def __init__(self, inner: Sampler) -> None:
        self.inner = inner
        self.model = inner.model
        self.tokens = 0
        self.engine_s = 0.0
        self.requests: list[Request] = []

    def sample(
        self, requests: Iterable[Request | None], config: SamplingConfig, *, logprobs: bool = False
    ) -> Iterator[Completion | Refusal]:
        results = self.inner.sample(self._noted(requests), config, logprobs=logprobs)
        while True:
            started = time.thread_time()
            result = next(results, None)
            self.engine_s += time.thread_time() - started
            if result is None:
                return
            self.tokens += result.completion_tokens or 0 if isinstance(result, Completion) else 0
            yield result

    def close(self) -> None:
        """The engine is used again."""

    def _noted(self, requests: Iterable[Request | None]) -> Iterator[Request | None]:
        asking = iter(requests)
        while True:
            started = time.thread_time()
            try:
                request = next(asking)
            except StopIteration:
                return
            finally:  # what `generate` does to find the next request is not the engine's
                self.engine_s -= time.thread_time() - started
            if request is not None:
                self.requests.append(request)
            yield request


def bench_engine(root: Path, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Tokens/s of the engine alone and of `generate` with it, in turn, on the same requests.

    By the clock, which other work on the machine disturbs; and the engine's part of the processor time that
    `generate` takes in its thread, which hardly anything disturbs: of each token's time the rest is ours.
    """
    texts = [problem.text for problem in write_problems(1, arguments.prompts, (1, 2, 3, 4))]
    teacher = TEACHERS["pocket"]
    sampler = open_sampler(teacher.model, engine=arguments.engine, max_rows=64, max_model_len=512)
    config = GenerateConfig(teacher="pocket", samples=arguments.samples)
    own = SamplingConfig(temperature=teacher.temperature, top_p=teacher.top_p, max_tokens=teacher.max_tokens)
    counted = Counted(sampler)

    def ours() -> int:
        tokens, engine_s, folder = counted.tokens, counted.engine_s, root / str(next(numbers))
        write_prompts(folder, texts)
        started = time.thread_time()
        generate(folder, config, teacher, lambda: counted)
        parts.append((counted.engine_s - engine_s) / (time.thread_time() - started))
        return counted.tokens - tokens

    numbers, parts = itertools.count(), list[float]()
    ours()  # warms up, and collects the requests
    requests = list(counted.requests)

    def alone() -> int:
        return sum(result.completion_tokens or 0 for result in sampler.sample(requests, own))

    rows: list[dict[str, object]] = []
    for number in range(arguments.rounds):
        # Each goes first as often as the other.
        pair = (rate(ours), rate(alone)) if number % 2 else tuple(reversed((rate(alone), rate(ours))))
        rows.append(row(f"round {number + 1}", *pair, parts[-1]))
    sampler.close()
    means = (statistics.fmean(float(str(each[f"{who} tokens/s"])) for each in rows) for who in ("generate", "engine"))
    return [*rows, row("mean", *means, statistics.fmean(parts[1:]))]


def rate(work: Callable[[], int]) -> float:
    """Tokens per second."""
    started = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - started)


def row(name: str, ours: float, engine: float, part: float) -> dict[str, object]:
    return {
        "run": name,
        "generate tokens/s": round(ours),
        "engine tokens/s": round(engine),
        "share": round(ours / engine, 3),
        "engine's part of CPU time": round(part, 4),
    }


def bench_overhead(root: Path, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Microseconds of `generate` per rollout beyond the scripted sampler's own, and peak memory."""
    apart(write_prompts, root, [f"What is {number} + 7?" for number in range(arguments.prompts)])
    before_mb = peak_bytes() >> 20
    sampler = ScriptedSampler({}, default=[TRACE])
    # Processor time: what else runs on the machine does not count, nor does waiting for the disk.
    started = time.process_time()
    report = generate(root, GenerateConfig(teacher="hf:scripted", samples=arguments.samples), SCRIPTED, lambda: sampler)
    generate_s = time.process_time() - started
    peak = peak_bytes() >> 20
    requests = [Request(f"{number}", ({"role": "user", "content": "?"},), 0) for number in range(report.sampled)]
    started = time.process_time()
    for _ in ScriptedSampler({}, default=[TRACE]).sample(requests, SamplingConfig(max_tokens=4096)):
        pass
    sampler_s = time.process_time() - started
    return [
        {
            "rollouts": report.sampled,
            "text MB": round(report.sampled * len(TRACE) / 1e6),
            "generate CPU s": round(generate_s, 2),
            "sampler CPU s": round(sampler_s, 2),
            "µs a rollout": round((generate_s - sampler_s) / report.sampled * 1e6, 1),
            "memory before MB": before_mb,
            "peak MB": peak,
        }
    ]


def bench_resume(root: Path, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Seconds until the first result of a run of which so many rollouts are stored and eight are left."""
    config = GenerateConfig(teacher="hf:scripted", samples=SAMPLES, max_tokens=4096)
    apart(prepare, root, arguments.rollouts)
    first: list[tuple[float, float]] = []

    class Timed(ScriptedSampler):
        def sample(self, requests, config, *, logprobs=False):  # type: ignore[no-untyped-def]
            for result in super().sample(requests, config, logprobs=logprobs):
                first.append((time.perf_counter() - started, time.process_time() - started_cpu))
                yield result

    started, started_cpu = time.perf_counter(), time.process_time()
    report = generate(root, config, SCRIPTED, lambda: Timed({}, default=[TRACE]))
    whole_s, whole_cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
    assert (report.plan.stored, report.sampled) == (arguments.rollouts, SAMPLES), report
    peak = peak_bytes() >> 20
    started, started_cpu = time.perf_counter(), time.process_time()
    estimate(root, config, CostConfig())
    return [
        {
            "stored": arguments.rollouts,
            "first result s": round(first[0][0], 2),
            "CPU s": round(first[0][1], 2),
            "whole command s": round(whole_s, 2),
            "of it CPU s": round(whole_cpu_s, 2),
            "curate plan s": round(time.perf_counter() - started, 2),
            "its CPU s": round(time.process_time() - started_cpu, 2),
            "peak MB": peak,
        }
    ]


def apart(function: Callable[..., None], *arguments: object) -> None:
    """Call in another process, so that its memory is not counted as ours."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def prepare(root: Path, count: int) -> None:
    """The run directory of a fixed run with `count` rollouts stored and eight left."""
    write_prompts(root, [f"What is {number} + 7?" for number in range(count // SAMPLES + 1)])
    store(task_of(root, SCRIPTED, own_sampling(), instruction="mathematics", seed=0), count)


def own_sampling() -> SamplingConfig:
    return SamplingConfig(temperature=SCRIPTED.temperature, top_p=SCRIPTED.top_p, max_tokens=SCRIPTED.max_tokens)


def store(task: Task, count: int) -> None:
    """Files as `generate` leaves them, of `count` rollouts."""
    wanted = ((prompt.prompt_id, index) for prompt in task.prompts() for index in range(SAMPLES))
    for number, part in enumerate(batched(islice(wanted, count), 4096)):
        rows = [
            {
                **dict.fromkeys(ROLLOUTS.names),
                "rollout_id": task.rollout_ids(prompt)(index),
                "prompt_id": prompt,
                "model": task.model,
                "sample_index": index,
                "sampling_id": task.files.sampling_id,
                "response": "The answer is \\boxed{7}.",
                "reasoning_form": "tags",
                "completion_tokens": 900,
                "source": "generate",
            }
            for prompt, index in part
        ]
        task.files.write_block(number, rows, [], "")


def batched(items: Iterator[tuple[str, int]], size: int) -> Iterator[list[tuple[str, int]]]:
    while part := list(islice(items, size)):
        yield part


def write_prompts(root: Path, texts: list[str]) -> None:
    rows = [
        {
            **dict.fromkeys(PROMPTS.names),
            "prompt_id": prompt_id(text),
            "problem": text,
            "answer": "7",
            "verifier": "mathematics",
            "source": "benchmark",
            "source_id": str(number),
        }
        for number, text in enumerate(texts)
    ]
    parquet.write_file(root / "prompts" / "00000.parquet", "prompts", [pa.Table.from_pylist(rows, schema=PROMPTS)])


if __name__ == "__main__":
    main()
