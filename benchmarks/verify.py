r"""Our verifiers beside Math-Verify: speed, agreement with labels, published cases, poisoned batches.

    python benchmarks/verify.py ../shared/data [--only rollouts unseen labels cases poison] [--sample 4000]

DATA holds `problems/*.jsonl`, `rollouts/*.jsonl` and `verifier_cases.jsonl`. Both sides work on the same machine in
alternating chunks, so that noise hits both, and are timed in processor seconds: ours through a pool of one worker, the
parent's share included, Math-Verify called as its README says (parse the gold, parse the completion, verify).
Math-Verify is slow, so it gets a seeded sample of each chunk. Exit code 1: a disagreement with a label or a published
case has no explanation in the tables below.
"""

import argparse
import ast
import json
import logging
import os
import random
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse
from math_verify import verify as verify_parsed

from verifiers import Job, Outcome, Question, Verdict, VerifierPool

CHUNK = 500
WARM_UP = Job("mathematics", Question(r"\zeta(3)"), r"\boxed{\zeta(5)}")
"""Asks Math-Verify, so that importing it is not counted on either side."""

# What each disagreement with a label is, read one by one: rows, word, reason. Nothing of the data itself stands here.
EXPLAINED = """
math500_longcot_12models 195 695 | wrong label | upstream compares strings; the answer states the same set
math500_longcot_12models 402 652 1152 1652 | wrong label | the gold's letter, with the option's text behind it
math500_longcot_12models 78 | convention | gives the question's own expression back, which is equal in value
math500_longcot_12models 208 242 | convention | words where the gold is a number: undecided, a judge's matter
misc_small 7 | wrong label | the gold's letter, with the option's text behind it
misc_small 10 | wrong label | upstream read on into a second question that the model asks itself
mmlu_pro_math_15models 6 9 50 74 75 80 90 | convention | right, then lists the answers of its prompt's examples
mmlu_pro_math_15models 16 695 | convention | names two options, which is no choice
mmlu_pro_math_15models 401 402 477 1001 | wrong label | no answer; upstream guesses a letter where it finds none
mmlu_pro_math_15models 488 536 560 1150 1192 | wrong label | closes with the gold's letter; upstream read its first
mmlu_pro_math_15models 519 | convention | opens with a letter, closes with the value of the gold's option
mmlu_pro_math_15models 667 1542 1547 | wrong label | the value of the gold's option, not its letter; upstream guesses
mmlu_pro_math_15models 922 | wrong label | the gold's letter in a sentence that upstream does not read
mmlu_pro_math_15models 1080 1084 1085 1094 1105 1107 1108 1111 1119 | convention | a list of answers, its own last
mmlu_pro_math_15models 1135 1143 1148 1154 1174 1188 1190 1191 1195 | convention | a list of answers, its own last
rho_math_cot 321 339 | wrong label | upstream compared the closing words with the gold
rho_math_cot 498 | wrong label | the gold's matrix, with doubled backslashes
rho_math_cot 416 | wrong label | the gold's letter; upstream extracted a number
rho_math_cot 896 | wrong label | ends in the gold's fraction; upstream extracted a digit of it
"""
CASES_EXPLAINED = """
vc0028 vc0029 | the upstream test reads LaTeX in one kind of delimiters only; we read all
vc0056 | the gold is a whole solution in prose, without a box: a judge's matter
vc0127 vc0133 | upstream rounds to two digits; written decimals are exact here
vc0180 vc0189 | upstream switches off that an inequality is the set it describes, or reads another set
vc0182 | the gold holds a tab by a mistake of the upstream test; we repair it
vc0243 | upstream renames variables (strict=False); f(x) is not f(y) here
vc0253 | the expectation pins a known bug: 1 - 1/e is not 1 + 1/e
vc0285 | the sentence states two numbers, and the months last
vc0296 | dollar signs that enclose no formula, before the number and behind it
vc0401 vc0407 | upstream compares lists in order; a bare list has none here
vc0496 vc0499 vc0501 vc0502 | the case has a tolerance of its own, for which a verdict has no place
vc0664 | upstream wants reasoning in tags; only the answer counts here
"""


