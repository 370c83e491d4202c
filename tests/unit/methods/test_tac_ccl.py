"""Transformed attention consistency against plain loops, by hand, and as an objective."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loops import dot, unit
from objectives import images_of
from refusals import refuses
from torch import nn

import pml_posets.methods.tac_ccl as module
from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.methods.tac_ccl import (
    AttentionConsistencyObjective,
    attention_consistency_loss,
    cross_attention,
    random_affines,
)
from pml_posets.posets import Posets

STAY = torch.eye(2, 3)
MIRROR = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def four_maps(seed=0, count=3, channels=4, height=5, width=6, dtype=torch.float64):
    found = torch.randn(4, count, channels, height, width, generator=generator(seed), dtype=torch.float64)
    return [maps.to(dtype).clone().requires_grad_() for maps in found]


def thetas(seed=0, count=3, dtype=torch.float64):
    torch.manual_seed(seed)
    return random_affines(count, 5, 6).to(dtype), random_affines(count, 5, 6).to(dtype)


def loop_attention(maps, feature):
    """(C, H, W) and (C,) lists, none of them 0: relu(cos) normalized to sum 1."""
    rows = zip(*maps, strict=True)
    cells = [[unit(cell) for cell in zip(*row, strict=True)] for row in rows]  # (H, W, C)
    out = [[max(0.0, dot(cell, unit(feature))) for cell in row] for row in cells]
    total = sum(map(sum, out))
    return [[x / total for x in row] for row in out]


def loop_pool(maps):
    return [sum(map(sum, channel)) / (len(channel) * len(channel[0])) for channel in maps]


def loop_difference(before, after, theta):
    height, width = len(before), len(before[0])
    total, count = 0.0, 0
    for i in range(height):
        for j in range(width):
            x, y = (2 * j + 1) / width - 1, (2 * i + 1) / height - 1
            u, v = (row[0] * x + row[1] * y + row[2] for row in theta)
            if abs(u) > 1 or abs(v) > 1:
                continue
            col = min(max(((u + 1) * width - 1) / 2, 0.0), width - 1.0)
            row = min(max(((v + 1) * height - 1) / 2, 0.0), height - 1.0)
            i0, j0 = math.floor(row), math.floor(col)
            i1, j1 = min(i0 + 1, height - 1), min(j0 + 1, width - 1)
            p, q = row - i0, col - j0
            value = (1 - p) * ((1 - q) * before[i0][j0] + q * before[i0][j1])
            value += p * ((1 - q) * before[i1][j0] + q * before[i1][j1])
            total += (value - after[i][j]) ** 2
            count += 1
    return total / count if count else 0.0


def loop_loss(maps, theta_a, theta_b):
    total = 0.0
    rows = zip(*(m.tolist() for m in maps), theta_a.tolist(), theta_b.tolist(), strict=True)
    for a, b, moved_a, moved_b, ta, tb in rows:
        for x, y, u, v, theta in ((a, b, moved_a, moved_b, ta), (b, a, moved_b, moved_a, tb)):
            before = loop_attention(x, loop_pool(y))
            total += loop_difference(before, loop_attention(u, loop_pool(v)), theta)
    return total / 2 / len(theta_a)


def test_attention_that_is_zero_everywhere():
    maps = torch.ones(3, 3, 2, 2)
    maps[0] = 0  # nothing there
    maps.requires_grad_()
    features = torch.tensor([-1.0, -1.0, 0.0])[:, None].expand(3, 3)  # nothing alike, nothing to be like
    found = cross_attention(maps, features)
    assert (found == 0).all()
    found.sum().backward()
    assert maps.grad.isfinite().all()


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_the_value_by_plain_loops(seed, stop_gradient):
    maps, (theta_a, theta_b) = four_maps(seed), thetas(seed)
    found = attention_consistency_loss(*maps, theta_a, theta_b, stop_gradient)
    assert found.item() == pytest.approx(loop_loss(maps, theta_a, theta_b), rel=1e-9)
    found.backward()
    assert [m.grad is None for m in maps] == [stop_gradient, stop_gradient, False, False]


def test_by_hand():
    # One row of two places. a likes its left place, a' (mirrored) must like its right one.
    left = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # (1, 2, 1, 2): e1 left, e2 right
    only_e1 = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])
    mirrored = left.flip(-1)
    theta = MIRROR[None]
    still = STAY[None]
    # M_ab = (1, 0), T_a[M_ab] = (0, 1) = M_a'b'; M_ba: cos of e1 with (1, 1) / sqrt 2 everywhere, (.5, .5).
    assert attention_consistency_loss(left, only_e1, mirrored, only_e1, theta, still).item() == 0
    away = torch.tensor([[[1.0, 0.0, 2.5], [0.0, 1.0, 0.0]]])
    half = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
    for theta_a, theta_b, expected in (
        (theta, still, 0.5),  # not mirrored: (0 - 1)^2 and (1 - 0)^2, mean 1; the other half agrees
        (away, away, 0.0),  # shifted out by a whole image: no place has an origin inside
        (half, still, 0.5 * (0 - 1) ** 2),  # by half: the right place of a' is the left of a, one is valid
    ):
        found = attention_consistency_loss(left, only_e1, left, only_e1, theta_a, theta_b)
        assert found.item() == pytest.approx(expected)


def test_gradients():
    maps, (theta_a, theta_b) = four_maps(1, 2, 2, height=3, width=2), thetas(1, 2)

    def value(*maps):
        return 100 * attention_consistency_loss(*maps, theta_a, theta_b, False)

    assert torch.autograd.gradcheck(value, maps)


def test_transforms_in_pixels():
    torch.manual_seed(0)
    theta = random_affines(200, 6, 10, rotation=30, scale=(0.5, 2.0), translation=0.2, flip=0.5).double()
    to_pixels = torch.tensor([10 / 2, 6 / 2], dtype=torch.float64)
    linear = theta[:, :, :2] * to_pixels[:, None] / to_pixels  # in pixels
    det = torch.linalg.det(linear)
    assert 0.3 < (det < 0).double().mean() < 0.7
    zoom = det.abs().sqrt()
    assert 0.5 - 1e-6 <= zoom.min() < zoom.max() - 1 <= 1 + 1e-6
    turned = linear / zoom[:, None, None]
    torch.testing.assert_close(turned @ turned.mT, torch.eye(2, dtype=torch.float64).expand(200, 2, 2))
    angle = torch.atan2(-turned[:, 1, 0], turned[:, 1, 1]) * 180 / math.pi
    center = torch.linalg.solve(theta[:, :, :2], -theta[:, :, 2:])  # where the center went
    for values, limit, reached in ((angle, 30, 20), (center[:, 0], 0.4, 0.3), (center[:, 1], 0.4, 0.3)):
        assert values.abs().max() <= limit + 1e-4
        assert values.min() < -reached
        assert values.max() > reached


def test_transforms_hang_on_the_global_generator():
    torch.manual_seed(3)
    first = random_affines(4, 8, 8)
    assert not torch.equal(random_affines(4, 8, 8), first)
    torch.manual_seed(3)
    assert torch.equal(random_affines(4, 8, 8), first)
    assert random_affines(0, 8, 8).shape == (0, 2, 3)


def trunk():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())


def recorded(monkeypatch):
    """The arguments of each call of the loss."""
    calls = []
    monkeypatch.setattr(
        module, "attention_consistency_loss", lambda *a: calls.append(a) or attention_consistency_loss(*a)
    )
    return calls


def test_the_objective_moves_what_the_loss_aligns(monkeypatch):
    calls = recorded(monkeypatch)
    net, images = trunk(), images_of(6, 12)
    objective = AttentionConsistencyObjective(stop_gradient=False)
    objective(images, torch.arange(6), {"trunk": net})
    maps, _, moved, _, theta, _, stop = calls[0]
    assert stop is False
    assert torch.equal(maps, net(images))
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    inside = (grid.abs() < 0.7).all(dim=3)  # far from the border of both
    inside[:, [0, -1]] = inside[:, :, [0, -1]] = False
    again = net(F.grid_sample(images, grid, padding_mode="reflection", align_corners=False))
    assert inside.any()
    torch.testing.assert_close(moved.movedim(1, 3)[inside], again.movedim(1, 3)[inside])


def test_partners_are_of_the_same_class_or_else_the_nearest(monkeypatch):
    calls, objective = recorded(monkeypatch), AttentionConsistencyObjective()
    labels = [0, 0, 0, 1, 1, -1, -1, 2]
    images, indices = images_of(8, 12), [7, 0, 3, 5, 1, 4, 2, 6]
    features = F.normalize(images.mean(dim=(2, 3)))
    nearest = (features @ features.T).fill_diagonal_(-9).argmax(dim=1).tolist()
    seen = set()
    for seed in range(13):
        torch.manual_seed(seed)
        objective(images, torch.tensor(indices), {"trunk": nn.Identity()})
        maps, partners, moved, moved_partners, theta, theta_of_partners, _ = calls[-1]
        for i, one in enumerate(indices):
            j = next(j for j in range(8) if torch.equal(maps[j], partners[i]))
            assert torch.equal(theta_of_partners[i], theta[j])
            assert torch.equal(moved_partners[i], moved[j])
            if seed == 0 or one in (5, 6, 7):  # no posets, unassigned, or alone in its class
                assert j == nearest[i]
            else:
                assert i != j
                assert labels[indices[j]] == labels[one]
                seen.add((one, indices[j]))
        objective.bind(Posets.build(np.arange(8, dtype=np.float32)[:, None], labels))
    assert len(seen) == 3 * 2 + 2  # every pair of a class


def test_augmentation_is_put_off():
    net = nn.Sequential(BatchAugmentation(), trunk())
    for options, largest in (({}, 1e-10), ({"augmenting": ()}, math.inf)):
        objective = AttentionConsistencyObjective(rotation=0, scale=(1, 1), translation=0, flip=0, **options)
        value = objective(images_of(6, 12), torch.arange(6), {"trunk": net}).item()
        assert value < largest
    assert value > 1e-8
    assert net[0].training


def test_bytes_are_images_too():
    images = (255 * images_of(6, 12)).to(torch.uint8)
    net = nn.Sequential(BatchAugmentation(), trunk(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    values = []
    for batch in (images, images.float() / 255):
        torch.manual_seed(0)
        values.append(AttentionConsistencyObjective("1")(batch, torch.arange(6), {"trunk": net}))
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_without_pairs(count):
    value = AttentionConsistencyObjective()(images_of(count, 12), torch.arange(count), {"trunk": trunk()})
    value.backward()
    assert value.item() == 0


MAPS, (THETA_A, THETA_B) = four_maps(), thetas()


def of_maps(*maps, theta_b=THETA_B):
    return lambda: attention_consistency_loss(*maps, *MAPS[len(maps) :], THETA_A, theta_b)


def called(net, posets=None):
    def call():
        objective = AttentionConsistencyObjective()
        if posets is not None:
            objective.bind(posets)
        objective(images_of(6, 12), torch.arange(6), {"trunk": net})

    return call


THREE = Posets.build(np.zeros((3, 1), np.float32), [0, 0, 0])

test_bad_input = refuses(
    (
        lambda: cross_attention(MAPS[0], MAPS[1][..., 0, 0].T),
        ValueError,
        "must match, got (3, 4, 5, 6) and (4, 3)",
    ),
    (of_maps(*MAPS[:2], MAPS[2][..., :5]), ValueError, "moved_a must be floating point maps (B, C, H, W)"),
    (of_maps(*(m[..., 0] for m in MAPS)), ValueError, "maps_a must be floating point maps (B, C, H, W) like"),
    (of_maps(MAPS[0].long()), ValueError, "maps_a must be floating point maps"),
    (of_maps(theta_b=THETA_B[:2]), ValueError, "theta_b must have shape (3, 2, 3), a matrix a pair"),
    (lambda: random_affines(2, 8, 8, scale=(0, 1)), ValueError, "scale must be a range of two numbers"),
    (lambda: random_affines(2, 8, 8, rotation=200), ValueError, "rotation must be in [0, 180], got 200"),
    (lambda: random_affines(2, 8, 8, translation=-1), ValueError, "translation must be in [0, 1], got -1"),
    (lambda: AttentionConsistencyObjective(flip=2), ValueError, "flip must be in [0, 1], got 2"),
    (called(nn.Flatten()), ValueError, "the trunk's output must be maps (B, D, H, W), got (6, 432)"),
    (called(trunk(), [0, 1]), TypeError, "bound to Posets, got list"),
    (called(trunk(), THREE), ValueError, "dataset indices must be in 0..2, got 0 to 5"),
)
