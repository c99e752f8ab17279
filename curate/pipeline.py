"""The stages in their order, found by name without importing them."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pipelines.config import Config, Recipe
from pipelines.errors import UserError
from pipelines.executors import SpreadConfig, spread
from pipelines.runner import refuse_changed_config


@dataclass(frozen=True)
class Step:
    """Where a stage lives; its module is imported when it is used, not for `--help`."""

    module: str
    config: str

    def load(self) -> Any:
        """The stage's module: `run(root, config, replace=...)` and what it needs."""
        return import_module(self.module)

    def parse(self, recipe: Recipe, section: str) -> Config:
        """The stage's config from its section of a recipe."""
        config_class: type[Config] = getattr(self.load(), self.config)
        return config_class.parse(recipe.get(section, {}), section)


STEPS: dict[str, Step] = {
    "import": Step("curate.stages.import_", "ImportConfig"),
    "generate": Step("curate.stages.generate", "GenerateConfig"),
    "verify": Step("curate.stages.verify", "VerifyConfig"),
    "dedupe": Step("curate.stages.dedupe", "DedupeConfig"),
    "decontaminate": Step("curate.stages.decontaminate", "DecontaminateConfig"),
    "annotate": Step("curate.stages.annotate", "AnnotateConfig"),
    "split": Step("curate.stages.split", "SplitConfig"),
    "build_dpo_pairs": Step("curate.stages.build_dpo_pairs", "BuildDpoPairsConfig"),
}
"""Stage -> its step, in the order in which `curate run` goes through them."""


def planned(recipe: Recipe) -> list[str]:
    """The data steps a recipe names, in its order; the training stages among its steps are `train all`'s to run."""
    names = [step.replace("-", "_") for step in recipe.get("steps", STEPS)]
    return [name for name in names if name in (*STEPS, "card")]


def section_of(recipe: Recipe, name: str) -> dict[str, Any]:
    """A stage's table of settings in a recipe, made where there is none."""
    section: dict[str, Any] = recipe.setdefault(name, {})
    return section


def run_step(
    root: Path,
    name: str,
    recipe: Recipe,
    *,
    replace: bool = False,
    executor: str = "inline",
    tasks: int = 1,
    **options: Any,
) -> list[str]:
    """Run one stage with its section of the recipe; returns lines that say what it did."""
    step = STEPS[name]
    config = step.parse(recipe, name)
    where = SpreadConfig.parse({**section_of(recipe, "spread"), "executor": executor, "tasks": tasks}, "spread")
    if where.executor != "inline":
        if not hasattr(step.load(), "CONFIG"):
            raise UserError(
                f"`{name}` looks across rows and runs in one process", hint="--executor is for verify and annotate"
            )
        refuse_changed_config(root, step.load().STAGE, config, replace)
        spread(name, step.module, root, config, where)
    return summary(name, step.load().run(root, config, replace=replace, **options))


def summary(name: str, report: Any) -> list[str]:
    """What a stage did, as lines: its own report where it has one, files and rows otherwise."""
    if hasattr(report, "lines"):
        return [f"{name}: {line}" for line in report.lines()]
    title = name.replace("_", "-")
    if not report.made:
        return [f"{title}: nothing to do, {report.kept} files are fresh"]
    return [f"{title}: {report.made} files made, {report.kept} kept, {report.rows:,} rows in {report.seconds:.1f} s"]
