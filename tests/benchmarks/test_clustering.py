"""clustering.py as a command on small made images: its data sets, its rows, its resuming, bad input."""

import numpy as np
import pytest
from benchmark_runs import FIGURES, assert_picture, few_patches, keep_measured, quick, rows_of, table_of
from class_trees import write_cifar, write_folder, write_omniglot, write_stl
from refusals import refuses_each
from torchvision.datasets import cifar, stl10

from benchmarks import clustering
from benchmarks.clustering import LINE, main, parse
from benchmarks.core import options
from benchmarks.data.clustering import load
from pml_posets.evaluation import clustering_accuracy
from pml_posets.grouping.kmeans import KMeansGrouping

METHODS = ["pixels", "hog", "random", "concurl"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four classes of eight images, beside the folder for what is made of them once."""
    root = tmp_path_factory.mktemp("data")
    write_folder(root / "shapes", 4, 8)
    with few_patches():
        yield root


def rows_after(data, output, *more):
    few = ["--batch-size", 8, "--top-fraction", 0.5, "--num-transforms", 3, "--num-starts", 2]
    root = [] if "--figures" in more else ["--data-root", data / "shapes"]
    assert main(quick(data / "cache", output, *root, *few, "--components", 8, *more)) == 0
    return rows_of(output)


# --- Data sets


@pytest.fixture
def unchecked(monkeypatch):
    """torchvision compares digests of the real files."""
    for module in (cifar, stl10):
        monkeypatch.setattr(module, "check_integrity", lambda *given: True)


@pytest.mark.parametrize(("kind", "coarse"), [("cifar10", False), ("cifar100-20", True)])
def test_cifar(tmp_path, unchecked, kind, coarse):
    pixels, labels = write_cifar(tmp_path, coarse)
    data = load(kind, tmp_path)
    assert (data.name, len(data), len(data.classes)) == (kind, len(pixels), 20 if coarse else 10)
    assert data.classes[3] == "kind3"
    np.testing.assert_array_equal(data.labels, labels)
    found = [np.asarray(data.images[i]) for i in range(len(data))]
    np.testing.assert_array_equal(found, pixels)
    np.testing.assert_array_equal(data.train, np.arange(len(pixels)))
    np.testing.assert_array_equal(data.train, data.test)
    assert data.names[-1] == "test/1"


def test_stl(tmp_path, unchecked):
    pixels, labels = write_stl(tmp_path)
    data = load("stl10", tmp_path)
    assert (len(data), len(data.classes)) == (6, 10)
    np.testing.assert_array_equal(data.labels, labels)
    np.testing.assert_array_equal(np.asarray(data.images[4]), pixels[4].transpose(1, 2, 0))


@pytest.mark.parametrize("kind", ["cifar10", "cifar100-20", "stl10"])
def test_data_sets_that_are_not_there(tmp_path, kind):
    with pytest.raises(FileNotFoundError, match=f"{kind} is not in .* unpack it there .* --download"):
        load(kind, tmp_path)


def test_imagenet_subsets_are_folders_of_so_many_classes(tmp_path):
    write_folder(tmp_path / "ten", 10, 1)
    data = load("imagenet-10", tmp_path / "ten")
    assert len(data) == 10
    assert data.excluded == {}  # a class of one image is clustered too
    with pytest.raises(ValueError, match=r"imagenet-dogs has 15 classes, .* has 10"):
        load("imagenet-dogs", tmp_path / "ten")


def test_alphabets_of_omniglot(tmp_path):
    write_omniglot(tmp_path / "omniglot.npz")
    data = load("omniglot", tmp_path)
    assert data.classes == ("Greek", "Latin")
    assert data.labels.tolist() == [1] * 8 + [0] * 8
    assert len(data.train) == len(data.test) == 16


def test_the_real_alphabets(shared_data):
    data = load("omniglot", shared_data / "omniglot")
    assert len(data.classes) == 50
    assert len(data.train) == 32460


# --- A run


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    rows_after(data, folder, "--method", *METHODS)
    return folder


def test_a_row_for_every_method(whole):
    rows = rows_of(whole)
    assert list(rows) == [(method, 0) for method in METHODS]
    for (method, _), row in rows.items():
        rounds = {f"acc_round_{number}" for number in range(3)} if method == "concurl" else set()
        assert set(row["metrics"]) == {"acc", "nmi", "ari"} | rounds
        assert 0.25 <= row["metrics"]["acc"] <= 1
        assert (row["settings"]["clusters"], row["settings"]["num_starts"]) == (4, 2)
    assert rows["hog", 0]["settings"]["width"] == 8
    settings = rows["concurl", 0]["settings"]
    assert (settings["num_clusters"], settings["default_clusters"]) == (None, 4)
    assert settings["num_train"] == settings["num_test"] == 32


def test_k_is_the_number_of_classes(data, monkeypatch, tmp_path):
    seen = keep_measured(monkeypatch, clustering.Clustering)
    row = rows_after(data, tmp_path, "--method", "pixels")["pixels", 0]
    ((features, labels),) = seen
    assert features.shape == (32, 8)
    np.testing.assert_array_equal(labels, np.repeat(np.arange(4), 8))
    clusters = KMeansGrouping(4, num_starts=2).fit_predict(features)
    assert row["metrics"]["acc"] == clustering_accuracy(labels, clusters)


def test_tables_and_pictures(whole):
    (header, *_), notes = table_of(whole)
    assert header == ["method", "ACC", "NMI", "ARI", "seeds", "begin", "round 1", "round 2"]
    assert "32 images in 4 clusters by k-means (2 starts)" in notes
    for name in ("loss", "clusters"):
        assert_picture(whole / f"{name}.png")


def test_drawn_figures(data, tmp_path, monkeypatch):
    monkeypatch.setitem(options.FIGURE_SIZES, "tiny", {**FIGURES, "num_sources": 2, "num_frames": 4})
    row = rows_after(data, tmp_path, "--figures", "tiny", "--method", "hog")["hog", 0]
    assert row["dataset"] == "figures-tiny"
    assert (row["settings"]["num_train"], row["settings"]["clusters"]) == (16, 2)  # each sport a class


def test_published_figures_stand_beside_ours_where_they_are_known(tmp_path):
    write_folder(tmp_path / "shapes", 10, 2)
    chosen = ["--dataset", "imagenet-10", "--method", "random", "concurl"]
    assert rows_after(tmp_path, tmp_path / "out", *chosen)["concurl", 0]["dataset"] == "imagenet-10"
    (_, *lines), notes = table_of(tmp_path / "out")
    assert [line[-1] for line in lines] == ["", "0.958 / 0.907 / 0.909"]
    assert "another set-up than ours" in notes


# --- What is wrong


@pytest.mark.parametrize(
    ("shape", "more", "text"),
    [
        ((8, 1), ["udml-ss", "--no-mirror-images"], "--num-clusters must leave at least two of 8 images"),
        ((2, 4), ["concurl", "--batch-size", 9], "--batch-size must be even for concurl"),
        ((2, 2), ["ntxent", "--batch-size", 10], "a batch has 10 images, but shapes holds only 4"),
    ],
)
def test_data_that_do_not_fit(tmp_path, shape, more, text):
    write_folder(tmp_path / "shapes", *shape)
    with pytest.raises(ValueError, match=text):
        rows_after(tmp_path, tmp_path / "out", "--method", *more)
    assert not (tmp_path / "out").exists()


test_wrong_options = refuses_each(
    parse,
    (["--dataset", "cifar10"], "--dataset cifar10 needs --data-root"),
    (["--data-root", "x", "--download"], "--download is for --dataset cifar10, cifar100-20, stl10"),
    (["--num-starts", "0"], "--num-starts must be 1 or more, got 0"),
    error=ValueError,
)


def test_the_defaults():
    found = parse([])
    assert (found.layer, found.recipe.fc_dim, found.data.num_starts) == ("embedding", 128, 20)
    assert set(found.methods) <= set(LINE.methods)
    assert "supervised" not in LINE.methods


@pytest.mark.parametrize(
    ("held", "kind"),
    [
        ("cifar-10-batches-py", "cifar10"),
        ("cifar-100-python", "cifar100-20"),
        ("stl10_binary", "stl10"),
        ("omniglot.npz", "omniglot"),
        ("cats", "folder"),
    ],
)
def test_what_a_folder_holds_is_seen(tmp_path, held, kind):
    (tmp_path / held).mkdir()
    assert parse(["--data-root", str(tmp_path)]).data.dataset == kind
