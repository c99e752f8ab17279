"""The dataset card: `README.md` with Hugging Face front matter, every number counted from the tables."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard

from curate import markdown, stats
from curate.chosen import shards
from curate.classifier import Accuracy
from curate.croissant import croissant
from curate.diff import COUNTS, REASONS
from curate.flow import draw_flow, flow
from curate.front_matter import front_matter, languages, licence_ids, stated
from curate.licences import licences
from curate.personal import personal
from curate.pipeline import STEPS
from curate.problem_labels import CLASSIFIER
from curate.stats import Row
from pipelines import __version__, runner
from pipelines.benchmarks import benchmark_name
from pipelines.errors import UserError
from pipelines.runner import Stage
from pipelines.tables import TABLES

STAGE = Stage("card", reads=tuple(TABLES), writes=(), version=3)

PICTURES = ("reports/flow.png", "reports/flow-dark.png")
"""Where the card's picture lies in a run directory, in light and in dark."""


CROISSANT = "croissant.json"
"""Where the Croissant metadata lies in a run directory."""


def write_card(root: Path, name: str | None = None, version: str | None = None) -> Path:
    """Write `README.md` with its pictures and `croissant.json` into `root`; returns the path of the text.

    `name` is the data set's, the directory's own unless given. The recall of decontamination is
    measured here, unless that was done for the same settings, and kept in the manifest, which gets an entry.
    """
    runner.record(root, STAGE.name, _entry(root))
    with stats.opened(root) as connection:
        flows = flow(connection)
    drawn = [draw_flow(flows, root / place, dark=place == PICTURES[1]) for place in PICTURES]
    text = card_text(root, name or root.resolve().name, version, picture=None not in drawn)
    runner.write_text(root / "README.md", text)
    runner.write_text(root / CROISSANT, croissant_text(root, name or root.resolve().name, version))
    return root / "README.md"


def _entry(root: Path) -> dict[str, Any]:
    """The manifest's entry of the card: the tables it counts, and the measured recall of decontamination."""
    stages = runner.read_manifest(root)["stages"]
    against = stages.get("decontaminate")
    setting = None if against is None else [against["version"], against["config"]]
    before = _kept_recall(stages)
    rows = before["rows"] if before["of"] == setting else _recall(against)
    return {
        "code": __version__,
        "config": {},
        "inputs": runner.input_digests(root, STAGE),
        "outputs": {},
        "version": STAGE.version,
        "recall": {"of": setting, "rows": rows},
    }


def _recall(against: Mapping[str, Any] | None) -> list[Row]:
    """What decontamination finds of planted copies of its benchmarks; empty where it did not run.

    A benchmark that cannot be read here (its file is elsewhere) has one row that says so.
    """
    if against is None or not against["config"]["against"]:
        return []
    from curate.stages.decontaminate import DecontaminateConfig, measure_recall
    from pipelines.benchmarks import load_benchmark

    config = DecontaminateConfig.parse(against["config"], "decontaminate")
    rows: list[Row] = []
    for name in config.against:
        try:
            benchmark = load_benchmark(name)
        except UserError as error:
            rows.append({"benchmark": name, "copies": f"not measured: {error.message}", "planted": 0, "found": 0})
            continue
        # No problem is known to be clean here: `new numbers` alone are the copies that must not be found.
        measured = measure_recall(name, benchmark, benchmark.slice(0, 1), config)
        rows += [row for row in measured if row["copies"] != "clean"]
    for row in rows:
        row["share_rate"] = row["found"] / row["planted"] if row["planted"] else None
    return [{name: row[name] for name in _RECALL} for row in rows]


_RECALL = ("benchmark", "copies", "planted", "found", "share_rate")


