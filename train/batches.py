"""Batches: conversations to tokens and targets, and documents to padding-free micro-batches.

N tokens laid end to end, S documents, M targets (trained tokens).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipelines import parquet
from pipelines.conversation import Message, assistant_message
from pipelines.errors import UserError

Overlong = Literal["refuse", "truncate", "split"]
"""What happens to a conversation longer than `max_length`: left out and counted, cut, or cut into pieces."""

_ENCODE_ROWS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """One conversation as tokens. `trained[i]` says whether token i is a target; the first token never is."""

    id: str
    tokens: NDArray[np.int32]
    trained: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tokens)


Pair = tuple[Document, Document]
"""Chosen and rejected completion of one prompt, each with the prompt before it."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Documents laid end to end, without padding. Targets run in document order, then token order."""

    ids: tuple[str, ...]
    lengths: tuple[int, ...]
    input_ids_N: Tensor
    position_ids_N: Tensor
    """Starting at 0 in every document."""
    predictor_M: Tensor
    """Index into N of the token whose hidden state predicts the target: the one before it."""
    labels_M: Tensor
    document_M: Tensor
    """Index into S of the document a target belongs to."""


def collate(documents: Sequence[Document], device: torch.device | str = "cpu") -> Batch:
    """`documents` laid end to end, in their order."""
    tokens = np.concatenate([document.tokens for document in documents])
    trained = np.concatenate([document.trained for document in documents])
    lengths = [len(document) for document in documents]
    starts = [0, *accumulate(lengths)][:-1]
    assert not trained[starts].any(), "the first token of a document has nothing before it to predict it"
    targets = np.flatnonzero(trained)
    owner = np.repeat(np.arange(len(documents)), lengths)
    positions = np.arange(len(tokens)) - np.repeat(starts, lengths)

    def tensor(values: NDArray) -> Tensor:
        made = torch.from_numpy(values.astype(np.int64))
        return made if torch.device(device).type == "cpu" else made.pin_memory().to(device, non_blocking=True)

    return Batch(
        ids=tuple(document.id for document in documents),
        lengths=tuple(lengths),
        input_ids_N=tensor(tokens),
        position_ids_N=tensor(positions),
        predictor_M=tensor(targets - 1),
        labels_M=tensor(tokens[targets]),
        document_M=tensor(owner[targets]),
    )


MicroBatches = list[list[int]]
"""Indices of units; a unit is a document, a packed row or a pair, and is never split."""


