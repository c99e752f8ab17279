"""Spread a stage over processes or machines, with datatrove's executors.

A task makes its share of the stage's output and nothing else; the command that spread it then goes over
the whole, finds it done, and writes the manifest. Nothing of our own schedules work.

A task is a fresh interpreter below the executor's own process. So it may have children (engines do, and
datatrove's pool processes may not), and one that is killed, by the kernel for its memory say, ends with an
exit code and is started again, where a pool would wait for ever.
"""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipelines.config import Config
from pipelines.errors import UserError

Executor = Literal["inline", "local", "slurm", "ray"]

_LOOK_EVERY_S = 0.1
_STARTS = 3
"""A task that a signal kills is started so often in all."""
_HOME = Path(__file__).parents[1]


class SpreadConfig(Config):
    """Where the tasks of a stage run. Not part of any digest: it never changes a row."""

    executor: Executor = "inline"
    """`inline` is this process; the others are datatrove's executors."""
    tasks: int = Field(1, ge=1)
    workers: int = -1
    """Tasks at a time; -1 is all of them."""
    partition: str = ""
    """Slurm partition."""
    qos: str = "normal"
    """Slurm quality of service; empty leaves it to Slurm."""
    time: str = "24:00:00"
    """Slurm time limit of a task."""
    cpus_per_task: int = 1
    mem_per_cpu_gb: int = 2
    gpus_per_task: int | None = None
    """None is what the stage needs: a teacher's GPUs, none for other stages."""


