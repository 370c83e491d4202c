"""STML's losses against plain loops, and its objective with its teacher."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import pml_posets.methods.stml as module
from pml_posets.data.augmentation import BatchAugmentation
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


# --- The plain loops


def loop_distances(rows):
    return [[math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True))) for y in rows] for x in rows]


def loop_unit(rows):
    return [[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in rows]


def loop_contextual(x, k):
    distances = loop_distances(loop_unit(x.tolist()))
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
    distances = loop_distances(x.tolist())
    return [[d / (sum(row) / len(row)) for d in row] for row in distances]


def loop_relaxed(x, weights, delta):
    relative, total, count = loop_relative(x), 0.0, len(x)
    for i in range(count):
        for j in range(count):
            if i != j:
                d, w = relative[i][j], float(weights[i][j])
                total += w * d * d + (1 - w) * max(0.0, delta - d) ** 2
    return total / count / (count - 1)


def loop_divergence(x, target, temperature):
    def shares(relative, i):
        other = [j for j in range(len(relative)) if j != i]
        exps = [math.exp(-relative[i][j] / temperature) for j in other]
        return [e / sum(exps) for e in exps]

    ours, theirs, total = loop_relative(x), loop_relative(target), 0.0
    for i in range(len(ours)):
        for p, q in zip(shares(theirs, i), shares(ours, i), strict=True):
            total += p * math.log(p / q)
    return total / len(ours)


# --- Similarities


@pytest.mark.parametrize("k", [2, 3, 5, 8, 14])
@pytest.mark.parametrize("seed", range(2))
def test_contextual_similarity_by_plain_loops(seed, k):
    found = contextual_similarity(points(seed), k)
    np.testing.assert_allclose(found.numpy(), loop_contextual(points(seed), k), atol=1e-12)
    assert torch.equal(found, found.T)


def test_teacher_similarity_is_the_mean_of_two():
    x = points()
    distances = np.array(loop_distances(loop_unit(x.tolist())))
    expected = (np.exp(-(distances**2) / 3) + np.array(loop_contextual(x, 4))) / 2
    np.testing.assert_allclose(teacher_similarity(x, 4).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(teacher_similarity(100 * x, 4).numpy(), expected, atol=1e-12)


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
        assert torch.equal(teacher_similarity(x, 4), teacher_similarity(x.clone(), 4))
        assert teacher_similarity(x, 4).dtype == torch.float32


def test_bad_similarities():
    with pytest.raises(ValueError, match="k must be at most the number of samples, got k=15 for 14: lower k"):
        contextual_similarity(points(), 15)
    with pytest.raises(ValueError, match="k must be at least 2, got 1"):
        contextual_similarity(points(), 1)
    with pytest.raises(ValueError, match="sigma must be above 0, got 0"):
        teacher_similarity(points(), 4, sigma=0)
    with pytest.raises(ValueError, match=r"teacher must have shape \(N, D\), got \(14, 3, 1\)"):
        teacher_similarity(points()[:, :, None])
    with pytest.raises(
        TypeError, match=r"teacher must be a floating point tensor \(N, D\), got torch\.int64"
    ):
        contextual_similarity(torch.zeros(14, 3).long())


# --- The relaxed contrastive loss


@pytest.mark.parametrize("delta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(2))
def test_the_loss_by_plain_loops(seed, delta):
    x, weights = points(seed), teacher_similarity(points(seed + 7), 5)
    found = relaxed_contrastive_loss(x, weights, delta)
    assert found.item() == pytest.approx(loop_relaxed(x, weights.tolist(), delta), rel=1e-12)


def test_by_hand():
    # On a line at 0, 1, 3: row means 4/3, 1, 5/3; relative distances 3/4, 9/4; 1, 2; 9/5, 6/5.
    x = torch.tensor([[0.0], [1.0], [3.0]])
    assert relaxed_contrastive_loss(x, torch.zeros(3, 3)).item() == pytest.approx((1 / 4) ** 2 / 6)
    squares = [(3 / 4) ** 2, (9 / 4) ** 2, 1, 4, (9 / 5) ** 2, (6 / 5) ** 2]
    assert relaxed_contrastive_loss(x, torch.ones(3, 3)).item() == pytest.approx(sum(squares) / 6)


def test_gradients():
    x, weights = points(count=6).requires_grad_(), teacher_similarity(points(3, 6), 3)
    assert torch.autograd.gradcheck(lambda x: relaxed_contrastive_loss(x, weights, 1.3), (x,))
    target = points(4, 6)
    assert torch.autograd.gradcheck(lambda x: relation_divergence(x, target, 0.7), (x,))


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


def test_bad_losses():
    x = points()
    with pytest.raises(ValueError, match=r"similarity must have shape \(14, 14\).*got \(14, 13\)"):
        relaxed_contrastive_loss(x, torch.zeros(14, 13))
    with pytest.raises(ValueError, match=r"similarity must be in \[0, 1\], got -2 to -2"):
        relaxed_contrastive_loss(x, torch.full((14, 14), -2.0))
    with pytest.raises(ValueError, match=r"similarity must be in \[0, 1\], got nan"):
        relaxed_contrastive_loss(x, torch.full((14, 14), torch.nan))
    with pytest.raises(ValueError, match="delta must be above 0, got 0"):
        relaxed_contrastive_loss(x, torch.zeros(14, 14), 0)
    with pytest.raises(ValueError, match=r"target must have 14 rows like the embeddings, got \(13, 3\)"):
        relation_divergence(x, x[1:])
    with pytest.raises(ValueError, match="temperature must be above 0"):
        relation_divergence(x, x, -1)


# --- The divergence


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_the_divergence_by_plain_loops(temperature):
    x, target = points(), points(5, dims=6)
    found = relation_divergence(x, target, temperature)
    assert found.item() == pytest.approx(loop_divergence(x, target, temperature), rel=1e-10)
    assert found > 0


def test_no_gradient_reaches_the_target():
    x, target = points().requires_grad_(), points(5).requires_grad_()
    weights = teacher_similarity(points(3), 5).requires_grad_()
    (relation_divergence(x, target) + relaxed_contrastive_loss(x, weights)).backward()
    assert x.grad.abs().sum() > 0
    assert target.grad is None
    assert weights.grad is None


# --- The objective


def images_of(count=12, seed=0):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def parts(augment=False, **options):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    trunk = nn.Sequential(*([BatchAugmentation(rotation=90)] if augment else []), *layers)
    models = {
        "trunk": trunk,
        "embedder": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    }
    options = {"feature_dim": 6, "wide_dim": 16, "k": 4, **options}
    return models, STMLObjective(models, **options)


def test_the_objective_is_the_sum_of_its_terms():
    models, objective = parts(divergence_weight=0.5, decay=0.0)
    models["trunk"].eval()
    images = images_of()
    found = objective(images, torch.arange(12), models)
    features = models["trunk"](images)
    narrow, wide = models["embedder"](features), objective.wide(features.mean(dim=(2, 3)))
    similarity = teacher_similarity(wide, 4)  # the teacher is the student
    expected = relaxed_contrastive_loss(narrow, similarity) + relaxed_contrastive_loss(wide, similarity)
    torch.testing.assert_close(found, expected / 2 + 0.5 * relation_divergence(narrow, wide))


def test_the_teacher_is_a_moving_average():
    models, objective = parts(decay=0.8)
    trunk, images = models["trunk"], images_of()
    expected = trunk[0].weight.detach().clone()
    optimizer = torch.optim.SGD([*trunk.parameters(), *objective.parameters()], lr=0.5)
    for step in range(1, 60):
        weight = 1 - min(0.8, step / (step + 9))
        expected += weight * (trunk[0].weight.detach() - expected)
        optimizer.zero_grad()
        objective(images, torch.arange(12), models).backward()
        torch.testing.assert_close(objective.teacher["trunk"][0].weight, expected)
        optimizer.step()
    assert not torch.equal(trunk[0].weight, expected)
    assert not torch.equal(objective.teacher["wide"].weight, objective.wide.weight)
    assert [p.grad for p in objective.teacher.parameters()] == [None] * 6
    objective.eval()
    before = copy.deepcopy(objective.teacher.state_dict())
    objective(images, torch.arange(12), models)
    assert all(torch.equal(value, before[key]) for key, value in objective.teacher.state_dict().items())


def test_the_teacher_stays_in_evaluation_mode():
    models, objective = parts()
    objective.train()
    assert objective.training
    assert not any(part.training for part in objective.teacher.modules())
    objective(images_of(), torch.arange(12), models)
    assert not any(part.training for part in objective.teacher.modules())


def test_the_teacher_sees_the_same_view(monkeypatch):
    seen = []

    def similarity(teacher, *args):
        seen.append(teacher)
        return teacher_similarity(teacher, *args)

    monkeypatch.setattr(module, "teacher_similarity", similarity)
    for same in (True, False):
        models, objective = parts(augment=True, same_view=same)
        views = []
        models["trunk"][0].register_forward_hook(lambda part, args, output, views=views: views.append(output))
        torch.manual_seed(5)
        objective(images_of(), torch.arange(12), models)
        drawn = torch.rand(3)
        view = views[0] if same else copy.deepcopy(models["trunk"][0]).eval()(images_of())
        rest = objective.teacher["trunk"][1:]
        expected = objective.teacher["wide"](rest(view).mean(dim=(2, 3)))
        torch.testing.assert_close(seen[-1], expected)
        torch.manual_seed(5)
        models["trunk"](images_of())
        assert torch.equal(torch.rand(3), drawn)  # what follows is drawn as if there were no teacher
    objective.eval()
    models["trunk"].eval()
    assert objective(images_of(), torch.arange(12), models) == objective(
        images_of(), torch.arange(12), models
    )


def test_bad_calls_of_the_objective():
    models, objective = parts()
    with pytest.raises(ValueError, match="a batch must hold at least k=4 images, got 3: lower k"):
        objective(images_of(3), torch.arange(3), models)
    with pytest.raises(TypeError, match='must have a module "embedder"'):
        objective(images_of(), torch.arange(12), {"trunk": models["trunk"]})
    other = {**models, "trunk": nn.Sequential(nn.Conv2d(3, 5, 3))}
    with pytest.raises(ValueError, match="not the one that the teacher was copied from"):
        objective(images_of(), torch.arange(12), other)
    with pytest.raises(TypeError, match='must be a mapping with a module "trunk"'):
        STMLObjective({}, 6)
    with pytest.raises(ValueError, match="k must be at least 2"):
        parts(k=1)
    with pytest.raises(ValueError, match="decay of the average"):
        parts(decay=1.0)
    with pytest.raises(ValueError, match="divergence_weight must be at least 0"):
        parts(divergence_weight=-1)
    with pytest.raises(ValueError, match="delta must be above 0"):
        parts(delta=0)
