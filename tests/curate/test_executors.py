"""A stage spread over processes leaves the tables that one process leaves."""

import shutil
from pathlib import Path

import pytest
from run_directories import small_run

from curate.pipeline import run_step
from pipelines import parquet
from pipelines.errors import UserError


def several_files(root: Path) -> Path:
    """A run directory whose rollouts stand in three files, without labels."""
    small_run(root, problems=6, samples=4)
    (path,) = parquet.table_files(root, "rollouts")
    whole = parquet.read_table(path, "rollouts")
    path.unlink()
    for i in range(3):
        parquet.write_file(root / "rollouts" / f"{i:05d}.parquet", "rollouts", [whole.slice(8 * i, 8)])
    for table in ("verdicts", "annotations", "manifest.json"):
        target = root / table
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    return root


def label_bytes(root: Path) -> dict[str, bytes]:
    return {
        f"{table}/{path.name}": path.read_bytes()
        for table in ("verdicts", "annotations/rollouts", "annotations/prompts")
        for path in parquet.table_files(root, table)
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_local_tasks_make_what_one_process_makes(tmp_path: Path):
    one, many = several_files(tmp_path / "one"), several_files(tmp_path / "many")
    for stage in ("verify", "annotate"):
        run_step(one, stage, {})
        lines = run_step(many, stage, {}, executor="local", tasks=2)
        # The tasks made the files; the command that spread them found them fresh.
        assert stage != "verify" or "nothing to do, 3 files" in lines[0]
    assert len(label_bytes(one)) == 7
    assert label_bytes(one) == label_bytes(many)


def test_an_executor_that_cannot_run_says_what_it_lacks(tmp_path: Path):
    root = several_files(tmp_path / "run")
    with pytest.raises(UserError, match="needs a partition"):
        run_step(root, "verify", {}, executor="slurm", tasks=2)
    with pytest.raises(UserError, match=r"spread\.executor"):
        run_step(root, "verify", {}, executor="cloud")
    with pytest.raises(UserError, match="`dedupe` looks across rows"):
        run_step(root, "dedupe", {}, executor="local", tasks=2)
