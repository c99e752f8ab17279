"""Small run directories for tests: every table filled, by hand-worked rules, with ordinary Parquet files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import parquet
from pipelines.conversation import assistant_message, user_message
from pipelines.runner import write_text
from pipelines.tables import TABLES, content_id, prompt_id, rollout_id

MODEL = "teacher-7b"
SAMPLING = {"temperature": 0.6, "top_p": 0.95, "max_tokens": 4096}


def small_run(
    root: Path, problems: int = 6, samples: int = 4, changed: bool = False, against: Sequence[str] = ()
) -> Path:
    """A run directory after `split` and `build_dpo_pairs`: `problems` sums, each sampled `samples` times.

    Problem k asks for k + (k + 1). Sample j of it is wrong where j < k % (samples + 1), so problem 0 is all right
    and problem `samples` all wrong; the last sample of an odd problem is a trace cut short, without
    an answer. Problems alternate between two sources. Problem 1's second trace repeats its first; the
    last problem is contaminated. With `changed`, the verdict of problem 0's first sample is
    incorrect, and the run has one problem more. `against` are the benchmarks in the manifest.
    """
    rows = [_problem(k, samples, changed) for k in range(problems + changed)]
    prompts = [row["prompt"] for row in rows]
    rollouts = [rollout for row in rows for rollout in row["rollouts"]]
    verdicts = [verdict for row in rows for verdict in row["verdicts"]]
    contaminated = {prompts[problems - 1]["prompt_id"]}
    repeated = {rollouts[samples + 1]["rollout_id"]: rollouts[samples]["rollout_id"]} if problems > 1 else {}
    filled: dict[str, list[dict[str, Any]]] = {
        "prompts": prompts,
        "rollouts": rollouts,
        "verdicts": verdicts,
        "duplicates": [_duplicate(repeat, kept) for repeat, kept in repeated.items()],
        "contamination": [_contaminated(prompt) for prompt in sorted(contaminated)],
        "annotations/prompts": [_prompt_annotation(row) for row in rows],
        "annotations/rollouts": [_rollout_annotation(rollout) for rollout in rollouts],
        "refusals": [_refusal(row) for row in range(2)],
        **_chosen(rows, contaminated, set(repeated)),
    }
    for table, table_rows in filled.items():
        write_rows(root, table, table_rows)
    _write_manifest(root, filled, against)
    return root


def write_rows(root: Path, table: str, rows: list[dict[str, Any]], name: str = "00000") -> Path:
    """Write `rows` as one file of `table`."""
    path = root / table / f"{name}.parquet"
    parquet.write_file(path, table, [pa.Table.from_pylist(rows, schema=TABLES[table])])
    return path


def _problem(k: int, samples: int, changed: bool) -> dict[str, Any]:
    problem = f"What is ${k} + {k + 1}$?"
    prompt = {
        "prompt_id": prompt_id(problem),
        "problem": problem,
        "choices": None,
        "answer": str(2 * k + 1),
        "solution": None,
        "verifier": "mathematics",
        "source": ("sums", "additions")[k % 2],
        "source_id": f"{k:03}",
        "licence": ("MIT", "Apache-2.0")[k % 2],
        "domain": "arithmetic",
        "level": ("elementary", "high school")[k % 2],
    }
    rollouts, verdicts = [], []
    for j in range(samples):
        right = j >= k % (samples + 1) and not (changed and k == j == 0)
        cut = k % 2 == 1 and j == samples - 1
        rollouts.append(_rollout(prompt["prompt_id"], k, j, right, cut))
        outcome = "no_answer" if cut else "correct" if right else "incorrect"
        verdicts.append(
            {
                "rollout_id": rollouts[-1]["rollout_id"],
                "prompt_id": prompt["prompt_id"],
                "verdict": outcome,
                "extracted": None if cut else str(2 * k + 1 + (not right)),
                "rule": "none:no_answer" if cut else "boxed:exact_number" if right else "boxed:unequal",
                "verifier": "mathematics@1",
            }
        )
    return {"prompt": prompt, "rollouts": rollouts, "verdicts": verdicts}


def _rollout(prompt: str, k: int, j: int, right: bool, cut: bool) -> dict[str, Any]:
    answer = 2 * k + 1 + (not right)
    steps = " ".join(f"Step {i}: I add {k} and {k + 1} again." for i in range(k + j + 1))
    return {
        "rollout_id": rollout_id(prompt, MODEL, SAMPLING, j),
        "prompt_id": prompt,
        "model": MODEL,
        "sample_index": j,
        "sampling_id": content_id(SAMPLING),
        **SAMPLING,
        "seed": j,
        "reasoning": f"{steps} Wait, let me check: {k} + {k + 1} = {answer}.",
        "response": "" if cut else f"The sum is $\\boxed{{{answer}}}$.",
        "reasoning_form": "unclosed" if cut else "tags",
        "finish_reason": "length" if cut else "stop",
        "prompt_tokens": 12,
        "completion_tokens": 40 + 10 * (k + j),
        "step": None,
        "upstream_label": right,
        "source": ("sums", "additions")[k % 2],
        "source_id": f"{k:03}",
    }


def _duplicate(repeat: str, kept: str) -> dict[str, Any]:
    return {"id": repeat, "kind": "trace", "cluster": kept, "keep": False, "method": "minhash", "similarity": 0.9}


def _contaminated(prompt: str) -> dict[str, Any]:
    return {
        "prompt_id": prompt,
        "benchmark": "math500",
        "item": "7",
        "method": "containment",
        "score": 0.75,
        "evidence": "what is the sum",
    }


def _prompt_annotation(row: dict[str, Any]) -> dict[str, Any]:
    lengths = [rollout["completion_tokens"] for rollout in row["rollouts"]]
    num_correct = sum(verdict["verdict"] == "correct" for verdict in row["verdicts"])
    return {
        "prompt_id": row["prompt"]["prompt_id"],
        "domain": row["prompt"]["domain"],
        "domain_from": "source",
        "level": row["prompt"]["level"],
        "level_from": "source",
        "num_rollouts": len(lengths),
        "num_correct": num_correct,
        "num_judged": len(lengths),
        "pass_rate": num_correct / len(lengths),
        "pass_rate_low": 0.0,
        "pass_rate_high": 1.0,
        "length_mean": sum(lengths) / len(lengths),
        "length_std": 0.0,
        "length_ratio": max(lengths) / min(lengths),
    }


def _rollout_annotation(rollout: dict[str, Any]) -> dict[str, Any]:
    return {
        "rollout_id": rollout["rollout_id"],
        "prompt_id": rollout["prompt_id"],
        "num_chars": len(rollout["reasoning"]) + len(rollout["response"]),
        "num_tokens": rollout["completion_tokens"],
        "truncated": rollout["finish_reason"] == "length",
        "compression_ratio": 2.5,
        "repeated_share": 0.0,
        "num_reflections": 1,
        "num_language_switches": 0,
        "answer_position": 0.9 if rollout["response"] else None,
    }


def _refusal(row: int) -> dict[str, Any]:
    return {
        "stage": "import",
        "source": "sums",
        "row": 1000 + row,
        "id": None,
        "reason": "empty_problem",
        "detail": '{"problem": ""}',
    }


def _chosen(rows: list[dict[str, Any]], contaminated: set[str], repeated: set[str]) -> dict[str, list[dict[str, Any]]]:
    """Selections and shards: every right, clean, unrepeated trace trains; the first right and wrong make a pair."""
    out: dict[str, list[dict[str, Any]]] = {f"shards/{stage}": [] for stage in ("midtrain", "sft", "dpo", "rl")}
    out["selections/split"], out["selections/pairs"] = [], []
    for row in rows:
        prompt, verdicts = row["prompt"], [verdict["verdict"] for verdict in row["verdicts"]]
        user = user_message(prompt["problem"])
        lineage = {"prompt_id": prompt["prompt_id"], "source": prompt["source"]}
        dirty = "contaminated" if prompt["prompt_id"] in contaminated else None
        turns = [assistant_message(rollout["reasoning"], rollout["response"]) for rollout in row["rollouts"]]
        for rollout, verdict, turn in zip(row["rollouts"], verdicts, turns, strict=True):
            trace = rollout["rollout_id"]
            duplicate = "duplicate" if trace in repeated else None
            refusal = dirty or duplicate or (None if verdict == "correct" else verdict)
            for stage in ("midtrain", "sft"):
                out["selections/split"].append(_selection(stage, trace, prompt["prompt_id"], refusal))
                if refusal is None:
                    out[f"shards/{stage}"].append({"messages": [user, turn], "rollout_id": trace, **lineage})
        out["selections/split"].append(_selection("rl", prompt["prompt_id"], prompt["prompt_id"], dirty))
        if dirty is None:
            asked = {key: prompt[key] for key in ("answer", "choices", "verifier")}
            rate = verdicts.count("correct") / len(verdicts)
            out["shards/rl"].append({"prompt": [user], **asked, "pass_rate": rate, **lineage})
        mixed = "correct" in verdicts and "incorrect" in verdicts
        refusal = dirty or (None if mixed else "unanimous")
        out["selections/pairs"].append(_selection("dpo", prompt["prompt_id"], prompt["prompt_id"], refusal))
        if refusal is None:
            right, wrong = verdicts.index("correct"), verdicts.index("incorrect")
            out["shards/dpo"].append(
                {
                    "prompt": [user],
                    "chosen": [turns[right]],
                    "rejected": [turns[wrong]],
                    "chosen_id": row["rollouts"][right]["rollout_id"],
                    "rejected_id": row["rollouts"][wrong]["rollout_id"],
                    **lineage,
                }
            )
    return out


def _selection(stage: str, chosen: str, prompt: str, refusal: str | None) -> dict[str, Any]:
    return {"stage": stage, "id": chosen, "prompt_id": prompt, "refusal": refusal}


def _write_manifest(root: Path, filled: dict[str, list[dict[str, Any]]], against: Sequence[str] = ()) -> None:
    """A manifest as the stages would leave it, with the settings a reader of the card asks for."""
    made = {
        "generate": ({"teacher": MODEL, "samples": 4, **SAMPLING}, ["rollouts"]),
        "verify": ({"timeout_s": 5.0}, ["verdicts"]),
        "dedupe": ({"threshold": 0.8}, ["duplicates"]),
        "decontaminate": ({"against": list(against)}, ["contamination"]),
        "split": ({"max_tokens": 16384}, ["selections/split", "shards/midtrain", "shards/sft", "shards/rl"]),
        "build_dpo_pairs": ({"pairs_per_prompt": 1}, ["selections/pairs", "shards/dpo"]),
    }
    stages = {
        stage: {
            "code": "0.1.0",
            "config": config,
            "inputs": [],
            "outputs": {f"{table}/00000.parquet": {"digest": "", "rows": len(filled[table])} for table in writes},
            "version": 1,
            "seconds": 1.0,
        }
        for stage, (config, writes) in made.items()
    }
    write_text(root / "manifest.json", json.dumps({"stages": stages}, indent=1, sort_keys=True) + "\n")
