"""The teachers that have an entry: what they are called, how they are sampled, what they need."""

import difflib
from dataclasses import dataclass
from typing import Any

from pipelines.errors import UserError
from pipelines.models import resolve_model
from pipelines.reasoning import THINK


@dataclass(frozen=True)
class Teacher:
    """A model that writes reasoning traces, and its makers' advice on sampling it."""

    name: str
    model: str
    """What `open_sampler` takes: `hf:ORG/NAME`, a folder, a shipped model, or a server's name for it."""
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    max_tokens: int = 32768
    context: int = 32768
    """Tokens of prompt and completion together."""
    gpus: int = 0
    """80 GB accelerators that its weights in their published precision and a useful cache take; 0: none."""
    licence: str | None = None
    opens_reasoning: bool = False
    """Its chat template ends with the tag that opens the reasoning. Local samplers see that themselves;
    a server does not say so."""
    delimiters: tuple[str, str] = THINK
    """Tags around the reasoning. gpt-oss writes channels instead, which `split_reasoning` knows."""


def _entry(name: str, model: str, **facts: Any) -> Teacher:
    return Teacher(name, f"hf:{model}", **facts)


_R1 = {"licence": "MIT", "opens_reasoning": True, "context": 131072}
_QWEN3 = {"licence": "Apache-2.0", "top_k": 20, "context": 40960}
_QWEN3_2507 = {"licence": "Apache-2.0", "top_k": 20, "context": 262144, "max_tokens": 81920, "opens_reasoning": True}
_GPT_OSS = {"licence": "Apache-2.0", "temperature": 1.0, "top_p": 1.0, "context": 131072, "gpus": 1}

_ENTRIES = (
    _entry("deepseek-r1", "deepseek-ai/DeepSeek-R1", gpus=16, **{**_R1, "context": 163840}),
    _entry("deepseek-r1-distill-qwen-1.5b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", gpus=1, **_R1),
    _entry("deepseek-r1-distill-qwen-7b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", gpus=1, **_R1),
    _entry("deepseek-r1-distill-qwen-14b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", gpus=1, **_R1),
    _entry("deepseek-r1-distill-qwen-32b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", gpus=2, **_R1),
    _entry("qwq-32b", "Qwen/QwQ-32B", top_k=30, context=40960, gpus=2, licence="Apache-2.0", opens_reasoning=True),
    _entry("qwen3-4b-thinking", "Qwen/Qwen3-4B-Thinking-2507", gpus=1, **_QWEN3_2507),
    _entry("qwen3-8b", "Qwen/Qwen3-8B", gpus=1, **_QWEN3),
    _entry("qwen3-14b", "Qwen/Qwen3-14B", gpus=1, **_QWEN3),
    _entry("qwen3-32b", "Qwen/Qwen3-32B", gpus=2, **_QWEN3),
    _entry("qwen3-30b-a3b-thinking", "Qwen/Qwen3-30B-A3B-Thinking-2507", gpus=2, **_QWEN3_2507),
    _entry("qwen3-235b-a22b-thinking", "Qwen/Qwen3-235B-A22B-Thinking-2507", gpus=8, **_QWEN3_2507),
    _entry(
        "phi-4-mini-reasoning", "microsoft/Phi-4-mini-reasoning", temperature=0.8, context=131072, gpus=1, licence="MIT"
    ),
    _entry("gpt-oss-20b", "openai/gpt-oss-20b", **_GPT_OSS),
    _entry("gpt-oss-120b", "openai/gpt-oss-120b", **_GPT_OSS),
    Teacher("pocket", "pocket", temperature=0.8, top_p=1.0, max_tokens=1024, context=2048, licence="Apache-2.0"),
)

TEACHERS: dict[str, Teacher] = {teacher.name: teacher for teacher in _ENTRIES}
"""Entries of `--teacher`. Sampling settings are those of the model cards; mathematics asks for no others."""


def resolve_teacher(name: str, server_url: str | None = None) -> Teacher:
    """The teacher called `name`: an entry, a model folder, `hf:ORG/NAME`, or any name that a server has.

    Without an entry the settings are those of DeepSeek-R1, which most reasoning models advise too.
    """
    if name in TEACHERS:
        return TEACHERS[name]
    if server_url is not None or name.startswith("hf:"):
        return Teacher(name, name)
    try:
        resolve_model(name)
    except UserError as error:
        if "/" in name or name.startswith("."):
            raise
        close = difflib.get_close_matches(name, TEACHERS, n=1, cutoff=0.5)
        hint = f"did you mean `{close[0]}`? " if close else ""
        raise UserError(
            error.message.replace("model", "teacher"),
            hint=f"{hint}entries: {', '.join(TEACHERS)}; or a model folder, hf:ORG/NAME, or --server URL",
        ) from None
    return Teacher(name, name)


def teacher_rows() -> list[dict[str, Any]]:
    """The entries as rows to print."""
    return [
        {
            "teacher": teacher.name,
            "model": teacher.model,
            "temperature": teacher.temperature,
            "top_p": teacher.top_p,
            "top_k": teacher.top_k,
            "max_tokens": teacher.max_tokens,
            "context": teacher.context,
            "gpus": teacher.gpus,
            "licence": teacher.licence,
        }
        for teacher in TEACHERS.values()
    ]
