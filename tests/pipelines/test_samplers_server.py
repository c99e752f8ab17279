"""The server sampler against a real HTTP server that fails in every way: each request ends exactly once."""

import asyncio
import logging
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UserError
from pipelines.samplers import open_sampler
from pipelines.samplers.openai_chat import (
    RefusedError,
    TransientError,
    checked_url,
    read_completion,
    retry_after_s,
)
from pipelines.samplers.pacing import Gate, Outage
from pipelines.samplers.scripted import ScriptedSampler
from pipelines.samplers.server import ServerSampler
from pipelines.sampling import Completion, Refusal, Request, SamplingConfig
from tests.chat_server import FAULTS, TRANSIENT_FAULTS, ChatServer, chat_server

CONFIG = SamplingConfig(max_tokens=100)
SCRIPT = ScriptedSampler({}, default=["<think>hm</think>42"], model="m")


def requests(count: int) -> list[Request]:
    return [Request(f"r{index}", ({"role": "user", "content": f"question {index}"},), index) for index in range(count)]


@contextmanager
def faulty(
    faults: tuple[str, ...], rate: float = 1.0, script: ScriptedSampler = SCRIPT, **settings: Any
) -> Iterator[tuple[ServerSampler, ChatServer]]:
    """A sampler in a hurry, and the server that fails it."""
    hurry = {"backoff_s": 0.005, "timeout_s": 30.0, "patience_s": 0.3, "calm_s": 0.02, **settings}
    with chat_server(script, fault_rate=rate, faults=faults) as (url, state):
        sampler = ServerSampler("m", url, **hurry)
        try:
            yield sampler, state
        finally:
            state.released.set()
            sampler.close()


# --- every request ends once ----------------------------------------------------------------------


def test_every_request_ends_exactly_once_whatever_the_server_does() -> None:
    with faulty(FAULTS, 0.5, concurrency=32, retries=14, timeout_s=3.0, patience_s=60.0) as (sampler, state):
        results = list(sampler.sample(requests(400), CONFIG))
    assert Counter(result.id for result in results) == Counter(f"r{index}" for index in range(400))
    refusals = [result for result in results if isinstance(result, Refusal)]
    completions = [result for result in results if isinstance(result, Completion)]
    assert set(state.faults) == set(FAULTS)  # every kind happened
    # A 400 is never tried again, and is the only thing that so many retries do not mend.
    assert {refusal.reason for refusal in refusals} == {"http_400"}
    assert 5 < len(refusals) <= state.faults["bad_request"]  # the sampler's own probes may meet one
    assert all("I do not like this prompt" in refusal.detail for refusal in refusals)
    assert all(completion.text == "<think>hm</think>42" for completion in completions)
    assert {state.answered[seed] for seed in range(400)} <= {0, 1}  # nothing that was answered in full was asked again
    assert state.early_retries == 0
    assert state.most_open <= 32


@pytest.mark.parametrize("fault", [fault for fault in TRANSIENT_FAULTS if fault != "rate_limit"])
def test_a_request_that_fails_for_ever_is_refused_while_the_server_is_well(fault: str) -> None:
    """The server fails whatever is asked with a seed that four divides, and in the end nothing else is left."""
    with faulty((fault,), retries=2, concurrency=12, timeout_s=1.0 if fault == "hang" else 30.0) as (sampler, state):
        state.fault_only = lambda body: body["seed"] % 4 == 0
        results = {result.id: result for result in sampler.sample(requests(12), CONFIG)}
    refused = {name: result for name, result in results.items() if isinstance(result, Refusal)}
    assert set(refused) == {"r0", "r4", "r8"}
    assert all(result.detail.startswith("3 attempts, the last: ") for result in refused.values())
    assert len(results) == 12


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_what_the_server_will_never_answer_is_refused_at_once_with_its_reason(status: int) -> None:
    with faulty((f"http_{status}",)) as (sampler, state):
        results = list(sampler.sample(requests(5), CONFIG))
    assert [(result.id, result.reason) for result in results] == [
        (result.id, f"http_{status}") for result in results if isinstance(result, Refusal)
    ]
    assert sum(state.faults.values()) == len(results) == 5


