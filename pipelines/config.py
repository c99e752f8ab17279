"""Configs and recipes: strict TOML to frozen, typed values."""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.errors import UserError


class Config(BaseModel):
    """Base of every stage's settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any], section: str) -> Self:
        """The config `values` describe; `section` names it in the `UserError` for a bad key or value."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join([section, *(str(part) for part in first["loc"])])
            if first["type"] == "extra_forbidden":
                raise UserError(
                    f"unknown setting `{key}`",
                    hint=f"settings of `{section}`: {', '.join(sorted(cls.model_fields))}",
                ) from None
            raise UserError(f"bad value for `{key}`: {first.get('input')!r}: {first['msg']}") from None

    def resolved(self) -> dict[str, Any]:
        """Every setting with its value, as JSON types; what the manifest stores."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """Digest of the resolved values, 16 hex digits."""
        canonical = json.dumps(self.resolved(), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


Recipe = dict[str, Any]
"""A parsed recipe: `name`, `steps`, and one table of settings per stage."""
STEPS = (
    *("import", "generate", "verify", "dedupe", "decontaminate", "annotate", "split", "build_dpo_pairs", "card"),
    *("midtrain", "sft", "dpo", "rl"),
)
"""What a recipe's `steps` may name."""
SECTIONS = (*(step for step in STEPS if step != "card"), "eval", "init", "cost", "spread")
"""What may have settings."""


def load_recipe(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at `path` (a file, or the name of a shipped one) with `--set stage.key=value` laid over it."""
    recipe: Recipe = {}
    if path is not None:
        file = recipe_file(path)
        try:
            recipe = tomllib.loads(file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"`{file}` is not a TOML file: {error}") from None
        _check_sections(recipe, file)
    for override in overrides:
        key, separator, text = override.partition("=")
        stage, dot, name = key.strip().partition(".")
        if not (separator and dot and name):
            raise UserError(f"`--set {override}` is not STAGE.KEY=VALUE", hint="e.g., --set verify.timeout_s=10")
        section = recipe.setdefault(stage, {})
        if not isinstance(section, dict):
            raise UserError(f"`--set {override}`: `{stage}` is not a stage of the recipe")
        section[name] = toml_value(text.strip())
    return recipe


def _check_sections(recipe: Recipe, file: Path) -> None:
    """A `UserError` for a name that no stage has: its settings would be left out without a word."""
    for name, value in recipe.items():
        if name == "name":
            continue
        if name == "steps":
            if not isinstance(value, list):
                raise UserError(f"`{file}`: `steps` is not a list of stage names", hint='steps = ["verify", "sft"]')
            unknown = [step for step in value if str(step).replace("-", "_") not in STEPS]
        else:
            unknown = [] if name in SECTIONS else [name]
        if unknown:
            raise UserError(f"`{file}`: no stage `{unknown[0]}`", hint=f"there are {', '.join(SECTIONS)}")
        if name != "steps" and not isinstance(value, dict):
            raise UserError(f"`{file}`: `{name}` is not a section", hint=f"write [{name}] and KEY = VALUE below it")


def recipe_file(path: Path) -> Path:
    """`path` itself, or the recipe of that name that ships with the package."""
    if path.is_file():
        return path
    shipped = Path(__file__).parent / "recipes"
    named = shipped / f"{path.name.removesuffix('.toml')}.toml"
    if len(path.parts) == 1 and named.is_file():
        return named
    names = ", ".join(sorted(file.stem for file in shipped.glob("*.toml")))
    raise UserError(f"no recipe `{path}`", hint=f"name a TOML file or one of: {names}")


def toml_value(text: str) -> Any:
    """`text` read as a TOML value; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What two resolved configs disagree on, one line a setting: `key: old -> new`."""
    keys = sorted({*old, *new})
    return [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys if old.get(key) != new.get(key)]
