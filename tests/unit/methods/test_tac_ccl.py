"""Transformed attention consistency against plain loops, by hand, and as an objective."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
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


# --- The plain loops


def loop_attention(maps, feature):
    """(C, H, W) and (C,) lists: relu(cos) normalised to sum 1."""
    channels, height, width = len(maps), len(maps[0]), len(maps[0][0])
    length = math.sqrt(sum(g * g for g in feature))
    out = [[0.0] * width for _ in range(height)]
    for i in range(height):
        for j in range(width):
            f = [maps[c][i][j] for c in range(channels)]
            norm = math.sqrt(sum(x * x for x in f))
            dot = sum(x * g for x, g in zip(f, feature, strict=True))
            out[i][j] = max(0.0, dot / norm / length) if norm and length else 0.0
    total = sum(map(sum, out))
    return [[x / total if total else 0.0 for x in row] for row in out]


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


# --- Attention


@pytest.mark.parametrize("seed", range(3))
def test_attention_by_plain_loops(seed):
    maps, others, _, _ = four_maps(seed)
    found = cross_attention(maps, others.mean(dim=(2, 3)))
    for i in range(len(maps)):
        expected = loop_attention(maps[i].tolist(), loop_pool(others[i].tolist()))
        np.testing.assert_allclose(found[i].detach().numpy(), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.sum(dim=(1, 2)), torch.ones(3, dtype=torch.float64))


def test_attention_that_is_zero_everywhere():
    maps = torch.ones(2, 3, 2, 2)
    maps[0] = 0  # nothing there
    maps.requires_grad_()
    features = -torch.ones(2, 3)  # nothing alike
    found = cross_attention(maps, features)
    assert (found == 0).all()
    found.sum().backward()
    assert maps.grad.isfinite().all()
    assert (cross_attention(torch.ones(1, 3, 2, 2), torch.zeros(1, 3)) == 0).all()


def test_places_without_activation_get_no_gradient():
    maps = torch.rand(1, 3, 2, 2, generator=generator())
    maps[:, :, 0, 0] = 0
    maps.requires_grad_()
    (cross_attention(maps, torch.ones(1, 3)) ** 2).sum().backward()
    assert maps.grad.isfinite().all()
    assert maps.grad.abs().max() < 10
    assert (maps.grad[:, :, 0, 0] == 0).all()


def test_bad_attention():
    with pytest.raises(ValueError, match=r"must match, got \(2, 3, 4, 4\) and \(2, 4\)"):
        cross_attention(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4))


# --- The loss


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_value_by_plain_loops(seed, stop_gradient):
    maps, (theta_a, theta_b) = four_maps(seed), thetas(seed)
    found = attention_consistency_loss(*maps, theta_a, theta_b, stop_gradient)
    assert found.item() == pytest.approx(loop_loss(maps, theta_a, theta_b), rel=1e-9)


def test_by_hand():
    # One row of two places. a likes its left place, a' (mirrored) must like its right one.
    left = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # (1, 2, 1, 2): e1 left, e2 right
    only_e1 = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])
    mirrored = left.flip(-1)
    theta = MIRROR[None]
    still = STAY[None]
    # M_ab = (1, 0), T_a[M_ab] = (0, 1) = M_a'b'; M_ba: cos of e1 with (1, 1) / sqrt 2 everywhere, (.5, .5).
    assert attention_consistency_loss(left, only_e1, mirrored, only_e1, theta, still).item() == 0
    # Not mirrored: (0 - 1)^2 and (1 - 0)^2, mean 1; the other half agrees.
    found = attention_consistency_loss(left, only_e1, left, only_e1, theta, still)
    assert found.item() == pytest.approx(0.5)
    # Shifted out by a whole image: no place has an origin inside.
    away = torch.tensor([[[1.0, 0.0, 2.5], [0.0, 1.0, 0.0]]])
    assert attention_consistency_loss(left, only_e1, left, only_e1, away, away).item() == 0
    # Shifted by half: the right place of a' is the left of a... of two places one is valid.
    half = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
    found = attention_consistency_loss(left, only_e1, left, only_e1, half, still)
    assert found.item() == pytest.approx(0.5 * (0 - 1) ** 2)


def test_a_known_move_of_the_maps_is_consistent():
    maps_a, maps_b, _, _ = four_maps(height=6, width=6)
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64).expand(3, 2, 3)
    grid = F.affine_grid(turn, [3, 4, 6, 6], align_corners=False)
    moved = [F.grid_sample(m, grid, align_corners=False) for m in (maps_a, maps_b)]
    assert attention_consistency_loss(maps_a, maps_b, *moved, turn, turn).item() < 1e-20
    assert attention_consistency_loss(maps_a, maps_b, maps_a, maps_b, turn, turn).item() > 1e-6


def test_gradients():
    maps, (theta_a, theta_b) = four_maps(1, count=2, height=3, width=2), thetas(1, count=2)

    def value(*maps):
        return 100 * attention_consistency_loss(*maps, theta_a, theta_b, False)

    assert torch.autograd.gradcheck(value, maps)


def test_the_gradient_stops_at_what_was_not_moved():
    for stop in (True, False):
        maps, (theta_a, theta_b) = four_maps(), thetas()
        attention_consistency_loss(*maps, theta_a, theta_b, stop).backward()
        assert [m.grad is None for m in maps] == [stop, stop, False, False]
        assert maps[2].grad.abs().sum() > 0


def test_bad_maps():
    maps, (theta_a, theta_b) = four_maps(), thetas()
    with pytest.raises(
        ValueError, match=r"moved_a must be .* like maps_a \(3, 4, 5, 6\), got .*\(3, 4, 5, 5\)"
    ):
        attention_consistency_loss(*maps[:2], maps[2][..., :5], maps[3], theta_a, theta_b)
    with pytest.raises(ValueError, match=r"maps_a must be .*\(3, 4, 5\)"):
        attention_consistency_loss(*(m[..., 0] for m in maps), theta_a, theta_b)
    with pytest.raises(
        ValueError, match=r"theta_b must have shape \(3, 2, 3\), a matrix a pair, got \(2, 2, 3\)"
    ):
        attention_consistency_loss(*maps, theta_a, theta_b[:2])


# --- Transforms


def test_transforms_in_pixels():
    torch.manual_seed(0)
    theta = random_affines(200, 6, 10, rotation=30, scale=(0.5, 2.0), translation=0.2, flip=0.5).double()
    to_pixels = torch.tensor([10 / 2, 6 / 2], dtype=torch.float64)
    linear = theta[:, :, :2] * to_pixels[:, None] / to_pixels  # in pixels
    det = torch.linalg.det(linear)
    assert 0.3 < (det < 0).double().mean() < 0.7
    zoom = det.abs().sqrt()
    assert zoom.min() >= 0.5 - 1e-6
    assert zoom.max() <= 2 + 1e-6
    assert zoom.max() - zoom.min() > 1
    turned = linear / zoom[:, None, None]
    torch.testing.assert_close(turned @ turned.mT, torch.eye(2, dtype=torch.float64).expand(200, 2, 2))
    angle = torch.atan2(-turned[:, 1, 0], turned[:, 1, 1]) * 180 / math.pi
    assert angle.abs().max() <= 30 + 1e-4
    assert angle.min() < -20
    assert angle.max() > 20
    center = torch.linalg.solve(theta[:, :, :2], -theta[:, :, 2:])[..., 0]  # where the center went
    assert center.abs().max() <= 0.4 + 1e-6
    assert (center.abs().amax(dim=0) > 0.3).all()


def test_transforms_hang_on_the_global_generator():
    torch.manual_seed(3)
    first = random_affines(4, 8, 8)
    assert not torch.equal(random_affines(4, 8, 8), first)
    torch.manual_seed(3)
    assert torch.equal(random_affines(4, 8, 8), first)
    assert random_affines(0, 8, 8).shape == (0, 2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (0.0, 1.0)}, "scale must be a range of two numbers above 0"),
        ({"rotation": 200.0}, r"rotation must be in \[0, 180\], got 200"),
        ({"translation": -0.1}, r"translation must be in \[0, 1\], got -0"),
        ({"flip": 2.0}, r"flip must be in \[0, 1\], got 2"),
    ],
)
def test_ranges_out_of_bounds(options, message):
    with pytest.raises(ValueError, match=message):
        random_affines(2, 8, 8, **options)
    with pytest.raises(ValueError, match=message):
        AttentionConsistencyObjective(**options)


# --- The objective


def trunk():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())


def images_of(count=6, size=12, seed=0):
    return torch.rand(count, 3, size, size, generator=generator(seed))


def recorded(monkeypatch):
    """The arguments of each call of the loss."""
    calls = []

    def loss(*args):
        calls.append(args)
        return attention_consistency_loss(*args)

    monkeypatch.setattr(module, "attention_consistency_loss", loss)
    return calls


def test_the_objective_moves_what_the_loss_aligns(monkeypatch):
    calls = recorded(monkeypatch)
    net, images = trunk(), images_of()
    objective = AttentionConsistencyObjective(stop_gradient=False)
    value = objective(images, torch.arange(6), {"trunk": net})
    (maps, _, moved, _, theta, _, stop), expected = calls[0], net(images)
    assert stop is False
    assert torch.equal(maps, expected)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    inside = (grid.abs() < 0.7).all(dim=3)  # far from the border of both
    rows, cols = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    inside &= (rows > 0) & (rows < 11) & (cols > 0) & (cols < 11)
    again = net(F.grid_sample(images, grid, padding_mode="reflection", align_corners=False))
    assert inside.any()
    torch.testing.assert_close(moved.movedim(1, 3)[inside], again.movedim(1, 3)[inside])
    value.backward()
    assert net[0].weight.grad.abs().sum() > 0


def test_partners_are_of_the_same_class(monkeypatch):
    calls = recorded(monkeypatch)
    objective = AttentionConsistencyObjective()
    labels = [0, 0, 0, 1, 1, -1, -1, 2]
    objective.bind(Posets.build(np.arange(8, dtype=np.float32)[:, None], labels))
    images, indices = images_of(8), torch.tensor([7, 0, 3, 5, 1, 4, 2, 6])
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Identity())
        objective(images, indices, {"trunk": net})
        maps, partners = calls[-1][0], calls[-1][1]
        theta, theta_of_partners = calls[-1][4], calls[-1][5]
        pairs = []
        for i in range(8):
            j = next(j for j in range(8) if torch.equal(maps[j], partners[i]))
            assert torch.equal(theta_of_partners[i], theta[j])
            assert torch.equal(calls[-1][3][i], calls[-1][2][j])
            pairs.append((int(indices[i]), int(indices[j])))
        for one, other in pairs:
            assert one != other
            if one < 5:
                assert labels[one] == labels[other]
        seen.update(pairs)
        alone = [pair for pair in pairs if pair[0] in (5, 6, 7)]
    assert {(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (3, 4), (4, 3)} <= seen
    features = F.normalize(images.mean(dim=(2, 3)))
    near = (features @ features.T).fill_diagonal_(-9).argmax(dim=1)
    place = indices.tolist()
    for one, other in alone:  # unassigned, or alone in its class: the nearest in the batch
        assert place[int(near[place.index(one)])] == other


def test_without_posets_partners_are_the_nearest(monkeypatch):
    calls = recorded(monkeypatch)
    images = images_of(5)
    AttentionConsistencyObjective()(images, torch.arange(5), {"trunk": nn.Identity()})
    features = F.normalize(images.mean(dim=(2, 3)))
    near = (features @ features.T).fill_diagonal_(-9).argmax(dim=1)
    assert torch.equal(calls[0][1], images[near])


def test_augmentation_is_put_off():
    net = nn.Sequential(BatchAugmentation(), trunk())
    objective = AttentionConsistencyObjective(rotation=0, scale=(1, 1), translation=0, flip=0)
    assert objective(images_of(), torch.arange(6), {"trunk": net}).item() < 1e-10
    assert net[0].training
    ours = AttentionConsistencyObjective(rotation=0, scale=(1, 1), translation=0, flip=0, augmenting=())
    assert ours(images_of(), torch.arange(6), {"trunk": net}).item() > 1e-8


def test_bytes_are_images_too():
    images = (255 * images_of()).to(torch.uint8)
    net = nn.Sequential(BatchAugmentation(), trunk(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    values = []
    for batch in (images, images.float() / 255):
        torch.manual_seed(0)
        values.append(AttentionConsistencyObjective("1")(batch, torch.arange(6), {"trunk": net}))
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_without_pairs(count):
    value = AttentionConsistencyObjective()(images_of(count), torch.arange(count), {"trunk": trunk()})
    value.backward()
    assert value.item() == 0


def test_bad_calls_of_the_objective():
    objective = AttentionConsistencyObjective()
    with pytest.raises(ValueError, match=r"the trunk's output must be maps .*by layer="):
        objective(images_of(), torch.arange(6), {"trunk": nn.Flatten()})
    with pytest.raises(TypeError, match="bound to Posets, got list"):
        objective.bind([0, 1])
    objective.bind(Posets.build(np.zeros((3, 1), np.float32), [0, 0, 0]))
    with pytest.raises(ValueError, match=r"dataset indices must be in 0\.\.2, got 0 to 5"):
        objective(images_of(), torch.arange(6), {"trunk": trunk()})
