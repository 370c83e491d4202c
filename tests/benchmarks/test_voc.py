"""voc.py as a command on a few objects: its numbers by hand, its files, its resuming, and folders."""

import json
import shutil

import numpy as np
import pytest
import torchvision.datasets.voc
from benchmark_runs import assert_picture, few_patches, quick, rows_of, table_of
from class_trees import write_folder
from PIL import Image
from voc_trees import scenes, write_voc

from benchmarks import voc
from benchmarks.core import options, session
from benchmarks.data.labeled_images import load_folder
from benchmarks.measures.voting import knn_vote
from benchmarks.voc import main

PLAIN = ["majority", "hog", "hog-lda", "hog-views", "start"]
CLASSES = ("bus", "cat", "dog")
TRAINED = ["posets", "cliques", "triplet"]  # the others: test_olympic.py


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """VOC and a folder of images beside the folder for what is made of them once.

    24 objects to learn from and 12 to test on: more cats than dogs, and a few buses. Two are difficult.
    """
    root = tmp_path_factory.mktemp("data")
    order = ("cat", "dog", "cat", "bus", "cat", "dog")
    trainval, test = scenes(12, 1, order), scenes(6, 50, order, seed=1)
    trainval[1].append(("cat", (3, 3, 30, 20), True))
    test[50].append(("dog", (3, 3, 30, 20), True))
    sets = {"trainval": trainval, "test": test, "train": scenes(4, 80), "val": scenes(3, 90)}
    write_voc(root / "voc", sets)
    write_folder(root / "stripes", 3, 8)
    with few_patches():
        yield root


def arguments(data, output, *more):
    given = ["--data-root", data / "voc"] if "--data-root" not in more else []
    return quick(data / "cache", output, *given, "--num-classes", 4, "--mean-size", 4, *more)


