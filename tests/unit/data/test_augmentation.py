"""Augmentation: what happens to three drawn dots, measured, against the ranges that were asked for."""

import math

import pytest
import torch
from refusals import refuses_each

from pml_posets.data.augmentation import BatchAugmentation

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
STILL = {"scale": (1.0, 1.0), "rotation": 0.0, "shear": 0.0, "translation": 0.0, **PLAIN}
ARM = 14.0  # px from the center to the other dots


def dots(count, height=72, width=72):
    """(count, 3, H, W): a soft dot in each channel: at the center, right of it, and below it."""
    y = torch.arange(height).view(-1, 1) - (height - 1) / 2
    x = torch.arange(width).view(1, -1) - (width - 1) / 2
    image = torch.stack(
        [torch.exp(-((x - dx) ** 2 + (y - dy) ** 2) / 8) for dx, dy in ((0, 0), (ARM, 0), (0, ARM))]
    )
    return image.expand(count, 3, height, width)


def centers(images):
    """(B, 3, 2): x and y of each channel's dot about the image's center, pixels."""
    _, _, height, width = images.shape
    y = torch.arange(height).view(-1, 1) - (height - 1) / 2
    x = torch.arange(width).view(1, -1) - (width - 1) / 2
    mass = images.sum((2, 3))
    return torch.stack([(images * x).sum((2, 3)) / mass, (images * y).sum((2, 3)) / mass], dim=2)


def measure(images):
    """What happened to the dots: shift (B, 2) px, scale, rotation and shear (degrees), each (B,)."""
    found = centers(images)
    right, down = (found[:, 1] - found[:, 0]) / ARM, (found[:, 2] - found[:, 0]) / ARM
    scale = right.norm(dim=1)
    angle = torch.atan2(right[:, 1], right[:, 0])
    along = (down * right).sum(1) / scale**2  # rotation and scale undone, the lower dot lies at (tan, 1)
    return found[:, 0], scale, torch.rad2deg(angle), torch.rad2deg(along.atan())


def even(values, low, high, precision):
    """Whether the values spread evenly over a range: inside, to both ends, with its mean and deviation."""
    width = high - low
    assert low - precision <= values.min() < low + 0.05 * width + precision
    assert high - 0.05 * width - precision < values.max() <= high + precision
    assert values.mean() == pytest.approx((low + high) / 2, abs=0.06 * width)
    assert values.std() == pytest.approx(width / math.sqrt(12), rel=0.1)


DEFAULTS = {"scale": (1.0, 1.41), "rotation": 10, "shear": 4, "translation": 15 / 227}


@pytest.mark.parametrize(
    ("height", "width", "options"),
    [
        (72, 72, {}),
        (72, 72, {"translation": 0.1, "scale": (0.9, 1.3), "rotation": 20, "shear": 8}),
        (72, 130, {"translation": 0.05, "scale": (1, 1.2), "rotation": 25, "shear": 0}),
        (130, 72, {"translation": 0.05, "scale": (1, 1.2), "rotation": 25, "shear": 0}),
    ],
)
def test_what_is_measured_is_what_was_asked_for(height, width, options):
    torch.manual_seed(0)
    augment = BatchAugmentation(**options, **PLAIN).train()
    shift, scale, angle, lean = measure(augment(dots(400, height, width)))
    (smallest, largest), rotation, shear, translation = {**DEFAULTS, **options}.values()
    even(shift[:, 0], -translation * width, translation * width, 0.05)
    even(shift[:, 1], -translation * height, translation * height, 0.05)
    even(scale, smallest, largest, 0.005)
    even(angle, -rotation, rotation, 0.3)
    draws = [shift[:, 0], shift[:, 1], scale, angle]
    if shear:
        even(lean, -shear, shear, 0.3)
        draws.append(lean)
    else:
        assert lean.abs().max() < 0.3
    between = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert between.abs().max() < 0.18  # independent of each other


@pytest.mark.parametrize(
    ("option", "index", "low", "high"),
    [
        ({"scale": (1.2, 1.2)}, 1, 1.2, 1.2),
        ({"rotation": 30}, 2, -30, 30),
        ({"shear": 12}, 3, -12, 12),
        ({}, None, 0, 0),
    ],
)
def test_each_amount_alone_leaves_the_others_still(option, index, low, high):
    torch.manual_seed(2)
    found = measure(BatchAugmentation(**{**STILL, **option}).train()(dots(150)))
    still = (0.0, 1.0, 0.0, 0.0)
    for place, (values, rest) in enumerate(zip(found, still, strict=True)):
        if place == index:
            assert low - 0.3 <= values.min() <= low + 0.1 * (high - low) + 1e-3
            assert high - 0.1 * (high - low) - 1e-3 <= values.max() <= high + 0.3
        else:
            assert (values - rest).abs().max() < 0.05


