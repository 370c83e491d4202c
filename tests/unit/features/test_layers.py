"""Layers, grids, windows, sizes and normalization: what `extract` does for networks of others."""

import numpy as np
import pytest
import torch
from pictures import noise, saved
from PIL import Image
from torch import nn

from pml_posets.data import ImageList
from pml_posets.features import extract

RAW = {"normalize": False, "progress": False}
SIZES = [(30, 40), (61, 33), (24, 24)]  # heights and widths


def images(num=7, size=12):
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(0))


class Named(nn.Module):
    """Convolutions, an in-place layer behind one of them, a layer that is called twice, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.blocks = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.Conv2d(5, 6, 3, stride=2))
        self.twice, self.never = nn.Hardtanh(), nn.Identity()
        self.head = nn.Linear(6 * 4 * 4, 3)
        self.calls = 0

    def forward(self, x):
        maps = self.twice(self.blocks(x))
        self.calls += 1
        return self.head(self.twice(maps).flatten(1))


@pytest.mark.parametrize(("layer", "number"), [("blocks.0", 1), ("blocks.1", 2), ("blocks", 3)])
def test_a_layer_by_its_name(layer, number):
    model, data = Named().eval(), images()
    with torch.no_grad():
        expected = nn.Sequential(*list(model.blocks)[:number])(data).flatten(1)
    rows = extract(model, data, layer=layer, batch_size=3, **RAW)
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    assert model.calls == 1  # after the first batch the layers behind are left out
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_of_images_that_the_head_does_not_take():
    assert extract(Named(), images(size=20), layer="blocks", grid=1, progress=False).shape == (7, 6)
    with pytest.raises(RuntimeError, match="shapes"):
        extract(Named(), images(size=20), progress=False)


def test_grid_and_window_by_plain_loops():
    data = torch.rand(4, 2, 6, 9)
    rows = extract(nn.Identity(), data, grid=(2, 3), window=(1.5, 0.8), **RAW).reshape(4, 2, 2, 3)
    for y, x in np.ndindex(2, 3):
        cell = data[:, :, 3 * y : 3 * y + 3, 3 * x : 3 * x + 3].mean((2, 3))
        weight = np.exp(-0.5 * (((x - 1) / 1.5) ** 2 + ((y - 0.5) / 0.8) ** 2))
        np.testing.assert_allclose(rows[:, :, y, x], weight * cell, rtol=1e-5)
    np.testing.assert_allclose(extract(nn.Identity(), data, grid=1, **RAW), data.mean((2, 3)), rtol=1e-5)
    alone = extract(nn.Identity(), data, window=2.0, **RAW).reshape(data.shape)
    np.testing.assert_allclose(alone[:, :, 1, 8] / data[:, :, 1, 8], np.exp(-(1.5**2 + 16) / 8), rtol=1e-5)


def test_centered_rows_and_mirrored_ones():
    data = images()
    plain, mirrored = extract(nn.Identity(), data, mirror=True, grid=3, **RAW)
    found = extract(nn.Identity(), data, mirror=True, grid=3, center=True, progress=False)
    for rows, raw in zip(found, (plain, mirrored), strict=True):
        expected = raw - plain.mean(0)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(rows, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("mean", "std"), [((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), (0.5, 0.25), (None, 0.5), (0.5, None)]
)
def test_normalization(dtype, mean, std):
    data = (images() * 255).to(torch.uint8)
    given = data if dtype == torch.uint8 else data.float() / 255
    middle = torch.tensor(mean or 0.0).view(-1, 1, 1)
    spread = torch.tensor(std or 1.0).view(-1, 1, 1)
    rows = extract(nn.Flatten(), given, mean=mean, std=std, **RAW)
    np.testing.assert_allclose(rows, ((data / 255 - middle) / spread).flatten(1), atol=1e-5)


def test_images_of_any_size_are_resized_and_cropped(tmp_path):
    photos = ImageList(saved(tmp_path, [noise(*size, i) for i, size in enumerate(SIZES)]))

    def read(index, width, height, top=0, left=0, crop=None):
        """A photo stretched to a size, and the part of it, channels first."""
        resized = photos[index].resize((width, height), Image.Resampling.BILINEAR)
        rows, columns = crop or (height, width)
        return np.asarray(resized)[top : top + rows, left : left + columns].transpose(2, 0, 1)

    rows = extract(nn.Flatten(), photos, size=20, **RAW).reshape(3, 3, 20, 20)
    for i, (width, height) in enumerate([(27, 20), (20, 37), (20, 20)]):
        expected = read(i, width, height, (height - 20) // 2, (width - 20) // 2, (20, 20))
        np.testing.assert_array_equal(rows[i], expected)
    middle = extract(nn.Flatten(), photos, size=20, crop=(10, 12), **RAW).reshape(3, 3, 10, 12)
    np.testing.assert_array_equal(middle, rows[:, :, 5:15, 4:16])
    stretched = extract(nn.Flatten(), photos, size=(8, 6), **RAW).reshape(3, 3, 8, 6)
    np.testing.assert_array_equal(stretched[1], read(1, 6, 8))
    unscaled = extract(nn.Flatten(), photos, crop=24, **RAW).reshape(3, 3, 24, 24)
    np.testing.assert_array_equal(unscaled[0], read(0, 40, 30, 3, 8, (24, 24)))


PHOTOS = [Image.fromarray(noise(*size)) for size in SIZES]


@pytest.mark.parametrize(
    ("model", "data", "options", "message"),
    [
        (Named(), images(), {"layer": "blocks.9"}, r"'blocks.9': it has blocks, blocks.0, .*head"),
        (Named(), images(), {"layer": ""}, "got ''"),
        (Named(), images(), {"layer": "twice"}, "called once in .*, is called 2 times: take another"),
        (Named(), images(), {"layer": "never"}, "is called 0 times"),
        (nn.Flatten(), images(), {"grid": 2}, r"are for maps .* got an output of shape \(7, 432\)"),
        (nn.Flatten(), images() * 255, {"std": 0.5}, r"floating in \[0, 1\], found values in"),
        (
            nn.Flatten(),
            PHOTOS,
            {"size": 24, "crop": 30},
            r"crop must fit .*, got \(30, 30\)",
        ),
        (nn.Flatten(), PHOTOS, {"size": 0}, "size must be at least 1, got 0"),
        (nn.Flatten(), PHOTOS, {}, "got Image: add a transform that makes tensors, or give size="),
        (nn.Flatten(), [torch.zeros(3, 4, 4), torch.zeros(3, 5, 4)], {}, r"differ in shape, .*: give size="),
        (nn.Flatten(), images(), {"std": 0}, "std must be above 0, got 0"),
        (nn.Identity(), images(), {"window": -1}, "window must be above 0, got -1"),
        (nn.Flatten(), torch.zeros(2, 8, 8, 3), {"mirror": True}, r"must be a tensor \(channels, H, W\)"),
    ],
)
def test_layers_and_sizes_that_do_not_do(model, data, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        extract(model, data, progress=False, **options)
