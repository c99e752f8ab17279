"""Losses against numbers worked by hand, and the schedule."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pipelines.errors import UserError
from train.losses import dpo_loss, sequence_sums, sft_loss
from train.optim import learning_rate_at, make_optimizer, update


def test_sft_loss_divides_by_the_count_of_the_whole_step():
    # Two micro-batches with 1 and 3 of 4 targets: (1 + (2 + 3 + 6)) / 4 = 3, not the mean of means (1 + 11/3) / 2.
    parts = [sft_loss(-torch.tensor(values), 4) for values in ([1.0], [2.0, 3.0, 6.0])]
    assert_close(sum(parts), torch.tensor(3.0))


def test_sequence_sums_add_up_each_document():
    values_M, document_M = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 0, 2, 2])
    assert_close(sequence_sums(values_M, document_M, 4), torch.tensor([3.0, 0.0, 12.0, 0.0]))


def test_dpo_loss_is_log_2_where_policy_and_reference_agree():
    margin_P = torch.tensor([3.0, -20.0, 0.0])
    assert_close(dpo_loss(margin_P, margin_P, 0.1), torch.full((3,), math.log(2)))
    assert_close(dpo_loss(margin_P, margin_P, 0.1, label_smoothing=0.2), torch.full((3,), math.log(2)))


def test_dpo_loss_by_hand():
    # Chosen -0.5, -10, -1 and rejected -0.1, -30, -21; reference -0.5, -10.1, -0.1 and -0.1, -20.1, -0.1 (torchtune's
    # case). Margins -0.4, 20, 20 and -0.4, 10, 0; times beta 0.1 the gains are 0, 1, 2.
    margin_P = torch.tensor([-0.5, -10.0, -1.0]) - torch.tensor([-0.1, -30.0, -21.0])
    reference_P = torch.tensor([-0.5, -10.1, -0.1]) - torch.tensor([-0.1, -20.1, -0.1])
    expected = [math.log(1 + math.exp(-gain)) for gain in (0, 1, 2)]
    assert_close(dpo_loss(margin_P, reference_P, 0.1), torch.tensor(expected))
    # Smoothed: 0.9 of the loss and 0.1 of the loss of the reversed preference, which is larger by the gain.
    smoothed = [loss + 0.1 * gain for loss, gain in zip(expected, (0, 1, 2), strict=True)]
    assert_close(dpo_loss(margin_P, reference_P, 0.1, label_smoothing=0.1), torch.tensor(smoothed))


def test_ipo_is_zero_at_its_target_margin():
    # beta 0.1 asks for a gain of 1 / 0.2 = 5; gains 5, 0, 7 cost 0, 25, 4.
    losses_P = dpo_loss(torch.tensor([5.0, 0.0, 7.0]), torch.zeros(3), 0.1, kind="ipo")
    assert_close(losses_P, torch.tensor([0.0, 25.0, 4.0]))


def test_dpo_gradient_pushes_the_margin_up():
    # d/dm -log sigmoid(beta m) = -beta sigmoid(-beta m): -0.05 at m = 0 and beta = 0.1.
    margin_P = torch.zeros(1, requires_grad=True)
    dpo_loss(margin_P, torch.zeros(1), 0.1).sum().backward()
    assert_close(margin_P.grad, torch.tensor([-0.05]))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 10 steps, 2 of warm-up, then 8 from the peak towards 0.
        ("linear", [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("constant", [0.5] + [1.0] * 9),
        ("cosine", [0.5, 1.0] + [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]),
    ],
)
def test_schedules(schedule: str, expected: list[float]):
    assert [learning_rate_at(step, 10, 1.0, 0.2, schedule) for step in range(10)] == pytest.approx(expected)


def test_no_warm_up_starts_at_the_peak():
    assert learning_rate_at(0, 10, 3.0, 0.0, "constant") == 3.0


def test_update_clips_the_global_norm_and_clears_the_gradient():
    # Gradients (3) and (4) have the norm 5: clipped to 1 they are 0.6 and 0.8.
    model = nn.ParameterList([nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))])
    for parameter, slope in zip(model, (3.0, 4.0), strict=True):
        parameter.grad = torch.tensor([slope])
    optimizer = torch.optim.SGD(model.parameters(), lr=99.0)
    assert update(model, optimizer, learning_rate=0.1) == 5.0
    assert_close(torch.cat(list(model)), torch.tensor([-0.06, -0.08]), atol=1e-5, rtol=0)
    assert all(parameter.grad is None for parameter in model)


def test_a_gradient_that_is_not_finite_changes_nothing():
    model = nn.Linear(1, 1)
    before = model.weight.detach().clone()
    model.weight.grad = torch.full((1, 1), torch.nan)
    with pytest.raises(UserError, match="nan"):
        update(model, torch.optim.SGD(model.parameters(), lr=1.0), 1.0)
    assert_close(model.weight.detach(), before)


def test_only_matrices_decay():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    matrices, others = make_optimizer(model, 1e-3, weight_decay=0.1).param_groups
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert [parameter.ndim for parameter in matrices["params"]] == [2]
    assert len(others["params"]) == 3
