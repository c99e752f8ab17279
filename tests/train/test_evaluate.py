import errno
import json
import signal
from pathlib import Path

import pytest
from scripted_policy import ScriptedPolicy
from tiny_models import tiny_model

from pipelines import parquet
from pipelines.benchmarks import benchmark_name
from pipelines.errors import UserError
from train.cli import app
from train.evaluate import EvalConfig, evaluate, sample_sizes
from train.results import EvalResult
from train.statistics import wilson_interval

FOUR = EvalConfig(samples=4, max_tokens=64)
MODEL = "hf:somebody/scripted"  # never opened: a sampler stands in for it
PROBLEMS = [("1 + 1", "2"), ("2 + 2", "4"), ("3 + 3", "6")]
TEXTS = {
    "1 + 1": [r"\boxed{2}"] * 4,  # certain
    "2 + 2": [r"\boxed{4}", r"\boxed{5}", r"\boxed{5.0}", r"\boxed{9}"],  # wrong by majority: 5 and 5.0 are one vote
    "3 + 3": [r"\boxed{6}", r"\boxed{7}", "so it is ...", "so it is ..."],  # a tie of two
}


def benchmark(folder: Path, rows: list[tuple[str, str | None]] = PROBLEMS, name: str = "sums") -> str:
    path = folder / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"problem": problem, "answer": answer}) + "\n" for problem, answer in rows))
    return str(path)


def test_the_numbers_by_hand(tmp_path: Path):
    (result,) = evaluate(FOUR, MODEL, [benchmark(tmp_path)], tmp_path, sampler=ScriptedPolicy(TEXTS))
    assert (result.num_problems, result.num_samples) == (3, 4)
    # 4/4, 1/4, 1/4; with two samples 1, 1 - 3/6, 1 - 3/6; with four everybody is right once.
    assert result.pass_at[1].mean == pytest.approx((1 + 1 / 4 + 1 / 4) / 3)
    assert result.pass_at[2].mean == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert result.pass_at[4].mean == 1.0
    assert (result.pass_at[4].low, result.pass_at[4].high) == wilson_interval(3, 3)
    assert result.pass_at[1].low < 0.5 < result.pass_at[1].high
    # A majority of four is certain; 4 against 5, 5.0 and 9; 6 against 7, with two that say nothing.
    assert result.cons_at[4].mean == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert result.num_tied == 1, "6 and 7"
    assert result.truncation_rate == pytest.approx(2 / 12)
    assert result.mean_tokens == pytest.approx(sum(len(text) for texts in TEXTS.values() for text in texts) / 12)
    assert result.num_unjudged == 0
    assert sorted(problem.num_correct for problem in result.problems) == [1, 1, 4]
    assert result.row()["pass@1"].startswith("50.0 [")


def test_separate_runs_are_the_same_samples_told_apart(tmp_path: Path):
    file = benchmark(tmp_path)
    (whole,) = evaluate(FOUR, MODEL, [file], tmp_path, sampler=ScriptedPolicy(TEXTS))
    assert whole.run_means == pytest.approx([1 / 2])
    idle = ScriptedPolicy(TEXTS)
    (halves,) = evaluate(FOUR.model_copy(update={"samples": 2, "runs": 2}), MODEL, [file], tmp_path, sampler=idle)
    assert not idle.asked
    # Each problem's first two samples: all, one and one right; its last two: all, none and none.
    assert halves.run_means == pytest.approx([4 / 6, 2 / 6])
    assert halves.pass_at == whole.pass_at
    assert halves.row()["2 runs"] == "50.0 ± 23.6", "sqrt(2) times a sixth"
    assert "1 runs" not in whole.row()


def test_everything_is_stored_and_reads_back(tmp_path: Path):
    (result,) = evaluate(FOUR, MODEL, [benchmark(tmp_path)], tmp_path, sampler=ScriptedPolicy(TEXTS))
    folder = tmp_path / "eval" / "sums"
    assert EvalResult.read(folder / "eval.json") == result
    rollouts = parquet.read_table(parquet.table_files(folder, "rollouts"), "rollouts").to_pylist()
    verdicts = parquet.read_table(parquet.table_files(folder, "verdicts"), "verdicts").to_pylist()
    assert [row["rollout_id"] for row in rollouts] == [row["rollout_id"] for row in verdicts]
    assert len(rollouts) == 12
    assert {row["source"] for row in rollouts} == {"eval:sums"}
    assert rollouts[0]["temperature"] == pytest.approx(0.6)
    assert rollouts[0]["top_p"] == pytest.approx(0.95)
    prompts = parquet.read_table(parquet.table_files(folder, "prompts"), "prompts")
    assert {row["prompt_id"] for row in rollouts} == set(prompts["prompt_id"].to_pylist())


