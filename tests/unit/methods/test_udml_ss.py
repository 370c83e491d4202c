"""The rotation loss against plain loops, by hand, in every dtype, and the forward passes it shares."""

import math

import numpy as np
import pytest
import torch
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
    total = 0.0
    for row, angle in zip(logits.tolist(), angles.tolist(), strict=True):
        total -= math.log(math.exp(row[angle]) / sum(math.exp(x) for x in row))
    return total / len(logits)


# --- Turning


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_images_are_turned_as_numpy_turns_them(dtype):
    images = torch.randint(0, 256, (3, 2, 5, 5), generator=generator()).to(dtype)
    turned, angles = rotate_images(images)
    assert turned.dtype == dtype
    assert angles.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    for i in range(12):
        expected = np.rot90(images[i % 3].float().numpy(), int(angles[i]), axes=(1, 2))
        assert np.array_equal(turned[i].float().numpy(), expected)


def test_turning_nothing():
    turned, angles = rotate_images(torch.zeros(0, 3, 4, 4))
    assert turned.shape == (0, 3, 4, 4)
    assert angles.shape == (0,)


def test_only_square_images_can_be_turned():
    with pytest.raises(ValueError, match="must be square to be turned by 90 degrees, got 4 x 6 pixels: crop"):
        rotate_images(torch.zeros(2, 3, 4, 6))
    with pytest.raises(ValueError, match=r"shape \(B, C, H, W\), got \(3, 4, 4\)"):
        rotate_images(torch.zeros(3, 4, 4))
    with pytest.raises(TypeError, match=r"images must be a torch\.Tensor"):
        rotate_images(np.zeros((1, 3, 4, 4)))


# --- The value


@pytest.mark.parametrize("seed", range(3))
def test_the_value_by_plain_loops(seed):
    logits = 2 * torch.randn(7, 4, generator=generator(seed), dtype=torch.float64)
    angles = torch.randint(0, 4, (7,), generator=generator(seed))
    assert rotation_cross_entropy(logits, angles).item() == pytest.approx(by_loops(logits, angles), rel=1e-12)


