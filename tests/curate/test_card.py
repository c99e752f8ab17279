"""The card: the Hub reads its front matter, `datasets` opens what it names, and its numbers are the tables'."""

import json
import re
import tomllib
from pathlib import Path

import datasets
import mlcroissant
import pytest
from huggingface_hub import DatasetCard
from run_directories import small_run, write_rows

from curate.card import CROISSANT, PICTURES, STAGE, check_card, template_file, write_card
from curate.stages import import_
from pipelines import parquet, runner
from pipelines.errors import UserError
from pipelines.tables import TABLES


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return small_run(tmp_path / "sums")


def test_front_matter(run: Path):
    card = DatasetCard(write_card(run, version="1.2.0").read_text())
    facts = card.data.to_dict()
    assert [config["config_name"] for config in facts["configs"]] == ["midtrain", "sft", "dpo", "rl"]
    assert facts["license"] == ["apache-2.0", "mit"]
    assert facts["size_categories"] == ["n<1K"]
    assert (facts["pretty_name"], facts["version"]) == ("sums", "1.2.0")


def test_datasets_opens_every_config(run: Path, tmp_path: Path):
    write_card(run)
    rows = {}
    for kind in ("midtrain", "sft", "dpo", "rl"):
        loaded = datasets.load_dataset(str(run), kind, split="train", cache_dir=str(tmp_path / "cache"))
        rows[kind] = loaded.num_rows
    assert rows == {"midtrain": 7, "sft": 7, "dpo": 2, "rl": 5}
    message = datasets.load_dataset(str(run), cache_dir=str(tmp_path / "cache"))["train"][0]["messages"]
    assert [turn["role"] for turn in message] == ["user", "assistant"]


def test_features_and_sizes_are_those_of_the_files(run: Path, tmp_path: Path):
    info = {one["config_name"]: one for one in DatasetCard(write_card(run).read_text()).data.to_dict()["dataset_info"]}
    for kind in ("midtrain", "sft", "dpo", "rl"):
        loaded = datasets.load_dataset(str(run), kind, split="train", cache_dir=str(tmp_path / "cache"))
        stated = datasets.Features._from_yaml_list(info[kind]["features"])
        assert stated == datasets.Features.from_arrow_schema(TABLES[f"shards/{kind}"]) == loaded.features
        assert info[kind]["splits"][0]["num_examples"] == loaded.num_rows
        assert info[kind]["download_size"] == (run / f"shards/{kind}/00000.parquet").stat().st_size


