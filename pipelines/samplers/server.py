"""The server sampler: any OpenAI-compatible chat-completions server."""

import asyncio
import os
import queue
import random
import threading
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx

from pipelines.errors import UserError
from pipelines.sampling import Completion, Refusal, Request, SamplingConfig

_KEY_VARIABLES = ("TRACEMILL_API_KEY", "OPENAI_API_KEY")
_RETRIED_STATUSES = frozenset({408, 409, 425, 429})  # and all of 500 and above
_STOP_REASONS = frozenset({"stop", "eos", "eos_token", "end_turn", "stop_sequence"})
_DETAIL_CHARS = 2000
_LONGEST_WAIT_S = 60.0


class _TransientError(Exception):
    """A failed attempt that another may mend; `wait_s` is the server's own word on when."""

    def __init__(self, reason: str, detail: str, wait_s: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.wait_s = wait_s


class ServerSampler:
    """Samples from `vllm serve`, SGLang, or a commercial API.

    Rate limits (429, after the server's `Retry-After`), server errors, timeouts, dropped connections and
    answers that are not what the protocol says are tried again up to `retries` times; other 4xx answers
    are refusals with the server's reason. A request that never succeeds is a refusal too: nothing here
    ends a run. The key comes from TRACEMILL_API_KEY or OPENAI_API_KEY and goes nowhere but the header.
    """

    def __init__(
        self,
        model: str,
        server_url: str,
        *,
        served_name: str | None = None,
        concurrency: int = 256,
        retries: int = 8,
        backoff_s: float = 0.5,
        timeout_s: float = 3600.0,
    ) -> None:
        """A sampler of the model that `server_url` serves as `served_name` (default `model`).

        `concurrency` requests are open at once; `timeout_s` is for one attempt, long traces included.
        """
        self.model = model
        self._served_name = served_name or model
        self._url = checked_url(server_url)
        self._concurrency = concurrency
        self._retries = retries
        self._backoff_s = backoff_s
        self._timeout = httpx.Timeout(timeout_s, connect=min(30.0, timeout_s), pool=None)
        self._jitter = random.Random(0)  # noqa: S311  # spreads retries, nothing secret
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="server-sampler", daemon=True)
        self._thread.start()
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self._client = httpx.AsyncClient(headers=_headers(), timeout=self._timeout, limits=limits)

    def sample(
        self, requests: Iterable[Request], config: SamplingConfig, *, logprobs: bool = False
    ) -> Iterator[Completion | Refusal]:
        """Completions as they finish; requests are read as places become free."""
        results: queue.SimpleQueue[Completion | Refusal | BaseException] = queue.SimpleQueue()
        tasks: set[asyncio.Task[None]] = set()

        async def answer(request: Request) -> None:
            try:
                results.put(await self._answer(request, config, logprobs))
            except Exception as error:  # our bug: raised again in the caller's thread
                results.put(error)

        def start(request: Request) -> None:
            task = self._loop.create_task(answer(request))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        open_requests = 0
        try:
            for request in requests:
                while open_requests >= self._concurrency or not results.empty():
                    open_requests -= 1
                    yield _raised(results.get())
                self._loop.call_soon_threadsafe(start, request)
                open_requests += 1
            for _ in range(open_requests):
                yield _raised(results.get())
        finally:  # the consumer may leave early
            self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])

    def close(self) -> None:
        """Close the connections and the thread."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def served_models(self) -> list[str] | None:
        """Names the server lists, None where it does not say; a server that cannot be reached is a `UserError`."""
        try:
            response = asyncio.run_coroutine_threadsafe(self._client.get(f"{self._url}/models"), self._loop).result()
        except httpx.HTTPError as error:
            raise UserError(
                f"no answer from {self._url}: {error or type(error).__name__}", "is the server up?"
            ) from None
        if response.status_code in (401, 403):
            raise UserError(
                f"{self._url} refuses the key (HTTP {response.status_code})", f"set {' or '.join(_KEY_VARIABLES)}"
            )
        try:
            return [str(entry["id"]) for entry in response.json()["data"]]
        except (ValueError, KeyError, TypeError):
            return None

    async def _shut(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    async def _answer(self, request: Request, config: SamplingConfig, logprobs: bool) -> Completion | Refusal:
        """The request's one result, after as many attempts as it takes or is worth."""
        body = self._body(request, config, logprobs)
        for attempt in range(self._retries + 1):
            try:
                return _completion(request.id, await self._attempt(body))
            except _TransientError as failure:
                last = failure
            except _RefusedError as refused:
                return Refusal(request.id, refused.reason, refused.detail)
            if attempt < self._retries:
                await asyncio.sleep(self._wait_s(attempt, last.wait_s))
        return Refusal(request.id, last.reason, f"{self._retries + 1} attempts, the last: {last.detail}")

    def _body(self, request: Request, config: SamplingConfig, logprobs: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._served_name,
            "messages": list(request.messages),
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_tokens": config.max_tokens,
            "seed": request.seed,
        }
        if config.top_k > 0:  # not in OpenAI's own protocol
            body["top_k"] = config.top_k
        if logprobs:
            # vLLM gives the token ids too; servers that do not know the field ignore or refuse it.
            body |= {"logprobs": True, "return_token_ids": True}
        return body

    async def _attempt(self, body: dict[str, Any]) -> dict[str, Any]:
        """The server's JSON answer to one POST."""
        try:
            response = await self._client.post(f"{self._url}/chat/completions", json=body)
        except httpx.TimeoutException as error:
            raise _TransientError("timeout", type(error).__name__) from None
        except httpx.TransportError as error:
            raise _TransientError("connection", f"{type(error).__name__}: {error}") from None
        status = response.status_code
        if status in _RETRIED_STATUSES or status >= 500:
            wait_s = _retry_after_s(response.headers.get("retry-after"))
            raise _TransientError(f"http_{status}", response.text[:_DETAIL_CHARS], wait_s)
        if status != 200:
            raise _RefusedError(f"http_{status}", response.text[:_DETAIL_CHARS])
        try:
            answer = response.json()
        except ValueError:
            raise _TransientError("not_json", response.text[:_DETAIL_CHARS]) from None
        if not isinstance(answer, dict):
            raise _TransientError("not_a_completion", response.text[:_DETAIL_CHARS])
        return answer

    def _wait_s(self, attempt: int, asked_s: float | None) -> float:
        """Seconds before the next attempt: exponential with jitter, and never less than the server asked."""
        backoff = min(_LONGEST_WAIT_S, self._backoff_s * 2.0**attempt) * self._jitter.uniform(0.5, 1.5)
        if asked_s is None:
            return backoff
        return asked_s + self._jitter.uniform(0.0, self._backoff_s)


