"""One conformance test for all samplers, and what is vLLM's alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from pipelines.samplers.chat import ChatFormat, load_chat_format
from pipelines.samplers.scripted import ScriptedSampler
from pipelines.samplers.server import ServerSampler
from pipelines.samplers.transformers import TransformersSampler
from pipelines.samplers.vllm import VllmSampler
from pipelines.sampling import Completion, Refusal, Request, Sampler, SamplingConfig
from tests.chat_server import chat_server
from tests.tiny_models import tiny_model

# vLLM and what it imports warn about themselves.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::Warning")]

ENGINES = ("scripted", "transformers", "server", "vllm")
CONFIG = SamplingConfig(temperature=1.0, top_p=1.0, max_tokens=48)
QUESTIONS = ("2+2", "a longer question, é")
NUM_SAMPLES = 8


@dataclass
class Engines:
    """One sampler of each kind; the last three of the same tiny model."""

    source: Path
    chat: ChatFormat
    samplers: dict[str, Any]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """The model writes its own BOS in the template, and its reasoning tags are special tokens."""
    source = tiny_model(tmp_path_factory.mktemp("model"), bos=True, special_tags=True, opens_reasoning=True)
    local = TransformersSampler.open("tiny", str(source))
    with chat_server(local) as (url, _), _vllm(source) as vllm:
        server = ServerSampler("tiny", url, concurrency=4)
        scripted = ScriptedSampler({"2+2": ["<think>hm</think>4", "<think>" * 30]}, default=["é", "ab" * 40])
        samplers = {"scripted": scripted, "transformers": local, "server": server, "vllm": vllm}
        yield Engines(source, load_chat_format(str(source)), samplers)
        server.close()


@contextmanager
def _vllm(source: Path) -> Iterator[VllmSampler]:
    sampler = VllmSampler("tiny", str(source), max_model_len=512, max_rows=16)
    yield sampler
    sampler.close()


def requests() -> list[Request]:
    return [
        Request(f"{question}/{index}", ({"role": "user", "content": question},), seed=1000 + 31 * index)
        for question in QUESTIONS
        for index in range(NUM_SAMPLES)
    ]


def completions(sampler: Sampler, logprobs: bool = False) -> dict[str, Completion]:
    results = list(sampler.sample(iter(requests()), CONFIG, logprobs=logprobs))
    assert all(isinstance(result, Completion) for result in results)
    assert len({result.id for result in results}) == len(results)
    return {result.id: result for result in results if isinstance(result, Completion)}


@pytest.mark.parametrize("engine", ENGINES)
def test_conformance(engines: Engines, engine: str) -> None:
    sampler = engines.samplers[engine]
    results = completions(sampler, logprobs=True)
    assert set(results) == {request.id for request in requests()}  # n samples, each under its id
    assert completions(sampler, logprobs=True) == results  # seeds are honoured
    for question in QUESTIONS:
        assert len({results[f"{question}/{index}"].text for index in range(NUM_SAMPLES)}) > 1  # and tell samples apart
    stop_ids = {256} if engine == "scripted" else engines.chat.stop_ids
    for result in results.values():
        assert result.completion_tokens == len(result.token_ids) == len(result.logprobs)
        assert result.prompt_tokens == len(result.prompt_token_ids) > 0
        assert all(logprob <= 0 for logprob in result.logprobs)
        stopped = result.token_ids[-1] in stop_ids
        assert not stop_ids & set(result.token_ids[:-1])  # nothing is generated after the turn's end
        assert result.finish_reason == ("stop" if stopped else "length")
        assert stopped or result.completion_tokens == CONFIG.max_tokens
        assert "<|end|>" not in result.text
    assert {result.finish_reason for result in results.values()} == {"stop", "length"}
    assert any("<think>" in result.text or "</think>" in result.text for result in results.values())  # tags survive
    assert all(not result.logprobs for result in completions(sampler).values())  # only when asked


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_the_template_is_applied_once_with_one_bos(engines: Engines, engine: str) -> None:
    result = completions(engines.samplers[engine], logprobs=True)["2+2/0"]
    prompt = engines.chat.tokenizer.decode(result.prompt_token_ids)
    assert prompt == "<|bos|><|user|>2+2<|end|><|assistant|><think>\n"
    # A server does not say what its template opens; `curate generate` knows it from the teacher's entry.
    assert result.opens_reasoning == (engine != "server")


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_logprobs_are_those_of_the_distribution_drawn_from(engines: Engines, engine: str) -> None:
    """At temperature 0.7, uncut: log_softmax(logits / 0.7). Cut to two tokens: those two share the mass."""
    sampler = engines.samplers[engine]
    module = AutoModelForCausalLM.from_pretrained(engines.source)
    for config in (SamplingConfig(temperature=0.7, top_p=1.0, max_tokens=30), SamplingConfig(top_k=2, max_tokens=30)):
        for result in sampler.sample(requests(), config, logprobs=True):
            expected = _logprobs(module, result, config)
            assert_close(torch.tensor(result.logprobs), expected, atol=1e-4, rtol=0)


def test_vllm_serves_new_weights_and_forgets_what_the_old_ones_cached(engines: Engines, tmp_path: Path) -> None:
    """The head is tied: vLLM's CPU back end keeps a packed copy of it that reloading alone leaves stale."""
    vllm = engines.samplers["vllm"]
    old, new = (
        AutoModelForCausalLM.from_pretrained(source)
        for source in (engines.source, tiny_model(tmp_path, bos=True, special_tags=True, opens_reasoning=True, seed=1))
    )
    try:
        for module, other in ((new, old), (old, new)):
            named = {name: tensor for name, tensor in module.state_dict().items() if name != "lm_head.weight"}
            vllm.update_weights(named.items())
            deltas, other_deltas = [], []
            for result in completions(vllm, logprobs=True).values():
                got = torch.tensor(result.logprobs)
                deltas.append((got - _logprobs(module, result, CONFIG)).abs().mean())
                other_deltas.append((got - _logprobs(other, result, CONFIG)).abs().mean())
            assert float(torch.stack(deltas).mean()) < 1e-3
            assert float(torch.stack(other_deltas).mean()) > 0.1
    finally:
        vllm.update_weights((name, tensor) for name, tensor in old.state_dict().items() if name != "lm_head.weight")


