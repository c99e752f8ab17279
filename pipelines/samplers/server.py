"""The server sampler: any OpenAI-compatible chat-completions server, whether it is well or not."""

import asyncio
import json
import math
import queue
import random
import threading
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any

import httpx

from pipelines.errors import UserError
from pipelines.samplers.openai_chat import (
    KEY_VARIABLES,
    ChatWire,
    RefusedError,
    TransientError,
    check_status,
    without_key,
)
from pipelines.samplers.pacing import Gate, Outage
from pipelines.samplers.protocols import RemoteServer, Server, Wire
from pipelines.sampling import Completion, Refusal, Request, SamplingConfig

_LONGEST_WAIT_S = 60.0
_MOST_RATE_LIMITS = 50
"""Being told to come back later is no failure; so often, it is."""
_RATE_LIMIT_PATIENCE = 6.0
"""A server that says when to come back is waited for so many times longer."""
_PROBE = Request("probe", ({"role": "user", "content": "Hi"},), seed=2**31 - 1)
_PROBE_TIMEOUT_S = 60.0
_HOPELESS = 256
"""If every one of the first requests is refused, the rest are not asked."""
_FORBIDDEN = 8
"""After a completion, a 403 is a prompt that was not liked; so many in a row are the key."""
_SLOWEST_TOKENS_S = 8.0

_VARIABLES = " or ".join(KEY_VARIABLES)
_KEPT = "what is finished is kept; see to the server, then run the same command again"


