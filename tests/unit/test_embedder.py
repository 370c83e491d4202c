"""From photos to embeddings: what is learned, what is kept, what is refused."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

from pml_posets import Embedder
from pml_posets.data import UnreadableImageError
from pml_posets.features import LayerOutputs, NeighborWhitening, PartialWhitening
from pml_posets.features.network import extract


@pytest.fixture
def photos():
    """(24, 32, 32, 3) uint8: six patterns of stripes, four photos of each."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    images = []
    for angle in np.linspace(0, np.pi / 2, 6):
        for _ in range(4):
            wave = np.sin(0.7 * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 6))
            images.append(128 + 80 * wave[:, :, None] + rng.normal(0, 8, (32, 32, 3)))
    return np.clip(images, 0, 255).astype(np.uint8)


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 12, 3, 2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.LazyLinear(5)).eval()


def hog_embedder(**options):
    return Embedder(image_size=32, num_views=4, num_components=6, **options)


def network_embedder(net=None, **options):
    given = {"layers": ["1", "3"], "image_size": 32, "num_components": 6, **options}
    return Embedder(network() if net is None else net, **given)


@pytest.mark.parametrize("make", [hog_embedder, network_embedder])
def test_rows_have_unit_length_and_alike_photos_are_near(make, photos):
    embedder = make()
    rows = embedder.fit_transform(list(photos))
    assert rows.dtype == np.float32
    assert rows.shape == (24, embedder.num_features_)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -1)
    assert np.mean(similarity.argmax(1) // 4 == np.arange(24) // 4) > 0.6  # chance: 0.13


def test_network_rows_are_whitened_layers_of_both_orientations(photos):
    net = network()
    embedder = network_embedder(net, mean=[0.5] * 3, std=[0.25] * 3, whitening=0.5, neighbors=0)
    embedder.fit(list(photos))
    tensors = torch.from_numpy(photos).permute(0, 3, 1, 2)
    how = {"mean": 0.5, "std": 0.25, "normalize": False, "progress": False}
    plain, mirrored = extract(LayerOutputs(net, ["1", "3"]), tensors, mirror=True, **how)
    rows = (plain + mirrored) / 2
    parts = [PartialWhitening(6, 0.5).fit_transform(part) for part in (rows[:, :8], rows[:, 8:])]
    expected = np.hstack(parts) / np.sqrt(2)
    # Principal directions of two fits may differ in sign: cosines do not.
    np.testing.assert_allclose(embedder.transform(photos) @ embedder.transform(photos).T,
                               expected @ expected.T, atol=2e-3)  # fmt: skip


@pytest.mark.parametrize("make", [hog_embedder, network_embedder])
def test_mutual_neighbors_whiten_the_whole(make, photos):
    plain = make(neighbors=0).fit_transform(list(photos))
    embedder = make(neighbors=3)
    expected = NeighborWhitening(3).fit_transform(plain)
    np.testing.assert_allclose(embedder.fit_transform(list(photos)), expected, atol=1e-4)


def test_mirrored_photos_are_the_same_to_a_network(photos):
    turned = np.ascontiguousarray(photos[:, :, ::-1])
    both = network_embedder().fit(list(photos))
    np.testing.assert_allclose(both.transform(list(turned)), both.transform(list(photos)), atol=1e-4)
    one = network_embedder(mirror=False).fit(list(photos))
    assert np.abs(one.transform(list(turned)) - one.transform(list(photos))).max() > 1e-3


@pytest.mark.parametrize("kind", ["folder", "paths", "tensors", "labeled"])
def test_photos_come_in_many_ways(kind, photos, tmp_path):
    for number, image in enumerate(photos):
        Image.fromarray(image).save(tmp_path / f"{number:02d}.png")
    given = {
        "folder": tmp_path,
        "paths": [str(path) for path in sorted(tmp_path.iterdir())],
        "tensors": torch.from_numpy(photos).permute(0, 3, 1, 2),
        "labeled": [(Image.fromarray(image), 7) for image in photos],
    }[kind]
    embedder = hog_embedder().fit(list(photos))
    np.testing.assert_array_equal(embedder.transform(given), embedder.transform(list(photos)))


def test_the_same_seed_gives_the_same_embedding_and_leaves_the_generators_alone(photos):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (hog_embedder(random_state=3).fit_transform(list(photos)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("make", [hog_embedder, network_embedder])
def test_what_is_saved_is_loaded(make, photos, tmp_path):
    embedder = make().fit(list(photos))
    embedder.save(tmp_path / "e.npz")
    loaded = Embedder.load(tmp_path / "e.npz", embedder.network, batch_size=7)
    np.testing.assert_array_equal(loaded.transform(list(photos)), embedder.transform(list(photos)))
    assert loaded.num_features_ == embedder.num_features_
    assert loaded.layers_ == embedder.layers_
    assert loaded.batch_size == 7


def test_another_network_is_refused_at_loading(photos, tmp_path):
    net = network()
    network_embedder(net).fit(list(photos)).save(tmp_path / "e.npz")
    with pytest.raises(ValueError, match="got no network: pass it as network="):
        Embedder.load(tmp_path / "e.npz")
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match="got another network or other weights"):
        Embedder.load(tmp_path / "e.npz", net)
    hog_embedder().fit(list(photos)).save(tmp_path / "h.npz")
    with pytest.raises(ValueError, match="was fitted with none"):
        Embedder.load(tmp_path / "h.npz", net)


def test_a_file_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="holds no embedder"):
        Embedder.load(tmp_path / "x.npz")
    (tmp_path / "y.npz").write_bytes(b"half")
    with pytest.raises(ValueError, match="damaged"):
        Embedder.load(tmp_path / "y.npz")


def test_the_judge_compares_with_plain_features(photos):
    for embedder in (hog_embedder(), network_embedder()):
        learned, plain = embedder.fit(list(photos)).judge(list(photos))
        assert 0 < learned.stability <= 1
        assert plain.contrast > 0
        assert embedder.judge(list(photos)) == (learned, plain)


def test_it_is_an_estimator(photos):
    embedder = hog_embedder(mirror=False)
    assert clone(embedder).get_params()["mirror"] is False
    fitted = clone(embedder).set_params(num_views=2).fit(list(photos))
    assert fitted.num_features_ <= 6
    for name, value in (("image_size", 48), ("mirror", True), ("mean", (0.5, 0.5, 0.5))):
        changed = copy.deepcopy(fitted).set_params(**{name: value})
        with pytest.raises(ValueError, match=f"{name} is .*, but was .* when the embedder was fitted"):
            changed.transform(list(photos))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"whitening": 2}, ValueError, r"whitening must be in \[0, 1\]"),
        ({"num_views": 1}, ValueError, "num_views must be at least 2"),
        ({"num_images": 2}, ValueError, "num_images must be at least 3"),
        ({"num_images": 0}, ValueError, "num_images must be at least 3"),
        ({"num_components": 0}, ValueError, "num_components must be at least 1"),
        ({"image_size": 0}, ValueError, "image_size must be at least 8"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"random_state": -1}, ValueError, "random_state must be at least 0"),
        ({"neighbors": -1}, ValueError, "neighbors must be at least 0"),
        ({"num_workers": 1.5}, TypeError, "num_workers must be an integer"),
    ],
)
def test_wrong_settings_are_named(options, error, message, photos):
    settings = {"image_size": 32, "num_components": 6, **options}
    with pytest.raises(error, match=message):
        Embedder(**settings).fit(list(photos))


def test_wrong_photos_are_named(photos, tmp_path):
    with pytest.raises(NotFittedError, match=r"call fit\(photos\) first"):
        Embedder().transform(list(photos))
    with pytest.raises(ValueError, match="three photos at least, got 2"):
        hog_embedder().fit(list(photos[:2]))
    with pytest.raises(NotADirectoryError):
        hog_embedder().fit(tmp_path / "none")
    with pytest.raises(TypeError, match="images must have a length and items by index"):
        hog_embedder().fit(iter(photos))
    (tmp_path / "broken.png").write_bytes(b"half an image")
    with pytest.raises(UnreadableImageError, match=r"broken\.png"):
        hog_embedder().fit([*photos, str(tmp_path / "broken.png")])
