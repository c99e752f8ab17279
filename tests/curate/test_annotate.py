"""Annotate: measures of text by hand, and sums over a prompt's rollouts."""

import json
from pathlib import Path

import polars as pl
import pytest
from rows import prompt, read, rollout, verdict, write
from run_directories import write_rows

from curate.measures import answer_position, compression_ratio, language_switches, repeated_share
from curate.stages.annotate import AnnotateConfig, run
from pipelines import parquet

PROSE = " ".join(f"Sentence {k} says that {k * 7919 % 101} is not {k * 104729 % 97}, so we go on." for k in range(40))


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("Short.", 0.0),
        (PROSE, 0.0),
        ("ab" * 200, 1.0),
        ("x" * 100, 1.0),
        # 40 characters that differ, then 60 × 4 of a loop.
        ("0123456789abcdefghijklmnopqrstuvwxyzABC:" + "wait" * 60, 240 / 280),
        # 3 + 9 × 47 - 20 characters; the period's last space stands before its first turn too.
        ("So " + ("again and again and again we try, but then no. " * 9)[:-20], 1 - 2 / 406),
        # The last 32 bytes stand twice in a period of 90.
        ("It was " + ("0123456789012345678901234567890123456789, " * 2 + "enough" * 1) * 6, 1 - 7 / 547),
        # Twice is no loop.
        (PROSE[:500] * 2, 0.0),
        # The loop has ended: it no longer is the text's end.
        ("wait " * 60 + PROSE, 0.0),
    ],
)
def test_repeated_share_is_the_looping_end(text: str, share: float):
    assert repeated_share(b"", text.encode()) == pytest.approx(share)
    assert repeated_share(text.encode(), b"") == pytest.approx(share)


def test_a_loop_counts_though_an_answer_was_put_behind_it():
    reasoning, response = b"So " + b"wait, let me see. " * 20, b"The answer is \\boxed{7}."
    # 18 × 20 of 363 + 24 characters: the last space is none of the loop, the one after "So" is.
    assert repeated_share(reasoning, response) == pytest.approx(360 / 387)


@pytest.mark.parametrize(
    ("text", "switches"),
    [
        ("", 0),
        ("All of it is English, with \\alpha, α and π in it.", 0),
        ("因此答案是 $x = \\frac{\\text{abc}}{2}$，其中 max x 是整数。", 0),
        ("Then we have 因此 that the answer is seven.", 2),
        ("Then we have 答案 where 是整数", 3),
        ("Поэтому ответ is seven", 1),
        ("Let Ж be the set", 0),
        ("naïve café über", 0),
    ],
)
def test_language_switches(text: str, switches: int):
    assert language_switches(pl.Series([text, "plain", text])).to_list() == [switches, 0, switches]


def test_compression_ratio_tells_loops_from_prose():
    assert compression_ratio(b"") == 1.0
    assert compression_ratio(PROSE.encode()) < 6
    assert compression_ratio(b"I am stuck. " * 500) > 50
    long = PROSE.encode() * 40  # longer than the sample
    assert compression_ratio(long + b"I am stuck. " * 5000) > 100


def test_answer_position():
    assert answer_position(b"no box") is None
    assert answer_position(rb"\boxed{1} or \boxed{2}") == pytest.approx(13 / 22)


def test_rollouts_are_measured_in_order(tmp_path: Path):
    asked = prompt("How many?")
    rollouts = [
        rollout(asked, r"It is $\boxed{7}$.", reasoning="Hmm. Wait, let me check: 3 + 4 = 7.", sample_index=0),
        rollout(asked, "x" * 10, completion_tokens=55, finish_reason="length", sample_index=1),
        rollout(asked, "", reasoning="Never closed", reasoning_form="truncated", finish_reason=None, sample_index=2),
    ]
    write(tmp_path, prompts=[asked], rollouts=rollouts)
    run(tmp_path, AnnotateConfig())
    first, second, third = read(tmp_path, "annotations/rollouts")
    assert [row["rollout_id"] for row in (first, second, third)] == [row["rollout_id"] for row in rollouts]
    # 35 characters of reasoning, a line break, 18 of response; a token is four characters, rounded up.
    assert (first["num_chars"], first["num_tokens"]) == (54, 14)
    assert (first["num_reflections"], first["num_language_switches"]) == (2, 0)
    assert first["answer_position"] == pytest.approx(43 / 54)
    assert (second["num_tokens"], second["truncated"]) == (55, True)
    assert (third["truncated"], third["answer_position"]) == (True, None)
    assert not first["truncated"]


def test_a_trace_that_ran_into_its_limit_in_a_loop_is_seen(tmp_path: Path):
    asked = prompt("How many?")
    cut = rollout(asked, "", reasoning="So " + "wait, let me see. " * 20, reasoning_form="truncated")
    write(tmp_path, prompts=[asked], rollouts=[cut])
    run(tmp_path, AnnotateConfig())
    assert read(tmp_path, "annotations/rollouts")[0]["repeated_share"] > 0.9


def test_an_empty_trace_has_measures(tmp_path: Path):
    asked = prompt("How many?")
    write(tmp_path, prompts=[asked], rollouts=[rollout(asked, ""), rollout(asked, "", reasoning="", sample_index=1)])
    run(tmp_path, AnnotateConfig())
    first, second = read(tmp_path, "annotations/rollouts")
    assert (first["num_chars"], first["compression_ratio"], first["repeated_share"]) == (0, 1.0, 0.0)
    assert (second["repeated_share"], second["answer_position"]) == (0.0, None)
    (row,) = read(tmp_path, "annotations/prompts")
    assert (row["num_rollouts"], row["length_ratio"]) == (2, 1.0)


