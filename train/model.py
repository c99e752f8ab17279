"""Models: loading, the padding-free forward pass, and `token_logprobs`, which every loss uses.

N tokens laid end to end, M targets, D hidden size, V vocabulary, C tokens of a chunk.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from pipelines.errors import UserError, first_line
from pipelines.models import pin_longrope, resolve_model
from train import attention
from train.batches import Batch

_log = logging.getLogger(__name__)

Recompute = Literal["auto", "off", "selective", "full"]
"""Activations of a layer: stored; computed again in the backward pass but for attention; or all computed again.

`auto` is `full` on a GPU, where memory is what runs out, else `off`.
"""

_CHUNK_LOGITS = 1 << 27
"""Logits alive at once: 0.5 GiB in fp32."""


def default_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with its chat template."""
    try:
        return AutoTokenizer.from_pretrained(resolve_model(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"`{name}` has no tokenizer: {first_line(error)}", hint="name a complete model folder"
        ) from None


def load_model(
    name: str, *, max_length: int, device: torch.device | str = "cpu", recompute: Recompute = "auto"
) -> PreTrainedModel:
    """A causal language model in fp32, its dropout off, documents isolated, LongRoPE pinned for `max_length`.

    Weights stay fp32, the master copy; compute in bf16 is `optim.autocast`.
    """
    attention.register()
    disable_progress_bar()  # our own lines tell what takes long
    source = resolve_model(name)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        max_length = min(max_length, config.max_position_embeddings)
        _refuse_unsupported(config, name, max_length)
        pin_longrope(config, max_length)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention.NAME,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"`{name}` cannot be loaded: {first_line(error)}",
            hint="name a folder with config.json and safetensors weights of a causal language model",
        ) from None
    assert model.get_output_embeddings().bias is None, "an output head with a bias is not supported"
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    set_recompute(model, recompute, device)
    return model.to(device).train()  # type: ignore[arg-type] # transformers wraps `to` without its types


def set_recompute(model: PreTrainedModel, recompute: Recompute, device: torch.device | str) -> None:
    """Have the layers of `model`, which will stand on `device`, keep their activations or compute them again."""
    if recompute == "auto":
        recompute = "full" if torch.device(device).type == "cuda" else "off"
    if recompute != "off":
        keep = {"context_fn": _keep_attention} if recompute == "selective" else {}
        model.gradient_checkpointing_enable({"use_reentrant": False, **keep})


def compile_layers(model: PreTrainedModel, backend: str = "inductor") -> None:
    """Have torch compile the forward pass of the layers: a few graphs for all of them, and for batches of any length.

    A layer's own hooks and what calls it stay outside: checkpointing, and FSDP's gathering of its weights.
    """
    if backend == "inductor" and model.device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except RuntimeError:
            raise UserError("`compile` needs a C++ compiler", hint="install g++, or leave it off") from None
    for layer in model.base_model.layers:  # type: ignore[union-attr] # a list of modules
        layer.forward = torch.compile(layer.forward, backend=backend, dynamic=True)


def _keep_attention() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a layer's forward pass and of its repetition: what attention came to is kept, the rest is not."""
    return create_selective_checkpoint_contexts(
        lambda _context, operation, *_arguments, **_options: (
            CheckpointPolicy.MUST_SAVE if operation in attention.KERNELS else CheckpointPolicy.PREFER_RECOMPUTE
        )
    )


def _refuse_unsupported(config: PreTrainedConfig, name: str, max_length: int) -> None:
    """A `UserError` for what this forward pass would silently do differently."""
    window = getattr(config, "sliding_window", None)
    if window is not None and window < max_length:
        raise UserError(f"`{name}` attends {window} tokens back only, `max_length` is {max_length}")
    if getattr(config, "final_logit_softcapping", None) is not None:
        raise UserError(f"`{name}` caps its logits, which the trainers do not do")


def usable_length(name: str, max_length: int) -> int:
    """`max_length`, or the model's positions where it has fewer; that is logged."""
    positions: int = AutoConfig.from_pretrained(resolve_model(name), trust_remote_code=False).max_position_embeddings
    if positions < max_length:
        _log.info("`%s` has %d positions: max_length %d becomes %d", name, positions, max_length, positions)
    return min(max_length, positions)


