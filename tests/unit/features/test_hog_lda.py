"""HOG-LDA against plain loops and scikit-image, its statistics on disk, and bad images."""

import copy
import os

import numpy as np
import pytest
import torch
from pictures import Noisy, generators, saved, smooth
from PIL import Image
from refusals import no_warning, refuses_each
from skimage.feature import hog as skimage_hog
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

from pml_posets.data.datasets import UnreadableImageError
from pml_posets.features import hog_lda as hoglda
from pml_posets.features.hog import HogGrid, HogItems, block_toeplitz, stationary_statistics
from pml_posets.features.hog_lda import HOGLDA
from pml_posets.features.network import NetworkFeatures

PLAIN = {"whiten": False, "normalize": False}
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def fitted() -> HOGLDA:
    return HOGLDA(image_size=32).fit_background(smooth(30), num_patches=200, **QUIET)


@pytest.fixture
def paths(tmp_path):
    return saved(tmp_path / "images", smooth(7, size=48, seed=1))


# --- HOG and the statistics of patches


@pytest.mark.parametrize(
    "grid", [HogGrid(32), HogGrid(64, 8, 3, 6), HogGrid(36, 6, 1, 4), HogGrid(40, 5, 2, 18)]
)
def test_hog_is_scikit_images(grid):
    images = smooth(5, size=grid.image_size)
    images[3] = 0
    images[4] = np.indices((grid.image_size,) * 2).sum(0)[:, :, None] // 3 * 40  # on the edges of bins
    cells, blocks = (grid.cell_size,) * 2, (grid.block_size,) * 2
    expected = [skimage_hog(i, grid.num_orientations, cells, blocks, channel_axis=-1) for i in images]
    for backend in ("torch", "skimage"):
        found = grid.describe(images, backend=backend)
        assert found.dtype == np.float32
        assert found.shape == (5, grid.num_features)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(grid.describe(images[:0]), np.empty((0, grid.num_features)))
    np.testing.assert_array_equal(grid.describe(np.repeat(images, 40, axis=0))[::40], grid.describe(images))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_hog_on_a_gpu():
    images = smooth(70, size=32)
    found = HogGrid(32).describe(images, device="cuda")
    np.testing.assert_allclose(found, HogGrid(32).describe(images), atol=1e-5)


test_hog_refuses = refuses_each(
    lambda images, options: HogGrid(32).describe(images, **options),
    (smooth(1, 32)[0], {}, r"images must be \(B, 32, 32, channels\) uint8, got \(32, 32, 3\)"),
    (smooth(1, 32).astype(np.float32), {}, "float32"),
    (smooth(1, 32), {"backend": "numpy"}, "backend must be one of 'torch', 'skimage', got 'numpy'"),
    error=ValueError,
)


def test_statistics_by_plain_loops():
    side, channels, num = 3, 2, 5
    rows = np.random.default_rng(0).standard_normal((num, side, side, channels)).astype(np.float32)
    mean, covariance = stationary_statistics(rows.reshape(num, -1).copy(), side)
    np.testing.assert_allclose(mean, rows.mean((0, 1, 2)), atol=1e-6)
    expected = np.zeros((5, 5, channels, channels))
    for patch in rows.astype(np.float64) - rows.mean((0, 1, 2)):
        for y, x, v, u in np.ndindex(3, 3, 3, 3):
            expected[v - y + 2, u - x + 2] += np.outer(patch[y, x], patch[v, u]) / (9 * num)
    np.testing.assert_allclose(covariance, expected, atol=1e-6)
    whole = block_toeplitz(covariance)
    for a, b in np.ndindex(18, 18):
        (y, x, i), (v, u, j) = np.unravel_index(a, (3, 3, 2)), np.unravel_index(b, (3, 3, 2))
        assert whole[a, b] == covariance[v - y + 2, u - x + 2, i, j]
    assert np.linalg.eigvalsh(whole).min() > -1e-9  # five patches, yet positive semi-definite


