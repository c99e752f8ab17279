"""Conversations to tokens and targets, and documents to micro-batches."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import CHAT_TEMPLATE, byte_tokenizer
from tokenizers import Tokenizer
from toy_shards import answer, question, toy_shards, write_shard

from pipelines import parquet
from pipelines.conversation import assistant_message
from pipelines.errors import UserError
from pipelines.tables import TABLES
from train.batches import (
    Document,
    collate,
    encode,
    end_of_turn,
    fit,
    load_conversations,
    load_pairs,
    plan_epoch,
    planned_steps,
)

QWEN_LIKE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PHI_LIKE = CHAT_TEMPLATE.replace("{% endif %}", "{% else %}<|endoftext|>{% endif %}")
R1_LIKE = CHAT_TEMPLATE.replace("message['content']", "message['content'].split('</think>')[-1]")
NO_END = CHAT_TEMPLATE.replace(" + '<|end|>'", "")


def tokenizer_with(template: str = CHAT_TEMPLATE, **options: bool):
    tokenizer = byte_tokenizer(**options)
    if template != CHAT_TEMPLATE:
        tokenizer.chat_template = template
    return tokenizer


def trained_text(tokenizer, document: Document) -> str:
    return tokenizer.decode(document.tokens[document.trained], skip_special_tokens=False)


def document(length: int, id_: str = "d") -> Document:
    return Document(id_, np.arange(length, dtype=np.int32), np.arange(length) > 0)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, QWEN_LIKE, PHI_LIKE])
def test_targets_are_the_completion_and_its_end_of_turn_token(template: str):
    tokenizer = tokenizer_with(template)
    messages = question(3) + answer(3, 7)
    (encoded,) = encode(tokenizer, [messages], ["r"])
    assert isinstance(encoded, Document)
    assert trained_text(tokenizer, encoded) == messages[1]["content"] + "<|end|>"
    assert encoded.tokens[encoded.trained][-1] == tokenizer.convert_tokens_to_ids("<|end|>")


def test_the_template_is_applied_to_the_whole_once():
    tokenizer = tokenizer_with(bos=True)
    messages = question(3) + answer(3, 7)
    (encoded,) = encode(tokenizer, [messages], ["r"])
    expected = tokenizer.apply_chat_template(messages, return_dict=False)
    assert encoded.tokens.tolist() == expected
    assert expected.count(tokenizer.bos_token_id) == 1


def test_a_generation_prompt_that_opens_the_reasoning_is_not_trained():
    tokenizer = tokenizer_with(opens_reasoning=True)
    (encoded,) = encode(tokenizer, [question(3) + answer(3, 7)], ["r"])
    assert trained_text(tokenizer, encoded).startswith("3 + 4 = 7\n</think>")


def test_a_completion_that_merges_with_its_prompt_is_trained_from_the_merge_on():
    # The generation prompt ends with a newline and the completion begins with one: together they are one token.
    tokenizer = tokenizer_with(QWEN_LIKE)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    newline = "\u010a"  # as bytes are written in a byte-level vocabulary
    backend["model"]["vocab"][newline * 2] = len(backend["model"]["vocab"])
    backend["model"]["merges"].append([newline, newline])
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(backend))
    (encoded,) = encode(tokenizer, [[*question(1), {"role": "assistant", "content": "\n3"}]], ["r"])
    assert isinstance(encoded, Document)
    prompt = tokenizer.apply_chat_template(question(1), add_generation_prompt=True, return_dict=False)
    assert encoded.tokens[: len(prompt)].tolist() != prompt, "the tokens of the parts are not those of the whole"
    assert trained_text(tokenizer, encoded) == "\n\n3<|end|>"


def test_a_pad_token_that_is_the_end_of_turn_token_is_still_learned():
    tokenizer = tokenizer_with()
    tokenizer.pad_token = tokenizer.eos_token = "<|end|>"
    (encoded,) = encode(tokenizer, [question(3) + answer(3, 7)], ["r"])
    assert encoded.tokens[encoded.trained][-1] == tokenizer.pad_token_id
    assert collate([encoded]).labels_M[-1] == tokenizer.pad_token_id


def test_every_assistant_turn_is_trained_and_nothing_else():
    tokenizer = tokenizer_with()
    messages = question(1) + answer(1, 3) + question(2) + answer(2, 5)
    (encoded,) = encode(tokenizer, [messages], ["r"])
    assert trained_text(tokenizer, encoded) == f"{messages[1]['content']}<|end|>{messages[3]['content']}<|end|>"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (question(1), "no_assistant_turn"),
        ([*question(1), assistant_message(None, "  ")], "empty_completion"),
        ([*question(1), assistant_message("so <|end|> it", "2")], "special_token_in_text"),
        ([*question(1), {"role": "assistant", "content": "a" * 9}], None),
    ],
)
def test_rows_that_cannot_be_trained_are_named(messages: list, reason: str | None):
    (encoded,) = encode(tokenizer_with(), [messages], ["r"])
    assert (encoded if isinstance(encoded, str) else None) == reason


@pytest.mark.parametrize(("template", "named"), [(NO_END, "special token"), (R1_LIKE, "drops the reasoning")])
def test_templates_that_would_teach_wrongly_are_refused(template: str, named: str):
    with pytest.raises(UserError, match=named):
        end_of_turn(tokenizer_with(template))


def test_a_tokenizer_that_does_not_know_its_end_of_turn_token_is_refused():
    tokenizer = tokenizer_with(CHAT_TEMPLATE.replace("<|end|>", "<|im_end|>"))
    with pytest.raises(UserError, match="does not end an assistant's turn with a special token"):
        end_of_turn(tokenizer)


def test_a_tokenizer_without_a_template_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        end_of_turn(tokenizer)


def test_overlong_documents_are_refused_cut_or_split():
    assert fit(document(10), 4, "refuse") == "too_long"
    (cut,) = fit(document(10), 4, "truncate")
    assert cut.tokens.tolist() == [0, 1, 2, 3]
    pieces = fit(document(10), 4, "split")
    assert [piece.tokens.tolist() for piece in pieces] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [piece.trained.tolist() for piece in pieces] == [[False, True, True, True]] * 2 + [[False, True]]
    prompt_only = Document("d", np.arange(10, dtype=np.int32), np.arange(10) > 7)
    assert fit(prompt_only, 4, "truncate") == "prompt_too_long"


def test_rows_in_are_kept_or_refused(tmp_path: Path):
    shards = toy_shards(tmp_path, rows=6)
    rows = parquet.read_table(tmp_path / "shards/sft/00000.parquet", "shards/sft").to_pylist()
    rows[0]["messages"][1]["content"] = " "
    rows[1]["messages"][1]["content"] = "x" * 400
    rows[2]["messages"][1]["content"] = "<|end|>"
    write_shard(tmp_path, "sft", rows)
    documents, counts = load_conversations(shards, "sft", tokenizer_with(), 200)
    refused = {"refused: empty_completion": 1, "refused: too_long": 1, "refused: special_token_in_text": 1}
    assert counts == {"rows": 6, "kept": 3, "truncated": 0, "pieces": 0, **refused}
    assert [document.id for document in documents] == ["r003", "r004", "r005"]
    _, counts = load_conversations(shards, "sft", tokenizer_with(), 200, overlong="truncate")
    assert (counts["kept"], counts["truncated"]) == (4, 1)
    documents, counts = load_conversations(shards, "sft", tokenizer_with(), 200, overlong="split")
    assert (counts["kept"], counts["pieces"], len(documents)) == (4, 3, 6)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_the_order_of_rows_in_files_changes_nothing(tmp_path: Path, stage: str):
    shards = toy_shards(tmp_path, rows=6)
    rows = parquet.read_table(tmp_path / f"shards/{stage}/00000.parquet", f"shards/{stage}").to_pylist()

    def ids() -> list:
        if stage == "sft":
            return [document.id for document in load_conversations(shards, "sft", tokenizer_with(), 400)[0]]
        return [(chosen.id, rejected.id) for chosen, rejected in load_pairs(shards, tokenizer_with(), 400)[0]]

    before = ids()
    write_shard(tmp_path, stage, rows[::-1])
    assert ids() == before
    assert len(before) == 6


def test_nothing_left_to_train_on_is_an_error_with_the_reasons(tmp_path: Path):
    with pytest.raises(UserError, match="too_long 8"):
        load_conversations(toy_shards(tmp_path), "sft", tokenizer_with(), 10)


def test_shards_of_another_stage_or_none_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no run directory"):
        load_pairs(tmp_path / "none", tokenizer_with(), 100)
    toy_shards(tmp_path)
    (tmp_path / "shards/sft/00000.parquet").rename(tmp_path / "shards/dpo/00000.parquet")
    with pytest.raises(UserError, match=r"holds table `sft`, expected `dpo`"):
        load_pairs(tmp_path, tokenizer_with(), 100)
    with pytest.raises(UserError, match="no Parquet files"):
        load_conversations(tmp_path, "sft", tokenizer_with(), 100)


def test_a_pair_with_an_unusable_side_is_refused_whole(tmp_path: Path):
    shards = toy_shards(tmp_path, rows=4)
    rows = parquet.read_table(tmp_path / "shards/dpo/00000.parquet", "shards/dpo").to_pylist()
    rows[2]["rejected"][0]["content"] = "x" * 900
    write_shard(tmp_path, "dpo", rows)
    pairs, counts = load_pairs(shards, tokenizer_with(), 200)
    assert counts == {"rows": 4, "kept": 3, "refused: too_long": 1}
    assert [(chosen.id, rejected.id) for chosen, rejected in pairs] == [(f"r00{k}", f"w00{k}") for k in (0, 1, 3)]


def test_an_empty_shard_is_an_error(tmp_path: Path):
    path = tmp_path / "shards/sft/00000.parquet"
    parquet.write_file(path, "shards/sft", [TABLES["shards/sft"].empty_table()])
    with pytest.raises(UserError, match="no usable row among the 0"):
        load_conversations(tmp_path, "sft", tokenizer_with(), 100)


def test_collate_resets_positions_and_predicts_from_the_token_before():
    first = Document("a", np.array([7, 8, 9], dtype=np.int32), np.array([False, True, True]))
    second = Document("b", np.array([5, 6], dtype=np.int32), np.array([False, True]))
    batch = collate([first, second])
    assert batch.ids == ("a", "b")
    assert batch.input_ids_N.tolist() == [7, 8, 9, 5, 6]
    assert batch.position_ids_N.tolist() == [0, 1, 2, 0, 1]
    assert batch.predictor_M.tolist() == [0, 1, 3]
    assert batch.labels_M.tolist() == [8, 9, 6]
    assert batch.document_M.tolist() == [0, 0, 1]


def test_plan_takes_every_unit_once_within_the_budget_and_depends_on_seed_and_epoch_only():
    lengths = np.random.default_rng(0).integers(1, 60, 103).tolist()
    plan = plan_epoch(lengths, 16, 100, seed=1, epoch=0)
    assert sorted(unit for (mine,) in plan for micro in mine for unit in micro) == list(range(103))
    assert [sum(map(len, mine)) for (mine,) in plan] == [16] * 6 + [7]
    assert max(sum(lengths[unit] for unit in micro) for (mine,) in plan for micro in mine) <= 100
    assert plan == plan_epoch(lengths, 16, 100, seed=1, epoch=0)
    assert plan != plan_epoch(lengths, 16, 100, seed=1, epoch=1)
    assert plan != plan_epoch(lengths, 16, 100, seed=2, epoch=0)
    assert plan_epoch([500], 16, 100, seed=0, epoch=0) == [[[[0]]]]


def test_planned_steps_go_on_where_they_stopped():
    arguments = ([3, 4, 5, 6, 7], 2, 10, 0)
    steps = list(planned_steps(*arguments, first_step=0, num_steps=8))
    assert [step for step, _ in steps] == list(range(8))
    assert list(planned_steps(*arguments, first_step=4, num_steps=8)) == steps[4:]
