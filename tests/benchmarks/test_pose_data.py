"""Readers of people with joints: where joints come to lie, who is split off, and what is left out by name."""

from dataclasses import replace

import numpy as np
import pytest
from pose_trees import SIZE, draw, person, poses, upright, write_crops, write_leeds, write_mpii
from scipy.io import savemat

from benchmarks.data.images import JoinedImages
from benchmarks.data.mpii import load_mpii
from benchmarks.data.people import PersonCrops
from benchmarks.data.poses import FIGURE_SKELETON, load_figures, load_lsp, load_lspet
from benchmarks.figures.dataset import make_figures
from benchmarks.measures.pose import pcp
from benchmarks.measures.skeletons import LSP_SKELETON, MPII_SKELETON
from pml_posets.data.datasets import UnreadableImageError


def spots(data, index):
    """(J,) how red the crop is where a joint is said to be, NaN for those that are not."""
    pixels = np.asarray(data.images[index].convert("RGB"), float)
    side = len(pixels)
    found = np.full(len(data.skeleton.joints), np.nan)
    for j in np.flatnonzero(data.visible[index]):
        x, y = (data.joints[index, j] * side).astype(int).clip(max=side - 1)
        found[j] = pixels[y, x, 0]
    return found


# --- Leeds Sports Pose


@pytest.fixture
def lsp(tmp_path):
    """The folder of four people as released, all occluded."""
    return write_leeds(tmp_path / "lsp", poses(4), np.ones((4, 14)))


def test_lsp_as_released(lsp):
    joints, data = poses(4), load_lsp(lsp)
    assert data.skeleton is LSP_SKELETON
    assert (data.train.tolist(), data.test.tolist()) == ([0, 1], [2, 3])
    assert data.visible.all()
    assert data.excluded == {}
    assert data.names[3] == "im0004"
    for i in range(4):
        assert (spots(data, i) > 180).all()  # the crop shows each joint where it is said to be
        side = np.ceil(1.3 * np.ptp(joints[i], axis=0).max())
        assert data.images[i].size == (side, side)
        # the crop's middle is that of the box, up to the half pixel of rounding
        middle = (data.joints[i].min(axis=0) + data.joints[i].max(axis=0)) / 2
        assert np.abs(middle - 0.5).max() * side <= 0.51
        # one unit is the crop's side; MATLAB's first pixel has its middle at 1
        in_image = data.joints[i] * side + data.images.boxes[i, :2]
        np.testing.assert_allclose(in_image, joints[i] - 0.5, atol=1e-4)


def test_lspet_as_released(tmp_path):
    joints, flags = poses(5, seed=1), np.ones((5, 14))
    flags[1, 3] = flags[2, [0, 13]] = 0
    joints[1, 3] = -40
    data = load_lspet(write_leeds(tmp_path / "lspet", joints, flags, digits=5, extended=True))
    assert (data.train.tolist(), len(data.test)) == ([0, 1, 2, 3, 4], 0)
    np.testing.assert_array_equal(data.visible, flags == 1)
    assert np.isnan(data.joints[~data.visible]).all()
    assert data.names[0] == "im00001"
    assert data.excluded == {}  # a joint without annotation is nothing odd
    assert all(np.nanmin(spots(data, i)) > 180 for i in range(5))
    seen = joints[1][flags[1] == 1]
    side = np.ceil(1.3 * np.ptp(seen, axis=0).max())
    assert data.images.boxes[1, 2] == side  # the joint at -40 does not widen the box
    # MATLAB drops the last axis of a single person
    one = write_leeds(tmp_path / "one", poses(1), np.ones((1, 14)), digits=5, extended=True)
    assert len(load_lspet(one)) == 1


