"""HOG-LDA against plain loops and scikit-image, its statistics on disk, and bad images."""

import copy
import os
import random
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.feature import hog as skimage_hog
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

from pml_posets.data.datasets import ImageList, UnreadableImageError
from pml_posets.features import hog_lda as hoglda
from pml_posets.features.hog import HogGrid, HogItems, block_toeplitz, stationary_statistics
from pml_posets.features.hog_lda import HOGLDA
from pml_posets.features.network import NetworkFeatures


def pictures(num: int, size: int = 40, seed: int = 0) -> np.ndarray:
    """(num, size, size, 3) uint8: smooth noise, so that neighbouring blocks are correlated."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (num, 6, 6, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((size, size))) for image in small])


@pytest.fixture(scope="module")
def fitted() -> HOGLDA:
    return HOGLDA(image_size=32).fit_background(pictures(30), num_patches=200, progress=False)


@pytest.fixture
def folder(tmp_path):
    for i, image in enumerate(pictures(7, size=48, seed=1)):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize(
    "grid", [HogGrid(32), HogGrid(64, 8, 3, 6), HogGrid(36, 6, 1, 4), HogGrid(40, 5, 2, 18)]
)
def test_hog_is_scikit_images(grid):
    images = pictures(5, size=grid.image_size)
    images[3] = 0
    images[4] = np.indices((grid.image_size,) * 2).sum(0)[:, :, None] // 3 * 40  # on the edges of bins
    cells, blocks = (grid.cell_size,) * 2, (grid.block_size,) * 2
    expected = [skimage_hog(i, grid.num_orientations, cells, blocks, channel_axis=-1) for i in images]
    for backend in ("torch", "skimage"):
        found = grid.describe(images, backend=backend)
        assert found.dtype == np.float32
        assert found.shape == (5, grid.num_features)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    gray = np.repeat(images[:1, :, :, :1], 3, axis=3)
    expected = skimage_hog(gray[0, :, :, 0], grid.num_orientations, cells, blocks)
    np.testing.assert_allclose(grid.describe(gray)[0], expected, atol=1e-6)
    np.testing.assert_array_equal(grid.describe(images[:0]), np.empty((0, grid.num_features)))
    np.testing.assert_array_equal(grid.describe(np.repeat(images, 40, axis=0))[::40], grid.describe(images))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_hog_on_a_gpu():
    images = pictures(70, size=32)
    found = HogGrid(32).describe(images, device="cuda")
    np.testing.assert_allclose(found, HogGrid(32).describe(images), atol=1e-5)


def test_hog_refuses():
    grid = HogGrid(32)
    with pytest.raises(ValueError, match=r"images must be \(B, 32, 32, channels\) uint8, got \(32, 32, 3\)"):
        grid.describe(pictures(1, size=32)[0])
    with pytest.raises(ValueError, match="float32"):
        grid.describe(pictures(1, size=32).astype(np.float32))
    with pytest.raises(ValueError, match="backend must be one of 'torch', 'skimage', got 'numpy'"):
        grid.describe(pictures(1, size=32), backend="numpy")


def test_statistics_by_plain_loops():
    side, channels, num = 3, 2, 5
    rows = np.random.default_rng(0).standard_normal((num, side, side, channels)).astype(np.float32)
    mean, covariance = stationary_statistics(rows.reshape(num, -1).copy(), side)
    np.testing.assert_allclose(mean, rows.mean((0, 1, 2)), atol=1e-6)
    expected = np.zeros((5, 5, channels, channels))
    for patch in rows.astype(np.float64) - rows.mean((0, 1, 2)):
        for y in range(side):
            for x in range(side):
                for v in range(side):
                    for u in range(side):
                        expected[v - y + 2, u - x + 2] += np.outer(patch[y, x], patch[v, u]) / (9 * num)
    np.testing.assert_allclose(covariance, expected, atol=1e-6)
    whole = block_toeplitz(covariance)
    for a in range(18):
        for b in range(18):
            (y, x, i), (v, u, j) = np.unravel_index(a, (3, 3, 2)), np.unravel_index(b, (3, 3, 2))
            assert whole[a, b] == covariance[v - y + 2, u - x + 2, i, j]
    np.testing.assert_allclose(whole, whole.T, atol=1e-12)
    assert np.linalg.eigvalsh(whole).min() > -1e-9  # five patches, yet positive semi-definite


def test_features_are_whitened_hog(fitted):
    images = pictures(5, size=32, seed=2)
    features = fitted.transform(images, progress=False)
    raw = fitted.grid.describe(images).astype(np.float64)
    centerd = raw - np.tile(fitted.mean_, 9)
    whole = block_toeplitz(fitted.covariance_)
    shrunk = whole + fitted.ridge * np.trace(whole) / len(whole) * np.eye(len(whole))
    expected = np.linalg.solve(np.linalg.cholesky(shrunk), centerd.T).T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    assert fitted.ridge_ == fitted.ridge == 10
    # the dot product is that of the linear discriminant, w = Sigma^-1 (h - mu), up to its scale
    weights = np.linalg.solve(shrunk, centerd[0])
    scores = centerd @ weights / np.sqrt(np.einsum("nd,dn->n", centerd, np.linalg.solve(shrunk, centerd.T)))
    np.testing.assert_allclose(scores / scores[0], features @ features[0], atol=1e-5)


def test_whitening_decorrelates_the_background():
    images = pictures(40, size=32, seed=3)
    lda = HOGLDA(image_size=32, ridge=0.01, normalize=False)
    lda.fit_background(images, num_patches=400, progress=False)
    plain = HOGLDA(image_size=32, whiten=False, normalize=False)
    plain.fit_background(images, num_patches=400, progress=False)

    def off_diagonal(rows):
        correlation = np.abs(np.corrcoef(rows[:, :36].T))
        return (correlation.sum() - 36) / (36 * 35)

    fresh = pictures(300, size=32, seed=4)
    before = off_diagonal(plain.transform(fresh, progress=False))
    after = off_diagonal(lda.transform(fresh, progress=False))
    assert after < 0.7 * before


def test_options(fitted):
    images = pictures(4, size=32, seed=5)
    rows = fitted.transform(images, progress=False)
    assert rows.dtype == np.float32
    assert rows.shape == (4, fitted.num_features)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    plain = HOGLDA(image_size=32, whiten=False, normalize=False)
    plain.fit_background(pictures(30), num_patches=200, progress=False)
    np.testing.assert_array_equal(plain.mean_, fitted.mean_)
    expected = plain.grid.describe(images)[0] - np.tile(plain.mean_, 9)
    np.testing.assert_allclose(plain.transform(images, progress=False)[0], expected, atol=1e-6)
    assert plain.ridge_ is None
    shrunk = HOGLDA(image_size=32, ridge=1e7)
    shrunk.mean_, shrunk.covariance_ = fitted.mean_, fitted.covariance_
    unit = expected / np.linalg.norm(expected)
    shrunk.ridge = 1.0
    assert np.abs(shrunk.transform(images, progress=False)[0] - unit).max() > 0.01
    shrunk.ridge = 1e7  # the factor follows
    np.testing.assert_allclose(shrunk.transform(images, progress=False)[0], unit, atol=1e-4)


def test_a_matrix_that_does_not_invert_is_shrunk_more(fitted):
    broken = HOGLDA(image_size=32, ridge=0)
    broken.mean_, broken.covariance_ = fitted.mean_, fitted.covariance_.copy()
    broken.covariance_[:2] *= 30  # large offsets count too much: no longer positive semi-definite
    broken.covariance_[3:] *= 30
    features = broken.transform(pictures(2, size=32), progress=False)
    assert np.isfinite(features).all()
    assert broken.ridge_ > 0.01
    rank_one = HOGLDA(image_size=32, ridge=0).fit_background(pictures(2), num_patches=2, progress=False)
    assert np.isfinite(rank_one.transform(pictures(2, size=32), progress=False)).all()


def test_mirror_images(fitted):
    torch.set_num_threads(1)  # several multiply batches of other sizes differently, in the last bit
    images = pictures(5, size=50, seed=6)
    features, mirrored = fitted.transform(images, mirror=True, progress=False)
    np.testing.assert_array_equal(features, fitted.transform(images, progress=False))
    flipped = [Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR) for image in images]
    flipped = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in flipped]
    np.testing.assert_allclose(mirrored, fitted.transform(flipped, progress=False), atol=1e-6)
    assert np.abs(features - mirrored).max() > 0.01


def test_all_kinds_of_images_give_the_same(fitted, folder):
    paths = sorted(folder.glob("*.png"))
    arrays = np.stack([np.asarray(Image.open(path)) for path in paths])
    expected = fitted.transform(arrays, progress=False)
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    labelled = [(tensor / 255, 1) for tensor in tensors]
    np.testing.assert_allclose(
        fitted.transform(paths, backend="skimage", progress=False), expected, atol=1e-5
    )
    for images in (
        paths,
        [str(path) for path in paths],
        ImageList(paths),
        [Image.open(path) for path in paths],
        tensors,
        labelled,
        arrays / 255,
        torch.utils.data.TensorDataset(tensors),
    ):
        np.testing.assert_array_equal(fitted.transform(images, progress=False), expected)


def test_background_depends_on_its_seed_alone():
    options = {"num_patches": 40, "progress": False}
    first = HOGLDA(image_size=32).fit_background(pictures(6), **options)
    again = HOGLDA(image_size=32).fit_background(pictures(6), num_workers=2, **options)
    other = HOGLDA(image_size=32).fit_background(pictures(6), random_state=1, **options)
    np.testing.assert_array_equal(first.covariance_, again.covariance_)
    assert np.abs(first.mean_ - other.mean_).max() > 0


def test_background_patches_lie_inside_their_images():
    """Patches of an image whose left half is blank and right half is not see both, and mirror."""
    image = np.zeros((60, 80, 3), np.uint8)
    items = HogItems([image], 32, patches=np.array([[0, 1.0, 1.0, 1.0, 0]]))
    image[:, 60:] = 255
    whole = np.asarray(Image.fromarray(image[:, 20:]).resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(items[0], whole)
    items.patches[0, 4] = 1
    np.testing.assert_array_equal(items[0], whole[:, ::-1])


def test_save_and_load(fitted, tmp_path):
    path = tmp_path / "background.npz"
    fitted.save(path)
    loaded = HOGLDA.load(path)
    assert (loaded.grid, loaded.ridge, loaded.whiten, loaded.normalize) == (HogGrid(32), 10.0, True, True)
    images = pictures(3, size=32)
    expected = fitted.transform(images, progress=False)
    np.testing.assert_array_equal(loaded.transform(images, progress=False), expected)
    assert os.listdir(tmp_path) == ["background.npz"]


def test_damaged_files(fitted, tmp_path):
    path = tmp_path / "background.npz"
    fitted.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"background\.npz is damaged"):
        HOGLDA.load(path)
    np.savez(path, mean=np.zeros(3))
    with pytest.raises(ValueError, match="holds no feature steps"):
        HOGLDA.load(path)
    broken = copy.copy(fitted)
    broken.mean_ = np.zeros(3)
    broken.save(path)
    with pytest.raises(ValueError, match="do not fit its settings"):
        HOGLDA.load(path)
    with pytest.raises(FileNotFoundError):
        HOGLDA.load(tmp_path / "none.npz")
    with pytest.raises(FileNotFoundError):
        fitted.save(tmp_path / "no folder" / "background.npz")


def test_cache(fitted, folder, tmp_path, monkeypatch):
    paths = sorted(folder.glob("*.png"))
    options = {"cache_dir": tmp_path / "cache", "progress": False}
    first = fitted.transform(paths, mirror=True, **options)
    with monkeypatch.context() as context:
        context.setattr(hoglda, "hog_batches", None)  # nothing is computed a second time
        again = fitted.transform(paths, mirror=True, **options)
        np.testing.assert_array_equal(fitted.transform(paths, **options), first[0])
        with pytest.raises(TypeError):
            fitted.transform(paths[1:], **options)
    np.testing.assert_array_equal(first, again)
    Image.open(paths[1]).save(paths[0], compress_level=1)  # another picture under the same name
    changed = fitted.transform(paths, mirror=True, **options)
    np.testing.assert_array_equal(changed[0][0], first[0][1])
    assert len(os.listdir(options["cache_dir"])) == 1  # the stale entry was replaced
    other = HOGLDA(image_size=32, ridge=1)
    other.mean_, other.covariance_ = fitted.mean_, fitted.covariance_
    assert np.abs(other.transform(paths, **options) - changed[0]).max() > 1e-3
    assert len(os.listdir(options["cache_dir"])) == 2


def test_the_cache_gains_mirror_images(fitted, folder, tmp_path):
    paths = sorted(folder.glob("*.png"))
    options = {"cache_dir": tmp_path / "cache", "progress": False}
    features = fitted.transform(paths, **options)
    both = fitted.transform(paths, mirror=True, **options)
    np.testing.assert_allclose(both[0], features, atol=1e-6)


def test_unreadable_images_are_named(fitted, folder):
    paths = sorted(folder.glob("*.png"))
    whole = paths[3].read_bytes()
    paths[3].write_bytes(whole[: len(whole) // 2])
    for workers in (0, 2):
        with pytest.raises(UnreadableImageError, match=r"3\.png"):
            fitted.transform(paths, num_workers=workers, progress=False)
    with pytest.raises(UnreadableImageError, match=r"cannot read images\[1\]: image file is truncated"):
        fitted.transform([Image.open(paths[0]), Image.open(paths[3])], progress=False)
    paths[3].write_bytes(b"")
    with pytest.raises(UnreadableImageError, match=r"3\.png"):
        HOGLDA(image_size=32).fit_background(paths, num_patches=30, progress=False)
    paths[3].unlink()
    with pytest.raises(UnreadableImageError, match=r"3\.png"):
        fitted.transform(paths, progress=False)


def test_bad_arguments(fitted):
    for options, message in [
        ({"image_size": 30}, "image_size must be a multiple of cell_size, got 30 and 8"),
        ({"image_size": 8}, "holds no block"),
        ({"cell_size": 0}, "cell_size must be at least 1, got 0"),
        ({"ridge": -1}, "ridge must be at least 0, got -1"),
        ({"ridge": np.nan}, "ridge must be at least 0, got nan"),
        ({"ridge": np.inf}, "ridge must be at least 0, got inf"),
    ]:
        with pytest.raises(ValueError, match=message):
            HOGLDA(**options)
    with pytest.raises(TypeError, match="num_orientations must be an integer"):
        HOGLDA(num_orientations=2.5)
    with pytest.raises(ValueError, match=r"call fit_background\(images\)"):
        HOGLDA().transform(pictures(1), progress=False)
    with pytest.raises(ValueError, match="nothing to save"):
        HOGLDA().save("unused.npz")
    with pytest.raises(ValueError, match="no edges to learn from"):
        HOGLDA(32).fit_background(np.zeros((3, 32, 32), np.uint8), num_patches=4, progress=False)
    with pytest.raises(ValueError, match="num_patches must be at least 2"):
        HOGLDA(32).fit_background(pictures(2), num_patches=1)
    with pytest.raises(ValueError, match="min_scale"):
        HOGLDA(32).fit_background(pictures(2), min_scale=0)
    with pytest.raises(ValueError, match="images must hold at least one sample"):
        fitted.transform([])
    with pytest.raises(TypeError, match="a dataset or a sequence of images or paths, got str"):
        fitted.transform("a folder")
    with pytest.raises(TypeError, match="give data_id"):
        fitted.transform(torch.utils.data.TensorDataset(torch.zeros(1, 3, 8, 8)), cache_dir="unused")


def test_progress_bar(fitted, capfd):
    fitted.transform(pictures(2), progress=True)
    assert "2/2" in capfd.readouterr().err
    fitted.transform(pictures(2), progress=False)
    assert capfd.readouterr() == ("", "")


def test_real_frames(shared_data):
    """Same posture, other persons: above chance, on a few frames of three sports."""
    frames = sorted((shared_data / "jhmdb_postures" / "frames").glob("*/*/I00000.jpg"))[:200]
    lda = HOGLDA().fit_background(frames[::3], num_patches=60, progress=False)
    features, mirrored = lda.transform(frames[:60], mirror=True, progress=False)
    assert features.shape == mirrored.shape == (60, 4356)
    similar = features @ features.T
    sources = [path.parent.name.rsplit("_", 1)[0] for path in frames[:60]]
    same = np.equal.outer(sources, sources) & ~np.eye(60, dtype=bool)
    assert similar[same].mean() > similar[~same & ~np.eye(60, dtype=bool)].mean() + 0.1


def test_window_weighs_blocks_by_their_distance_from_the_center(tmp_path):
    images = pictures(4)
    plain = HOGLDA(image_size=32, whiten=False, normalize=False).fit_background(
        images, num_patches=20, progress=False
    )
    windowed = HOGLDA(image_size=32, whiten=False, normalize=False, window=(0.2, 0.5))
    windowed.mean_, windowed.covariance_ = plain.mean_, plain.covariance_
    ratio = windowed.transform(images, progress=False) / plain.transform(images, progress=False)
    ratio = np.nanmean(ratio, axis=0).reshape(3, 3, 36)
    offset = 8 / 32  # the blocks' centers lie at 8, 16 and 24 of 32 pixels
    for row, y in enumerate((-offset, 0, offset)):
        for column, x in enumerate((-offset, 0, offset)):
            expected = np.exp(-0.5 * ((x / 0.2) ** 2 + (y / 0.5) ** 2))
            np.testing.assert_allclose(ratio[row, column], expected, rtol=1e-4)
    windowed.save(tmp_path / "w.npz")
    assert HOGLDA.load(tmp_path / "w.npz").window == (0.2, 0.5)
    with pytest.raises(ValueError, match="window must be two numbers above 0"):
        HOGLDA(window=(0.2, 0.0))


# --- One description, several settings


@pytest.fixture
def described(fitted):
    """HOG minus mu of more images than are finished at once, and who made it."""
    plain = HOGLDA(image_size=32, whiten=False, normalize=False)
    plain.mean_, plain.covariance_ = fitted.mean_, fitted.covariance_
    return plain, np.tile(plain.transform(pictures(9, size=32, seed=6), progress=False), (230, 1))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"whiten": False},
        {"normalize": False},
        {"whiten": False, "normalize": False, "window": (0.2, 0.5)},
        {"ridge": 0.1, "window": (0.17, 0.5)},
    ],
)
def test_finish_is_what_transform_does(described, settings):
    plain, centerd = described
    whole = HOGLDA(image_size=32, **settings)
    whole.mean_, whole.covariance_ = plain.mean_, plain.covariance_
    expected = whole.transform(pictures(9, size=32, seed=6), progress=False)
    for name, value in {"whiten": True, "normalize": True, **settings}.items():
        setattr(plain, name, value)
    before = centerd.copy()
    finished = plain.finish(centerd)
    assert finished.dtype == np.float32
    assert len(finished) == 2070
    np.testing.assert_allclose(finished, np.tile(expected, (230, 1)), atol=2e-6)
    np.testing.assert_array_equal(centerd, before)
    finished[:] = 0  # its own array, whatever was to be done
    np.testing.assert_array_equal(centerd, before)


def test_finish_of_nothing_and_of_a_mapped_file(described):
    plain, centerd = described
    plain.whiten = plain.normalize = True
    assert plain.finish(centerd[:0]).shape == (0, plain.num_features)
    centerd.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain.finish(centerd)


def test_finish_of_something_else(described):
    plain, centerd = described
    with pytest.raises(ValueError, match=r"must have shape \(N, 324\), got \(2070, 300\): is it of another"):
        plain.finish(centerd[:, :300])
    with pytest.raises(ValueError, match="got \\(324,\\)"):
        plain.finish(centerd[0])
    with pytest.raises(ValueError, match="needs background statistics"):
        HOGLDA(image_size=32).finish(centerd)


# --- As scikit-learn's


def test_as_a_step_of_a_pipeline():
    images = pictures(12, size=32)
    pipeline = make_pipeline(HOGLDA(image_size=32), PCA(3, whiten=True, random_state=0))
    rows = pipeline.fit(images).transform(images[:4])
    assert rows.shape == (4, 3)
    assert "HOGLDA" in pipeline._repr_html_()
    again = clone(pipeline).set_params(hoglda__ridge=1.0)
    assert again.named_steps["hoglda"].mean_ is None
    assert np.abs(again.fit(images).transform(images[:4]) - rows).max() > 1e-3
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
        check = getattr(estimator_checks, name, None)
        if check is not None:
            check(type(step).__name__, clone(step))


def test_settings_that_set_params_has_broken_are_found(fitted):
    broken = copy.deepcopy(fitted).set_params(ridge=-1)
    with pytest.raises(ValueError, match="ridge must be at least 0"):
        broken.transform(pictures(1, size=32), progress=False)
    broken.set_params(ridge=1, image_size=30)
    with pytest.raises(ValueError, match="multiple of cell_size"):
        broken.transform(pictures(1, size=32), progress=False)
    for changes in ({"image_size": 64}, {"image_size": 32, "num_orientations": 8}):
        with pytest.raises(ValueError, match="grid have changed since fit_background: call it again"):
            broken.set_params(**changes).transform(pictures(1, size=32), progress=False)


# --- Randomness


class Drawing(torch.utils.data.Dataset):
    """Images drawn from every global generator, as random transforms do."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        noise = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002
        return (self.images[index] / 255 * float(noise) / 3).astype(np.float32)


def test_random_transforms_draw_the_same_with_any_number_of_workers(fitted):
    data, before = Drawing(pictures(7, size=32)), torch.get_rng_state()
    rows = [
        np.stack(fitted.transform(data, mirror=True, num_workers=workers, batch_size=batch, progress=False))
        for workers, batch in ((0, 256), (1, 2), (2, 3))
    ]
    for other in rows[1:]:
        np.testing.assert_allclose(other, rows[0], atol=1e-6)
    assert torch.equal(before, torch.get_rng_state())
    part = fitted.transform(torch.utils.data.Subset(data, range(7)), progress=False)
    np.testing.assert_allclose(part, rows[0][0], atol=1e-6)
    learned = [
        HOGLDA(image_size=32).fit_background(data, num_patches=20, num_workers=workers, progress=False).mean_
        for workers in (0, 1, 2)
    ]
    np.testing.assert_array_equal(learned[0], learned[1])
    np.testing.assert_array_equal(learned[0], learned[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_any_floating_dtype(fitted, dtype):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rows = fitted.transform(images.to(dtype), mirror=True, progress=False)
    np.testing.assert_allclose(rows[0], fitted.transform(images, progress=False), atol=0.06)
