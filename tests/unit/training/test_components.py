"""Class heads and their optimizers (the rest is tested with the trainer)."""

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import ContrastiveLoss, CrossBatchMemory, NormalizedSoftmaxLoss

from pml_posets.training._components import Components

CPU = torch.device("cpu")


def head_groups(parameters):
    weight, bias = parameters
    groups = [{"params": [weight], "lr": 0.5}, {"params": [bias], "weight_decay": 0.1}]
    return torch.optim.Adam(groups, lr=0.25)


def make(trunk=None, **changes):
    options = {
        "models": {"trunk": trunk or torch.nn.Linear(3, 2), "classifier": lambda n: torch.nn.Linear(2, n)},
        "loss_funcs": {"metric_loss": CrossBatchMemory(ContrastiveLoss(), 2, memory_size=8)},
        "optimizers": {"trunk_optimizer": torch.optim.SGD, "classifier_optimizer": head_groups},
        "lr_schedulers": {},
        "adapt": lambda name, loss: loss,
        **changes,
    }
    return Components(**options)


def step(parts):
    parts.models["classifier"](torch.ones(4, 2)).square().sum().backward()
    parts.optimizers["classifier_optimizer"].step()


def test_an_optimizer_of_several_groups_takes_the_new_parameters():
    parts = make()
    assert "classifier" not in parts.models
    parts.fit(5, seed=0, device=CPU)
    optimizer, old = parts.optimizers["classifier_optimizer"], parts.models["classifier"]
    step(parts)
    optimizer.param_groups[0]["lr"] = 0.125  # as a schedule would
    parts.fit(7, seed=0, device=CPU)
    new = parts.models["classifier"]
    assert parts.optimizers["classifier_optimizer"] is optimizer
    assert [group["params"] for group in optimizer.param_groups] == [[new.weight], [new.bias]]
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.25]
    assert not optimizer.state
    before = old.weight.clone(), new.weight.detach().clone()
    step(parts)
    assert torch.equal(old.weight, before[0])
    assert not torch.equal(new.weight, before[1])


def test_new_weights_are_a_function_of_the_seed():
    found = []
    for number, seed in enumerate((3, 3, 4)):
        torch.manual_seed(number)
        parts = make()
        before = torch.get_rng_state()
        parts.fit(5, seed=seed, device=CPU)
        assert torch.equal(before, torch.get_rng_state())
        found.append(parts.models["classifier"].weight)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_state_of_other_parts_is_refused():
    parts = make()
    parts.fit(4, seed=1, device=CPU)
    text = r"it has the models \['classifier', 'trunk'\], here are \['trunk'\]"
    with pytest.raises(ValueError, match=text):
        make().load_state_dict(parts.state_dict())


def test_functions_and_objects_are_both_taken():
    trunk = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(trunk.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    parts = make(
        trunk,
        optimizers={"trunk_optimizer": optimizer, "classifier_optimizer": head_groups},
        lr_schedulers={"trunk_scheduler_by_epoch": schedule, "trunk_scheduler_by_plateau": plateau},
    )
    assert parts.optimizers == {"trunk_optimizer": optimizer}
    assert parts.lr_schedulers["trunk_scheduler_by_epoch"] is schedule
    assert parts.lr_schedulers["trunk_scheduler_by_plateau"].optimizer is optimizer


@pytest.mark.parametrize("held", [True, False])
def test_rows_of_a_module_move_with_an_optimizer_of_all_weights_or_frozen(held):
    trunk, loss = torch.nn.Linear(3, 6), NormalizedSoftmaxLoss(num_classes=4, embedding_size=6)
    loss.requires_grad_(held)
    weights = [*trunk.parameters(), *loss.parameters()]
    optimizer = torch.optim.SGD([w for w in weights if w.requires_grad], lr=0.1, momentum=0.9)
    parts = make(
        models={"trunk": trunk}, loss_funcs={"metric_loss": loss}, optimizers={"trunk_optimizer": optimizer}
    )
    parts.fit(3, seed=0, device=CPU)
    loss(trunk(torch.randn(8, 3)), torch.arange(8) % 3).backward()
    optimizer.step()
    moved, before = [1, 0, 2, 3], loss.W.detach().clone()
    momentum = optimizer.state[loss.W]["momentum_buffer"].clone() if held else None
    parts.fit(3, seed=0, device=CPU, matches=np.array([1, 0, 2]))
    assert torch.equal(loss.W, before[:, moved])
    if momentum is not None:
        assert torch.equal(optimizer.state[loss.W]["momentum_buffer"], momentum[:, moved])