@dataclass(frozen=True)
class Rollout:
    """One completion, and whether its label says that it is right."""

    id: str
    file: str
    job: Job
    label: bool | None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    with path.open() as lines:
        return [json.loads(line) for line in lines]


def read_rollouts(data: Path) -> list[Rollout]:
    """Every rollout that has a gold, in the order of the files."""
    rollouts = []
    for path in sorted((data / "rollouts").glob("*.jsonl")):
        for row in read_jsonl(path):
            if row["gold"]:
                choices = tuple((row.get("choices") or {}).values())
                job = Job(
                    "choice" if choices else "mathematics", Question(_gold(row["gold"]), choices), row["completion"]
                )
                rollouts.append(Rollout(row["id"], path.stem, job, row.get("label_reviewed", row.get("label"))))
    return rollouts


def _gold(text: str) -> str:
    """The gold as text; TheoremQA's are Python lists of the answer as text and as number: `['0.5', 0.5]`."""
    return str(ast.literal_eval(text)[0]) if text.startswith("['") else text


# --- the two sides --------------------------------------------------------------------------------


def math_verify_says(job: Job) -> bool:
    """Math-Verify as its README calls it; the letters are given where the answer is one."""
    if job.verifier == "choice":
        letters = [StringExtractionConfig(strings=tuple("ABCDEFGHIJ"))]
        return bool(verify_parsed(parse(job.question.answer, letters), parse(job.response, letters)))
    gold = job.question.answer
    dressed = gold if "$" in gold or "\\boxed" in gold else f"${gold}$"
    kinds = [LatexExtractionConfig(), ExprExtractionConfig()]
    return bool(verify_parsed(parse(dressed, kinds), parse(job.response, kinds)))


class Stopwatch:
    """Processor seconds, summed over the blocks that are timed; workers of a pool included."""

    def __init__(self, pool: VerifierPool | None = None) -> None:
        self.pool = pool
        self.processor_s = self.wall_s = 0.0
        self.answers = 0

    @contextmanager
    def timing(self, answers: int) -> Iterator[None]:
        processor, wall = self._now(), time.perf_counter()
        yield
        self.processor_s += self._now() - processor
        self.wall_s += time.perf_counter() - wall
        self.answers += answers

    @property
    def rate(self) -> float:
        """Answers per second of one core."""
        return self.answers / max(self.processor_s, 1e-9)

    def _now(self) -> float:
        used = time.process_time()
        if self.pool is not None:
            ended = resource.getrusage(resource.RUSAGE_CHILDREN)
            used += ended.ru_utime + ended.ru_stime
            used += sum(_processor_s(worker.process.pid) for worker in self.pool._workers)
        return used


