"""Build the pocket models from nothing: `python scripts/build_pocket.py WORKDIR [pocket|pocket-base]` (`make pocket`).

The teacher learns worked traces of many problems, good and bad habits alike; the student learns single
steps, and to answer problems without a thought. Both are trained by `train.sft` on shards that are
written here, and land in `pipelines/models/`. All seeds are fixed: the same machine and versions give
the same weights. An interrupted build goes on where it stopped.
"""

import json
import logging
import random
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from curate.problems import Problem, write_problems
from curate.traces import write_lesson, write_trace
from pipelines import parquet
from pipelines.conversation import INSTRUCTIONS, Message, assistant_message, user_message
from pipelines.models import SHIPPED
from pipelines.tables import SHARDS, content_id
from train.init import CHAT_TEMPLATE, REASONING_TAGS, SPECIAL_TOKENS
from train.sft import SftConfig, train_sft

Conversation = list[Message]

HABITS = {"short": 0.3, "mixed": 0.35, "careful": 0.2, "checking": 0.1, "guessing": 0.03, "endless": 0.02}
"""How often the teacher is shown each way of solving a problem."""

SHAPES: dict[str, dict[str, Any]] = {
    "pocket": {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 512},
    "pocket-base": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 320},
}

TRAINING = {
    "pocket": SftConfig(
        max_length=256, overlong="truncate", batch_size=40, learning_rate=2.5e-3, epochs=2, max_steps=2200,
        warmup_rate=0.02, weight_decay=0.01, micro_tokens=8192, save_every=250, seed=1,
    ),
    "pocket-base": SftConfig(
        max_length=256, batch_size=40, learning_rate=3e-3, epochs=2, max_steps=2000,
        warmup_rate=0.02, weight_decay=0.01, micro_tokens=8192, save_every=250, seed=2,
    ),
}  # fmt: skip


def build(name: str, work: Path) -> Path:
    """Train the pocket model `name` in `work` and ship it; returns its folder in the package."""
    conversations = {"pocket": teacher_conversations, "pocket-base": student_conversations}[name]
    shards, start = work / f"{name}-shards", work / f"{name}-start"
    if not (shards / "shards/sft").is_dir():
        write_shard(shards, conversations())
    if not (start / "config.json").is_file():
        write_random_model(start, SHAPES[name], make_tokenizer())
    trained = train_sft(TRAINING[name], shards, str(start), work / name)
    return ship(trained, SHIPPED / name)


def teacher_conversations() -> Iterator[Conversation]:
    """Problems of one to four steps, solved in every way."""
    rng = random.Random(101)  # noqa: S311
    for problem in write_problems(100, 60_000, [1, 1, 2, 2, 3, 4]):
        strategy = rng.choices(list(HABITS), list(HABITS.values()))[0]
        yield [question(problem), assistant_message(*write_trace(problem, strategy, rng))]


def student_conversations() -> Iterator[Conversation]:
    """Lessons in single steps, and problems with nothing but their answers."""
    rng = random.Random(201)  # noqa: S311
    for problem in write_problems(200, 20_000, [1, 2, 3, 4]):
        yield [question(problem), assistant_message(None, rf"\boxed{{{problem.answer}}}")]
    for _ in range(60_000):
        asked, answered = write_lesson(rng)
        yield [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def question(problem: Problem) -> Message:
    """The problem as sampling, training and evaluation ask it."""
    return user_message(problem.text)


def write_shard(root: Path, conversations: Iterable[Conversation]) -> None:
    """Write conversations as the sft shard of `root`."""
    rows = [
        {
            "messages": messages,
            "rollout_id": content_id(messages),
            "prompt_id": content_id(messages[0]),
            "source": "pocket",
        }
        for messages in conversations
    ]
    table = pa.Table.from_pylist(rows, schema=SHARDS["sft"])
    parquet.write_file(root / "shards/sft/00000.parquet", "shards/sft", [table])


# --- tokenizer and random model -------------------------------------------------------------------


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of the pocket world's words, in which 0 to 999 are tokens, and so is the instruction.

    Whole numbers keep traces short and leave something to learn: what the digits of 238 are.
    """
    instruction = INSTRUCTIONS["mathematics"]
    conversations = chain(islice(teacher_conversations(), 6000), islice(student_conversations(), 18_000, 24_000))
    texts = [re.sub(r"\d+|" + re.escape(instruction), "", turn["content"]) for turns in conversations for turn in turns]
    words = _bpe(BPE())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words.train_from_iterator(texts, BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False))
    numbers = [(str(tens), str(digit)) for tens in range(1, 100) for digit in range(10)]
    merges = [*numbers, *(tuple(merge) for merge in json.loads(words.to_str())["model"]["merges"])]
    vocabulary: dict[str, int] = {}
    added = [AddedToken(text, special=False, normalized=False) for text in (*REASONING_TAGS, instruction)]
    for token in (*SPECIAL_TOKENS, *REASONING_TAGS, instruction, *alphabet, *("".join(merge) for merge in merges)):
        vocabulary.setdefault(token, len(vocabulary))
    backend = _bpe(BPE(vocab=vocabulary, merges=merges))
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    backend.add_tokens(added)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|end|>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _bpe(model: BPE) -> Tokenizer:
    """A tokenizer of numbers (three digits at most), words with the space before, signs with the space after."""
    backend = Tokenizer(model)
    pieces = Regex(r"\\boxed\{|\d{1,3}| ?[A-Za-z']+|[^\sA-Za-z\d]+ ?|\s+")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def write_random_model(folder: Path, shape: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    """A random Llama of this shape in `folder`, with tied embeddings; seed 0."""
    torch.manual_seed(0)
    end, pad = tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>"])
    config = LlamaConfig(
        **shape,
        num_key_value_heads=shape["num_attention_heads"],
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        initializer_range=0.03,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=[end], pad_token_id=pad)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def ship(trained: Path, folder: Path) -> Path:
    """Put a trained model into the package, in bf16."""
    model = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.bfloat16)
    model.config.use_cache = True
    model.save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(trained).save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


def main() -> None:
    """Build the named models, or both."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    work, *names = sys.argv[1:]
    for name in names or SHAPES:
        build(name, Path(work))


if __name__ == "__main__":
    main()
