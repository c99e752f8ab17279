"""All stages: mid-training, SFT, DPO and RL in order, each from the checkpoint of the one before.

A stage runs in a process of its own, so that its memory is gone before the next begins (an accelerator's
too). The processes are forked from a server that has imported torch once: starting one takes
milliseconds, not the seconds of a fresh interpreter.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from pipelines import parquet
from pipelines.config import Config, Recipe
from pipelines.errors import UserError
from pipelines.models import resolve_model
from pipelines.runner import locked
from pipelines.tables import STAGES
from train.curves import draw_curves
from train.dpo import DpoConfig, train_dpo
from train.evaluate import EvalConfig, evaluate
from train.grpo import RlConfig, train_rl
from train.sft import MidtrainConfig, SftConfig, train_midtrain, train_sft

CONFIGS: dict[str, type[Config]] = {
    "midtrain": MidtrainConfig,
    "sft": SftConfig,
    "dpo": DpoConfig,
    "rl": RlConfig,
    "eval": EvalConfig,
}
"""Section of a recipe -> its settings."""

TRAINERS: dict[str, Callable[..., Path]] = {
    "midtrain": train_midtrain,
    "sft": train_sft,
    "dpo": train_dpo,
    "rl": train_rl,
}
"""Stage -> `(config, shards, model, out, *, replace) -> folder of the trained model`."""


@dataclass(frozen=True)
class Trained:
    """What one stage came to."""

    stage: str
    folder: Path
    made: bool
    """False where it was finished already."""
    seconds: float


def train_all(
    recipe: Recipe, shards: Path, model: str, out: Path, *, on: Sequence[str] = (), replace: bool = False
) -> Iterator[Trained]:
    """Run the recipe's stages in order, one folder of `out` each; yields each as it is finished.

    With benchmarks in `on`, the model at the start (in `out/base`) and after each stage is evaluated
    on them. What is finished is not done again; another config is refused unless `replace`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "`train all` starts a process a stage, which torchrun cannot", hint="run each stage by torchrun"
        )
    configs = stage_configs(recipe)
    check_shards(shards, stages_of(recipe))
    resolve_model(model)
    with locked(out):
        if on:
            in_process(evaluate, configs["eval"], model, on, out / "base")
        for stage in stages_of(recipe):
            started, folder = time.monotonic(), out / stage / "final"
            before = made_at(folder)
            in_process(TRAINERS[stage], configs[stage], shards, model, out / stage, replace=replace)
            seconds, made = time.monotonic() - started, made_at(folder) != before
            if made:
                draw_curves(out / stage, stage)
            if on:
                in_process(evaluate, configs["eval"], str(folder), on, out / stage)
            model = str(folder)
            yield Trained(stage, folder, made, seconds)


def made_at(folder: Path) -> int | None:
    """When a trained model appeared, in nanoseconds; None where there is none."""
    return folder.stat().st_mtime_ns if folder.is_dir() else None


def stages_of(recipe: Recipe) -> list[str]:
    """The training stages among the recipe's steps, in order; all four where it names none."""
    return [stage for stage in STAGES if stage in recipe.get("steps", ())] or list(STAGES)


def stage_configs(recipe: Recipe) -> dict[str, Config]:
    """Every stage's settings as the recipe gives them."""
    return {stage: kind.parse(recipe.get(stage, {}), stage) for stage, kind in CONFIGS.items()}


def check_shards(shards: Path, stages: Sequence[str]) -> dict[str, int]:
    """Rows of each stage's shards; a `UserError` where there are none, or of another stage or schema version."""
    rows = {}
    for stage in stages:
        table = f"shards/{stage}"
        files = parquet.require_files(shards, table, hint=f"make the shards first: `curate split {shards}`")
        for file in files:
            parquet.check_schema(file, table)
        rows[stage] = sum(parquet.facts(file).rows for file in files)
    return rows


# --- processes ------------------------------------------------------------------------------------


def in_process(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """`function(...)` in a process that ends with it, or with us; its errors are raised here."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context, initializer=_begin_process) as pool:
        running = pool.submit(_call, function, *arguments, **options)
        try:
            return running.result()
        except KeyboardInterrupt:
            with suppress(BrokenProcessPool):
                running.result()  # it has heard Ctrl-C too: if it saves, it says so
            raise
        except BrokenProcessPool:
            raise UserError(
                f"the process of `{function.__name__}` was killed",
                hint="if memory ran out, lower `micro_tokens`; the same command goes on where it stopped",
            ) from None


_idle, _orphaned = threading.Event(), threading.Event()


def _call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """`function(...)` in a process of `in_process`; without a parent its error is said here, for nobody else will."""
    _idle.clear()
    try:
        return function(*arguments, **options)
    except UserError as error:
        if _orphaned.is_set():
            sys.stderr.write(f"{error.message}\n")
        raise
    finally:
        _idle.set()


def _begin_process() -> None:
    log_to_stderr()
    parent = multiprocessing.parent_process()
    assert parent is not None
    _idle.set()

    def leave_with_parent() -> None:
        wait([parent.sentinel])
        _orphaned.set()
        os.kill(os.getpid(), signal.SIGTERM)
        _idle.wait()  # a stage that saves first
        os._exit(128 + signal.SIGTERM)

    # A killed command must not leave a stage behind that goes on; told so, it saves what it has done.
    threading.Thread(target=leave_with_parent, daemon=True).start()


class _Stderr(logging.Handler):
    """Writes to the stderr of the moment: while a bar is shown, that is one which puts lines above the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{self.format(record)}\n")


def log_to_stderr() -> None:
    """Our log lines as they are; of libraries, warnings only."""
    import transformers

    logging.basicConfig(handlers=[_Stderr()], format="%(message)s")
    for name in ("train", "pipelines"):
        logging.getLogger(name).setLevel(logging.INFO)
    transformers.utils.logging.disable_progress_bar()
