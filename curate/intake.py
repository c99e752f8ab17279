"""The intake of an import: foreign rows sorted into prompts, rollouts and refusals, and counted."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa

from pipelines import parquet
from pipelines.fields import BadRow
from pipelines.foreign import MAX_ROW_BYTES, Row, Unreadable, num_chars
from pipelines.layouts import Layout
from pipelines.rows import Item, Reader, Trace, not_unicode, prompt_row
from pipelines.tables import TABLES, content_id
from verifiers import VERIFIERS, Outcome, Question, gold_fault

_BLOCK_CHARS = 32 << 20
"""A block of rows is written when it holds so much text, if it is not full before."""
_DETAIL_CHARS = 4000
_UNKNOWN_MODEL = "unknown"


@dataclass
class Counts:
    """What became of a source's rows: `rows == used + refused`, `completions == rollouts + refused ones`."""

    rows: int = 0
    used: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Reason -> rows of which nothing was used."""
    noted: Counter[str] = field(default_factory=Counter)
    """Reason -> golds and single completions that were not used, of rows that were."""
    prompts_new: int = 0
    prompts_known: int = 0
    completions: int = 0
    """Of used rows."""
    completions_refused: int = 0
    rollouts: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    """Reasoning form -> rollouts."""

    def stored(self) -> dict[str, Any]:
        """The counts as JSON types; what the manifest keeps."""
        return {key: dict(value) if isinstance(value, Counter) else value for key, value in vars(self).items()}

    @classmethod
    def restored(cls, stored: Mapping[str, Any]) -> Self:
        """The counts that `stored` wrote."""
        return cls(**{key: Counter(value) if isinstance(value, dict) else value for key, value in stored.items()})  # type: ignore[arg-type]

    def check(self) -> None:
        """Assert that no row and no completion is lost."""
        assert self.rows == self.used + self.refused.total(), self
        assert self.used == self.prompts_new + self.prompts_known, self
        assert self.completions == self.rollouts + self.completions_refused, self
        assert self.rollouts == self.forms.total(), self


class Origin(NamedTuple):
    """What an import says of rows that do not say it themselves."""

    source: str
    licence: str | None = None
    verifier: str | None = None
    """Overrides the rows' own."""
    model: str | None = None


