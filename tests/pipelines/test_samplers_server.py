"""The server sampler against a real HTTP server that fails in every way: each request ends exactly once."""

from collections import Counter

import pytest

from pipelines.errors import UserError
from pipelines.samplers import open_sampler
from pipelines.samplers.scripted import ScriptedSampler
from pipelines.samplers.server import ServerSampler, checked_url
from pipelines.sampling import Completion, Refusal, Request, SamplingConfig
from tests.chat_server import FAULTS, chat_server

CONFIG = SamplingConfig(max_tokens=100)


def requests(count: int) -> list[Request]:
    return [Request(f"r{index}", ({"role": "user", "content": f"question {index}"},), index) for index in range(count)]


def test_every_request_ends_exactly_once_whatever_the_server_does() -> None:
    script = ScriptedSampler({}, default=["<think>hm</think>42"], model="m")
    with chat_server(script, fault_rate=0.5) as (url, state):
        sampler = ServerSampler("m", url, concurrency=16, retries=12, backoff_s=0.01, timeout_s=3.0)
        results = list(sampler.sample(requests(150), CONFIG))
        sampler.close()
    assert Counter(result.id for result in results) == Counter(f"r{index}" for index in range(150))
    refusals = [result for result in results if isinstance(result, Refusal)]
    completions = [result for result in results if isinstance(result, Completion)]
    assert set(state.faults) == set(FAULTS)  # every kind happened
    # A 400 is never tried again, and is the only thing that twelve retries do not mend.
    assert {refusal.reason for refusal in refusals} == {"http_400"}
    assert len(refusals) == state.faults["bad_request"]
    assert all("I do not like this prompt" in refusal.detail for refusal in refusals)
    assert all(completion.text == "<think>hm</think>42" for completion in completions)
    assert set(state.answered.values()) == {1}  # nothing that was answered in full was asked again
    assert state.early_retries == 0
    assert state.most_open <= 16


def test_a_request_that_never_succeeds_is_a_refusal_with_the_last_error() -> None:
    with chat_server(ScriptedSampler({}, model="m"), fault_rate=1.0, seed=3) as (url, _):
        sampler = ServerSampler("m", url, retries=2, backoff_s=0.001, timeout_s=0.3)
        results = list(sampler.sample(requests(6), CONFIG))
        sampler.close()
    assert sorted(result.id for result in results) == [f"r{index}" for index in range(6)]
    assert all(isinstance(result, Refusal) for result in results)


def test_an_absent_server_is_said_at_once_and_is_no_exception_in_a_run() -> None:
    with chat_server(ScriptedSampler({}, model="m")) as (url, _):
        pass  # gone again
    with pytest.raises(UserError, match="no answer from"):
        open_sampler("m", server_url=url)
    sampler = ServerSampler("m", url, retries=1, backoff_s=0.001)
    (result,) = sampler.sample(requests(1), CONFIG)
    sampler.close()
    assert isinstance(result, Refusal)
    assert result.reason == "connection"


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


def test_requests_are_read_as_places_become_free() -> None:
    read = 0

    def endless() -> object:
        nonlocal read
        for request in requests(10_000):
            read += 1
            yield request

    with chat_server(ScriptedSampler({}, default=["x"], model="m")) as (url, _):
        sampler = ServerSampler("m", url, concurrency=4)
        results = sampler.sample(endless(), CONFIG)  # type: ignore[arg-type]
        for _ in range(10):
            next(results)
        assert read < 100
        results.close()  # type: ignore[attr-defined]
        sampler.close()


def test_the_key_comes_from_the_environment_and_only_goes_into_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with chat_server(ScriptedSampler({}, model="m"), fault_rate=1.0) as (url, state):
        sampler = ServerSampler("m", url, retries=0)
        (result,) = sampler.sample(requests(1), CONFIG)
        sampler.close()
    assert state.authorization == {"Bearer sk-secret"}
    assert "sk-secret" not in repr(result)


@pytest.mark.parametrize("url", ["localhost:8000", "http://me:sk-1@host/v1", "http://host/v1?key=sk-1"])
def test_a_url_that_is_none_or_holds_a_key_is_refused_without_repeating_the_key(url: str) -> None:
    with pytest.raises(UserError) as caught:
        checked_url(url)
    assert "sk-1" not in caught.value.message


def test_a_bare_host_gets_the_usual_path() -> None:
    assert checked_url("http://host:8000") == "http://host:8000/v1"
    assert checked_url("http://host/api/v2/") == "http://host/api/v2"


def test_a_model_that_the_server_does_not_serve_is_named() -> None:
    with chat_server(ScriptedSampler({}, model="served")) as (url, _):
        with pytest.raises(UserError, match="does not serve `other`") as caught:
            open_sampler("hf:other", server_url=url)
        sampler = open_sampler("hf:served", server_url=url)
        sampler.close()
    assert caught.value.hint == "it serves served"
    assert sampler.model == "served"