def test_by_hand():
    logits = torch.tensor([[math.log(3), 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    expected = (math.log(2) + math.log(4)) / 2  # 3 of 6, 1 of 4
    assert rotation_cross_entropy(logits, torch.tensor([0, 2])).item() == pytest.approx(expected, rel=1e-6)
    assert rotation_cross_entropy(logits, torch.tensor([0, 2], dtype=torch.int32)).item() == pytest.approx(
        expected
    )


def test_gradients():
    logits = torch.randn(5, 4, generator=generator(), dtype=torch.float64, requires_grad=True)
    angles = torch.tensor([0, 1, 2, 3, 1])
    assert torch.autograd.gradcheck(lambda x: rotation_cross_entropy(x, angles), (logits,))


def test_bad_logits_and_angles():
    with pytest.raises(ValueError, match=r"shape \(N, 4\).*got torch.float32 \(5, 3\)"):
        rotation_cross_entropy(torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"angles must have shape \(5,\), got \(4,\)"):
        rotation_cross_entropy(torch.zeros(5, 4), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"angles must be in 0..3 .*got 0 to 90"):
        rotation_cross_entropy(torch.zeros(2, 4), torch.tensor([0, 90]))
    with pytest.raises(TypeError, match=r"angles must be integers in 0..3, got torch.float32"):
        rotation_cross_entropy(torch.zeros(2, 4), torch.zeros(2))


# --- Head and objective


def test_the_head_has_no_relu_on_its_logits():
    torch.manual_seed(0)
    head = RotationHead(6)
    assert head.hidden.out_features == 512
    logits = head(torch.randn(40, 6, generator=generator()))
    assert (logits < 0).any()
    with pytest.raises(
        ValueError, match=r"features must have shape \(N, 6\), the head's in_dim, got \(2, 5\)"
    ):
        head(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="in_dim must be at least 1"):
        RotationHead(0)


def test_the_objective_is_the_loss_of_turned_images():
    net, head = trunk(), RotationHead(6, 8)
    images = torch.rand(9, 3, 8, 8, generator=generator())
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

    def crop(images):
        seen.append(images)
        return images[..., :5, :5]

    images = torch.rand(2, 3, 8, 8, generator=generator())
    objective = RotationObjective(RotationHead(6, 8), transform=crop)
    objective(images, torch.arange(2), {"trunk": trunk()})
    assert torch.equal(seen[0], rotate_images(images)[0])


def test_flat_features_and_an_own_pool():
    images, indices = torch.rand(3, 3, 8, 8, generator=generator()), torch.arange(3)
    net, head = trunk(), RotationHead(6, 8)
    flat = nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    expected = RotationObjective(head)(images, indices, {"trunk": net})
    torch.testing.assert_close(RotationObjective(head)(images, indices, {"trunk": flat}), expected)
    largest = RotationObjective(head, pool=lambda maps: maps.amax(dim=(2, 3)))
    assert largest(images, indices, {"trunk": net}) != expected


def test_bad_calls_of_the_objective():
    objective, net = RotationObjective(RotationHead(6, 8)), {"trunk": trunk()}
    with pytest.raises(ValueError, match="must be square"):
        objective(torch.zeros(2, 3, 8, 6), torch.arange(2), net)
    with pytest.raises(TypeError, match=r"head must be a torch\.nn\.Module, got int"):
        RotationObjective(6)
    with pytest.raises(ValueError, match="num_images must be at least 1"):
        RotationObjective(RotationHead(6), num_images=0)


# --- Forward passes


def test_pooled_features():
    maps = torch.rand(2, 3, 4, 5, generator=generator())
    torch.testing.assert_close(pooled_features(maps), maps.flatten(2).mean(2))
    assert pooled_features(maps[:, :, 0, 0]).shape == (2, 3)
    with pytest.raises(ValueError, match=r"shape \(B, D\) or \(B, D, H, W\), got \(2, 3, 4\)"):
        pooled_features(maps[..., 0])


def test_maps_of_a_layer():
    net = nn.Sequential(trunk(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(2, 3, 8, 8, generator=generator())
    maps = conv_maps(net, images, layer="0.1")
    assert torch.equal(maps, net[0](images))
    maps.sum().backward()
    assert net[0][0].weight.grad is not None
    assert not net[0][1]._forward_hooks
    assert torch.equal(conv_maps(net[0], images), maps)


def test_maps_that_are_none():
    net = nn.Sequential(trunk(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"the trunk's output must be maps .*got \(2, 6\): name.*layer="):
        conv_maps(net, images)
    with pytest.raises(ValueError, match=r"the output of '2' must be maps \(B, D, H, W\), got \(2, 6\)"):
        conv_maps(net, images, "2")
    with pytest.raises(ValueError, match=r"of the trunk, got 'layer4': it has 0, 0\.0, 0\.1, 1, 2"):
        conv_maps(net, images, "layer4")
    idle = nn.Sequential(trunk())
    idle.append(nn.Identity())
    idle.forward = idle[0].forward
    with pytest.raises(ValueError, match="'1' was not called"):
        conv_maps(idle, images, "1")


def test_augmentation_put_off():
    net = nn.Sequential(BatchAugmentation(), nn.BatchNorm2d(3))
    net[0].eval()
    with without_augmentation(net):
        assert not net[0].training
    assert not net[0].training  # as it was
    net.train()
    images = torch.rand(2, 3, 8, 8, generator=generator())
    with without_augmentation(net):
        assert (net[0].training, net[1].training) == (False, True)
        assert torch.equal(net[0](images), net[0](images))
    assert net[0].training
    with pytest.raises(ZeroDivisionError), without_augmentation(net):
        1 / 0  # noqa: B018
    assert net[0].training
    with without_augmentation(net, (nn.BatchNorm2d,)):
        assert (net[0].training, net[1].training) == (True, False)