def test_what_comes_in_from_outside_is_the_mean_color():
    torch.manual_seed(5)
    mean, std = (0.2, 0.4, 0.6), (0.1, 0.2, 0.3)
    augment = BatchAugmentation(scale=(0.5, 0.5), rotation=0, shear=0, translation=0, mean=mean, std=std)
    moved = augment.train()(torch.ones(2, 3, 32, 32))
    assert moved[:, :, :6].abs().max() == 0
    inside = (1 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(moved[:, :, 16, 16], inside.expand(2, 3))


def test_evaluation_normalizes_and_draws_nothing():
    images = torch.randint(0, 256, (2, 3, 9, 7), dtype=torch.uint8)
    augment = BatchAugmentation(brightness=0.5, color=0.5, gray=0.5).eval()
    before = torch.get_rng_state()
    found = augment(images)
    assert torch.equal(before, torch.get_rng_state())
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(found, (images.double().div(255) - mean).div(std).float())
    torch.testing.assert_close(augment(images.float() / 255), found)
    assert augment(images.half() / 255).dtype == found.dtype == torch.float32


def test_the_global_seed_decides():
    images = torch.rand(6, 3, 20, 20)
    augment = BatchAugmentation(brightness=0.3, color=0.1, gray=0.5).train()
    torch.manual_seed(7)
    first, second = augment(images), augment(images)
    torch.manual_seed(7)
    assert torch.equal(augment(images), first)
    assert not torch.equal(first, second)
    assert not torch.equal(augment(images[:1].expand(2, -1, -1, -1))[0], first[0])


def test_brightness_stretches_about_the_mean_color():
    torch.manual_seed(9)
    images = torch.rand(1, 3, 6, 6).expand(400, -1, -1, -1)
    plain = {**STILL, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
    normal = BatchAugmentation(**plain).eval()(images)
    found = BatchAugmentation(**plain, brightness=0.4).train()(images)
    factor = (found * normal).sum((1, 2, 3)) / (normal**2).sum((1, 2, 3))
    torch.testing.assert_close(found, normal * factor.view(-1, 1, 1, 1), atol=1e-4, rtol=0)
    even(factor, 0.6, 1.4, 1e-3)


def test_color_shifts_each_channel():
    torch.manual_seed(10)
    found = BatchAugmentation(**STILL, color=0.25).train()(torch.full((600, 3, 4, 4), 0.5)) - 0.5
    assert found.std((2, 3)).max() < 1e-4  # the same all over the image
    shifts = found.mean((2, 3))  # (B, 3)
    assert shifts.std(0).tolist() == pytest.approx([0.25] * 3, rel=0.12)
    assert shifts.mean(0).abs().max() < 0.05
    assert (torch.corrcoef(shifts.T) - torch.eye(3)).abs().max() < 0.15


def test_gray_takes_the_color_of_its_part_of_the_images():
    torch.manual_seed(11)
    images = torch.rand(400, 3, 5, 5)
    settings = {**STILL, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.1, 0.3)}
    found = BatchAugmentation(**settings, gray=0.3).train()(images)
    pixels = found * torch.tensor([0.2, 0.1, 0.3]).view(3, 1, 1) + torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    without = (pixels.amax(1) - pixels.amin(1)).amax((1, 2)) < 1e-5  # no color, as pixels
    assert without.float().mean() == pytest.approx(0.3, abs=0.07)
    torch.testing.assert_close(pixels[~without], images[~without], atol=1e-4, rtol=0)
    expected = images[without].mean(1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(pixels[without], expected, atol=1e-4, rtol=0)


def test_gradients_pass_nothing_is_saved_and_an_empty_batch_stays_empty():
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    augment = BatchAugmentation().train()
    augment(images).sum().backward()
    assert images.grad.abs().sum() > 0
    assert augment.state_dict() == {}
    assert augment(images[:0]).shape == (0, 3, 8, 8)
    names = {repr(BatchAugmentation(**option)) for option in ({}, {"gray": 0.1}, {"mean": (0.0, 0.0, 0.0)})}
    assert len(names) == 3


test_ranges_out_of_bounds_are_refused = refuses_each(
    lambda option: BatchAugmentation(**option),
    ({"scale": (0.0, 1.0)}, "scale must be a range"),
    ({"scale": (1.4, 1.0)}, r"scale must be a range .* got \(1.4, 1.0\)"),
    ({"scale": (1.0, math.inf)}, "scale must be a range"),
    ({"rotation": -1}, r"rotation must be in \[0, 180\], got -1"),
    ({"shear": 90}, r"shear must be in \[0, 89\], got 90"),
    ({"translation": 1.5}, r"translation must be in \[0, 1\], got 1.5"),
    ({"brightness": 2}, "brightness must be in"),
    ({"color": -0.1}, "color must be at least 0, got -0.1"),
    ({"color": math.inf}, "color must be at least 0, got inf"),
    ({"gray": 1.1}, "gray must be in"),
    ({"mean": (0.5,)}, r"mean must be three numbers, one a channel, got \(0.5,\)"),
    ({"std": (1.0, 0.0, 1.0)}, "std must be above 0, got 0.0"),
    error=ValueError,
)


test_other_shapes_and_dtypes_are_refused = refuses_each(
    lambda images: BatchAugmentation()(images),
    (torch.zeros(3, 8, 8), ValueError, r"shape \(B, 3, H, W\), got .*convert them to RGB"),
    (torch.zeros(2, 1, 8, 8), ValueError, "convert them to RGB"),
    (torch.zeros(2, 3, 8, 8, dtype=torch.int64), TypeError, r"uint8 in 0\.\.255 or floating point"),
    (torch.zeros(2, 3, 8, 8, dtype=torch.bool), TypeError, r"uint8 in 0\.\.255 or floating point"),
)


def test_arguments_of_the_first_version_still_work_and_warn():
    with pytest.warns(DeprecationWarning, match=r"colour= is now color="):
        augment = BatchAugmentation(colour=0.2)
    with pytest.warns(DeprecationWarning, match=r"grey= is now gray="):
        assert repr(BatchAugmentation(color=0.2, grey=0.3)) == repr(BatchAugmentation(color=0.2, gray=0.3))
    assert augment.color == 0.2
    with pytest.raises(TypeError, match="no argument 'hue'"):
        BatchAugmentation(hue=0.1)