def test_what_was_sampled_is_not_sampled_again(tmp_path: Path):
    file = benchmark(tmp_path)
    (first,) = evaluate(FOUR, MODEL, [file], tmp_path, sampler=ScriptedPolicy(TEXTS))
    idle = ScriptedPolicy(TEXTS)
    (again,) = evaluate(FOUR, MODEL, [file], tmp_path, sampler=idle)
    assert not idle.asked
    assert again == first
    more = ScriptedPolicy(TEXTS)
    (doubled,) = evaluate(FOUR.model_copy(update={"samples": 8}), MODEL, [file], tmp_path, sampler=more)
    assert len(more.asked) == 12, "four more of each"
    assert doubled.pass_at[1].mean == first.pass_at[1].mean
    warm = ScriptedPolicy(TEXTS)
    evaluate(FOUR.model_copy(update={"temperature": 1.0}), MODEL, [file], tmp_path, sampler=warm)
    assert len(warm.asked) == 12, "another temperature is another question"
    other = ScriptedPolicy(TEXTS)
    evaluate(FOUR, "hf:somebody/else", [file], tmp_path, sampler=other)
    assert len(other.asked) == 12, "another model, too"


class Dying(ScriptedPolicy):
    """Ends in the middle, as a killed run would."""

    def sample(self, requests, config, *, logprobs=False):
        for number, completion in enumerate(super().sample(requests, config, logprobs=logprobs)):
            if number == 7:
                raise KeyboardInterrupt
            yield completion


def test_a_killed_evaluation_goes_on(tmp_path: Path):
    file = benchmark(tmp_path)
    (whole,) = evaluate(FOUR, MODEL, [file], tmp_path / "whole", sampler=ScriptedPolicy(TEXTS))
    with pytest.raises(KeyboardInterrupt):
        evaluate(FOUR, MODEL, [file], tmp_path / "broken", sampler=Dying(TEXTS))
    (resumed,) = evaluate(FOUR, MODEL, [file], tmp_path / "broken", sampler=ScriptedPolicy(TEXTS))
    assert resumed.pass_at == whole.pass_at


def test_a_file_that_was_removed_is_sampled_again_and_no_other_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("train.rollouts._SAMPLES_A_FILE", 4)
    file, folder = benchmark(tmp_path), tmp_path / "eval" / "sums"
    certain = {problem: [rf"\boxed{{{answer}}}"] for problem, answer in PROBLEMS}
    evaluate(FOUR, MODEL, [file], tmp_path, sampler=ScriptedPolicy(certain))
    for table in ("rollouts", "verdicts"):
        (folder / table / "00000.parquet").unlink()
    sampler = ScriptedPolicy(certain)
    (result,) = evaluate(FOUR, MODEL, [file], tmp_path, sampler=sampler)
    assert len(sampler.asked) == 4
    assert (result.pass_at[1].mean, result.num_unjudged) == (1.0, 0)
    assert [path.stem for path in parquet.table_files(folder, "verdicts")] == ["00001", "00002", "00003"]


def test_what_was_sampled_before_the_sampler_failed_is_stored(tmp_path: Path):
    class Failing(ScriptedPolicy):
        def sample(self, *given, **named):
            for number, completion in enumerate(super().sample(*given, **named)):
                if number == 8:
                    raise UserError("the server says nothing more")
                yield completion

    file = benchmark(tmp_path)
    with pytest.raises(UserError, match="says nothing more"):
        evaluate(FOUR, MODEL, [file], tmp_path, sampler=Failing(TEXTS))
    rest = ScriptedPolicy(TEXTS)
    evaluate(FOUR, MODEL, [file], tmp_path, sampler=rest)
    assert len(rest.asked) == 12 - 8


