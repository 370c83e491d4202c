"""ConCURL's objective: its terms, its two views, its state."""

import copy

import pytest
import torch
from objectives import images_of, models_of
from refusals import refuses
from torch import nn

from pml_posets.methods.concurl import ConcurlObjective, ConsensusLoss
from pml_posets.methods.memory_bank import MemoryBankNCE

NUM = 12


def make(alpha=0.0, redraw_every=None, **options):
    torch.manual_seed(1)
    consensus = ConsensusLoss(3, dim=7, num_transforms=2, alpha=alpha, redraw_every=redraw_every)
    bank = MemoryBankNCE(NUM, dim=5, num_negatives=9)
    return ConcurlObjective(6, consensus, **{"bank": bank, "hidden_dim": 10, **options})


def two_views():
    return torch.cat([images_of(8), images_of(8, seed=1)]), torch.arange(8).repeat(2)


@pytest.mark.parametrize("own_head", [False, True])
def test_the_objective_is_the_sum_of_its_terms(own_head):
    torch.manual_seed(3)
    head = nn.Linear(6, 5) if own_head else None
    objective, models = make(alpha=0.5, nce_head=head, beta=0.3, views=2), models_of(augment=False)
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
    models, seen = models_of(), []
    models["trunk"][0].register_forward_hook(lambda part, args, output: seen.append(output))
    make()(images_of(8), torch.arange(8), models)
    assert seen[0].shape == (16, 3, 8, 8)
    assert not torch.equal(seen[0][:8], seen[0][8:])
    # no step of training: one view is enough
    assert make().eval()(images_of(8), torch.arange(8), models_of(augment=False)).isfinite()


def test_without_instance_discrimination():
    objective = make(bank=None, beta=0.0)
    models = {"trunk": models_of()["trunk"]}  # then there is no need of an embedder
    objective(images_of(8), torch.arange(8), models).backward()
    assert list(objective.values) == ["consensus"]


IMAGES, INDICES = two_views()


def called(images=IMAGES[:8], indices=INDICES[:8], models=None, **options):
    return lambda: make(**options)(images, indices, models or models_of())


PAIRS = "two views of the same samples, one after another, got"

test_bad_input = refuses(
    (called(models=models_of(augment=False)), ValueError, "there is only one view: the trunk gave the same"),
    (called(IMAGES[:15], INDICES[:15], views=2), ValueError, f"{PAIRS} 15 images"),
    (called(IMAGES, torch.arange(8).repeat_interleave(2), views=2), ValueError, f"{PAIRS} 16 images"),
    (called(bank=None), ValueError, "L_ex needs a bank"),
    (called(views=3), ValueError, "or 2 (the batch holds both views), got 3"),
    (called(beta=-1.0), ValueError, "beta must be at least 0"),
    (called(bank=4), TypeError, "bank must be a MemoryBankNCE, got int"),
    (lambda: ConcurlObjective(6, nn.Linear(2, 2), None), TypeError, "must be a ConsensusLoss, got Linear"),
    (called(models={"trunk": models_of()["trunk"]}), TypeError, 'a module "embedder" for L_ex'),
    (called(models={**models_of(), "embedder": nn.Flatten()}), ValueError, "5 columns like the memory"),
)
