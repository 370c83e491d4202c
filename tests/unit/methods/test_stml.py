"""STML's losses against plain loops, and its objective with its teacher."""

import copy
import math

import numpy as np
import pytest
import torch
from loops import softmax, squared, unit
from objectives import images_of, models_of
from refusals import refuses
from torch import nn

import pml_posets.methods.stml as module
from pml_posets.methods.stml import (
    STMLObjective,
    contextual_similarity,
    relation_divergence,
    relaxed_contrastive_loss,
    teacher_similarity,
)


def points(seed=0, count=14, dims=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, dims, generator=g, dtype=torch.float64).to(dtype)


def loop_distances(rows):
    return [[math.sqrt(squared(x, y)) for y in rows] for x in rows]


def loop_contextual(x, k):
    distances = loop_distances([unit(row) for row in x.tolist()])
    count = len(distances)
    order = [sorted(range(count), key=lambda j: (-1 if i == j else distances[i][j], j)) for i in range(count)]
    mutual = [{j for j in order[i][:k] if i in order[j][:k]} for i in range(count)]
    first = [
        [len(mutual[i] & mutual[j]) / len(mutual[i]) if j in mutual[i] else 0.0 for j in range(count)]
        for i in range(count)
    ]
    half = k // 2
    second = [[sum(first[m][j] for m in order[i][:half]) / half for j in range(count)] for i in range(count)]
    return [[(second[i][j] + second[j][i]) / 2 for j in range(count)] for i in range(count)]


def loop_relative(x):
    """Each row's distances to the others, divided by the row's mean."""
    distances = enumerate(loop_distances(x.tolist()))
    return [[d * len(row) / sum(row) for j, d in enumerate(row) if j != i] for i, row in distances]


def loop_relaxed(x, weights, delta):
    total, count = 0.0, len(x)
    for i, row in enumerate(loop_relative(x)):
        for d, w in zip(row, weights[i][:i] + weights[i][i + 1 :], strict=True):
            total += w * d * d + (1 - w) * max(0.0, delta - d) ** 2
    return total / count / (count - 1)


def loop_divergence(x, target, temperature):
    total = 0.0
    for rows in zip(loop_relative(target), loop_relative(x), strict=True):
        theirs, ours = (softmax([-d / temperature for d in row]) for row in rows)
        total += sum(p * math.log(p / q) for p, q in zip(theirs, ours, strict=True))
    return total / len(x)


@pytest.mark.parametrize("k", [2, 5, 8, 14])
@pytest.mark.parametrize("seed", range(2))
def test_contextual_similarity_by_plain_loops(seed, k):
    found = contextual_similarity(points(seed), k)
    np.testing.assert_allclose(found.numpy(), loop_contextual(points(seed), k), atol=1e-12)


@pytest.mark.parametrize("scale", [1, 100])
def test_teacher_similarity_is_the_mean_of_two(scale):
    x = points()
    distances = np.array(loop_distances([unit(row) for row in x.tolist()]))
    expected = (np.exp(-(distances**2) / 3) + np.array(loop_contextual(x, 4))) / 2
    np.testing.assert_allclose(teacher_similarity(scale * x, 4).numpy(), expected, atol=1e-12)