def test_languages_are_those_of_the_problems(run: Path):
    assert DatasetCard(write_card(run).read_text()).data.to_dict()["language"] == ["en"]
    rows = parquet.read_table(run / "prompts/00000.parquet", "prompts").to_pylist()
    rows[0]["problem"], rows[1]["problem"] = "求 $1+2$ 的值。", "두 수의 합은?"
    rows[2]["problem"] = "りんごは3個あります。合計は?"
    write_rows(run, "prompts", rows)
    assert DatasetCard(write_card(run).read_text()).data.to_dict()["language"] == ["en", "zh", "ja", "ko"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # mlcroissant's own, of rdflib and pandas
def test_croissant_is_valid_and_opens_every_shard(run: Path):
    write_card(run, name="sums", version="1.2.0")
    dataset = mlcroissant.Dataset(jsonld=str(run / CROISSANT))
    assert not dataset.metadata.ctx.issues.errors
    assert (dataset.metadata.name, str(dataset.metadata.version)) == ("sums", "1.2.0")
    rows = {kind: list(dataset.records(kind)) for kind in ("midtrain", "sft", "dpo", "rl")}
    assert {kind: len(found) for kind, found in rows.items()} == {"midtrain": 7, "sft": 7, "dpo": 2, "rl": 5}
    assert [turn["sft/messages/role"] for turn in rows["sft"][0]["sft/messages"]] == [b"user", b"assistant"]
    assert rows["rl"][0]["rl/answer"] == b"1"


def test_an_empty_shard_has_no_config(run: Path):
    write_rows(run, "shards/dpo", [])
    facts = DatasetCard(write_card(run).read_text()).data.to_dict()
    assert [config["config_name"] for config in facts["configs"]] == ["midtrain", "sft", "rl"]


def test_numbers_are_the_tables(run: Path):
    text = write_card(run).read_text()
    assert "| correct | 11 | 45.8 % |" in text
    assert "| additions | 3 | 1 | 12 | 5 | 4 | 3 | 0 |" in text
    assert "| math500 | containment | 1 | 1 | 0.75 |" in text
    assert "| midtrain | 24 | 7 | 17 | 7 | yes |" in text


def test_the_recipe_on_the_card_can_be_run(run: Path):
    text = write_card(run).read_text()
    recipe = tomllib.loads(text.split("```toml\n")[1].split("```")[0])
    assert recipe["steps"] == ["generate", "verify", "dedupe", "decontaminate", "split", "build_dpo_pairs"]
    assert recipe["generate"]["teacher"] == "teacher-7b"


def test_where_candidates_go_is_a_table_and_a_picture(run: Path):
    """Six problems of four samples: 4 traces are contaminated, 1 repeats another, 9 are wrong, 3 say nothing."""
    text = write_card(run).read_text()
    lines = text.splitlines()
    table = lines[lines.index("| reason | meaning | midtrain | sft | dpo | rl |") + 2 :]
    cells = {row.split(" | ")[0].strip("| "): row.strip(" |").split(" | ")[2:] for row in table[:7]}
    assert cells["candidates"] == ["24", "24", "6", "6"]
    assert cells["contaminated"] == ["4", "4", "1", "1"]
    assert cells["chosen"] == ["7", "7", "2", "5"]
    for stage in range(4):
        column = {name: int(row[stage].replace("–", "0")) for name, row in cells.items()}
        assert column["candidates"] == sum(rows for name, rows in column.items() if name != "candidates")
    assert "](reports/flow.png)" in text
    picture = (run / PICTURES[0]).read_bytes()
    assert picture.startswith(b"\x89PNG")
    (run / PICTURES[0]).unlink()
    write_card(run)
    assert (run / PICTURES[0]).read_bytes() == picture


def test_a_problem_in_several_stages_is_reported(run: Path):
    text = write_card(run).read_text()
    # Chosen traces are of problems 0, 1, 2, all of which RL has too; pairs are of problems 1 and 2.
    assert "| midtrain | 3 | 3 | 3 | 2 | 3 | 0 |" in text
    assert "| rl | 5 | 3 | 3 | 2 | 5 | 0 |" in text


def test_too_few_sft_traces_are_said(run: Path):
    manifest = runner.read_manifest(run)
    split = manifest["stages"]["split"]
    for wanted, said in ((7, False), (9000, True)):
        runner.record(run, "split", {**split, "config": {"sft_size": wanted}})
        assert ("Of the 9,000 SFT traces asked for" in write_card(run).read_text()) is said


def test_what_the_classifier_is_worth_is_told(run: Path):
    rows = [
        {
            "label": "domain",
            "trained_on": 540,
            "held_out": 60,
            "labels": 2,
            "accuracy_rate": 0.95,
            "most_common_rate": 0.5,
        }
    ]
    runner.record(
        run, "classifier", {"code": "1", "config": {}, "inputs": [], "outputs": {}, "version": 1, "accuracy": rows}
    )
    assert "| domain | 540 | 60 | 2 | 95.0 % | 50.0 % |" in write_card(run).read_text()


def test_folders_of_this_machine_are_not_told(tmp_path: Path):
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text("".join(json.dumps(item) + "\n" for item in HELDOUT))
    run = small_run(tmp_path / "sums", against=[f"mine={heldout}", str(heldout)])
    text = write_card(run).read_text()
    assert str(tmp_path) not in text
    assert "Searched for: mine, heldout." in text
    assert 'against = ["mine=heldout.jsonl", "heldout.jsonl"]' in text


HELDOUT = (
    {"problem": "A farmer sells 12 crates of 30 apples each at 2 dollars a crate. How many dollars?", "answer": "24"},
    {"problem": "Find the number of positive integers below 2024 that are divisible by 6 and by 35.", "answer": "9"},
)


def test_recall_is_measured_once_and_kept(tmp_path: Path):
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text("".join(json.dumps(item) + "\n" for item in HELDOUT))
    run = small_run(tmp_path / "sums", against=[str(heldout)])
    text = write_card(run).read_text()
    assert "| verbatim | 2 | 2 | 100.0 % |" in text
    assert "| new numbers | 2 | 0 | 0.0 % |" in text
    heldout.unlink()
    assert write_card(run).read_text() == text
    assert check_card(run) == []


def test_a_benchmark_that_is_elsewhere_is_said(tmp_path: Path):
    run = small_run(tmp_path / "sums", against=[str(tmp_path / "heldout.jsonl")])
    assert "not measured" in write_card(run).read_text()


def test_imported_files_are_listed(tmp_path: Path):
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(item) + "\n" for item in HELDOUT))
    import_.run(tmp_path / "sums", import_.ImportConfig(files=(str(tmp_path / "two.jsonl"),)))
    text = write_card(tmp_path / "sums").read_text()
    assert re.search(r"\| two\.jsonl \| \w+ \| [0-9a-f]{32} \| 2 \| 2 \|", text)
    assert check_card(tmp_path / "sums") == []


