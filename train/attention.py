"""Attention over documents laid end to end: each sees itself only, whatever else is in the batch.

N tokens laid end to end, S documents, H heads, D head size, B documents of similar length, T the longest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers.modeling_utils import AttentionInterface

NAME = "tracemill_documents"

KERNELS = frozenset(
    {
        torch.ops.torch_attn._varlen_attn.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    }
)
"""Operations that attend, as autograd sees them: costly to repeat, small to keep."""

_LENGTH_SPREAD = 0.75
"""Documents attend together, padded to the longest, while none is shorter than this share of it."""

_EXPLICIT_WIDTH = 256
"""Longest document in bf16 on a CPU whose attention is written out as matrix products."""


@dataclass(frozen=True)
class Layout:
    """Where documents lie in a batch; made once a batch, used by every layer."""

    boundaries: Tensor
    """Cumulative lengths, shape (S + 1,), int32."""
    longest: int
    grids: tuple[tuple[Tensor, tuple[int, int]], ...] = ()
    """For each group of similar documents: indices into N of its B x T grid, flat, and (B, T). Empty: varlen kernel."""
    from_grids_N: Tensor | None = None
    """Where each token's output stands in all grids laid end to end."""


def layout(lengths: Sequence[int], device: torch.device, *, varlen: bool) -> Layout:
    """The layout of documents of these lengths; `varlen` is for bf16 on a GPU, grids are for everything else."""
    boundaries = [0, *accumulate(lengths)]
    boundaries_S1 = torch.tensor(boundaries, dtype=torch.int32, device=device)
    if varlen:
        return Layout(boundaries_S1, max(lengths))
    grids, start = [], 0
    from_grids_N = torch.empty(boundaries[-1], dtype=torch.int64)
    for group in _groups(lengths):
        width = lengths[group[0]]
        first_B = torch.tensor([boundaries[document] for document in group])
        last_B = torch.tensor([boundaries[document + 1] - 1 for document in group])
        # Beyond its end a row repeats its last token: causal attention keeps that from the tokens before.
        index_BT = torch.minimum(first_B[:, None] + torch.arange(width), last_B[:, None])
        grids.append((index_BT.flatten().to(device), (len(group), width)))
        for row, document in enumerate(group):
            place = start + row * width
            from_grids_N[boundaries[document] : boundaries[document + 1]] = torch.arange(
                place, place + lengths[document]
            )
        start += len(group) * width
    return Layout(boundaries_S1, max(lengths), tuple(grids), from_grids_N.to(device))


def _groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Documents by falling length, cut where they become too short for the first of the group."""
    group: list[int] = []
    for document in sorted(range(len(lengths)), key=lambda document: -lengths[document]):
        if group and lengths[document] < _LENGTH_SPREAD * lengths[group[0]]:
            yield group
            group = []
        group.append(document)
    yield group


def register() -> None:
    """Make `NAME` an attention of transformers. It has no mask function, so no mask is made, cache or no cache."""
    AttentionInterface.register(NAME, document_attention)


def document_attention(
    module: nn.Module,  # noqa: ARG001 # transformers calls with it
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    documents: Layout,
    **_: object,
) -> tuple[Tensor, None]:
    """Causal attention inside each document: states (1, H, N, D) to (1, N, H, D)."""
    assert attention_mask is None, "documents are told apart by `documents` alone"
    # Rotary embedding in fp32 lifts queries and keys above the autocast type of the values.
    query_NHD, key_NHD, value_NHD = (states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    if documents.from_grids_N is not None:
        return _grid_attention(query_NHD, key_NHD, value_NHD, scaling, documents, grouped)[None], None
    attended_NHD: Tensor = varlen_attn(  # type: ignore[assignment] # without return_aux it is the output alone
        query_NHD,
        key_NHD,
        value_NHD,
        documents.boundaries,
        documents.boundaries,
        documents.longest,
        documents.longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=grouped,
        num_splits=1,  # else the longest neighbour decides how a document's sums are cut
    )
    return attended_NHD[None], None


@torch.compiler.disable  # type: ignore[untyped-decorator] # grids differ from batch to batch; each would be compiled
def _grid_attention(
    query_NHD: Tensor, key_NHD: Tensor, value_NHD: Tensor, scaling: float, documents: Layout, grouped: bool
) -> Tensor:
    """Attention of each group of similar documents as one padded batch; one dense mask would cost ten times as much."""
    assert documents.from_grids_N is not None
    outputs = []
    for index, (rows, width) in documents.grids:
        query, key, value = (
            states.index_select(0, index).view(rows, width, *states.shape[1:]).transpose(1, 2)
            for states in (query_NHD, key_NHD, value_NHD)
        )
        attended = _attend(query, key, value, scaling, grouped)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, documents.from_grids_N)


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, grouped: bool) -> Tensor:
    """Causal attention, (B, H, T, D)."""
    width = query.shape[2]
    if query.dtype != torch.bfloat16 or width > _EXPLICIT_WIDTH:
        return functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped
        )
    # torch's fused kernel for the CPU takes two to four times as long as plain products here.
    if grouped:
        key, value = (states.repeat_interleave(query.shape[1] // states.shape[1], dim=1) for states in (key, value))
    future_TT = torch.full((width, width), -torch.inf, dtype=query.dtype, device=query.device).triu(1)
    scores = torch.baddbmm(future_TT, query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), alpha=scaling)
    return torch.bmm(scores.softmax(dim=-1), value.flatten(0, 1)).view_as(query)
