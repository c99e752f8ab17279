"""Imports point down only, and heavy packages stay where they belong."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "pipelines": set[str](),
    "verifiers": set[str](),
    "curate": {"pipelines", "verifiers"},
    "train": {"pipelines", "verifiers"},
}
"""Room -> rooms it may import."""

HEAVY = {"torch", "vllm", "transformers", "datasets", "datatrove", "polars", "pyarrow", "duckdb", "matplotlib", "sympy"}


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Top-level names of the packages a file imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_downwards_only(room: str):
    for path in sources(room):
        ours = {name for name in imported(path) if name in ROOMS and name != room}
        assert ours <= ROOMS[room], f"{path.relative_to(ROOT)} imports {sorted(ours - ROOMS[room])}"


def test_torch_stays_in_train_and_the_samplers():
    for room in ("pipelines", "verifiers", "curate"):
        for path in sources(room):
            if "samplers" not in path.parts:
                assert "torch" not in set(imported(path)), path.relative_to(ROOT)


def test_vllm_stays_in_its_sampler():
    users = [path.relative_to(ROOT) for room in ROOMS for path in sources(room) if "vllm" in set(imported(path))]
    assert [path.as_posix() for path in users] == ["pipelines/samplers/vllm.py"]


@pytest.mark.parametrize("room", ["curate", "train"])
def test_help_imports_nothing_heavy(room: str):
    probe = f"import sys, {room}.cli; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
