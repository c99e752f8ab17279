"""The stages in their order, found by name without importing them."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pipelines.config import Config, Recipe
from pipelines.errors import UserError


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
        values = recipe.get(section, {})
        if not isinstance(values, dict):
            raise UserError(f"`{section}` in the recipe is not a table of settings")
        return config_class.parse(values, section)


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
    """The steps a recipe names, in its order; every name is checked before anything runs."""
    steps = recipe.get("steps", list(STEPS))
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        raise UserError("`steps` in the recipe is not a list of stage names", hint='steps = ["import", "verify"]')
    names = [str(step).replace("-", "_") for step in steps]
    known = [*STEPS, "card"]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"no stage `{unknown[0]}`", hint=f"stages: {', '.join(known)}")
    return names


def run_step(root: Path, name: str, recipe: Recipe, *, replace: bool = False) -> Any:
    """Run one stage with its section of the recipe; returns what the stage reports."""
    step = STEPS[name]
    return step.load().run(root, step.parse(recipe, name), replace=replace)
