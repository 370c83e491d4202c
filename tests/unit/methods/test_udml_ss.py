"""The rotation loss against plain loops, by hand, in every dtype, and the forward passes it shares."""

import math

import numpy as np
import pytest
import torch
from loops import softmax
from objectives import images_of
from refusals import refuses
from torch import nn

from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.methods._networks import conv_maps, pooled_features, without_augmentation
from pml_posets.methods.udml_ss import RotationHead, RotationObjective, rotate_images, rotation_cross_entropy


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def trunk(width=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU())


def by_loops(logits, angles):
    rows = zip(logits.tolist(), angles.tolist(), strict=True)
    return sum(-math.log(softmax(row)[angle]) for row, angle in rows) / len(logits)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_images_are_turned_as_numpy_turns_them(dtype):
    images = torch.randint(0, 256, (3, 2, 5, 5), generator=generator()).to(dtype)
    turned, angles = rotate_images(images)
    assert turned.dtype == dtype
    assert angles.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    for i in range(12):
        expected = np.rot90(images[i % 3].float().numpy(), int(angles[i]), axes=(1, 2))
        assert np.array_equal(turned[i].float().numpy(), expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_value_by_plain_loops(seed):
    logits = 2 * torch.randn(7, 4, generator=generator(seed), dtype=torch.float64)
    angles = torch.randint(0, 4, (7,), generator=generator(seed))
    for given in (angles, angles.int()):
        found = rotation_cross_entropy(logits, given)
        assert found.item() == pytest.approx(by_loops(logits, angles), rel=1e-12)


def test_gradients():
    logits = torch.randn(5, 4, generator=generator(), dtype=torch.float64, requires_grad=True)
    angles = torch.tensor([0, 1, 2, 3, 1])
    assert torch.autograd.gradcheck(lambda x: rotation_cross_entropy(x, angles), (logits,))


def test_the_head_has_no_relu_on_its_logits():
    torch.manual_seed(0)
    head = RotationHead(6)
    assert head.hidden.out_features == 512
    assert (head(torch.randn(40, 6, generator=generator())) < 0).any()


def test_the_objective_is_the_loss_of_turned_images():
    net, head = trunk(), RotationHead(6, 8)
    images = images_of(9)
    found = RotationObjective(head, num_images=4)(images, torch.arange(9), {"trunk": net})
    logits, angles = [], []
    for angle in range(4):
        for image in images[:4]:
            turned = torch.from_numpy(np.rot90(image.numpy(), angle, axes=(1, 2)).copy())[None]
            logits.append(head(net(turned).mean(dim=(2, 3)))[0])
            angles.append(angle)
    assert found.item() == pytest.approx(by_loops(torch.stack(logits), torch.tensor(angles)), rel=1e-5)


def test_the_objective_turns_before_it_transforms():
    seen = []
    objective = RotationObjective(RotationHead(6, 8), transform=lambda x: seen.append(x) or x[..., :5, :5])
    images = images_of(20)
    objective(images, torch.arange(20), {"trunk": trunk()})
    assert torch.equal(seen[0], rotate_images(images[:16])[0])


def test_flat_features_and_an_own_pool():
    images, indices = images_of(3), torch.arange(3)
    net, head = trunk(), RotationHead(6, 8)
    flat = nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    expected = RotationObjective(head)(images, indices, {"trunk": net})
    torch.testing.assert_close(RotationObjective(head)(images, indices, {"trunk": flat}), expected)
    largest = RotationObjective(head, pool=lambda maps: maps.amax(dim=(2, 3)))
    assert largest(images, indices, {"trunk": net}) != expected


def test_maps_of_a_layer():
    net = nn.Sequential(trunk(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = images_of(2)
    maps = conv_maps(net, images, layer="0.1")
    assert torch.equal(maps, net[0](images))
    maps.sum().backward()
    assert net[0][0].weight.grad is not None
    assert not net[0][1]._forward_hooks
    assert torch.equal(conv_maps(net[0], images), maps)


def test_augmentation_put_off():
    net = nn.Sequential(BatchAugmentation(), nn.BatchNorm2d(3))
    net[0].eval()
    with without_augmentation(net):
        assert not net[0].training
    assert not net[0].training  # as it was
    net.train()
    images = images_of(2)
    with without_augmentation(net):
        assert (net[0].training, net[1].training) == (False, True)
        assert torch.equal(net[0](images), net[0](images))
    assert net[0].training
    with pytest.raises(ZeroDivisionError), without_augmentation(net):
        1 / 0  # noqa: B018
    assert net[0].training
    with without_augmentation(net, (nn.BatchNorm2d,)):
        assert (net[0].training, net[1].training) == (True, False)


IMAGES = images_of(2)
FLAT = nn.Sequential(trunk(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
IDLE = nn.Sequential(trunk(), nn.Identity())
IDLE.forward = IDLE[0].forward
LOGITS, ANGLES = torch.zeros(2, 4), torch.tensor([0, 1])


def entropy(logits=LOGITS, angles=ANGLES):
    return lambda: rotation_cross_entropy(logits, angles)


def maps_of(net, layer=None):
    return lambda: conv_maps(net, IMAGES, layer)


test_bad_input = refuses(
    (lambda: rotate_images(IMAGES[..., :6]), ValueError, "must be square to be turned by 90 degrees"),
    (lambda: rotate_images(IMAGES[0]), ValueError, "shape (B, C, H, W), got (3, 8, 8)"),
    (lambda: rotate_images(IMAGES.numpy()), TypeError, "images must be a torch.Tensor"),
    (entropy(LOGITS[:, :3]), ValueError, "shape (N, 4), one column an angle, got torch.float32 (2, 3)"),
    (entropy(LOGITS.long()), ValueError, "logits must be floating point"),
    (entropy(angles=ANGLES[:1]), ValueError, "angles must have shape (2,), got (1,)"),
    (entropy(angles=90 * ANGLES), ValueError, "angles must be in 0..3 (in units of 90 degrees), got 0 to 90"),
    (entropy(angles=ANGLES / 1), TypeError, "angles must be integers in 0..3, got torch.float32"),
    (lambda: RotationHead(6)(LOGITS), ValueError, "must have shape (N, 6), the head's in_dim, got (2, 4)"),
    (lambda: RotationHead(0), ValueError, "in_dim must be at least 1"),
    (lambda: RotationObjective(6), TypeError, "head must be a torch.nn.Module, got an int: use RotationHead"),
    (lambda: RotationObjective(RotationHead(6), 0), ValueError, "num_images must be at least 1"),
    (lambda: pooled_features(IMAGES[0]), ValueError, "shape (B, D) or (B, D, H, W), got (3, 8, 8)"),
    (maps_of(FLAT), ValueError, "the trunk's output must be maps (B, D, H, W), got (2, 6): name its last"),
    (maps_of(FLAT, "2"), ValueError, "the output of '2' must be maps (B, D, H, W), got (2, 6)"),
    (maps_of(FLAT, "layer4"), ValueError, "of the trunk, got 'layer4': it has 0, 0.0, 0.1, 1, 2"),
    (maps_of(IDLE, "1"), ValueError, "'1' was not called"),
)
