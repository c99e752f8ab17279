"""One step off: the rollouts of a step are sampled in a thread while the step before is trained.

What samples is a copy of the policy that stays one update behind. A checkpoint keeps its weights, so that a run which
goes on samples from them again what was in flight.
"""

import copy
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from train.model import named_weights
from train.rollouts import StepRollouts

Ask = Callable[[int, int], StepRollouts | None]
"""`(step, cursor)` to the step's rollouts, or None if told to stop."""


class Ahead:
    """The copy that samples, and the step whose rollouts are in flight."""

    def __init__(self, policy: PreTrainedModel, out: Path, first_step: int) -> None:
        """Begin with the weights of `policy` or, where a run goes on, with those kept for `first_step`."""
        self.lagging = copy.deepcopy(policy).requires_grad_(False)
        self._folder = out / "ahead"
        self._pending: Future[StepRollouts | None] | None = None
        # One thread for all steps, the first as well: how torch splits its sums may depend on the thread.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        if first_step > 0:
            kept = load_file(self._file(first_step))
            with torch.no_grad():
                for name, weight in named_weights(self.lagging):
                    weight.copy_(kept[name])

    def begin(self, ask: Ask, step: int, cursor: int) -> None:
        """Start to sample `step` with the weights that the copy has."""
        assert self._pending is None, "one step ahead, not two"
        self._pending = self._thread.submit(ask, step, cursor)

    def take(self, ask: Ask, step: int, cursor: int) -> StepRollouts | None:
        """The rollouts of `step`, as soon as they are whole."""
        if self._pending is None:
            self.begin(ask, step, cursor)
        assert self._pending is not None
        pending, self._pending = self._pending, None
        return pending.result()

    def catch_up(self, policy: PreTrainedModel) -> None:
        """Give the copy the weights of `policy`; nothing may be in flight."""
        assert self._pending is None, "the copy is sampling"
        self.lagging.load_state_dict(policy.state_dict())

    def keep(self, step: int) -> None:
        """Store the weights from which `step` is sampled, whole or not at all."""
        self._folder.mkdir(exist_ok=True)
        saving = self._folder / ".saving"
        save_file({name: weight.contiguous() for name, weight in named_weights(self.lagging)}, saving)
        with saving.open("rb") as file:
            os.fsync(file.fileno())
        saving.rename(self._file(step))

    def forget(self, step: int | None = None) -> None:
        """Remove what was stored, but for `step`."""
        for older in self._folder.glob("*.safetensors"):
            if step is None or older != self._file(step):
                older.unlink()

    def close(self, stop: threading.Event) -> None:
        """End what is in flight, and the thread."""
        stop.set()
        self._thread.shutdown()

    def _file(self, step: int) -> Path:
        return self._folder / f"{step:08d}.safetensors"