def test_a_filtered_completion_is_refused() -> None:
    with faulty(("filtered",)) as (sampler, _):
        (result,) = sampler.sample(requests(1), CONFIG)
    assert isinstance(result, Refusal)
    assert result.reason == "finish_content_filter"


def test_requests_are_read_as_places_become_free() -> None:
    read = 0

    def endless() -> Iterator[Request]:
        nonlocal read
        for request in requests(10_000):
            read += 1
            yield request

    with faulty((), 0.0, concurrency=4) as (sampler, _):
        results = sampler.sample(endless(), CONFIG)
        for _ in range(10):
            next(results)
        assert read < 100
        results.close()  # type: ignore[attr-defined]


# --- when the server is at fault ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("hang", r"has answered nothing for \d+ s, the last attempt ended with timeout: no answer within 0.2 s"),
        ("error", r"has answered nothing for \d+ s, the last attempt ended with http_500: Traceback"),
        ("rate_limit", r"has answered nothing for \d+ s, the last attempt ended with http_429: slow down"),
        ("empty_body", r"has answered nothing for \d+ s, the last attempt ended with not_json"),
    ],
)
def test_a_server_that_answers_nobody_ends_the_run_and_nothing_is_refused(fault: str, message: str) -> None:
    timeout_s = 0.2 if fault == "hang" else 60.0
    with faulty((fault,), concurrency=8, retries=1, timeout_s=timeout_s) as (sampler, _):
        results = sampler.sample(requests(1000), CONFIG)
        with pytest.raises(UserError, match=message):
            list(results)


def test_a_server_that_comes_back_has_cost_no_request() -> None:
    """Down for longer than every retry takes, but not for longer than our patience."""
    with faulty(("error",), retries=1, concurrency=8, patience_s=30.0) as (sampler, state):
        state.fault_only = lambda _: state.faults["error"] < 4 * 8
        results = list(sampler.sample(requests(40), CONFIG))
    assert state.faults["error"] == 4 * 8
    assert sorted(result.id for result in results) == sorted(request.id for request in requests(40))
    assert [result for result in results if not isinstance(result, Completion)] == []


def test_an_absent_server_is_said_at_once() -> None:
    with chat_server(SCRIPT) as (url, _):
        pass  # gone again
    with pytest.raises(UserError, match="no answer from"):
        open_sampler("m", server_url=url)
    sampler = ServerSampler("m", url, backoff_s=0.005, patience_s=0.2)
    with pytest.raises(UserError, match="the last attempt ended with connection"):
        list(sampler.sample(requests(5), CONFIG))
    sampler.close()


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_refused_key_or_an_empty_account_ends_the_run_at_once(status: int) -> None:
    with faulty((f"http_{status}",), concurrency=4) as (sampler, state), pytest.raises(UserError) as caught:
        list(sampler.sample(requests(1000), CONFIG))
    assert f"HTTP {status}" in caught.value.message
    assert status == 402 or "TRACEMILL_API_KEY or OPENAI_API_KEY" in (caught.value.hint or "")
    assert sum(state.faults.values()) <= 8


def test_a_403_among_answers_is_the_prompt_s() -> None:
    with faulty(("http_403",), concurrency=1) as (sampler, state):
        state.fault_only = lambda body: body["seed"] % 2 == 1
        results = {result.id: result for result in sampler.sample(requests(6), CONFIG)}
    assert [isinstance(results[f"r{index}"], Refusal) for index in range(6)] == [False, True] * 3


def test_a_server_that_refuses_everything_is_not_asked_everything() -> None:
    with faulty(("http_400",), concurrency=16) as (sampler, state):
        results = []
        with pytest.raises(UserError, match=r"refused each of the first \d+ requests, the last with http_400"):
            results.extend(sampler.sample(requests(1000), CONFIG))
    assert sum(state.faults.values()) < 900


