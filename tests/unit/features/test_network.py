"""Features of a network or of its layers: order, modes, randomness, sizes, and models that go wrong."""

import numpy as np
import pytest
import torch
from pictures import Noisy, generators, noise, saved
from PIL import Image
from refusals import refuses_each
from torch import nn
from torch.utils.data import Subset

from pml_posets.data import ImageList
from pml_posets.features.network import extract

RAW = {"normalize": False, "progress": False}
SIZES = [(30, 40), (61, 33), (24, 24)]  # heights and widths of photos
PHOTOS = [Image.fromarray(noise(*size)) for size in SIZES]


def images(num: int = 11, size: int = 6) -> torch.Tensor:
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(1)
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5))
    return nn.Sequential(trunk, nn.Linear(64, 7))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_rows_are_in_dataset_order(num_workers):
    model, data = network(), images()
    labeled = list(zip(data, range(11), strict=True))
    rows = extract(model, labeled, batch_size=4, num_workers=num_workers, **RAW)
    assert rows.shape == (11, 7)
    assert rows.dtype == np.float32
    model.eval()
    with torch.no_grad():
        expected = torch.cat([model(image[None]) for image in data])
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    unit = extract(model, data, progress=False)
    np.testing.assert_allclose(unit, nn.functional.normalize(expected), atol=1e-5)


def test_mirror_images():
    model, data = network(), images()
    rows, mirrored = extract(model, data, batch_size=3, mirror=True, progress=False)
    np.testing.assert_allclose(rows, extract(model, data, progress=False), atol=1e-6)
    np.testing.assert_allclose(mirrored, extract(model, data.flip(-1), progress=False), atol=1e-6)
    assert np.abs(rows - mirrored).max() > 1e-3


def test_every_mode_is_restored():
    model = network()
    model[0][1].eval()  # batch norm frozen in a model that trains
    modes = [part.training for part in model.modules()]
    statistics = model[0][1].running_mean.clone()
    extract(model, images(), progress=False)
    assert [part.training for part in model.modules()] == modes
    assert torch.equal(statistics, model[0][1].running_mean)
    assert all(weight.grad is None for weight in model.parameters())
    broken = nn.Sequential(model, nn.Linear(3, 3))
    with pytest.raises(RuntimeError):  # torch's own, for it is not about dtypes
        extract(broken, images(), progress=False)
    assert [part.training for part in model.modules()] == modes
    assert broken.training


def test_randomness_is_untouched_and_the_same_with_any_number_of_workers():
    class Drawing(nn.Flatten):
        """Draws in evaluation mode too."""

        def forward(self, x):
            return super().forward(x) + torch.rand(1)

    before, data = generators(), Noisy(5, (3, 4, 4))
    first = extract(nn.Flatten(), data, **RAW)
    drawn = extract(Drawing(), data, **RAW)
    assert generators() == before
    assert len(np.unique(first[:, 0] - np.arange(5) / 20)) == 5  # each item has its own
    for workers, batch in ((0, 2), (2, 3)):
        torch.rand(5)
        again = extract(nn.Flatten(), data, num_workers=workers, batch_size=batch, **RAW)
        np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(extract(Drawing(), data, **RAW), drawn)
    np.testing.assert_array_equal(extract(nn.Flatten(), Subset(data, [0, 1]), **RAW), first[:2])


class Seen(nn.Linear):
    """Notes the dtype of what it computes."""

    def __init__(self):
        torch.manual_seed(2)
        super().__init__(3 * 6 * 6, 4)
        self.seen = []

    def forward(self, x):
        out = super().forward(x.flatten(1))
        self.seen.append(out.dtype)
        return out


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_dtype_asks_for_mixed_precision_on_any_device(half):
    model, data = Seen(), images()
    full = extract(model, data, **RAW)  # half precision for GPUs alone
    rows = extract(model, data, amp=half, batch_size=4, **RAW)
    assert model.seen == [torch.float32] + 3 * [half]
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, full, atol=2e-2)
    assert np.abs(rows - full).max() > 0


def test_a_batch_that_overflows_is_done_again_in_full():
    model, data = Seen(), images()
    data[2] *= 1e6
    full = extract(model, data, amp=False, **RAW)
    assert np.abs(full[2]).max() > 65504  # the largest number in float16
    model.seen.clear()
    rows = extract(model, data, amp=torch.float16, batch_size=6, **RAW)
    assert model.seen == [torch.float16, torch.float32, torch.float16]
    np.testing.assert_allclose(rows[:6], full[:6], rtol=1e-5)
    np.testing.assert_allclose(rows[6:], full[6:], atol=5e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("amp", [False, True])
def test_on_a_gpu(amp):
    model = network()
    expected = extract(model, images(), mirror=True, progress=False)
    found = extract(model, images(), mirror=True, progress=False, device="cuda", amp=amp)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-3 if amp else 1e-5)
    large = nn.Sequential(model, nn.Linear(7, 2)).cuda()
    large[1].weight.data.fill_(1e6)  # overflows in half precision
    assert np.isfinite(extract(large, images(), amp=amp, progress=False)).all()