def test_crops(tmp_path):
    unit = 0.1 + 0.8 * upright() + np.random.default_rng(0).normal(0, 0.01, (4, 14, 2))
    flags = np.zeros((4, 14))
    flags[2, 5] = 1
    data = load_lsp(write_crops(tmp_path / "lsp", unit, flags))
    np.testing.assert_allclose(data.joints, unit, atol=1e-6)
    assert data.visible.all()
    assert data.images[0].size == (60, 60)
    assert (spots(data, 3) > 150).all()
    extended = load_lspet(write_crops(tmp_path / "lspet", unit, flags, digits=5))
    assert extended.excluded == {"no joint annotated": ("im00001", "im00002", "im00004")}
    assert extended.visible.sum() == np.isfinite(extended.joints).all(axis=2).sum() == len(extended) == 1


def test_what_is_left_out_is_named(tmp_path):
    joints, flags = poses(8), np.zeros((8, 14))
    joints[0, 2] = (300, 40)  # right hip, right of the image
    joints[1, 0] = (-1.5, 50)  # within the slack
    joints[2] = np.nan
    joints[3, 1] = (40, np.inf)
    joints[5, 13] = joints[5, 12]
    joints[6] = 30 + 0.1 * np.arange(28).reshape(14, 2)
    root = write_leeds(tmp_path / "lsp", joints, flags)
    draw(joints[0]).save(root / "images" / "im0009.jpg")
    (root / "images" / "readme.txt").write_text("hello")
    data = load_lsp(root)
    assert dict(data.excluded) == {
        "image without annotation": ("im0009",),
        "joint without numbers": (*(f"im0003 {name}" for name in LSP_SKELETON.joints), "im0004 right_knee"),
        "joint outside its image": ("im0001 right_hip",),
        "no joint annotated": ("im0003",),
        "stick without length, not judged": ("im0006 neck to head_top",),
        "joints within less than 6 px": ("im0007",),
    }
    assert data.names == ("im0001", "im0002", "im0004", "im0005", "im0006", "im0008")
    assert (data.train.tolist(), data.test.tolist()) == ([0, 1, 2], [3, 4, 5])  # as of the release
    assert data.visible.sum(axis=1).tolist() == [13, 14, 13, 14, 14, 14]
    text = data.summary()
    assert "LSP: 6 people, 3 to learn from, 3 to test on, 14 joints" in text
    assert "left out, joint without numbers: 15 (im0003 right_ankle, " in text
    assert ", ...)" in text
    assert data.settings()["left_out"]["joint outside its image"] == 1
    score = pcp(np.nan_to_num(data.joints), data.joints, data.skeleton)
    assert score.excluded == {"missing joint": 4, "zero length": 1}  # hip: T, UL; knee: UL, LL
    assert score.total == 100


def test_missing_and_damaged_images(lsp):
    image = {number: lsp / "images" / f"im000{number}.jpg" for number in (1, 2, 3, 4)}
    image[1].unlink()
    with pytest.raises(UnreadableImageError, match=r"im0001\.jpg: there is no such file.*--skip-unreadable"):
        load_lsp(lsp)
    image[3].write_bytes(image[3].read_bytes()[:600])
    data = load_lsp(lsp, skip_unreadable=True)
    assert data.excluded == {"image missing or damaged": ("im0001", "im0003")}
    assert (data.train.tolist(), data.test.tolist()) == ([0], [1])
    image[4].unlink()
    with pytest.raises(ValueError, match=r"nobody is left to test on in LSP \(image missing or damaged: 3\)"):
        load_lsp(lsp, skip_unreadable=True)


def test_other_files(tmp_path):
    good, names = np.full((3, 14, 4), 30.0), LSP_SKELETON.joints[::-1]
    for write, content, error, text in (
        (None, None, FileNotFoundError, r"neither joints\.mat .* nor joints\.npz"),
        (savemat, {"joints": np.zeros((3, 13, 5))}, ValueError, r"\(14, 3, N\), got \(3, 13, 5\)"),
        (savemat, {"other": 1}, ValueError, r"got \(0,\)"),
        (savemat, {"joints": good}, FileNotFoundError, "there is no folder"),
        (np.savez, {"other": 1}, ValueError, r"joints\.npz lacks joints, it has other"),
        (np.savez, {"joints": good}, ValueError, r"\(N, 14, 3\).*got \(3, 14, 4\)"),
        (np.savez, {"joints": good.T, "joint_names": names}, ValueError, r"are \('head_top', .*expected"),
        (np.savez, {"joints": good.T}, FileNotFoundError, "holds no image"),
    ):
        if write is not None:
            path = tmp_path / ("joints.mat" if write is savemat else "joints.npz")
            write(path, content) if write is savemat else write(path, **content)
        if text == "holds no image":
            (tmp_path / "images").mkdir()
        with pytest.raises(error, match=text):
            load_lsp(tmp_path)


