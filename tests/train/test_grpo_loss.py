import math

import pytest
import torch

from train.grpo_loss import grpo_loss, kl_k3


def plain_loss(logprobs, old, advantages, sampler, reference, *, num_tokens, low, high, cap, kl_weight):
    """The same loss, one token at a time in Python."""
    total = 0.0
    for t in range(len(logprobs)):
        ratio = torch.exp(logprobs[t] - old[t])
        at = ratio.item()
        bounded = ratio if 1 - low <= at <= 1 + high else torch.tensor(1 - low if at < 1 else 1 + high)
        objective = min(ratio * advantages[t], bounded * advantages[t], key=torch.Tensor.item)
        weight = 1.0 if sampler is None else min(math.exp(float(old[t] - sampler[t])), cap)
        objective = objective * weight
        if reference is not None:
            log_ratio = reference[t] - logprobs[t]
            objective = objective - kl_weight * (torch.exp(log_ratio) - log_ratio - 1)
        total = total - objective / num_tokens
    return total


def test_by_hand():
    # Ratios 1.5, 0.5, 1.1, 0.5; advantages 2, 2, -1, -1; bounds 0.8 and 1.28.
    # min(3, 2.56) + min(1, 1.6) + min(-1.1, -1.1) + min(-0.5, -0.8) = 2.56 + 1 - 1.1 - 0.8 = 1.66.
    old = torch.zeros(4)
    logprobs = torch.tensor([1.5, 0.5, 1.1, 0.5]).log().requires_grad_()
    result = grpo_loss(logprobs, old, torch.tensor([2.0, 2.0, -1.0, -1.0]), num_tokens=10)
    torch.testing.assert_close(result.loss, torch.tensor(-0.166))
    assert int(result.clipped) == 2
    # d/dlogp of ratio * A / 10 where the clip does not hold, else 0: 0, 0.5 * 2, 1.1 * -1, 0.
    result.loss.backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.0, -0.1, 0.11, 0.0]))


@pytest.mark.parametrize("with_sampler", [False, True])
@pytest.mark.parametrize("kl_weight", [0.0, 0.1])
def test_values_and_gradients_equal_the_plain_reference(with_sampler, kl_weight):
    torch.manual_seed(0)
    old = -torch.rand(50, dtype=torch.float64)
    advantages = torch.randn(50, dtype=torch.float64)
    sampler = old + 0.5 * torch.randn(50, dtype=torch.float64) if with_sampler else None
    reference = old + 0.3 * torch.randn(50, dtype=torch.float64) if kl_weight else None
    logprobs = (old + 0.4 * torch.randn(50, dtype=torch.float64)).requires_grad_()
    twin = logprobs.detach().clone().requires_grad_()

    result = grpo_loss(
        logprobs,
        old,
        advantages,
        64,
        sampler_logprobs_N=sampler,
        importance_cap=1.3,
        reference_logprobs_N=reference,
        kl_weight=kl_weight,
    )
    expected = plain_loss(
        twin, old, advantages, sampler, reference, num_tokens=64, low=0.2, high=0.28, cap=1.3, kl_weight=kl_weight
    )
    torch.testing.assert_close(result.loss, expected)
    result.loss.backward()
    expected.backward()
    torch.testing.assert_close(logprobs.grad, twin.grad)


def test_on_policy_the_gradient_is_that_of_reinforce():
    logprobs = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 0.5])
    grpo_loss(logprobs, logprobs.detach(), advantages, num_tokens=3).loss.backward()
    torch.testing.assert_close(logprobs.grad, -advantages / 3)


def test_zero_advantages_give_zero_loss_and_gradient():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    result = grpo_loss(logprobs, torch.tensor([-1.5, -1.0]), torch.zeros(2), num_tokens=2)
    result.loss.backward()
    assert result.loss.item() == 0.0
    assert torch.equal(logprobs.grad, torch.zeros(2))


def test_micro_batches_add_up_to_the_whole():
    torch.manual_seed(0)
    old, advantages = -torch.rand(12), torch.randn(12)
    logprobs = old + 0.2 * torch.randn(12)
    whole = grpo_loss(logprobs, old, advantages, num_tokens=12).loss
    # Unequal parts: a mean of means would differ.
    parts = sum(grpo_loss(logprobs[s], old[s], advantages[s], num_tokens=12).loss for s in (slice(0, 3), slice(3, 12)))
    torch.testing.assert_close(parts, whole)


def test_the_importance_weight_is_capped_and_carries_no_gradient():
    # exp(old - sampler) = e^2 = 7.4, capped at 2; the gradient is twice that of the plain loss.
    logprobs = torch.tensor([-1.0], requires_grad=True)
    result = grpo_loss(
        logprobs, torch.tensor([-1.0]), torch.ones(1), 1, sampler_logprobs_N=torch.tensor([-3.0]), importance_cap=2.0
    )
    result.loss.backward()
    assert int(result.capped) == 1
    torch.testing.assert_close(result.loss.detach(), torch.tensor(-2.0))
    torch.testing.assert_close(logprobs.grad, torch.tensor([-2.0]))


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
