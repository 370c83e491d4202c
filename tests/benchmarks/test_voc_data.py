"""PASCAL VOC's boxes: cut out to the pixel, and whatever is wrong with them named."""

import numpy as np
import pytest
import torchvision.datasets.voc
from PIL import Image
from voc_trees import image_of, note_of, write_voc

from benchmarks.data.voc import BoxCrops, load_voc
from pml_posets.data.datasets import UnreadableImageError


@pytest.fixture
def sets():
    """Two objects a class to learn from, one to test on."""
    return {
        "trainval": {
            1: [("dog", (2, 3, 11, 22)), ("cat", (20, 1, 40, 30))],
            2: [("cat", (1, 1, 5, 9)), ("dog", (10, 10, 30, 20), True), ("dog", (10, 10, 30, 20))],
        },
        "test": {3: [("cat", (5, 5, 20, 20)), ("bus", (1, 1, 9, 9), True)], 4: [("dog", (7, 2, 8, 2))]},
    }


def test_boxes_are_cut_from_the_images(tmp_path, sets):
    base = write_voc(tmp_path, sets)
    data = load_voc(tmp_path, "2007", "trainval", "test")
    assert data.name == "voc2007"
    assert data.classes == ("cat", "dog")
    assert [data.classes[c] for c in data.labels] == ["dog", "cat", "cat", "dog", "cat", "dog"]
    assert data.train.tolist() == [0, 1, 2, 3]
    assert data.test.tolist() == [4, 5]
    assert data.names == tuple(
        f"00000{image} object {number}" for image, number in ((1, 1), (1, 2), (2, 1), (2, 3), (3, 1), (4, 1))
    )
    assert data.excluded == {"difficult": ("000002 object 2", "000003 object 2")}
    boxes = [(2, 3, 11, 22), (20, 1, 40, 30), (1, 1, 5, 9), (10, 10, 30, 20), (5, 5, 20, 20), (7, 2, 8, 2)]
    files = [1, 1, 2, 2, 3, 4]
    for i, (number, (left, top, right, bottom)) in enumerate(zip(files, boxes, strict=True)):
        whole = np.asarray(Image.open(base / "JPEGImages" / f"00000{number}.jpg").convert("RGB"))
        found = np.asarray(data.images[i])
        assert found.shape == (bottom - top + 1, right - left + 1, 3)  # both ends are in the box
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                assert found[row - top, column - left].tolist() == whole[row - 1, column - 1].tolist()


def test_what_of_a_box_is_outside_the_image_is_cut_off(tmp_path, sets):
    base = write_voc(tmp_path, sets)
    note = base / "Annotations" / "000001.xml"
    outside = [
        ("dog", (0, -3, 41, 31)),
        ("cat", (41, 5, 60, 9)),
        ("cat", (5, 9, 4, 12)),
        ("dog", (9, 9, 9.4, 9)),
    ]
    note.write_text(note_of(1, outside))
    data = load_voc(tmp_path, "2007", "trainval", "test")
    assert data.excluded["empty box, or outside its image"] == ("000001 object 2", "000001 object 3")
    assert data.images[0].size == (40, 30)
    assert data.images[1].size == (1, 1)
    note.write_text(
        note_of(1, [("dog", (39, 29, 42, 32))], size=None)
    )  # nobody knows: black beyond the border
    assert load_voc(tmp_path, "2007", "trainval", "test").images[0].size == (4, 4)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("<xmin>2</xmin>", ""),
        lambda text: text.replace("<xmin>2</xmin>", "<xmin>two</xmin>"),
        lambda text: text.replace("<xmin>2</xmin>", "<xmin>nan</xmin>"),
        lambda text: text.replace("<xmin>2</xmin>", "<xmin>inf</xmin>"),
        lambda text: text.replace("<width>40</width>", "<width>wide</width>"),
        lambda text: text.replace("<name>dog</name>", "<name></name>"),
        lambda text: "",
    ],
)
def test_a_damaged_annotation_is_named(tmp_path, sets, damage):
    note = write_voc(tmp_path, sets) / "Annotations" / "000001.xml"
    note.write_text(damage(note.read_text()))
    for skip in (False, True):
        with pytest.raises(ValueError, match=rf"the annotation {note} is damaged \(.*\): unpack it again"):
            load_voc(tmp_path, "2007", "trainval", "test", skip_unreadable=skip)


def test_images_without_annotation_and_annotations_without_image(tmp_path, sets):
    sets["trainval"][5] = [("cat", (1, 1, 9, 9)), ("dog", (9, 9, 20, 20))]
    base = write_voc(tmp_path, sets)
    (base / "Annotations" / "000002.xml").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"the annotation .*000002\.xml is not there.*--skip-unreadable"
    ):
        load_voc(tmp_path, "2007", "trainval", "test")
    (base / "JPEGImages" / "000001.jpg").unlink()
    with pytest.raises(UnreadableImageError, match=r"000001\.jpg: there is no such file.*--skip-unreadable"):
        load_voc(tmp_path, "2007", "trainval", "test")
    image_of([]).save(base / "JPEGImages" / "000006.jpg")  # in no image set: none of ours
    data = load_voc(tmp_path, "2007", "trainval", "test", skip_unreadable=True)
    assert data.excluded == {
        "image missing or damaged": ("000001",),
        "image without annotation": ("000002",),
        "difficult": ("000003 object 2",),
    }
    assert data.names[:2] == ("000005 object 1", "000005 object 2")