def test_vllm_refuses_a_prompt_that_does_not_fit_and_survives_a_consumer_that_leaves(engines: Engines) -> None:
    vllm = engines.samplers["vllm"]
    long = Request("long", ({"role": "user", "content": "x" * 600},), seed=0)
    results = {result.id: result for result in vllm.sample([long, *requests()[:2]], CONFIG)}
    assert isinstance(results["long"], Refusal)
    assert results["long"].reason == "prompt_too_long"
    assert len(results) == 3
    leaving = vllm.sample(requests(), CONFIG)
    next(leaving)
    leaving.close()
    assert len(completions(vllm)) == len(requests())


def _logprobs(module: Any, completion: Completion, config: SamplingConfig) -> torch.Tensor:
    ids = torch.tensor([completion.prompt_token_ids + completion.token_ids])
    with torch.no_grad():
        logits = module(ids, use_cache=False).logits[0] / config.temperature
    start = len(completion.prompt_token_ids)
    logits = logits[start - 1 : -1]
    if config.top_k:
        logits = logits.masked_fill(logits < logits.topk(config.top_k).values[:, -1:], -torch.inf)
        probs, order = logits.softmax(-1).sort(descending=True)
        beyond = probs.cumsum(-1) - probs >= config.top_p
        logits = logits.masked_fill(beyond.scatter(1, order, beyond), -torch.inf)
    return logits.log_softmax(-1).gather(1, ids[0, start:, None])[:, 0]
