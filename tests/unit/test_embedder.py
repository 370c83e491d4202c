"""From photos to embeddings: what is learned, what is kept, what is refused."""

import copy

import numpy as np
import pytest
import torch
from pictures import generators, saved, striped
from PIL import Image
from refusals import refuses_each
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

from pml_posets import Embedder
from pml_posets.data import UnreadableImageError
from pml_posets.features import LayerOutputs, NeighborWhitening, PartialWhitening
from pml_posets.features.network import extract

PHOTOS = striped(4)  # (24, 32, 32, 3)


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 12, 3, 2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.LazyLinear(5)).eval()


def hog_embedder(**options):
    return Embedder(**{"image_size": 32, "num_views": 4, "num_components": 6, **options})


def network_embedder(**options):
    return Embedder(network(), **{"layers": ["1", "3"], "image_size": 32, "num_components": 6, **options})


@pytest.fixture(scope="module", params=[hog_embedder, network_embedder])
def fitted(request):
    return request.param().fit(PHOTOS)


def test_rows_have_unit_length_and_alike_photos_are_near(fitted):
    rows = clone(fitted).fit_transform(PHOTOS)
    assert rows.dtype == np.float32
    assert rows.shape == (24, fitted.num_features_)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(rows, fitted.transform(PHOTOS), atol=1e-5)
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -1)
    assert np.mean(similarity.argmax(1) // 4 == np.arange(24) // 4) > 0.6  # chance: 0.13


def test_network_rows_are_whitened_layers_of_both_orientations():
    embedder = network_embedder(mean=[0.5] * 3, std=[0.25] * 3, whitening=0.5, neighbors=0).fit(PHOTOS)
    tensors = torch.from_numpy(PHOTOS).permute(0, 3, 1, 2)
    how = {"mean": 0.5, "std": 0.25, "normalize": False, "progress": False}
    plain, mirrored = extract(LayerOutputs(network(), ["1", "3"]), tensors, mirror=True, **how)
    rows = (plain + mirrored) / 2
    parts = [PartialWhitening(6, 0.5).fit_transform(part) for part in (rows[:, :8], rows[:, 8:])]
    expected, found = np.hstack(parts) / np.sqrt(2), embedder.transform(PHOTOS)
    # Principal directions of two fits may differ in sign: cosines do not.
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=2e-3)
    one = network_embedder(mirror=False).fit(PHOTOS)
    assert np.abs(one.transform(PHOTOS[:, :, ::-1]) - one.transform(PHOTOS)).max() > 1e-3


@pytest.mark.parametrize("make", [hog_embedder, network_embedder])
def test_mutual_neighbors_whiten_the_whole(make):
    plain = make(neighbors=0).fit_transform(PHOTOS)
    expected = NeighborWhitening(3).fit_transform(plain)
    np.testing.assert_allclose(make(neighbors=3).fit_transform(PHOTOS), expected, atol=1e-4)


def test_photos_come_in_many_ways(fitted, tmp_path):
    paths = saved(tmp_path, PHOTOS[:4])
    expected = fitted.transform(PHOTOS[:4])
    for given in (
        tmp_path,
        [str(path) for path in paths],
        torch.from_numpy(PHOTOS[:4]).permute(0, 3, 1, 2),
        [(Image.fromarray(image), 7) for image in PHOTOS[:4]],
    ):
        np.testing.assert_array_equal(fitted.transform(given), expected)


def test_the_seed_decides_and_the_generators_are_left_alone():
    before = generators()
    first, second, other = (
        hog_embedder(random_state=seed, num_images=12).fit_transform(PHOTOS) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-3
    assert generators() == before


def test_what_is_saved_is_loaded(fitted, tmp_path):
    path = tmp_path / "e.npz"
    fitted.save(path)
    loaded = Embedder.load(path, fitted.network, batch_size=7)
    np.testing.assert_array_equal(loaded.transform(PHOTOS), fitted.transform(PHOTOS))
    assert (loaded.num_features_, loaded.layers_) == (fitted.num_features_, fitted.layers_)
    assert loaded.batch_size == 7
    assert loaded.digest() == fitted.digest()
    other = copy.deepcopy(fitted.network)
    if other is not None:
        with pytest.raises(ValueError, match="got no network: pass it as network="):
            Embedder.load(path)
        with torch.no_grad():
            other[0].weight[0, 0, 0, 0] += 1
    text = "got another network or other weights" if other else "was fitted with none"
    with pytest.raises(ValueError, match=text):
        Embedder.load(path, other or nn.Identity())


def test_a_file_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    (tmp_path / "y.npz").write_bytes(b"half")
    for name, message in (("x.npz", "holds no embedder"), ("y.npz", "damaged")):
        with pytest.raises(ValueError, match=message):
            Embedder.load(tmp_path / name)


def test_the_judge_compares_with_plain_features(fitted):
    learned, plain = fitted.judge(PHOTOS)
    assert 0 < learned.stability <= 1
    assert plain.contrast > 0
    assert fitted.judge(PHOTOS) == (learned, plain)


def test_settings_of_another_fit_are_refused(fitted):
    assert copy.deepcopy(fitted).set_params(whitening=0.1).digest() != fitted.digest()
    for name, value in (("image_size", 48), ("mirror", False), ("mean", (0.5, 0.5, 0.5))):
        changed = copy.deepcopy(fitted).set_params(**{name: value})
        with pytest.raises(ValueError, match=f"{name} is .*, but was .* when the embedder was fitted"):
            changed.transform(PHOTOS)


test_wrong_settings_are_named = refuses_each(
    lambda options: hog_embedder(**options).fit(PHOTOS),
    ({"whitening": 2}, r"whitening must be in \[0, 1\]"),
    ({"num_views": 1}, "num_views must be at least 2"),
    ({"num_images": 2}, "num_images must be at least 3"),
    ({"num_components": 0}, "num_components must be at least 1"),
    ({"image_size": 0}, "image_size must be at least 8"),
    ({"batch_size": 0}, "batch_size must be at least 1"),
    ({"random_state": -1}, "random_state must be at least 0"),
    ({"neighbors": -1}, "neighbors must be at least 0"),
    ({"num_workers": 1.5}, "num_workers must be an integer"),
    error=(ValueError, TypeError),
)


def test_wrong_photos_are_named(tmp_path):
    with pytest.raises(NotFittedError, match=r"call fit\(photos\) first"):
        Embedder().transform(PHOTOS)
    (tmp_path / "broken.png").write_bytes(b"half an image")
    for photos, error, message in (
        (PHOTOS[:2], ValueError, "three photos at least, got 2"),
        (tmp_path / "none", NotADirectoryError, "none is no folder"),
        (iter(PHOTOS), TypeError, "images must have a length and items by index"),
        ([*PHOTOS, str(tmp_path / "broken.png")], UnreadableImageError, r"broken\.png"),
    ):
        with pytest.raises(error, match=message):
            hog_embedder().fit(photos)