def test_a_damaged_image_of_voc(tmp_path, sets):
    sets["trainval"][5] = sets["trainval"][1]
    path = write_voc(tmp_path, sets) / "JPEGImages" / "000005.jpg"
    path.write_bytes(path.read_bytes()[:200])
    data = load_voc(tmp_path, "2007", "trainval", "test")
    with pytest.raises(UnreadableImageError, match=r"cannot read the image .*000005\.jpg"):
        data.images[4]
    data = load_voc(tmp_path, "2007", "trainval", "test", skip_unreadable=True)
    assert data.excluded["image missing or damaged"] == ("000005",)
    assert len(data) == 6


def test_a_class_that_only_test_objects_have(tmp_path, sets):
    sets["test"][3].append(("bus", (1, 1, 9, 9)))
    write_voc(tmp_path, sets)
    with pytest.raises(ValueError, match=r"nothing to learn from in .* is of the class bus"):
        load_voc(tmp_path, "2007", "trainval", "test")


def test_nothing_is_left(tmp_path, sets):
    write_voc(tmp_path, {"trainval": {1: [("cat", (1, 1, 9, 9), True)]}, "test": {3: []}})
    with pytest.raises(ValueError, match=r"no object is left in .* \(difficult: 1\)"):
        load_voc(tmp_path, "2007", "trainval", "test")
    write_voc(tmp_path, {"trainval": {1: [("cat", (1, 1, 9, 9))]}, "test": {3: []}})
    with pytest.raises(ValueError, match="there are no images to test on in voc2007"):
        load_voc(tmp_path, "2007", "trainval", "test")
    write_voc(tmp_path, {"trainval": {1: []}, "test": {3: [("cat", (1, 1, 9, 9))]}})
    with pytest.raises(ValueError, match="there are no images to train on in voc2007"):
        load_voc(tmp_path, "2007", "trainval", "test")


def test_image_sets(tmp_path, sets):
    write_voc(tmp_path, {**sets, "train": {1: sets["trainval"][1]}, "val": {2: sets["trainval"][2]}})
    data = load_voc(tmp_path, "2007", "train", "val")
    assert [name[:6] for name in data.names] == ["000001", "000001", "000002", "000002"]
    for pair, shared in ((("trainval", "val"), 1), (("trainval", "trainval"), 2)):
        text = rf"{pair[0]} \(to learn from\) and {pair[1]} \(to test on\) share {shared} images, 00000\d.jpg"
        with pytest.raises(ValueError, match=text):
            load_voc(tmp_path, "2007", *pair)
    with pytest.raises(ValueError, match=r"there is no image set trian of PASCAL VOC 2007: .*trainval"):
        load_voc(tmp_path, "2007", "trian", "test")


def test_voc_is_not_there(tmp_path, sets):
    with pytest.raises(FileNotFoundError, match=r"PASCAL VOC 2007 trainval is not in .*or give --download"):
        load_voc(tmp_path, "2007", "trainval", "test")
    base = write_voc(tmp_path, sets)
    (base / "ImageSets" / "Main" / "test.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"PASCAL VOC 2007 test is not in .*VOCdevkit/VOC2007 is there"
    ):
        load_voc(tmp_path, "2007", "trainval", "test")


def test_it_is_downloaded_only_when_asked_for(tmp_path, sets, monkeypatch):
    asked = []

    def fetch(url, root, filename, md5):
        asked.append((root, filename))
        write_voc(tmp_path, sets)

    monkeypatch.setattr(torchvision.datasets.voc, "download_and_extract_archive", fetch)
    with pytest.raises(FileNotFoundError):
        load_voc(tmp_path, "2007", "trainval", "test")
    assert asked == []
    assert len(load_voc(tmp_path, "2007", "trainval", "test", download=True)) == 6
    names = ["VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"]
    assert asked == [(str(tmp_path), name) for name in names]


def test_the_identity_of_crops_changes_with_the_boxes(tmp_path):
    image_of([]).save(tmp_path / "a.png")
    box = np.array([[0, 0, 4, 4]])
    assert BoxCrops([tmp_path / "a.png"], box).data_id != BoxCrops([tmp_path / "a.png"], box + 1).data_id


def test_settings_of_voc_are_not_of_its_place(tmp_path, sets):
    found = []
    for place in ("one", "two"):
        write_voc(tmp_path / place, sets)
        found.append(load_voc(tmp_path / place, "2007", "trainval", "test").settings())
    assert found[0] == found[1]
