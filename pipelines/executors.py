"""Spread a row stage over processes or machines, with datatrove's executors.

A task makes the label files of its share of the input files and nothing else; the command that
spread it then runs the stage again over all files, finds them fresh, and writes the manifest. Nothing
of our own schedules work.
"""

import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pipelines.config import Config
from pipelines.errors import UserError

Executor = Literal["inline", "local", "slurm", "ray"]


class SpreadConfig(Config):
    """Where the tasks of a stage run. Not part of any digest: it never changes a row."""

    executor: Executor = "inline"
    """`inline` is this process; the others are datatrove's executors."""
    tasks: int = 1
    workers: int = -1
    """Tasks at a time; -1 is all of them."""
    partition: str = ""
    """Slurm partition."""
    time: str = "24:00:00"
    """Slurm time limit of a task."""
    cpus_per_task: int = 1
    gpus_per_task: int = 0


def spread(stage: str, module: str, root: Path, config: Config, where: SpreadConfig) -> None:
    """Run the stage in `module` over its input files in `where.tasks` tasks; returns when they are done.

    The module offers `run(root, config, part=(rank, world_size))` and its config class as `CONFIG`.
    Slurm only submits: the function says so with a `UserError` whose hint is to come back, since the
    files are recognised as fresh then.
    """
    logging_dir = str(root / ".executor" / f"{stage}-{time.strftime('%Y%m%dT%H%M%S')}")
    # A plain function of (data, rank, world_size) is a datatrove pipeline; a partial of one pickles.
    task = partial(_run_part, module=module, root=str(root), values=config.resolved())
    if where.executor == "local":
        from datatrove.executor import LocalPipelineExecutor

        LocalPipelineExecutor([task], tasks=where.tasks, workers=where.workers, logging_dir=logging_dir).run()
    elif where.executor == "ray":
        from datatrove.executor.ray import RayPipelineExecutor

        RayPipelineExecutor(
            [task],
            tasks=where.tasks,
            workers=where.workers,
            logging_dir=logging_dir,
            cpus_per_task=where.cpus_per_task,
            gpus_per_task=where.gpus_per_task,
        ).run()
    elif where.executor == "slurm":
        from datatrove.executor.slurm import SlurmPipelineExecutor

        if not where.partition:
            raise UserError("`--executor slurm` needs a partition", hint="--set spread.partition=NAME")
        SlurmPipelineExecutor(
            [task],
            tasks=where.tasks,
            workers=where.workers,
            time=where.time,
            partition=where.partition,
            cpus_per_task=where.cpus_per_task,
            gpus_per_task=where.gpus_per_task,
            job_name=f"tracemill-{stage}",
            logging_dir=logging_dir,
        ).run()
        raise UserError(
            f"`{stage}` was submitted to Slurm in {where.tasks} tasks and is not finished",
            hint=f"when the job has ended, run `curate {stage} {root}` again: finished files are kept",
        )


def _run_part(
    data: Any,  # noqa: ARG001  (datatrove hands documents from step to step; a stage reads files)
    rank: int = 0,
    world_size: int = 1,
    *,
    module: str,
    root: str,
    values: dict[str, Any],
) -> None:
    stage = import_module(module)
    stage.run(Path(root), stage.CONFIG.parse(values, module), part=(rank, world_size))