def _processor_s(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def side_by_side(jobs: Sequence[Job], sample: int, seed: int) -> list[Verdict]:
    """Print both rates; our verdicts on all jobs."""
    chosen = set(random.Random(seed).sample(range(len(jobs)), min(sample, len(jobs))))
    verdicts: list[Verdict] = []
    theirs: dict[int, bool] = {}
    with VerifierPool(num_workers=1) as pool:
        ours_watch, their_watch = Stopwatch(pool), Stopwatch()
        list(pool.verify([WARM_UP]))
        math_verify_says(WARM_UP)
        for start in range(0, len(jobs), CHUNK):
            chunk = jobs[start : start + CHUNK]
            with ours_watch.timing(len(chunk)):
                verdicts += pool.verify(chunk)
            drawn = [index for index in range(start, start + len(chunk)) if index in chosen]
            with their_watch.timing(len(drawn)):
                theirs.update((index, math_verify_says(jobs[index])) for index in drawn)
    rows = [
        (name, watch.answers, f"{watch.processor_s:.1f}", f"{watch.wall_s:.1f}", f"{watch.rate:,.0f}")
        for name, watch in (("ours", ours_watch), ("Math-Verify 0.9.0", their_watch))
    ]
    print_table(("", "answers", "processor s", "wall s", "answers/s/core"), rows)
    print(f"ratio: {ours_watch.rate / their_watch.rate:.1f} times Math-Verify (its sample: seed {seed})")
    same = sum((verdicts[index].outcome is Outcome.CORRECT) == word for index, word in theirs.items())
    print(f"same word on {same:,} of {len(theirs):,} answers given to both")
    return verdicts


def print_table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    """A table in Markdown, so that it can be pasted into a document."""
    print("| " + " | ".join(map(str, header)) + " |")
    print("|" + " --- |" * len(tuple(header)))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


def rollouts_part(data: Path, options: argparse.Namespace) -> int:
    """(a) Real rollouts, in the order of the files."""
    jobs = [rollout.job for rollout in read_rollouts(data) if rollout.job.verifier == "mathematics"]
    print(f"{len(jobs):,} rollouts, {sum(len(job.response) for job in jobs) / 1e6:.1f} million characters")
    verdicts = side_by_side(jobs, options.sample, options.seed)
    print(f"outcomes: {_counted(verdict.outcome for verdict in verdicts)}")
    return 0


def unseen_part(data: Path, options: argparse.Namespace) -> int:
    """(b) Golds compared with another problem's gold: every text is new to both sides, and most pairs differ."""
    golds = set()
    for path in sorted((data / "problems").glob("*.jsonl")):
        golds |= {row["answer"] for row in read_jsonl(path) if not row.get("choices")}
    shuffled = sorted(golds)
    random.Random(options.seed).shuffle(shuffled)
    pairs = list(zip(shuffled[::2], shuffled[1::2], strict=False))
    print(f"{len(golds):,} different golds, {len(pairs):,} pairs")
    jobs = [Job("mathematics", Question(gold), rf"\boxed{{{answer}}}") for gold, answer in pairs]
    verdicts = side_by_side(jobs, options.sample // 4, options.seed)
    print(f"rules: {_counted(verdict.rule.rpartition(':')[2] for verdict in verdicts)}")
    return 0


def _counted(words: Iterable[str]) -> str:
    return ", ".join(f"{word} {count:,}" for word, count in Counter(words).most_common(8))


def labels_part(data: Path, options: argparse.Namespace) -> int:
    """(c) Labelled rollouts: a confusion table, and every disagreement with its explanation."""
    rollouts = [rollout for rollout in read_rollouts(data) if rollout.label is not None]
    with VerifierPool(num_workers=1) as pool:
        verdicts = list(pool.verify(rollout.job for rollout in rollouts))
    drawn = random.Random(options.seed).sample(range(len(rollouts)), min(options.sample, len(rollouts)))
    theirs = {rollouts[index].id: math_verify_says(rollouts[index].job) for index in drawn}
    rows = []
    for file in dict.fromkeys(rollout.file for rollout in rollouts):
        cells = Counter(
            (rollout.label, _word(verdict))
            for rollout, verdict in zip(rollouts, verdicts, strict=True)
            if rollout.file == file
        )
        asked = [rollout for rollout in rollouts if rollout.file == file and rollout.id in theirs]
        agreed = sum(theirs[rollout.id] == rollout.label for rollout in asked)
        right = cells[True, "correct"] + cells[False, "not correct"]
        counts = (cells[label, word] for label in (True, False) for word in ("correct", "not correct", "open"))
        rows.append((file, *counts, _percent(right, cells.total()), f"{_percent(agreed, len(asked))} of {len(asked)}"))
    header = ("file", "right: correct", "not", "open", "wrong: correct", "not", "open", "agreement", "Math-Verify's")
    print_table(header, rows)
    print("(open: timeout, gold_unreadable or undecided; Math-Verify's is on a seeded sample)\n")
    return _explain(rollouts, verdicts)


def _word(verdict: Verdict) -> str:
    if verdict.outcome is Outcome.CORRECT:
        return "correct"
    return "not correct" if verdict.outcome in (Outcome.INCORRECT, Outcome.NO_ANSWER) else "open"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "-"


def _explain(rollouts: list[Rollout], verdicts: list[Verdict]) -> int:
    """Print every disagreement; how many have no explanation."""
    explained = _explanations(EXPLAINED)
    rows = []
    for rollout, verdict in zip(rollouts, verdicts, strict=True):
        if _word(verdict) != ("correct" if rollout.label else "not correct"):
            why = explained.get(rollout.id, "UNEXPLAINED")
            gold, extracted = _cell(rollout.job.question.answer), _cell(verdict.extracted or "")
            rows.append((rollout.id, gold, extracted, verdict.outcome, verdict.rule, rollout.label, why))
    words = [row[-1].partition(":")[0] for row in rows]
    print(f"{len(rows)} disagreements of {len(rollouts):,}: {_counted(words)}")
    print_table(("rollout", "gold", "extracted", "outcome", "rule", "label", "explanation"), rows)
    return words.count("UNEXPLAINED")


def _explanations(table: str) -> dict[str, str]:
    """The explanation of each id; numbers are rows of the file in front of them."""
    explained: dict[str, str] = {}
    for line in table.strip().splitlines():
        names, _, reason = line.partition(" | ")
        first, *others = names.split()
        ids = [f"{first}-{int(other):05}" if other.isdigit() else other for other in others]
        explained |= dict.fromkeys([first, *ids], reason.replace(" | ", ": "))
    return explained


def _cell(text: str) -> str:
    return "`" + " ".join(text.split())[:60].replace("|", "¦").replace("`", "'") + "`"


def cases_part(data: Path, _: argparse.Namespace) -> int:
    """(d) Published cases with their expected verdicts; what is no sentence gets a box."""
    cases = read_jsonl(data / "verifier_cases.jsonl")
    jobs = [_case_job(case) for case in cases]
    with VerifierPool(num_workers=1) as pool:
        verdicts = list(pool.verify(jobs))
    ours = [verdict.outcome is Outcome.CORRECT for verdict in verdicts]
    theirs = [math_verify_says(job) for job in jobs]
    names = ["multiple choice" if job.verifier == "choice" else "answer" for job in jobs]
    names = [name if case["core"] else "hangs on a convention" for name, case in zip(names, cases, strict=True)]
    rows = []
    for name in sorted(set(names)):
        group = [index for index, other in enumerate(names) if other == name]
        counts = [_score([(says[index], cases[index]["expected"]) for index in group]) for says in (ours, theirs)]
        rows.append((name, len(group), *counts[0], *counts[1]))
    side = ("right", "false positives", "false negatives")
    print_table(
        ("cases", "number", *(f"ours: {word}" for word in side), *(f"Math-Verify: {word}" for word in side)), rows
    )
    print()
    explained = _explanations(CASES_EXPLAINED)
    unmet = []
    for case, verdict, said in zip(cases, verdicts, ours, strict=True):
        if said != case["expected"]:
            why = explained.get(case["id"], "UNEXPLAINED")
            shown = (_cell(case["gold"]), _cell(case["pred"]), case["expected"], verdict.outcome, verdict.rule, why)
            unmet.append((case["id"], *shown))
    print_table(("case", "gold", "answer", "expected", "outcome", "rule", "explanation"), unmet)
    return sum(row[-1] == "UNEXPLAINED" for row in unmet)


def _case_job(case: dict[str, Any]) -> Job:
    if case["kind"] == "mc":
        return Job("choice", Question(case["gold"]), case["pred"])
    is_answer = not _SENTENCE.search(_COMMAND.sub(" ", case["pred"])) and "\\boxed" not in case["pred"]
    return Job("mathematics", Question(case["gold"]), rf"\boxed{{{case['pred']}}}" if is_answer else case["pred"])


_COMMAND = re.compile(r"\\[a-zA-Z]+\s*(?:\{[A-Za-z ]*\})?|\\.")
_SENTENCE = re.compile(r"[^\W\d_]{3,}\s*\S|[\u0590-\uffff]{3}|^\s*Answer", re.IGNORECASE)


def _score(words: list[tuple[bool, bool]]) -> tuple[str, int, int]:
    right = sum(said == expected for said, expected in words)
    return _percent(right, len(words)), words.count((True, False)), words.count((False, True))


POISON = (
    "5^{5^{5^{5^5}}}", "9^{9^{9^{9^9}}}", r"\sum_{k=0}^{99999999} \sin(k^{99})", r"\prod_{p=1}^{10^{12}} p^{p^p}",
    r"\int_0^1 x^{x^{x^x}} dx", r"\binom{10^{99}}{10^{98}}", "10^{10^{10}}!", r"\cos(10^{200}!)",
    "[" * 40 + "5" + "]" * 40,
)  # fmt: skip


def poison_part(data: Path, options: argparse.Namespace) -> int:
    """(e) Nine pathological answers among a thousand good ones: what each costs, and that no neighbour notices."""
    rollouts = [rollout.job for rollout in read_rollouts(data) if rollout.job.verifier == "mathematics"]
    good = random.Random(options.seed).sample(rollouts, 1000)
    poison = [Job("mathematics", Question(r"\sqrt{104729}"), rf"\boxed{{{text}}}") for text in POISON]
    mixed = list(good)
    for place, job in enumerate(poison):
        mixed.insert(100 * (place + 1), job)
    rows = []
    with VerifierPool(num_workers=2, timeout_s=options.timeout_s) as pool:
        list(pool.verify([WARM_UP] * 8))
        expected = list(pool.verify(good))  # and the caches are warm
        alone, together = Stopwatch(pool), Stopwatch(pool)
        with alone.timing(len(good)):
            unchanged = list(pool.verify(good)) == expected
        with together.timing(len(mixed)):
            verdicts = list(pool.verify(mixed))
        unchanged &= [v for job, v in zip(mixed, verdicts, strict=True) if job not in poison] == expected
    said = dict(zip(mixed, verdicts, strict=True))
    for job in poison:
        theirs = Stopwatch()
        with theirs.timing(1):
            word = math_verify_says(job)
        rows.append((_cell(job.response), said[job].outcome, said[job].rule, word, f"{theirs.wall_s:.1f}"))
    print_table(("answer", "ours", "rule", "Math-Verify", "its s"), rows)
    lost = (together.wall_s - alone.wall_s) / len(poison)
    print(f"a thousand good ones: {alone.wall_s:.2f} s; with the nine: {together.wall_s:.2f} s")
    print(f"lost per poisoned answer: {lost:.2f} s (deadline {options.timeout_s:g}); neighbours unchanged: {unchanged}")
    return 0 if unchanged else 1


PARTS: dict[str, Callable[[Path, argparse.Namespace], int]] = {
    "rollouts": rollouts_part, "unseen": unseen_part, "labels": labels_part, "cases": cases_part, "poison": poison_part,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Our verifiers beside Math-Verify.")
    parser.add_argument("data", type=Path, help="folder with problems/, rollouts/ and verifier_cases.jsonl")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=tuple(PARTS), help="parts to run")
    parser.add_argument(
        "--sample", type=int, default=4000, help="rollouts given to Math-Verify; a quarter of it in pairs"
    )
    parser.add_argument("--seed", type=int, default=1, help="of every random choice")
    parser.add_argument("--timeout-s", type=float, default=2.0, help="deadline in the poisoned batch")
    options = parser.parse_args()
    logging.disable(logging.ERROR)  # Math-Verify reports every timeout.
    faults = 0
    for name in options.only:
        print(f"\n## {PARTS[name].__doc__}\n", flush=True)
        faults += PARTS[name](options.data, options)
    print(f"\n{faults} unexplained" if faults else "\neverything that differs is explained")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
