"""The files that hold what one teacher was sampled with one set of settings."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.journal import Journal, disk_space_checked
from pipelines import __version__, parquet, runner
from pipelines.config import Config
from pipelines.errors import UserError
from pipelines.runner import Stage
from pipelines.tables import TABLES

STAGE = Stage("generate", reads=("prompts",), writes=("rollouts", "refusals"))

_TABLES = ("rollouts", "refusals")
_ASIDE = ".replaced"
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class GeneratedFiles:
    """`rollouts/generate-SETTINGS-00000.parquet` and on, refusals beside them, and the journal before them."""

    root: Path
    sampling_id: str

    @property
    def prefix(self) -> str:
        """What the names of these files, and of no others, begin with."""
        return f"generate-{self.sampling_id[:12]}-"

    @property
    def journal_path(self) -> Path:
        """Where finished rollouts wait for their block."""
        return self.root / "rollouts" / f".{self.prefix.rstrip('-')}.journal"

    def files(self, table: str) -> list[Path]:
        """The files of `table` among these, by number."""
        return [path for path in parquet.table_files(self.root, table) if path.name.startswith(self.prefix)]

    def stored_ids(self) -> set[str]:
        """Ids of every rollout in the run directory."""
        files = parquet.table_files(self.root, "rollouts")
        return set(_column(files, "rollouts", "rollout_id"))

    def refused_ids(self) -> set[str]:
        """Ids of the requests that failed for ever."""
        return set(_column(self.files("refusals"), "refusals", "id"))

    def next_number(self) -> int:
        """Number of the next block."""
        return max((self._number(path) + 1 for table in _TABLES for path in self.files(table)), default=0)

    def write_block(
        self, number: int, rows: Iterable[dict[str, Any]], refusals: list[dict[str, Any]], made_from: str
    ) -> None:
        """Write block `number`: its rollouts, and its refusals where it has any."""
        name = f"{self.prefix}{number:05d}.parquet"
        with disk_space_checked(self.root):
            if refusals:
                parquet.write_file(self.root / "refusals" / name, "refusals", _tables(refusals, "refusals"), made_from)
            rows = iter(rows)
            first = next(rows, None)
            if first is not None:
                whole = (row for part in ([first], rows) for row in part)
                parquet.write_file(self.root / "rollouts" / name, "rollouts", _tables(whole, "rollouts"), made_from)

    def reopen_last_block(self, journal: Journal) -> None:
        """Remove the last block's files if the journal still has all of it: a kill may have come between the two.

        The block is written again from the journal, so the result is that of a run that was not killed.
        """
        number = self.next_number() - 1
        last = [(table, path) for table in _TABLES for path in self.files(table) if self._number(path) == number]
        columns = {"rollouts": "rollout_id", "refusals": "id"}
        ids = [found for table, path in last for found in _column([path], table, columns[table])]
        if ids and all(found in journal for found in ids):
            for _, path in last:
                path.unlink()

    def drop_mended_refusals(self) -> None:
        """Remove the refusals of requests that have succeeded since, or that a later file refuses again."""
        settled = set(_column(self.files("rollouts"), "rollouts", "rollout_id"))
        for path in reversed(self.files("refusals")):
            table = parquet.read_table(path, "refusals")
            ids = list(_column([path], "refusals", "id"))
            keep = [found not in settled for found in ids]
            settled.update(ids)
            if not any(keep):
                path.unlink()
            elif not all(keep):
                made_from = parquet.facts(path).made_from or ""
                parquet.write_file(path, "refusals", [table.filter(pa.array(keep))], made_from)

    def claim(self, key: str, settings: Config, model: str, replace: bool) -> None:
        """Enter this run into the manifest under `key`, or refuse it as another one than the earlier.

        More samples are no other run. With `replace` the earlier run's files are hidden, not deleted:
        they were paid for, and come back when their settings do.
        """
        entry = runner.read_manifest(self.root)["stages"].get(key)
        if entry is not None:
            asked = settings
            if entry["config"]["samples"] < settings.resolved()["samples"]:
                asked = settings.model_copy(update={"samples": entry["config"]["samples"]})
            runner.refuse_changed_config(self.root, Stage(key, STAGE.reads, STAGE.writes), asked, replace)
            if entry["model"] != model and not replace:
                raise UserError(
                    f"`{self.root}` was made with another `{key}` model: {entry['model']} -> {model}",
                    hint="use another --out, or `--replace` to sample the new one",
                )
            if entry["sampling_id"] != self.sampling_id:
                GeneratedFiles(self.root, entry["sampling_id"])._set_aside()
        self._bring_back()
        if entry is None or entry["config"] != settings.resolved() or entry["model"] != model:
            runner.record(self.root, key, {**self._entry(settings, model), "seconds": 0.0})

    def record(self, key: str, settings: Config, model: str, seconds: float) -> None:
        """Put the run into the manifest under `key`, and all runs together under the stage's own name."""
        stages = runner.read_manifest(self.root)["stages"]
        entry = self._entry(settings, model)
        if {name: value for name, value in stages.get(key, {}).items() if name != "seconds"} != entry:
            runner.record(self.root, key, {**entry, "seconds": round(seconds, 3)})
        runs = [run for name, run in runner.read_manifest(self.root)["stages"].items() if name.startswith("generate:")]
        outputs = {name: facts for run in runs for name, facts in run["outputs"].items()}
        whole = {**_facts(self.root, {}, outputs), "seconds": round(sum(run["seconds"] for run in runs), 3)}
        if stages.get(STAGE.name) != whole:
            runner.record(self.root, STAGE.name, whole)

    def _entry(self, settings: Config, model: str) -> dict[str, Any]:
        names = {"model": model, "sampling_id": self.sampling_id}
        return {**_facts(self.root, settings.resolved(), self._outputs()), **names}

    def _set_aside(self) -> None:
        for table in _TABLES:
            for path in self.files(table):
                _move(path, self.root / table / _ASIDE)

    def _bring_back(self) -> None:
        for table in _TABLES:
            for path in sorted((self.root / table / _ASIDE).glob(f"{self.prefix}*.parquet")):
                _move(path, self.root / table)

    def _outputs(self) -> dict[str, dict[str, Any]]:
        return {
            f"{table}/{path.name}": {"digest": facts.digest, "rows": facts.rows}
            for table in _TABLES
            for path in self.files(table)
            for facts in [parquet.facts(path)]
        }

    def _number(self, path: Path) -> int:
        return int(path.stem.removeprefix(self.prefix))


def _facts(root: Path, config: dict[str, Any], outputs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What every stage's entry in the manifest holds."""
    return {
        "code": __version__,
        "config": config,
        "inputs": runner.input_digests(root, STAGE),
        "outputs": outputs,
        "version": STAGE.version,
    }


def _column(files: Iterable[Path], table: str, column: str) -> Iterator[Any]:
    for path in files:
        for batch in parquet.read_batches(path, table, [column], batch_rows=65536):
            yield from batch[column].to_pylist()


def _tables(rows: Iterable[dict[str, Any]], table: str) -> Iterator[pa.Table]:
    rows = iter(rows)
    while part := list(islice(rows, _ROWS_AT_ONCE)):
        yield pa.Table.from_pylist(part, schema=TABLES[table])


def _move(path: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path.rename(folder / path.name)
