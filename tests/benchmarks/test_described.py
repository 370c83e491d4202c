"""Images that are described without a network: whose statistics they share, and what training starts from."""

import numpy as np
import pytest
import torch
from benchmark_runs import few_patches, quick
from PIL import Image
from sklearn.decomposition import PCA
from torch import nn
from torchvision.models import resnet18

from benchmarks import olympic
from benchmarks.core import described
from benchmarks.core.described import VIEWS, Described
from benchmarks.core.networks import build
from benchmarks.data.images import Chosen
from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.data.datasets import mirror
from pml_posets.features.network import extract


class Noise:
    """Images of noise in one direction or the other."""

    def __init__(self, count, seed, name, tall=False):
        pixels = np.random.default_rng(seed).integers(0, 256, (count, 40, 40, 3), np.uint8)
        self.pixels = np.repeat(pixels[:, ::8], 8, axis=1) if tall else pixels
        self.data_id = name

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return Image.fromarray(self.pixels[index])


@pytest.fixture(scope="module")
def frames():
    return Noise(10, 0, "noise")


@pytest.fixture(autouse=True)
def quickly():
    with few_patches():
        yield


def options(tmp_path, *more):
    given = ["--components", 4, "--image-size", 64, *more]
    return olympic.parse(quick(tmp_path, tmp_path, *given)).settled("cpu")


def test_statistics_are_those_of_the_background(frames, tmp_path):
    other = Noise(10, 1, "tall", tall=True)
    learned = Described(frames, options(tmp_path))
    tested = Described(other, options(tmp_path), background=learned)
    assert tested.statistics is learned.statistics
    own = Described(other, options(tmp_path))
    assert np.abs(own.statistics.mean_ - learned.statistics.mean_).max() > 0.01
    assert np.abs(own.hog("hog")[0] - tested.hog("hog")[0]).max() > 0.01  # from one cache folder
    assert len(list(tmp_path.glob("hog-background-*.npz"))) == 2


def test_a_part_is_described_as_in_the_whole(frames, tmp_path):
    frames_of = Chosen(frames, np.array([7, 2]))
    whole = Described(frames, options(tmp_path))
    part = Described(frames_of, options(tmp_path), background=whole)
    for kind in ("hog", "hog-lda", "hog-window"):
        for found, expected in zip(part.hog(kind), whole.hog(kind), strict=True):
            np.testing.assert_allclose(found, expected[[7, 2]], atol=1e-6)


@pytest.mark.parametrize("kind", ["hog", "hog-lda", "hog-window"])
def test_kinds_of_hog_are_those_of_hoglda(frames, tmp_path, kind):
    one = Described(frames, options(tmp_path))
    plain, mirrored = one.hog(kind)
    expected = described.HOGLDA(image_size=32, whiten=kind == "hog-lda")
    expected.window = (0.2, 0.6) if kind == "hog-window" else None
    expected.mean_, expected.covariance_ = one.statistics.mean_, one.statistics.covariance_
    found = expected.transform(frames, mirror=True, progress=False)
    np.testing.assert_allclose(plain, found[0], atol=1e-5)
    np.testing.assert_allclose(mirrored, found[1], atol=1e-5)
    settings = one.statistics.whiten, one.statistics.normalize, one.statistics.window
    assert settings == (False, False, None)  # left as they were


def test_the_start_keeps_the_first_principal_directions(frames, tmp_path):
    sources = np.arange(10) // 2
    one = Described(frames, options(tmp_path))
    start = one.start(sources)
    assert start.sources is sources
    whole = Described(frames, options(tmp_path, "--components", 0)).start(None)
    assert whole.sources is None
    np.testing.assert_array_equal(whole.features, one.hog("hog-window")[0])
    np.testing.assert_array_equal(whole.mirrored, one.hog("hog-window")[1])
    directions = np.linalg.svd(whole.features, full_matrices=False)[2][:4]
    plain, mirrored = (rows @ directions.T for rows in (whole.features, whole.mirrored))
    plain, mirrored = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (plain, mirrored))
    assert start.features.shape == start.mirrored.shape == (10, 4)
    # each direction may point either way, which inner products do not show
    np.testing.assert_allclose(start.features @ start.features.T, plain @ plain.T, atol=1e-3)
    np.testing.assert_allclose(start.features @ start.mirrored.T, plain @ mirrored.T, atol=1e-3)
    other = Described(frames, options(tmp_path, "--initial", "hog-lda", "--components", 0)).start(None)
    np.testing.assert_array_equal(other.features, one.hog("hog-lda")[0])  # of the chosen kind