def batch_logprobs(
    model: PreTrainedModel, batch: Batch, *, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of every target of `batch`, shape (M,), fp32; and the entropy there (no gradient) where asked."""
    hidden_ND = forward_hidden(model, batch)
    head_VD = model.get_output_embeddings().weight
    return token_logprobs(
        hidden_ND.index_select(0, batch.predictor_M), head_VD, batch.labels_M, temperature=temperature, entropy=entropy
    )


def forward_hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Last hidden state of every token, shape (N, D); documents do not see each other."""
    device = batch.input_ids_N.device
    varlen = device.type == "cuda" and (torch.is_autocast_enabled("cuda") or model.dtype == torch.bfloat16)
    hidden_1ND = model.base_model(
        input_ids=batch.input_ids_N[None],
        position_ids=batch.position_ids_N[None],
        use_cache=False,
        documents=attention.layout(batch.lengths, device, varlen=varlen),
    ).last_hidden_state
    return hidden_1ND[0]


def token_logprobs(
    hidden_ND: Tensor,
    head_weight_VD: Tensor,
    labels_N: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """log softmax(hidden head^T / temperature)[label], shape (N,), fp32, and the entropies where asked.

    Logits exist for `chunk` tokens at a time, forward and backward, and are fp32, as are the sums of
    the head's gradient; on a GPU under autocast the factors are bf16. Entropy carries no gradient.
    """
    vocabulary = head_weight_VD.shape[0]
    chunk = max(1, chunk or _CHUNK_LOGITS // vocabulary)
    low = hidden_ND.is_cuda and torch.is_autocast_enabled("cuda")
    logprobs_N, entropy_N = _TokenLogprobs.apply(
        hidden_ND, head_weight_VD, labels_N, temperature, chunk, entropy, torch.bfloat16 if low else torch.float32
    )
    return logprobs_N, entropy_N if entropy else None


class _TokenLogprobs(torch.autograd.Function):
    """Keeps one number a token for the backward pass, which makes the logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        labels_N: Tensor,
        temperature: float,
        chunk: int,
        entropy: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        logprobs_N = torch.empty(len(labels_N), device=hidden_ND.device)
        normaliser_N, entropy_N = torch.empty_like(logprobs_N), torch.zeros_like(logprobs_N)
        head = head_VD.to(dtype)
        for part in _chunks(len(labels_N), chunk):
            logits_CV = _product(hidden_ND[part].to(dtype), head.T).div_(temperature)
            normaliser_N[part] = logits_CV.logsumexp(dim=1)
            logprobs_N[part] = logits_CV.gather(1, labels_N[part, None])[:, 0] - normaliser_N[part]
            if entropy:
                probability_CV = (logits_CV - normaliser_N[part, None]).exp_()
                entropy_N[part] = normaliser_N[part] - (probability_CV * logits_CV).sum(dim=1)
        ctx.save_for_backward(hidden_ND, head_VD, labels_N, normaliser_N)
        ctx.temperature, ctx.chunk, ctx.dtype = temperature, chunk, dtype
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, _grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, head_VD, labels_N, normaliser_N = ctx.saved_tensors
        grad_hidden_ND = torch.empty_like(hidden_ND)
        # A frozen head (LoRA) has none.
        grad_head_VD = torch.zeros_like(head_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        head = head_VD.to(ctx.dtype)
        for part in _chunks(len(labels_N), ctx.chunk):
            hidden_CD = hidden_ND[part].to(ctx.dtype)
            logits_CV = _product(hidden_CD, head.T).div_(ctx.temperature)
            # d logprob / d logits = onehot(label) - softmax
            slope_CV = (logits_CV - normaliser_N[part, None]).exp_().mul_(-grad_N[part, None])
            slope_CV.scatter_add_(1, labels_N[part, None], grad_N[part, None])
            slope = slope_CV.div_(ctx.temperature).to(ctx.dtype)
            grad_hidden_ND[part] = _product(slope, head)
            if grad_head_VD is not None:
                grad_head_VD += _product(slope.T, hidden_CD)
        if grad_head_VD is not None:
            grad_head_VD = grad_head_VD.to(head_VD.dtype)
        return grad_hidden_ND, grad_head_VD, None, None, None, None, None


def _chunks(length: int, chunk: int) -> Iterator[slice]:
    for start in range(0, length, chunk):
        yield slice(start, min(start + chunk, length))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product in fp32, whatever its factors; autocast is kept out of it."""
    with torch.autocast(left.device.type, enabled=False):
        if left.dtype == torch.float32:
            return left @ right
        return torch.mm(left, right, out_dtype=torch.float32)


def named_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the weights, a tied one once, as `Sampler.update_weights` takes them."""
    for name, parameter in model.named_parameters():
        yield name, parameter.detach()
