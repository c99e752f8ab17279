"""What an executor cannot do, it says; what it does is compared in test_same_tables.py."""

from pathlib import Path

import pytest
from run_directories import small_run

from curate.pipeline import run_step
from pipelines.errors import UserError


def test_an_executor_that_cannot_run_says_what_it_lacks(tmp_path: Path):
    small_run(tmp_path, problems=2, samples=2)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UserError, match="needs a partition"):
        run_step(tmp_path, "verify", {}, executor="slurm", tasks=2)
    with pytest.raises(UserError, match=r"spread\.executor"):
        run_step(tmp_path, "verify", {}, executor="cloud")
    with pytest.raises(UserError, match="`dedupe` looks across rows"):
        run_step(tmp_path, "dedupe", {}, executor="local", tasks=2)