def test_what_is_made_is_kept(frames, tmp_path, monkeypatch):
    one = Described(frames, options(tmp_path))
    assert one.images.shape == (10, 3, 64, 64)
    assert one.images is one.images_of(64)
    assert one.images_of(16).shape == (10, 3, 16, 16)
    assert len(one) == 10
    assert len(list(tmp_path.glob("images-*.npy"))) == 2
    before = one.hog("hog-lda")
    (path,) = tmp_path.glob("hog-background-*.npz")
    path.write_bytes(path.read_bytes()[:100])  # damaged statistics are made again
    mean = Described(frames, options(tmp_path)).statistics.mean_
    np.testing.assert_array_equal(mean, one.statistics.mean_)
    monkeypatch.setattr(Noise, "__getitem__", None)
    np.testing.assert_array_equal(Described(frames, options(tmp_path)).hog("hog-lda"), before)


# --- An embedding learned from views


def test_views_are_learned_from_once_and_by_the_background(frames, tmp_path, monkeypatch):
    whole = Described(frames, options(tmp_path))
    plain, mirrored = whole.hog("hog-views")
    assert plain.shape == mirrored.shape == (10, 9)  # one less than images
    np.testing.assert_allclose(np.linalg.norm(plain, axis=1), 1, atol=1e-5)
    part = Described(Chosen(frames, np.array([7, 2])), options(tmp_path), background=whole)
    np.testing.assert_allclose(part.hog("hog-views")[0], plain[[7, 2]], atol=1e-5)
    monkeypatch.setattr(described, "InstanceLDA", None)
    again = Described(frames, options(tmp_path))  # from the cache folder
    np.testing.assert_array_equal(again.hog("hog-views")[1], mirrored)
    with pytest.raises(TypeError):
        Described(frames, options(tmp_path, "--gray", 0.9)).hog("hog-views")


def test_first_similarities_of_the_trunk_itself(frames, tmp_path, monkeypatch):
    torch.save(resnet18(weights=None).state_dict(), tmp_path / "w.pth")
    trunk = ["--trunk", "resnet18", "--init", tmp_path / "w.pth", "--precision", "float32"]
    given = options(tmp_path, *trunk, "--initial", "trunk")
    whole = Described(frames, given)
    plain, mirrored = whole.hog("start")
    assert plain.shape == mirrored.shape == (10, 4)
    np.testing.assert_array_equal(whole.start().mirrored, mirrored)
    network = nn.Sequential(BatchAugmentation(), build(given.recipe.architecture, 0)["trunk"]).eval()
    network[1].features.load_state_dict(torch.load(tmp_path / "w.pth"), strict=False)
    rows = extract(network, [*whole.images, *map(mirror, whole.images)], progress=False)
    expected = PCA(4, svd_solver="full").fit(rows)
    turned = expected.transform(rows)
    turned /= np.linalg.norm(turned, axis=1, keepdims=True)
    found = np.concatenate([plain, mirrored])
    np.testing.assert_allclose(abs((found * turned).sum(0)), (turned**2).sum(0), rtol=1e-4)

    part = Described(Chosen(frames, np.array([7, 2])), given, background=whole)
    np.testing.assert_allclose(part.hog("start")[0], plain[[7, 2]], atol=1e-4)
    monkeypatch.setattr(described, "extract", None)
    again = Described(frames, given)  # from the cache folder
    np.testing.assert_array_equal(again.hog("start")[1], mirrored)
    settings = again.settings("start")
    assert (settings["trunk"], settings["init"], settings["components"]) == ("resnet18", "w.pth", 4)


def test_of_many_images_some_are_learned_from(frames, tmp_path, monkeypatch):
    monkeypatch.setitem(VIEWS, "num_images", 4)
    monkeypatch.setitem(VIEWS, "num_views", 3)
    assert Described(frames, options(tmp_path)).hog("hog-views")[0].shape == (10, 3)


def test_where_mirror_images_show_the_same_they_come_nearer(frames, tmp_path):
    def alike(flips):
        plain, mirrored = Described(frames, options(tmp_path), flips=flips).hog("hog-views")
        return (plain * mirrored).sum(axis=1).mean()

    assert alike(True) > alike(False) + 0.2


def test_settings_say_what_features_depend_on(frames, tmp_path):
    one = Described(frames, options(tmp_path), flips=True)
    assert one.settings("hog") == one.settings("hog-lda") == {"hog_size": 32}
    views = one.settings("hog-views")
    assert views == {
        "hog_size": 32, **VIEWS, "flips": True, "scale": [0.95, 1.41],
        "brightness": 0.4, "color": 0.3, "gray": 0.3,
    }  # fmt: skip
    assert one.settings("start") == {"hog_size": 32, "first_similarities": "hog-window", "window": [0.2, 0.6]}
    other = Described(frames, options(tmp_path, "--initial", "hog-views"))
    first = {"first_similarities": "hog-views", "window": None}
    assert other.settings("start") == {**views, "flips": False, **first}
    assert other.start(None).features.shape == (10, 4)