def test_patches_lie_inside_their_images_and_are_mirrored():
    image = np.zeros((60, 80, 3), np.uint8)
    image[:, 60:] = 255
    image[30:, 24:60] = 100
    for left, top, side in ((1.0, 1.0, 60), (0.2, 0.5, 30)):
        items = HogItems([image], 32, patches=np.array([[0, side / 60, left, top, 0]]))
        x, y = int(left * (80 - side)), int(top * (60 - side))
        part = Image.fromarray(image[y : y + side, x : x + side])
        expected = np.asarray(part.resize((32, 32), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(items[0], expected)
        items.patches[0, 4] = 1
        np.testing.assert_array_equal(items[0], expected[:, ::-1])


# --- Features


@pytest.mark.parametrize(
    "settings",
    [{}, PLAIN, {"whiten": False}, {"ridge": 0.1, "window": (0.17, 0.5)}, {**PLAIN, "window": (0.2, 0.5)}],
)
def test_features_by_the_formula(fitted, settings):
    images = smooth(5, size=32, seed=2)
    fitted.transform(images, **QUIET)
    lda = copy.copy(fitted).set_params(**settings)  # the factor that it has made follows the ridge
    described = fitted.grid.describe(images) - np.tile(fitted.mean_, 9).astype(np.float32)
    expected = described.astype(np.float64)
    if lda.whiten:
        whole = block_toeplitz(lda.covariance_)
        whole += lda.ridge * np.trace(whole) / len(whole) * np.eye(len(whole))
        expected = np.linalg.solve(np.linalg.cholesky(whole), expected.T).T
    if lda.window:
        offset = np.array([-8, 0, 8]) / 32  # the blocks' centers lie at 8, 16 and 24 of 32 pixels
        across, down = (np.exp(-0.5 * (offset / spread) ** 2) for spread in lda.window)
        expected *= np.outer(down, across).ravel().repeat(36)
    if lda.normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = lda.transform(images, **QUIET)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(lda.transform(images, backend="skimage", **QUIET), expected, atol=1e-5)
    assert lda.ridge_ == lda.ridge
    many = np.tile(described, (410, 1))  # more than are finished at once
    before = many.copy()
    many.flags.writeable = False  # as those of a mapped file
    with no_warning():
        finished = lda.finish(many)
    np.testing.assert_allclose(finished, np.tile(found, (410, 1)), atol=2e-6)
    finished[:] = 0  # its own array, whatever was to be done
    np.testing.assert_array_equal(many, before)
    assert lda.finish(many[:0]).shape == (0, 324)


def test_a_matrix_that_does_not_invert_is_shrunk_more(fitted):
    broken = copy.copy(fitted).set_params(ridge=0)
    broken.covariance_ = fitted.covariance_.copy()
    broken.covariance_[[0, 1, 3, 4]] *= 30  # large offsets count too much: no longer positive semi-definite
    assert np.isfinite(broken.transform(smooth(2, size=32), **QUIET)).all()
    assert broken.ridge_ > 0.01
    rank_one = HOGLDA(image_size=32, ridge=0).fit_background(smooth(2), num_patches=2, **QUIET)
    assert np.isfinite(rank_one.transform(smooth(2, size=32), **QUIET)).all()


def test_another_background_makes_another_factor():
    lda = HOGLDA(image_size=16).fit_background(smooth(5), num_patches=20, **QUIET)
    images = smooth(2, size=16)
    first = lda.transform(images, **QUIET)
    again = lda.fit_background(smooth(5, seed=7), num_patches=20, **QUIET).transform(images, **QUIET)
    fresh = HOGLDA(image_size=16).fit_background(smooth(5, seed=7), num_patches=20, **QUIET)
    np.testing.assert_array_equal(again, fresh.transform(images, **QUIET))
    assert np.abs(again - first).max() > 1e-3


def test_mirror_images(fitted):
    torch.set_num_threads(1)  # several multiply batches of other sizes differently, in the last bit
    images = smooth(5, size=50, seed=6)
    features, mirrored = fitted.transform(images, mirror=True, **QUIET)
    np.testing.assert_array_equal(features, fitted.transform(images, **QUIET))
    flipped = [Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR) for image in images]
    flipped = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in flipped]
    np.testing.assert_allclose(mirrored, fitted.transform(flipped, **QUIET), atol=1e-6)
    assert np.abs(features - mirrored).max() > 0.01


