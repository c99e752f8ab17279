"""Losses and gradients against plain references: logits whole, documents one by one, formulas written out.

The references run in float64 where they can; a tolerance is that of fp32 sums.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close
from toy_shards import toy_shards
from transformers import AutoModelForCausalLM

from train.batches import Document, collate, load_conversations, load_pairs
from train.dpo import DpoConfig, pair_logprobs, preference
from train.losses import dpo_loss, sft_loss
from train.model import batch_logprobs, load_model, load_tokenizer, token_logprobs

ARCHITECTURES = ["phi3", "llama", "qwen3"]


# --- references -----------------------------------------------------------------------------------


def plain_model(path: Path) -> nn.Module:
    """The model as transformers makes it, in float64: its own attention, its own logits."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager")
    return model.train()


def plain_logprobs(model: nn.Module, document: Document) -> Tensor:
    """Log-probability of each target of one document, alone in its batch, from whole logits."""
    tokens = torch.from_numpy(document.tokens).long()
    logits = model(tokens[None], use_cache=False).logits[0, :-1].double()
    return logits.log_softmax(dim=1).gather(1, tokens[1:, None])[document.trained[1:], 0]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.double() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(ours: nn.Module, theirs: nn.Module) -> None:
    """Every parameter has the same gradient, to a thousandth of a percent of its norm and of its largest element."""
    got, expected = gradients(ours), gradients(theirs)
    assert got.keys() == expected.keys()
    assert len(got) == len(list(ours.parameters()))
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert_close(got[name], gradient, rtol=0, atol=1e-5 * float(gradient.norm()), msg=lambda text, n=name: n + text)


def sigmoid(gain: Tensor, beta: float) -> Tensor:
    return torch.log(1 + torch.exp(-beta * gain))


def smoothed(gain: Tensor, beta: float) -> Tensor:
    """A preference that is wrong one time in ten."""
    return 0.9 * torch.log(1 + torch.exp(-beta * gain)) + 0.1 * torch.log(1 + torch.exp(beta * gain))


def ipo(gain: Tensor, beta: float) -> Tensor:
    return (gain - 0.5 / beta) ** 2


VARIANTS: dict[str, tuple[dict, Callable[[Tensor, float], Tensor]]] = {
    "sigmoid": ({}, sigmoid),
    "smoothed": ({"label_smoothing": 0.1}, smoothed),
    "ipo": ({"kind": "ipo"}, ipo),
}


# --- random tensors -------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, None])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_cross_entropy_of_random_tensors(chunk: int | None, temperature: float):
    torch.manual_seed(0)
    hidden, head = torch.randn(33, 16), torch.randn(50, 16)
    labels = torch.randint(50, (33,))
    ours = [tensor.clone().requires_grad_() for tensor in (hidden, head)]
    plain = [tensor.double().requires_grad_() for tensor in (hidden, head)]
    logprobs, _ = token_logprobs(*ours, labels, temperature=temperature, chunk=chunk)
    loss = sft_loss(logprobs, 33)
    expected = functional.cross_entropy(plain[0] @ plain[1].T / temperature, labels)
    loss.backward()
    expected.backward()
    assert_close(loss.double(), expected, atol=1e-5, rtol=1e-6)
    for one, other in zip(ours, plain, strict=True):
        assert_close(one.grad.double(), other.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_dpo_of_random_margins(variant: str, beta: float):
    torch.manual_seed(0)
    policy, reference = 20 * torch.randn(64), 20 * torch.randn(64)
    options, formula = VARIANTS[variant]
    ours, plain = policy.clone().requires_grad_(), policy.double().requires_grad_()
    losses = dpo_loss(ours, reference, beta, **options)
    expected = formula(plain - reference.double(), beta)
    assert_close(losses.double(), expected, atol=1e-5, rtol=1e-5)
    losses.mean().backward()
    expected.mean().backward()
    assert_close(ours.grad.double(), plain.grad, atol=1e-7, rtol=1e-5)


# --- tiny models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cross_entropy_of_a_model(tmp_path: Path, architecture: str):
    path = tiny_model(tmp_path / "m", architecture)
    documents, _ = load_conversations(toy_shards(tmp_path / "out"), "sft", load_tokenizer(str(path)), 512)
    ours, theirs = load_model(str(path), max_length=512), plain_model(path)
    num_targets = sum(int(document.trained.sum()) for document in documents)
    loss = 0.0
    for part in (documents[:3], documents[3:]):  # two micro-batches of one step
        share = sft_loss(batch_logprobs(ours, collate(part))[0], num_targets)
        share.backward()
        loss += share.item()
    expected = -torch.cat([plain_logprobs(theirs, document) for document in documents]).mean()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("options", "formula"),
    [
        ({}, sigmoid),
        ({"label_smoothing": 0.1}, smoothed),
        ({"loss": "ipo"}, ipo),
        ({"nll_weight": 0.3}, sigmoid),
        ({"length_normalised": True}, sigmoid),
        ({"loss": "ipo", "length_normalised": True}, ipo),
    ],
    ids=["sigmoid", "smoothed", "ipo", "nll", "length-normalised", "length-normalised ipo"],
)
def test_dpo_of_a_model(tmp_path: Path, architecture: str, options: dict, formula: Callable[[Tensor, float], Tensor]):
    config = DpoConfig(beta=0.1, **options)
    path, anchor = tiny_model(tmp_path / "m", architecture), tiny_model(tmp_path / "r", architecture, seed=1)
    pairs, _ = load_pairs(toy_shards(tmp_path / "out", rows=4), load_tokenizer(str(path)), 512)
    units, batch = [list(pair) for pair in pairs], collate([side for pair in pairs for side in pair])
    ours, reference = load_model(str(path), max_length=512), load_model(str(anchor), max_length=512)
    with torch.no_grad():
        reference_P2 = pair_logprobs(batch_logprobs(reference, batch)[0], batch)
    cost, _ = preference(units, reference_P2, config)(batch_logprobs(ours, batch)[0], batch, range(4), range(4))
    cost.backward()

    theirs, plain_reference = plain_model(path), plain_model(anchor)
    plain = [[plain_logprobs(theirs, side) for side in pair] for pair in pairs]
    with torch.no_grad():
        fixed = [[plain_logprobs(plain_reference, side) for side in pair] for pair in pairs]
    reduce = torch.mean if config.length_normalised else torch.sum
    gains = [reduce(a) - reduce(b) - reduce(c) + reduce(d) for (a, b), (c, d) in zip(plain, fixed, strict=True)]
    nll = -torch.cat([chosen for chosen, _ in plain]).mean()
    expected = formula(torch.stack(gains), config.beta).mean() + config.nll_weight * nll
    expected.backward()
    assert cost.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(ours, theirs)
