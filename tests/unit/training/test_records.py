"""Means of losses over iterations."""

import pytest
import torch

from pml_posets.training._rounds import LossRecord


def test_rows_are_means():
    record = LossRecord(every=2)
    values = [torch.tensor(1.0, requires_grad=True), 3, 5.0, torch.tensor(7), torch.tensor(9.0)]
    for i, value in enumerate(values, 1):
        record.add({"total_loss": value, "l1": 0}, {"round": 0, "iteration": i}, last=i == 5)
        assert not getattr(record._sums.get("total_loss"), "requires_grad", False)
    assert record.rows == [
        {"round": 0, "iteration": 2, "total_loss": 2.0, "l1": 0.0},
        {"round": 0, "iteration": 4, "total_loss": 6.0, "l1": 0.0},
        {"round": 0, "iteration": 5, "total_loss": 9.0, "l1": 0.0},  # the rest
    ]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), torch.tensor(float("nan"))])
def test_losses_that_are_not_finite(bad):
    record = LossRecord(every=3)
    for i, value in enumerate([1.0, bad], 1):
        record.add({"total_loss": value}, {"round": 0, "iteration": i})
    with pytest.raises(FloatingPointError, match=r"total_loss became (nan|inf) in the 2 iterations before"):
        record.state_dict({"round": 0, "iteration": 2})
    with pytest.raises(FloatingPointError, match="3 iterations before round 0, iteration 3"):
        record.add({"total_loss": 1.0}, {"round": 0, "iteration": 3})
    assert record.rows == []