class _RefusedError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def checked_url(server_url: str) -> str:
    """`server_url` as the base of the API; a URL with a key or password in it is a `UserError`."""
    parts = urlsplit(server_url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(f"`{server_url}` is not a server URL", hint="e.g., --server http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise UserError("the server URL holds credentials or a query", f"set {' or '.join(_KEY_VARIABLES)} instead")
    base = server_url.rstrip("/")
    return base if parts.path.strip("/") else f"{base}/v1"


def _headers() -> dict[str, str]:
    key = next((os.environ[name] for name in _KEY_VARIABLES if os.environ.get(name)), None)
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def _retry_after_s(header: str | None) -> float | None:
    """Seconds that `Retry-After` asks for; its date form, and anything odd, is left to the backoff."""
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return seconds if 0.0 <= seconds < 3600.0 else None


def _raised(result: Completion | Refusal | BaseException) -> Completion | Refusal:
    if isinstance(result, BaseException):
        raise result
    return result


def _completion(request_id: str, answer: dict[str, Any]) -> Completion:
    """The server's answer as a completion; raises `_TransientError` where it is none, `_RefusedError` if filtered."""
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
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise _TransientError("not_a_completion", f"{type(error).__name__}: {error}") from None
    if finish_reason not in _STOP_REASONS and finish_reason != "length":
        if finish_reason is None:
            raise _TransientError("not_a_completion", "no finish_reason")
        raise _RefusedError(f"finish_{finish_reason}"[:64], f"the server ended the completion with {finish_reason!r}")
    if not (content is None or isinstance(content, str)) or not (reasoning is None or isinstance(reasoning, str)):
        raise _TransientError("not_a_completion", "content or reasoning is not text")
    if content is None and reasoning is None:
        raise _TransientError("not_a_completion", "neither content nor reasoning")
    return Completion(
        id=request_id,
        text=_joined(reasoning, content or "", finish_reason),
        finish_reason="length" if finish_reason == "length" else "stop",
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        prompt_token_ids=prompt_ids,
        token_ids=token_ids,
        logprobs=logprobs,
    )


def _joined(reasoning: str | None, content: str, finish_reason: str) -> str:
    """The text as the model wrote it: reasoning that the server split off goes back into its tags."""
    if not reasoning:
        return content
    if finish_reason == "length" and not content:
        return f"<think>\n{reasoning}"  # cut within its reasoning: it never closed the tag
    return f"<think>\n{reasoning}\n</think>\n\n{content}"


def _count(usage: Any, key: str) -> int | None:
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else None