class Spool:
    """Rows of one table on their way to disk; memory holds one block of them."""

    def __init__(self, folder: Path, table: str, made_from: str, rows_per_block: int) -> None:
        self.blocks: list[Path] = []
        self._folder, self._table, self._made_from = folder / table, table, made_from
        self._rows_per_block = rows_per_block
        self._rows: list[dict[str, Any]] = []
        self._chars = 0

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._chars += num_chars(row)
        if len(self._rows) >= self._rows_per_block or self._chars >= _BLOCK_CHARS:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            path = self._folder / f"{len(self.blocks):05}.parquet"
            rows = pa.Table.from_pylist(self._rows, schema=TABLES[self._table])
            parquet.write_file(path, self._table, [rows], self._made_from)
            self.blocks.append(path)
            self._rows, self._chars = [], 0

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, read back."""
        for path in self.blocks:
            yield from parquet.read_batches(path, self._table)


class Intake:
    """Sorts rows into prompts, rollouts and refusals, and counts them."""

    def __init__(
        self,
        layout: Layout,
        reader: Reader,
        origin: Origin,
        spools: Mapping[str, Spool],
        golds: dict[str, str | None],
        known: AbstractSet[str] = frozenset(),
    ) -> None:
        """`spools` by table; `golds` (prompt_id -> gold of every problem stored so far) grows.

        `known` are the ids of rollouts that other files of the same source brought.
        """
        self._layout, self._reader, self._origin, self._spools, self._golds = layout, reader, origin, spools, golds
        self._known = known
        self._num_samples = Counter[tuple[str, str]]()
        self._num_refusals = 0
        self._counts = Counts()

    def take(self, row: Row | Unreadable) -> None:
        """Use a row, or set it aside with its reason."""
        self._counts.rows += 1
        if isinstance(row, Unreadable):
            self._refuse(row.number, row.reason, row.detail)
            return
        try:
            if num_chars(row.values) > MAX_ROW_BYTES:
                raise BadRow("row_too_long", f"more than {MAX_ROW_BYTES} characters")
            self._use(row.number, self._layout.read(row.values, self._reader))
        except BadRow as fault:
            self._refuse(row.number, fault.reason, fault.detail)

    def _use(self, number: int, item: Item) -> None:
        """Store what a row holds; `BadRow` if nothing of it can be used."""
        prompt = self._prompt(number, item)
        rollouts, faults = self._rollouts(number, item, prompt["prompt_id"])
        if faults and not rollouts:
            raise faults[0]
        notes = self._gold_notes(prompt)
        if notes and notes[0].reason != "gold_unreadable" and not rollouts:
            raise notes[0]
        counts = self._counts
        if prompt["prompt_id"] in self._golds:
            counts.prompts_known += 1
        else:
            counts.prompts_new += 1
            self._golds[prompt["prompt_id"]] = prompt["answer"]
            self._spools["prompts"].add(prompt)
        for rollout in rollouts:
            self._spools["rollouts"].add(rollout)
            counts.forms[rollout["reasoning_form"]] += 1
        for note in (*faults, *notes):
            counts.noted[note.reason] += 1
            self._set_aside(number, note.reason, note.detail)
        counts.used += 1
        counts.completions += len(rollouts) + len(faults)
        counts.completions_refused += len(faults)
        counts.rollouts += len(rollouts)

    def _prompt(self, number: int, item: Item) -> dict[str, Any]:
        verifier = self._origin.verifier or item.problem.verifier
        if verifier is not None and verifier not in VERIFIERS:
            raise BadRow("unknown_verifier", verifier)
        problem = item.problem._replace(verifier=verifier)
        bad = not_unicode({"problem": problem.text, "choices": list(problem.choices)})
        prompt = prompt_row(problem, self._origin.source, f"row {number}", self._origin.licence) if bad is None else {}
        bad = bad or not_unicode(prompt)
        if bad is not None:
            raise BadRow(f"not_unicode_{bad}", repr(problem.text[:500]))
        return prompt

    def _rollouts(self, number: int, item: Item, prompt_id: str) -> tuple[list[dict[str, Any]], list[BadRow]]:
        """The rows of `rollouts` that an item gives, and its completions that give none."""
        rows, faults = [], list(item.faults)
        for trace in item.traces:
            bad = not_unicode({"completion": [trace.split.reasoning, trace.split.response], "model": trace.model})
            if bad is not None:
                faults.append(BadRow(f"not_unicode_{bad}", repr(trace.split.response[:500])))
                continue
            row = self._rollout(number, item, prompt_id, trace)
            if row["rollout_id"] in self._known:
                faults.append(BadRow("known_rollout", f"`{row['rollout_id']}` came in another file of this source"))
            else:
                rows.append(row)
        return rows, faults

    def _rollout(self, number: int, item: Item, prompt_id: str, trace: Trace) -> dict[str, Any]:
        """A row of `rollouts`.

        Nobody knows how an imported rollout was sampled, so its id is the hash of problem, model, source,
        content and `sample_index`, which counts the rollouts of one model for one problem in this source.
        """
        model = trace.model or self._origin.model or _UNKNOWN_MODEL
        index = self._num_samples[prompt_id, model]
        self._num_samples[prompt_id, model] += 1
        content = content_id(trace.split.reasoning, trace.split.response)
        return {
            **dict.fromkeys(TABLES["rollouts"].names),
            "rollout_id": content_id("imported", prompt_id, model, self._origin.source, content, index),
            "prompt_id": prompt_id,
            "model": model,
            "sample_index": index,
            "sampling_id": "imported",
            "reasoning": trace.split.reasoning,
            "response": trace.split.response,
            "reasoning_form": trace.split.form,
            "finish_reason": trace.finish_reason,
            "upstream_label": trace.label,
            "source": self._origin.source,
            "source_id": item.problem.source_id or f"row {number}",
        }

    def _gold_notes(self, prompt: Mapping[str, Any]) -> list[BadRow]:
        """What is wrong with the gold of a row: it conflicts, comes late, or cannot be read."""
        gold, key = prompt["answer"], prompt["prompt_id"]
        if gold is None:
            return []
        question = Question(gold, tuple(prompt["choices"] or ()))
        if key in self._golds:
            stored = self._golds[key]
            if stored is None:
                return [BadRow("gold_late", f"the stored problem has no gold, this row says {gold!r}")]
            if not _same_gold(prompt["verifier"], Question(stored, question.choices), gold):
                return [BadRow("gold_conflict", f"stored {stored!r}, this row says {gold!r}")]
            return []
        fault = gold_fault(prompt["verifier"], question)
        return [] if fault is None else [BadRow("gold_unreadable", f"{fault}: {gold}")]

    def _refuse(self, number: int, reason: str, detail: str) -> None:
        self._counts.refused[reason] += 1
        self._set_aside(number, reason, detail)

    def _set_aside(self, number: int, reason: str, detail: str) -> None:
        self._num_refusals += 1
        self._spools["refusals"].add(
            {
                "stage": "import",
                "source": self._origin.source,
                "row": number,
                "id": None,
                "reason": reason,
                "detail": detail[:_DETAIL_CHARS].encode("utf-8", "replace").decode(),
            }
        )

    def carry(self, prompts: Iterable[dict[str, Any]]) -> None:
        """Keep problems of a replaced import that other rollouts need and this source no longer brings."""
        for prompt in prompts:
            if prompt["prompt_id"] not in self._golds:
                self._golds[prompt["prompt_id"]] = prompt["answer"]
                self._spools["prompts"].add(prompt)

    def finish(self) -> Counts:
        """Write what is pending; the counts, checked."""
        for spool in self._spools.values():
            spool.flush()
        self._counts.check()
        assert self._num_refusals == self._counts.refused.total() + self._counts.noted.total()
        return self._counts


def _same_gold(verifier: str, stored: Question, gold: str) -> bool:
    """Whether two statements of a gold agree: as text, or in the eyes of the verifier."""
    if " ".join(stored.answer.split()) == " ".join(gold.split()):
        return True
    return VERIFIERS[verifier](stored, f"\\boxed{{{gold}}}").outcome is Outcome.CORRECT
