"""Tiny random models for tests: ordinary Hugging Face folders, made in a second, that generate nonsense.

The tokenizer is byte-level (each byte a token) with a chat template in the style of Phi-4-mini:
`<|user|>…<|end|><|assistant|>…<|end|>`, no newlines between turns.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

SPECIAL_TOKENS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
REASONING_TAGS = ("<think>", "</think>")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tiny_model(
    path: Path,
    architecture: str = "llama",
    *,
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 2,
    num_kv_heads: int = 1,
    intermediate_size: int = 128,
    max_positions: int = 4096,
    longrope_from: int | None = None,
    tied: bool = True,
    initializer_range: float = 0.1,
    bos: bool = False,
    special_tags: bool = False,
    opens_reasoning: bool = False,
    seed: int = 0,
) -> Path:
    """`path`, now a folder with a random fp32 model (`llama`, `phi3` or `qwen3`), its tokenizer and chat template.

    `longrope_from` gives a phi3 model LongRoPE with that `original_max_position_embeddings`: positions
    beyond it switch from the short to the (different) long factors. `initializer_range` above the usual
    0.02 gives peaked, context-dependent distributions, so that a leak between documents shows.
    `bos`, `special_tags`, `opens_reasoning` are passed to `byte_tokenizer`.
    """
    tokenizer = byte_tokenizer(bos=bos, special_tags=special_tags, opens_reasoning=opens_reasoning)
    assert longrope_from is None or architecture == "phi3", "LongRoPE is for phi3"
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": tied,
        "initializer_range": initializer_range,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|end|>"),
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = _config(architecture, shape, longrope_from)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|end|>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _config(architecture: str, shape: dict[str, Any], longrope_from: int | None) -> PreTrainedConfig:
    head_dim = shape["hidden_size"] // shape["num_attention_heads"]
    if architecture == "llama":
        return LlamaConfig(**shape, head_dim=head_dim)
    if architecture == "qwen3":
        return Qwen3Config(**shape, head_dim=head_dim)
    assert architecture == "phi3", f"no tiny {architecture}"
    if longrope_from is None:
        return Phi3Config(**shape)
    # Short factors all 1 and long factors well above it, as in Phi-4-mini.
    factors = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * (head_dim // 2),
        "long_factor": [1.0 + 0.5 * index for index in range(head_dim // 2)],
        "original_max_position_embeddings": longrope_from,
    }
    return Phi3Config(**shape, rope_parameters=factors, original_max_position_embeddings=longrope_from)


def byte_tokenizer(
    *, bos: bool = False, special_tags: bool = False, opens_reasoning: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer of 256 bytes, five special tokens (`<|endoftext|>` pads) and the two reasoning tags.

    `bos`: the chat template writes a BOS token and the tokenizer would add another one by itself.
    `special_tags`: the reasoning tags are special tokens, which a careless decode drops.
    `opens_reasoning`: the chat template ends a generation prompt with `<think>`, as QwQ's does.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    special = [*SPECIAL_TOKENS, *(["<|bos|>"] if bos else []), *(REASONING_TAGS if special_tags else [])]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if not special_tags:
        backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in REASONING_TAGS])
    template = CHAT_TEMPLATE
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", backend.token_to_id("<|bos|>"))]
        )
        template = "{{ bos_token }}" + template
    if opens_reasoning:
        template = template.replace("{{ '<|assistant|>' }}", "{{ '<|assistant|><think>\n' }}")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        bos_token="<|bos|>" if bos else None,
        extra_special_tokens=[token for token in special if token != "<|bos|>"],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