def plan_epoch(
    lengths: Sequence[int], batch_size: int, micro_tokens: int, seed: int, epoch: int, num_ranks: int = 1
) -> list[list[MicroBatches]]:
    """The units of one epoch as steps of micro-batches, those of each rank; a pure function of its arguments.

    A step has `batch_size` units, the last one the rest; which ones does not depend on the number of ranks.
    A micro-batch holds at most `micro_tokens` tokens, or one unit; units of similar length stand together,
    which costs the least where attention pads. Ranks get the same number of micro-batches, so some may be
    empty: a pass through a sharded model is a pass of all of them.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(lengths)).tolist()
    steps = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [_shares(step, lengths, micro_tokens, num_ranks) for step in steps]


def planned_steps(
    lengths: Sequence[int],
    batch_size: int,
    micro_tokens: int,
    seed: int,
    first_step: int,
    num_steps: int,
    num_ranks: int = 1,
) -> Iterator[tuple[int, list[MicroBatches]]]:
    """(step, micro-batches of each rank) from `first_step` on; where a run resumes changes nothing."""
    per_epoch = -(-len(lengths) // batch_size)
    plan, planned = list[list[MicroBatches]](), -1
    for step in range(first_step, num_steps):
        epoch, index = divmod(step, per_epoch)
        if epoch != planned:
            plan, planned = plan_epoch(lengths, batch_size, micro_tokens, seed, epoch, num_ranks), epoch
        yield step, plan[index]


def _shares(units: Iterable[int], lengths: Sequence[int], micro_tokens: int, num_ranks: int) -> list[MicroBatches]:
    by_length = sorted(units, key=lambda unit: -lengths[unit])
    shares = [_micro_batches(by_length[rank::num_ranks], lengths, micro_tokens) for rank in range(num_ranks)]
    longest = max(map(len, shares))
    return [share + [[] for _ in range(longest - len(share))] for share in shares]


def _micro_batches(units: Iterable[int], lengths: Sequence[int], micro_tokens: int) -> MicroBatches:
    micro: MicroBatches = []
    space = 0
    for unit in units:
        if not micro or lengths[unit] > space:
            micro.append([])
            space = micro_tokens
        micro[-1].append(unit)
        space -= lengths[unit]
    return micro


# --- shards to documents --------------------------------------------------------------------------


def load_conversations(
    shards: Path,
    stage: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    overlong: Overlong = "refuse",
    every_token: bool = False,
) -> tuple[list[Document], Counter[str]]:
    """The documents of a `midtrain` or `sft` shard folder by id, and what became of its rows.

    By id, so that the order of training hangs on the seed and not on how the rows lie in files.
    The counts hold `rows`, `kept`, `refused: REASON`, and `truncated` and `pieces` where rows were cut;
    `rows == kept + refused`. `every_token` trains the prompt too.
    """
    counts: Counter[str] = Counter()
    documents: list[Document] = []
    for rows in _shard_rows(shards, stage, ["rollout_id", "messages"]):
        encoded = encode(tokenizer, [row["messages"] for row in rows], [row["rollout_id"] for row in rows])
        for item in encoded:
            counts["rows"] += 1
            pieces = item if isinstance(item, str) else fit(item, max_length, overlong, every_token=every_token)
            if isinstance(pieces, str):
                counts[f"refused: {pieces}"] += 1
                continue
            assert not isinstance(item, str)
            counts["kept"] += 1
            counts["truncated"] += overlong == "truncate" and len(item) > max_length
            counts["pieces"] += len(pieces) if len(pieces) > 1 else 0
            documents.extend(pieces)
    _check_counts(counts, shards, stage)
    documents.sort(key=lambda document: document.id)
    return documents, counts


def load_pairs(shards: Path, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[list[Pair], Counter[str]]:
    """The preference pairs of a `dpo` shard folder by their ids, and what became of its rows.

    A pair with a side that cannot be used is refused whole; nothing is truncated, as a cut completion
    is not the one that was judged.
    """
    counts: Counter[str] = Counter()
    pairs: list[Pair] = []
    for rows in _shard_rows(shards, "dpo", ["prompt", "chosen", "rejected", "chosen_id", "rejected_id"]):
        sides = [
            encode(tokenizer, [row["prompt"] + row[side] for row in rows], [row[f"{side}_id"] for row in rows])
            for side in ("chosen", "rejected")
        ]
        for chosen, rejected in zip(*sides, strict=True):
            counts["rows"] += 1
            fitted = [side if isinstance(side, str) else fit(side, max_length, "refuse") for side in (chosen, rejected)]
            reason = next((side for side in fitted if isinstance(side, str)), None)
            if reason is not None:
                counts[f"refused: {reason}"] += 1
            else:
                counts["kept"] += 1
                pairs.append((fitted[0][0], fitted[1][0]))  # type: ignore[arg-type] # no reason: both are documents
    _check_counts(counts, shards, "dpo")
    pairs.sort(key=lambda pair: (pair[0].id, pair[1].id))
    return pairs, counts


def _shard_rows(shards: Path, stage: str, columns: Sequence[str]) -> Iterator[list[dict]]:
    table = f"shards/{stage}"
    for path in parquet.require_files(shards, table, hint=f"make the shards first: `curate split {shards}`"):
        for batch in parquet.read_batches(path, table, columns, batch_rows=_ENCODE_ROWS):
            yield batch.to_pylist()


def _check_counts(counts: Counter[str], shards: Path, stage: str) -> None:
    refused = {key.removeprefix("refused: "): n for key, n in counts.items() if key.startswith("refused: ")}
    assert counts["rows"] == counts["kept"] + sum(refused.values())
    if counts["kept"] == 0:
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(refused.items())) or "there are none"
        raise UserError(
            f"no usable row among the {counts['rows']} in `{shards / 'shards' / stage}`: {reasons}",
            hint=f"raise `{stage}.max_length`" if "too_long" in refused else "look at them with `curate view`",
        )


def fit(document: Document, max_length: int, overlong: Overlong, *, every_token: bool = False) -> list[Document] | str:
    """`document` as documents of at most `max_length` tokens, or the reason why it is left out."""
    trained = np.ones_like(document.trained) if every_token else document.trained
    if len(document) > max_length and overlong == "refuse":
        return "too_long"
    stop = len(document) if overlong == "split" else min(len(document), max_length)
    pieces = []
    for start in range(0, stop, max_length):
        part = slice(start, min(start + max_length, stop))
        targets = trained[part].copy()
        targets[0] = False
        if targets.any():
            pieces.append(Document(document.id, document.tokens[part], targets))
    return pieces or "prompt_too_long"


# --- conversations to tokens ----------------------------------------------------------------------


def encode(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]], ids: Sequence[str]
) -> list[Document | str]:
    """Each conversation as a document whose targets are the assistant's turns, or the reason why it cannot be one.

    The template is applied to the whole conversation once; where an assistant's turn begins is the
    common prefix of that and of the conversation before it with the generation prompt. A turn ends
    with the end-of-turn token, which is a target; what a template writes after it is none.
    """
    end = end_of_turn(tokenizer)
    special = tuple(token for token in tokenizer.all_special_tokens if token)
    texts: list[str] = []
    for messages in conversations:
        texts.append(_render(tokenizer, messages, generation_prompt=False))
        texts.extend(_render(tokenizer, messages[:turn], generation_prompt=True) for turn in _assistant_turns(messages))
    tokens = iter(tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else iter(())
    rendered = iter(texts)
    documents: list[Document | str] = []
    for id_, messages in zip(ids, conversations, strict=True):
        text, whole = next(rendered), np.array(next(tokens), dtype=np.int32)
        turns = _assistant_turns(messages)
        prompts = [(next(rendered), next(tokens))[1] for _ in turns]
        reason = _refusal(messages, text, special)
        documents.append(reason or Document(id_, whole, _targets(whole, prompts, end)))
    return documents


def _assistant_turns(messages: Sequence[Message]) -> list[int]:
    return [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, generation_prompt: bool) -> str:
    text = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=generation_prompt, return_dict=False
    )
    assert isinstance(text, str)
    return text


def _refusal(messages: Sequence[Message], text: str, special: Sequence[str]) -> str | None:
    completions = [messages[turn]["content"].strip() for turn in _assistant_turns(messages)]
    if not completions:
        return "no_assistant_turn"
    if not all(completions):
        return "empty_completion"
    # Written out in a text, `<|end|>` would become the token itself and end the turn there.
    if any(token in message["content"] for message in messages for token in special):
        return "special_token_in_text"
    if any(completion not in text for completion in completions):
        return "changed_by_template"
    return None


def _targets(whole: NDArray[np.int32], prompts: Sequence[Sequence[int]], end: int) -> NDArray[np.bool_]:
    """Mask of the assistant's tokens, from the first after each prompt to its end-of-turn token."""
    trained = np.zeros(len(whole), dtype=np.bool_)
    for prompt in prompts:
        start = max(1, _common_prefix(whole, prompt))
        ends = np.flatnonzero(whole[start:] == end)
        assert len(ends), "an assistant's turn without its end-of-turn token"
        stop = start + int(ends[0]) + 1
        trained[start:stop] = True
        assert whole[stop - 1] == end, "the last trained token of a turn is the end-of-turn token"
    return trained