# --- pace -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["rate_limit", "rate_limit_until"])
def test_a_storm_of_rate_limits_is_sat_out_with_fewer_requests_at_once(fault: str) -> None:
    """The first twenty attempts are turned away; no retry is left over for them, and none is needed."""
    with faulty((fault,), concurrency=16, retries=0, patience_s=60.0, calm_s=60.0) as (sampler, state):
        state.fault_only = lambda _: state.faults.total() < 20
        results = list(sampler.sample(requests(48), CONFIG))
        assert sampler._gate.limit <= 8  # 16, halved
    assert [result for result in results if not isinstance(result, Completion)] == []
    assert len(results) == 48
    assert state.early_retries == 0


def test_the_gate_halves_once_for_a_burst_and_opens_again() -> None:
    async def story() -> list[int]:
        gate = Gate(8, calm_s=0.01)
        limits = []
        entered = [await gate.enter() for _ in range(8)]
        for each in entered:  # all eight are turned away
            gate.slow_down(each, 0.0)
            gate.leave()
        limits.append(gate.limit)
        entered = [await gate.enter() for _ in range(4)]
        waiting = asyncio.create_task(gate.enter())
        await asyncio.sleep(0)
        assert not waiting.done()  # a fifth waits
        gate.slow_down(entered[0], 0.0)
        gate.leave()
        limits.append(gate.limit)
        while gate.limit < 8:
            await asyncio.sleep(0.01)
        await waiting
        return [*limits, gate.limit]

    assert asyncio.run(story()) == [4, 2, 8]


def test_an_outage_is_told_from_requests_that_fail() -> None:
    outage = Outage()
    outage.open_requests = 4
    for number in range(3):
        outage.failed(f"r{number}", since=0.0, next_try=10.0)
    assert not outage.is_possible  # the fourth may be being served
    outage.failed("r3", since=5.0, next_try=20.0)
    assert outage.is_possible
    assert outage.seconds(now=99.0) == 99.0
    # Quiet for longer than retries wait: they were being served, and one failure is one failure.
    outage.failed("r0", since=500.0, next_try=501.0)
    assert not outage.is_possible
    outage.answered()
    for number in range(4):
        outage.failed(f"r{number}", since=600.0, next_try=601.0)
    assert outage.seconds(now=650.0) == 50.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "86400"}, 600.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
        ({"retry-after": formatdate(1e9 + 20, usegmt=True), "date": formatdate(1e9, usegmt=True)}, 20.0),
        ({"retry-after": formatdate(1e9 - 20, usegmt=True), "date": formatdate(1e9, usegmt=True)}, 0.0),
        ({"retry-after": formatdate(1e9, usegmt=True)}, 0.0),  # long ago
        ({"retry-after": "Mon, 99 Foo 2026 00:00:00 GMT"}, None),
    ],
)
def test_retry_after_is_a_number_or_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