def test_the_check_finds_what_no_longer_holds(run: Path):
    write_card(run)
    assert check_card(run) == []
    rows = parquet.read_table(run / "verdicts/00000.parquet", "verdicts").to_pylist()
    rows[0]["verdict"] = "incorrect"
    write_rows(run, "verdicts", rows)
    differing = check_card(run)
    assert "-| correct | 11 | 45.8 % |" in differing
    assert "+| correct | 10 | 41.7 % |" in differing


def test_the_check_finds_a_number_written_by_hand(run: Path):
    path = write_card(run, version="1.0.0")
    path.write_text(path.read_text().replace("| correct | 11 |", "| correct | 24 |"))
    assert "-| correct | 24 | 45.8 % |" in check_card(run)


def test_no_card_is_said(run: Path):
    with pytest.raises(UserError, match="no card"):
        check_card(run)


def test_the_card_goes_stale_with_its_tables(run: Path):
    assert runner.state(run, STAGE) == "missing"
    write_card(run)
    assert runner.state(run, STAGE) == "done"
    write_rows(run, "duplicates", [])
    assert runner.state(run, STAGE) == "stale"


def test_text_from_data_cannot_break_the_page(run: Path):
    rows = parquet.read_table(run / "prompts/00000.parquet", "prompts").to_pylist()
    hostile = "x | y\n# heading <script>alert(1)</script> [a](javascript:b) `"
    write_rows(run, "prompts", [{**row, "source": hostile, "licence": hostile} for row in rows])
    text = write_card(run, name="a\n---\nb").read_text()
    assert "\n# heading" not in text
    assert "<script" not in text.replace("\\<script", "")
    assert "](javascript" not in text.replace("\\](javascript", "")
    assert DatasetCard(text).data.to_dict()["pretty_name"] == "a-----b"
    assert DatasetCard(text).data.to_dict()["license"] == "other"
    assert check_card(run) == []


def test_a_directory_without_anything_has_a_card(tmp_path: Path):
    (tmp_path / "out").mkdir()
    text = write_card(tmp_path / "out").read_text()
    assert "No shards yet." in text
    assert "No stage is on record" in text


def test_the_template_is_found():
    assert template_file().name == "TEMPLATE.md"
    assert "{{ card_data }}" in template_file().read_text()
