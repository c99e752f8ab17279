"""Rows of the tables that label stages read, with everything a test does not care about filled in."""

from pathlib import Path
from typing import Any

from run_directories import write_rows

from pipelines import parquet
from pipelines.tables import content_id, prompt_id

Row = dict[str, Any]


def prompt(problem: str, answer: str | None = "7", **columns: Any) -> Row:
    choices = columns.get("choices")
    return {
        "prompt_id": prompt_id(problem, choices),
        "problem": problem,
        "choices": None,
        "answer": answer,
        "solution": None,
        "verifier": "mathematics",
        "source": "sums",
        "source_id": problem[:12],
        "licence": None,
        "domain": None,
        "level": None,
        **columns,
    }


def rollout(asked: Row, response: str, **columns: Any) -> Row:
    index = columns.get("sample_index", 0)
    return {
        "rollout_id": content_id(asked["prompt_id"], columns.get("model", "teacher"), index),
        "prompt_id": asked["prompt_id"],
        "model": "teacher",
        "sample_index": index,
        "sampling_id": "settings",
        "temperature": None,
        "top_p": None,
        "max_tokens": None,
        "seed": None,
        "reasoning": None,
        "response": response,
        "reasoning_form": "none",
        "finish_reason": "stop",
        "prompt_tokens": None,
        "completion_tokens": None,
        "step": None,
        "upstream_label": None,
        "source": "sums",
        "source_id": None,
        **columns,
    }


def verdict(of: Row, outcome: str) -> Row:
    return {
        "rollout_id": of["rollout_id"],
        "prompt_id": of["prompt_id"],
        "verdict": outcome,
        "extracted": None,
        "rule": "boxed:exact_number",
        "verifier": "mathematics@1",
    }


def rollout_label(of: Row, **columns: Any) -> Row:
    return {
        "rollout_id": of["rollout_id"],
        "prompt_id": of["prompt_id"],
        "num_chars": 400,
        "num_tokens": 100,
        "truncated": False,
        "compression_ratio": 2.5,
        "repeated_share": 0.0,
        "num_reflections": 0,
        "num_language_switches": 0,
        "answer_position": 0.9,
        **columns,
    }


def prompt_label(of: Row, **columns: Any) -> Row:
    return {
        "prompt_id": of["prompt_id"],
        "domain": "algebra",
        "domain_from": "source",
        "level": "high school",
        "level_from": "source",
        "num_rollouts": 8,
        "num_correct": 2,
        "num_judged": 8,
        "pass_rate": 0.25,
        "pass_rate_low": 0.07,
        "pass_rate_high": 0.59,
        "length_mean": 100.0,
        "length_std": 5.0,
        "length_ratio": 1.2,
        **columns,
    }


def not_kept(row_id: str, kept: str, kind: str) -> Row:
    return {"id": row_id, "kind": kind, "cluster": kept, "keep": False, "method": "exact", "similarity": 1.0}


def contaminated(of: Row) -> Row:
    return {
        "prompt_id": of["prompt_id"],
        "benchmark": "heldout",
        "item": "1",
        "method": "containment",
        "score": 1.0,
        "evidence": "",
    }


def write(root: Path, **tables: list[Row]) -> Path:
    """One file for each table; `annotations_prompts` stands for `annotations/prompts`."""
    for table, rows in tables.items():
        write_rows(root, table.replace("_", "/"), rows)
    return root


def read(root: Path, table: str) -> list[Row]:
    return parquet.read_table(parquet.table_files(root, table), table).to_pylist()
