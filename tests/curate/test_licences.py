"""Licences that forbid sharing stop a publish unless somebody says otherwise."""

from pathlib import Path

import pytest
from run_directories import small_run, write_rows

from curate.licences import refuse_unshareable, sharing
from curate.stages.publish import publish
from pipelines import parquet
from pipelines.errors import UserError


@pytest.mark.parametrize(
    ("licence", "says"),
    [
        ("MIT", "allowed"),
        ("MIT License", "allowed"),
        ("The Unlicense", "allowed"),
        ("Apache-2.0", "allowed"),
        ("apache 2.0", "allowed"),
        ("CC BY-SA 4.0", "allowed"),
        ("cc0-1.0", "allowed"),
        ("Public Domain", "allowed"),
        ("CC-BY-NC-4.0", "non-commercial"),
        ("cc by-nc-sa 4.0", "non-commercial"),
        ("non-commercial use", "non-commercial"),
        ("Creative Commons Attribution Non-Commercial ShareAlike", "non-commercial"),
        ("Attribution-NonCommercial-Share-Alike 4.0", "non-commercial"),
        ("no sharing", "forbidden"),
        ("CC-BY-ND-4.0", "forbidden"),
        ("cc-by-nc-nd-4.0", "forbidden"),
        ("All rights reserved", "forbidden"),
        ("Proprietary", "forbidden"),
        ("no redistribution", "forbidden"),
        ("may not be shared", "forbidden"),
        ("Research only", "forbidden"),
        ("research-use-only", "forbidden"),
        ("Mandarin open textbook", "not known"),
        ("internet archive terms", "not known"),
        ("", "not known"),
        (None, "not known"),
    ],
)
def test_what_a_licence_says(licence: str | None, says: str):
    assert sharing(licence) == says


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose source `additions` may not be shared."""
    run = small_run(tmp_path / "out")
    rows = parquet.read_table(run / "prompts/00000.parquet", "prompts").to_pylist()
    for row in rows:
        if row["source"] == "additions":
            row["licence"] = "All rights reserved"
    write_rows(run, "prompts", rows)
    return run


def test_a_forbidding_licence_stops_publish(run: Path, tmp_path: Path):
    with pytest.raises(
        UserError, match=r"`additions` \(3 problems\): `All rights reserved` forbids sharing"
    ) as refusal:
        publish(run, str(tmp_path / "sets/sums"), "1.0.0")
    assert "--accept-licence 'All rights reserved'" in (refusal.value.hint or "")
    assert not (tmp_path / "sets").exists()


def test_an_acknowledged_licence_is_published_and_told(run: Path, tmp_path: Path):
    with pytest.raises(UserError, match="forbids sharing"):
        publish(run, str(tmp_path / "sets/sums"), "1.0.0", accepted=["MIT"])
    publish(run, str(tmp_path / "sets/sums"), "1.0.0", accepted=["all rights reserved"])
    card = (tmp_path / "sets/sums/1.0.0/README.md").read_text()
    assert "| additions | All rights reserved | forbidden | 3 | 12 |" in card
    assert "license:\n- mit\n- other" in card


def test_only_what_forbids_stops():
    names = ("mit", "x", "cc-by-nc-4.0", "cc-by-nd-4.0")
    rows = [{"source": name, "licence": name, "sharing": sharing(name), "problems": 1} for name in names]
    with pytest.raises(UserError, match=r"source `cc-by-nd-4.0`"):
        refuse_unshareable(rows, [])
    assert refuse_unshareable(rows[:-1], []) is None
    assert refuse_unshareable(rows, ["CC BY-ND 4.0"]) is None
