"""Layers, grids, windows, sizes and normalization: what `extract` does for networks of others."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pml_posets.data import ImageList, ImageStore
from pml_posets.features import extract


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
    rows = extract(model, data, layer=layer, batch_size=3, normalize=False, progress=False)
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    assert model.calls == 1  # after the first batch the layers behind are left out
    assert not model.blocks._forward_hooks
    assert not model.blocks[0]._forward_hooks


def test_a_layer_of_images_that_the_head_does_not_take():
    rows = extract(Named(), images(size=20), layer="blocks", grid=1, progress=False)
    assert rows.shape == (7, 6)
    with pytest.raises(RuntimeError, match="shapes"):
        extract(Named(), images(size=20), progress=False)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("blocks.9", r"'blocks.9': it has blocks, blocks.0, .*head"),
        ("", "got ''"),
        ("twice", "called once in the model's forward pass, is called 2 times: take another"),
        ("never", "is called 0 times"),
    ],
)
def test_layers_that_are_not_there_or_not_one(layer, message):
    with pytest.raises(ValueError, match=message):
        extract(Named(), images(), layer=layer, progress=False)


def test_grid_and_window_by_plain_loops():
    data = torch.rand(4, 2, 6, 9)
    rows = extract(nn.Identity(), data, grid=(2, 3), window=(1.5, 0.8), normalize=False, progress=False)
    rows = rows.reshape(4, 2, 2, 3)
    for y in range(2):
        for x in range(3):
            cell = data[:, :, 3 * y : 3 * y + 3, 3 * x : 3 * x + 3].mean((2, 3))
            weight = np.exp(-0.5 * (((x - 1) / 1.5) ** 2 + ((y - 0.5) / 0.8) ** 2))
            np.testing.assert_allclose(rows[:, :, y, x], weight * cell, rtol=1e-5)
    average = extract(nn.Identity(), data, grid=1, normalize=False, progress=False)
    np.testing.assert_allclose(average, data.mean((2, 3)), rtol=1e-5)
    alone = extract(nn.Identity(), data, window=2.0, normalize=False, progress=False).reshape(data.shape)
    np.testing.assert_allclose(alone[:, :, 1, 8] / data[:, :, 1, 8], np.exp(-(1.5**2 + 16) / 8), rtol=1e-5)


def test_centered_rows_and_mirrored_ones():
    data = images()
    plain, mirrored = extract(nn.Identity(), data, mirror=True, grid=3, normalize=False, progress=False)
    found = extract(nn.Identity(), data, mirror=True, grid=3, center=True, progress=False)
    for rows, raw in zip(found, (plain, mirrored), strict=True):
        expected = raw - plain.mean(0)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(rows, expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"are for maps .* got an output of shape \(7, 432\)"):
        extract(nn.Flatten(), data, grid=2, progress=False)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalization(dtype):
    data = (images() * 255).to(torch.uint8)
    scaled = data.float() / 255
    given = data if dtype == torch.uint8 else scaled
    options = {"normalize": False, "progress": False}
    rows = extract(nn.Flatten(), given, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), **options)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    np.testing.assert_allclose(rows, ((scaled - mean) / std).flatten(1), atol=1e-6)
    rows = extract(nn.Flatten(), given, mean=127 / 255, std=128 / 255, **options)
    np.testing.assert_allclose(rows, ((scaled * 255 - 127) / 128).flatten(1), atol=1e-5)
    with pytest.raises(ValueError, match=r"floating in \[0, 1\], found values in"):
        extract(nn.Flatten(), data.float(), std=0.5, **options)


@pytest.fixture
def folder(tmp_path):
    for i, (height, width) in enumerate([(30, 40), (61, 33), (24, 24)]):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_images_of_any_size_are_resized_and_cropped(folder):
    photos = ImageList(sorted(folder.glob("*.png")))
    rows = extract(nn.Flatten(), photos, size=20, normalize=False, progress=False).reshape(3, 3, 20, 20)
    for i, (width, height) in enumerate([(27, 20), (20, 37), (20, 20)]):
        resized = np.asarray(photos[i].resize((width, height), Image.Resampling.BILINEAR))
        top, left = (height - 20) // 2, (width - 20) // 2
        np.testing.assert_array_equal(rows[i].transpose(1, 2, 0), resized[top : top + 20, left : left + 20])
    options = {"normalize": False, "progress": False}
    middle = extract(nn.Flatten(), photos, size=20, crop=(10, 12), **options).reshape(3, 3, 10, 12)
    np.testing.assert_array_equal(middle, rows[:, :, 5:15, 4:16])
    stretched = extract(nn.Flatten(), photos, size=(8, 6), **options).reshape(3, 3, 8, 6)
    expected = np.asarray(photos[1].resize((6, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(stretched[1].transpose(1, 2, 0), expected)
    unscaled = extract(nn.Flatten(), photos, crop=24, **options).reshape(3, 3, 24, 24)
    np.testing.assert_array_equal(unscaled[0].transpose(1, 2, 0), np.asarray(photos[0])[3:27, 8:32])


def test_sizes_that_do_not_do(folder):
    photos = ImageList(sorted(folder.glob("*.png")))
    with pytest.raises(ValueError, match=r"crop must fit into the images, got \(30, 30\) and dataset\[0\]"):
        extract(nn.Flatten(), photos, size=24, crop=30, progress=False)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        extract(nn.Flatten(), photos, size=0, progress=False)
    with pytest.raises(TypeError, match=r"got Image: add a transform that makes tensors, or give size="):
        extract(nn.Flatten(), photos, progress=False)
    uneven = [torch.zeros(3, 4, 4), torch.zeros(3, 5, 4)]
    with pytest.raises(ValueError, match=r"differ in shape, \(3, 4, 4\) and \(3, 5, 4\): give size="):
        extract(nn.Flatten(), uneven, progress=False)
    with pytest.raises(ValueError, match="std must be above 0, got 0"):
        extract(nn.Flatten(), images(), std=0, progress=False)
    with pytest.raises(ValueError, match="window must be above 0, got -1"):
        extract(nn.Identity(), images(), window=-1, progress=False)
    with pytest.raises(ValueError, match=r"must be a tensor \(channels, H, W\)"):
        extract(nn.Flatten(), torch.zeros(2, 8, 8, 3), mirror=True, progress=False)


@pytest.mark.parametrize("network", [nn.Conv2d(3, 2, 3), nn.Sequential(nn.Flatten(), nn.Linear(768, 2))])
def test_a_store_for_a_network_without_normalization(folder, network):
    store = ImageStore(ImageList(sorted(folder.glob("*.png"))), folder, 16, progress=False)
    with pytest.raises(TypeError, match=r"torch\.uint8 and the network wants floating ones: .*mean="):
        extract(network, store, progress=False)
    assert len(extract(network, store, mean=0.5, std=0.25, progress=False)) == 3
    assert len(extract(nn.Flatten(), store, progress=False)) == 3  # as they are
