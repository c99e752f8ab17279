"""The whole recipe on the pocket models, as small as it goes: four stages from problems, and who can load the end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(room: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"{room}.cli", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, f"{room} {arguments}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of the smoke recipe and a student trained on it: `out/` and `run/`."""
    folder = tmp_path_factory.mktemp("smoke")
    heldout, problems = folder / "heldout.jsonl", folder / "problems.jsonl"
    run("curate", "problems", heldout, "--count", 12, "--levels", "1", "--seed", 1)
    run("curate", "problems", problems, "--count", 64, "--levels", "1", "--seed", 2, "--exclude", heldout)
    run("curate", "import", problems, "--out", folder / "out")
    run("curate", "run", "smoke", "--out", folder / "out")
    trained = run(
        "train", "all", "--recipe", "smoke", "--shards", folder / "out", "--model", "pocket-base",
        "--out", folder / "run", "--on", heldout,
    )  # fmt: skip
    (folder / "printed.txt").write_text(trained)
    return folder


@pytest.mark.slow
def test_every_stage_is_trained_evaluated_and_on_the_staircase(demo: Path):
    printed = (demo / "printed.txt").read_text()
    for stage in ("base", "midtrain", "sft", "dpo", "rl"):
        assert stage in printed
        results = list((demo / "run" / stage).glob("eval/*/eval.json"))
        assert len(results) == 1, stage
    for stage in ("midtrain", "sft", "dpo", "rl"):
        assert (demo / "run" / stage / "final" / "model.safetensors").is_file()
        lineage = json.loads((demo / "run" / stage / "final" / "tracemill.json").read_text())
        assert lineage["shards"], "a checkpoint names the shard files it was trained on"


@pytest.mark.slow
def test_training_again_does_nothing(demo: Path):
    again = run(
        "train", "all", "--recipe", "smoke", "--shards", demo / "out", "--model", "pocket-base",
        "--out", demo / "run", "--on", demo / "heldout.jsonl",
    )  # fmt: skip
    assert again.count("nothing to do") == 4


QUESTION = [{"role": "user", "content": "Compute 12+34.\n\nPlease reason step by step."}]


@pytest.mark.slow
def test_transformers_loads_the_student_and_it_stops(demo: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = demo / "run" / "sft" / "final"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    generated = model.generate(**inputs, max_new_tokens=200, do_sample=False)[0][inputs["input_ids"].shape[1] :]
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert model.generation_config.eos_token_id == [end]
    assert generated[-1] == end
    assert len(generated) < 200


VLLM = """
import os, sys
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    model = LLM(sys.argv[1], enforce_eager=True, max_model_len=400, max_num_seqs=8, disable_log_stats=True)
    question = [{"role": "user", "content": "Compute 12+34.\\n\\nPlease reason step by step."}]
    output = model.chat([question], SamplingParams(temperature=0, max_tokens=200))[0].outputs[0]
    print("FINISHED", output.finish_reason, len(output.token_ids), output.token_ids[-1])
"""


@pytest.mark.slow
def test_vllm_loads_the_student_and_it_stops(demo: Path, tmp_path: Path):
    from transformers import AutoTokenizer

    folder = demo / "run" / "sft" / "final"
    script = tmp_path / "serve.py"
    script.write_text(VLLM)
    done = subprocess.run([sys.executable, str(script), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    reason, length, last = next(line for line in done.stdout.splitlines() if line.startswith("FINISHED")).split()[1:]
    assert reason == "stop"
    assert int(length) < 200
    assert int(last) == AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|end|>")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["midtrain", "sft", "dpo", "rl"])
def test_datasets_opens_every_shard(demo: Path, tmp_path: Path, stage: str):
    from datasets import load_dataset

    run("curate", "card", demo / "out", "--name", "smoke")
    rows = load_dataset(str(demo / "out"), stage, split="train", cache_dir=str(tmp_path))
    assert len(rows) > 0
    assert rows[0]["prompt_id"]