def task_of(data, output, *more):
    return voc.prepare(voc.parse(arguments(data, output, *more)).settled("cpu"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run of every method without training, and of three that train."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(arguments(data, folder, "--method", *PLAIN, "random", *TRAINED)) == 0
    return folder


# --- By hand


def shares(predicted, true):
    """What is right, of all and of each class."""
    right = [p == t for p, t in zip(predicted, true, strict=True)]
    by_class = {
        f"accuracy/{name}": np.mean([r for r, t in zip(right, true, strict=True) if t == name])
        for name in dict.fromkeys(sorted(true))
    }
    return {"accuracy": np.mean(right), "class_accuracy": np.mean(list(by_class.values())), **by_class}


def test_the_majority_is_the_most_frequent_class_to_learn_from(whole):
    found = rows_of(whole)["majority", 0]["metrics"]
    test = ["cat", "dog", "cat", "bus", "cat", "dog"] * 2
    assert found == pytest.approx(shares(["cat"] * 12, test))
    assert found["accuracy"] == 0.5
    assert found["class_accuracy"] == pytest.approx(1 / 3)


def test_the_nearest_vote_by_their_similarity(data, tmp_path):
    task = task_of(data, tmp_path, "--method", "hog", "--votes", 3)
    features, labels = task.tested.hog("hog")[0], task.data.labels
    train, test = task.data.train, task.data.test
    votes = knn_vote(features[test], features[train], labels[train], 3)
    score = task.plain("hog")
    assert score.metrics == pytest.approx(
        shares(*(np.take(CLASSES, c) for c in (votes.classes, labels[test])))
    )
    assert score.shown.indices.shape == (12, 3)


def test_objects_that_look_alike_are_told(data, tmp_path):
    task = task_of(data, tmp_path, "--data-root", data / "stripes")
    for method in ("hog", "hog-lda", "hog-views", "start"):
        assert session.run_method(method, 0, task, tmp_path).score.metrics["accuracy"] == 1, method


# --- A whole run


def test_a_row_for_every_method(data, whole):
    rows = rows_of(whole)
    assert list(rows) == [(method, 0) for method in (*PLAIN, "random", *TRAINED)]
    every = voc.parse(arguments(data, whole, "--method", "all")).methods
    assert {*every} == {*voc.LINE.methods} - {*options.FILES} >= {method for method, _ in rows}
    for (method, _), row in rows.items():
        metrics = row["metrics"]
        assert row["dataset"] == "voc2007"
        by_class = [metrics[f"accuracy/{name}"] for name in CLASSES]
        assert metrics["class_accuracy"] == pytest.approx(np.mean(by_class))
        assert metrics["accuracy"] == pytest.approx(np.average(by_class, weights=[2, 6, 4]))
        rounds = {f"accuracy_round_{n}" for n in range(3)} if method in TRAINED else set()
        names = {"accuracy", "class_accuracy", *(f"accuracy/{name}" for name in CLASSES)}
        assert {*metrics} == names | rounds


def test_settings_are_those_that_the_numbers_depend_on(whole):
    rows = rows_of(whole)
    scored = {
        "data": "voc2007", "num_train": 24, "num_test": 12, "num_votes": 5, "left_out": {"difficult": 2},
    }  # fmt: skip
    for row in rows.values():
        assert {name: row["settings"][name] for name in scored} == scored
        assert len(row["settings"]["image_names"]) == 16
    more = {
        method: set(rows[method, 0]["settings"]) - {*scored, "image_names"} for method in (*PLAIN, "random")
    }
    assert more["majority"] == set()
    assert more["hog"] == more["hog-lda"] == {"hog_size"}
    assert more["hog-views"] > more["hog"] < more["start"]
    assert {"image_size", "fc_dim", "layer", "precision", "device"} <= more["random"]
    assert "rounds" not in more["random"]
    posets = rows["posets", 0]["settings"]
    expected = {
        "hog_size": 32, "first_similarities": "hog-window", "components": 32, "rounds": 2,
        "fc_dim": 8, "preset": "tiny",
        "layer": "embedding", "regroup": "mixed", "num_classes": 4, "mean_size": 4.0,
    }  # fmt: skip
    assert {name: posets[name] for name in expected} == expected
    assert "/" not in json.dumps([row["settings"] for row in rows.values()])  # no path of a machine


def test_the_paper_s_classes_are_the_default(data, tmp_path):
    given = voc.parse(["--data-root", str(data / "voc"), "--output", str(tmp_path)])
    assert (given.recipe.num_classes, given.recipe.mean_size, given.data.votes) == (1000, 8.0, 5)
    assert (given.layer, given.data.train_set, given.data.test_set) == ("fc6", "trainval", "test")
    assert not given.data.download


def test_table_and_pictures(whole):
    (header, *lines), notes = table_of(whole)
    assert header[:4] == ["method", "accuracy", "mean of classes", "seeds"]
    assert header[4:] == ["begin", "round 1", "round 2", "paper (VOC 2007)"]
    assert [line[0] for line in lines] == [*PLAIN, "random", *TRAINED]
    paper = {"hog-lda": "0.118", "triplet": "0.450 (Wang and Gupta)", "cliques": "0.481", "posets": "0.510"}
    assert {line[0]: line[-1] for line in lines if line[-1]} == paper
    metrics = rows_of(whole)["posets", 0]["metrics"]
    assert ["posets", *(f"{metrics[name]:.3f}" for name in ("accuracy", "class_accuracy"))] in [
        line[:3] for line in lines
    ]
    here, paper = notes.splitlines()
    assert here.startswith("Here: voc2007, 5 nearest of 24 vote on 12; 64 px, ")
    assert here.endswith(" weights at the beginning, embedding scored. The first similarities: hog-window.")
    for what in ("227 px", "5 votes", "fc6", "Wang and Gupta", "1000 classes of 8"):
        assert what in paper
    for name in ("loss", "neighbors"):
        assert_picture(whole / f"{name}.png")


def test_only_the_train_half_is_learned_from_wherever_it_lies(data, tmp_path):
    task = task_of(data, tmp_path)
    assert len(task.images) == len(task.start.features) == 24
    for i, index in enumerate(task.data.train):
        crop = task.data.images[int(index)].resize((64, 64), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(task.images[i].permute(1, 2, 0).numpy(), np.asarray(crop))
    assert task.tested.statistics is task.unlabeled.statistics
    shutil.copytree(data / "voc", tmp_path / "elsewhere")
    moved = task_of(data, tmp_path, "--data-root", tmp_path / "elsewhere")
    assert (moved.origin(), moved.scored_settings()) == (task.origin(), task.scored_settings())


# --- Going on


def test_other_votes_may_be_asked_of_a_trained_network(data, whole, tmp_path):
    shutil.copytree(whole / "cliques-seed0", tmp_path / "cliques-seed0")
    main(arguments(data, tmp_path, "--resume", "--method", "cliques", "--votes", 1))
    assert rows_of(tmp_path)["cliques", 0]["settings"]["num_votes"] == 1
    text = r"has rows of other settings: cliques, seed 0 \(--votes 1, here 5\)"
    with pytest.raises(ValueError, match=text):
        main(arguments(data, tmp_path, "--resume", "--method", "majority"))


# --- Image sets, and folders


def test_other_image_sets_are_other_data(data, tmp_path):
    main(arguments(data, tmp_path, "--train-set", "train", "--test-set", "val", "--method", "majority"))
    row = rows_of(tmp_path)["majority", 0]
    assert row["dataset"] == "voc2007 train, tested on val"
    assert (row["settings"]["num_train"], row["settings"]["num_test"]) == (8, 6)


def test_a_folder_of_images(data, tmp_path):
    main(arguments(data, tmp_path, "--data-root", data / "stripes", "--method", "majority"))
    row = rows_of(tmp_path)["majority", 0]
    assert row["dataset"] == "stripes"
    assert row["metrics"]["accuracy"] == pytest.approx(1 / 3)
    settings = row["settings"]
    assert (settings["num_train"], settings["num_test"], settings["left_out"]) == (12, 12, {})
    assert "Here: stripes, 5 nearest of 12 vote on 12" in table_of(tmp_path)[1]


@pytest.mark.parametrize(
    ("write", "more", "kind"),
    [
        ("cats/1.png", [], "folder"),
        ("labels.csv", [], "folder"),
        ("VOCdevkit/VOC2007/x", [], "voc"),
        ("cats/1.png", ["--download"], "voc"),
        ("cats/1.png", ["--train-set", "train"], "voc"),
        ("x", [], "voc"),
    ],
)
def test_what_a_folder_holds_is_seen(tmp_path, write, more, kind):
    path = tmp_path / write
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert voc.parse(["--data-root", str(tmp_path), *more]).data.dataset == kind


@pytest.mark.parametrize(
    ("root", "path", "which"),
    [
        ("voc", "VOCdevkit/VOC2007/JPEGImages/000003.jpg", "000003"),
        ("stripes", "class01/001.png", "class01/001"),
    ],
)
def test_unreadable_images(data, tmp_path, root, path, which, capsys):
    shutil.copytree(data / root, tmp_path / root)
    (tmp_path / root / path).write_bytes(b"no image")
    given = arguments(tmp_path, tmp_path / "out", "--data-root", tmp_path / root, "--method")
    with pytest.raises(OSError, match=f"cannot read the image .*{which}"):
        main([*given, "hog"])
    main([*given, "majority", "--skip-unreadable"])
    assert f"left out, image missing or damaged: 1 ({which}" in capsys.readouterr().out
    left_out = rows_of(tmp_path / "out")["majority", 0]["settings"]["left_out"]
    assert left_out["image missing or damaged"] == 1


def test_voc_is_downloaded_if_asked_for(data, tmp_path, monkeypatch):
    def fetch(url, root, filename, md5):
        shutil.copytree(data / "voc", root, dirs_exist_ok=True)

    monkeypatch.setattr(torchvision.datasets.voc, "download_and_extract_archive", fetch)
    chosen = ["--data-root", tmp_path / "new", "--method", "majority"]
    main(arguments(data, tmp_path / "out", *chosen, "--download"))
    assert rows_of(tmp_path / "out")["majority", 0]["settings"]["num_train"] == 24


# --- What does not fit


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--votes", 0], "--votes must be 1 or more, got 0"),
        (["--votes", 25], "--votes must be at most 24, the images to learn from"),
        (
            ["--dataset", "folder", "--download"],
            "--download, --train-set and --test-set are for --dataset voc",
        ),
        (["--dataset", "folder", "--test-set", "val"], "are for --dataset voc"),
        (
            ["--method", "cliques", "--batch-size", 60],
            r"60 images, but the half of voc2007 to learn from holds only 24",
        ),
    ],
)
def test_options_that_do_not_fit(data, tmp_path, more, text):
    with pytest.raises(ValueError, match=text):
        main(arguments(data, tmp_path / "out", "--method", "majority", *more))
    assert list(tmp_path.iterdir()) == []


def test_without_data():
    with pytest.raises(SystemExit):
        voc.parse([])


# --- Real data


def test_the_majority_of_the_cars(shared_data, tmp_path):
    root = shared_data / "cars196_train"
    given = ["--dataset", "folder", "--data-root", root, "--output", tmp_path, "--cache", tmp_path]
    task = voc.prepare(voc.parse([str(part) for part in given]).settled("cpu"))
    data = load_folder(root, "images")
    most = np.bincount(data.labels[data.train]).argmax()
    expected = np.mean(data.labels[data.test] == most)
    assert task.plain("majority").metrics["accuracy"] == pytest.approx(expected)
    assert (len(data.train), len(data.test)) == (4123, 4021)
