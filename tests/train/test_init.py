"""A random student: its tokenizer, template and shape."""

from pathlib import Path

import pytest
from toy_shards import answer, question, toy_shards
from transformers import AutoTokenizer

from pipelines.errors import UserError
from train.batches import encode
from train.init import InitConfig, init_student
from train.model import load_model
from train.sft import SftConfig, train_sft


@pytest.mark.parametrize(
    ("architecture", "longrope_from"), [("phi3", None), ("phi3", 64), ("llama", None), ("qwen3", None)]
)
def test_a_student_can_be_trained(tmp_path: Path, architecture: str, longrope_from: int | None):
    shards = toy_shards(tmp_path / "out")
    config = InitConfig(architecture=architecture, vocab_size=320, max_positions=256, longrope_from=longrope_from)
    student = init_student(config, shards, tmp_path / "student")
    folder = train_sft(SftConfig(max_steps=1, max_length=256), shards, str(student), tmp_path / "run")
    model = load_model(str(folder), max_length=256)
    assert 0.5e6 < sum(parameter.numel() for parameter in model.parameters()) < 2e6
    assert model.generation_config.eos_token_id == [4, 0]


def test_the_tokenizer_gives_every_text_back_and_splits_digits(tmp_path: Path):
    student = init_student(InitConfig(vocab_size=300, max_positions=256), toy_shards(tmp_path / "out"), tmp_path / "s")
    tokenizer = AutoTokenizer.from_pretrained(student)
    text = "12345 + 7 = é 数 \\boxed{x}\n"
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(tokens) == text
    assert [tokenizer.decode(token) for token in tokens[:5]] == list("12345")
    assert len(tokenizer) <= 300
    assert len(tokenizer("<think></think>")["input_ids"]) == 2
    (document,) = encode(tokenizer, [question(2) + answer(2, 5)], ["r"])
    assert tokenizer.decode(document.tokens, skip_special_tokens=True).count("</think>") == 1


def test_the_same_seed_gives_the_same_student(tmp_path: Path):
    shards = toy_shards(tmp_path / "out")
    folders = [init_student(InitConfig(vocab_size=300), shards, tmp_path / name) for name in ("a", "b")]
    for file in ("model.safetensors", "tokenizer.json"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"size": "7b"}, "no size `7b`"), ({"architecture": "llama", "longrope_from": 9}, "LongRoPE")],
)
def test_what_cannot_be_made_is_one_sentence(tmp_path: Path, settings: dict, named: str):
    with pytest.raises(UserError, match=named):
        init_student(InitConfig(**settings), toy_shards(tmp_path / "out"), tmp_path / "s")


def test_a_folder_without_shards_or_with_a_model_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no shards"):
        init_student(InitConfig(), tmp_path, tmp_path / "s")
    init_student(InitConfig(vocab_size=300), toy_shards(tmp_path / "out"), tmp_path / "s")
    with pytest.raises(UserError, match="already holds a model"):
        init_student(InitConfig(), tmp_path / "out", tmp_path / "s")
