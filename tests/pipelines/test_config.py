"""Strict settings: an unknown key or a bad value is named; overrides are typed."""

from pathlib import Path

import pytest
from pydantic import Field

from pipelines.config import Config, difference, load_recipe
from pipelines.errors import UserError


class SampleConfig(Config):
    samples: int = Field(8, ge=2)
    teacher: str = "pocket"


def test_defaults_and_digest_follow_the_values():
    assert SampleConfig().digest() == SampleConfig(samples=8).digest()
    assert SampleConfig().digest() != SampleConfig(samples=9).digest()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sample": 4}, "unknown setting `generate.sample`"),
        ({"samples": 1}, "bad value for `generate.samples`: 1"),
        ({"samples": "many"}, "bad value for `generate.samples`: 'many'"),
    ],
)
def test_bad_settings_are_named(values, message):
    with pytest.raises(UserError, match=message):
        SampleConfig.parse(values, "generate")


def test_overrides_are_laid_over_the_recipe(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text('steps = ["generate"]\n[generate]\nsamples = 4\n')
    recipe = load_recipe(path, ["generate.samples=16", "generate.teacher=qwq-32b", "verify.timeout_s=2.5"])
    assert recipe["generate"] == {"samples": 16, "teacher": "qwq-32b"}
    assert recipe["verify"] == {"timeout_s": 2.5}


@pytest.mark.parametrize("override", ["samples=4", "generate.samples", "=4", "steps.x=1"])
def test_a_malformed_override_is_refused(tmp_path: Path, override: str):
    path = tmp_path / "mine.toml"
    path.write_text('steps = ["generate"]\n')
    with pytest.raises(UserError, match="--set"):
        load_recipe(path, [override])


def test_missing_and_broken_recipes(tmp_path: Path):
    with pytest.raises(UserError, match="no recipe"):
        load_recipe(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("steps = [")
    with pytest.raises(UserError, match="not a TOML file"):
        load_recipe(broken)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[stf]\nlearning_rate = 1e-3\n", "no stage `stf`"),
        ('steps = ["sft", "dpoo"]\n', "no stage `dpoo`"),
        ('steps = "sft"\n', "`steps` is not a list"),
        ("steps = 3\n", "`steps` is not a list"),
        ("sft = 3\n", "`sft` is not a section"),
    ],
)
def test_a_misspelt_stage_is_not_left_out_in_silence(tmp_path: Path, text: str, message: str):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_recipe(path)


def test_difference_names_every_changed_key():
    assert difference({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == ["b: 2 -> 3", "c: None -> 4"]
