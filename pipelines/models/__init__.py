"""Models by name: a folder, a shipped pocket model, or a name on the Hugging Face hub."""

from pathlib import Path

from pipelines.errors import UserError

SHIPPED = Path(__file__).parent


def shipped_models() -> list[str]:
    """Names of the models inside the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def resolve_model(name: str) -> str:
    """What `from_pretrained` takes for `name`: a local folder, a shipped model's folder, or a hub id.

    The hub is asked only where the user says so, as `hf:ORG/NAME`; any other name that is not a
    folder is a `UserError`, so that a typing error never becomes a download.
    """
    if name.startswith("hf:"):
        return name.removeprefix("hf:")
    if (Path(name) / "config.json").is_file():
        return name
    if name in shipped_models():
        return str(SHIPPED / name)
    if Path(name).is_dir():
        raise UserError(f"`{name}` is a folder without `config.json`", hint="name a Hugging Face model folder")
    raise UserError(
        f"no model `{name}`",
        hint=f"name a model folder, `hf:ORG/NAME`, or a shipped one: {', '.join(shipped_models()) or 'none built'}",
    )