class ServerSampler:
    """Samples from `vllm serve`, SGLang, or a commercial API.

    - Rate limits (429, after the server's `Retry-After`, with fewer requests at once for a while), server
      errors, timeouts, dropped connections and answers that are not what the protocol says are tried again,
      up to `retries` times.
    - Other 4xx answers are refusals with the server's reason, and so is a request that never succeeds
      while others, or a probe of one token, do.
    - A refused key, an empty account, or a server that has answered nobody for `patience_s`, nor the probe,
      ends the run with a `UserError`: what is unanswered then was not the prompts' fault, and is not refused.

    The key comes from TRACEMILL_API_KEY or OPENAI_API_KEY and goes nowhere but the header.
    """

    def __init__(
        self,
        model: str,
        server: str | Server,
        *,
        wire: Wire | None = None,
        concurrency: int = 256,
        retries: int = 8,
        backoff_s: float = 0.5,
        timeout_s: float | None = None,
        patience_s: float = 600.0,
        calm_s: float = 5.0,
    ) -> None:
        """A sampler of what `server` (a URL, or one of ours) serves, by default over the chat protocol as `model`.

        `concurrency` requests are open at once. `timeout_s` is for one attempt from its sending to the last
        byte; None allows ten minutes and a token in an eighth of a second. After a rate limit, more requests
        at once are tried every `calm_s`.
        """
        self.model = model
        self._wire = wire or ChatWire(model)
        self._server = RemoteServer.at(server) if isinstance(server, str) else server
        self._concurrency = concurrency
        self._retries = retries
        self._backoff_s = backoff_s
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._forbidden = self._answers_then = 0
        self._jitter = random.Random(0)  # noqa: S311  # spreads retries, nothing secret
        self._gate = Gate(concurrency, calm_s=calm_s)
        self._probing = asyncio.Lock()
        self._probed = (-math.inf, False)
        self._restarting = asyncio.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="server-sampler", daemon=True)
        self._thread.start()
        key = self._server.key
        self._client = httpx.AsyncClient(
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(None, connect=30.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=concurrency),
            trust_env=not self._server.is_ours,
        )

    def sample(
        self, requests: Iterable[Request | None], config: SamplingConfig, *, logprobs: bool = False
    ) -> Iterator[Completion | Refusal]:
        """Completions as they finish; requests are read as places become free."""
        results: queue.SimpleQueue[Completion | Refusal | BaseException] = queue.SimpleQueue()
        tasks: set[asyncio.Task[None]] = set()
        outage = Outage()
        open_ids: dict[str, int] = {}  # id -> how many were sent before it; in the order of sending

        async def answer(request: Request) -> None:
            try:
                result = await self._answer(request, config, logprobs, outage)
            except Exception as error:  # an end of the run, or our bug: raised again in the caller's thread
                results.put(error)
            else:
                results.put(result)
            finally:
                outage.open_requests -= 1

        def start(request: Request) -> None:
            outage.open_requests += 1
            task = self._loop.create_task(answer(request))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        def finished() -> Completion | Refusal:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            del open_ids[result.id]
            if isinstance(result, Refusal) and not outage.answers:
                first_open = next(iter(open_ids.values()), sent)
                self._check_hope(first_open, result)
            return result

        sent = 0
        try:
            for request in requests:
                assert request is not None or open_ids, "nothing to send and nothing to wait for"
                while open_ids and (request is None or len(open_ids) >= self._concurrency or not results.empty()):
                    yield finished()
                    if request is None:
                        break
                if request is not None:
                    open_ids[request.id] = sent
                    sent += 1
                    self._loop.call_soon_threadsafe(start, request)
            while open_ids:
                yield finished()
        finally:  # the consumer may leave early
            self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])

    def close(self) -> None:
        """Close the connections and the thread, and end the server if it is ours."""
        if self._loop.is_closed():
            return
        self._wait(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._server.close()

    def served_models(self) -> list[str] | None:
        """Names the server lists, None where it does not say; a server that cannot be reached is a `UserError`.

        The wire notes what the list says of the model.
        """
        try:
            response = self._wait(self._client.get(f"{self._server.url}/models", timeout=30.0))
        except httpx.HTTPError as error:
            raise UserError(
                f"no answer from {self._server.url}: {error or type(error).__name__}", hint="is the server up?"
            ) from None
        if response.status_code in (401, 403):
            raise UserError(
                f"{self._server.url} refuses the key (HTTP {response.status_code})", hint=f"set {_VARIABLES}"
            )
        try:
            entries = {str(entry["id"]): entry for entry in response.json()["data"]}
        except (ValueError, KeyError, TypeError):
            return None
        self._wire.note(entries.get(self._wire.served_name, {}))
        return list(entries)

    def check_model(self) -> None:
        """A `UserError`, and this sampler closed, where the server cannot be reached or does not serve the model."""
        try:
            listed = self.served_models()
            if listed is not None and self._wire.served_name not in listed:
                raise UserError(
                    f"{self._server.url} does not serve `{self._wire.served_name}`",
                    hint=f"it serves {', '.join(listed) or 'nothing'}",
                )
        except UserError:
            self.close()
            raise

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _shut(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    async def _answer(
        self, request: Request, config: SamplingConfig, logprobs: bool, outage: Outage
    ) -> Completion | Refusal:
        """The request's one result, after as many attempts as it takes or is worth."""
        body = self._wire.body(request, config, logprobs=logprobs)
        if isinstance(body, Refusal):
            return body
        deadline_s = self._deadline_s(config)
        attempts = failures = rate_limits = answers = 0
        while True:
            entered = await self._gate.enter()
            try:
                completion = self._wire.read(request.id, body, await self._attempt(body, deadline_s))
            except TransientError as error:
                failure = error
            except RefusedError as refused:
                self._check_forbidden(refused, outage)
                return Refusal(request.id, refused.reason, refused.detail)
            else:
                outage.answered()
                return completion
            finally:
                self._gate.leave()
            now = self._loop.time()
            attempts += 1
            if failure.rate_limited:
                rate_limits += 1
                self._gate.slow_down(entered, failure.wait_s or self._backoff_s)
            else:
                failures += 1
            wait_s = self._wait_s(attempts, failure.wait_s)
            outage.failed(request.id, entered if failure.reason == "timeout" else now, now + wait_s)
            others_answered, answers = outage.answers > answers, outage.answers
            exhausted = failures > self._retries or rate_limits > _MOST_RATE_LIMITS
            in_doubt = not others_answered and (exhausted or outage.is_possible)
            if in_doubt and failure.rate_limited and not exhausted:  # the server is up, and says so
                self._check_patience(outage, failure)
            elif in_doubt and not await self._is_well(config):
                failures = rate_limits = 0  # which were no fault of the request
                self._check_patience(outage, failure)
            elif exhausted:
                outage.refused(request.id)
                return Refusal(request.id, failure.reason, f"{attempts} attempts, the last: {failure.detail}")
            await asyncio.sleep(wait_s)

    async def _is_well(self, config: SamplingConfig) -> bool:
        """Whether the server answers one token to a harmless question; known for a while, asked by one at a time."""
        async with self._probing:
            at, was_well = self._probed
            if self._loop.time() - at < 10 * self._backoff_s:
                return was_well
            short = config.model_copy(update={"max_tokens": 1})
            body = self._wire.body(_PROBE, short, logprobs=False)
            assert isinstance(body, dict), "so short a prompt fits"
            await self._gate.enter()
            try:
                await self._attempt(body, min(_PROBE_TIMEOUT_S, self._deadline_s(short)))
                is_well = True
            except TransientError:
                is_well = False
            except RefusedError:  # alive enough to complain
                is_well = True
            finally:
                self._gate.leave()
            self._probed = (self._loop.time(), is_well)
            return is_well

    def _deadline_s(self, config: SamplingConfig) -> float:
        return self._timeout_s or 600.0 + config.max_tokens / _SLOWEST_TOKENS_S

    async def _attempt(self, body: dict[str, Any], deadline_s: float) -> Any:
        """The server's JSON answer to one POST."""
        url = await self._address()
        try:
            async with asyncio.timeout(deadline_s):
                response = await self._client.post(self._wire.url(url), json=body)
        except (TimeoutError, httpx.TimeoutException):
            raise TransientError("timeout", f"no answer within {deadline_s:g} s") from None
        except httpx.RequestError as error:  # a body that does not decompress, too
            said = without_key(f"{type(error).__name__}: {error}", self._server.key)
            raise TransientError("connection", said) from None
        text = without_key(response.content.decode(errors="replace"), self._server.key)
        check_status(response.status_code, response.headers, text, url)
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise TransientError("not_json", text[:500]) from None

    async def _address(self) -> str:
        """The server's URL, once it is up."""
        if not self._server.is_up:
            async with self._restarting:
                if not self._server.is_up:
                    await asyncio.to_thread(self._server.restart)
        return self._server.url

    def _wait_s(self, attempt: int, asked_s: float | None) -> float:
        """Seconds before the next attempt: exponential with jitter, and never less than the server asked."""
        if asked_s is not None:
            return asked_s + self._jitter.uniform(0.0, self._backoff_s)
        return min(_LONGEST_WAIT_S, self._backoff_s * 2.0 ** min(attempt - 1, 20)) * self._jitter.uniform(0.5, 1.5)

    def _check_forbidden(self, refused: RefusedError, outage: Outage) -> None:
        """A 403 is about the key until something was answered, then about the prompt, unless nothing else comes."""
        if refused.reason != "http_403":
            return
        self._forbidden = self._forbidden + 1 if outage.answers == self._answers_then else 1
        self._answers_then = outage.answers
        if not outage.answers or self._forbidden > _FORBIDDEN:
            raise UserError(f"{self._server.url} refuses the key (HTTP 403)", hint=f"set {_VARIABLES}")

    def _check_hope(self, first_open: int, refusal: Refusal) -> None:
        if first_open >= _HOPELESS:
            raise UserError(
                f"{self._server.url} refused each of the first {first_open} requests, the last with "
                f"{refusal.reason}: {refusal.detail[:300]}",
                hint="mend the settings, then run the same command with --retry-failed",
            )

    def _check_patience(self, outage: Outage, failure: TransientError) -> None:
        """A server that has answered nobody for too long is a `UserError`."""
        seconds = outage.seconds(self._loop.time())
        if outage.is_possible and seconds >= self._patience_s * (_RATE_LIMIT_PATIENCE if failure.rate_limited else 1.0):
            last = f"{failure.reason}: {failure.detail[:300]}"
            raise UserError(
                f"{self._server.url} has answered nothing for {seconds:.0f} s, the last attempt ended with {last}",
                hint=_KEPT,
            )
