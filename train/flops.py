"""Floating-point operations of a training step, and what accelerators can do: what MFU is made of."""

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Accelerator:
    """What one can do and hold, as its maker states it."""

    flops: float
    """Dense bf16 operations a second."""
    memory_gb: float
    """As the driver reports it, in 10^9 bytes."""


ACCELERATORS = {
    "GH200": Accelerator(989e12, 102.6),
    "H200": Accelerator(989e12, 150.7),
    "H100 PCIe": Accelerator(756e12, 85.5),
    "H100": Accelerator(989e12, 85.5),
    "B200": Accelerator(2250e12, 192.2),
    "A100": Accelerator(312e12, 85.9),
    "L40S": Accelerator(362e12, 48.3),
    "RTX 4090": Accelerator(165e12, 25.7),
    "RTX 3090": Accelerator(71e12, 25.7),
}
"""Part of a device's name -> what it is; the first that fits counts. An A100 is taken for the one with 80 GB."""


def accelerator(name: str) -> Accelerator | None:
    """The accelerator that calls itself `name`; None for one not in the table."""
    return next((found for part, found in ACCELERATORS.items() if part.lower() in name.lower()), None)


def matrix_parameters(model: PreTrainedModel, *, trained: bool = False) -> int:
    """Parameters that every token is multiplied with: all matrices and the head, not a table that is looked up.

    A tied embedding is the head, and counts once. `trained` leaves out what is frozen.
    """
    embedding, head = ends(model)
    looked_up = None if embedding is head else embedding
    counted = (weight for weight in model.parameters() if weight.ndim >= 2 and weight is not looked_up)
    return sum(weight.numel() for weight in counted if weight.requires_grad or not trained)


def ends(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """The weights of embedding and head: one and the same where they are tied."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert isinstance(embedding, Tensor)
    assert isinstance(head, Tensor)
    return embedding, head


def mfu(
    model: PreTrainedModel, tokens: float, squared_lengths: float, seconds: float, device: Accelerator, num_devices: int
) -> float:
    """Share of what that many devices could do in that time which went into a step over these tokens, in [0, 1]."""
    return step_flops(model, tokens, squared_lengths) / (seconds * device.flops * num_devices)


def step_flops(model: PreTrainedModel, tokens: float, squared_lengths: float) -> float:
    """Operations of forward and backward pass over documents; `tokens` sums their lengths, the other their squares.

    6 x matrix parameters x tokens (4 x those that are frozen), plus 6 x layers x heads x head size x squared lengths
    for causal attention (forward 2: half of two T x T products of 2 each; backward twice that). What is computed a
    second time to save memory is not counted.
    """
    config = model.config
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    attention = 6 * config.num_hidden_layers * heads * head_dim * squared_lengths
    matrices = 4 * matrix_parameters(model) + 2 * matrix_parameters(model, trained=True)
    return matrices * tokens + attention