class Giving(nn.Module):
    """Makes what is given of its input."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


def with_a_nan():
    data = images()
    data[7, 0, 0, 0] = torch.nan
    return data


test_bad_input = refuses_each(
    lambda model, data, options: extract(model, data, progress=False, **options),
    (nn.Flatten(), [], {}, ValueError, "at least one sample"),
    (nn.Flatten(), iter(images()), {}, TypeError, "a length and items by index"),
    (nn.Flatten(), [np.zeros((3, 4, 4))], {}, TypeError, "must yield image tensors .*got ndarray"),
    (lambda x: x, images(), {}, TypeError, r"torch\.nn\.Module, got a function: wrap it in one"),
    (
        Giving(lambda x: torch.eye(3)),
        images(),
        {},
        TypeError,
        r"model must return a tensor \(11, \.\.\.\) for 11 images, got \(3, 3\)",
    ),
    (Giving(lambda x: (x, x)), images(), {}, TypeError, "got tuple"),
    (Giving(lambda x: 1j * x), images(), {}, TypeError, r"got torch\.complex64"),
    (nn.Flatten(), with_a_nan(), {"batch_size": 3}, ValueError, r"of dataset\[7\] hold a NaN"),
    (nn.Flatten(), images(), {"mean": (0.1, 0.2)}, ValueError, r"one a channel \(3\), got 2"),
    *(
        (nn.Flatten(), images(), {"amp": amp}, ValueError, r"amp must be True, False, torch\.bfloat16 or")
        for amp in ("bfloat16", torch.float32, None, 1)
    ),
)


@pytest.mark.parametrize("network", [nn.Conv2d(3, 2, 3), nn.Sequential(nn.Flatten(), nn.Linear(48, 4))])
@pytest.mark.parametrize(
    ("given", "own", "message"),
    [
        (torch.uint8, torch.float32, r"floating ones: put BatchAugmentation\(\) in front, or .*mean="),
        (torch.bfloat16, torch.float32, "float32"),
        (torch.float16, torch.float32, "float32"),
        (torch.float64, torch.float32, r"float32: convert them with \.float\(\)"),
        (torch.float32, torch.float64, "others: convert it with"),
        (torch.float32, torch.bfloat16, "others"),
    ],
)
def test_images_and_networks_of_other_dtypes_are_named(network, given, own, message):
    data = torch.rand(3, 3, 4, 4).to(given)
    with pytest.raises(TypeError, match=rf"the images are {given} and the network wants {message}"):
        extract(network.to(own), data, progress=False)


def test_a_network_that_views_its_maps_gives_the_same_rows():
    class Viewing(nn.Sequential):
        """Old code: a view of maps as rows, which fails where maps are stored channels last."""

        def forward(self, x):
            return super().forward(x).view(len(x), -1)

    data, network = images(5, 8), Viewing(nn.Conv2d(3, 4, 3))
    with torch.no_grad():
        expected = network(data).numpy()
        with pytest.raises(RuntimeError, match="view size"):
            network(data.contiguous(memory_format=torch.channels_last))
    np.testing.assert_allclose(extract(network, data, batch_size=2, **RAW), expected, rtol=1e-5, atol=1e-6)


def test_progress_bar(capfd):
    extract(nn.Flatten(), images())
    assert "11/11" in capfd.readouterr().err
    extract(nn.Flatten(), images(), progress=False)
    assert capfd.readouterr() == ("", "")


# --- Layers, grids, windows, sizes and normalization


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
    model, data = Named().eval(), images(7, 12)
    with torch.no_grad():
        expected = nn.Sequential(*list(model.blocks)[:number])(data).flatten(1)
    rows = extract(model, data, layer=layer, batch_size=3, **RAW)
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    assert model.calls == 1  # after the first batch the layers behind are left out
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_of_images_that_the_head_does_not_take():
    assert extract(Named(), images(7, 20), layer="blocks", grid=1, progress=False).shape == (7, 6)
    with pytest.raises(RuntimeError, match="shapes"):
        extract(Named(), images(7, 20), progress=False)


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
    data = images(7, 12)
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
    data = (images(7, 12) * 255).to(torch.uint8)
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


test_layers_and_sizes_that_do_not_do = refuses_each(
    lambda model, data, options: extract(model, data, progress=False, **options),
    (Named(), images(7, 12), {"layer": "blocks.9"}, r"'blocks.9': it has blocks, blocks.0, .*head"),
    (Named(), images(7, 12), {"layer": ""}, "got ''"),
    (Named(), images(7, 12), {"layer": "twice"}, "called once in .*, is called 2 times: take another"),
    (Named(), images(7, 12), {"layer": "never"}, "is called 0 times"),
    (nn.Flatten(), images(7, 12), {"grid": 2}, r"are for maps .* got an output of shape \(7, 432\)"),
    (nn.Flatten(), images(7, 12) * 255, {"std": 0.5}, r"floating in \[0, 1\], found values in"),
    (nn.Flatten(), PHOTOS, {"size": 24, "crop": 30}, r"crop must fit .*, got \(30, 30\)"),
    (nn.Flatten(), PHOTOS, {"size": 0}, "size must be at least 1, got 0"),
    (nn.Flatten(), PHOTOS, {}, "got Image: add a transform that makes tensors, or give size="),
    (nn.Flatten(), [torch.zeros(3, 4, 4), torch.zeros(3, 5, 4)], {}, r"differ in shape, .*: give size="),
    (nn.Flatten(), images(7, 12), {"std": 0}, "std must be above 0, got 0"),
    (nn.Identity(), images(7, 12), {"window": -1}, "window must be above 0, got -1"),
    (nn.Flatten(), torch.zeros(2, 8, 8, 3), {"mirror": True}, r"must be a tensor \(channels, H, W\)"),
    error=(ValueError, TypeError),
)
