"""What all losses and objectives promise: any dtype, no samples, no NaN, gradients, whole states, checks."""

import copy
from functools import partial

import pytest
import torch
from objectives import images_of, models_of

from pml_posets import methods
from pml_posets.losses import FeatureLoss, PosetLoss

NUM = 12


def rows(seed=0, dims=6):
    return torch.randn(NUM, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(x):
    exact = 2.0 ** torch.randint(-2, 3, (6, 6), generator=torch.Generator().manual_seed(0))  # in any dtype
    maps = (x[:, None] * exact.to(x)).unflatten(2, (2, 3))  # (N, 6, 2, 3)
    theta = torch.tensor([[0.6, 0.2, 0.1], [-0.3, 0.8, 0.0]]).expand(len(x), 2, 3)
    return methods.attention_consistency_loss(maps.flip(1), maps.flip(2), maps, maps.flip(3), theta, theta)


def consensus(x):
    return methods.ConsensusLoss(4, dim=6, num_transforms=3, transform_dim=4, alpha=0.5)(x, x.flip(1))


def feature(x):
    torch.manual_seed(1)
    features = rows(2, 5).float()
    features[0] = 0
    return FeatureLoss(6, features)(x, torch.arange(len(x)))


def memory(x):
    torch.manual_seed(0)
    return methods.MemoryBankNCE(NUM, dim=6, num_negatives=7, temperature=0.01)(x, torch.arange(len(x)))


def relaxed(x):
    return methods.relaxed_contrastive_loss(x, methods.teacher_similarity(rows(3), 5)[: len(x), : len(x)])


def rotation(x):
    return methods.rotation_cross_entropy(x[:, :4], torch.arange(len(x)) % 4)


def of_classes(loss, x):
    return loss(x, torch.tensor([2, 5, 8, -1]).repeat(3)[: len(x)])


IN_FULL = {  # of at least 32 bits, whatever the autocast
    "attention": attention,
    "consensus": consensus,
    "divergence": lambda x: methods.relation_divergence(x, rows(4)[: len(x)]),
    "feature": feature,
    "memory": memory,
    "relaxed": relaxed,
    "rotation": rotation,
}
LIKE_PML = {  # of the dtype of the embeddings, of 32 bits under autocast
    "hinge": partial(of_classes, methods.ContrastiveClusteringLoss()),
    "softmax": partial(of_classes, methods.ContrastiveClusteringLoss(form="softmax")),
    "poset": partial(of_classes, PosetLoss()),
}
LOSSES = {**IN_FULL, **LIKE_PML}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype(name, dtype):
    scale = 1e3 if name in IN_FULL else 1  # squares that overflow
    x = (scale * rows().to(dtype)).requires_grad_()
    value, exact = LOSSES[name](x), LOSSES[name](x.detach().double())
    in_full = torch.promote_types(dtype, torch.float32)
    assert value.dtype == (in_full if name in IN_FULL else dtype)
    close = {torch.float64: 1e-9, torch.float32: 1e-4}
    assert value.item() == pytest.approx(exact.item(), rel=close.get(value.dtype, 1e-2))
    (scale * value).backward()
    assert x.grad.dtype == dtype
    assert x.grad.isfinite().all()
    assert x.grad.any()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = LOSSES[name](x)
    assert again.dtype == (in_full if name in IN_FULL else torch.float32)
    assert again.item() == pytest.approx(exact.item(), rel=close[again.dtype])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_samples_it_is_zero_with_a_gradient_path(name, dtype):
    x = torch.zeros(0, 6, dtype=dtype, requires_grad=True)
    value = LOSSES[name](x)
    assert (value.item(), value.shape) == (0, ())
    assert value.dtype == (torch.float32 if name in IN_FULL else dtype)
    value.backward()
    assert x.grad.shape == (0, 6)


@pytest.mark.parametrize("name", LOSSES)
def test_rows_of_zeros_are_no_nan(name):
    x = torch.zeros(NUM, 6, requires_grad=True)
    value = LOSSES[name](x)
    value.backward()
    assert value.isfinite()
    assert x.grad.isfinite().all()


def concurl(models):
    loss = methods.ConsensusLoss(3, dim=7, num_transforms=2, redraw_every=2)
    return methods.ConcurlObjective(
        6, loss, methods.MemoryBankNCE(NUM, dim=5, num_negatives=9), hidden_dim=10
    )


OBJECTIVES = {
    "attention": lambda models: methods.AttentionConsistencyObjective(),
    "concurl": concurl,
    "rotation": lambda models: methods.RotationObjective(methods.RotationHead(6, 8)),
    "stml": lambda models: methods.STMLObjective(models, feature_dim=6, wide_dim=16, k=4),
}


def made(name):
    models = models_of()
    return models, OBJECTIVES[name](models)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_objective_moves_the_trunk_and_its_own_weights_under_autocast_too(name):
    values = []
    for half in (False, True):
        models, objective = made(name)
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            value = objective(images_of(), torch.arange(NUM), models)
        assert value.dtype == torch.float32
        value.backward()
        values.append(value.item())
        learned = {**dict(objective.named_parameters()), "trunk": models["trunk"][1].weight}
        for key, weight in learned.items():
            if not key.startswith("teacher."):
                assert weight.grad.isfinite().all(), key
                assert half or weight.grad.any(), key
    assert values[1] == pytest.approx(values[0], rel=0.1)


@pytest.mark.parametrize("name", ["attention", "concurl", "rotation"])
def test_the_objective_without_images(name):
    models, objective = made(name)
    value = objective(torch.zeros(0, 3, 8, 8), torch.arange(0), models)
    value.backward()
    assert value.item() == 0
    assert all(not weight.grad.any() for weight in objective.parameters())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_state_of_an_objective_is_whole(name):
    def steps(models, objective, seed):
        torch.manual_seed(seed)
        parameters = [p for part in (*models.values(), objective) for p in part.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            value = objective(images_of(), torch.arange(NUM), models)
            value.backward()
            optimizer.step()
        return value

    models, objective = made(name)
    steps(models, objective, 1)
    states = [copy.deepcopy(part.state_dict()) for part in (*models.values(), objective)]
    expected = steps(models, objective, 2)
    others, other = made(name)
    for part, state in zip((*others.values(), other), states, strict=True):
        part.load_state_dict(state)
    assert torch.equal(steps(others, other, 2), expected)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bad_calls_of_an_objective(name):
    models, objective = made(name)
    images, indices = images_of(), torch.arange(NUM)
    for args, error, text in (
        ((images, torch.arange(13), models), ValueError, r"indices must have shape \(12,\), one a sample"),
        ((images, torch.zeros(NUM), models), TypeError, r"must be an integer tensor, got torch\.float32"),
        ((images, indices, {}), TypeError, 'models must be a mapping with a module "trunk"'),
        ((images[0], indices, models), ValueError, "stack single ones"),
    ):
        with pytest.raises(error, match=text):
            objective(*args)
