"""What a reader marks in `curate view`, followed into the stages that respect it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from run_directories import small_run, write_rows
from view_site import served

from curate import candidates, card, overrides
from curate.stages import annotate, build_dpo_pairs, split, verify
from curate.stages.publish import publish
from curate.status import status as read_status
from pipelines import parquet, runner
from pipelines.errors import UserError
from pipelines.versions import checked_folder, fetch, folder_of, parse_reference
from verifiers import VERSIONS


def test_a_mark_goes_from_the_page_into_verify_split_and_pairs_and_back(tmp_path: Path):
    run = small_run(tmp_path / "out")
    (run / "manifest.json").unlink()  # of made-up settings

    def verdicts() -> dict[str, tuple[str, str, str | None]]:
        verify.run(run, verify.VerifyConfig(), workers=1)
        rows = parquet.read_table(run / "verdicts/00000.parquet", "verdicts").to_pylist()
        return {row["rollout_id"]: (row["verdict"], row["rule"], row["dissent"]) for row in rows}

    before = verdicts()
    with served(run) as site:
        right, wrong = site.rollout_ids[8 + 2], site.rollout_ids[8]  # of problem 2, whose gold is 5
        back = {"back": "?verdict=incorrect&rule=boxed%3Aunequal"}
        status, _, headers = site.mark(
            prompt_id=site.prompt_ids[2], rollout_id=wrong, verdict="correct", note="<b>", **back
        )
        assert status == 303
        assert headers["location"].endswith(
            f"/problem/{site.prompt_ids[2]}?verdict=incorrect&rule=boxed%3Aunequal#r-{wrong}"
        )
        assert site.mark(prompt_id=site.prompt_ids[2], rollout_id=right, verdict="incorrect")[0] == 303
        assert site.mark(prompt_id=site.prompt_ids[1], note="the sum is 3, the source says 4")[0] == 303
        page = site.get(f"problem/{site.prompt_ids[2]}")[1]
        assert "a reader says correct: <bdi>&lt;b&gt;</bdi> · in force after" in page
        assert set(re.findall(r"problem/([0-9a-f]{24})", site.get("?marked=1")[1])) == set(site.prompt_ids[1:3])
    assert runner.state(run, verify.STAGE) == "stale"
    assert read_status(run).overrides == [
        {"kind": "gold", "said": "bad", "marks": 1, "notes": 1, "in_verdicts": 0},
        {"kind": "verdict", "said": "correct", "marks": 1, "notes": 1, "in_verdicts": 0},
        {"kind": "verdict", "said": "incorrect", "marks": 1, "notes": 0, "in_verdicts": 0},
    ]
    said = verdicts()
    name = VERSIONS["mathematics"]
    assert said[wrong] == ("correct", "override", f"{name}: incorrect")
    assert said[right] == ("incorrect", "override", f"{name}: correct")
    assert {said[id_][:2] for id_ in site.rollout_ids[4:8]} == {("gold_unreadable", "override:bad_gold")}
    assert runner.state(run, verify.STAGE) == "done"
    assert [row["in_verdicts"] for row in read_status(run).overrides] == [1, 1, 1]
    annotate.run(run, annotate.AnnotateConfig())
    split.run(run, split.SplitConfig(rl_pass_rate_max=1.0), replace=True)
    chosen = parquet.read_table(run / "shards/midtrain/00000.parquet", "shards/midtrain")["rollout_id"].to_pylist()
    assert wrong in chosen
    assert right not in chosen
    assert not set(chosen) & set(site.rollout_ids[4:8])
    for id_ in (right, wrong):
        overrides.unmark(run, "verdict", id_)
    overrides.unmark(run, "gold", site.prompt_ids[1])
    assert not (run / "overrides/00000.parquet").exists()
    assert verdicts() == before


def test_choosing_respects_a_mark_before_verdicts_are_made_again(tmp_path: Path):
    run = small_run(tmp_path / "out")
    rows = parquet.read_table(run / "rollouts/00000.parquet", "rollouts").to_pylist()
    wrong = rows[8]
    overrides.mark(run, overrides.Override("verdict", wrong["rollout_id"], wrong["prompt_id"], "correct"))
    overrides.mark(run, overrides.Override("gold", rows[0]["prompt_id"], rows[0]["prompt_id"]))
    prompts = candidates.prompt_candidates(run)
    found = candidates.rollout_candidates(run, prompts)
    verdict = dict(zip(found["rollout_id"], found["verdict"].cast(str), strict=True))
    assert verdict[wrong["rollout_id"]] == "correct"
    assert verdict[rows[0]["rollout_id"]] == "gold_unreadable"
    assert verdict[rows[9]["rollout_id"]] == "incorrect"
    split.run(run, split.SplitConfig(rl_pass_rate_max=1.0), replace=True)
    selected = parquet.read_table(run / "selections/split/00000.parquet", "selections/split").to_pylist()
    refusal = {(row["stage"], row["id"]): row["refusal"] for row in selected}
    assert refusal["midtrain", wrong["rollout_id"]] is None
    assert refusal["midtrain", rows[0]["rollout_id"]] == "gold_unreadable"
    assert refusal["rl", rows[0]["prompt_id"]] == "gold_unreadable"
    config = build_dpo_pairs.BuildDpoPairsConfig()
    build_dpo_pairs.run(run, config, replace=True)
    pairs = parquet.read_table(run / "shards/dpo/00000.parquet", "shards/dpo")
    assert wrong["rollout_id"] not in pairs["rejected_id"].to_pylist()


def test_a_directory_in_use_is_said_and_nothing_is_marked(tmp_path: Path):
    run = small_run(tmp_path / "out")
    with served(run) as site, runner.locked(run):
        status, page, _ = site.mark(prompt_id=site.prompt_ids[0])
        assert status == 409
        assert "is in use by another command" in page
    assert not overrides.read(run)


def test_a_mark_replaces_the_one_before_and_no_other(tmp_path: Path):
    marks = [
        overrides.Override("verdict", "a", "p", "correct"),
        overrides.Override("gold", "p", "p", note="it is 7"),
        overrides.Override("verdict", "a", "p", "undecided", "unclear"),
    ]
    for mark in marks:
        overrides.mark(tmp_path, mark)
    assert overrides.read(tmp_path) == {("verdict", "a"): marks[2], ("gold", "p"): marks[1]}
    with pytest.raises(UserError, match="no verdict of a reader"):
        overrides.mark(tmp_path, overrides.Override("verdict", "a", "p", "timeout"))
    overrides.unmark(tmp_path, "gold", "a")
    assert len(overrides.read(tmp_path)) == 2


def test_a_published_version_is_never_marked(tmp_path: Path):
    run = small_run(tmp_path / "out")
    publish(run, str(tmp_path / "published/sums"), "1.0.0")
    version = tmp_path / "sums"
    fetch(parse_reference(f"{tmp_path}/published/sums@1.0.0"), version)
    for folder in (version, folder_of(f"{tmp_path}/published/sums@1.0.0")):
        with served(folder) as site:
            assert site.get()[0] == 200
            status, page, _ = site.mark(prompt_id=site.prompt_ids[0])
        assert status == 409
        assert "is a published version" in page
        checked_folder(folder)


def test_a_mark_makes_stale_the_files_that_hold_its_rows_and_no_others(tmp_path: Path):
    run = small_run(tmp_path / "out")  # four rollouts of each problem, one after another
    (run / "manifest.json").unlink()
    (run / "verdicts/00000.parquet").unlink()
    rows = parquet.read_table(run / "rollouts/00000.parquet", "rollouts").to_pylist()
    (run / "rollouts/00000.parquet").unlink()
    for part in range(3):
        write_rows(run, "rollouts", rows[8 * part : 8 * part + 8], name=f"{part:05}")

    def verified() -> tuple[int, int]:
        done = verify.run(run, verify.VerifyConfig(), workers=1)
        assert runner.state(run, verify.STAGE) == "done"
        return done.made, done.kept

    assert verified() == (3, 0)
    mark = overrides.Override("verdict", rows[9]["rollout_id"], rows[9]["prompt_id"], "incorrect")
    overrides.mark(run, mark)
    assert runner.state(run, verify.STAGE) == "stale"
    assert verified() == (1, 2)
    overrides.mark(run, replace(mark, note="I looked again"))
    assert verified() == (0, 3)
    overrides.mark(run, replace(mark, verdict="undecided"))
    overrides.mark(run, overrides.Override("gold", rows[23]["prompt_id"], rows[23]["prompt_id"]))
    assert verified() == (2, 1)
    overrides.unmark(run, "verdict", mark.id)
    assert verified() == (1, 2)


def test_the_card_tells_what_readers_marked(tmp_path: Path):
    run = small_run(tmp_path / "out")
    assert "Nothing in them was\n  checked by a person." in card.write_card(run).read_text()
    row = parquet.read_table(run / "rollouts/00000.parquet", "rollouts").to_pylist()[0]
    overrides.mark(run, overrides.Override("verdict", row["rollout_id"], row["prompt_id"], "incorrect", "it is 2"))
    text = card.write_card(run).read_text()
    assert "| verdict | incorrect | 1 | 1 | 0 |" in text
    assert "checked by a person, except what readers marked" in text