def spread(
    stage: str,
    module: str,
    root: Path,
    config: Config,
    where: SpreadConfig,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Run the stage in `module` over its share of the input in `where.tasks` tasks; returns when they are done.

    The module offers `run(root, config, part=(rank, world_size), **options)` and its config class as `CONFIG`.
    Slurm only submits: the function says so with a `UserError` whose hint is to come back, since what is
    done is recognised then.
    """
    root = root.resolve()
    at_once = where.tasks if where.workers < 1 else min(where.workers, where.tasks)
    gpus = where.gpus_per_task or 0
    if where.executor == "local" and gpus:
        _refuse_too_few_devices(at_once, gpus)
    logging_dir = str(root / ".executor" / f"{stage}-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
    # A plain function of (data, rank, world_size) is a datatrove pipeline; a partial of one pickles.
    task = partial(
        _run_part,
        stage=stage,
        module=module,
        root=str(root),
        values=config.resolved(),
        options=dict(options or {}),
        executor=where.executor,
        at_once=at_once,
        gpus=gpus,
    )
    shared: dict[str, Any] = {"tasks": where.tasks, "workers": where.workers, "logging_dir": logging_dir}
    room = {"cpus_per_task": where.cpus_per_task, "mem_per_cpu_gb": where.mem_per_cpu_gb, "gpus_per_task": gpus}
    if where.executor == "local":
        from datatrove.executor import LocalPipelineExecutor

        LocalPipelineExecutor([task], **shared).run()
    elif where.executor == "ray":
        _join_ray_cluster()
        from datatrove.executor.ray import RayPipelineExecutor

        RayPipelineExecutor([task], **shared, **room).run()
    elif where.executor == "slurm":
        from datatrove.executor.slurm import SlurmPipelineExecutor

        if not where.partition:
            raise UserError("`--executor slurm` needs a partition", hint="--set spread.partition=NAME")
        SlurmPipelineExecutor(
            [task],
            **shared,
            **room,
            time=where.time,
            partition=where.partition,
            qos=where.qos,
            job_name=f"tracemill-{stage}",
            env_command=f'export PATH="{Path(sys.executable).parent}:$PATH"',
        ).run()
        raise UserError(
            f"`{stage}` was submitted to Slurm in {where.tasks} tasks and is not finished",
            hint=f"when the job has ended, run `curate {stage}` on {root} again: what is finished is kept",
        )


def _refuse_too_few_devices(at_once: int, gpus: int) -> None:
    from pipelines.samplers import accelerator_count

    available = accelerator_count()
    if at_once * gpus > available:
        fitting = available // gpus
        raise UserError(
            f"{at_once} tasks at a time with {gpus} accelerators each need {at_once * gpus}, here are {available}",
            hint=f"--set spread.workers={fitting}"
            if fitting
            else "--executor slurm, or a model server: `--server URL`",
        )


def _join_ray_cluster() -> None:
    """Join the cluster that RAY_ADDRESS names or `ray start` began on this machine; begin one here otherwise."""
    try:
        ray = import_module("ray")
    except ImportError:
        raise UserError("`--executor ray` needs Ray", hint="pip install tracemill[ray]") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": _environment()["PYTHONPATH"]}})


# --- in a task ------------------------------------------------------------------------------------


def _run_part(
    data: Any,  # noqa: ARG001  (datatrove hands documents from step to step; a stage reads files)
    rank: int = 0,
    world_size: int = 1,
    *,
    stage: str,
    executor: Executor,
    at_once: int,
    gpus: int,
    **work: Any,
) -> None:
    """Run one task in an interpreter of its own, again where a signal killed it."""
    environment = _environment()
    with ExitStack() as stack:
        if executor == "local":  # Ray and Slurm give each task its own devices and cores
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_once)))
            if gpus:
                place = stack.enter_context(free_place(Path(work["root"]) / ".executor", at_once))
                environment["CUDA_VISIBLE_DEVICES"] = devices_of(place, gpus, environment.get("CUDA_VISIBLE_DEVICES"))
        # Ray and local tasks work under the lock of the command that waits for them.
        order = json.dumps({**work, "part": (rank, world_size), "lock": executor == "slurm"})
        shown = (stage, f"{rank}/{world_size}", work["root"])  # for who looks at the list of processes
        for _ in range(_STARTS):
            task = subprocess.run(  # noqa: S603
                [sys.executable, "-m", "pipelines.executors", *shown],
                input=order,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                check=False,
            )
            if task.returncode == 0:
                return
            if task.returncode > 0:
                break
    said = task.stdout.strip() or f"it ended with exit code {task.returncode}"
    raise UserError(f"task {rank} of `{stage}` failed: {said}", hint="the same command goes on with what is left")


@contextmanager
def free_place(folder: Path, number: int) -> Iterator[int]:
    """A place, from 0 to `number` - 1, that no other process holds; waits for one, and holds it within the block.

    Tasks outnumber devices and end in any order, so a task's rank says nothing about which devices are free. The
    lock ends with the process, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for place in cycle(range(number)):
        with (folder / f"place-{place}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_LOOK_EVERY_S)
                continue
            yield place
            return


def devices_of(place: int, number: int, visible: str | None) -> str:
    """The `number` devices of a place, as CUDA_VISIBLE_DEVICES names them.

    They are among the `visible` ones, where these are restricted already: on a shared machine others are not ours.
    """
    wanted = range(place * number, (place + 1) * number)
    names = visible.split(",") if visible else None
    return ",".join(names[device].strip() if names else str(device) for device in wanted)


def _work() -> None:
    """The task that stdin describes; a `UserError` is said on stdout."""
    order = json.load(sys.stdin)
    root, stage = Path(order["root"]), import_module(order["module"])
    try:
        with (root / ".lock").open("a+") as lock:
            if order["lock"]:
                fcntl.flock(lock, fcntl.LOCK_SH)  # writing commands wait until the last task has ended
            config = stage.CONFIG.parse(order["values"], order["module"])
            stage.run(root, config, part=tuple(order["part"]), **order["options"])
    except UserError as error:
        sys.stdout.write(error.message)
        raise SystemExit(1) from None


def _environment() -> dict[str, str]:
    """This process's environment, with our packages on the path of a new interpreter."""
    known = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{_HOME}{os.pathsep}{known}" if known else str(_HOME)}


if __name__ == "__main__":
    _work()
