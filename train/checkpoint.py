"""Checkpoints: Hugging Face folders that appear whole, with their lineage, and what exact resumption needs.

`out/step-00000200/` can be resumed, `out/final/` is the stage's result, `out/run.json` says what the
run was asked to do. A run that was killed leaves at worst a `.saving-*` folder, which the next one removes.
Those to be resumed are written in the background, from a copy: training goes on meanwhile.
"""

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from pipelines import __version__, parquet, versions
from pipelines.config import Config, difference
from pipelines.errors import UserError, first_line
from pipelines.models import resolve_model, weights_digest
from pipelines.runner import locked, write_text
from train.batches import end_of_turn
from train.distributed import gathered, rank, size, together
from train.lora import adapted, merged_weights
from train.model import named_weights

# --- what a run is made from ----------------------------------------------------------------------


@contextmanager
def run_folder(out: Path) -> Iterator[None]:
    """Hold `out` for this run; memory or a disk that runs out is one sentence, whatever was being done."""
    with locked(out) if rank() == 0 else nullcontext(), room(out):
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the accelerator's memory is used up: {first_line(error)}",
                hint="smaller `micro_tokens` or `max_length`; `train plan` says what a recipe needs",
            ) from error


@contextmanager
def room(out: Path) -> Iterator[None]:
    """A disk that fills up within is a `UserError`, whatever was being written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not _is_full(error):
            raise
        raise UserError(
            f"no room to write to `{out}`: {first_line(error)}",
            hint="make room; the same command goes on from what is stored, which is whole",
        ) from None


def _is_full(error: Exception) -> bool:
    """Whether an error says that the disk, a quota or a limit is used up."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError):
        return error.errno in codes
    return any(f"(os error {code})" in str(error) for code in codes)


def begin(out: Path, stage: str, config: Config, shards: Path, model: str, *, replace: bool = False) -> dict[str, Any]:
    """The lineage of a run in `out`: from `model` and the stage's shards, by `config`.

    A run directory is continued only by the same: anything else is a `UserError` with the difference,
    or starts over with `replace`.
    """
    lineage = {
        "stage": stage,
        "code": __version__,
        "model": model,
        "model_digest": model_digest(model),
        "shards": shard_digests(shards, stage),
        "version": versions.cited(shards),
        "config": config.resolved(),
    }
    if rank() == 0:
        _prepare(out, lineage, replace=replace)
    gathered(None)  # nobody looks into `out` before it is prepared
    return lineage


def _prepare(out: Path, lineage: Mapping[str, Any], *, replace: bool) -> None:
    for saving in out.glob(".saving-*"):
        shutil.rmtree(saving)
    path = out / "run.json"
    others = [name for name in _contents(out) if not _is_ours(name)]
    if others and not path.is_file():
        raise UserError(
            f"`{out}` holds other things than a run of training, among them `{others[0]}`",
            hint="name another folder by --out",
        )
    if path.is_file():
        changed = difference(_identity(json.loads(path.read_text(encoding="utf-8"))), _identity(lineage))
        # A first try that was refused before it did anything binds nobody.
        if changed and not replace and _contents(out) != [path.name]:
            raise UserError(
                f"`{out}` was begun with another {lineage['stage']} config: {'; '.join(changed)}",
                hint="take back the change, use another --out, or `--replace` to train again",
            )
        if changed:
            _clear(out)
    write_text(path, json.dumps(lineage, indent=1) + "\n")


