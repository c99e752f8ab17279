"""The prompts of RL: read from `shards/rl`, and the order in which they are asked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import parquet
from pipelines.conversation import Message
from pipelines.errors import UserError
from pipelines.tables import content_id
from verifiers import Question

Difficulty = Literal["easy", "medium", "hard"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem as the policy is asked it, and what its answers are judged against."""

    prompt_id: str
    messages: tuple[Message, ...]
    verifier: str
    question: Question
    pass_rate: float | None = None
    """As measured before training, by the pilot or in the shard; None where nobody has."""

    @property
    def difficulty(self) -> Difficulty | None:
        """The third in which the pass rate lies."""
        if self.pass_rate is None:
            return None
        return "hard" if self.pass_rate < 1 / 3 else "medium" if self.pass_rate < 2 / 3 else "easy"


def load_prompts(root: Path) -> list[Prompt]:
    """The prompts of `root/shards/rl`, by id."""
    files = parquet.require_files(root, "shards/rl", hint=f"run `curate split {root}`")
    rows = parquet.read_table(files, "shards/rl").to_pylist()
    if not rows:
        raise UserError(f"`{root / 'shards/rl'}` has 0 prompts", hint="`curate status` says why none was chosen")
    prompts = {row["prompt_id"]: _prompt(row) for row in rows}
    return [prompts[prompt_id] for prompt_id in sorted(prompts)]


def _prompt(row: dict[str, Any]) -> Prompt:
    question = Question(row["answer"], tuple(row["choices"] or ()))
    return Prompt(row["prompt_id"], tuple(row["prompt"]), row["verifier"], question, row["pass_rate"])


def prompts_from(
    prompts: Sequence[Prompt], cursor: int, seed: int, *, curriculum: bool = False
) -> Iterator[tuple[int, Prompt]]:
    """Every prompt once, as (place after it, prompt), from place `cursor` of an endless order.

    The order is one shuffle after another, each by seed and id; where a new shuffle begins on the
    way, it skips what has already come. With `curriculum` each goes from easy to hard, by tenths of the
    pass rate, and ends with the prompts that have none.
    """
    seen: set[str] = set()
    for epoch in count(cursor // len(prompts)):
        order = sorted(prompts, key=lambda prompt: content_id("order", seed, epoch, prompt.prompt_id))
        if curriculum:
            order.sort(key=lambda prompt: 1 if prompt.pass_rate is None else -round(10 * prompt.pass_rate))
        for place, prompt in enumerate(order, start=epoch * len(prompts)):
            if len(seen) == len(prompts):
                return
            if place >= cursor and prompt.prompt_id not in seen:
                seen.add(prompt.prompt_id)
                yield place + 1, prompt


def write_prompts(root: Path, shards: Path, prompts: Sequence[Prompt]) -> None:
    """Put the asked rows of `shards/prompts`, where there are any, beside the rollouts: curation reads both."""
    wanted = pa.array([prompt.prompt_id for prompt in prompts])
    parts = [
        table.filter(pc.is_in(table["prompt_id"], value_set=wanted))
        for path in parquet.table_files(shards, "prompts")
        for table in [parquet.read_table(path, "prompts")]
    ]
    if parts:
        parquet.write_file(root / "prompts" / "00000.parquet", "prompts", parts)
