"""Init: a random student with a tokenizer trained on the shards, for a run that starts from nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from pipelines import parquet
from pipelines.config import Config
from pipelines.errors import UserError
from pipelines.tables import STAGES, TABLES

SPECIAL_TOKENS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
"""Of Phi-4-mini: `<|endoftext|>` ends and pads documents, `<|end|>` ends a turn."""

REASONING_TAGS = ("<think>", "</think>")
"""One token each, but plain text: a decoded completion keeps them."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

SIZES: dict[str, dict[str, int]] = {
    "1m": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384},
    "5m": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 704},
    "20m": {"hidden_size": 384, "num_hidden_layers": 10, "num_attention_heads": 6, "intermediate_size": 1152},
    "100m": {"hidden_size": 640, "num_hidden_layers": 18, "num_attention_heads": 10, "intermediate_size": 2048},
    "3.8b": {"hidden_size": 3072, "num_hidden_layers": 32, "num_attention_heads": 24, "intermediate_size": 8192},
}
"""Names by the parameters of the body, without the embedding; the last is Phi-4-mini's."""


class InitConfig(Config):
    """A random student; the shape is Phi-4-mini's, smaller."""

    architecture: Literal["phi3", "llama", "qwen3"] = "phi3"
    size: str = "1m"
    """Key of `SIZES`."""
    vocab_size: int = Field(2048, ge=263)
    """Tokens at most: 256 bytes, five special tokens, two reasoning tags, merges learned from the text."""
    max_positions: int = Field(32768, ge=2)
    longrope_from: int | None = Field(None, ge=1)
    """Positions from which a phi3 student takes LongRoPE's long factors (Phi-4-mini: 4096); None: plain RoPE."""
    text_megabytes: int = Field(64, ge=1)
    """Text of the shards that the tokenizer learns from."""
    seed: int = 0


def init_student(config: InitConfig, shards: Path, out: Path) -> Path:
    """`out`, now a Hugging Face folder with a random model and a byte-level tokenizer of the shards' text."""
    if config.size not in SIZES:
        raise UserError(f"no size `{config.size}`", hint=f"sizes are {', '.join(SIZES)}")
    if config.longrope_from is not None and config.architecture != "phi3":
        raise UserError(f"LongRoPE is for phi3, not {config.architecture}", hint="leave out `longrope_from`")
    if (out / "config.json").exists():
        raise UserError(f"`{out}` already holds a model", hint="name another --out, or delete it")
    tokenizer = train_tokenizer(_texts(shards, config.text_megabytes << 20), config.vocab_size)
    torch.manual_seed(config.seed)
    model = AutoModelForCausalLM.from_config(_model_config(config, tokenizer), dtype=torch.float32)
    end, document = (tokenizer.convert_tokens_to_ids(token) for token in ("<|end|>", "<|endoftext|>"))
    model.generation_config = GenerationConfig(eos_token_id=[end, document], pad_token_id=document)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which every digit is a token, with a chat template like Phi-4-mini's."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(REASONING_TAGS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in REASONING_TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _texts(shards: Path, budget_bytes: int) -> Iterator[str]:
    """Contents of the shards' messages, up to `budget_bytes` in all."""
    tables = [f"shards/{stage}" for stage in STAGES if parquet.table_files(shards, f"shards/{stage}")]
    if not tables:
        raise UserError(f"no shards in `{shards}`", hint=f"make them first: `curate split {shards}`")
    for content in _contents(shards, tables):
        budget_bytes -= len(content)
        if budget_bytes < 0:
            return
        yield content


def _contents(shards: Path, tables: list[str]) -> Iterator[str]:
    for table in tables:
        columns = [name for name in ("messages", "prompt", "chosen", "rejected") if name in TABLES[table].names]
        for path in parquet.table_files(shards, table):
            for batch in parquet.read_batches(path, table, columns):
                for row in batch.to_pylist():
                    yield from (message["content"] for column in columns for message in row[column])


def _model_config(config: InitConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    sizes = SIZES[config.size]
    heads = sizes["num_attention_heads"]
    head_dim = sizes["hidden_size"] // heads
    shape: dict[str, Any] = {
        **sizes,
        "num_key_value_heads": next(groups for groups in (heads // 3, heads // 2, heads) if heads % groups == 0),
        "vocab_size": len(tokenizer),
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|end|>"),
        "pad_token_id": tokenizer.pad_token_id,
    }
    if config.architecture == "llama":
        return LlamaConfig(**shape, head_dim=head_dim)
    if config.architecture == "qwen3":
        return Qwen3Config(**shape, head_dim=head_dim)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}
    if config.longrope_from is None:
        return Phi3Config(**shape, rope_parameters=rope)
    # As in Phi-4-mini: short factors of 1, long ones growing with the wavelength.
    pairs = int(0.75 * head_dim) // 2
    ratio = config.max_positions / config.longrope_from
    rope |= {
        "rope_type": "longrope",
        "short_factor": [1.0] * pairs,
        "long_factor": [ratio ** (pair / max(1, pairs - 1)) for pair in range(pairs)],
        "original_max_position_embeddings": config.longrope_from,
    }
    return Phi3Config(**shape, rope_parameters=rope, original_max_position_embeddings=config.longrope_from)
