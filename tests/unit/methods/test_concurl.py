"""ConCURL: Sinkhorn, the random spaces and the consensus loss against plain loops; its objective."""

import copy
import math

import numpy as np
import pytest
import torch
from loops import dot, softmax, unit
from objectives import images_of, models_of
from refusals import refuses
from torch import nn

import pml_posets.methods.concurl as module
from pml_posets.methods import MemoryBankNCE, RandomDiagonals, RandomProjections
from pml_posets.methods.concurl import ConcurlObjective, ConsensusLoss, sinkhorn


def views(seed=0, count=9, dim=6, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    first = torch.randn(count, dim, generator=g, dtype=torch.float64)
    second = first + 0.5 * torch.randn(count, dim, generator=g, dtype=torch.float64)
    return first.to(dtype), second.to(dtype)


def make(**options):
    return ConsensusLoss(
        **{"num_prototypes": 4, "dim": 6, "num_transforms": 3, "transform_dim": 4, **options}
    )


TRANSFORMS = pytest.mark.parametrize("transform", ["projection", "diagonal"])


def loop_sinkhorn(scores, epsilon=0.05, num_iterations=3):
    q = [[math.exp(s / epsilon) for s in row] for row in scores]
    for _ in range(num_iterations):
        sums = [sum(column) for column in zip(*q, strict=True)]
        q = [[x / total for x, total in zip(row, sums, strict=True)] for row in q]
        q = [[x / sum(row) for x in row] for row in q]
    return q


def loop_cosines(rows, others):
    return [[dot(unit(x), unit(y)) for y in others] for x in rows]


def loop_cross_entropy(q, scores, temperature):
    total = 0.0
    for targets, row in zip(q, scores, strict=True):
        total -= dot(targets, [math.log(p) for p in softmax([s / temperature for s in row])])
    return total / len(q)


def loop_swapped(s1, s2, q1, q2, temperature):
    return (loop_cross_entropy(q2, s1, temperature) + loop_cross_entropy(q1, s2, temperature)) / 2


def loop_transformed(rows, matrix):
    if matrix.ndim == 1:
        return [[x * a for x, a in zip(row, matrix.tolist(), strict=True)] for row in rows]
    return [[dot(row, line) for line in matrix.tolist()] for row in rows]


def loop_loss(loss, first, second):
    z1, z2, centers = first.tolist(), second.tolist(), loss.prototypes.tolist()
    q1, q2 = (loop_sinkhorn(loop_cosines(z, centers), loss.epsilon) for z in (z1, z2))
    t = loss.temperature
    population = loop_swapped(loop_cosines(z1, centers), loop_cosines(z2, centers), q1, q2, t)
    consensus = 0.0
    for matrix in loss.spaces.matrices:
        c, a, b = (loop_transformed(rows, matrix) for rows in (centers, z1, z2))
        consensus += loop_swapped(loop_cosines(a, c), loop_cosines(b, c), q1, q2, t)
    return loss.alpha * population + loss.gamma * consensus / len(loss.spaces.matrices)


@pytest.mark.parametrize(("epsilon", "num_iterations"), [(0.05, 3), (0.5, 1), (0.1, 10)])
def test_sinkhorn_by_plain_loops(epsilon, num_iterations):
    scores = torch.rand(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = sinkhorn(scores, epsilon, num_iterations)
    np.testing.assert_allclose(found.numpy(), loop_sinkhorn(scores.tolist(), epsilon, num_iterations), 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sinkhorn_of_every_dtype(dtype):
    scores = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    found = sinkhorn(100 * scores)  # exponents in the thousands
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(found.double(), sinkhorn((100 * scores).double()), atol=1e-3, rtol=0)


def test_sinkhorn_of_few_samples():
    assert sinkhorn(torch.zeros(0, 4)).shape == (0, 4)
    torch.testing.assert_close(sinkhorn(torch.zeros(1, 4)), torch.full((1, 4), 0.25))
    torch.testing.assert_close(sinkhorn(torch.randn(5, 1)), torch.ones(5, 1))


SPACES = pytest.mark.parametrize(
    "make_spaces",
    [lambda seed=0: RandomProjections(6, 4, 3, seed), lambda seed=0: RandomDiagonals(6, 3, seed)],
)


@SPACES
def test_spaces_by_plain_loops(make_spaces):
    spaces, x = make_spaces(), views()[0]
    for found, matrix in zip(spaces(x), spaces.matrices, strict=True):
        np.testing.assert_allclose(found.numpy(), loop_transformed(x.tolist(), matrix.double()), rtol=1e-12)


def test_numbers_are_drawn_from_their_distribution():
    wide = RandomProjections(dim=64, transform_dim=40, num_transforms=30).matrices
    assert wide.mean().abs().item() < 0.002
    assert wide.std().item() == pytest.approx(40**-0.5, rel=0.02)
    assert not torch.equal(wide[0], wide[1])
    assert RandomDiagonals(dim=500, num_transforms=40).matrices.std().item() == pytest.approx(1, rel=0.02)


@SPACES
def test_redrawing_draws_new_ones(make_spaces):
    spaces = make_spaces(1)
    drawn = [spaces.matrices.clone()]
    assert torch.equal(drawn[0], make_spaces(1).matrices)
    assert not torch.equal(drawn[0], make_spaces(2).matrices)
    for _ in range(2):
        spaces.redraw()
        assert not any((spaces.matrices == before).any() for before in drawn)
        drawn.append(spaces.matrices.clone())
    assert list(spaces.state_dict()) == ["_extra_state"]
    fresh = make_spaces(7)
    fresh.load_state_dict(spaces.state_dict())
    assert torch.equal(fresh.matrices, spaces.matrices)
    fresh.redraw()
    spaces.redraw()
    assert torch.equal(fresh.matrices, spaces.matrices)


@TRANSFORMS
@pytest.mark.parametrize(("alpha", "gamma"), [(0.0, 1.0), (1.0, 0.0), (0.3, 0.7)])
def test_the_value_by_plain_loops(transform, alpha, gamma):
    reduced = 4 if transform == "projection" else None
    loss = make(transform=transform, transform_dim=reduced, alpha=alpha, gamma=gamma).double()
    found = loss(*views())
    assert found.item() == pytest.approx(loop_loss(loss, *views()), rel=1e-9)
    both = alpha * loss.values.get("population", 0) + gamma * loss.values.get("consensus", 0)
    torch.testing.assert_close(both, found)
    assert sorted(loss.values) == [n for n, w in (("consensus", gamma), ("population", alpha)) if w]


def test_the_default_is_that_of_the_published_commands():
    loss = ConsensusLoss(10)
    assert (loss.dim, loss.temperature, loss.epsilon, loss.alpha, loss.gamma) == (256, 0.1, 0.05, 0.0, 1.0)
    assert loss.spaces.matrices.shape == (64, 128, 256)
    assert not list(loss.parameters())
    torch.testing.assert_close(loss.prototypes.norm(dim=1), torch.ones(10))
    assert torch.equal(loss.prototypes, ConsensusLoss(10).prototypes)
    assert not torch.equal(loss.prototypes, ConsensusLoss(10, seed=1).prototypes)
    assert sorted(loss.state_dict()) == ["_extra_state", "prototypes", "spaces._extra_state"]


def test_views_in_clusters_of_their_own():
    # Two prototypes across, and samples on them: q is (1, 0) and (0, 1), p is softmax of (1, -1) / t.
    loss = make(num_prototypes=2, dim=2, transform_dim=1, alpha=1.0, gamma=0.0, temperature=0.5)
    loss.prototypes.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    first = torch.tensor([[2.0, 0.0], [-3.0, 0.0]])
    for second, sign in ((4 * first, -1), (-first, 1)):
        expected = math.log(1 + math.exp(sign * 4))
        assert loss(first, second).item() == pytest.approx(expected, rel=1e-4)


@TRANSFORMS
def test_gradients(transform, monkeypatch):
    loss = make(transform=transform, transform_dim=None, alpha=0.5, train_prototypes=True).double().eval()
    first, second = (x.requires_grad_() for x in views(count=4))
    held = [sinkhorn(torch.randn(4, 4, dtype=torch.float64)) for _ in range(2)]

    def value(first, second, prototypes):
        targets = iter(held)  # they have no gradient: hold them still
        monkeypatch.setattr(module, "sinkhorn", lambda *args: next(targets))
        return torch.func.functional_call(loss, {"prototypes": prototypes}, (first, second))

    # The consensus sees detached prototypes: their numerical gradient is that of L_pop alone.
    loss.gamma = 0.0
    prototypes = (2 * loss.prototypes.detach()).requires_grad_()
    assert torch.autograd.gradcheck(value, (first, second, prototypes))
    loss.alpha, loss.gamma = 0.0, 1.0
    assert torch.autograd.gradcheck(lambda a, b: value(a, b, loss.prototypes), (first, second))
    value(first, second, prototypes).backward()
    assert prototypes.grad is None or not prototypes.grad.any()


def test_trained_prototypes_move_and_stay_unit():
    loss, batch = make(alpha=1.0, gamma=0.0, train_prototypes=True), views(dtype=torch.float32)
    before = loss.prototypes.detach().clone()
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        value = loss(*batch)
        torch.testing.assert_close(loss.prototypes.norm(dim=1), torch.ones(4))
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0]
    assert (loss.prototypes - before).norm() > 0.1
    drifted = loss.prototypes.detach().clone()
    value = loss.eval()(*batch)
    assert torch.equal(loss.prototypes, drifted)  # only steps of training bring them back
    torch.testing.assert_close(loss.train()(*batch), value)
    (loss(*batch) + loss(*batch)).backward()  # two calls before one step


def test_transforms_are_redrawn():
    loss, batch = make(redraw_every=2), views(dtype=torch.float32)
    draws, values = [], []
    for _ in range(6):
        values.append(loss(*batch).item())
        draws.append(loss.spaces.draw)
    assert draws == [0, 0, 1, 1, 2, 2]
    assert values[0] == values[1] != values[2] == values[3] != values[4]
    assert loss.eval()(*batch).item() == values[-1]  # no step of training
    loss.train()
    other = make(redraw_every=2)
    other.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert [loss(*batch).item() for _ in range(3)] == [other(*batch).item() for _ in range(3)]
    assert other.spaces.draw == 4 == loss.spaces.draw


FIRST, SECOND = views(dtype=torch.float32)


def made(**options):
    return lambda: make(**options)


def scored(*args, **options):
    return lambda: sinkhorn(*args, **options)


test_bad_input = refuses(
    (scored(torch.zeros(3)), ValueError, "scores must have shape (B, K), got (3,)"),
    (scored(torch.zeros(3, 0)), ValueError, "scores must have a column a prototype, got shape (3, 0)"),
    (scored(torch.zeros(3, 2).long()), TypeError, "must be a floating point tensor (B, K), got torch.int64"),
    (scored(torch.zeros(3, 2), 0), ValueError, "epsilon must be above 0, got 0"),
    (scored(torch.zeros(3, 2), num_iterations=0), ValueError, "num_iterations must be at least 1"),
    (lambda: RandomProjections(6, 0, 3), ValueError, "transform_dim must be at least 1"),
    (lambda: RandomDiagonals(6, 3)(torch.zeros(2, 5)), ValueError, "x must have shape (N, 6), got (2, 5)"),
    (made(num_prototypes=1), ValueError, "num_prototypes must be at least 2, got 1"),
    (made(transform="rotation"), ValueError, "must be one of 'projection', 'diagonal', got 'rotation'"),
    (made(transform="diagonal"), ValueError, 'transform_dim goes with transform="projection", got 4'),
    (made(train_prototypes=True), ValueError, "train_prototypes needs alpha above 0"),
    (made(gamma=0), ValueError, "alpha and gamma are both 0"),
    (made(alpha=-1), ValueError, "alpha must be at least 0, got -1"),
    (made(temperature=0), ValueError, "temperature must be above 0, got 0"),
    (made(redraw_every=0), ValueError, "redraw_every must be at least 1"),
    (lambda: make()(FIRST, SECOND[1:]), ValueError, "one shape (B, 6), got (9, 6) and (8, 6)"),
    (lambda: make()(FIRST[:, 1:], SECOND[:, 1:]), ValueError, "one shape (B, 6), got (9, 5) and (9, 5)"),
    (lambda: make()(FIRST, FIRST), ValueError, "two views are needed, got one tensor twice"),
    (lambda: make()(FIRST, None), TypeError, "the second view must be a floating point tensor"),
)


def make_objective(alpha=0.0, redraw_every=None, **options):
    torch.manual_seed(1)
    consensus = ConsensusLoss(3, dim=7, num_transforms=2, alpha=alpha, redraw_every=redraw_every)
    bank = MemoryBankNCE(12, dim=5, num_negatives=9)
    return ConcurlObjective(6, consensus, **{"bank": bank, "hidden_dim": 10, **options})


def two_views():
    return torch.cat([images_of(8), images_of(8, seed=1)]), torch.arange(8).repeat(2)


@pytest.mark.parametrize("own_head", [False, True])
def test_the_objective_is_the_sum_of_its_terms(own_head):
    torch.manual_seed(3)
    head = nn.Linear(6, 5) if own_head else None
    objective, models = make_objective(alpha=0.5, nce_head=head, beta=0.3, views=2), models_of(augment=False)
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
    make_objective()(images_of(8), torch.arange(8), models)
    assert seen[0].shape == (16, 3, 8, 8)
    assert not torch.equal(seen[0][:8], seen[0][8:])
    # no step of training: one view is enough
    assert make_objective().eval()(images_of(8), torch.arange(8), models_of(augment=False)).isfinite()


def test_without_instance_discrimination():
    objective = make_objective(bank=None, beta=0.0)
    models = {"trunk": models_of()["trunk"]}  # then there is no need of an embedder
    objective(images_of(8), torch.arange(8), models).backward()
    assert list(objective.values) == ["consensus"]


IMAGES, INDICES = two_views()


def called(images=IMAGES[:8], indices=INDICES[:8], models=None, **options):
    return lambda: make_objective(**options)(images, indices, models or models_of())


PAIRS = "two views of the same samples, one after another, got"

test_bad_objectives = refuses(
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
