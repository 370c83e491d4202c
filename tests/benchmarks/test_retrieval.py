"""retrieval.py as a command on small made images: its layouts, its rows, its resuming, bad input."""

import shutil

import numpy as np
import pytest
import torch
from benchmark_runs import (
    FIGURES,
    TRUNK,
    assert_picture,
    few_patches,
    keep_measured,
    quick,
    rows_of,
    table_of,
)
from class_trees import write_cars, write_cub, write_folder, write_omniglot, write_sop
from refusals import refuses_each
from torchvision import models as torchvision_models

from benchmarks import retrieval
from benchmarks.core import networks, options
from benchmarks.core.described import VIEWS
from benchmarks.data import zero_shot as zero_shot_data
from benchmarks.data.labeled_images import MISSING
from benchmarks.data.zero_shot import kind_of, load
from benchmarks.retrieval import LINE, PUBLISHED, main, parse
from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.evaluation import retrieval_scores
from pml_posets.features.instance_lda import InstanceLDA
from pml_posets.features.network import extract

METHODS = ["pixels", "hog", "random", "udml-ss", "supervised"]
MEASURES = ["recall_1", "recall_2", "recall_4", "recall_8", "nmi", "map_at_r", "r_precision"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six classes of six images, beside the folder for what is made of them once."""
    root = tmp_path_factory.mktemp("data")
    write_folder(root / "shapes")
    with few_patches():
        yield root


def arguments(data, output, *more):
    few = ["--batch-size", 8, "--top-fraction", 0.5, "--num-clusters", 6, "--samples-per-cluster", 2]
    root = [] if {"--data-root", "--figures"} & {*more} else ["--data-root", data / "shapes"]
    return quick(data / "cache", output, *root, *few, "--components", 8, *more)


def rows_after(data, output, *more):
    assert main(arguments(data, output, *more)) == 0
    return rows_of(output)


# --- Layouts


@pytest.fixture
def few(monkeypatch):
    """Sets of a few images in place of thousands."""
    counts = {"cub": 8, "cars": 8, "sop": 10}
    for kind, row in zero_shot_data.PUBLISHED.items():
        monkeypatch.setitem(zero_shot_data.PUBLISHED, kind, (*row[:3], counts[kind]))


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("write", "name", "classes", "first", "labels"),
    [
        (write_cub, "cub200", ("001.Bird_1", "002.Bird_2", "101.Bird_101", "102.Bird_102"),
         "CUB_200_2011/images/001.Bird_1/Bird_1_0.jpg", [0, 1, 0, 1, 2, 3, 2, 3]),
        (write_cars, "cars196", ("Make 1", "Make 2", "Make 99", "Make 100"),
         "car_data/car_data/train/Make 1/1.jpg", [0, 1, 0, 1, 2, 3, 2, 3]),
        (write_sop, "sop", ("1", "2", "3", "4", "5"),
         "Stanford_Online_Products/chair_final/1_0.JPG", [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("few")
def test_published_sets(tmp_path, write, name, classes, first, labels, inside):
    root = write(tmp_path)
    root = root if inside else tmp_path
    data = load(kind_of(root), root)
    assert (data.name, data.classes, data.names[0]) == (name, classes, first)
    np.testing.assert_array_equal(data.labels, labels)
    assert data.train.tolist() == [0, 1, 2, 3]  # PML's train split
    assert data.test.tolist() == list(range(4, len(data)))
    assert data.images[0].size == (36, 36)
    if name == "sop":
        given = parse(arguments(tmp_path, tmp_path, "--data-root", root)).settled("cpu")
        assert retrieval.Retrieval(data, given).ks == (1, 10, 100, 1000)


def test_omniglot(tmp_path):
    drawings = write_omniglot(tmp_path / "omniglot.npz")
    assert kind_of(tmp_path) == kind_of(tmp_path / "omniglot.npz") == "omniglot"
    data = load("omniglot", tmp_path)
    assert data.classes == ("Latin/a", "Latin/b", "Greek/a", "Greek/b")
    assert data.train.tolist() == list(range(8))
    assert data.names[9] == "Greek/a/0009.png"
    np.testing.assert_array_equal(np.asarray(data.images[9])[:, :, 0], 255 * (1 - drawings[9]))
    assert load("omniglot", tmp_path / "omniglot.npz").images.data_id == data.images.data_id


def test_a_folder_is_split_by_classes(data):
    found = load(kind_of(data / "shapes"), data / "shapes")
    assert sorted(set(found.labels[found.train])) == [0, 1, 2]
    assert sorted(set(found.labels[found.test])) == [3, 4, 5]


def test_the_real_omniglot(shared_data):
    data = load("omniglot", shared_data / "omniglot")
    assert len(np.unique(data.labels[data.train])) == 964
    assert len(np.unique(data.labels[data.test])) == 659
    assert (len(data.train), len(data.test)) == (19280, 13180)
    assert data.images[0].size == (105, 105)


def harmed(name, content):
    return lambda root: (root / name).write_bytes(content)


def drawings(root):
    write_omniglot(root / "omniglot.npz", labels=np.full(16, 4))
    return root


EBAY = b"image_id class_id super_class_id path\n"


@pytest.mark.parametrize(
    ("kind", "write", "harm", "text"),
    [
        ("cub", write_cub, lambda r: (r / "images.txt").unlink(), "does not hold cub200 .*images.txt"),
        ("cub", write_cub, harmed("image_class_labels.txt", b"1 1\n"), "list 1 of 8 images: unpack"),
        ("cub", write_cub, harmed("image_class_labels.txt", b"1 two\n"), "does not hold cub200"),
        (
            "cub",
            write_cub,
            lambda r: shutil.rmtree(r / "images" / "002.Bird_2"),
            "2 of 8 images of cub200 are missing, the first is .*Bird_2_0.jpg: unpack .* --skip-unreadable",
        ),
        ("cars", write_cars, harmed("anno_test.csv", b"1.jpg,1,1,9,9,999\n"), "does not hold cars196"),
        ("cars", write_cub, None, "does not hold cars196 .*anno_train.csv, or .*--dataset folder"),
        ("sop", write_sop, harmed("Ebay_test.txt", EBAY + b"1 x 1 y\n"), "does not hold sop"),
        ("sop", write_sop, harmed("Ebay_test.txt", EBAY), "list 4 of 10 images"),
        ("omniglot", drawings, None, "labels of .* must be in 0..3, up to 4 there"),
        ("omniglot", write_cub, None, "there is no .*omniglot.npz"),
    ],
)
@pytest.mark.usefixtures("few")
def test_damaged_layouts(tmp_path, kind, write, harm, text):
    root = write(tmp_path)
    if harm is not None:
        harm(root)
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        load(kind, tmp_path)


@pytest.mark.usefixtures("few")
def test_missing_images_are_left_out_if_asked(tmp_path):
    (write_cub(tmp_path) / "images" / "002.Bird_2" / "Bird_2_0.jpg").unlink()
    data = load("cub", tmp_path, skip_unreadable=True)
    assert len(data) == len(data.labels) == len(data.names) == 7
    assert data.train.tolist() == [0, 1, 2]
    assert data.labels.tolist() == [0, 0, 1, 2, 3, 2, 3]
    assert data.excluded == {MISSING: ("CUB_200_2011/images/002.Bird_2/Bird_2_0.jpg",)}


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
        learned = method in LINE.learned
        rounds = {f"recall_1_round_{n}" for n in range(3)} if learned else set()
        assert set(row["metrics"]) == {*MEASURES} | rounds
        assert all(0 <= value <= 1 for value in row["metrics"].values())
        assert row["dataset"] == "shapes"
        assert row["settings"]["num_test_classes"] == 3
        assert ("rotation" in row["settings"]) == learned
    assert rows["pixels", 0]["settings"]["side"] == 32
    settings = rows["udml-ss", 0]["settings"]
    assert (settings["num_clusters"], settings["trunk"], settings["layer"]) == (6, TRUNK, "embedding")


def test_tables_and_pictures(whole):
    (header, *_), notes = table_of(whole)
    measures = ["R@1", "R@2", "R@4", "R@8", "NMI", "MAP@R", "R-precision"]
    assert header == ["method", *measures, "seeds", "begin", "round 1", "round 2"]
    assert f"3 classes to test on, 18 images; {TRUNK}, 64 px, " in notes
    for name in ("loss", "neighbors"):
        assert_picture(whole / f"{name}.png")


def test_measures_are_those_of_the_test_classes(data, whole, monkeypatch, tmp_path):
    seen = keep_measured(monkeypatch, retrieval.Retrieval)
    metrics = rows_after(data, tmp_path, "--method", "hog", "pixels", "--no-nmi")["hog", 0]["metrics"]
    (features, labels), (pixels, _) = seen
    np.testing.assert_array_equal(labels, np.repeat([3, 4, 5], 6))
    assert metrics["recall_1"] == retrieval_scores(features, labels).recall[1]
    expected = rows_of(whole)["hog", 0]["metrics"]
    assert metrics == {name: value for name, value in expected.items() if name != "nmi"}
    assert "NMI" not in (tmp_path / "table.md").read_text()

    images = load("folder", data / "shapes")  # the mean is that of the classes to learn from
    rows = [np.asarray(images.images[i].resize((32, 32), 2), np.float32).ravel() for i in range(36)]
    rows = np.stack(rows[18:]) - np.mean(rows[:18], axis=0)
    cosines = rows @ rows.T / np.outer(*[np.linalg.norm(rows, axis=1)] * 2)
    np.testing.assert_allclose(pixels @ pixels.T, cosines, atol=1e-4)


@pytest.mark.usefixtures("few")
def test_published_figures_stand_beside_ours_where_they_are_known(tmp_path):
    write_cub(tmp_path / "birds")
    chosen = ["--data-root", tmp_path / "birds", "--method", "random", "tac-ccl", "--num-clusters", 4]
    rows = rows_after(tmp_path, tmp_path / "out", *chosen)
    text = (tmp_path / "out" / "table.md").read_text()
    assert "published R@1" in text
    assert "another set-up than ours" in text
    assert "tac-ccl is a reconstruction" in text
    assert rows["random", 0]["dataset"] == "cub200"
    assert all(set(known) <= set(LINE.learned) for known in PUBLISHED.values())


@pytest.fixture
def resnet(tmp_path):
    """Options of a network of torchvision that begins from weights of a file."""
    torch.manual_seed(0)
    torch.save(torchvision_models.resnet18(weights=None).state_dict(), tmp_path / "w.pth")
    return ["--trunk", "resnet18", "--init", tmp_path / "w.pth"]


def test_training_behind_cached_maps_from_weights_of_a_file(data, tmp_path, resnet):
    cached = ["--first-similarities", "network", "--cached-maps", "features.layer3", "--set", "whitening=0.5"]
    methods = ["--method", "start", "random", "init", "posets", "ntxent"]
    rows = rows_after(data, tmp_path / "out", *resnet, *cached, *methods)
    begun = rows["init", 0]
    assert begun["settings"]["file"] == rows["posets", 0]["settings"]["init"] == "w.pth"
    assert rows["posets", 0]["settings"]["trunk"] == "resnet18"
    assert begun["metrics"] != rows["random", 0]["metrics"]
    assert rows["posets", 0]["metrics"]["recall_1_round_0"] == begun["metrics"]["recall_1"]
    assert len(list((data / "cache").glob("maps-*.npy"))) == 2  # views to learn from, and tested images

    before = torch.load(tmp_path / "w.pth", weights_only=True)
    checkpoint = tmp_path / "out" / "posets-seed0" / "checkpoint.pt"
    after = torch.load(checkpoint, weights_only=False)["parts"]["models"]["trunk"]
    for name, value in before.items():
        if name[:2] != "fc" and "num_" not in name:
            assert torch.equal(after[f"1.features.{name}"], value) == (not name.startswith("layer4")), name
    kept = rows_after(data, tmp_path / "again", "--method", "checkpoint", "--checkpoint", checkpoint)
    assert kept["checkpoint", 0]["settings"]["trunk"] == "resnet18"
    assert kept["checkpoint", 0]["metrics"]["recall_1"] == rows["posets", 0]["metrics"]["recall_1"]


def network_of(given):
    """The task of a run, its random network up to the embedding or the trunk, and its tested images."""
    chosen = parse(given).settled("cpu")
    task = retrieval.prepare(chosen)
    models = networks.build(chosen.recipe.architecture, 0, dropout=0.0)
    network = torch.nn.Sequential(BatchAugmentation(), networks.up_to(models, chosen.layer)).eval()
    size = chosen.recipe.image_size
    return task, network, task.tested.images_of(size), size


def test_a_network_is_scored_together_with_the_first_similarities(data, tmp_path, monkeypatch):
    seen = keep_measured(monkeypatch, retrieval.Retrieval)
    given = arguments(data, tmp_path, "--method", "random", "--with-start")
    main(given)
    row = rows_of(tmp_path)["random", 0]
    assert row["settings"]["with_start"] is True
    assert "and the first similarities scored" in table_of(tmp_path)[1]
    task, network, images, _ = network_of(given)
    both = np.hstack([extract(network, images, progress=False), task.tested.hog("start")[0]])
    np.testing.assert_allclose(seen[0][0], both, atol=1e-5)


def test_an_instance_lda_of_a_network_s_features_is_scored(data, tmp_path, monkeypatch):
    seen = keep_measured(monkeypatch, retrieval.Retrieval)
    given = arguments(data, tmp_path, "--method", "random", "--layer", "pooled", "--instance-lda")
    main(given)
    row = rows_of(tmp_path)["random", 0]
    assert (row["settings"]["layer"], row["settings"]["instance_lda"]) == ("pooled", VIEWS)
    assert "InstanceLDA of pooled scored" in table_of(tmp_path)[1]
    task, network, images, size = network_of(given)
    views = task.unlabeled.views(size)
    assert len(views) == 18 * VIEWS["num_views"]  # of the images to learn from alone
    lda = InstanceLDA().fit(extract(network, views, progress=False), views.instances)
    expected = lda.transform(extract(network, images, progress=False))
    found = seen[0][0] / np.linalg.norm(seen[0][0], axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    with pytest.raises(ValueError, match=r"--instance-lda \{.*\}, here None"):
        main(arguments(data, tmp_path, "--method", "kmeans", "--layer", "pooled", "--resume"))


def test_drawn_figures(tmp_path, monkeypatch):
    small = {**FIGURES, "num_sources": 2, "num_frames": 4, "num_anchors": 2}
    monkeypatch.setitem(options.FIGURE_SIZES, "tiny", small)
    row = rows_after(tmp_path, tmp_path / "out", "--figures", "tiny", "--method", "pixels")["pixels", 0]
    assert row["dataset"] == "figures-tiny"
    assert row["settings"]["num_train"] == row["settings"]["num_test"] == 8
    assert row["settings"]["num_test_classes"] == 2


# --- What is wrong


def split(root, num_learned):
    write_folder(root / "train", num_learned)
    write_folder(root / "test", 2, first=1)


@pytest.mark.parametrize(
    ("write", "more", "text"),
    [
        (lambda r: write_folder(r, 2), [], "has 1 class to test on, of 2: retrieval needs two"),
        (lambda r: write_folder(r, 4, 1), ["hog"], "no class to test on in .* has two images"),
        (lambda r: split(r, 2), [], "1 classes of .* are on both sides, such as class01"),
        (lambda r: split(r, 1), ["supervised"], "--method supervised needs two classes to learn from"),
        (write_folder, ["kmeans", "--num-clusters", 40], "--num-clusters must leave at least two of 36 im"),
        (write_folder, ["stml", "--samples-per-cluster", 4], "--batch-size must be at least 16 for stml"),
        (write_folder, ["kmeans", "--batch-size", 60], "a batch has 60 images, but .* holds only 18"),
    ],
)
def test_data_that_do_not_fit(tmp_path, write, more, text):
    write(tmp_path / "shapes")
    with pytest.raises(ValueError, match=text):
        main(arguments(tmp_path, tmp_path / "out", "--method", *(more or ["random"])))
    assert not (tmp_path / "out").exists()


test_wrong_options = refuses_each(
    parse,
    (["--dataset", "cub"], "--dataset cub needs --data-root"),
    (["--method", "init"], r"--method init needs --init FILE \(torchvision's weights of alexnet\)"),
    (["--first-similarities", "network"], "needs a pretrained trunk"),
    (["--cached-maps", "features.3", "--method", "udml-ss"], "does not go with --method udml-ss"),
    (["--cached-maps", "features.3", "--no-mirror-images", "--method", "hog"], "cannot mirror stored maps"),
    error=ValueError,
)


def test_the_defaults():
    found = parse([])
    assert (found.layer, found.first, found.window) == ("embedding", "hog", None)
    assert parse(["--preset", "paper"]).first == "hog-lda"
    assert found.recipe.fc_dim == 512
    assert set(found.methods) <= set(LINE.methods)
    assert zero_shot_data.NAMES.keys() | {"folder"} == set(zero_shot_data.KINDS)