def _kept_recall(stages: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest keeps of measured recall: `rows`, and the settings they are `of`."""
    kept: dict[str, Any] = stages.get(STAGE.name, {}).get("recall", {"of": None, "rows": []})
    return kept


def check_card(root: Path) -> list[str]:
    """How the card of `root` differs from its tables, as lines of a diff (`-` card, `+` tables); none if it holds."""
    path = root / "README.md"
    if not path.is_file():
        raise UserError(f"no card `{path}`", hint=f"write it: `curate card {root}`")
    text = path.read_text(encoding="utf-8")
    name, version = stated(text, "pretty_name") or root.resolve().name, stated(text, "version")
    counted = card_text(root, name, version, picture=f"]({PICTURES[0]})" in text)
    lines = difflib.unified_diff(text.splitlines(), counted.splitlines(), n=0, lineterm="")
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


def card_text(
    root: Path,
    name: str,
    version: str | None = None,
    *,
    picture: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> str:
    """The card of `root` as Markdown; the same tables and manifest give the same text.

    `picture` says whether the page may show those that lie at `PICTURES`. `changes` are `since` (a version's name)
    and the `rows` of what changed from it; those in the manifest unless given.
    """
    name = plain_name(name)
    stages = runner.read_manifest(root)["stages"]
    manifest = _in_order(stages)
    with stats.opened(root) as connection:
        summaries = {summarise.__name__: summarise(connection).rows for summarise in stats.SUMMARIES}
        flows = flow(connection)
        summaries |= {"licences": licences(connection), "personal": personal(connection)}
        written_in = languages(connection)
    facts = front_matter(root, name, version, summaries["shards"], summaries["licences"], written_in)
    fields: dict[str, Any] = {
        **summaries,
        "changes": _in_columns(changes or stages.get(STAGE.name, {}).get("changes")),
        "flow": flows,
        "pictures": PICTURES if picture else None,
        "classifiers": [
            {name: row[name] for name in ("label", *Accuracy._fields)}
            for row in stages.get(CLASSIFIER, {}).get("accuracy", [])
        ],
        "sft_wanted": _sft_wanted(manifest, summaries["shards"]),
        "strategy": manifest.get("build_dpo_pairs", {}).get("config", {}).get("strategy"),
        "name": name,
        "version": version,
        "table": markdown.table,
        "stages": manifest,
        "imported": _imported(stages),
        "code": ", ".join(sorted({str(entry["code"]) for entry in manifest.values()})),
        # What was imported is named by file, with its digest: a recipe cannot bring it again.
        "recipe": _recipe({stage: entry["config"] for stage, entry in manifest.items() if stage != "import"}),
        "against": _against(manifest),
        "recall": [
            {**{name: row[name] for name in _RECALL}, "benchmark": benchmark_name(str(row["benchmark"]))}
            for row in _kept_recall(stages)["rows"]
        ],
        "location": "PATH",
        "kinds": ", ".join(row["shard"] for row in summaries["shards"]),
    }
    template = template_file().read_text(encoding="utf-8")
    card: DatasetCard = DatasetCard.from_template(facts, template_str=template, **fields)
    return str(card).rstrip() + "\n"


def croissant_text(root: Path, name: str, version: str | None = None) -> str:
    """The Croissant metadata of `root` as JSON."""
    with stats.opened(root) as connection:
        kinds = [str(row["shard"]) for row in shards(connection).rows]
        identifiers = licence_ids(licences(connection))
    return json.dumps(croissant(plain_name(name), version, kinds, identifiers), indent=1) + "\n"


def plain_name(name: str) -> str:
    """A data set's name without what would break a page."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def template_file() -> Path:
    """The card's template: beside this file where tracemill is installed, else in the checkout's `data_cards/`."""
    installed = Path(__file__).parent / "TEMPLATE.md"
    return installed if installed.is_file() else Path(__file__).parents[1] / "data_cards" / "TEMPLATE.md"


# --- sections -------------------------------------------------------------------------------------


def _in_order(stages: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's entries by step of the pipeline, in its order; a step of two stages shows its first."""
    return {step: stages[step] for step in STEPS if step in stages}


def _imported(stages: Mapping[str, Any]) -> list[Row]:
    """The files that were imported, with their digests and what became of their rows."""
    return [
        {
            "file": name.rpartition(":")[0].rpartition("/")[2],
            "layout": entry.get("layout"),
            "digest": name.rpartition(":")[2],
            "rows": entry["counts"]["rows"],
            "used": entry["counts"]["used"],
            "new_problems": entry["counts"].get("prompts_new"),
            "rollouts": entry["counts"].get("rollouts"),
        }
        for stage, entry in sorted(stages.items())
        if stage.startswith("import:")
        for name in entry["inputs"]
    ]


def _recipe(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """The stages' settings as a recipe; a setting that is not set is left out."""
    lines = [f"steps = {_toml(list(configs))}"]
    for stage, config in configs.items():
        lines += ["", f"[{stage}]", *(f"{key} = {_toml(value)}" for key, value in config.items() if value is not None)]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = (f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items() if item is not None)
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, str):
        value = without_folder(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # A back tick would end the code block that the recipe stands in.
    return json.dumps(value, ensure_ascii=False).replace("`", "\\u0060")


def _in_columns(changes: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Changes with the columns of their tables in order, which a manifest does not keep."""
    if changes is None:
        return None
    return {
        "since": markdown.escaped(changes["since"]),
        "counts": [{name: row[name] for name in COUNTS} for row in changes["counts"]],
        "reasons": [{name: row[name] for name in REASONS} for row in changes["reasons"]],
    }


def _against(manifest: Mapping[str, Any]) -> str | None:
    """The benchmarks that problems were searched for; None where they were not."""
    if "decontaminate" not in manifest:
        return None
    names = (benchmark_name(str(name)) for name in manifest["decontaminate"]["config"]["against"])
    return ", ".join(markdown.escaped(name) for name in names)


def without_folder(text: str) -> str:
    """A setting without the folders of the machine it was made on: `math500=/data/m.jsonl` as `math500=m.jsonl`."""
    name, equals, file = text.rpartition("=")
    return name + equals + Path(file).name if Path(file).is_absolute() else text


def _sft_wanted(manifest: Mapping[str, Any], shards: Sequence[Row]) -> int | None:
    """How many SFT traces were asked for, where fewer qualify."""
    wanted = manifest.get("split", {}).get("config", {}).get("sft_size")
    found = next((row["rows"] for row in shards if row["shard"] == "sft"), 0)
    return wanted if wanted is not None and found < wanted else None
