"""Features of a network: order, mirror images, modes, randomness, and models that go wrong."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from pml_posets.features.network import extract


def images(num: int = 11, size: int = 6) -> torch.Tensor:
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(0))


class Noisy(torch.utils.data.Dataset):
    """Draws from every global generator, as random transforms do."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        noise = torch.rand(1) + np.random.rand() + random.random()  # noqa: NPY002
        return torch.full((3, 4, 4), float(index)) + noise


def network() -> nn.Sequential:
    torch.manual_seed(1)
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5))
    return nn.Sequential(trunk, nn.Linear(64, 7))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_rows_are_in_dataset_order(num_workers):
    model, data = network(), images()
    labelled = list(zip(data, range(11), strict=True))
    rows = extract(model, labelled, batch_size=4, num_workers=num_workers, normalize=False, progress=False)
    assert rows.shape == (11, 7)
    assert rows.dtype == np.float32
    model.eval()
    with torch.no_grad():
        expected = torch.cat([model(image[None]) for image in data])
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    unit = extract(model, data, batch_size=4, num_workers=num_workers, progress=False)
    np.testing.assert_allclose(unit, nn.functional.normalize(expected), atol=1e-5)


def test_mirror_images():
    model, data = network(), images()
    rows, mirrored = extract(model, data, batch_size=3, mirror=True, progress=False)
    np.testing.assert_allclose(rows, extract(model, data, progress=False), atol=1e-6)
    np.testing.assert_allclose(mirrored, extract(model, data.flip(-1), progress=False), atol=1e-6)
    assert np.abs(rows - mirrored).max() > 1e-3


def test_maps_are_flattened():
    rows = extract(nn.Identity(), images(2), normalize=False, progress=False)
    np.testing.assert_array_equal(rows, images(2).flatten(1))


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
    with pytest.raises(RuntimeError):
        extract(broken, images(), progress=False)
    assert [part.training for part in model.modules()] == modes
    assert broken.training


def test_randomness_is_untouched_and_the_same_with_any_number_of_workers():
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)

    def state():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002

    before, options = state(), {"normalize": False, "progress": False}
    first = extract(nn.Flatten(), Noisy(), **options)
    assert state() == before
    assert len(np.unique(first[:, 0] - np.arange(5))) == 5  # each item has its own
    for workers, batch in ((0, 2), (1, 2), (2, 1), (2, 3)):
        torch.rand(5)
        again = extract(nn.Flatten(), Noisy(), num_workers=workers, batch_size=batch, **options)
        np.testing.assert_array_equal(first, again)
    part = extract(nn.Flatten(), torch.utils.data.Subset(Noisy(), [0, 1]), **options)
    np.testing.assert_array_equal(part, first[:2])


def test_half_precision_only_where_it_helps():
    class Kinds(nn.Flatten):
        def forward(self, x):
            assert not torch.is_autocast_enabled("cpu")
            return super().forward(x).to(torch.bfloat16)

    assert extract(Kinds(), images(2), amp=True, progress=False).dtype == np.float32


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
    full = extract(model, data, amp=False, normalize=False, progress=False)
    rows = extract(model, data, amp=half, normalize=False, batch_size=4, progress=False)
    assert model.seen == [torch.float32] + 3 * [half]
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, full, atol=2e-2)
    assert np.abs(rows - full).max() > 0
    assert not torch.is_autocast_enabled("cpu")


def test_a_batch_that_overflows_is_done_again_in_full():
    model, data = Seen(), images()
    data[2] *= 1e6
    full = extract(model, data, amp=False, normalize=False, progress=False)
    assert np.abs(full[2]).max() > 65504  # the largest number in float16
    model.seen.clear()
    rows = extract(model, data, amp=torch.float16, normalize=False, batch_size=6, progress=False)
    assert model.seen == [torch.float16, torch.float32, torch.float16]
    np.testing.assert_allclose(rows[:6], full[:6], rtol=1e-5)
    np.testing.assert_allclose(rows[6:], full[6:], atol=5e-3)


@pytest.mark.parametrize("amp", ["bfloat16", torch.float32, torch.int8, None, 1])
def test_other_precisions_are_an_error(amp):
    with pytest.raises(ValueError, match=r"amp must be True, False, torch.bfloat16 or torch.float16, got"):
        extract(nn.Flatten(), images(), amp=amp, progress=False)


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


def test_features_that_are_not_finite():
    data = images()
    data[7, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"the features of dataset\[7\] hold a NaN or an infinite value"):
        extract(nn.Flatten(), data, batch_size=3, progress=False)


def test_bad_input():
    with pytest.raises(ValueError, match="at least one sample"):
        extract(nn.Flatten(), [])
    with pytest.raises(TypeError, match="a length and items by index, got generator"):
        extract(nn.Flatten(), (image for image in images()))
    with pytest.raises(TypeError, match=r"must yield image tensors .*got ndarray"):
        extract(nn.Flatten(), [np.zeros((3, 4, 4))], progress=False)
    with pytest.raises(
        TypeError, match=r"model must return a tensor \(11, \.\.\.\) for 11 images, got \(3, 3\)"
    ):
        extract(nn.Sequential(nn.Flatten(), Fixed()), images(), progress=False)
    with pytest.raises(TypeError, match="got tuple"):
        extract(nn.AdaptiveMaxPool2d(1, return_indices=True), images(), progress=False)


class Fixed(nn.Module):
    def forward(self, x):
        return torch.eye(3)


def test_progress_bar(capfd):
    extract(nn.Flatten(), images())
    assert "11/11" in capfd.readouterr().err
    extract(nn.Flatten(), images(), progress=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_images_and_networks_of_other_dtypes_are_named(dtype):
    network, images = nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), torch.rand(3, 3, 4, 4)
    with pytest.raises(TypeError, match=rf"the images are {dtype} and the network wants float32"):
        extract(network, list(images.to(dtype)), progress=False)
    with pytest.raises(
        TypeError, match=r"the images are torch\.float32 and the network wants others: convert"
    ):
        extract(network.to(dtype), list(images), progress=False)


def test_a_mean_for_other_channels_is_refused():
    with pytest.raises(ValueError, match=r"mean must hold one number, or one a channel \(3\), got 2"):
        extract(nn.Flatten(), list(torch.rand(3, 3, 4, 4)), mean=(0.1, 0.2), progress=False)


class Viewing(torch.nn.Module):
    """Old code: a view of maps as rows, which fails where maps are stored channels last."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.conv(images).view(len(images), -1)


def test_a_network_that_views_its_maps_gives_the_same_rows():
    images, network = torch.rand(5, 3, 8, 8), Viewing()
    with torch.no_grad():
        expected = network(images).numpy()
        with pytest.raises(RuntimeError, match="view size"):
            network(images.contiguous(memory_format=torch.channels_last))
    rows = extract(network, images, batch_size=2, normalize=False, progress=False)
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)


def test_what_gives_no_rows_of_real_numbers_is_refused():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        extract(lambda images: images, [torch.zeros(1, 2, 2)], progress=False)
    network = type("Complex", (torch.nn.Module,), {"forward": lambda self, images: 1j * images.flatten(1)})()
    with pytest.raises(TypeError, match=r"for 1 images, got torch\.complex64"):
        extract(network, [torch.zeros(1, 2, 2)], progress=False)