def test_real_data(shared_data):
    data = load_lsp(shared_data / "lsp").with_training(load_lspet(shared_data / "lspet"))
    assert len(data) == 12_000
    assert (len(data.train), len(data.test)) == (11_000, 1_000)
    assert (data.test[0], data.train[1_000]) == (1_000, 2_000)
    with np.load(shared_data / "lspet" / "joints.npz") as file:
        annotated = int(file["joints"][:, :, 2].sum())
    assert data.visible.sum() == 2_000 * 14 + annotated
    assert set(data.excluded) == {"stick without length, not judged"}
    assert data.images[0].size == (144, 144)
    assert data.images[2_000].size == (96, 96)


# --- Images as they are read


@pytest.fixture
def image(tmp_path):
    draw(poses(1)[0]).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_crops_beyond_the_border_repeat_it(image):
    pixels = np.asarray(draw(poses(1)[0]))
    crops = PersonCrops([image] * 2, np.array([[-10, -5, 30], [100, 80, 40]]))
    first, second = map(np.asarray, crops)
    np.testing.assert_array_equal(first[5:, 10:], pixels[:25, :20])
    np.testing.assert_array_equal(first[0, 10:], pixels[0, :20])
    np.testing.assert_array_equal(second[:10, :20], pixels[80:, 100:])
    np.testing.assert_array_equal(second[-1, -1], pixels[-1, -1])
    assert pixels.shape == (SIZE[1], SIZE[0], 3)
    with pytest.raises(ValueError, match=r"boxes must have shape \(2, 3\)"):
        PersonCrops([image] * 2, np.array([[0, 0, 30]]))
    with pytest.raises(ValueError, match="a side of at least 1"):
        PersonCrops([image], np.array([[0, 0, 0]]))


def test_the_identity_changes_with_the_data(image):
    boxes = np.array([[0, 0, 30]])
    crops, whole = PersonCrops([image], boxes), PersonCrops([image])
    joined = JoinedImages([crops, whole])
    seen = {crops.data_id, whole.data_id, PersonCrops([image], boxes + 1).data_id, joined.data_id}
    assert crops.data_id == PersonCrops([image], boxes).data_id
    draw(poses(2)[1]).save(image, compress_level=0)
    assert len(seen | {crops.data_id, joined.data_id}) == 6


def test_joined_images():
    joined = JoinedImages([["a", "b"], ["c"], ["d", "e"]])
    assert [joined[i] for i in range(len(joined))] == ["a", "b", "c", "d", "e"]
    for index in (-1, 5):
        with pytest.raises(IndexError, match=r"0\.\.4"):
            joined[index]


def test_sets_are_joined_for_training(tmp_path, lsp):
    first, flags = load_lsp(lsp), np.ones((3, 14))
    flags[1] = 0
    second = load_lspet(write_leeds(tmp_path / "b", poses(3, seed=2), flags, digits=5, extended=True))
    both = first.with_training(second)
    assert both.name == "LSP+LSPET"
    assert (both.train.tolist(), both.test.tolist()) == ([0, 1, 4, 5], [2, 3])
    assert both.names[4:] == ("im00001", "im00003")
    assert both.excluded == {"no joint annotated": ("im00002",)}
    np.testing.assert_array_equal(both.joints[5], second.joints[1])
    np.testing.assert_array_equal(np.asarray(both.images[5]), np.asarray(second.images[1]))
    first.with_training(replace(second, skeleton=replace(LSP_SKELETON)))  # the same by value is the same
    with pytest.raises(ValueError, match="LSPET has other joints than LSP"):
        first.with_training(replace(second, skeleton=FIGURE_SKELETON))


