"""Means of losses over iterations."""

import pytest
import torch

from pml_posets.training._rounds import LossRecord


def fill(record, values, start=1):
    for i, value in enumerate(values, start):
        record.add({"total_loss": value, "l1": 0}, {"round": 0, "iteration": i}, last=i == 5)


def test_rows_are_means():
    record = LossRecord(every=2)
    fill(record, [torch.tensor(1.0, requires_grad=True), 3, 5.0, torch.tensor(7), torch.tensor(9.0)])
    assert record.rows == [
        {"round": 0, "iteration": 2, "total_loss": 2.0, "l1": 0.0},
        {"round": 0, "iteration": 4, "total_loss": 6.0, "l1": 0.0},
        {"round": 0, "iteration": 5, "total_loss": 9.0, "l1": 0.0},  # the rest
    ]


def test_state_in_the_middle_of_a_row():
    values = [torch.tensor(value) for value in (0.1, 0.7, 1.3, 2.9)]
    whole = LossRecord(every=3)
    fill(whole, values)
    first, second = LossRecord(every=3), LossRecord(every=3)
    fill(first, values[:2])
    second.load_state_dict(first.state_dict({}))
    fill(second, values[2:], start=3)
    assert second.rows == whole.rows
    assert second.state_dict({}) == whole.state_dict({})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), torch.tensor(float("nan"))])
def test_losses_that_are_not_finite(bad):
    record = LossRecord(every=3)
    fill(record, [1.0, bad])
    with pytest.raises(FloatingPointError, match=r"total_loss became (nan|inf) in the 2 iterations before"):
        record.state_dict({"round": 0, "iteration": 2})
    with pytest.raises(FloatingPointError, match="3 iterations before round 0, iteration 3"):
        record.add({"total_loss": 1.0}, {"round": 0, "iteration": 3})
    assert record.rows == []
