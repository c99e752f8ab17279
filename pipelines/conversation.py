"""What a model is asked, and how a trace is written down as a conversation.

Sampling, shards, RL and evaluation all use these functions, so a student is asked exactly what its
training data asked.
"""

from collections.abc import Sequence
from string import ascii_uppercase

Message = dict[str, str]
"""`{"role": "user" | "assistant" | "system", "content": ...}`, as chat templates take it."""

INSTRUCTIONS: dict[str, str] = {
    "mathematics": r"Please reason step by step, and put your final answer within \boxed{}.",
    "choice": (
        r"Please reason step by step, and put your final choice of one letter from {letters} within \boxed{{}}."
    ),
    "none": "",
}
"""Prompts used by the paper's group (arXiv:2504.21233), by verifier; `none` asks the bare problem."""


def user_message(problem: str, choices: Sequence[str] | None = None, instruction: str = "mathematics") -> Message:
    """The user's turn: the problem, its options one a line as `A. ...`, and the instruction.

    `instruction` is a key of `INSTRUCTIONS`; a problem with options takes the `choice` wording
    unless the instruction is `none`.
    """
    key = "choice" if choices and instruction != "none" else instruction
    letters = ascii_uppercase[: len(choices)] if choices else ""
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, choices or (), strict=False))
    wording = INSTRUCTIONS[key]
    if key == "choice":
        wording = wording.format(letters="/".join(letters))
    return {"role": "user", "content": "\n\n".join(part for part in (problem.strip(), options, wording) if part)}


def assistant_message(reasoning: str | None, response: str) -> Message:
    """The assistant's turn: `<think>` reasoning `</think>`, a blank line, the response."""
    if reasoning is None:
        return {"role": "assistant", "content": response}
    return {"role": "assistant", "content": f"<think>\n{reasoning.strip()}\n</think>\n\n{response.strip()}"}
