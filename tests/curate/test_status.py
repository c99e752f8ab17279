"""`curate status`: what is there, what is missing or stale and why, what comes next."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from run_directories import small_run, write_rows
from typer.testing import CliRunner

from curate import card
from curate.cli_looking import commands
from curate.generated import STAGE as GENERATE_STAGE
from curate.pipeline import STEPS
from curate.stages.publish import publish
from curate.stats import Row
from curate.status import pipeline_stages, status
from pipelines import parquet, runner
from pipelines.config import Config
from pipelines.errors import UserError
from pipelines.runner import Stage
from pipelines.versions import folder_of

IMPORT = Stage("import", reads=(), writes=("prompts", "rollouts", "refusals"))
GENERATE = Stage("generate", reads=("prompts",), writes=("rollouts", "refusals"))
VERIFY = Stage("verify", reads=("rollouts", "prompts"), writes=("verdicts",))
DEDUPE = Stage("dedupe", reads=("prompts", "rollouts"), writes=("duplicates",))
STAGES = (IMPORT, GENERATE, VERIFY, DEDUPE, card.STAGE)


class ToyConfig(Config):
    """Settings of the stages above."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The small run, its verdicts and duplicates made by stages that copy what is there."""
    root = small_run(tmp_path / "out")
    (root / "manifest.json").unlink()
    verdicts = parquet.read_table(root / "verdicts/00000.parquet", "verdicts")
    runner.run_row_stage(root, VERIFY, ToyConfig(), lambda path: [verdicts])
    duplicates = parquet.read_table(root / "duplicates/00000.parquet", "duplicates")
    runner.run_set_stage(root, DEDUPE, ToyConfig(), lambda: {"duplicates": [duplicates]})
    return root


def rows(root: Path, stages: tuple[Stage, ...] = STAGES) -> Mapping[str, Row]:
    return {row["stage"]: row for row in status(root, stages).stages}


def test_done_missing_and_unused(run: Path):
    found = rows(run)
    states = {stage: row["state"] for stage, row in found.items()}
    assert states == {"import": "unused", "generate": "unused", "verify": "done", "dedupe": "done", "card": "missing"}
    assert (found["verify"]["files"], found["verify"]["rows"]) == (1, 24)
    assert found["card"]["reason"] == "never ran"
    assert status(run, STAGES).next_command == f"curate card {run}"


def test_everything_done(run: Path):
    card.write_card(run)
    assert rows(run)["card"]["state"] == "done"
    assert status(run, STAGES).next_command is None


def test_a_new_input_makes_stale(run: Path):
    more = parquet.read_table(run / "rollouts/00000.parquet", "rollouts").to_pylist()[:1]
    write_rows(run, "rollouts", more, name="00001")
    found = rows(run)["verify"]
    assert (found["state"], found["reason"]) == ("stale", "input new: rollouts/00001.parquet")
    assert status(run, STAGES).next_command == f"curate verify {run}"


def test_a_changed_input_makes_stale(run: Path):
    write_rows(run, "prompts", parquet.read_table(run / "prompts/00000.parquet", "prompts").to_pylist()[1:])
    assert rows(run)["dedupe"]["reason"] == "input changed: prompts/00000.parquet"


def test_a_lost_output_makes_stale(run: Path):
    (run / "duplicates/00000.parquet").unlink()
    assert rows(run)["dedupe"]["reason"] == "output gone: duplicates/00000.parquet"


def test_changed_code_makes_stale(run: Path):
    newer = Stage(VERIFY.name, VERIFY.reads, VERIFY.writes, version=2)
    assert rows(run, (newer,))["verify"]["reason"] == "its code changed (version 1 -> 2)"


def test_an_empty_directory_says_where_to_begin(tmp_path: Path):
    (tmp_path / "out").mkdir()
    found = status(tmp_path / "out", STAGES)
    assert {row["state"] for row in found.stages} == {"missing"}
    assert found.next_command == f"curate import FILES… --out {tmp_path / 'out'}"
    assert found.conservation == found.refusals == found.choices == []


def test_problems_without_rollouts_want_a_teacher(tmp_path: Path):
    root = small_run(tmp_path / "out")
    for path in root.rglob("*.parquet"):
        if path.parent != root / "prompts":
            path.unlink()
    (root / "manifest.json").unlink()
    assert status(root, STAGES).next_command == f"curate generate --teacher NAME --out {root}"


def test_refusals_and_conservation_are_told(run: Path):
    found = status(run, STAGES)
    assert found.refusals == [{"stage": "import", "source": "sums", "reason": "empty_problem", "rows": 2}]
    assert [row["stage"] for row in found.conservation] == ["midtrain", "sft", "dpo", "rl"]
    assert all(row["holds"] for row in found.conservation)


def test_a_missing_directory_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="no run directory"):
        status(tmp_path / "nowhere", STAGES)


def test_every_step_of_the_pipeline_has_its_stages():
    stages = pipeline_stages()
    assert stages[-1] == card.STAGE
    steps = [
        next(step for step in STEPS if stage.name == step or stage.name.startswith(f"{step}_")) for stage in stages[:-1]
    ]
    assert list(dict.fromkeys(steps)) == list(STEPS)
    written = {table for stage in stages for table in stage.writes}
    assert {"rollouts", "verdicts", "duplicates", "contamination", "shards/sft", "shards/dpo"} <= written


def test_a_version_wants_nothing(run: Path, tmp_path: Path):
    publish(run, str(tmp_path / "published/sums"), "1.0.0")
    found = status(folder_of(f"{tmp_path}/published/sums@1.0.0"), (IMPORT, Stage("verify", (), ("verdicts",), 2)))
    assert [row["state"] for row in found.stages] == ["unused", "stale"]
    assert (found.version, found.next_command) == ("sums@1.0.0", None)


def test_status_and_view_take_a_version_by_its_name(run: Path, tmp_path: Path):
    publish(run, str(tmp_path / "published/sums"), "1.0.0")
    asked = CliRunner().invoke(commands, ["status", f"{tmp_path}/published/sums@1.0.0"])
    assert asked.exit_code == 0
    assert asked.stdout.endswith("\nsums@1.0.0 is published: it never changes\n")
    for command in ("status", "view"):
        with pytest.raises(UserError, match=r"no version .*sums@1\.0\.1"):
            CliRunner().invoke(commands, [command, f"{tmp_path}/published/sums@1.0.1"], catch_exceptions=False)


def test_after_a_pilot_sampling_goes_on(run: Path):
    runner.record(run, "generate:pocket", {"code": "1", "config": {}, "inputs": [], "outputs": {}, "version": 1})
    found = rows(run, (IMPORT, GENERATE_STAGE, VERIFY))
    assert (found["import"]["state"], found["generate"]["state"]) == ("unused", "stale")
    assert status(run, (IMPORT, GENERATE_STAGE)).next_command == f"curate generate --teacher NAME --out {run}"
