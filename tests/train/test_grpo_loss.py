import itertools
import math

import pytest
import torch

from train.grpo_loss import grpo_loss, importance_weights, kl_k3, sequence_means, token_weights

LENGTHS = (1, 7, 20, 22)
SEQUENCE_N = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
ONE = torch.zeros(1, dtype=torch.int64)


def plain_loss(logprobs, old, advantages, sampler, reference, weights, *, surrogate, low, high, importance, cap, kl):
    """The same loss, one token at a time in Python."""
    spans = [(sum(LENGTHS[:i]), sum(LENGTHS[: i + 1])) for i in range(len(LENGTHS))]
    total = 0.0
    for start, stop in spans:
        mean_log_ratio = sum(logprobs[t] - old[t] for t in range(start, stop)) / (stop - start)
        drift = sum(float(old[t] - sampler[t]) for t in range(start, stop)) if sampler is not None else 0.0
        for t in range(start, stop):
            ratio = torch.exp(mean_log_ratio if surrogate == "gspo" else logprobs[t] - old[t])
            bounded = min(max(ratio.item(), 1 - low), 1 + high)
            if surrogate == "cispo":
                objective = bounded * advantages[t] * logprobs[t]
            elif bounded * advantages[t] < (ratio * advantages[t]).item():
                objective = bounded * advantages[t]
            else:
                objective = ratio * advantages[t]
            weight = 1.0
            if sampler is not None and importance != "none":
                weight = math.exp(drift if importance.startswith("sequence") else float(old[t] - sampler[t]))
                if importance.endswith("mask"):
                    weight = weight if 1 / cap <= weight <= cap else 0.0
                weight = min(weight, cap)
            objective = objective * weight
            if reference is not None:
                log_ratio = reference[t] - logprobs[t]
                objective = objective - kl * (torch.exp(log_ratio) - log_ratio - 1)
            total = total - objective * weights[t]
    return total


def uniform(num_tokens: int, of: int) -> torch.Tensor:
    return torch.full((num_tokens,), 1.0 / of)


def test_by_hand():
    # Ratios 1.5, 0.5, 1.1, 0.5; advantages 2, 2, -1, -1; bounds 0.8 and 1.28.
    # min(3, 2.56) + min(1, 1.6) + min(-1.1, -1.1) + min(-0.5, -0.8) = 2.56 + 1 - 1.1 - 0.8 = 1.66.
    old = torch.zeros(4)
    logprobs = torch.tensor([1.5, 0.5, 1.1, 0.5]).log().requires_grad_()
    result = grpo_loss(logprobs, old, torch.tensor([2.0, 2.0, -1.0, -1.0]), uniform(4, 10), torch.arange(4))
    torch.testing.assert_close(result.loss, torch.tensor(-0.166))
    assert int(result.clipped) == 2
    # d/dlogp of ratio * A / 10 where the clip does not hold, else 0: 0, 0.5 * 2, 1.1 * -1, 0.
    result.loss.backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.0, -0.1, 0.11, 0.0]))


def test_cispo_by_hand():
    # The same tokens: clipped ratios 1.28, 0.8, 1.1, 0.8 weigh A logprob, and no gradient is lost.
    logprobs = torch.tensor([1.5, 0.5, 1.1, 0.5]).log().requires_grad_()
    advantages = torch.tensor([2.0, 2.0, -1.0, -1.0])
    result = grpo_loss(logprobs, torch.zeros(4), advantages, uniform(4, 10), torch.arange(4), surrogate="cispo")
    result.loss.backward()
    torch.testing.assert_close(logprobs.grad, -torch.tensor([2.56, 1.6, -1.1, -0.8]) / 10)
    assert int(result.clipped) == 3


def test_gspo_by_hand():
    # One sequence with log ratios 0.3 and 0.1: its ratio is e^0.2 = 1.22, beyond 1.1; the other's is 1.
    logprobs = torch.tensor([0.3, 0.1, 0.0], requires_grad=True)
    args = (torch.zeros(3), torch.ones(3), torch.tensor([0.25, 0.25, 0.5]), torch.tensor([0, 0, 1]))
    result = grpo_loss(logprobs, *args, surrogate="gspo", clip_high=0.1)
    result.loss.backward()
    torch.testing.assert_close(result.loss.detach(), torch.tensor(-(0.5 * 1.1 + 0.5)))
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.0, 0.0, -0.5]))
    assert int(result.clipped) == 2


OPTIONS = list(
    itertools.product(
        ("grpo", "gspo", "cispo"), (None, "token", "token_mask", "sequence", "sequence_mask", "none"), (0.0, 0.1)
    )
)


