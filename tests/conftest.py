"""Fixtures every room's tests share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real problems and rollouts that stand beside the checkout; never part of it."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    assert folder.is_dir(), f"the real data these tests read is not at {folder}"
    return folder