def test_progress_bar(fitted, capfd):
    fitted.transform(smooth(2), progress=True)
    assert "2/2" in capfd.readouterr().err
    fitted.transform(smooth(2), progress=False)
    assert capfd.readouterr() == ("", "")


def test_real_frames(shared_data):
    """Same posture, other persons: above chance, on a few frames of three sports."""
    frames = sorted((shared_data / "jhmdb_postures" / "frames").glob("*/*/I00000.jpg"))[:200]
    lda = HOGLDA().fit_background(frames[::3], num_patches=60, **QUIET)
    features, mirrored = lda.transform(frames[:60], mirror=True, **QUIET)
    assert features.shape == mirrored.shape == (60, 4356)
    similar = features @ features.T
    sources = [path.parent.name.rsplit("_", 1)[0] for path in frames[:60]]
    same = np.equal.outer(sources, sources) & ~np.eye(60, dtype=bool)
    assert similar[same].mean() > similar[~same & ~np.eye(60, dtype=bool)].mean() + 0.1


def test_random_transforms_draw_the_same_with_any_number_of_workers(fitted):
    data, before = Noisy(7, (3, 32, 32)), generators()
    first = fitted.transform(data, mirror=True, **QUIET)
    again = fitted.transform(data, mirror=True, num_workers=2, batch_size=3, **QUIET)
    np.testing.assert_allclose(again, first, atol=1e-6)
    images = [torch.from_numpy(image).permute(2, 0, 1) for image in smooth(6)]
    learned = [
        HOGLDA(image_size=32).fit_background(images, num_patches=40, **how, **QUIET).covariance_
        for how in ({}, {"num_workers": 2}, {"random_state": 1})
    ]
    np.testing.assert_array_equal(learned[0], learned[1])
    assert np.abs(learned[0] - learned[2]).max() > 0
    assert generators() == before


# --- On disk


def test_statistics_come_back_and_those_of_other_settings_are_refused(fitted, tmp_path):
    path = tmp_path / "background.npz"
    fitted.save(path)
    images = smooth(3, size=32)
    expected = fitted.transform(images, **QUIET)
    np.testing.assert_array_equal(HOGLDA.load(path).transform(images, **QUIET), expected)
    for broken in ({"mean_": np.zeros(3)}, {"covariance_": fitted.covariance_[1:]}):
        other = copy.copy(fitted)
        vars(other).update(broken)
        other.save(path)
        with pytest.raises(ValueError, match="do not fit its settings"):
            HOGLDA.load(path)


def test_cache(fitted, paths, tmp_path, monkeypatch):
    options = {"cache_dir": tmp_path / "cache", **QUIET}
    alone = fitted.transform(paths, **options)
    first = fitted.transform(paths, mirror=True, **options)  # the entry gains the mirror images
    np.testing.assert_allclose(first[0], alone, atol=1e-6)
    with monkeypatch.context() as context:
        context.setattr(hoglda, "hog_batches", None)  # nothing is computed a second time
        np.testing.assert_array_equal(fitted.transform(paths, mirror=True, **options), first)
        np.testing.assert_array_equal(fitted.transform(paths, **options), first[0])
        with pytest.raises(TypeError):
            fitted.transform(paths[1:], **options)
    Image.open(paths[1]).save(paths[0], compress_level=1)  # another picture under the same name
    changed = fitted.transform(paths, **options)
    np.testing.assert_array_equal(changed[0], first[0][1])
    assert len(os.listdir(options["cache_dir"])) == 1  # the stale entry was replaced
    other = copy.copy(fitted).set_params(ridge=1)
    assert np.abs(other.transform(paths, **options) - changed).max() > 1e-3
    assert len(os.listdir(options["cache_dir"])) == 2


