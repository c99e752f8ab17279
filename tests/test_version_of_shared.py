"""A version made of real problems and rollouts: its card renders, validates, and opens every config it names."""

import re
from itertools import islice, pairwise
from pathlib import Path

import datasets
import mlcroissant
import pytest
from huggingface_hub import DatasetCard

from curate.card import CROISSANT, check_card
from curate.pipeline import planned, run_step
from curate.stages.publish import publish
from pipelines.config import Recipe, load_recipe
from pipelines.tables import SHARDS
from pipelines.versions import checked_folder

SLICES = {
    "problems/math_train": 80,
    "problems/aime24": 10,
    "problems/mmlu_stem": 20,
    "rollouts/math_qwen25math_100x8": 240,
    "rollouts/math_r1distill_thought_anchors": 40,
    "rollouts/gsm8k_openai_model_solutions": 120,
    "rollouts/mmlu_pro_math_15models": 60,
}


@pytest.fixture(scope="module")
def version(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the published version."""
    work = tmp_path_factory.mktemp("shared")
    files = []
    for name, rows in SLICES.items():
        files.append(work / f"{Path(name).name}.jsonl")
        with (shared_data / f"{name}.jsonl").open(encoding="utf-8") as source:
            files[-1].write_text("".join(islice(source, rows)), encoding="utf-8")
    recipe: Recipe = {
        "import": {"files": [str(path) for path in files]},
        "decontaminate": {"against": [f"aime24={shared_data / 'problems/aime24.jsonl'}"]},
        "split": {"rl_pass_rate_max": 0.9},
        "build_dpo_pairs": {"across_models": True},
    }
    for step in planned(recipe):
        if step != "generate":
            run_step(work / "out", step, recipe)
    publish(work / "out", str(work / "sets/real"), "1.0.0")
    return work / "sets/real/1.0.0"


def test_front_matter_names_what_datasets_opens(version: Path, tmp_path: Path):
    facts = DatasetCard.load(version / "README.md").data.to_dict()
    assert (facts["pretty_name"], facts["version"], facts["language"]) == ("real", "1.0.0", ["en"])
    assert [config["config_name"] for config in facts["configs"]] == ["midtrain", "sft", "dpo", "rl"]
    for config, stated in zip(facts["configs"], facts["dataset_info"], strict=True):
        kind = config["config_name"]
        loaded = datasets.load_dataset(str(version), kind, split="train", cache_dir=str(tmp_path))
        assert loaded.features.arrow_schema.names == SHARDS[kind].names
        assert loaded.features == datasets.Features._from_yaml_list(stated["features"])
        assert loaded.num_rows == stated["splits"][0]["num_examples"] > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # mlcroissant's own, of rdflib and pandas
def test_croissant_reads_every_row(version: Path):
    dataset = mlcroissant.Dataset(jsonld=str(version / CROISSANT))
    assert not dataset.metadata.ctx.issues.errors
    stated = DatasetCard.load(version / "README.md").data.to_dict()["dataset_info"]
    for info in stated:
        assert sum(1 for _ in dataset.records(info["config_name"])) == info["splits"][0]["num_examples"]


def test_its_numbers_are_those_of_its_tables(version: Path):
    assert check_card(version) == []
    checked_folder(version)


def test_the_page_has_no_broken_table_and_no_gap(version: Path):
    text = DatasetCard.load(version / "README.md").text
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in prose.splitlines()]
    for (before, line), width, next_width in zip(pairwise(prose.splitlines()), cells, cells[1:], strict=False):
        if width and next_width:
            assert width == next_width, line
        # A table that follows text without an empty line is no table, and two in a row are one.
        assert not (next_width and not width and before.strip()), line
    assert "None" not in prose.replace("None found.", "").replace("None labelled", "")
    assert "nan" not in re.findall(r"\w+", prose)
    assert "\n\n\n\n" not in text


def test_the_recipe_on_the_page_goes_on_from_the_imported_files(version: Path, tmp_path: Path):
    text = (version / "README.md").read_text(encoding="utf-8")
    file = tmp_path / "recipe.toml"
    file.write_text(text.split("```toml\n")[1].split("```")[0], encoding="utf-8")
    recipe = load_recipe(file)
    assert planned(recipe) == ["verify", "dedupe", "decontaminate", "annotate", "split", "build_dpo_pairs"]
    assert recipe["split"]["rl_pass_rate_max"] == 0.9
    assert all(f"| {Path(name).name}.jsonl |" in text for name in SLICES)
