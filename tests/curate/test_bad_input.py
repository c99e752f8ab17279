"""What people bring: broken, empty, huge or lopsided. One sentence or a right result each, and nothing lost."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rows import prompt, rollout
from run_directories import write_rows

from curate.pipeline import run_step
from pipelines import parquet
from pipelines.errors import UserError
from pipelines.foreign import open_rows

LABELLED = ("verify", "dedupe", "annotate", "split")


def rows(root: Path, table: str) -> list[dict[str, Any]]:
    return parquet.read_table(parquet.table_files(root, table), table).to_pylist()


def bring(root: Path, *files: Path) -> str:
    (line, *more) = run_step(root, "import", {"import": {"files": [str(file) for file in files]}})
    return "\n".join([line, *more])


def traces(*answers: str) -> pa.Table:
    return pa.Table.from_pylist(
        [{"problem": f"What is ${k} + 1$?", "answer": str(k + 1), "completion": a} for k, a in enumerate(answers)]
    )


# --- empty strings --------------------------------------------------------------------------------


def test_empty_strings_of_a_file_are_refused_each_with_its_reason(tmp_path: Path):
    whole = {"problem": "What is $2 + 3$?", "answer": "5", "completion": "\\boxed{5}", "model": "m"}
    file = tmp_path / "gaps.jsonl"
    given = [whole, *({**whole, name: empty} for name in whole for empty in ("", " \n"))]
    file.write_text("".join(json.dumps(row) + "\n" for row in given))
    bring(tmp_path / "out", file)
    refused = Counter(row["reason"] for row in rows(tmp_path / "out", "refusals"))
    assert refused == {"empty_problem": 2, "empty_completion": 2}
    assert [row["response"] for row in rows(tmp_path / "out", "rollouts")] == ["\\boxed{5}"] * 5
    assert [row["answer"] for row in rows(tmp_path / "out", "prompts")] == ["5"]


def test_empty_traces_pass_every_stage_and_are_in_no_shard(tmp_path: Path):
    asked = [prompt("What is $2 + 5$?"), prompt("", "7"), prompt("What is $3 + 4$?", "")]
    texts = [("", ""), (None, ""), ("", " "), (" ", "\n"), ("add", "\\boxed{7}"), ("", "\\boxed{8}")]
    given = [
        rollout(of, response, reasoning=reasoning, sample_index=k)
        for of in asked
        for k, (reasoning, response) in enumerate(texts)
    ]
    write_rows(tmp_path, "prompts", asked)
    write_rows(tmp_path, "rollouts", given)
    for name in LABELLED:
        run_step(tmp_path, name, {})
    run_step(tmp_path, "build_dpo_pairs", {"build_dpo_pairs": {"reject_no_answer": True, "pairs_per_problem": 9}})
    assert len(rows(tmp_path, "verdicts")) == len(rows(tmp_path, "annotations/rollouts")) == len(given)
    verdicts = Counter((row["prompt_id"], row["verdict"]) for row in rows(tmp_path, "verdicts"))
    for of in asked[:2]:
        assert verdicts[of["prompt_id"], "no_answer"] == 4
    assert verdicts[asked[2]["prompt_id"], "gold_unreadable"] == len(texts)
    # Empty traces are no copies of each other, nor is a problem without words one of another.
    assert rows(tmp_path, "duplicates") == []
    assert {row["rollout_id"] for row in rows(tmp_path, "shards/midtrain")} == {
        given[4]["rollout_id"],
        given[10]["rollout_id"],
    }


# --- broken files ---------------------------------------------------------------------------------


def test_a_truncated_parquet_file_among_good_ones_is_named_before_anything_is_imported(tmp_path: Path):
    folder = tmp_path / "several"
    folder.mkdir()
    for number in range(3):
        pq.write_table(traces(*["\\boxed{1}"] * (number + 1)), folder / f"{number}.parquet")
    whole = (folder / "1.parquet").read_bytes()
    (folder / "1.parquet").write_bytes(whole[: len(whole) // 2])
    for files in ([folder], sorted(folder.iterdir())):
        with pytest.raises(UserError, match=r"1\.parquet` is not a readable Parquet file") as caught:
            bring(tmp_path / "out", *files)
        assert "\n" not in caught.value.message
        assert not (tmp_path / "out").exists()
    (folder / "1.parquet").write_bytes(whole)
    bring(tmp_path / "out", folder)
    assert len(rows(tmp_path / "out", "rollouts")) == 6


def test_a_parquet_file_of_one_row_group_is_read_a_page_at_a_time(tmp_path: Path):
    file = tmp_path / "one.parquet"
    text = pa.array([f"{k} " * 4000 for k in range(4000)])
    pq.write_table(pa.table({"problem": text}), file, row_group_size=1 << 30, compression="none", use_dictionary=False)
    assert pq.read_metadata(file).num_row_groups == 1
    before, most = pa.total_allocated_bytes(), 0
    for _ in open_rows(str(file)).read():
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < file.stat().st_size / 2


def test_a_look_at_very_long_rows_takes_few_of_them(tmp_path: Path):
    file = tmp_path / "long.jsonl"
    rows = [{"problem": f"{k}", "messages": [{"role": "user", "content": "word " * 800_000}]} for k in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    opened = open_rows(str(file))
    assert [row.number for row in opened.peek()] == [0, 1, 2, 3, 4]
    assert sum(1 for _ in opened.read()) == 8


# --- lopsided pools -------------------------------------------------------------------------------


def test_a_pool_without_wrong_rollouts_has_its_other_shards(tmp_path: Path):
    file = tmp_path / "right.parquet"
    pq.write_table(traces(*(f"add\n\\boxed{{{k + 1}}}" for k in range(5))), file)
    bring(tmp_path / "out", file)
    lines = [line for name in LABELLED for line in run_step(tmp_path / "out", name, {"split": {"sft_size": 50}})]
    assert "split: sft: 50 traces were asked for, 5 qualify: all of them are taken" in lines
    with pytest.raises(UserError, match="would have 0 pairs: of 5 usable traces none is wrong"):
        run_step(tmp_path / "out", "build_dpo_pairs", {})
    assert [len(rows(tmp_path / "out", f"shards/{stage}")) for stage in ("midtrain", "sft")] == [5, 5]
    assert not (tmp_path / "out/shards/dpo").exists()
