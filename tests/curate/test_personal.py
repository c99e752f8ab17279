"""Personal data and secrets are found in every text, and mathematics is not mistaken for them."""

from pathlib import Path

import pytest
from run_directories import small_run, write_rows

from curate.counting import opened
from curate.personal import findings, personal
from pipelines import parquet

PLANTED = {
    "email": "Write to ann.smith+maths@mail.school.edu.",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIE",
    "AWS access key": "key AKIAIOSFODNN7EXAMPLE,",
    "GitHub token": "ghp_" + "a1B2" * 9,
    "Hugging Face token": "hf_" + "aB3" * 11,
    "API key": "sk-proj-" + "a1B2c3D4" * 4,
    "Slack token": "xoxb-123456789012-abcdef",
    "Google API key": "AIza" + "Sy0" * 11 + "ab",
    "JSON web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    "password in a URL": "see postgres://root:hunter2@db7/x",
}

HARMLESS = (
    "mail user@example.com, a@b.test or nobody@host.invalid",
    "f@g and $x@y$ where \\@ifnextchar",
    "sk-learn, task-oriented-dialogue, risk_assessment_of_a_very_long_name_in_words",
    "https://example.org/a:b/c@d and 12:30@home",
    "3141592653589793238462643383279502884197169399375105820974944592",
    "AKIA and hf_short and eyJ.eyJ.x",
)


def found(run: Path) -> dict[tuple[str, str], int]:
    with opened(run) as connection:
        return {(row["kind"], row["found_in"]): row["rows"] for row in personal(connection)}


def with_text(run: Path, table: str, column: str, text: str) -> None:
    rows = parquet.read_table(run / table / "00000.parquet", table).to_pylist()
    rows[1][column] = text
    write_rows(run, table, rows)


@pytest.mark.parametrize("column", ["reasoning", "response"])
def test_each_kind_is_found_in_rollouts(tmp_path: Path, column: str):
    run = small_run(tmp_path / "out")
    assert found(run) == {}
    with_text(run, "rollouts", column, "\n".join(PLANTED.values()))
    assert found(run) == {(kind, "rollouts"): 1 for kind in PLANTED}


def test_problems_and_solutions_are_searched(tmp_path: Path):
    run = small_run(tmp_path / "out")
    with_text(run, "prompts", "problem", PLANTED["email"])
    with_text(run, "prompts", "solution", PLANTED["private key"])
    assert found(run) == {("email", "prompts"): 1, ("private key", "prompts"): 1}


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_none_is_not_reported(tmp_path: Path, text: str):
    run = small_run(tmp_path / "out")
    with_text(run, "rollouts", "response", text)
    assert found(run) == {}


def test_what_is_found_is_shown_masked_with_its_row(tmp_path: Path):
    run = small_run(tmp_path / "out")
    with_text(run, "rollouts", "response", PLANTED["GitHub token"])
    (row,) = findings(run)
    assert (row["kind"], row["found_in"], row["source"], row["masked"]) == (
        "GitHub token",
        "rollouts",
        "sums",
        "ghp_…B2",
    )
    assert row["id"] == parquet.read_table(run / "rollouts/00000.parquet", "rollouts")["rollout_id"][1].as_py()


def test_time_is_linear_in_the_text(tmp_path: Path):
    """Texts on which a backtracking engine would take time in the square of their length, or for ever."""
    run = small_run(tmp_path / "out")
    hostile = "a." * 400_000 + "@" + "a-" * 400_000 + "eyJ" * 200_000 + "-----BEGIN " + "A " * 400_000
    with_text(run, "rollouts", "reasoning", hostile)
    assert found(run) == {}
