"""Objectives in the rounds: beside PML's losses and alone, their weights, their place in a checkpoint."""

import pytest
import torch
import trainings
from trainings import sgd

from pml_posets.losses.poset import PosetLoss
from pml_posets.samplers.pseudo_label import GivenLabels
from pml_posets.training.objectives import trainer_with_objectives


class Own(torch.nn.Module):
    """Pulls the features to a point of its own; notes what it was given."""

    def __init__(self):
        super().__init__()
        self.point = torch.nn.Parameter(torch.zeros(4))
        self.seen, self.bound = [], []

    def bind(self, posets):
        self.bound.append(posets.round)

    def forward(self, given, indices, models):
        self.seen.append((tuple(given.shape), indices.tolist()))
        return ((models["embedder"](models["trunk"](given)) - self.point - 1) ** 2).mean()


def make(objective=None, metric=True, **changes):
    torch.manual_seed(0)
    trunk = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    losses = {"own": Own() if objective is None else objective}
    options = {
        "optimizers": {"trunk_optimizer": sgd(), "own_optimizer": sgd()},
        "loss_funcs": {"metric_loss": PosetLoss(sigma=0.5), **losses} if metric else losses,
        "iterations_per_round": 6,
        "record_every": 3,
        **changes,
    }
    return trainings.make(trainings.noise(32, 8), trunk, GivenLabels([0, 1, 2, -1] * 8), **options)


@pytest.mark.parametrize("metric", [True, False])
def test_an_objective_is_given_the_batch_and_the_models(metric, caplog):
    joint = make(metric=metric)
    joint.train()
    assert "loss_funcs is missing" not in caplog.text  # as PML would say
    own = joint.loss_funcs["own"]
    assert own.bound == [0, 1]
    assert len(own.seen) == 12
    assert all(shape == (8, 1, 8, 8) and len(indices) == 8 for shape, indices in own.seen)
    names = {"own", *(["metric_loss"] if metric else [])}
    for row in joint.history:
        assert set(row) == {"round", "iteration", "total_loss", *names}
        assert row["total_loss"] == pytest.approx(sum(row[name] for name in names), rel=1e-5)
    assert joint.history[-1]["own"] < joint.history[0]["own"]
    assert own.point.abs().sum() > 0


def test_its_weight():
    first = []
    for weight in (1.0, 0.25):
        joint = make(metric=False, loss_weights={"own": weight}, num_rounds=1, iterations_per_round=1)
        joint.train()
        first.append(joint.history[0]["own"])
    assert first[1] == pytest.approx(0.25 * first[0], rel=1e-5)
    nothing = make(loss_weights={"own": 0.0, "metric_loss": 1.0}, num_rounds=1)
    nothing.train()
    assert nothing.loss_funcs["own"].seen == []


def test_weights_without_an_optimizer():
    with pytest.raises(ValueError, match="the objective own has weights to learn: optimizers needs own_opt"):
        make(optimizers={"trunk_optimizer": sgd()})
    make(Own().requires_grad_(False), optimizers={"trunk_optimizer": sgd()})


def test_no_objective_no_other_class():
    assert trainer_with_objectives([], torch.nn.Module) is torch.nn.Module
