"""Several processes, one model: `torchrun` starts them, FSDP2 shards weights, gradients and optimizer over them.

Every rank runs the same loop on its share of each step; rank 0 alone writes, but for the shards of a checkpoint.
In a process of its own, without torchrun, there is one rank and nothing is sharded. The ranks share a file system.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from train.batches import Batch
from train.model import batch_logprobs

T = TypeVar("T")


@contextmanager
def processes(device: str) -> Iterator[None]:
    """Within this block the processes that `torchrun` started know each other."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    if rank() > 0:
        logging.getLogger("train").setLevel(logging.WARNING)  # the first rank says it once
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Which of the processes this is; 0 where there is one."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gathered(value: T) -> list[T]:
    """The `value` of every rank, in their order; all of them must ask."""
    values: list[T] = [value] * size()
    if size() > 1:
        dist.all_gather_object(values, value)
    return values


@contextmanager
def together() -> Iterator[None]:
    """An error in this block on any rank is raised on every rank after it; all of them must come by."""
    met: Exception | None = None
    try:
        yield
    except Exception as error:
        met = error
    for one in gathered(met):
        if one is not None:
            raise one


def whole(tensor: Tensor) -> Tensor:
    """`tensor` with all its shards; every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Scorer(nn.Module):
    """`batch_logprobs` of a model as a module, so that FSDP gathers the head with the rest."""

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: Batch) -> Tensor:
        """Log-probability of every target, shape (M,)."""
        return batch_logprobs(self.policy, batch)[0]


def scorer(policy: PreTrainedModel) -> Scorer:
    """A scorer of `policy`, whose parameters are sharded in place where there are several ranks.

    Weights and gradients travel in fp32, so a sharded run computes what one process does. Gradients are
    summed, not averaged: the loss is divided by the targets of all ranks, once.
    """
    score = Scorer(policy)
    if size() == 1:
        return score
    mesh = init_device_mesh(policy.device.type, (size(),))
    for layer in policy.base_model.layers:  # type: ignore[union-attr] # a list of modules
        fully_shard(layer, mesh=mesh)
    # Tied, embedding and head are one parameter, which two groups may not share.
    last = [policy.base_model.norm, policy.get_input_embeddings(), policy.get_output_embeddings()]
    fully_shard(last, mesh=mesh)
    fully_shard(score, mesh=mesh)
    for module in score.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    return score
