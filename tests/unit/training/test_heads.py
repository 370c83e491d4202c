"""Which class is which in the next round, and what is known of it."""

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import (
    MarginLoss,
    NormalizedSoftmaxLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SoftTripleLoss,
    SubCenterArcFaceLoss,
)
from scipy.optimize import linear_sum_assignment

from pml_posets.training._components import Components
from pml_posets.training._heads import class_axes, match_classes


def overlaps(before, after):
    table = np.zeros((after.max(initial=-1) + 1, before.max(initial=-1) + 1), int)
    both = (before >= 0) & (after >= 0)
    np.add.at(table, (after[both], before[both]), 1)
    return table


def parts_of(optimizer=torch.optim.SGD, **part):
    """Components of a trunk and one head."""
    (name,) = part
    trunk = {"trunk": torch.nn.Linear(2, 2)}
    models, losses = ({**trunk, **part}, {}) if name == "classifier" else (trunk, part)
    optimizers = {"trunk_optimizer": optimizer, f"{name}_optimizer": optimizer}
    return Components(models, losses, optimizers, {}, lambda name, loss: loss)


@pytest.mark.parametrize("seed", range(15))
def test_matches_are_those_of_the_assignment_problem(seed):
    rng = np.random.default_rng(seed)
    before, after = (rng.integers(-1, rng.integers(1, 9), 30) for _ in range(2))
    matches, table = match_classes(before, after), overlaps(before, after)
    rows, columns = linear_sum_assignment(-table)
    found = [(new, old) for new, old in enumerate(matches) if old >= 0]
    assert sum(table[pair] for pair in found) == table[rows, columns].sum()
    assert all(table[pair] > 0 for pair in found)
    assert len({old for _, old in found}) == len(found)
    assert len(matches) == len(table)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], [0, 1]),
        ([0, 0, 1, 1], [1, 1, 0, 0], [1, 0]),
        ([0, 0, 1, 1, 2, 2], [0, 0, -1, -1, 1, 1], [0, 2]),  # one dissolved
        ([0, 0, 1, 1, -1, -1], [1, 1, 2, 2, 0, 0], [-1, 0, 1]),  # one appeared
        ([0, 0, 0, 0], [0, 0, 0, 1], [0, -1]),  # one split
        ([0, 0, 1], [0, 0, 0], [0]),  # two merged
        ([-1, -1], [0, 1], [-1, -1]),
        ([0, 1], [-1, -1], []),
    ],
)
def test_cases_worked_by_hand(before, after, expected):
    assert match_classes(np.array(before), np.array(after)).tolist() == expected


def test_many_classes_take_little_memory():
    labels = np.arange(20_000) // 2
    moved = np.random.default_rng(0).permutation(10_000)
    matches = match_classes(labels, moved[labels])
    assert np.array_equal(matches[moved], np.arange(10_000))


HEADS = {
    "linear": (lambda n: torch.nn.Linear(4, n), "weight", lambda w, c: w[c]),
    "as wide as its classes": (lambda n: torch.nn.Linear(3, n), "weight", lambda w, c: w[c]),
    "deep": (
        lambda n: torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, n)),
        "2.weight",
        lambda w, c: w[c],
    ),
    "proxies": (lambda n: ProxyAnchorLoss(n, 4), "proxies", lambda w, c: w[c]),
    "normalized softmax": (lambda n: NormalizedSoftmaxLoss(n, 4), "W", lambda w, c: w[:, c]),
    "sub-centers": (
        lambda n: SubCenterArcFaceLoss(num_classes=n, embedding_size=4, sub_centers=2),
        "W",
        lambda w, c: w[:, 2 * c : 2 * c + 2],
    ),
    "soft triple": (
        lambda n: SoftTripleLoss(n, 4, centers_per_class=3), "fc", lambda w, c: w[:, 3 * c : 3 * c + 3]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), torch.optim.Adam])
def test_rows_and_what_the_optimizer_knows_go_with_their_classes(name, optimizer):
    function, weight, row = HEADS[name]
    parts = parts_of(optimizer, metric_loss=function)
    parts.fit(3, 0, torch.device("cpu"))
    old, known = parts.loss_funcs["metric_loss"], parts.optimizers["metric_loss_optimizer"]
    sum(p.square().sum() for p in old.parameters()).backward()
    known.step()
    before = {key: w.clone() for key, w in old.state_dict().items()}
    states = {key: dict(known.state[p]) for key, p in old.named_parameters()}
    parts.fit(4, 1, torch.device("cpu"), np.array([2, -1, 0, 1]))
    new = parts.loss_funcs["metric_loss"]
    assert new is not old
    after, parameter = new.state_dict(), dict(new.named_parameters())[weight]
    fresh = function(4).state_dict()[weight]
    assert after[weight].shape == fresh.shape
    for to, source in ((0, 2), (2, 0), (3, 1)):
        assert torch.equal(row(after[weight], to), row(before[weight], source))
        for key, value in states[weight].items():
            if value is not None and value.shape == before[weight].shape:
                assert torch.equal(row(known.state[parameter][key], to), row(value, source))
                assert not row(known.state[parameter][key], 1).any()
            elif value is not None:
                assert known.state[parameter][key] == value  # steps of Adam
    if name == "deep":
        assert torch.equal(after["0.weight"], before["0.weight"])
    assert known.param_groups[0]["params"] == list(new.parameters())
    sum(p.square().sum() for p in new.parameters()).backward()
    known.step()


def test_a_function_of_its_own_mind_begins_again_with_a_warning():
    def function(num_classes):
        if num_classes == 4:
            raise KeyError("three classes, or five")
        return torch.nn.Linear(4, num_classes)

    assert class_axes(function, function(3), 3) is None
    axes = class_axes(lambda n: torch.nn.Linear(4, n), torch.nn.Linear(4, 3), 3)
    assert axes == {"weight": (0, 1), "bias": (0, 1)}
    head = torch.nn.Linear(4, 9)
    assert class_axes(lambda n: head, head, 3) is None
    parts = parts_of(classifier=function)
    parts.fit(3, 0, torch.device("cpu"))
    with pytest.warns(UserWarning, match="classifier begins again with new weights"):
        parts.fit(3, 1, torch.device("cpu"), np.array([1, 0, 2]))


def margins():
    loss = MarginLoss(num_classes=5, learn_beta=True)
    loss.beta.data = torch.arange(5.0)
    return loss


@pytest.mark.parametrize(
    ("name", "loss", "rows"),
    [
        ("proxies", ProxyAnchorLoss(5, 4), 1),
        ("W", NormalizedSoftmaxLoss(5, 4), 1),
        ("fc", SoftTripleLoss(5, 4, centers_per_class=2), 2),
        ("proxies", ProxyNCALoss(5, 4), 1),
        ("beta", margins(), 1),
    ],
)
def test_proxies_given_as_a_module_move_too(name, loss, rows):
    parts = parts_of(metric_loss=loss)
    before = getattr(loss, name).detach().clone()
    parts.fit(3, 0, torch.device("cpu"), np.array([2, -1, 0]))
    order = [rows * c + i for c in [2, 1, 0, 3, 4] for i in range(rows)]
    expected = before[order] if name in ("proxies", "beta") else before[:, order]
    assert torch.equal(getattr(loss, name), expected)
    with pytest.raises(ValueError, match="the metric_loss has 5 outputs for 6 classes"):
        parts.check_outputs(6)