# --- what is sent and what is read ----------------------------------------------------------------


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_that_the_server_splits_off_is_put_back(field: str) -> None:
    script = ScriptedSampler({"0": ["<think>hm</think>42"], "1": ["<think>so long a thought"]}, model="m")
    with chat_server(script, reasoning_field=field) as (url, _):
        sampler = ServerSampler("m", url)
        texts = {
            result.id: (result.text, result.finish_reason)
            for result in sampler.sample(requests(2), SamplingConfig(max_tokens=20))
            if isinstance(result, Completion)
        }
        sampler.close()
    assert texts == {
        "r0": ("<think>\nhm\n</think>\n\n42", "stop"),
        "r1": ("<think>\nso long a tho", "length"),  # cut within its reasoning: the tag stays open
    }


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["stop", "length"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
_KEYS = {
    "choices": ["message", "finish_reason", "logprobs", "token_ids"],
    "usage": ["prompt_tokens", "completion_tokens"],
}


@given(st.data())
def test_no_answer_however_odd_is_more_than_an_attempt_that_failed(data: st.DataObject) -> None:
    def some(keys: list[str]) -> dict[str, Any]:
        return {key: data.draw(_JSON) for key in keys}

    choice = some(_KEYS["choices"]) | {"finish_reason": data.draw(st.just("stop") | _JSON)}
    choice["message"] = data.draw(st.just(some(["reasoning", "reasoning_content", "content"])) | _JSON)
    answer = {"choices": data.draw(st.just([choice]) | _JSON), "usage": some(_KEYS["usage"])} | some(
        ["prompt_token_ids"]
    )
    try:
        result = read_completion("r", data.draw(st.just(answer) | _JSON), None)
    except (TransientError, RefusedError):
        return
    assert isinstance(result.text, str)
    assert result.finish_reason in ("stop", "length")
    assert result.completion_tokens is None or 0 <= result.completion_tokens < 2**31


def test_a_foreign_server_is_sent_openai_s_fields_alone_and_vllm_all_that_shapes_the_draw() -> None:
    sent: dict[str, dict[str, Any]] = {}
    for owner in ("openai", "vllm"):
        with chat_server(SCRIPT, owned_by=owner) as (url, state):
            state.listing["max_model_len"] = 64
            sampler = open_sampler("m", server_url=url)
            assert len(list(sampler.sample(requests(1), CONFIG))) == 1
            sampler.close()
            (sent[owner],) = state.bodies
    common = {
        "model": "m",
        "messages": [{"role": "user", "content": "question 0"}],
        "temperature": 0.6,
        "top_p": 0.95,
        "max_tokens": 64,  # a server refuses to be asked for more than its context
        "seed": 0,
    }
    assert sent["openai"] == common
    # What is left out, vLLM takes from the model's generation_config.json.
    extra = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}
    assert sent["vllm"] == common | extra


def test_top_k_and_effort_are_sent_where_asked_for() -> None:
    config = SamplingConfig(top_k=20, max_tokens=9, reasoning_effort="high")
    with faulty((), 0.0) as (sampler, state):
        list(sampler.sample(requests(1), config, logprobs=True))
    (body,) = state.bodies
    assert (body["top_k"], body["reasoning_effort"], body["logprobs"]) == (20, "high", True)
    assert "reasoning_effort" not in CONFIG.resolved()  # ids of before stay


def test_a_model_that_the_server_does_not_serve_is_named() -> None:
    with chat_server(ScriptedSampler({}, model="served")) as (url, _):
        with pytest.raises(UserError, match="does not serve `other`") as caught:
            open_sampler("hf:other", server_url=url)
        sampler = open_sampler("hf:served", server_url=url)
        sampler.close()
    assert caught.value.hint == "it serves served"
    assert sampler.model == "served"


# --- keys -----------------------------------------------------------------------------------------


def test_the_key_comes_from_the_environment_and_only_goes_into_the_header(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even a server that repeats it, and logs at their most talkative, bring it out."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    caplog.set_level(logging.DEBUG)
    said = []
    for fault in ("http_400", "http_401", "http_403", "error", "drop"):
        with faulty((fault,), retries=1) as (sampler, state):
            try:
                said.append(repr(list(sampler.sample(requests(4), CONFIG))))
            except UserError as error:
                said += [*traceback.format_exception(error), str(error.hint)]
            said += [repr(sampler), repr(vars(sampler))]
        assert state.authorization == {"Bearer sk-secret"}
    assert "no, Bearer ***, I do not like this prompt" in said[0]
    assert "sk-secret" not in "".join(said) + caplog.text + "".join(capsys.readouterr())


def test_a_key_that_no_header_can_carry_is_refused_without_repeating_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEMILL_API_KEY", "sk-“secret”")
    with pytest.raises(UserError, match="TRACEMILL_API_KEY holds characters that no API key has") as caught:
        ServerSampler("m", "http://localhost:1")
    assert "secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("url", ["localhost:8000", "http://me:sk-1@host/v1", "http://host/v1?key=sk-1"])
def test_a_url_that_is_none_or_holds_a_key_is_refused_without_repeating_the_key(url: str) -> None:
    with pytest.raises(UserError) as caught:
        checked_url(url)
    assert "sk-1" not in caught.value.message


def test_a_bare_host_gets_the_usual_path() -> None:
    assert checked_url("http://host:8000") == "http://host:8000/v1"
    assert checked_url("http://host/api/v2/") == "http://host/api/v2"