def test_unreadable_images_are_named(fitted, paths):
    paths[3].write_bytes(paths[3].read_bytes()[:900])
    for workers in (0, 1):
        with pytest.raises(UnreadableImageError, match=r"3\.png"):
            fitted.transform(paths, num_workers=workers, **QUIET)
    with pytest.raises(UnreadableImageError, match=r"cannot read images\[1\]: .*truncated"):
        fitted.transform([Image.open(paths[0]), Image.open(paths[3])], **QUIET)
    paths[3].unlink()
    with pytest.raises(UnreadableImageError, match=r"3\.png"):
        HOGLDA(image_size=32).fit_background(paths, num_patches=30, **QUIET)


# --- Bad arguments


test_bad_settings = refuses_each(
    lambda options: HOGLDA(**options),
    ({"image_size": 30}, "image_size must be a multiple of cell_size, got 30 and 8"),
    ({"image_size": 8}, "holds no block"),
    ({"cell_size": 0}, "cell_size must be at least 1, got 0"),
    ({"num_orientations": 2.5}, "num_orientations must be an integer"),
    ({"ridge": -1}, "ridge must be at least 0, got -1"),
    ({"ridge": np.nan}, "ridge must be at least 0, got nan"),
    ({"window": (0.2, 0.0)}, "window must be two numbers above 0"),
    ({"window": 0.2}, "window must be two numbers above 0"),
    error=(ValueError, TypeError),
)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lda: HOGLDA().transform(smooth(1)), r"call fit_background\(images\)"),
        (lambda lda: HOGLDA(32).finish(np.zeros((1, 324))), "needs background statistics"),
        (lambda lda: lda.finish(np.zeros((2, 300))), r"shape \(N, 324\), got \(2, 300\): is it of another"),
        (lambda lda: lda.finish(np.zeros(324)), r"got \(324,\)"),
        (lambda lda: HOGLDA(32).fit_background(np.zeros((3, 32, 32), np.uint8), num_patches=4), "no edges"),
        (lambda lda: HOGLDA(32).fit_background(smooth(2), num_patches=1), "num_patches must be at least 2"),
        (lambda lda: HOGLDA(32).fit_background(smooth(2), min_scale=0), "min_scale"),
        (lambda lda: lda.transform([]), "images must hold at least one sample"),
        (lambda lda: lda.transform("a folder"), "a dataset or a sequence of images or paths, got str"),
        (lambda lda: lda.transform([object()], cache_dir="unused"), "give data_id"),
    ],
)
def test_wrong_use(fitted, call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(fitted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ridge": -1}, "ridge must be at least 0"),
        ({"image_size": 30}, "multiple of cell_size"),
        ({"image_size": 64}, "grid have changed since fit_background: call it again"),
        ({"num_orientations": 8}, "grid have changed since fit_background"),
    ],
)
def test_settings_that_set_params_has_broken_are_found(fitted, changes, message):
    with pytest.raises(ValueError, match=message):
        copy.copy(fitted).set_params(**changes).transform(smooth(1, size=32), **QUIET)


# --- As scikit-learn's


def test_as_a_step_of_a_pipeline():
    images = smooth(12, size=16)
    pipeline = make_pipeline(HOGLDA(image_size=16, cell_size=4), PCA(3, whiten=True, random_state=0))
    rows = pipeline.fit(images).transform(images[:4])
    assert rows.shape == (4, 3)
    assert "HOGLDA" in pipeline._repr_html_()
    again = clone(pipeline).set_params(hoglda__ridge=1.0).named_steps["hoglda"]
    assert (again.ridge, again.mean_) == (1.0, None)
    assert repr(HOGLDA(window=(0.2, 0.5))) == "HOGLDA(window=(0.2, 0.5))"


# Of images no check that makes rows of numbers applies.
APPLICABLE = [
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_do_not_raise_errors_in_init_or_set_param",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
]


@pytest.mark.parametrize("step", [HOGLDA(), NetworkFeatures(torch.nn.Flatten())])
def test_scikit_learn_s_checks_of_estimators_of_images(step):
    pytest.importorskip("sklearn", minversion="1.6")  # before, they need classes without arguments
    for name in APPLICABLE:
        if (check := getattr(estimator_checks, name, None)) is not None:
            check(type(step).__name__, clone(step))
