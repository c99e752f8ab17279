"""Problems: multi-step arithmetic, written from a seed, for the pocket models.

A problem is a number and a chain of operations on it, told as an expression, as instructions or as
a story. Its answer is a whole number. `curate.traces` writes solutions to it.
"""

import json
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.runner import write_text
from pipelines.tables import prompt_id

LEVELS = {1: "elementary", 2: "elementary", 3: "middle school", 4: "high school", 5: "college", 6: "graduate"}
"""Number of steps -> level, in the words of `annotations/prompts`."""

LARGEST = 999
"""No running value and no operand is larger."""

_NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "June", "Kai", "Lea", "Max", "Nora", "Otto")
_THINGS = ("apples", "beads", "cards", "coins", "eggs", "marbles", "nuts", "pens", "seeds", "shells", "stamps", "tiles")
_INSTRUCTIONS = {
    "+": ("Add {}.", "Then add {}.", "Increase it by {}."),
    "-": ("Subtract {}.", "Take away {}.", "Decrease it by {}."),
    "*": ("Multiply by {}.", "Then multiply by {}.", "Take it {} times."),
}
_EVENTS = {
    "+": ("{who} gets {n} more.", "{who} finds {n}.", "{who} buys {n} more."),
    "-": ("{who} loses {n}.", "{who} gives away {n}.", "{who} sells {n}."),
    "*": ("Now there are {n} times as many.", "The number grows {n} times.", "{who} ends up with {n} times as many."),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on the running value."""

    operator: str
    """`+`, `-` or `*`."""
    operand: int

    def of(self, value: int) -> int:
        """The running value after this step."""
        if self.operator == "+":
            return value + self.operand
        return value - self.operand if self.operator == "-" else value * self.operand


@dataclass(frozen=True, slots=True)
class Problem:
    """A worded chain of steps and its answer."""

    text: str
    answer: int
    domain: str
    """How it is told: a key of `TELLERS`."""
    start: int
    steps: tuple[Step, ...]

    @property
    def level(self) -> int:
        """Number of steps."""
        return len(self.steps)


def write_problem_file(
    path: Path, *, count: int, levels: Sequence[int], seed: int, exclude: Collection[str] = ()
) -> list[Problem]:
    """Write `count` problems as JSONL for `curate import`, and return them; see `write_problems`."""
    problems = write_problems(seed, count, levels, exclude)
    rows = [
        {
            "id": prompt_id(problem.text),
            "problem": problem.text,
            "answer": str(problem.answer),
            "level": LEVELS[problem.level],
            "domain": problem.domain,
        }
        for problem in problems
    ]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return problems


def write_problems(seed: int, count: int, levels: Sequence[int], exclude: Collection[str] = ()) -> list[Problem]:
    """`count` different problems, levels taken in turn; none whose text is in `exclude`."""
    rng = random.Random(seed)  # noqa: S311
    seen = set(exclude)
    problems: list[Problem] = []
    while len(problems) < count:
        problem = write_problem(rng, levels[len(problems) % len(levels)])
        if problem.text not in seen:
            seen.add(problem.text)
            problems.append(problem)
    return problems


def write_problem(rng: random.Random, level: int) -> Problem:
    """One problem of `level` steps, in one of the ways of telling it."""
    value = start = rng.randint(11, 99)
    steps = []
    for _ in range(level):
        steps.append(write_step(rng, value))
        value = steps[-1].of(value)
    domain = rng.choice(sorted(TELLERS))
    return Problem(TELLERS[domain](rng, start, steps), value, domain, start, tuple(steps))


def write_step(rng: random.Random, value: int) -> Step:
    """A step from `value`, in [11, LARGEST], to a value in [11, LARGEST]."""
    operators = "+" if value < 30 else "+-"
    if value * 2 <= LARGEST:
        operators += "**" if value < 200 else "*"
    operator = rng.choice(operators)
    if operator == "*":
        return Step("*", rng.randint(2, min(9, LARGEST // value)))
    room = LARGEST - value if operator == "+" else value - 11
    if room < 12:
        return Step("-", rng.randint(12, value - 11)) if operator == "+" else Step("+", rng.randint(12, 99))
    largest = room if rng.random() < 0.5 else min(room, 99)
    return Step(operator, rng.randint(12, max(12, largest)))


def _tell_expression(rng: random.Random, start: int, steps: Sequence[Step]) -> str:
    text = str(start)
    for position, step in enumerate(steps):
        text += f"{step.operator}{step.operand}"
        if position < len(steps) - 1:
            text = f"({text})"
    return f"{rng.choice(('Compute', 'Evaluate', 'Work out'))} {text}."


def _tell_instructions(rng: random.Random, start: int, steps: Sequence[Step]) -> str:
    sentences = [f"{rng.choice(('Start with', 'Take', 'Begin with'))} {start}."]
    sentences += [rng.choice(_INSTRUCTIONS[step.operator]).format(step.operand) for step in steps]
    return " ".join([*sentences, rng.choice(("What is the result?", "What do you get?"))])


def _tell_story(rng: random.Random, start: int, steps: Sequence[Step]) -> str:
    who, things = rng.choice(_NAMES), rng.choice(_THINGS)
    sentences = [f"{who} has {start} {things}."]
    sentences += [rng.choice(_EVENTS[step.operator]).format(who=who, n=step.operand) for step in steps]
    return " ".join([*sentences, f"How many {things} are there now?"])


TELLERS = {"expression": _tell_expression, "instructions": _tell_instructions, "story": _tell_story}