def _identity(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two runs the same: settings, weights and data; where they lie does not matter."""
    return {**lineage["config"], "model": lineage["model_digest"], "shards": lineage["shards"]}


_OURS = (
    *("run.json", "metrics.jsonl", "curves*.png", "final", "step-*", ".saving-*", "reference-*.safetensors"),
    *("tensorboard", "eval", "logs", "weights", "ahead", "pilot", "prompts", "rollouts", "verdicts", "rewards"),
)
"""What training and evaluation write into a run's folder."""


def _contents(out: Path) -> list[str]:
    """Names of what lies in a run's folder."""
    return sorted(each.name for each in out.iterdir() if each.name != ".lock")


def _is_ours(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _OURS)


def _clear(out: Path) -> None:
    """Remove what an earlier run has written; what others have put beside it stays."""
    for path in (out / name for name in _contents(out) if _is_ours(name)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def model_digest(model: str) -> str:
    """Digest of a model's folder; the name itself for a model on the hub."""
    source = Path(resolve_model(model))
    return weights_digest(source) if source.is_dir() else f"hub:{source}"


def shard_digests(shards: Path, stage: str) -> dict[str, str]:
    """File name -> content digest of a stage's shards."""
    files = parquet.require_files(shards, f"shards/{stage}", hint=f"make the shards first: `curate split {shards}`")
    return {path.name: parquet.facts(path).digest for path in files}


# --- saving and resuming --------------------------------------------------------------------------


class Writer:
    """Writes checkpoints in a thread while training goes on, one at a time."""

    def __init__(self, pool: ThreadPoolExecutor, failed: Callable[[], None]) -> None:
        self._pool, self._failed = pool, failed
        self._writing: Future[None] | None = None
        # What ranks tell each other about a checkpoint must not be taken for a message of the training.
        self._group = dist.new_group(backend="gloo") if size() > 1 else None

    def start(self, write: Callable[[dist.ProcessGroup | None], None]) -> None:
        """Have `write` called in the thread; should it fail, `failed` is called and `finish` raises the error."""
        assert self._writing is None, "one at a time"
        self._writing = self._pool.submit(write, self._group)
        self._writing.add_done_callback(lambda done: self._failed() if done.exception() else None)

    def finish(self) -> None:
        """Wait for what is being written; an error there is raised on every rank."""
        writing, self._writing = self._writing, None
        with together():
            if writing is not None:
                writing.result()


@contextmanager
def background(failed: Callable[[], None]) -> Iterator[Writer]:
    """A `Writer` for this block, whose end waits for it."""
    with ThreadPoolExecutor(1) as pool:
        yield Writer(pool, failed)


def save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lineage: Mapping[str, Any],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    step: int | None = None,
    extra: Mapping[str, Any] | None = None,
    writer: Writer | None = None,
) -> None:
    """Write a checkpoint to `folder`, whole or not at all, and remove the resumable ones before it.

    With `optimizer` and `step`, the number of steps done, it can be resumed; `extra` is JSON of the loop's own.
    Of a sharded model each rank writes its shards, and no weights in the format of Hugging Face until the end.
    With a `writer`, which must have finished, this returns once there is a copy of what it is to write.
    """
    saving = folder.with_name(f".saving-{folder.name}")
    sharded = optimizer is not None and size() > 1
    plain = size() == 1 and not adapted(model)
    weights = {} if sharded else dict(named_weights(model)) if plain else merged_weights(model)
    state = {} if optimizer is None else _state(model, optimizer, with_weights=not plain)
    if writer is not None:
        weights, state = (BlockingAsyncStager().stage(tensors) for tensors in (weights, state))
    with together(), _gone_if_failed(saving):
        if rank() == 0:
            _begin_folder(saving, model, tokenizer, {**lineage, "steps": step})
            if optimizer is not None:
                (saving / "state").mkdir()
                _write_json(saving / "state" / "loop.json", {"step": step, "extra": dict(extra or {})})

    def write(group: dist.ProcessGroup | None = None) -> None:
        with _gone_if_failed(saving):
            if weights:
                model.save_pretrained(saving, state_dict=weights)
            if state:
                _save_state(saving / "state", state, group)
            if rank() == 0:
                _publish(saving, folder)

    if writer is not None:
        writer.start(write)
    else:
        with together():
            write()


@contextmanager
def _gone_if_failed(saving: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(saving, ignore_errors=True)  # its room may be what is missing
        raise


def _begin_folder(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lineage: Mapping[str, Any]
) -> None:
    """`folder`, empty before, with all but the weights that transformers loads."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.generation_config = _generation_config(model, tokenizer)
    for part in (model.config, model.generation_config, tokenizer):
        part.save_pretrained(folder)
    _write_json(folder / "tracemill.json", lineage)


def _save_state(folder: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup | None) -> None:
    if size() == 1:
        save_file(tensors, folder / "state.safetensors")
        return
    storage = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        state_dict_saver.save(tensors, storage_writer=storage, process_group=group)
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None


def _publish(saving: Path, folder: Path) -> None:
    """Everything to the disk, then its name; then the older ones go."""
    for path in (*saving.rglob("*"), saving):
        _sync(path)
    saving.rename(folder)
    _sync(folder.parent)
    for older in folder.parent.glob("step-*"):
        if older != folder:
            shutil.rmtree(older)


def _generation_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Generation stops at the end of the turn, or of the document: a chat model has a token for each."""
    turn, document = end_of_turn(tokenizer), tokenizer.eos_token_id
    stops = [turn] if document in (None, turn) else [turn, document]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[-1]
    return GenerationConfig(bos_token_id=model.config.bos_token_id, eos_token_id=stops, pad_token_id=pad)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _state(model: PreTrainedModel, optimizer: torch.optim.Optimizer, *, with_weights: bool) -> dict[str, Tensor]:
    """Optimizer state by parameter name (`exp_avg/model.norm.weight`), random generators, and weights where asked."""
    tensors = {"rng/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    for name, parameter in _trained(model).items():
        tensors |= {f"{key}/{name}": value for key, value in optimizer.state[parameter].items()}
        if with_weights:
            tensors[f"weight/{name}"] = parameter.detach()
    return tensors


def _trained(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def latest(out: Path) -> Path | None:
    """The resumable checkpoint with the most steps in `out`."""
    return max(out.glob("step-*"), default=None)


def restore(folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]]:
    """Load weights, optimizer and random generators of `folder` in place; returns (steps done, `extra`).

    However many ranks saved it, any number of them may restore it.
    """
    parameters = _trained(model)
    state = _stored(folder / "state")
    weights = {key.removeprefix("weight/"): kept for key, kept in state.items() if key.startswith("weight/")}
    beside = {} if weights else _stored(folder)
    weights = weights or beside
    differs = {name for name in weights.keys() | parameters.keys() if not _fits(weights, parameters, name)}
    if differs:
        raise UserError(f"`{folder}` is a checkpoint of another model: `{min(differs)}`", hint="use another --out")
    into: dict[str, Tensor] = {}
    for key, kept in state.items():
        kind, _, name = key.partition("/")
        if kind == "rng":
            into[key] = torch.empty(kept.size, dtype=kept.properties.dtype)
        elif kind == "weight":
            into[key] = parameters[name].detach()
        else:
            into[key] = optimizer.state[parameters[name]][kind] = _room(kept, parameters[name])
    _load(into, folder / "state")
    _load({name: parameters[name].detach() for name in beside}, folder)
    torch.set_rng_state(into["rng/cpu"])
    if "rng/cuda" in into and torch.cuda.is_available():
        torch.cuda.set_rng_state(into["rng/cuda"])
    loop = json.loads((folder / "state" / "loop.json").read_text(encoding="utf-8"))
    return loop["step"], loop["extra"]


def _stored(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Shape and type of every tensor in a folder's safetensors files, sharded or not."""
    stored: dict[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return stored


def _fits(weights: Mapping[str, TensorStorageMetadata], parameters: Mapping[str, nn.Parameter], name: str) -> bool:
    return name in weights and name in parameters and weights[name].size == parameters[name].shape


def _room(kept: TensorStorageMetadata, parameter: nn.Parameter) -> Tensor:
    """An empty tensor for a piece of a parameter's optimizer state, sharded as the parameter is."""
    dtype = kept.properties.dtype
    if kept.size == parameter.shape:
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(kept.size, dtype=dtype, device=parameter.device)


def _load(into: dict[str, Tensor], folder: Path) -> None:
    """Fill the tensors of `into` with those of the same names in `folder`."""
    if not into:
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what we mean
        state_dict_loader.load(into, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=size() == 1)


def resume(out: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]]:
    """`restore` from the latest checkpoint in `out`; (0, {}) where there is none yet."""
    folder = latest(out)
    return (0, {}) if folder is None else restore(folder, model, optimizer)
