"""PASCAL VOC's boxes: cut out to the pixel, and whatever is wrong with them named."""

import numpy as np
import pytest
import torchvision.datasets.voc
from PIL import Image
from voc_trees import image_of, note_of, write_voc

from benchmarks.data.voc import BoxCrops, load_voc
from pml_posets.data.datasets import UnreadableImageError

SETS = {  # two objects a class to learn from, one to test on
    "trainval": {
        1: [("dog", (2, 3, 11, 22)), ("cat", (20, 1, 40, 30))],
        2: [("cat", (1, 1, 5, 9)), ("dog", (10, 10, 30, 20), True), ("dog", (10, 10, 30, 20))],
    },
    "test": {3: [("cat", (5, 5, 20, 20)), ("bus", (1, 1, 9, 9), True)], 4: [("dog", (7, 2, 8, 2))]},
}


@pytest.fixture
def base(tmp_path):
    return write_voc(tmp_path, SETS)


def read(root, train="trainval", test="test", **options):
    return load_voc(root, "2007", train, test, **options)


def test_boxes_are_cut_from_the_images(tmp_path, base):
    data = read(tmp_path)
    assert data.name == "voc2007"
    assert data.classes == ("cat", "dog")
    assert [data.classes[c] for c in data.labels] == ["dog", "cat", "cat", "dog", "cat", "dog"]
    assert (data.train.tolist(), data.test.tolist()) == ([0, 1, 2, 3], [4, 5])
    places = ((1, 1), (1, 2), (2, 1), (2, 3), (3, 1), (4, 1))
    assert data.names == tuple(f"00000{image} object {number}" for image, number in places)
    assert data.excluded == {"difficult": ("000002 object 2", "000003 object 2")}
    boxes = [(2, 3, 11, 22), (20, 1, 40, 30), (1, 1, 5, 9), (10, 10, 30, 20), (5, 5, 20, 20), (7, 2, 8, 2)]
    for i, (left, top, right, bottom) in enumerate(boxes):  # both ends are in the box
        whole = np.asarray(Image.open(base / "JPEGImages" / f"00000{places[i][0]}.jpg").convert("RGB"))
        np.testing.assert_array_equal(data.images[i], whole[top - 1 : bottom, left - 1 : right])
    write_voc(tmp_path / "elsewhere", SETS)
    assert read(tmp_path / "elsewhere").settings() == data.settings()


def test_what_of_a_box_is_outside_the_image_is_cut_off(tmp_path, base):
    note = base / "Annotations" / "000001.xml"
    boxes = [
        ("dog", (0, -3, 41, 31)),
        ("cat", (41, 5, 60, 9)),
        ("cat", (5, 9, 4, 12)),
        ("dog", (9, 9, 9.4, 9)),
    ]
    note.write_text(note_of(1, boxes))
    data = read(tmp_path)
    assert data.excluded["empty box, or outside its image"] == ("000001 object 2", "000001 object 3")
    assert (data.images[0].size, data.images[1].size) == ((40, 30), (1, 1))
    note.write_text(note_of(1, [("dog", (39, 29, 42, 32))], size=None))
    assert read(tmp_path).images[0].size == (4, 4)  # nobody knows the size: black beyond the border


def test_images_without_annotation_and_annotations_without_image(tmp_path):
    first = SETS["trainval"][1]
    base = write_voc(tmp_path, {**SETS, "trainval": {**SETS["trainval"], 5: first, 6: first}})
    images = base / "JPEGImages"
    (base / "Annotations" / "000002.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"annotation .*000002\.xml is not there.*--skip-unreadable"):
        read(tmp_path)
    (images / "000001.jpg").unlink()
    with pytest.raises(UnreadableImageError, match=r"000001\.jpg: there is no such file.*--skip-unreadable"):
        read(tmp_path)
    (images / "000006.jpg").write_bytes((images / "000006.jpg").read_bytes()[:200])
    image_of([]).save(images / "000007.jpg")  # in no image set: none of ours
    data = read(tmp_path, skip_unreadable=True)
    assert data.excluded == {
        "image missing or damaged": ("000001", "000006"),
        "image without annotation": ("000002",),
        "difficult": ("000003 object 2",),
    }
    assert data.names[:2] == ("000005 object 1", "000005 object 2")


def test_a_damaged_image_of_voc(tmp_path, base):
    path = base / "JPEGImages" / "000004.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UnreadableImageError, match=r"cannot read the image .*000004\.jpg"):
        read(tmp_path).images[5]


CAT = [("cat", (1, 1, 9, 9))]


@pytest.mark.parametrize(
    ("train", "test", "text"),
    [
        ([(*CAT[0], True)], [], r"no object is left in .* \(difficult: 1\)"),
        (CAT, [], "there are no images to test on in voc2007"),
        ([], CAT, "there are no images to train on in voc2007"),
        (CAT, [("bus", (1, 1, 9, 9))], r"nothing to learn from in .* is of the class bus"),
    ],
)
def test_sides_that_are_empty(tmp_path, train, test, text):
    write_voc(tmp_path, {"trainval": {1: train}, "test": {3: test}})
    with pytest.raises(ValueError, match=text):
        read(tmp_path)


def test_image_sets(tmp_path, base):
    write_voc(tmp_path, {"train": {1: SETS["trainval"][1]}, "val": {2: SETS["trainval"][2]}})
    data = read(tmp_path, "train", "val")
    assert [name[:6] for name in data.names] == ["000001", "000001", "000002", "000002"]
    for test, shared in (("val", 1), ("trainval", 2)):
        text = rf"trainval \(to learn from\) and {test} \(to test on\) share {shared} images, 00000\d.jpg"
        with pytest.raises(ValueError, match=text):
            read(tmp_path, "trainval", test)
    with pytest.raises(ValueError, match=r"there is no image set trian of PASCAL VOC 2007: .*trainval"):
        read(tmp_path, "trian")
    (base / "ImageSets" / "Main" / "test.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"test is not in .*VOCdevkit/VOC2007 is there"):
        read(tmp_path)


def test_it_is_downloaded_only_when_asked_for(tmp_path, monkeypatch):
    asked = []

    def fetch(url, root, filename, md5):
        asked.append((root, filename))
        write_voc(tmp_path, SETS)

    monkeypatch.setattr(torchvision.datasets.voc, "download_and_extract_archive", fetch)
    with pytest.raises(FileNotFoundError, match=r"PASCAL VOC 2007 trainval is not in .*or give --download"):
        read(tmp_path)
    assert asked == []
    assert len(read(tmp_path, download=True)) == 6
    names = ["VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"]
    assert asked == [(str(tmp_path), name) for name in names]


def test_the_identity_of_crops_changes_with_the_boxes(tmp_path):
    image_of([]).save(tmp_path / "a.png")
    box = np.array([[0, 0, 4, 4]])
    assert BoxCrops([tmp_path / "a.png"], box).data_id != BoxCrops([tmp_path / "a.png"], box + 1).data_id
