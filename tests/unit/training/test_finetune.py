"""Parameter groups by name, frozen batch norm, warm-up."""

import copy

import pytest
import torch
from refusals import refuses_each
from torch import nn

from pml_posets.training.finetune import freeze_batch_norm, parameter_groups, warm_up


def network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    return nn.ModuleDict({"body": body, "head": nn.Linear(4 * 36, 5)})


def by_name(net, groups):
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_rates_decay_and_frozen_parts_go_by_name():
    net = network()
    groups = parameter_groups(net, 0.1, {"body.*": 0.1, "*": 2}, ["body.0.bias"], weight_decay=0.01)
    found = by_name(net, groups)
    assert found == {
        "body.0.weight": (pytest.approx(0.01), 0.01),
        "head.weight": (0.2, 0.01),
        "head.bias": (0.2, 0.0),
    }
    assert {name for name, p in net.named_parameters() if p.requires_grad} == set(found)
    torch.optim.AdamW(groups)


def test_batch_norm_is_trained_only_on_request():
    net = network()
    assert "body.1.weight" not in by_name(net, parameter_groups(net, 0.1))
    net = network()
    assert by_name(net, parameter_groups(net, 0.1, batch_norm=True))["body.1.weight"] == (0.1, 0.0)
    net["body"].train()(torch.rand(2, 3, 8, 8))
    assert net["body"][1].running_mean.abs().sum() > 0


def test_a_rate_of_zero_freezes_and_thaws_again():
    net = network()
    for rates, trained in (({"body.*": 0}, False), (None, True)):
        parameter_groups(net, 0.1, rates)
        assert net["body"][0].weight.requires_grad is trained


def test_frozen_batch_norm_does_not_move_in_training_mode():
    net = network()["body"]
    assert len(freeze_batch_norm(net)) == 2
    freeze_batch_norm(net)
    assert len(net[1]._forward_pre_hooks) == 1
    twin = copy.deepcopy(net)
    for model in (net, twin):
        before = copy.deepcopy(model[1].state_dict())
        images = torch.rand(4, 3, 8, 8)
        trained = model.train()(images)
        for name, value in model[1].state_dict().items():
            assert torch.equal(value, before[name])
        torch.testing.assert_close(trained, model.eval()(images))


def test_the_rate_rises_and_stays():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = warm_up(optimizer, 4)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


test_wrong_settings_are_named = refuses_each(
    lambda options: parameter_groups(network(), **{"lr": 0.1, **options}),
    ({"lr": 0}, "lr must be above 0"),
    ({"rates": {"tail.*": 1}}, r"the pattern 'tail\.\*' matches no parameter"),
    ({"freeze": ["Body.*"]}, "matches no parameter"),
    ({"freeze": ["*"]}, "every parameter is frozen"),
    ({"rates": {"*": -1}}, r"rate of \* must be at least 0"),
    ({"weight_decay": -1}, "weight_decay must be at least 0"),
    error=ValueError,
)
