"""Shards of small sums for the trainers' tests: every kind, written as `curate split` writes them."""

from pathlib import Path

import pyarrow as pa

from pipelines import parquet
from pipelines.conversation import Message, assistant_message, user_message
from pipelines.tables import TABLES, prompt_id


def question(k: int) -> list[Message]:
    return [user_message(f"What is {k} + {k + 1}?", instruction="none")]


def answer(k: int, value: int, padding: int = 0) -> list[Message]:
    return [assistant_message(f"{k} + {k + 1} = {value}" + " ok" * padding, f"\\boxed{{{value}}}")]


def toy_shards(root: Path, rows: int = 8) -> Path:
    """`root`, with shards for all four stages: row k asks for k + (k + 1); lengths differ from row to row."""
    ids = [prompt_id(question(k)[0]["content"]) for k in range(rows)]
    right = [answer(k, 2 * k + 1, padding=k % 5) for k in range(rows)]
    traces = [
        {"messages": question(k) + right[k], "rollout_id": f"r{k:03}", "prompt_id": ids[k], "source": "sums"}
        for k in range(rows)
    ]
    pairs = [
        {
            "prompt": question(k),
            "chosen": right[k],
            "rejected": answer(k, 2 * k, padding=3),
            "chosen_id": f"r{k:03}",
            "rejected_id": f"w{k:03}",
            "prompt_id": ids[k],
            "source": "sums",
        }
        for k in range(rows)
    ]
    prompts = [
        {
            "prompt": question(k),
            "answer": str(2 * k + 1),
            "choices": None,
            "verifier": "mathematics",
            "pass_rate": 0.5,
            "prompt_id": ids[k],
            "source": "sums",
        }
        for k in range(rows)
    ]
    for stage, table in (("midtrain", traces), ("sft", traces), ("dpo", pairs), ("rl", prompts)):
        write_shard(root, stage, table)
    return root


def write_shard(root: Path, stage: str, rows: list[dict]) -> Path:
    path = root / "shards" / stage / "00000.parquet"
    table = f"shards/{stage}"
    parquet.write_file(path, table, [pa.Table.from_pylist(rows, schema=TABLES[table])])
    return path
