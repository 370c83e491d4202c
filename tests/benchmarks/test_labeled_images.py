"""Images with classes: folders in each of their forms, and what tells one set from another."""

import shutil

import numpy as np
import pytest
from PIL import Image

from benchmarks.data.images import Chosen
from benchmarks.data.labeled_images import LabeledImages, load_folder
from pml_posets.data.datasets import ImageList, UnreadableImageError


def picture(value=0, size=(8, 6)):
    return Image.new("RGB", size, (value, 100, 200))


def write(root, names, value=0):
    """Pictures whose red counts up, in the order of the names."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(value + 5 * number).save(root / name)
    return root


def reds(data, indices):
    return [data.images[int(i)].getpixel((0, 0))[0] for i in indices]


# --- Subfolders


def test_subfolders_are_classes_and_every_other_image_is_learned_from(tmp_path):
    names = ["b/1.png", "b/2.png", "b/3.png", "a/deep/1.png", "a/x.png"]
    data = load_folder(write(tmp_path / "pets", names), "images")
    assert data.name == "pets"
    assert data.classes == ("a", "b")
    assert data.names == ("a/deep/1.png", "a/x.png", "b/1.png", "b/2.png", "b/3.png")
    assert data.labels.tolist() == [0, 0, 1, 1, 1]
    assert data.labels.dtype == np.int64
    assert data.train.tolist() == [0, 2, 4]
    assert data.test.tolist() == [1, 3]
    assert reds(data, data.train) == [15, 0, 10]  # the images go with their names
    assert data.excluded == {}
    assert data.summary() == "pets: 5 images of 2 classes, 3 to learn from, 2 to test on"


def test_files_beside_the_subfolders_are_no_class(tmp_path):
    root = write(tmp_path, ["a/1.png", "a/2.png", "b/1.png", "b/2.png", "cover.png"])
    (root / "b" / "notes.txt").write_text("no image")
    assert load_folder(root, "images").classes == ("a", "b")
    assert len(load_folder(root, "images")) == 4


def test_numeric_classes_are_in_numeric_order(tmp_path):
    root = write(tmp_path, [f"{c}/{i}.png" for c in (10, 2, 1, 33) for i in (1, 2)])
    data = load_folder(root, "images")
    assert data.classes == ("1", "2", "10", "33")
    assert [data.classes[c] for c in data.labels] == [name.split("/")[0] for name in data.names]
    assert data.names[:3] == ("1/1.png", "1/2.png", "10/1.png")
    assert data.labels.tolist() == [0, 0, 2, 2, 1, 1, 3, 3]


def test_one_name_that_is_no_number_makes_words_of_all(tmp_path):
    root = write(tmp_path, [f"{c}/{i}.png" for c in ("10", "2", "b", "²") for i in (1, 2)])
    assert load_folder(root, "images").classes == ("10", "2", "b", "²")


@pytest.mark.parametrize("names", [("10", "2", "1"), ("c", "b", "a")])
def test_the_first_half_of_the_classes_is_learned_from(tmp_path, names):
    data = load_folder(write(tmp_path, [f"{c}/{i}.png" for c in names for i in (1, 2)]), "classes")
    assert set(data.labels[data.train]) == {0, 1}  # two of three
    assert set(data.labels[data.test]) == {2}
    assert data.classes == (("1", "2", "10") if "10" in names else ("a", "b", "c"))


def test_a_class_of_one_image_is_named(tmp_path):
    data = load_folder(write(tmp_path, ["a/1.png", "a/2.png", "b/1.png"]), "images")
    assert data.excluded == {"class of a single image, not tested": ("b",)}
    assert data.test.tolist() == [1]
    assert "  left out, class of a single image, not tested: 1 (b)" in data.summary()
    assert load_folder(tmp_path, "classes").excluded == {}


def test_one_class_alone(tmp_path):
    write(tmp_path, ["cats/1.png", "cats/2.png"])
    with pytest.raises(ValueError, match=r"has the class cats alone: at least two are needed"):
        load_folder(tmp_path, "images")


def test_no_folder_no_subfolders_no_images(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere is no folder: give a folder of images"):
        load_folder(tmp_path / "nowhere", "images")
    with pytest.raises(ValueError, match="holds no image"):
        load_folder(tmp_path, "images")
    write(tmp_path, ["1.png", "2.png"])
    with pytest.raises(ValueError, match=r"no subfolders of images, one for each class, and no labels\.csv"):
        load_folder(tmp_path, "images")


# --- A split of its own


def halves(tmp_path, train=("a", "b"), test=("a", "b")):
    write(tmp_path, [f"train/{c}/{i}.png" for c in train for i in (1, 2)])
    return write(tmp_path, [f"test/{c}/{i}.png" for c in test for i in (1, 2, 3)], value=100)


def test_folders_of_train_and_test(tmp_path):
    data = load_folder(halves(tmp_path), "images")
    assert (len(data.train), len(data.test)) == (4, 6)
    assert [data.names[i].split("/")[0] for i in (*data.train, *data.test)] == ["train"] * 4 + ["test"] * 6
    assert data.classes == ("a", "b")
    assert data.labels[data.test].tolist() == [0, 0, 0, 1, 1, 1]
    assert reds(data, data.test) == [100, 105, 110, 115, 120, 125]


@pytest.mark.parametrize("test", [("c", "d", "e"), ("0", "b")])
def test_a_split_of_its_own_counts_for_classes_too(tmp_path, test):
    data = load_folder(halves(tmp_path, test=test), "classes")
    assert [data.names[i].split("/")[0] for i in data.train] == ["train"] * 4
    assert (len(data.test), len(data)) == (3 * len(test), 4 + 3 * len(test))


def test_a_class_that_only_the_test_folder_has(tmp_path):
    halves(tmp_path, test=("a", "c"))
    with pytest.raises(ValueError, match=r"nothing to learn from in .* is of the class c"):
        load_folder(tmp_path, "images")


# --- labels.csv


def listed(root, text, names=("1.png", "2.png", "3.png", "4.png")):
    write(root, names)
    (root / "labels.csv").write_text(text, encoding="utf-8")
    return root


FOUR = "1.png,cat\n2.png,dog\n3.png,cat\n4.png,dog\n"


def test_a_list_of_files_and_classes(tmp_path):
    data = load_folder(listed(tmp_path, f"file,class\n{FOUR}"), "images")
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [0, 1, 0, 1]
    assert data.train.tolist() == [0, 1]
    assert reds(data, range(4)) == [0, 5, 10, 15]


def test_columns_in_any_order_and_a_byte_order_mark(tmp_path):
    lines = [",".join([c, "x", f]) for f, c in (line.split(",") for line in FOUR.split())]
    data = load_folder(listed(tmp_path, "\ufeffclass,more,file\n" + "\n".join(lines)), "images")
    assert data.labels.tolist() == [0, 1, 0, 1]


def test_files_are_in_the_folder_or_in_images(tmp_path):
    text = "file,class\n1.png,cat\nimages/2.png,dog\n3.png,cat\nmore/4.png,dog\n"
    names = ["images/1.png", "images/2.png", "3.png", "more/4.png"]
    data = load_folder(listed(tmp_path, text, names), "images")
    assert data.names == ("images/1.png", "images/2.png", "3.png", "more/4.png")
    assert reds(data, range(4)) == [0, 5, 10, 15]


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (
            "file,label\n1.png,cat\n",
            ValueError,
            r"must have the columns file and class, got \['file', 'label'\]",
        ),
        ("", ValueError, r"must have the columns file and class, got None"),
        (
            f"file,class\n{FOUR}\n5.png,cat\n",
            FileNotFoundError,
            r"line 7 of .*labels\.csv names 5\.png, which is",
        ),
        (f"file,class\n{FOUR},cat\n", ValueError, r"line 6 of .*labels\.csv names no file"),
        (f"file,class\n{FOUR}1.png\n", ValueError, r"line 6 of .*labels\.csv names no class"),
        (f"file,class\n{FOUR}3.png,dog\n", ValueError, r"labels\.csv names 3\.png more than once"),
        ("file,class\n1.png,cat\n2.png,cat\n", ValueError, "has the class cat alone"),
    ],
)
def test_lists_that_are_wrong(tmp_path, text, error, said):
    with pytest.raises(error, match=said):
        load_folder(listed(tmp_path, text), "images")


# --- Unreadable images


def test_unreadable_images(tmp_path):
    root = write(tmp_path, [f"{c}/{i}.png" for c in "ab" for i in (1, 2, 3)])
    (root / "a" / "2.png").write_bytes(b"no image")
    (root / "b" / "1.png").write_bytes((root / "b" / "1.png").read_bytes()[:40])
    data = load_folder(root, "images")
    with pytest.raises(UnreadableImageError, match=r"cannot read the image .*a/2\.png"):
        data.images[1]
    data = load_folder(root, "images", skip_unreadable=True)
    assert data.excluded == {"image missing or damaged": ("a/2.png", "b/1.png")}
    assert data.names == ("a/1.png", "a/3.png", "b/2.png", "b/3.png")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert reds(data, range(4)) == [0, 10, 20, 25]
    assert data.settings()["left_out"] == {"image missing or damaged": 2}
    assert "left out, image missing or damaged: 2 (a/2.png, b/1.png)" in data.summary()


def test_unreadable_images_of_a_split_of_its_own(tmp_path):
    root = halves(tmp_path)
    (root / "train" / "a" / "1.png").write_bytes(b"no image")
    data = load_folder(root, "images", skip_unreadable=True)
    assert (len(data.train), len(data.test)) == (3, 6)
    assert reds(data, data.test) == [100, 105, 110, 115, 120, 125]


# --- What tells one set from another


def test_settings_are_of_the_data_and_not_of_their_place(tmp_path):
    root = write(tmp_path / "one" / "pets", [f"{c}/{i}.png" for c in "ab" for i in (1, 2)])
    first = load_folder(root, "images")
    shutil.copytree(root, tmp_path / "two" / "pets")
    assert load_folder(tmp_path / "two" / "pets", "images").settings() == first.settings()
    assert set(first.settings()) == {"data", "image_names", "num_train", "num_test", "left_out"}
    assert load_folder(root, "classes").settings()["image_names"] != first.settings()["image_names"]
    (root / "a" / "2.png").rename(root / "a" / "3.png")
    assert load_folder(root, "images").settings()["image_names"] != first.settings()["image_names"]


def test_the_identity_for_caches_changes_with_the_files(tmp_path):
    root = write(tmp_path, [f"{c}/{i}.png" for c in "ab" for i in (1, 2)])
    before = load_folder(root, "images").images
    seen = {
        before.data_id,
        Chosen(before, np.array([0, 1])).data_id,
        Chosen(before, np.array([1, 2])).data_id,
    }
    picture(99, size=(9, 9)).save(root / "a" / "2.png")
    seen.add(load_folder(root, "images").images.data_id)
    assert len(seen) == 4
    assert load_folder(root, "images").images.data_id in seen


def test_chosen_images(tmp_path):
    data = load_folder(write(tmp_path, [f"{c}/{i}.png" for c in "ab" for i in (1, 2)]), "images")
    chosen = Chosen(data.images, np.array([3, 0]))
    assert len(chosen) == 2
    assert [chosen[i].getpixel((0, 0))[0] for i in range(2)] == [15, 0]


def test_what_does_not_fit_is_refused(tmp_path):
    images = ImageList(sorted(write(tmp_path, ["1.png", "2.png"]).iterdir()))
    sides = {"train": np.array([0]), "test": np.array([1])}
    given = {"name": "few", "images": images, "labels": np.array([0, 1]), "classes": ("a", "b"), **sides}
    assert len(LabeledImages(**given)) == 2
    with pytest.raises(ValueError, match=r"few has 2 images, labels of \(3,\)"):
        LabeledImages(**{**given, "labels": np.zeros(3, np.int64)})
    with pytest.raises(ValueError, match="few has 2 images, but 1 names"):
        LabeledImages(**given, names=("1.png",))
    for part in sides:
        with pytest.raises(ValueError, match=f"there are no images to {part} on in few"):
            LabeledImages(**{**given, part: np.zeros(0, np.int64)})


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