def _common_prefix(whole: NDArray[np.int32], prompt: Sequence[int]) -> int:
    length = min(len(whole), len(prompt))
    differs = np.flatnonzero(whole[:length] != np.asarray(prompt[:length], dtype=np.int32))
    return int(differs[0]) if len(differs) else length


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token with which the chat template ends an assistant's turn; a `UserError` where it writes none."""
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of `{tokenizer.name_or_path}` has no chat template",
            hint="name an instruction-tuned model, or add a chat template to its tokenizer",
        )
    answer = assistant_message("a", "b")
    text = _render(tokenizer, [{"role": "user", "content": "?"}, answer], generation_prompt=False)
    _, found, after = text.rpartition(answer["content"])
    if not found:
        raise UserError(
            f"the chat template of `{tokenizer.name_or_path}` drops the reasoning from an assistant's turn",
            hint="give its tokenizer a chat template that writes the whole content",
        )
    tokens = tokenizer(after, add_special_tokens=False)["input_ids"]
    if not tokens or tokens[0] not in tokenizer.all_special_ids:
        raise UserError(
            f"the chat template of `{tokenizer.name_or_path}` does not end an assistant's turn with a special token",
            hint="a model trained with it would never learn to stop: end the turn with, e.g., `<|end|>`",
        )
    return int(tokens[0])
