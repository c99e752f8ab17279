"""The OpenAI chat protocol, as servers speak it: request bodies, answers, what an error means, and the key."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from pipelines.errors import UserError
from pipelines.samplers.chat import ChatFormat
from pipelines.sampling import Completion, Request, SamplingConfig, encodable

KEY_VARIABLES = ("TRACEMILL_API_KEY", "OPENAI_API_KEY")
_RETRIED_STATUSES = frozenset({408, 409, 425, 429})  # and all of 500 and above
_STOP_REASONS = frozenset({"stop", "eos", "eos_token", "end_turn", "stop_sequence"})
_BROKEN_OFF = frozenset({"abort", "error", "insufficient_system_resource"})
"""Finish reasons of a server that gave up itself (vLLM and SGLang, vLLM, DeepSeek)."""
_DETAIL_CHARS = 2000
_LONGEST_ASKED_S = 600.0
"""A server that asks for a longer wait is asked again after this."""


class TransientError(Exception):
    """A failed attempt that another may mend; `wait_s` is the server's own word on when."""

    def __init__(self, reason: str, detail: str, wait_s: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.wait_s = wait_s

    @property
    def rate_limited(self) -> bool:
        """The server is well, and wants fewer requests."""
        return self.reason == "http_429" or (self.reason == "http_503" and self.wait_s is not None)


class RefusedError(Exception):
    """A request that this server will never answer."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class ChatWire:
    """The chat-completions protocol towards one model of a server."""

    def __init__(self, served_name: str, chat: ChatFormat | None = None) -> None:
        """With the model's own `chat` format, text is decoded here from the tokens, which vLLM sends."""
        self.served_name = served_name
        self._chat = chat
        self._vllm = chat is not None
        self._context: int | None = None

    def url(self, base: str) -> str:
        """Where requests are posted, given the base of the API."""
        return f"{base}/chat/completions"

    def note(self, entry: Mapping[str, Any]) -> None:
        """Learn from the server's list of models: whether it knows vLLM's fields, and its longest context."""
        self._vllm |= entry.get("owned_by") in ("vllm", "sglang")
        context = entry.get("max_model_len")
        self._context = context if isinstance(context, int) else None

    def body(self, request: Request, config: SamplingConfig, *, logprobs: bool) -> dict[str, Any]:
        """The body of the POST that asks for one completion.

        One each, never `n`: every rollout has a seed of its own, a server's limit on `n` does not matter, and a
        dropped connection costs one completion. To a server that knows vLLM's fields (SGLang does), all that
        shapes the distribution is spelled out, because what is left out is taken from the model's
        `generation_config.json`. It refuses to be asked for more tokens than its context.
        """
        most = config.max_tokens if self._context is None else min(config.max_tokens, self._context)
        body: dict[str, Any] = {
            "model": self.served_name,
            "messages": list(request.messages),
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_tokens": most,
            "seed": request.seed,
        }
        if self._vllm:
            body |= {"top_k": config.top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}
        elif config.top_k > 0:  # not in OpenAI's own protocol, so only where it is asked for
            body["top_k"] = config.top_k
        if config.reasoning_effort is not None:
            body["reasoning_effort"] = config.reasoning_effort
        if logprobs:
            body["logprobs"] = True
        return body

    def read(self, request_id: str, body: Mapping[str, Any], answer: Any) -> Completion:  # noqa: ARG002  # the prompt
        """The answer as a completion; see `read_completion`."""
        return read_completion(request_id, answer, self._chat)


def check_status(status: int, headers: Mapping[str, str], text: str, url: str) -> None:
    """Nothing for a 200; else the error that says what to do: try again, set aside, or (`UserError`) stop."""
    if status == 200:
        return
    detail = text[:_DETAIL_CHARS]
    if status == 401:
        raise UserError(f"{url} refuses the key (HTTP 401)", hint=f"set {' or '.join(KEY_VARIABLES)}")
    if status == 402 or (status == 429 and "insufficient_quota" in text):
        raise UserError(f"the account behind the key has no credit left at {url} (HTTP {status})", hint=_KEPT)
    if status in _RETRIED_STATUSES or status >= 500:
        raise TransientError(f"http_{status}", detail, retry_after_s(headers))
    raise RefusedError(f"http_{status}", detail)


_KEPT = "what is finished is kept: run the same command again when it is mended"


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that `Retry-After` asks for, as a number or a date, 600 at most; None for anything else.

    A date is compared with the answer's own `Date`, for clocks differ.
    """
    asked = headers.get("retry-after", "")
    try:
        seconds = float(asked)
    except ValueError:
        until, now = _moment(asked), _moment(headers.get("date", "")) or datetime.now(UTC)
        if until is None:
            return None
        seconds = (until - now).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_ASKED_S) if seconds == seconds else None


def _moment(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def read_completion(request_id: str, answer: Any, chat: ChatFormat | None) -> Completion:
    """The server's JSON answer as a completion.

    With the model's own `chat` format the text is decoded here from the tokens, as in-process samplers do.
    Otherwise the server's text is taken, and reasoning that it split off put back.
    Raises `TransientError` where it is no completion, `RefusedError` where the server filtered it.
    """
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        finish_reason = choice.get("finish_reason")
        # vLLM's name today, and the older one that SGLang and DeepSeek's API keep.
        reasoning = message.get("reasoning") or message.get("reasoning_content")
        content = message.get("content")
        usage = answer.get("usage") or {}
        chosen = (choice.get("logprobs") or {}).get("content") or []
        logprobs = tuple(float(token["logprob"]) for token in chosen)
        token_ids = tuple(int(token) for token in choice.get("token_ids") or ())
        prompt_ids = tuple(int(token) for token in answer.get("prompt_token_ids") or ())
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise TransientError("not_a_completion", f"{type(error).__name__}: {error}: {answer!r:.500}") from None
    check_finish(finish_reason)
    if not (content is None or isinstance(content, str)) or not (reasoning is None or isinstance(reasoning, str)):
        raise TransientError("not_a_completion", "content or reasoning is not text")
    if content is None and reasoning is None and not token_ids:
        raise TransientError("not_a_completion", "neither content nor reasoning")
    if chat is not None and not (token_ids and prompt_ids):
        raise TransientError("not_a_completion", "no token ids")
    return Completion(
        id=request_id,
        text=encodable(_joined(reasoning, content or "", finish_reason)) if chat is None else chat.text(token_ids),
        finish_reason="length" if finish_reason == "length" else "stop",
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        prompt_token_ids=prompt_ids,
        token_ids=token_ids,
        logprobs=logprobs,
        opens_reasoning=chat is not None and chat.opens_reasoning(prompt_ids),
    )


def check_finish(finish_reason: Any) -> None:
    """Nothing for an end that a model comes to; else the error that says what to do."""
    if not isinstance(finish_reason, str) or finish_reason in _BROKEN_OFF:
        raise TransientError("not_a_completion", f"finish_reason {finish_reason!r:.100}")
    if finish_reason in _STOP_REASONS or finish_reason == "length":
        return
    reason = f"finish_{finish_reason}"[:64]
    raise RefusedError(reason, f"the server ended the completion with {finish_reason!r}"[:_DETAIL_CHARS])


def _joined(reasoning: str | None, content: str, finish_reason: str) -> str:
    """The text as the model wrote it: reasoning that the server split off goes back into its tags."""
    if not reasoning:
        return content
    if finish_reason == "length" and not content:
        return f"<think>\n{reasoning}"  # cut within its reasoning: it never closed the tag
    return f"<think>\n{reasoning}\n</think>\n\n{content}"


def _count(usage: Any, key: str) -> int | None:
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value < 2**31 else None


def without_key(text: str, key: str | None) -> str:
    """`text` without the key, which some servers repeat in their complaints."""
    return text.replace(key, "***") if key else text


def checked_url(server_url: str) -> str:
    """`server_url` as the base of the API; a URL with a key or password in it is a `UserError`."""
    parts = urlsplit(server_url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError("the server URL holds credentials or a query", f"set {' or '.join(KEY_VARIABLES)} instead")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(f"`{server_url}` is not a server URL", hint="e.g., --server http://localhost:8000/v1")
    base = server_url.rstrip("/")
    return base if parts.path.strip("/") else f"{base}/v1"


def key_from_environment() -> str | None:
    """The API key; a value that no header can carry is a `UserError` that does not repeat it."""
    for name in KEY_VARIABLES:
        key = os.environ.get(name, "").strip()
        if key:
            if not (key.isascii() and key.isprintable() and " " not in key):
                raise UserError(f"{name} holds characters that no API key has", hint="set it again, without quotes")
            return key
    return None