def test_two_views_of_an_image_are_alike():
    x = points().repeat(2, 1)  # exact copies: each finds itself first, whatever its index
    found = teacher_similarity(x, 2)
    assert torch.diagonal(found, 14).min() == 1
    assert found.diagonal().min() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_similarities_of_every_dtype(dtype):
    x = points(dtype=dtype)
    found = teacher_similarity((1e4 * x).requires_grad_(), 4)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(found.double(), teacher_similarity(x.double(), 4), atol=2e-3, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(teacher_similarity(1e4 * x, 4), found)


@pytest.mark.parametrize("delta", [0.5, 1.0, 2.0])
def test_the_loss_by_plain_loops(delta):
    x, weights = points(), teacher_similarity(points(7), 5)
    found = relaxed_contrastive_loss(x, weights, delta)
    assert found.item() == pytest.approx(loop_relaxed(x, weights.tolist(), delta), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_the_divergence_by_plain_loops(temperature):
    x, target = points(), points(5, dims=6)
    found = relation_divergence(x, target, temperature)
    assert found.item() == pytest.approx(loop_divergence(x, target, temperature), rel=1e-10)


def test_by_hand():
    # On a line at 0, 1, 3: row means 4/3, 1, 5/3; relative distances 3/4, 9/4; 1, 2; 9/5, 6/5.
    x = torch.tensor([[0.0], [1.0], [3.0]])
    assert relaxed_contrastive_loss(x, torch.zeros(3, 3)).item() == pytest.approx((1 / 4) ** 2 / 6)
    squares = [(3 / 4) ** 2, (9 / 4) ** 2, 1, 4, (9 / 5) ** 2, (6 / 5) ** 2]
    assert relaxed_contrastive_loss(x, torch.ones(3, 3)).item() == pytest.approx(sum(squares) / 6)


def test_gradients():
    x, target = points(count=6).requires_grad_(), points(4, 6).requires_grad_()
    weights = teacher_similarity(points(3, 6), 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: relaxed_contrastive_loss(x, weights.detach(), 1.3), (x,))
    assert torch.autograd.gradcheck(lambda x: relation_divergence(x, target.detach(), 0.7), (x,))
    (relation_divergence(x, target) + relaxed_contrastive_loss(x, weights)).backward()
    assert target.grad is weights.grad is None


def test_a_single_sample_is_zero():
    x = torch.zeros(1, 3, requires_grad=True)
    value = relaxed_contrastive_loss(x, torch.ones(1, 1)) + relation_divergence(x, x)
    value.backward()
    assert value.item() == 0


def test_copies_of_one_sample_are_no_nan():
    x = torch.ones(5, 3, requires_grad=True)
    value = relaxed_contrastive_loss(x, torch.full((5, 5), 0.25)) + relation_divergence(x, x)
    value.backward()
    assert value.item() == pytest.approx(0.75)
    assert x.grad.isfinite().all()
    pair = torch.cat([points(), points()]).requires_grad_()
    relaxed_contrastive_loss(pair, teacher_similarity(pair, 4)).backward()
    assert pair.grad.isfinite().all()


def made(augment=False, **options):
    models = models_of(augment)
    return models, STMLObjective(models, **{"feature_dim": 6, "wide_dim": 16, "k": 4, **options})


def test_the_objective_is_the_sum_of_its_terms():
    models, objective = made(divergence_weight=0.5, decay=0.0)
    models["trunk"].eval()
    images = images_of()
    found = objective(images, torch.arange(12), models)
    features = models["trunk"](images)
    narrow, wide = models["embedder"](features), objective.wide(features.mean(dim=(2, 3)))
    similarity = teacher_similarity(wide, 4)  # the teacher is the student
    expected = relaxed_contrastive_loss(narrow, similarity) + relaxed_contrastive_loss(wide, similarity)
    torch.testing.assert_close(found, expected / 2 + 0.5 * relation_divergence(narrow, wide))


def test_the_teacher_is_a_moving_average():
    models, objective = made(decay=0.8)
    trunk, images = models["trunk"], images_of(6, 4)
    expected = trunk[0].weight.detach().clone()
    optimizer = torch.optim.SGD([*trunk.parameters(), *objective.parameters()], lr=0.5)
    for step in range(1, 45):
        weight = 1 - min(0.8, step / (step + 9))
        expected += weight * (trunk[0].weight.detach() - expected)
        optimizer.zero_grad()
        objective(images, torch.arange(6), models).backward()
        torch.testing.assert_close(objective.teacher["trunk"][0].weight, expected)
        optimizer.step()
    assert not torch.equal(trunk[0].weight, expected)
    assert not torch.equal(objective.teacher["wide"].weight, objective.wide.weight)
    assert [p.grad for p in objective.teacher.parameters()] == [None] * 6
    objective.eval()
    before = copy.deepcopy(objective.teacher.state_dict())
    objective(images, torch.arange(6), models)
    assert all(torch.equal(value, before[key]) for key, value in objective.teacher.state_dict().items())


@pytest.mark.parametrize("same", [True, False])
def test_the_teacher_sees_the_same_view(monkeypatch, same):
    seen, views = [], []
    monkeypatch.setattr(
        module, "teacher_similarity", lambda z, *args: seen.append(z) or teacher_similarity(z, *args)
    )
    models, objective = made(augment=True, same_view=same)
    assert objective.train().training
    models["trunk"][0].register_forward_hook(lambda part, args, output: views.append(output))
    torch.manual_seed(5)
    objective(images_of(), torch.arange(12), models)
    drawn = torch.rand(3)
    assert not any(part.training for part in objective.teacher.modules())
    view = views[0] if same else copy.deepcopy(models["trunk"][0]).eval()(images_of())
    features = objective.teacher["trunk"][1:](view)
    torch.testing.assert_close(seen[0], objective.teacher["wide"](features.mean(dim=(2, 3))))
    torch.manual_seed(5)
    models["trunk"](images_of())
    assert torch.equal(torch.rand(3), drawn)  # what follows is drawn as if there were no teacher


X, SQUARE = points(), torch.zeros(14, 14)


def objective(**options):
    return lambda: made(**options)


def called(count=12, **changes):
    def call():
        models, objective = made()
        objective(images_of(count), torch.arange(count), {**models, **changes})

    return call


test_bad_input = refuses(
    (lambda: contextual_similarity(X, 15), ValueError, "k must be at most the number of samples, got k=15"),
    (lambda: contextual_similarity(X, 1), ValueError, "k must be at least 2, got 1"),
    (lambda: teacher_similarity(X, 4, sigma=0), ValueError, "sigma must be above 0, got 0"),
    (lambda: teacher_similarity(X[:, :, None]), ValueError, "teacher must have shape (N, D), got (14, 3, 1)"),
    (lambda: contextual_similarity(X.long()), TypeError, "must be a floating point tensor (N, D)"),
    (lambda: relaxed_contrastive_loss(X, SQUARE[:, 1:]), ValueError, "similarity must have shape (14, 14)"),
    (lambda: relaxed_contrastive_loss(X, SQUARE - 2), ValueError, "must be in [0, 1], got -2 to -2"),
    (lambda: relaxed_contrastive_loss(X, SQUARE / 0), ValueError, "must be in [0, 1], got nan"),
    (lambda: relaxed_contrastive_loss(X, SQUARE, 0), ValueError, "delta must be above 0, got 0"),
    (lambda: relation_divergence(X, X[1:]), ValueError, "must have 14 rows like the embeddings, got (13, 3)"),
    (lambda: relation_divergence(X, X, -1), ValueError, "temperature must be above 0"),
    (called(3), ValueError, "a batch must hold at least k=4 images, got 3: lower k"),
    (called(embedder=None), TypeError, 'must have a module "embedder"'),
    (called(trunk=nn.Conv2d(3, 5, 3)), ValueError, "not the one that the teacher was copied from"),
    (lambda: STMLObjective({}, 6), TypeError, 'must be a mapping with a module "trunk"'),
    (objective(k=1), ValueError, "k must be at least 2"),
    (objective(decay=1.0), ValueError, "decay must be in [0, 1), got 1.0"),
    (objective(divergence_weight=-1), ValueError, "divergence_weight must be at least 0"),
    (objective(delta=0), ValueError, "delta must be above 0"),
)
