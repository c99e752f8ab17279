"""The content digest: of the rows, not of the files; and of every value of them."""

import hashlib
import json
import random
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_directories import small_run, write_rows

from pipelines import content, parquet
from pipelines.content import directory_content, row_digests, table_content
from pipelines.tables import TABLES


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("runs") / "out")


def rows_of(run: Path, table: str) -> list[dict[str, Any]]:
    return parquet.read_table(run / table / "00000.parquet", table).to_pylist()


def test_every_table_with_rows_has_a_digest(run: Path):
    found = directory_content(run)
    assert {name: content.rows for name, content in found.items()}["rollouts"] == 24
    assert set(found) == {table for table in TABLES if parquet.table_files(run, table)}
    assert len({content.digest for content in found.values()}) == len(found)


@pytest.mark.parametrize("table", ["prompts", "rollouts", "shards/dpo", "shards/rl"])
def test_files_row_groups_compression_and_order_do_not_matter(run: Path, tmp_path: Path, table: str):
    rows = rows_of(run, table)
    random.Random(0).shuffle(rows)
    half = len(rows) // 2
    paths = [write_rows(tmp_path, table, rows[:half], "00000")]
    last = tmp_path / table / "00001.parquet"
    whole = pa.Table.from_pylist(rows[half:], schema=TABLES[table])
    pq.write_table(whole, last, compression="gzip", row_group_size=2, use_dictionary=False)
    assert table_content([*paths, last], table) == directory_content(run)[table]


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("prompts", "problem", "What is $0 + 1$? "),
        ("prompts", "choices", []),
        ("prompts", "choices", ["1,2"]),
        ("prompts", "solution", ""),
        ("rollouts", "temperature", 0.6000001),
        ("rollouts", "step", 0),
        ("rollouts", "upstream_label", None),
        ("rollouts", "seed", 2**40),
        ("shards/sft", "messages", [{"role": "user", "content": "x"}]),
    ],
)
def test_one_changed_value_changes_the_digest(run: Path, tmp_path: Path, table: str, column: str, value: object):
    rows = rows_of(run, table)
    assert rows[0][column] != value
    rows[0][column] = value
    path = write_rows(tmp_path, table, rows)
    assert table_content([path], table) != directory_content(run)[table]


def test_text_that_moves_to_the_next_column_changes_the_digest(run: Path, tmp_path: Path):
    rows = rows_of(run, "refusals")
    rows[0]["reason"], rows[0]["detail"] = rows[0]["reason"] + rows[0]["detail"], ""
    assert table_content([write_rows(tmp_path, "refusals", rows)], "refusals") != directory_content(run)["refusals"]


def test_a_repeated_row_counts(run: Path, tmp_path: Path):
    rows = rows_of(run, "verdicts")
    once = table_content([write_rows(tmp_path, "verdicts", rows)], "verdicts")
    twice = table_content([write_rows(tmp_path, "verdicts", [*rows, rows[0]])], "verdicts")
    thrice = table_content([write_rows(tmp_path, "verdicts", [*rows, rows[0], rows[0]])], "verdicts")
    assert len({once.digest, twice.digest, thrice.digest}) == 3


def plain_digest(row: dict[str, Any], schema: pa.Schema) -> bytes:
    header, texts = [], []
    for field in schema:
        value = row[field.name]
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type) or pa.types.is_nested(field.type):
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":")) if isinstance(value, list) else value
            header.append(-1 if text is None else len(text.encode()))
            texts.append((text or "").encode())
        else:
            bits = struct.unpack("<q", struct.pack("<d" if isinstance(value, float) else "<q", value or 0))
            header += [-1 if value is None else 0, *bits]
    return hashlib.sha256(struct.pack(f"<{len(header)}q", *header) + b"".join(texts)).digest()


def test_a_row_is_hashed_as_it_is_said_to_be(run: Path):
    """Row by row in plain Python: a header of 64-bit integers, then the texts."""
    for table in ("prompts", "rollouts", "annotations/rollouts", "shards/dpo"):
        batch = parquet.read_table(run / table / "00000.parquet", table).to_batches()[0]
        expected = [plain_digest(row, TABLES[table]) for row in batch.to_pylist()]
        assert list(row_digests(batch)) == expected


def test_a_slice_is_hashed_as_its_rows(run: Path):
    batch = parquet.read_table(run / "rollouts/00000.parquet", "rollouts").to_batches()[0]
    assert list(row_digests(batch.slice(5, 7))) == list(row_digests(batch))[5:12]


def test_digests_beyond_the_buffers_are_spilled(run: Path, tmp_path: Path):
    """40,000 digests of one bucket exceed its 128 KiB; written in two orders they make the same bucket."""
    digests = [bytes(2) + hashlib.sha256(str(number).encode()).digest()[2:] for number in range(40_000)]
    found = []
    for order in (digests, digests[::-1]):
        buckets = [tmp_path / f"{len(found)}-{number}" for number in range(256)]
        assert content._spread(order, buckets) == 40_000
        assert buckets[0].stat().st_size == 40_000 * 32
        found.append(content._bucket_digest(buckets[0]))
    assert found[0] == found[1]
