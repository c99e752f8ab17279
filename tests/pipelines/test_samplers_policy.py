"""A served policy: whatever happens to its server, every completion is drawn from the weights of the moment."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model

from pipelines.errors import UserError
from pipelines.samplers.chat import load_chat_format
from pipelines.samplers.policy_server import PolicyServer, TokenWire
from pipelines.samplers.policy_worker import Guard
from pipelines.samplers.protocols import RemoteServer
from pipelines.samplers.server import ServerSampler
from pipelines.sampling import Completion, Refusal, Request, SamplingConfig
from tests.policy_stub import PolicyStub, policy_stub

CONFIG = SamplingConfig(temperature=1.0, top_p=1.0, max_tokens=5)
WEIGHTS = {"a": torch.ones(2, 3), "b": torch.zeros(4)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@contextmanager
def served(source: str, folder: Path, **settings: float) -> Iterator[tuple[ServerSampler, PolicyServer, PolicyStub]]:
    with policy_stub() as (url, stub):
        weights = PolicyServer(RemoteServer.at(url), folder, "policy", **settings)
        wire = TokenWire(weights, load_chat_format(source), 64)
        sampler = ServerSampler("policy", weights, wire=wire, concurrency=4, backoff_s=0.01)
        sampler.check_model()
        yield sampler, weights, stub
        sampler.close()


def requests(count: int) -> list[Request]:
    return [Request(f"r{index}", ({"role": "user", "content": f"question {index}"},), index) for index in range(count)]


def tokens(sampler: ServerSampler, count: int) -> list[int]:
    """The first token of each completion, which tells the weights; each request ends once."""
    results = {result.id: result for result in sampler.sample(requests(count), CONFIG, logprobs=True)}
    assert set(results) == {f"r{index}" for index in range(count)}
    completions = [result for result in results.values() if isinstance(result, Completion)]
    assert len(completions) == count
    assert all(each.logprobs == (-0.5, -0.5) for each in completions)
    return [each.token_ids[0] for each in completions]


def test_each_update_is_sampled_from_and_only_its_file_stays(source: str, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    for left in ("policy-0a-3.safetensors", ".policy-0a-4.safetensors.77.partial"):  # by a run that was killed
        (tmp_path / "weights" / left).write_bytes(b"")
    with served(source, tmp_path / "weights") as (sampler, weights, stub):
        for update in (1, 2, 3):
            weights.update(WEIGHTS.items(), torch.bfloat16)
            assert [path.stem for path in (tmp_path / "weights").iterdir()] == [f"policy-{weights.version}"]
            assert tokens(sampler, 6) == [10 + update] * 6
        assert set(stub.asked.values()) == {3}
        calls = ["pause", "update_weight_version", "collective_rpc", "reset_prefix_cache", "resume"]
        assert [call for call in stub.calls if "generate" not in call] == 3 * calls
    assert not list((tmp_path / "weights").iterdir())


def test_a_folder_may_be_relative(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with served(source, Path("runs/weights")) as (sampler, weights, _):
        for update in (1, 2):
            weights.update(WEIGHTS.items(), torch.bfloat16)
            assert [path.stem for path in Path("runs/weights").iterdir()] == [f"policy-{weights.version}"]
            assert tokens(sampler, 2) == [10 + update] * 2


def test_a_server_that_comes_back_with_its_first_weights_gets_ours_before_it_is_believed(
    source: str, tmp_path: Path
) -> None:
    with served(source, tmp_path) as (sampler, weights, stub):
        weights.update(WEIGHTS.items(), torch.float32)
        stub.dies_at = 9
        assert tokens(sampler, 20) == [11] * 20
        assert stub.lives == 2
        assert stub.calls.count("collective_rpc") >= 2
        again = {seed for seed, count in stub.asked.items() if count > 1}
        assert 1 <= len(again) <= 4, "those in flight, and no more"


def test_a_server_that_has_no_version_is_never_believed(source: str, tmp_path: Path) -> None:
    """As one behind a balancer, where a call and what follows it reach different servers."""
    with served(source, tmp_path, patience_s=0.0) as (_, weights, stub):
        stub.closed["update_weight_version"] = 200
        with pytest.raises(UserError, match="has taken no weights for 0 s: stale_weights"):
            weights.update(WEIGHTS.items(), torch.float32)


def test_what_is_asked_is_spelled_out_and_a_prompt_that_does_not_fit_is_refused(source: str, tmp_path: Path) -> None:
    chat = load_chat_format(source)
    with served(source, tmp_path) as (sampler, weights, stub):
        weights.update(WEIGHTS.items(), torch.float32)
        long = Request("long", ({"role": "user", "content": "x " * 200},), 1)
        results = {result.id: result for result in sampler.sample([long, *requests(1)], CONFIG)}
        (body,) = stub.bodies
    refusal, completion = results["long"], results["r0"]
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "prompt_too_long"
    assert isinstance(completion, Completion)
    prompt_ids = chat.prompt_ids(requests(1)[0].messages)
    assert list(completion.prompt_token_ids) == prompt_ids
    assert body == {
        "model": "policy",
        "token_ids": prompt_ids,
        "sampling_params": {
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": 5,
            "seed": 0,
            "stop_token_ids": sorted(chat.stop_ids),
            "logprobs": None,
            "detokenize": False,
        },
    }


@pytest.mark.parametrize(
    ("closed", "message"),
    [
        ({"pause": 404}, r"/pause\?mode=abort is not open to a trainer \(HTTP 404\)"),
        ({"inference/v1/generate": 403}, r"/inference/v1/generate is not open to a trainer \(HTTP 403\)"),
        ({"pause": 401}, "refuses the key"),
        ({"collective_rpc": 400}, "/collective_rpc refuses: "),
        ({"collective_rpc": 500}, "has taken no weights for 0 s: http_500"),
        ({"collective_rpc": 200}, "does not answer as vLLM 0.32 does: KeyError: 'results'"),
        ({"inference/v1/generate": 200}, "does not answer as vLLM 0.32 does: KeyError: 'choices'"),
    ],
)
def test_a_server_that_was_started_otherwise_is_one_sentence(
    source: str, tmp_path: Path, closed: dict[str, int], message: str
) -> None:
    with served(source, tmp_path, patience_s=0.0) as (_, weights, stub):
        stub.closed = closed
        with pytest.raises(UserError, match=message) as caught:
            weights.update(WEIGHTS.items(), torch.float32)
        assert caught.value.hint
        assert "pause" in closed or stub.calls.count("resume"), "it is not left paused"


def test_a_server_without_our_worker_is_one_sentence(source: str, tmp_path: Path) -> None:
    with served(source, tmp_path) as (_, weights, stub):
        stub.closed = {"collective_rpc": 500}
        stub.complaint = "Worker failed with error ''CPUWorker' object has no attribute 'load_policy''"
        with pytest.raises(UserError, match=r"/collective_rpc is not open to a trainer \(HTTP 500\)"):
            weights.update(WEIGHTS.items(), torch.float32)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"error": "FileNotFoundError: no such file"}, "cannot load the policy's weights: FileNotFoundError"),
        ({"digest": "another"}, "has read another file at"),
        ({"logprobs_mode": "raw_logprobs"}, "gives raw_logprobs, RL needs processed_logprobs"),
    ],
)
def test_weights_that_did_not_arrive_are_one_sentence(
    source: str, tmp_path: Path, answer: dict[str, str], message: str
) -> None:
    with served(source, tmp_path) as (_, weights, stub):
        stub.load_answer = answer
        with pytest.raises(UserError, match=message):
            weights.update(WEIGHTS.items(), torch.float32)
        assert not weights.is_up


def test_a_prefix_cache_that_stays_is_no_update(source: str, tmp_path: Path) -> None:
    with served(source, tmp_path, patience_s=0.0) as (_, weights, stub):
        stub.resets = False
        with pytest.raises(UserError, match="the prefix cache is in use"):
            weights.update(WEIGHTS.items(), torch.float32)


def test_a_server_of_another_model_is_named(source: str, tmp_path: Path) -> None:
    with policy_stub() as (url, stub):
        stub.serves = "another"
        weights = PolicyServer(RemoteServer.at(url), tmp_path, "policy")
        sampler = ServerSampler("policy", weights, wire=TokenWire(weights, load_chat_format(source), 64))
        with pytest.raises(UserError, match="does not serve `policy`") as caught:
            sampler.check_model()
    assert caught.value.hint == "it serves another"


def test_the_guard_asks_for_the_key_on_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    passed: list[str] = []
    sent: list[int] = []

    async def app(scope: dict[str, object], receive: object, send: object) -> None:
        passed.append(str(scope["path"]))

    async def send(message: dict[str, int]) -> None:
        sent.append(message.get("status") or message.get("code", 0))

    right = [(b"authorization", b"Bearer secret")]
    for kind, headers in (
        ("http", []),
        ("http", [(b"authorization", b"Bearer wrong")]),
        ("http", [(b"authorization", b"Bearer ")]),
        ("http", right),
        ("websocket", []),
        ("websocket", right),
        ("lifespan", []),
    ):
        asked = Guard(app)({"type": kind, "path": f"/{kind}", "headers": headers}, None, send)
        with pytest.raises(StopIteration):
            asked.send(None)
    assert passed == ["/http", "/websocket", "/lifespan"]
    assert sent == [401, 0, 401, 0, 401, 0, 1008]


def test_the_guard_does_not_stand_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "")
    with pytest.raises(ValueError, match="set VLLM_API_KEY"):
        Guard(None)
