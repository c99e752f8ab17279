"""After each update the sampler is the policy: vLLM in this process, and a real `vllm serve` that dies on the way."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipelines.errors import UserError
from pipelines.models import resolve_model
from pipelines.samplers.server import ServerSampler
from pipelines.samplers.transformers import TransformersSampler
from pipelines.samplers.vllm import VllmSampler, died_in_one_sentence
from pipelines.sampling import Completion, Request, Sampler, SamplingConfig
from train.model import load_model, load_tokenizer
from train.policy_sampler import PolicySamplerConfig, open_policy_sampler

# vLLM and what it imports warn about themselves.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::Warning")]

CONTEXT = 256
GREEDY = SamplingConfig(temperature=0.0, top_p=1.0, max_tokens=12)
SAMPLED = SamplingConfig(temperature=0.7, top_p=1.0, max_tokens=12)
LONG = SamplingConfig(temperature=0.7, top_p=1.0, max_tokens=200)
MODEL = resolve_model("pocket")


class Trained:
    """A policy that is moved at random, with its sampler."""

    def __init__(self, config: PolicySamplerConfig, out: Path) -> None:
        self.policy: Any = load_model(MODEL, max_length=CONTEXT)
        self.reference = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        self.tokenizer = load_tokenizer(MODEL)
        self.steps = 0
        self.sampler, self.current = open_policy_sampler(
            config, "pocket", self.policy, self.tokenizer, max_length=CONTEXT, precision="fp32", out=out
        )

    def step(self) -> AbstractContextManager[None]:
        """Move the weights far enough to be told from those before; within the block the sampler has them."""
        self.steps += 1
        generator = torch.manual_seed(self.steps)
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter += 0.1 * parameter.std() * torch.randn(parameter.shape, generator=generator)
        self.reference.load_state_dict(self.policy.state_dict())
        return self.current()

    def assert_sampled_from(self, completions: list[Completion]) -> None:
        """Mean |delta logprob| of what was sampled under 1e-3 nats."""
        deltas = [self.logprobs(each) - torch.tensor(each.logprobs) for each in completions]
        assert float(torch.cat(deltas).abs().mean()) < 1e-3

    def logprobs(self, completion: Completion) -> torch.Tensor:
        ids = torch.tensor([completion.prompt_token_ids + completion.token_ids])
        start = len(completion.prompt_token_ids)
        with torch.no_grad():
            logits = self.reference(ids, use_cache=False).logits[0, start - 1 : -1] / SAMPLED.temperature
        return logits.log_softmax(-1).gather(1, ids[0, start:, None])[:, 0]

    def greedy(self) -> dict[str, tuple[int, ...]]:
        live = TransformersSampler.from_model(self.policy, self.tokenizer, "policy", max_model_len=CONTEXT)
        return {each.id: each.token_ids for each in completions(live, requests(4), GREEDY)}


def requests(count: int) -> list[Request]:
    return [Request(f"r{n}", ({"role": "user", "content": f"{n} + {7 * n}"},), 1000 + n) for n in range(count)]


def completions(sampler: Sampler, asked: list[Request], config: SamplingConfig = SAMPLED) -> list[Completion]:
    results = list(sampler.sample(asked, config, logprobs=True))
    assert sorted(each.id for each in results) == sorted(each.id for each in asked)  # each once
    return [each for each in results if isinstance(each, Completion)]


@pytest.fixture(scope="module", params=["vllm", "vllm-serve"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    # Asleep between steps, and awake after a step that failed.
    config = PolicySamplerConfig(engine=request.param, sleep=request.param == "vllm")
    trained = Trained(config, tmp_path_factory.mktemp("run"))
    yield trained
    trained.sampler.close()


def test_after_each_update_the_sampler_is_the_policy(trained: Trained) -> None:
    updates = 3 if isinstance(trained.sampler, ServerSampler) else 10
    before: dict[str, tuple[int, ...]] = {}
    for _ in range(updates):
        with trained.step():
            expected = trained.greedy()
            assert expected != before, "the update is one that can be seen"
            got = {each.id: each.token_ids for each in completions(trained.sampler, requests(4), GREEDY)}
            assert got == expected
            trained.assert_sampled_from(completions(trained.sampler, requests(8)))
            before = expected
        if isinstance(trained.sampler, VllmSampler):
            assert trained.sampler._engine.is_sleeping()


def test_a_consumer_that_fails_leaves_no_request_running(trained: Trained) -> None:
    with pytest.raises(ArithmeticError), trained.step():
        fail_at_the_first(trained.sampler)
    deadline = time.monotonic() + 60
    while num_running(trained.sampler):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def fail_at_the_first(sampler: Sampler) -> None:
    for _ in sampler.sample(requests(40), LONG):
        raise ArithmeticError


def num_running(sampler: Any) -> float:
    if not isinstance(sampler, ServerSampler):
        return float(sampler._engine.has_unfinished_requests())
    server = sampler._server
    headers = {"Authorization": f"Bearer {server.key}"}
    lines = httpx.get(f"{server.url.removesuffix('/v1')}/metrics", headers=headers).text.splitlines()
    return sum(float(each.split()[-1]) for each in lines if each.startswith("vllm:num_requests_"))


def test_a_server_that_is_killed_in_the_middle_of_a_step_comes_back_as_the_policy(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    """In process there is nothing to come back: the run ends, and is resumed from its checkpoint."""
    if not isinstance(trained.sampler, ServerSampler):
        from vllm.v1.engine.exceptions import EngineDeadError

        with pytest.raises(UserError, match="vLLM's engine died: EngineCore") as caught, died_in_one_sentence():
            raise EngineDeadError
        assert "from the last checkpoint" in (caught.value.hint or "")
        return
    watched: Any = trained.sampler._server._server
    results = {}
    with trained.step():
        for result in trained.sampler.sample(requests(40), LONG, logprobs=True):
            if not results:
                os.kill(watched._group, signal.SIGKILL)
            assert isinstance(result, Completion)
            assert result.id not in results
            results[result.id] = result
    assert len(results) == 40
    trained.assert_sampled_from(list(results.values()))
    assert "was killed by SIGKILL" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"server_url": "http://127.0.0.1:9"}, "needs a folder for its weights that both machines see"),
        ({"server_url": "http://127.0.0.1:9", "weights_dir": Path("w")}, "no answer from http://127.0.0.1:9/v1"),
        ({"server_url": "http://127.0.0.1:9", "engine": "transformers"}, "not both"),
        ({"server_url": "http://127.0.0.1:9", "sampler_devices": "1"}, "not both"),
        ({"sleep": True}, "`rl.sleep` means nothing to engine `transformers`"),
        ({"engine": "vllm", "tensor_parallel": 2}, "`rl.tensor_parallel` means nothing to engine `vllm`"),
    ],
)
def test_a_sampler_that_cannot_be_had_is_one_sentence(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        Trained(PolicySamplerConfig(**settings), tmp_path)
