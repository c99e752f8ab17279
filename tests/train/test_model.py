"""Token log-probabilities against plain log_softmax, and packed documents against each alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipelines.errors import UserError
from train import attention
from train.batches import Document, collate
from train.model import Recompute, batch_logprobs, load_model, token_logprobs
from train.optim import autocast

LENGTHS = (5, 130, 2, 37, 100, 50, 99)
ARCHITECTURES = ["llama", "qwen3", "phi3", "phi3-longrope"]


def open_model(
    tmp_path: Path, architecture: str, max_length: int = 256, recompute: Recompute = "auto", **shape: int
) -> PreTrainedModel:
    kind, _, longrope = architecture.partition("-")
    path = tiny_model(tmp_path / architecture, kind, longrope_from=64 if longrope else None, **shape)
    return load_model(str(path), max_length=max_length, recompute=recompute)


def random_documents(lengths: tuple[int, ...], vocabulary: int) -> list[Document]:
    rng = np.random.default_rng(0)
    return [
        Document(f"d{index}", rng.integers(0, vocabulary, length).astype(np.int32), np.arange(length) > 0)
        for index, length in enumerate(lengths)
    ]


def plain_logprobs(hidden_ND: Tensor, head_VD: Tensor, labels_N: Tensor, temperature: float) -> Tensor:
    return (hidden_ND @ head_VD.T / temperature).log_softmax(dim=1).gather(1, labels_N[:, None])[:, 0]


@pytest.mark.parametrize("chunk", [1, 7, 64, None])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_token_logprobs_and_gradients_equal_log_softmax(chunk: int | None, temperature: float):
    torch.manual_seed(0)
    hidden_ND, head_VD, labels_N = torch.randn(50, 16), torch.randn(31, 16), torch.randint(0, 31, (50,))
    weights_N = torch.randn(50)
    results = []
    for function in (lambda *a: token_logprobs(*a, temperature=temperature, chunk=chunk)[0],
                     lambda *a: plain_logprobs(*a, temperature)):  # fmt: skip
        hidden, head = hidden_ND.clone().requires_grad_(), head_VD.clone().requires_grad_()
        logprobs_N = function(hidden, head, labels_N)
        (logprobs_N * weights_N).sum().backward()
        results.append((logprobs_N, hidden.grad, head.grad))
    for ours, plain in zip(*results, strict=True):
        assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def test_entropy_equals_its_definition_and_is_log_v_for_equal_logits():
    torch.manual_seed(0)
    hidden_ND, head_VD, labels_N = torch.randn(9, 4), torch.randn(6, 4), torch.randint(0, 6, (9,))
    _, entropy_N = token_logprobs(hidden_ND, head_VD, labels_N, temperature=0.7, chunk=4, entropy=True)
    logprobs_NV = (hidden_ND @ head_VD.T / 0.7).log_softmax(dim=1)
    assert_close(entropy_N, -(logprobs_NV.exp() * logprobs_NV).sum(dim=1))
    _, flat_N = token_logprobs(torch.zeros(2, 4), head_VD, labels_N[:2], entropy=True)
    assert_close(flat_N, torch.full((2,), 6.0).log())


def test_logprobs_are_fp32_products_under_autocast():
    # bf16 keeps 8 bits: its product of 1 and 1 + 2^-9 would be 1, and both labels equally likely.
    hidden_ND, head_VD = torch.ones(2, 1), torch.tensor([[1.0], [1.0 + 2**-9]])
    with torch.autocast("cpu", torch.bfloat16):
        logprobs_N, _ = token_logprobs(hidden_ND, head_VD, torch.tensor([0, 1]))
    assert logprobs_N.dtype == torch.float32
    assert_close(logprobs_N[1] - logprobs_N[0], torch.tensor(2**-9), atol=1e-6, rtol=0)


def test_head_gradient_is_summed_in_fp32_under_autocast():
    # 4,096 equal contributions of 2^-12: a bf16 sum would stop growing at 2^-12 * 256.
    hidden_ND, head_VD = torch.ones(4096, 1), torch.zeros(2, 1, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        logprobs_N, _ = token_logprobs(hidden_ND, head_VD, torch.zeros(4096, dtype=torch.long), chunk=1)
    (logprobs_N / 4096).sum().backward()
    assert_close(head_VD.grad, torch.tensor([[0.5], [-0.5]]))


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_tied_head_gradients_equal_those_of_the_plain_model(tmp_path: Path, architecture: str):
    model = open_model(tmp_path, architecture)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / architecture)
    (document,) = random_documents((60,), model.config.vocab_size)
    batch_logprobs(model, collate([document]))[0].sum().backward()
    tokens = torch.from_numpy(document.tokens).long()[None]
    logits_NV = plain(tokens, use_cache=False).logits[0, :-1]
    logits_NV.log_softmax(dim=1).gather(1, tokens[0, 1:, None]).sum().backward()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    gradients = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, gradients[name].grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_packed_document_has_the_logprobs_it_has_alone(tmp_path: Path, architecture: str, use_cache: bool):
    model = open_model(tmp_path, architecture)
    model.config.use_cache = use_cache
    documents = random_documents(LENGTHS, model.config.vocab_size)
    batch = collate(documents)
    with torch.no_grad():
        packed_M, _ = batch_logprobs(model, batch)
        for index, document in enumerate(documents):
            alone_M, _ = batch_logprobs(model, collate([document]))
            assert_close(packed_M[batch.document_M == index], alone_M, atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_bf16_stays_near_fp32_whichever_kernel_attends(tmp_path: Path, architecture: str):
    # 300 tokens go to the fused kernel, the others to plain products.
    model = open_model(tmp_path, architecture, max_length=512)
    batch = collate(random_documents((300, 200, 20), model.config.vocab_size))
    with torch.no_grad():
        exact_M, _ = batch_logprobs(model, batch)
        with torch.autocast("cpu", torch.bfloat16):
            rounded_M, _ = batch_logprobs(model, batch)
    error_M = (rounded_M - exact_M).abs()
    for document in range(3):
        assert 0 < error_M[batch.document_M == document].mean() < 0.02


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "phi3"])
def test_logprobs_equal_the_plain_transformers_model(tmp_path: Path, architecture: str):
    model = open_model(tmp_path, architecture)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / architecture, attn_implementation="eager")
    documents = random_documents(LENGTHS, model.config.vocab_size)
    batch = collate(documents)
    with torch.no_grad():
        packed_M, _ = batch_logprobs(model, batch)
        for index, document in enumerate(documents):
            tokens = torch.from_numpy(document.tokens).long()[None]
            logprobs_NV = plain(tokens).logits[0, :-1].log_softmax(dim=1)
            expected_M = logprobs_NV.gather(1, tokens[0, 1:, None])[:, 0]
            assert_close(packed_M[batch.document_M == index], expected_M, atol=1e-5, rtol=0)


def test_longrope_factors_follow_max_length_and_not_the_neighbours(tmp_path: Path):
    # 100 tokens lie within the original 128 positions: alone, transformers would take the short factors.
    path = tiny_model(tmp_path / "m", "phi3", longrope_from=128)
    (prompt, long) = random_documents((100, 200), 256)
    tokens = torch.from_numpy(prompt.tokens).long()[None]
    plain = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        short_M = plain(tokens).logits[0, :-1].log_softmax(dim=1).gather(1, tokens[0, 1:, None])[:, 0]
        pinned = load_model(str(path), max_length=256)
        alone_M, _ = batch_logprobs(pinned, collate([prompt]))
        beside_M, _ = batch_logprobs(pinned, collate([prompt, long]))
        unpinned_M, _ = batch_logprobs(load_model(str(path), max_length=128), collate([prompt]))
    assert_close(beside_M[:99], alone_M, atol=1e-5, rtol=0)
    assert_close(unpinned_M, short_M, atol=1e-5, rtol=0)
    assert (alone_M - short_M).abs().max() > 1e-2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "phi3-longrope"])
def test_what_is_computed_again_changes_neither_loss_nor_gradient(tmp_path: Path, architecture: str, precision: str):
    results = []
    for recompute in ("off", "selective", "full"):
        model = open_model(tmp_path, architecture, recompute=recompute)
        batch = collate(random_documents(LENGTHS, model.config.vocab_size))
        with autocast(precision):
            logprobs_M, _ = batch_logprobs(model, batch)
        logprobs_M.sum().backward()
        results.append({"logprobs": logprobs_M} | {name: p.grad for name, p in model.named_parameters()})
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name]), name
        assert torch.equal(tensor, results[2][name]), name


def test_selective_runs_attention_once_and_full_twice(tmp_path: Path):
    class Attended(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, operation, types, arguments=(), options=None):
            self.count += operation in attention.KERNELS
            return operation(*arguments, **(options or {}))

    counts = {}
    for recompute in ("off", "selective", "full"):
        model = open_model(tmp_path, "llama", recompute=recompute, num_kv_heads=2)
        batch = collate(random_documents((40, 40), model.config.vocab_size))
        with Attended() as attended:
            batch_logprobs(model, batch)[0].sum().backward()
        counts[recompute] = attended.count
    assert counts == {"off": 2, "selective": 2, "full": 4}  # of two layers


def test_what_is_computed_again_is_not_kept(tmp_path: Path):
    # One layer keeps its input for each of 300 tokens; without recomputation it keeps some forty times as much.
    kept = {}
    for recompute in ("off", "selective", "full"):
        model = open_model(tmp_path, "llama", 512, recompute=recompute, num_layers=8, num_kv_heads=2)
        batch = collate(random_documents((300,), model.config.vocab_size))
        stored: dict[int, int] = {}

        def keep(tensor: Tensor, stored: dict[int, int] = stored) -> Tensor:
            stored[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = batch_logprobs(model, batch)[0].sum()
        kept[recompute] = sum(stored.values())
        del loss
    assert kept["full"] < 0.3 * kept["off"]
    assert kept["selective"] < 0.3 * kept["off"]


def test_gradients_do_not_cross_documents(tmp_path: Path):
    model = open_model(tmp_path, "llama")
    first, second = random_documents((20, 30), model.config.vocab_size)
    untrained = Document("u", second.tokens, np.zeros(30, dtype=np.bool_))
    batch = collate([first, untrained])
    seen: list[Tensor] = []

    def keep(_module: object, _inputs: object, output: Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    model.get_input_embeddings().register_forward_hook(keep)
    batch_logprobs(model, batch)[0].sum().backward()
    assert seen[0].grad is not None
    assert seen[0].grad[0, :20].abs().sum() > 0
    assert seen[0].grad[0, 20:].abs().max() == 0


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda path: (path / "model.safetensors").unlink(), "safetensors"),
        (lambda path: (path / "config.json").write_text('{"model_type": "no_such_model"}'), "no_such_model"),
    ],
)
def test_a_broken_model_folder_is_one_sentence(tmp_path: Path, break_it, named: str):
    path = tiny_model(tmp_path / "m")
    break_it(path)
    with pytest.raises(UserError, match=named):
        load_model(str(path), max_length=64)
