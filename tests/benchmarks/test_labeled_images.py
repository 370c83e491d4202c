"""Images with classes: folders in each of their forms, and what tells one set from another."""

import shutil

import numpy as np
import pytest
from PIL import Image

from benchmarks.data.images import Chosen
from benchmarks.data.labeled_images import LabeledImages, load_folder
from pml_posets.data.datasets import ImageList, UnreadableImageError


def write(root, names, value=0):
    """Pictures whose red counts up, in the order of the names."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (value + 5 * number, 100, 200)).save(root / name)
    return root


def write_classes(root, classes, count=2, value=0):
    return write(root, [f"{c}/{i}.png" for c in classes for i in range(1, count + 1)], value)


def reds(data, indices=None):
    indices = range(len(data)) if indices is None else indices
    return [data.images[int(i)].getpixel((0, 0))[0] for i in indices]


# --- Subfolders


def test_subfolders_are_classes_and_every_other_image_is_learned_from(tmp_path):
    names = ["b/1.png", "b/2.png", "b/3.png", "a/deep/1.png", "a/x.png", "cover.png"]
    root = write(tmp_path / "pets", names)
    (root / "b" / "notes.txt").write_text("no image")
    data = load_folder(root, "images")
    assert data.name == "pets"
    assert data.classes == ("a", "b")
    assert data.names == ("a/deep/1.png", "a/x.png", "b/1.png", "b/2.png", "b/3.png")
    assert data.labels.tolist() == [0, 0, 1, 1, 1]
    assert data.labels.dtype == np.int64
    assert (data.train.tolist(), data.test.tolist()) == ([0, 2, 4], [1, 3])
    assert reds(data, data.train) == [15, 0, 10]  # the images go with their names
    assert data.excluded == {}
    assert data.summary() == "pets: 5 images of 2 classes, 3 to learn from, 2 to test on"


def test_numeric_classes_are_in_numeric_order(tmp_path):
    data = load_folder(write_classes(tmp_path, (10, 2, 1, 33)), "images")
    assert data.classes == ("1", "2", "10", "33")
    assert data.names[:3] == ("1/1.png", "1/2.png", "10/1.png")
    assert data.labels.tolist() == [0, 0, 2, 2, 1, 1, 3, 3]
    write_classes(tmp_path, ("b", "²"))  # one name that is no number makes words of all
    assert load_folder(tmp_path, "images").classes == ("1", "10", "2", "33", "b", "²")


@pytest.mark.parametrize("names", [("1", "2", "10"), ("a", "b", "c")])
def test_the_first_half_of_the_classes_is_learned_from(tmp_path, names):
    data = load_folder(write_classes(tmp_path, names), "classes")
    assert data.classes == names
    assert set(data.labels[data.train]) == {0, 1}  # two of three
    assert set(data.labels[data.test]) == {2}


def test_a_class_of_one_image_is_named(tmp_path):
    data = load_folder(write(tmp_path, ["a/1.png", "a/2.png", "b/1.png"]), "images")
    assert data.excluded == {"class of a single image, not tested": ("b",)}
    assert data.test.tolist() == [1]
    assert "  left out, class of a single image, not tested: 1 (b)" in data.summary()
    assert load_folder(tmp_path, "classes").excluded == {}


@pytest.mark.parametrize(
    ("names", "error", "text"),
    [
        (["cats/1.png", "cats/2.png"], ValueError, r"has the class cats alone: at least two are needed"),
        (["1.png"], ValueError, r"no subfolders of images, one for each class, and no labels\.csv"),
        ([], NotADirectoryError, "nowhere is no folder: give a folder of images"),
        (["train/a/1.png", "test/a/1.png", "test/c/1.png"], ValueError, "learn from in .* is of the class c"),
    ],
)
def test_folders_that_are_wrong(tmp_path, names, error, text):
    with pytest.raises(error, match=text):
        load_folder(write(tmp_path / "nowhere", names), "images")


# --- A split of its own


def halves(root, test=("a", "b")):
    write_classes(root / "train", ("a", "b"))
    write_classes(root / "test", test, 3, value=100)
    return root


@pytest.mark.parametrize(
    ("split", "test"), [("images", ("a", "b")), ("classes", ("c", "d")), ("classes", ("0", "b"))]
)
def test_a_split_of_its_own(tmp_path, split, test):
    root = halves(tmp_path, test)
    data = load_folder(root, split)
    assert [data.names[i].split("/")[0] for i in (*data.train, *data.test)] == ["train"] * 4 + ["test"] * 6
    assert [data.classes[c] for c in data.labels[data.test]] == sorted(test * 3)
    assert reds(data, data.test) == [100, 105, 110, 115, 120, 125]
    (root / "train" / "a" / "1.png").write_bytes(b"no image")
    data = load_folder(root, split, skip_unreadable=True)
    assert (len(data.train), len(data.test)) == (3, 6)
    assert reds(data, data.test) == [100, 105, 110, 115, 120, 125]


# --- labels.csv


def listed(root, text, names=("1.png", "2.png", "3.png", "4.png")):
    write(root, names)
    (root / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


FOUR = "file,class\n1.png,cat\n2.png,dog\n3.png,cat\n4.png,dog\n"


def test_a_list_of_files_and_classes(tmp_path):
    data = load_folder(listed(tmp_path, FOUR), "images")
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [0, 1, 0, 1]
    assert data.train.tolist() == [0, 1]
    assert reds(data) == [0, 5, 10, 15]
    # columns in any order, and a byte order mark
    lines = [f"{c},x,{file}" for file, c in (line.split(",") for line in FOUR.split())]
    data = load_folder(listed(tmp_path, "\ufeff" + "\n".join(lines)), "images")
    assert data.labels.tolist() == [0, 1, 0, 1]


def test_files_are_in_the_folder_or_in_images(tmp_path):
    text = "file,class\n1.png,cat\nimages/2.png,dog\n3.png,cat\nmore/4.png,dog\n"
    names = ("images/1.png", "images/2.png", "3.png", "more/4.png")
    data = load_folder(listed(tmp_path, text, names), "images")
    assert data.names == names
    assert reds(data) == [0, 5, 10, 15]


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("file,label\n1.png,a\n", ValueError, r"columns file and class, got \['file', 'label'\]"),
        ("", ValueError, r"must have the columns file and class, got None"),
        (f"{FOUR}\n5.png,cat\n", FileNotFoundError, r"line 7 of .*labels\.csv names 5\.png, which is"),
        (f"{FOUR},cat\n", ValueError, r"line 6 of .*labels\.csv names no file"),
        (f"{FOUR}1.png\n", ValueError, r"line 6 of .*labels\.csv names no class"),
        (f"{FOUR}3.png,dog\n", ValueError, r"labels\.csv names 3\.png more than once"),
        (f"{FOUR}{'x' * 300},cat\n", FileNotFoundError, r"line 6 of .*labels\.csv names xxx"),
        (f"{FOUR}a\0b,cat\n", (FileNotFoundError, ValueError), r"labels\.csv"),
        (b"file,class\n1.png,\xff\xfe\n", ValueError, r"labels\.csv is damaged or no table"),
        (f"{FOUR}1.png,{'c' * 140_000}", ValueError, r"labels\.csv is damaged or no table"),
        (b"\0" * 1000, ValueError, r"labels\.csv"),
    ],
)
def test_lists_that_are_wrong(tmp_path, text, error, said):
    with pytest.raises(error, match=said):
        load_folder(listed(tmp_path, text), "images")


# --- Unreadable images


def test_unreadable_images(tmp_path):
    root = write_classes(tmp_path, "ab", 3)
    (root / "a" / "2.png").write_bytes(b"no image")
    (root / "b" / "1.png").write_bytes((root / "b" / "1.png").read_bytes()[:40])
    with pytest.raises(UnreadableImageError, match=r"cannot read the image .*a/2\.png"):
        load_folder(root, "images").images[1]
    data = load_folder(root, "images", skip_unreadable=True)
    assert data.excluded == {"image missing or damaged": ("a/2.png", "b/1.png")}
    assert data.names == ("a/1.png", "a/3.png", "b/2.png", "b/3.png")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert reds(data) == [0, 10, 20, 25]
    assert data.settings()["left_out"] == {"image missing or damaged": 2}


# --- What tells one set from another


def test_settings_are_of_the_data_and_not_of_their_place(tmp_path):
    root = write_classes(tmp_path / "one" / "pets", "ab")
    first = load_folder(root, "images").settings()
    shutil.copytree(root, tmp_path / "two" / "pets")
    assert load_folder(tmp_path / "two" / "pets", "images").settings() == first
    assert set(first) == {"data", "image_names", "num_train", "num_test", "left_out"}
    assert load_folder(root, "classes").settings()["image_names"] != first["image_names"]
    (root / "a" / "2.png").rename(root / "a" / "3.png")
    assert load_folder(root, "images").settings()["image_names"] != first["image_names"]


def test_chosen_images_and_the_identity_of_all(tmp_path):
    data = load_folder(write_classes(tmp_path, "ab"), "images")
    images, chosen = data.images, Chosen(data.images, np.array([3, 0]))
    assert [chosen[i].getpixel((0, 0))[0] for i in range(len(chosen))] == [15, 0]
    seen = {images.data_id, chosen.data_id, Chosen(images, np.array([1, 2])).data_id}
    assert load_folder(tmp_path, "images").images.data_id in seen
    Image.new("RGB", (9, 9)).save(tmp_path / "a" / "2.png")
    assert len(seen | {images.data_id}) == 4


def test_what_does_not_fit_is_refused(tmp_path):
    images = ImageList(sorted(write(tmp_path, ["1.png", "2.png"]).iterdir()))
    given = {"name": "few", "images": images, "labels": np.array([0, 1]), "classes": ("a", "b")}
    given |= {"train": np.array([0]), "test": np.array([1])}
    assert len(LabeledImages(**given)) == 2
    for change, text in (
        ({"labels": np.zeros(3, np.int64)}, r"few has 2 images, labels of \(3,\)"),
        ({"names": ("1.png",)}, "few has 2 images, but 1 names"),
        ({"train": np.zeros(0, np.int64)}, "there are no images to train on in few"),
        ({"test": np.zeros(0, np.int64)}, "there are no images to test on in few"),
    ):
        with pytest.raises(ValueError, match=text):
            LabeledImages(**{**given, **change})


# --- Real data


def test_cars(shared_data):
    data = load_folder(shared_data / "cars196_train", "classes")
    assert len(data) == 8144
    assert len(data.classes) == 196
    assert data.classes[:2] == ("1", "2")
    assert {int(data.classes[c]) for c in data.labels[data.train]} == set(range(1, 99))
    assert {int(data.classes[c]) for c in data.labels[data.test]} == set(range(99, 197))
    data = load_folder(shared_data / "cars196_train", "images")
    counts = np.bincount(data.labels)
    np.testing.assert_array_equal(np.bincount(data.labels[data.train]), (counts + 1) // 2)
