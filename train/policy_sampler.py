"""What samples from the policy while it is trained, and how it is given the policy's weights of the moment."""

from collections.abc import Callable
from typing import Literal

from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipelines.config import Config
from pipelines.models import resolve_model
from pipelines.sampling import Sampler
from train.model import named_weights
from train.optim import Precision

Refresh = Callable[[], None]
"""Gives the sampler the policy's weights of the moment."""


class PolicySamplerConfig(Config):
    """The engine beside the trainer."""

    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """What samples: `auto` is vLLM on an accelerator, else the policy itself through transformers."""
    gpu_memory: float = Field(0.4, gt=0, lt=1)
    """Share of the accelerator's memory that vLLM takes beside the trainer."""


def open_policy_sampler(
    config: PolicySamplerConfig,
    model: str,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    precision: Precision,
) -> tuple[Sampler, Refresh | None]:
    """A sampler of the policy, which began as `model`, and what to call before each step.

    The latter is None where the sampler is the policy itself. `max_length` is that of prompt and completion
    together, in tokens.
    """
    engine = config.engine
    if engine == "auto":
        engine = "transformers" if policy.device.type == "cpu" else "vllm"
    if engine == "transformers":
        from pipelines.samplers.transformers import TransformersSampler

        dtype = "bfloat16" if precision == "bf16" else "float32"
        live = TransformersSampler.from_model(policy, tokenizer, "policy", dtype=dtype, max_model_len=max_length)
        return live, None
    from pipelines.samplers.vllm import VllmSampler

    vllm = VllmSampler(
        "policy",
        resolve_model(model),
        max_model_len=max_length,
        gpu_memory=config.gpu_memory,
        in_process=True,  # weights are replaced in place
    )
    return vllm, lambda: vllm.update_weights(named_weights(policy))