def test_shapes_are_checked(lsp):
    data = load_lsp(lsp)
    for change, message in (
        ({"joints": data.joints[:3]}, r"joints of LSP must have shape \(4, 14, 2\).*got \(3, 14, 2\)"),
        ({"visible": data.visible[:, :3]}, r"visible of LSP must have shape \(4, 14\)"),
        ({"names": ("a",)}, r"names of LSP must have shape \(4,\)"),
        ({"head_boxes": np.zeros((4, 2), np.float32)}, r"head_boxes of LSP must have shape \(4, 4\)"),
        ({"visible": ~data.visible}, "must be numbers where visible"),
        ({"test": np.array([1, 2])}, "name each of 4 people once at most"),
        ({"test": np.array([4])}, "name each of 4 people once at most"),
        ({"train": np.array([-1])}, "name each of 4 people once at most"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(data, **change)


# --- MPII


@pytest.fixture
def mpii():
    """Ten training images: eight with one person, one with two, one with nobody; and one for testing."""
    joints = poses(10, skeleton=MPII_SKELETON)
    entries = [(f"{i:09d}.jpg", [person(joints[i])], 1, joints[i]) for i in range(8)]
    entries.append(("pair.jpg", [person(joints[8]), person(joints[9], visible=None)], 1, joints[8]))
    entries.append(("empty.jpg", [], 1, None))
    entries.append(("test.jpg", [{"objpos": 1.0}], 0, None))
    return joints, entries


def test_mpii(tmp_path, mpii):
    joints, entries = mpii
    data = load_mpii(*write_mpii(tmp_path, entries), test_share=0.3)
    assert data.skeleton is MPII_SKELETON
    assert (len(data), len(data.test)) == (10, 3)
    assert data.names[8:] == ("pair.jpg person 1", "pair.jpg person 2")
    assert data.excluded == {"image without annotation": ("empty.jpg",)}
    assert data.visible.all()
    for i in range(9):
        assert (spots(data, i) > 180).all()
        side, top = data.images[i].size[0], data.joints[i, 9]
        neck = joints[i, 8] - joints[i, 9]
        np.testing.assert_allclose((data.joints[i, 8] - top) * side, neck, atol=1e-3)
        box = (data.head_boxes[i].reshape(2, 2) - top) * side
        np.testing.assert_allclose(box, [[-4, 0], [4, neck[1]]], atol=1e-3)


def test_mpii_is_split_by_images_and_seed(tmp_path, mpii):
    files = write_mpii(tmp_path, mpii[1])
    splits = {seed: load_mpii(*files, test_share=0.3, split_seed=seed).test.tolist() for seed in range(12)}
    assert load_mpii(*files, test_share=0.3, split_seed=4).test.tolist() == splits[4]
    assert len({tuple(split) for split in splits.values()}) > 5
    for split in splits.values():
        assert len(split) == 3
        assert (8 in split) == (9 in split)  # the two of one image stay together
    assert any(8 in split for split in splits.values())
    (tmp_path / "images" / "000000000.jpg").unlink()
    for seed in range(6):  # whoever is missing, the others stay on their side
        data = load_mpii(*files, test_share=0.3, split_seed=seed, skip_unreadable=True)
        assert [i + 1 for i in data.test.tolist()] == [i for i in splits[seed] if i > 0]
        assert data.excluded["image missing or damaged"] == ("000000000.jpg person 1",)
    with pytest.raises(UnreadableImageError, match=r"000000000\.jpg: there is no such file"):
        load_mpii(*files)


def test_mpii_with_missing_joints_and_odd_structs(tmp_path, mpii):
    joints, entries = mpii
    nobody = np.full((16, 2), np.nan)
    one = nobody.copy()
    one[4] = joints[3, 4]
    joints[0, 3] = np.nan
    joints[1, 5] = (500, 20)
    odd = [
        person(joints[0]),
        person(joints[1]),
        person(joints[2], head=False),
        person(one),  # a single point is no array to scipy
        person(nobody),  # annopoints is empty
        {"x1": 1.0, "scale": 1.0},  # there is no field annopoints
        person(joints[6], ids=[*range(15), 16]),
    ]
    entries[:7] = [(f"{i:09d}.jpg", [rect], 1, joints[i]) for i, rect in enumerate(odd)]
    files = write_mpii(tmp_path, entries)
    data = load_mpii(*files, test_share=0.3)
    assert data.names == (
        *(f"00000000{i}.jpg person 1" for i in (1, 2, 7)),
        *("pair.jpg person 1", "pair.jpg person 2"),
    )
    assert dict(data.excluded) == {
        "joint of an unknown id": ("000000006.jpg person 1 id 16",),
        "image without annotation": ("empty.jpg",),
        "no joint annotated": ("000000004.jpg person 1", "000000005.jpg person 1"),
        "not all 16 joints annotated": tuple(f"00000000{i}.jpg person 1" for i in (0, 3, 6)),
        "joint outside its image": ("000000001.jpg person 1 left_ankle",),
        "no head box, not judged by it": ("000000002.jpg person 1",),
    }
    assert data.visible.sum(axis=1).tolist() == [15, 16, 16, 16, 16]
    assert np.isnan(data.head_boxes).all(axis=1).tolist() == [False, True, False, False, False]
    every = load_mpii(*files, test_share=0.3, complete=False)
    assert every.visible.sum(axis=1).tolist() == [15, 15, 16, 15, 16, 16, 16]
    assert every.excluded["joints within less than 6 px"] == ("000000003.jpg person 1",)


def test_other_files_of_mpii(tmp_path, mpii):
    unused = [(name, rects, 0, None) for name, rects, _, _ in mpii[1]]
    annotation, images = write_mpii(tmp_path, unused)
    with pytest.raises(ValueError, match="no annotated person in a training image"):
        load_mpii(annotation, images)
    with pytest.raises(FileNotFoundError, match="there is no folder of images"):
        load_mpii(annotation, tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="there is no annotation file"):
        load_mpii(tmp_path / "none.mat", images)
    with pytest.raises(ValueError, match="test_share must lie between 0 and 1, got 1"):
        load_mpii(annotation, images, test_share=1)
    for content, text in (
        ({"joints": 1}, "holds no struct RELEASE, only joints"),
        ({"RELEASE": {"version": 12.0, "img_train": [1.0, 0.0]}}, "for each image of annolist, got 2 and 0"),
    ):
        savemat(tmp_path / "a.mat", content)
        with pytest.raises(ValueError, match=text):
            load_mpii(tmp_path / "a.mat", images)


# --- Drawn figures


def test_figures(tmp_path):
    shape = {"num_sources": 4, "num_clips": 1, "num_frames": 4, "size": 48, "num_anchors": 4}
    truth = make_figures(tmp_path / "tree", num_workers=1, sports=("run", "throw"), jitter=0.3, **shape)
    data = load_figures(tmp_path / "tree")
    assert data.name == "tree"
    assert data.skeleton is FIGURE_SKELETON
    assert data.skeleton.joints[-1] == "face"
    assert data.skeleton.parts == LSP_SKELETON.parts
    assert data.test.tolist() == [*range(12, 16), *range(28, 32)]  # the last athlete of each sport
    kept = truth.joints[:, [13, 9, 5, 6, 10, 14, 11, 7, 3, 4, 8, 12, 0, 2]]  # from J-HMDB's order to LSP's
    outside = ((kept < 0) | (kept > 1)).any(axis=2)
    assert outside.any()
    np.testing.assert_array_equal(data.joints, np.where(outside[:, :, None], np.nan, kept))
    assert len(data.excluded["joint outside its image"]) == outside.sum()
    with pytest.raises(ValueError, match=r"figures\.json is missing"):
        load_figures(tmp_path)