@pytest.mark.parametrize(("surrogate", "importance", "kl"), OPTIONS)
def test_values_and_gradients_equal_the_plain_reference(surrogate: str, importance: str | None, kl: float):
    torch.manual_seed(0)
    old = -torch.rand(50, dtype=torch.float64)
    advantages = torch.randn(4, dtype=torch.float64)[SEQUENCE_N]
    weights = token_weights(torch.tensor(LENGTHS), "sequence", 50, 4, 99).double()[SEQUENCE_N]
    sampler = old + 0.3 * torch.randn(50, dtype=torch.float64) if importance else None
    reference = old + 0.3 * torch.randn(50, dtype=torch.float64) if kl else None
    logprobs = (old + 0.4 * torch.randn(50, dtype=torch.float64)).requires_grad_()
    twin = logprobs.detach().clone().requires_grad_()
    kind = importance or "token"
    result = grpo_loss(
        logprobs,
        old,
        advantages,
        weights,
        SEQUENCE_N,
        surrogate=surrogate,
        sampler_logprobs_N=sampler,
        importance=kind,
        importance_cap=1.3,
        reference_logprobs_N=reference,
        kl_weight=kl,
    )
    bounds = {"low": 0.2, "high": 0.28, "cap": 1.3}
    rest = {"surrogate": surrogate, "importance": kind, "kl": kl}
    expected = plain_loss(twin, old, advantages, sampler, reference, weights, **bounds, **rest)
    torch.testing.assert_close(result.loss, expected)
    result.loss.backward()
    expected.backward()
    torch.testing.assert_close(logprobs.grad, twin.grad)


@pytest.mark.parametrize("surrogate", ["grpo", "gspo", "cispo"])
def test_on_policy_the_gradient_is_that_of_reinforce(surrogate: str):
    logprobs = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    advantages = torch.tensor([1.0, 1.0, 0.5])
    sequences = torch.tensor([0, 0, 1])
    grpo_loss(logprobs, logprobs.detach(), advantages, uniform(3, 3), sequences, surrogate=surrogate).loss.backward()
    torch.testing.assert_close(logprobs.grad, -advantages / 3)


def test_zero_advantages_give_zero_loss_and_gradient():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    result = grpo_loss(logprobs, torch.tensor([-1.5, -1.0]), torch.zeros(2), uniform(2, 2), torch.arange(2))
    result.loss.backward()
    assert result.loss.item() == 0.0
    assert torch.equal(logprobs.grad, torch.zeros(2))


@pytest.mark.parametrize("surrogate", ["grpo", "gspo", "cispo"])
def test_micro_batches_add_up_to_the_whole(surrogate: str):
    torch.manual_seed(0)
    old, advantages = -torch.rand(50), torch.randn(50)
    logprobs, weights = old + 0.2 * torch.randn(50), uniform(50, 50)
    whole = grpo_loss(logprobs, old, advantages, weights, SEQUENCE_N, surrogate=surrogate).loss
    # Unequal parts: a mean of means would differ.
    parts = [slice(0, 8), slice(8, 50)]
    losses = [
        grpo_loss(
            logprobs[s], old[s], advantages[s], weights[s], SEQUENCE_N[s] - SEQUENCE_N[s][0], surrogate=surrogate
        ).loss
        for s in parts
    ]
    torch.testing.assert_close(sum(losses), whole)


def test_the_importance_weight_is_capped_and_carries_no_gradient():
    # exp(old - sampler) = e^2 = 7.4, capped at 2; the gradient is twice that of the plain loss.
    logprobs = torch.tensor([-1.0], requires_grad=True)
    sampler = torch.tensor([-3.0])
    result = grpo_loss(logprobs, torch.tensor([-1.0]), torch.ones(1), uniform(1, 1), ONE, sampler_logprobs_N=sampler)
    result.loss.backward()
    assert int(result.capped) == 1
    torch.testing.assert_close(result.loss.detach(), torch.tensor(-2.0))
    torch.testing.assert_close(logprobs.grad, torch.tensor([-2.0]))


def test_importance_weights_by_hand():
    # Ratios 2 and 1/2 in one sequence (their product is 1), 4 in another.
    log_ratio = torch.tensor([2.0, 0.5, 4.0]).log()
    sequences = torch.tensor([0, 0, 1])

    def weights(kind: str, cap: float) -> list[float]:
        found = importance_weights(log_ratio, torch.zeros(3), sequences, kind, cap)
        return [round(weight, 5) for weight in found.tolist()]

    assert weights("token", 3) == [2, 0.5, 3]
    assert weights("token_mask", 3) == [2, 0.5, 0]
    assert weights("token_mask", 1.5) == [0, 0, 0]
    assert weights("sequence", 3) == [1, 1, 3]
    assert weights("sequence_mask", 3) == [1, 1, 0]


def test_what_a_token_weighs():
    lengths = torch.tensor([1, 3])
    assert token_weights(lengths, "token", 4, 2, 10).tolist() == [0.25, 0.25]
    assert token_weights(lengths, "sequence", 4, 2, 10).tolist() == pytest.approx([1 / 2, 1 / 6])
    assert token_weights(lengths, "constant", 4, 2, 10).tolist() == pytest.approx([1 / 20, 1 / 20])


def test_means_over_sequences():
    means = sequence_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    assert means.tolist() == [2, 2, 5]


def test_k3_by_hand():
    # Policy e^-1, reference e^-2: d = -1, e^-1 + 1 - 1 = e^-1. Equal: 0.
    kl = kl_k3(torch.tensor([-1.0, -1.0]), torch.tensor([-2.0, -1.0]))
    torch.testing.assert_close(kl, torch.tensor([math.exp(-1), 0.0]))


def test_k3_is_unbiased_and_never_negative():
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    reference = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64).log()
    estimates = kl_k3(policy, reference)
    assert bool((estimates >= 0).all())
    expectation = (policy.exp() * estimates).sum()
    torch.testing.assert_close(expectation, (policy.exp() * (policy - reference)).sum())
