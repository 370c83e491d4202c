"""ConCURL's objective: its terms, its two views, its state."""

import copy

import pytest
import torch
from torch import nn

from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.methods.concurl import ConcurlObjective, ConsensusLoss
from pml_posets.methods.memory_bank import MemoryBankNCE

NUM = 12


def images_of(count=8, seed=0):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def net(augment=True):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU()]
    trunk = nn.Sequential(*([BatchAugmentation(rotation=60)] if augment else []), *layers)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    return {"trunk": trunk, "embedder": head}


def make(alpha=0.0, redraw_every=None, **options):
    torch.manual_seed(1)
    consensus = ConsensusLoss(3, dim=7, num_transforms=2, alpha=alpha, redraw_every=redraw_every)
    bank = MemoryBankNCE(NUM, dim=5, num_negatives=9)
    return ConcurlObjective(6, consensus, **{"bank": bank, "hidden_dim": 10, **options})


def two_views():
    return torch.cat([images_of(), images_of(seed=1)]), torch.arange(8).repeat(2)


@pytest.mark.parametrize("own_head", [False, True])
def test_the_objective_is_the_sum_of_its_terms(own_head):
    torch.manual_seed(3)
    head = nn.Linear(6, 5) if own_head else None
    objective, models = make(alpha=0.5, nce_head=head, beta=0.3, views=2), net(augment=False)
    same = copy.deepcopy(objective)
    images, indices = two_views()
    torch.manual_seed(2)
    found = objective(images, indices, models)
    features = models["trunk"](images)
    pooled = features.mean(dim=(2, 3))
    z = same.projection(pooled)
    expected = same.consensus(z[:8], z[8:])
    embeddings = head(pooled[:8]) if own_head else models["embedder"](features[:8])
    torch.manual_seed(2)
    exemplar = same.bank(embeddings, indices[:8])
    torch.testing.assert_close(found, expected + 0.3 * exemplar)
    torch.testing.assert_close(objective.values["exemplar"], exemplar.detach())
    assert sorted(objective.values) == ["consensus", "exemplar", "population"]
    assert torch.equal(objective.bank.memory, same.bank.memory)


def test_a_trunk_that_augments_makes_two_views():
    objective, models, seen = make(), net(), []
    models["trunk"][0].register_forward_hook(lambda part, args, output: seen.append(output))
    objective(images_of(), torch.arange(8), models).backward()
    assert seen[0].shape == (16, 3, 8, 8)
    assert not torch.equal(seen[0][:8], seen[0][8:])
    for part in (models["trunk"][1], models["embedder"][2], objective.projection[0]):
        assert part.weight.grad.abs().sum() > 0


def test_a_single_view_is_an_error():
    with pytest.raises(ValueError, match="there is only one view: the trunk gave the same features"):
        make()(images_of(), torch.arange(8), net(augment=False))
    objective = make().eval()
    assert objective(images_of(), torch.arange(8), net(augment=False)).isfinite()  # no step of training
    images, indices = two_views()
    objective = make(views=2)
    for wrong in (indices[:-1], torch.arange(8).repeat_interleave(2)):
        with pytest.raises(
            ValueError, match=r"two views of the same samples, one after another, got 1[56] images"
        ):
            objective(images[: len(wrong)], wrong, net())


def test_without_instance_discrimination():
    objective = make(bank=None, beta=0.0)
    models = {"trunk": net()["trunk"]}  # then there is no need of an embedder
    objective(images_of(), torch.arange(8), models).backward()
    assert list(objective.values) == ["consensus"]


def test_bad_options():
    with pytest.raises(ValueError, match="L_ex needs a bank"):
        make(bank=None)
    with pytest.raises(ValueError, match=r"views must be 1 .* or 2 .*, got 3"):
        make(views=3)
    with pytest.raises(ValueError, match="beta must be at least 0"):
        make(beta=-1.0)
    with pytest.raises(TypeError, match="bank must be a MemoryBankNCE, got int"):
        make(bank=4)
    with pytest.raises(TypeError, match="consensus must be a ConsensusLoss, got Linear"):
        ConcurlObjective(6, nn.Linear(2, 2), None, beta=0.0)
    with pytest.raises(TypeError, match='a module "embedder" for L_ex'):
        make()(images_of(), torch.arange(8), {"trunk": net()["trunk"]})
    with pytest.raises(ValueError, match="embeddings must have 5 columns like the memory"):
        make()(images_of(), torch.arange(8), {**net(), "embedder": nn.Flatten()})