def test_rollouts_that_came_after_verification_are_not_judged(tmp_path: Path):
    asked = prompt("How many?")
    rollouts = [rollout(asked, "7", sample_index=k) for k in range(3)]
    verdicts = [verdict(rollouts[2], "incorrect"), verdict(rollouts[0], "correct")]
    write(tmp_path, prompts=[asked], rollouts=rollouts, verdicts=verdicts)
    run(tmp_path, AnnotateConfig())
    (row,) = read(tmp_path, "annotations/prompts")
    assert (row["num_rollouts"], row["num_judged"], row["num_correct"]) == (3, 2, 1)


def test_pass_rate_has_its_wilson_interval_and_unjudged_rollouts_do_not_count(tmp_path: Path):
    asked, unsampled = prompt("How many?"), prompt("Never asked.")
    outcomes = ["correct"] * 2 + ["incorrect"] * 5 + ["no_answer", "timeout", "undecided", "gold_unreadable"]
    rollouts = [rollout(asked, "7", sample_index=k, completion_tokens=100 + 10 * k) for k in range(12)]
    verdicts = [verdict(row, outcome) for row, outcome in zip(rollouts, outcomes, strict=False)]
    write(tmp_path, prompts=[asked, unsampled], rollouts=rollouts, verdicts=verdicts)
    run(tmp_path, AnnotateConfig())
    row, empty = read(tmp_path, "annotations/prompts")
    assert (row["num_rollouts"], row["num_judged"], row["num_correct"]) == (12, 8, 2)
    assert row["pass_rate"] == 0.25
    # Wilson, 2 of 8, z = 1.96: (0.25 + 0.24 ± 1.96 sqrt(0.0234 + 0.0150)) / 1.4802
    assert (row["pass_rate_low"], row["pass_rate_high"]) == pytest.approx((0.0715, 0.5907), abs=1e-4)
    # Lengths 100, 110 ... 210: sample variance 100 × (12² - 1) / 12 × 12 / 11 = 1300; p90 199, p10 111.
    assert row["length_mean"] == 155
    assert row["length_std"] == pytest.approx(1300**0.5)
    assert row["length_ratio"] == pytest.approx(199 / 111)
    assert (empty["num_rollouts"], empty["pass_rate"], empty["pass_rate_low"], empty["length_ratio"]) == (
        0,
        *[None] * 3,
    )


@pytest.mark.parametrize(
    ("columns", "domain", "level"),
    [
        ({"domain": "Intermediate Algebra", "level": "Level 5", "source": "MATH/test"}, "algebra", "high school"),
        (
            {"domain": "Counting & Probability", "level": "1", "source": "MATH-500"},
            "counting & probability",
            "middle school",
        ),
        ({"domain": "college_math.calculus", "source": "college_math.Calculus"}, "calculus", "college"),
        ({"domain": None, "source": "gsm8k/train"}, None, "elementary"),
        ({"level": "7.5", "source": "DeepMath-103K"}, None, "graduate"),
        ({"level": "Level ?", "source": "MATH/train"}, None, None),
        ({"domain": "Topology", "level": "Kindergarten"}, "topology", "kindergarten"),
        ({"domain": " ", "level": ""}, None, None),
        ({"domain": "high_school_physics", "source": "mmlu"}, "physics", "high school"),
        ({"domain": "college_mathematics", "source": "mmlu"}, None, "college"),
        ({"domain": "Solid State Chemistry (3.091 Fall 2010)", "source": "ocw"}, "solid state chemistry", None),
        ({"domain": "Common-Division", "source": "svamp"}, "arithmetic", "elementary"),
        ({"level": "4", "source": "math_train"}, None, "high school"),
        # Nobody knows this source's scale.
        ({"level": "3", "source": "some-quiz"}, None, None),
    ],
)
def test_domain_and_level_in_our_words(tmp_path: Path, columns: dict[str, str], domain: str, level: str):
    write(tmp_path, prompts=[prompt("How many?", **columns)])
    run(tmp_path, AnnotateConfig())
    (row,) = read(tmp_path, "annotations/prompts")
    assert (row["domain"], row["level"]) == (domain, level)
    assert row["domain_from"] == ("source" if domain else "none")
    assert row["level_from"] == ("source" if level else "none")


def test_run_resumes_file_by_file_and_remakes_the_same_bytes(tmp_path: Path):
    asked = prompt("How many?")
    for name in ("00000", "00001"):
        write_rows(tmp_path, "rollouts", [rollout(asked, PROSE, model=name)], name)
    write(tmp_path, prompts=[asked])
    assert run(tmp_path, AnnotateConfig()).made == 3
    assert run(tmp_path, AnnotateConfig()).made == 0
    files = parquet.table_files(tmp_path, "annotations/rollouts")
    before = files[1].read_bytes()
    files[1].unlink()
    assert run(tmp_path, AnnotateConfig()).made == 1
    assert files[1].read_bytes() == before


def test_real_traces_that_loop_never_finished(shared_data: Path):
    """These completions are JSON: one that ends in a loop cannot have closed it."""
    lines = (shared_data / "rollouts" / "zeroeval_math_l5.jsonl").read_text(encoding="utf-8").splitlines()[:1500]
    texts = [json.loads(line)["completion"].encode() for line in lines]
    loops = [text for text in texts if repeated_share(b"", text) > 0]
    assert len(loops) > 20
    assert not any(text.rstrip().endswith(b'"\n}') for text in loops)
    assert all(compression_ratio(text) > 4 for text in loops)
