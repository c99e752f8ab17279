"""Traces: worked solutions of `curate.problems`, in ways of different reliability.

They teach the pocket teacher its habits. Each step is worked out at one go (short), digit by digit
(careful), or at one go and then digit by digit, with a "Wait" where the two disagree (checked). A
trace may also give up and guess, or check its result over and over and never come to an end.
"""

import random

from curate.problems import LARGEST, Problem, Step, write_step

STRATEGIES: dict[str, tuple[float, float, float]] = {
    "short": (0.9, 0.1, 0.0),
    "mixed": (0.5, 0.4, 0.1),
    "careful": (0.0, 0.9, 0.1),
    "checking": (0.2, 0.1, 0.7),
}
"""Strategy -> how often a step of it is short, careful, checked."""

_SLIP_RATE = 0.5
"""Share of checked steps whose first result is written wrong, to be found by the check."""


def write_trace(problem: Problem, strategy: str, rng: random.Random) -> tuple[str, str]:
    """Reasoning and response of a solution of `problem` by `strategy`, `guessing` or `endless`.

    Right but for `guessing`, whose answer is off, and `endless`, whose response never comes in
    the length a sampler allows.
    """
    if strategy == "guessing":
        return _guessing(problem, rng)
    weights = STRATEGIES["mixed" if strategy == "endless" else strategy]
    value, lines = problem.start, []
    for step in problem.steps:
        manner = rng.choices(("short", "careful", "checked"), weights)[0]
        lines.append(work_step(value, step, manner, rng))
        value = step.of(value)
    if strategy == "endless":
        lines += [f"Let me check again: {value}"] * 40
    return "\n".join(lines), f"\\boxed{{{value}}}"


def _guessing(problem: Problem, rng: random.Random) -> tuple[str, str]:
    """A solution that gives up after its first step and guesses."""
    lines = [work_step(problem.start, problem.steps[0], "short", rng), "This is long, I guess."]
    return "\n".join(lines), f"\\boxed{{{_slipped(problem.answer, rng)}}}"


def write_lesson(rng: random.Random) -> tuple[str, str]:
    """A question for several single steps, and its answer: at one go, or in columns where it says so.

    What the pocket student has learned before it is taught to think.
    """
    manner = rng.choice(("short", "careful", "careful"))
    values = [rng.randint(11, rng.choice((99, LARGEST))) for _ in range(rng.randint(2, 6))]
    tasks = [(value, write_step(rng, value)) for value in values]
    asked = ", ".join(f"{value}{step.operator}{step.operand}" for value, step in tasks)
    question = f"Work out{' in columns' if manner == 'careful' else ''}: {asked}."
    return question, "\n".join(work_step(value, step, manner, rng) for value, step in tasks)


def work_step(value: int, step: Step, manner: str, rng: random.Random) -> str:
    """One line for `value` `step`: its operation and its result, with what lies between by `manner`."""
    task, result = f"{value}{step.operator}{step.operand}", step.of(value)
    if manner == "short":
        return f"{task}={result}"
    columns = ", ".join(write_columns(value, step))
    if manner == "careful":
        return f"{task}: {columns}: {result}"
    if rng.random() < _SLIP_RATE:
        return f"{task}={_slipped(result, rng)}, check: {columns}: {result}. Wait, {result}"
    return f"{task}={result}, check: {columns}: {result}"


def write_columns(value: int, step: Step) -> list[str]:
    """`value` `step` digit by digit from the right: `8+7=15`, `3+6+1=10`, `2+1+1=4` for 238+167."""
    digits = [int(digit) for digit in reversed(str(value))]
    others = [int(digit) for digit in reversed(str(step.operand))]
    if step.operator == "*":
        others *= len(digits)
    carry, columns = 0, []
    for position in range(max(len(digits), len(others))):
        left = digits[position] if position < len(digits) else 0
        right = others[position] if position < len(others) else 0
        if step.operator == "-":
            borrow = int(left - right - carry < 0)
            left += 10 * borrow
            result = left - right - carry
        else:
            result = (left * right if step.operator == "*" else left + right) + carry
        sign = "-" if step.operator == "-" else "+"
        columns.append(f"{left}{step.operator}{right}{f'{sign}{carry}' if carry else ''}={result}")
        carry = borrow if step.operator == "-" else result // 10
    return columns


def _slipped(result: int, rng: random.Random) -> int:
    """A wrong result of the kind one writes: one digit off by one, or a lost or added ten."""
    wrong = result + rng.choice((-100, -10, -1, 1, 10, 100))
    return wrong if wrong >= 0 else result + 10
