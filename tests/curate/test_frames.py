"""Tables read side by side and row by row."""

from pathlib import Path

import polars as pl
from rows import prompt, rollout, rollout_label, verdict
from run_directories import write_rows

from curate.frames import aligned_frames, gathered, read_rows

ASKED = prompt("How many?")
ROLLOUTS = [rollout(ASKED, f"trace {k}", sample_index=k) for k in range(10)]


def test_labels_stand_beside_what_they_label(tmp_path: Path):
    write_rows(tmp_path, "rollouts", ROLLOUTS[:4], "00000")
    write_rows(tmp_path, "rollouts", ROLLOUTS[4:7], "00001")
    write_rows(tmp_path, "rollouts", ROLLOUTS[7:], "00002")
    write_rows(tmp_path, "verdicts", [verdict(row, "correct") for row in ROLLOUTS[:4]], "00000")
    # Labelled before the file grew, and in another order.
    write_rows(tmp_path, "verdicts", [verdict(ROLLOUTS[6], "incorrect"), verdict(ROLLOUTS[4], "correct")], "00001")
    write_rows(tmp_path, "annotations/rollouts", [rollout_label(row, num_tokens=7) for row in ROLLOUTS[4:7]], "00001")
    columns = {"rollouts": ["response"], "verdicts": ["verdict"], "annotations/rollouts": ["num_tokens"]}
    frame = pl.concat(list(aligned_frames(tmp_path, "rollout_id", columns)))
    assert frame["response"].to_list() == [row["response"] for row in ROLLOUTS]
    assert frame["verdict"].to_list() == ["correct"] * 4 + ["correct", None, "incorrect"] + [None] * 3
    assert frame["num_tokens"].to_list() == [None] * 4 + [7] * 3 + [None] * 3


def test_a_table_without_files_has_no_rows_but_columns(tmp_path: Path):
    (frame,) = aligned_frames(tmp_path, "rollout_id", {"rollouts": ["response"], "verdicts": ["verdict"]})
    assert (frame.height, frame.columns) == (0, ["rollout_id", "response", "verdict"])


def test_rows_by_number_across_files(tmp_path: Path):
    for name, part in (("00000", ROLLOUTS[:4]), ("00001", ROLLOUTS[4:7]), ("00002", ROLLOUTS[7:])):
        write_rows(tmp_path, "rollouts", part, name)
    for wanted in ([], [0], [3, 4], [2, 7, 9], list(range(10))):
        found = list(read_rows(tmp_path, "rollouts", ["response"], pl.Series("row", wanted, dtype=pl.UInt32), 2))
        assert [row for rows, _ in found for row in rows] == wanted
        assert [text for _, frame in found for text in frame["response"]] == [f"trace {row}" for row in wanted]


def test_gathered_frames_have_all_rows_in_order():
    parts = [pl.DataFrame({"row": [row, row + 1]}) for row in range(0, 10, 2)]
    found = list(gathered(iter(parts), 4))
    assert [frame.height for frame in found] == [4, 4, 2]
    assert pl.concat(found)["row"].to_list() == list(range(10))
    assert list(gathered(iter([]), 4)) == []
    assert [frame.columns for frame in gathered(iter([parts[0].clear()]), 4)] == [["row"]]