def test_told_to_stop_it_stores_what_it_has_and_the_same_command_goes_on(tmp_path: Path):
    class Told(ScriptedPolicy):
        def sample(self, *given, **named):
            for number, completion in enumerate(super().sample(*given, **named)):
                if number == 8:
                    signal.raise_signal(signal.SIGTERM)
                yield completion

    file = benchmark(tmp_path)
    with pytest.raises(UserError, match="eval was told to stop; what was sampled is stored"):
        evaluate(FOUR, MODEL, [file], tmp_path, sampler=Told(TEXTS))
    stored = parquet.read_table(parquet.table_files(tmp_path / "eval" / "sums", "verdicts"), "verdicts").num_rows
    rest = ScriptedPolicy(TEXTS)
    evaluate(FOUR, MODEL, [file], tmp_path, sampler=rest)
    assert stored + len(rest.asked) == 12
    assert stored > 0


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("train.rollouts.write_samples", full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        evaluate(FOUR, MODEL, [benchmark(tmp_path)], tmp_path, sampler=ScriptedPolicy(TEXTS))
    assert "goes on" in (caught.value.hint or "")


def test_other_problems_than_those_to_compare_with_are_found_before_anything_is_sampled(tmp_path: Path):
    (other,) = evaluate(FOUR, MODEL, [benchmark(tmp_path)], tmp_path / "a", sampler=ScriptedPolicy(TEXTS))
    sampler = ScriptedPolicy(TEXTS)
    fewer = benchmark(tmp_path, PROBLEMS[:2])
    with pytest.raises(UserError, match="different problems of `sums`"):
        evaluate(FOUR, MODEL, [fewer], tmp_path / "b", sampler=sampler, against=[other])
    assert not sampler.asked


def test_verdicts_follow_the_verifier_and_the_reference_without_sampling(tmp_path: Path):
    (whole,) = evaluate(FOUR, MODEL, [benchmark(tmp_path)], tmp_path, sampler=ScriptedPolicy(TEXTS))
    (verdicts,) = parquet.table_files(tmp_path / "eval" / "sums", "verdicts")
    verdicts.unlink()  # a kill between the two files
    idle = ScriptedPolicy(TEXTS)
    (mended,) = evaluate(FOUR, MODEL, [benchmark(tmp_path)], tmp_path, sampler=idle)
    assert mended == whole
    corrected = benchmark(tmp_path, [("1 + 1", "3"), *PROBLEMS[1:]])
    (stricter,) = evaluate(FOUR, MODEL, [corrected], tmp_path, sampler=idle)
    assert stricter.pass_at[1].mean == pytest.approx((0 + 1 / 4 + 1 / 4) / 3)
    (fewer,) = evaluate(FOUR, MODEL, [benchmark(tmp_path, PROBLEMS[:2])], tmp_path, sampler=idle)
    assert fewer.num_problems == 2
    assert not idle.asked


def test_refused_samples_count_as_wrong_and_are_asked_again(tmp_path: Path):
    file = benchmark(tmp_path)
    texts = {**TEXTS, "1 + 1": [None]}
    (result,) = evaluate(FOUR, MODEL, [file], tmp_path, sampler=ScriptedPolicy(texts))
    assert result.num_unjudged == 4
    assert result.pass_at[1].mean == pytest.approx((0 + 1 / 4 + 1 / 4) / 3)
    later = ScriptedPolicy(TEXTS)
    evaluate(FOUR, MODEL, [file], tmp_path, sampler=later)
    assert len(later.asked) == 4


def test_where_everything_is_refused_there_is_no_accuracy(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = benchmark(tmp_path)
    with pytest.raises(UserError, match=r"sums: the sampler refused 12 of 12 samples \(9000 prompt tokens\)"):
        evaluate(FOUR, MODEL, [file], tmp_path, sampler=ScriptedPolicy({problem: [None] for problem in TEXTS}))
    evaluate(FOUR, MODEL, [file], tmp_path, sampler=ScriptedPolicy({**TEXTS, "1 + 1": [None]}))
    assert "sums: the sampler refused 4 of 12 samples (9000 prompt tokens): they count as wrong" in caplog.text


def test_a_file_without_answers_is_refused(tmp_path: Path):
    file = benchmark(tmp_path, [("1 + 1", "2"), ("2 + 2", None)])
    with pytest.raises(UserError, match="answer"):
        evaluate(FOUR, MODEL, [file], tmp_path, sampler=ScriptedPolicy(TEXTS))


def test_a_reference_that_no_verifier_reads_is_set_aside_and_counted(tmp_path: Path):
    odd = tmp_path / "odd.jsonl"
    rows = [{"problem": problem, "answer": answer, "verifier": "judge"} for problem, answer in PROBLEMS]
    odd.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="no verifier `judge`"):
        evaluate(FOUR, MODEL, [str(odd)], tmp_path, sampler=ScriptedPolicy({}))
    prose = "It depends on what the meaning of the word is, as they say in the courts of law."
    file = benchmark(tmp_path, [*PROBLEMS, ("What is it?", prose)])
    (result,) = evaluate(FOUR, MODEL, [file], tmp_path, sampler=ScriptedPolicy(TEXTS))
    assert result.num_problems == 3
    assert result.set_aside == {"gold_is_prose": 1}
    with pytest.raises(UserError, match="can be read"):
        evaluate(FOUR, MODEL, [benchmark(tmp_path, [("What?", prose)], "prose")], tmp_path, sampler=ScriptedPolicy({}))


def test_what_cannot_be_evaluated_is_one_sentence_before_a_model_is_loaded(tmp_path: Path):
    good, empty = benchmark(tmp_path / "a"), benchmark(tmp_path, [], "empty")
    torn = benchmark(tmp_path, [*PROBLEMS, ("1 + 1", "3")], "torn")
    for on, model, words in (
        ([good, benchmark(tmp_path / "b")], MODEL, "have one name"),
        ([good, good], MODEL, "have one name"),
        (["aime1924"], MODEL, "no benchmark `aime1924`, and no such file"),
        ([good, empty], MODEL, "has no rows"),
        ([good, torn], MODEL, "row 3: .* another answer: '3', not '2'"),
        ([good], str(tmp_path / "nowhere"), "nowhere"),
        (["sums="], MODEL, "names no file"),
        ([good], str(tmp_path / "a"), "no model|config.json|safetensors"),
    ):
        with pytest.raises(UserError, match=words) as error:
            evaluate(FOUR, model, on, tmp_path / "out", sampler=ScriptedPolicy({}))
        assert "\n" not in error.value.message
        assert error.value.hint
    assert not list(tmp_path.rglob("rollouts"))


def test_a_model_is_loaded_and_answers(tmp_path: Path):
    model = str(tiny_model(tmp_path / "tiny"))
    config = EvalConfig(samples=2, max_tokens=4, engine="transformers")
    (result,) = evaluate(config, model, [benchmark(tmp_path)], tmp_path)
    assert result.pass_at[1].mean == 0.0
    assert result.pass_at[1].high > 0.3, "three problems say little"
    assert result.mean_tokens <= 4
    (again,) = evaluate(config, model, [benchmark(tmp_path)], tmp_path)
    assert again == result


def test_a_dry_run_reads_the_problems_and_asks_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file, out = benchmark(tmp_path), tmp_path / "out"
    app(["eval", "--model", "nowhere", "--on", file, "--out", str(out), "--dry-run"], standalone_mode=False)
    assert f"{file}: 3 problems" in capsys.readouterr().out
    assert not out.exists()
    with pytest.raises(UserError, match="no benchmark"):
        app(["eval", "--on", str(tmp_path / "nope.jsonl"), "--dry-run"], standalone_mode=False)


def test_names_and_sizes():
    assert benchmark_name("data/held.out.jsonl") == "held.out", "another than held.in.jsonl"
    assert benchmark_name("data/sums.csv.gz") == benchmark_name("data/sums") == "sums"
    assert benchmark_name(".") == Path.cwd().name
    assert benchmark_name("hf:me/sums:main:test") == "sums:main:test"
    for name in ("=a.jsonl", "../../x=a.jsonl", ".hidden.jsonl"):
        with pytest.raises(UserError, match="cannot be its name"):
            benchmark_name(name)
    assert benchmark_name("aime24") == "aime24"
    assert benchmark_name("sums=data/held.out.jsonl") == "sums"
    assert sample_sizes(1) == [1]
    assert sample_sizes(6) == [1, 2, 4, 6]
    assert sample_sizes(64) == [1, 2, 4, 8, 16, 32, 64]
