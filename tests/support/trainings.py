"""Small trainings by JointTrainer, on images of noise."""

import torch

from pml_posets.losses.poset import PosetLoss
from pml_posets.samplers.pseudo_label import PseudoLabelSampler
from pml_posets.training.joint import JointTrainer


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


def noise(count, size, number=0, channels=1):
    """A list of images in 0..1, always the same."""
    generator = torch.Generator().manual_seed(number)
    return list(torch.rand(count, channels, size, size, generator=generator))


def sgd(lr=0.1, **options):
    """An optimizer as JointTrainer takes it: a function of the parameters."""
    return lambda parameters: torch.optim.SGD(parameters, **{"lr": lr, "momentum": 0.9, **options})


def make(data, trunk, grouping, *, features=None, sampler_options=None, **changes):
    """A trainer of two rounds on these images, which are their own features by default."""
    options = {
        "models": {"trunk": trunk},
        "optimizers": {"trunk_optimizer": sgd()},
        "loss_funcs": {"metric_loss": PosetLoss(sigma=0.5)},
        "dataset": data,
        "num_rounds": 2,
        "iterations_per_round": 3,
        "progress": False,
        **changes,
    }
    if "sampler" not in options:
        features = torch.stack(list(data)).flatten(1) if features is None else features
        given = {"batch_size": 8, "grouping": grouping, **(sampler_options or {})}
        options["sampler"] = PseudoLabelSampler(features, **given)
    return JointTrainer(**options)


def weights(joint):
    """All weights and buffers of models and losses, by name."""
    state = joint._components.state_dict()
    parts = {**state["models"], **state["loss_funcs"]}
    return {f"{name} {key}": w.clone() for name, part in parts.items() for key, w in part.items()}


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
