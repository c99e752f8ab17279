"""`curate sql`: every table can be asked, and nothing can be written or read beside them."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from run_directories import small_run, write_rows

from curate.sql import VIEWS, query, tables, write_result
from pipelines.errors import UserError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return small_run(tmp_path / "o'ut")  # a quote in the path must not end an SQL string


def test_every_table_is_a_view(run: Path):
    names = "prompts rollouts verdicts duplicates contamination annotations_prompts annotations_rollouts selections"
    assert list(VIEWS) == [*names.split(), "refusals", "overrides", "rewards", "midtrain", "sft", "dpo", "rl"]
    for name in VIEWS:
        # Nobody has marked anything yet, or trained.
        has_rows = query(run, f"SELECT count(*) AS n FROM {name}")["n"].to_pylist()[0] > 0
        assert has_rows == (name not in ("overrides", "rewards")), name


def test_selections_unites_both_choosing_stages(run: Path):
    stages = query(run, "SELECT DISTINCT stage FROM selections ORDER BY stage")["stage"].to_pylist()
    assert stages == ["dpo", "midtrain", "rl", "sft"]


def test_empty_tables_are_empty_views(tmp_path: Path):
    (tmp_path / "out").mkdir()
    for name in VIEWS:
        assert query(tmp_path / "out", f"FROM {name}").num_rows == 0
    assert query(tmp_path / "out", "FROM sft").column_names == ["messages", "rollout_id", "prompt_id", "source"]


def test_a_missing_directory_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="no run directory"):
        query(tmp_path / "nowhere", "SELECT 1")


def test_an_older_schema_is_refused(run: Path):
    path = run / "verdicts/00000.parquet"
    table = pq.read_table(path)
    metadata = {**table.schema.metadata, b"tracemill.schema_version": b"0"}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(UserError, match="schema version 0"):
        query(run, "SELECT 1")


@pytest.mark.parametrize(
    "sql",
    [
        "COPY prompts TO '{outside}'",
        "COPY (SELECT 1) TO '{table}' (USE_TMP_FILE false)",
        "WITH x AS (COPY (SELECT 1) TO '{table}' (USE_TMP_FILE false)) SELECT * FROM x",
        "WITH x AS (COPY (SELECT 1) TO 'tables://{table}' (USE_TMP_FILE false)) SELECT * FROM x",
        "SELECT * FROM json_execute_serialized_sql(json_serialize_sql("
        "'WITH x AS (COPY (SELECT 1) TO ''tables://{table}'' (USE_TMP_FILE false)) SELECT * FROM x'))",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{table}' (USE_TMP_FILE false)",
        "EXPORT DATABASE '{outside}'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM 'tables:///etc/passwd'",
        "SELECT * FROM read_text('tables:///etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "ATTACH '{outside}' AS other",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "SELECT 1; SELECT 2",
        "",
        "SELEC 1",
        "SELECT nothing FROM prompts",
        "SELECT * FROM run",
    ],
)
def test_only_the_tables_can_be_read_and_nothing_written(run: Path, tmp_path: Path, sql: str):
    table = run / "prompts/00000.parquet"
    before = table.read_bytes()
    outside = tmp_path / "outside"
    quoted = str(table.resolve()).replace("'", "''")
    with pytest.raises(UserError):
        query(run, sql.replace("{table}", quoted).replace("{outside}", str(outside)))
    assert table.read_bytes() == before
    assert not outside.exists()


def test_our_own_connection_reaches_no_other_file(run: Path):
    with tables(run) as connection, pytest.raises(Exception, match="disabled by configuration"):
        connection.sql("SELECT * FROM read_text('/etc/passwd')").fetchall()


def test_several_threads_read_one_file(tmp_path: Path):
    rows = [
        {"rollout_id": f"{i:024}", "prompt_id": f"{i % 7:024}", "verdict": "correct"}
        | {"extracted": str(i), "rule": "boxed:exact", "verifier": "mathematics@1"}
        for i in range(300_000)
    ]
    for part in range(3):
        write_rows(tmp_path, "verdicts", rows[part::3], name=f"{part:05}")
    total = query(tmp_path, "SELECT sum(CAST(extracted AS BIGINT)) AS total FROM verdicts")["total"].to_pylist()[0]
    assert int(total) == 300_000 * 299_999 // 2


def test_a_query_beyond_the_memory_limit_is_refused_or_spilled(run: Path):
    with pytest.raises(UserError, match="Out of Memory"):
        query(run, "SELECT length(string_agg(repeat('x', 10000000))) FROM range(100)", memory_limit="50MB")


def test_results_as_json_csv_and_parquet(run: Path):
    result = query(run, "SELECT problem, answer, choices FROM prompts ORDER BY source_id LIMIT 2")
    written = {form: io.BytesIO() for form in ("json", "csv", "parquet")}
    for form, file in written.items():
        write_result(result, form, file)
    assert json.loads(written["json"].getvalue())[1] == {"problem": "What is $1 + 2$?", "answer": "3", "choices": None}
    assert written["csv"].getvalue().decode().splitlines() == [
        "problem,answer,choices",
        "What is $0 + 1$?,1,",
        "What is $1 + 2$?,3,",
    ]
    written["parquet"].seek(0)
    assert pq.read_table(written["parquet"]).equals(result)


def test_nested_values_are_json_in_csv(run: Path):
    file = io.BytesIO()
    write_result(query(run, "SELECT messages FROM sft LIMIT 1"), "csv", file)
    assert '""role"": ""user""' in file.getvalue().decode()
