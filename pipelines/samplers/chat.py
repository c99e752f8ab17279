"""A model's chat format: messages to prompt tokens, generated tokens to text, and where a turn ends."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.conversation import Message
from pipelines.errors import UserError, first_line

REASONING_OPENINGS = ("<think>",)
"""Tags with which a chat template may open the reasoning on the model's behalf (DeepSeek-R1, QwQ, Qwen3)."""


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer with its chat template, and the tokens that end a turn."""

    tokenizer: Any
    stop_ids: frozenset[int]

    def prompt_ids(self, messages: Sequence[Message], reasoning_effort: str | None = None) -> list[int]:
        """Prompt tokens up to where the assistant begins.

        The template alone says which special tokens there are: nothing adds a second BOS to its own.
        """
        effort = {} if reasoning_effort is None else {"reasoning_effort": reasoning_effort}
        ids: list[int] = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False, **effort
        )
        return ids

    def text(self, token_ids: Sequence[int]) -> str:
        """What the model wrote: every token, reasoning tags too, but for the one that ended its turn."""
        kept = token_ids[:-1] if token_ids and token_ids[-1] in self.stop_ids else token_ids
        text: str = self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def opens_reasoning(self, prompt_ids: Sequence[int]) -> bool:
        """Whether the prompt ends inside the reasoning, so that the completion has no opening tag."""
        tail = self.tokenizer.decode(prompt_ids[-8:], skip_special_tokens=False).rstrip()
        return any(tail.endswith(tag) for tag in REASONING_OPENINGS)


def load_chat_format(source: str) -> ChatFormat:
    """The chat format of the model folder (or hub id) `source`."""
    from transformers import AutoTokenizer, GenerationConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(
            f"`{source}` has no tokenizer that can be read: {first_line(error)}",
            hint="name a complete model folder",
        ) from None
    try:
        end_ids = GenerationConfig.from_pretrained(source).eos_token_id
    except OSError:  # no generation_config.json
        end_ids = None
    return chat_format(tokenizer, end_ids, source)


def chat_format(tokenizer: Any, end_ids: int | Iterable[int] | None, source: str) -> ChatFormat:
    """The chat format of a tokenizer; `end_ids` are the generation config's end tokens, joined by the tokenizer's own.

    A chat model ends its turn with another token than the one that ends a document (Phi: `<|end|>` and
    `<|endoftext|>`), so both stop.
    """
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer of `{source}` has no chat template", hint="name an instruction-tuned model")
    stops = {end_ids} if isinstance(end_ids, int) else set(end_ids or ())
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    if not stops:
        raise UserError(f"`{source}` names no end-of-turn token", hint="set `eos_token_id` in generation_config.json")
    return ChatFormat(tokenizer, frozenset(stops))


def model_config(source: str) -> dict[str, Any]:
    """`config.json` of a model folder or hub id."""
    from transformers import PreTrainedConfig

    folder = Path(source)
    if folder.is_dir():
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config
    config, _ = PreTrainedConfig.get_config_dict(source)
    return config
