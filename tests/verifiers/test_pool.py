r"""The pool: poisoned answers cost their deadline, never their neighbours."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from verifiers import VERIFIERS, Job, Outcome, Question, Verdict, VerifierPool

FIVE = Job("mathematics", Question("5"), r"\boxed{5}")
SIX = Job("mathematics", Question("5"), r"\boxed{6}")
POISON = Job("mathematics", Question("5"), r"\boxed{\sum_{k=0}^{99999999} \sin(k^{99})}")
"""Math-Verify would add up a hundred million terms."""

HOSTILE = [
    "{" * 1_000_000,
    r"\boxed{" * 150_000,
    r"\boxed{9^{9^{9^9}}}",
    r"\boxed{" + "{" * 1900 + "5" + "}" * 1900 + "}",
    r"\boxed{" + "(" * 1500 + "5" + ")" * 1500 + "}",
    r"\boxed{" + r"\sqrt{" * 60 + "2" + "}" * 61,
    r"\boxed{" + "-" * 3900 + "1}",
    r"\boxed{" + "±" * 3900 + "}",
    r"\boxed{10^{10^{10}}!}",
    r"\boxed{((((9^9)^9)^9)^9)^9}",
    "\ud800 the answer is \udfff",
    "\x00\x01\x1b[2J" * 1000,
    "\u202e\u200b\u2066" * 1000 + r"\boxed{\u200b6}",
    r"\boxed{𝟗}" + "а" * 1000,
    "$" * 200_000,
    '{"answer": "' + "\\" * 100_001,
    r"\boxed{" + "1," * 1900 + "}",
]


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(num_workers=2, timeout_s=4.0) as pool:
        yield pool


def outcomes(verdicts: Iterator[Verdict]) -> list[str]:
    return [verdict.outcome.value for verdict in verdicts]


def test_verdicts_come_in_the_order_of_the_jobs(pool: VerifierPool) -> None:
    jobs = [FIVE if number % 3 else SIX for number in range(500)]
    assert outcomes(pool.verify(jobs)) == ["correct" if number % 3 else "incorrect" for number in range(500)]


def test_the_pool_says_what_the_verifier_says(pool: VerifierPool) -> None:
    jobs = [FIVE, SIX, Job("choice", Question("B"), "Answer: B"), Job("mathematics", Question(""), "5")]
    assert list(pool.verify(jobs)) == [VERIFIERS[job.verifier](job.question, job.response) for job in jobs]


def test_jobs_are_read_only_so_far_ahead(pool: VerifierPool) -> None:
    read = 0

    def jobs() -> Iterator[Job]:
        nonlocal read
        for read in range(1, 1_000_001):  # noqa: B007
            yield FIVE

    verdicts = pool.verify(jobs())
    assert next(verdicts).outcome is Outcome.CORRECT
    verdicts.close()  # type: ignore[attr-defined]
    assert read < 5000
    assert outcomes(pool.verify([SIX])) == ["incorrect"]


@pytest.mark.parametrize("response", HOSTILE, ids=[repr(text[:16]) for text in HOSTILE])
def test_hostile_text_gets_a_verdict_and_leaves_its_neighbours_theirs(pool: VerifierPool, response: str) -> None:
    hostile = [Job("mathematics", Question("17"), response), Job("choice", Question("A"), response)]
    before, *verdicts, after = pool.verify([FIVE, *hostile, SIX])
    assert (before.outcome, after.outcome) == (Outcome.CORRECT, Outcome.INCORRECT)
    assert all(verdict.outcome is not Outcome.CORRECT for verdict in verdicts)


def test_a_poisoned_answer_is_a_timeout_and_is_not_tried_twice(pool: VerifierPool) -> None:
    verdicts = list(pool.verify([FIVE, POISON, SIX, POISON, *[FIVE] * 200]))
    assert [verdict.outcome for verdict in verdicts[:4]] == ["correct", "timeout", "incorrect", "timeout"]
    assert verdicts[1].rule == "deadline"
    assert outcomes(iter(verdicts[4:])) == ["correct"] * 200


def test_a_worker_that_is_killed_costs_one_job() -> None:
    with VerifierPool(num_workers=1, timeout_s=60.0) as pool:
        process = pool._workers[0].process
        assert process is not None
        # By then the worker has begun with the poison, or is importing what it needs for it.
        killer = threading.Timer(4.0, process.kill)
        killer.start()
        first, second, third = pool.verify([FIVE, POISON, SIX])
        killer.join()
    assert (first.outcome, second.outcome, third.outcome) == ("correct", "timeout", "incorrect")
    assert second.rule == "worker_died"


def test_without_workers_it_verifies_here() -> None:
    with VerifierPool(num_workers=0) as pool:
        assert outcomes(pool.verify([FIVE, SIX])) == ["correct", "incorrect"]


def test_importing_verifiers_loads_no_computer_algebra() -> None:
    script = "import sys, verifiers; print({'sympy', 'mpmath', 'math_verify', 'torch', 'pyarrow'} & set(sys.modules))"
    home = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=home, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_parent_that_holds_gigabytes_does_not_cost_its_workers_their_lives() -> None:
    # A child's peak memory starts as its parent's: judged by it, every worker would retire after every chunk.
    ballast = bytearray(b"x") * (1200 << 20)
    jobs = [Job("mathematics", Question(str(i)), rf"\boxed{{{i}}}") for i in range(200)]
    with VerifierPool(num_workers=2, memory_mb=2048) as pool:
        for _ in range(3):
            assert {verdict.outcome for verdict in pool.verify(jobs)} == {Outcome.CORRECT}
    assert len(ballast) == 1200 << 20


def test_a_worker_that_dies_between_jobs_costs_no_job_its_verdict() -> None:
    jobs = [Job("mathematics", Question(str(i)), rf"\boxed{{{i}}}") for i in range(8)]
    with VerifierPool(num_workers=1) as pool:
        for _ in range(3):
            assert {verdict.outcome for verdict in pool.verify(jobs)} == {Outcome.CORRECT}
            process = pool._workers[0].process
            assert process is not None
            process.kill()
