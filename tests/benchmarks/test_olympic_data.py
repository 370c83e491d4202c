"""Trees in the Olympic Sports layout: what is read, what is missed, what is refused."""

import shutil
import tarfile

import h5py
import numpy as np
import pytest
import torch
from olympic_trees import make_tree, picture, write_labels, write_seq

from benchmarks.data.olympic import OlympicFrames, TreeError, crop_box, find_unreadable, load_tree, source_of
from pml_posets.data.datasets import UnreadableImageError

VIDEO = "abc_DE-1234_00010_00050"


@pytest.fixture
def root(tmp_path):
    return make_tree(tmp_path / "tree")


@pytest.fixture
def rich(tmp_path):
    """A tree with boxes and joints."""
    return make_tree(tmp_path / "tree", boxes=True, joints=True)


def red(image):
    return int(np.asarray(image)[..., 0].mean().round())


def refused(root, text, **options):
    with pytest.raises(TreeError, match=text):
        load_tree(root, **options)


# --- What is read


@pytest.mark.parametrize(
    ("category", "sequence", "source"),
    [
        ("jump", "jump_03_01", "jump_03"),
        ("shoot_ball", "shoot_ball_12_00", "shoot_ball_12"),
        ("vault", "-wmGlrcdXgU_01290_01392", "-wmGlrcdXgU"),
        ("diving_springboard_3m", "v_-t2jDhkYo_00360_00808", "v_-t2jDhkYo"),
        ("run", "run", "run/run"),
        ("run", "holiday_2", "run/holiday_2"),
        ("run", "running_03_01", "run/running_03_01"),
    ],
)
def test_sources_of_sequences(category, sequence, source):
    assert source_of(category, sequence) == source


def test_what_is_read(root):
    tree = load_tree(root)
    assert len(tree) == 17
    assert tree.categories == ("jump", "run")
    assert tree.offsets.tolist() == [0, 5, 17]
    assert tree.frame_categories.tolist() == [0] * 5 + [1] * 12
    runs = ("run/run_00_00", "run/run_00_01", "run/run_01_00")
    assert tree.sequence_names == (f"jump/{VIDEO}", *runs)
    assert tree.sequences.tolist() == [0] * 5 + [1] * 4 + [2] * 4 + [3] * 4
    assert tree.frame_numbers.tolist() == [3, 4, 5, 6, 7, *[0, 1, 2, 3] * 3]
    assert tree.source_names == ("abc_DE-1234", "run_00", "run_01")
    assert tree.sources.tolist() == [0] * 5 + [1] * 8 + [2] * 4
    assert tree.labels["jump"].pos_flips[0].tolist() == [False, True]
    run = tree.dataset_labels()["run"]
    assert run.anchors.tolist() == [5, 16]
    assert run.pos_ids[0].tolist() == [9, 10, 13]
    assert tree.frames_of("run") == slice(5, 17)
    assert (tree.boxes, tree.joints) == (None, None)
    assert "17 frames, 2 categories, 4 sequences, 3 sources, 3 anchors" in tree.summary()
    with pytest.raises(ValueError, match="no category 'walk', the tree has jump, run"):
        tree.frames_of("walk")


def test_a_choice_of_categories(root):
    tree = load_tree(root, categories=["run"])
    assert tree.categories == ("run",)
    assert tree.dataset_labels()["run"].anchors.tolist() == [0, 11]
    assert tree.source_names == ("run_00", "run_01")
    refused(root, "categories without a frame list: walk", categories=["run", "walk"])
    with pytest.raises(ValueError, match="at least one category"):
        load_tree(root, categories=[])


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_frames_by_index(tmp_path, suffix):
    root = make_tree(tmp_path / "tree", suffix)
    frames = OlympicFrames(load_tree(root))
    assert len(frames) == 17
    for i in (0, 7, 16):
        assert frames[i].mode == "RGB"
        assert red(frames[i]) == pytest.approx(10 * i, abs=6)
    assert [frame.size for frame in frames] == [(20, 30)] * 17  # iteration ends
    for number in range(4):  # of two images that are alike but for the suffix that of the list is taken
        picture(200).save(root / "frames" / "run" / "run_00_00" / f"I{number:05d}.png")
    frames = OlympicFrames(load_tree(root))
    assert [red(frames[i]) for i in range(5, 9)] == [200] * 4


def test_worker_processes_read_images_and_seq_files(root):
    folder = root / "frames" / "run"
    shutil.rmtree(folder / "run_00_01")
    write_seq(folder / "run_00_01.seq", [picture(10 * i) for i in range(9, 13)], 200)
    loader = torch.utils.data.DataLoader(
        OlympicFrames(load_tree(root)),
        batch_size=9,
        num_workers=2,
        collate_fn=lambda images: map(red, images),
    )
    assert [value for batch in map(list, loader) for value in batch] == [10 * i for i in range(17)]


def test_seq_files_of_either_place(root):
    # The video starts at frame 0, the list at frame 3.
    video = [picture(0)] * 3 + [picture(10 * i) for i in range(5)]
    shutil.rmtree(root / "frames" / "jump")
    write_seq(root / "frames" / "jump" / VIDEO / f"{VIDEO}.seq", video, 200, claimed=1)
    frames = OlympicFrames(load_tree(root))
    assert [red(frames[i]) for i in range(6)] == [0, 10, 20, 30, 40, 50]
    shutil.rmtree(root / "frames" / "jump")
    write_seq(root / "jump" / f"{VIDEO}.seq", video[:-1], 200)
    refused(root, r"frames of jump are missing: jump/abc.*I00007.png \(.*only 7 frames")
    tree = load_tree(root, skip_unreadable=True)
    assert len(tree) == 16
    assert "only 7 frames" in tree.excluded[0]


@pytest.mark.parametrize("archived", [False, True])
def test_boxes(rich, archived):
    path = rich / "bboxes" / "jump" / f"{VIDEO}.bb"
    lines = path.read_text().splitlines()
    lines[2] = "6 1 1 20 30"
    path.write_text("\n".join(reversed(lines)))  # the frame's number counts, not the line
    if archived:
        with tarfile.open(rich / "bboxes.tar.gz", "w:gz") as tar:
            tar.add(rich / "bboxes", "bboxes")
        shutil.rmtree(rich / "bboxes")
    tree = load_tree(rich)
    assert tree.boxes.shape == (17, 4)
    assert tree.boxes[[0, 2]].tolist() == [[3, 5, 12, 24], [1, 1, 20, 30]]
    frames = OlympicFrames(tree)
    assert (frames[0].size, frames[2].size) == ((20, 20), (30, 30))
    np.testing.assert_array_equal(np.asarray(frames[0])[:, 5:15], np.asarray(picture(0))[4:24, 2:12])


def test_the_identity_of_the_data_follows_what_matters(rich):
    def found(**options):
        return OlympicFrames(load_tree(rich, **options)).data_id

    first = found()
    assert found() == first != found(categories=["run"])
    box = rich / "bboxes" / "run" / "run_00_00.bb"
    text = box.read_text()
    box.write_text(text.replace("4\t3\t5", "4\t2\t5"))
    assert found() != first
    box.write_text(text)
    assert found() == first
    picture(99).save(rich / "frames" / "run" / "run_00_00" / "I00000.png")
    assert found() != first


def test_crops_at_the_border_repeat_it():
    image = picture(0)
    pixels, crop = np.asarray(image), np.asarray(crop_box(image, np.array([1, 1, 4, 12])))
    assert crop.shape == (12, 12, 3)
    np.testing.assert_array_equal(crop[:, 4:], pixels[:12, :8])
    np.testing.assert_array_equal(crop[:, :4], pixels[:12, :1].repeat(4, axis=1))
    inside = np.array([8, 10, 11, 15])
    np.testing.assert_array_equal(np.asarray(crop_box(image, inside)), pixels[9:15, 6:12])
    assert crop_box(image, np.array([500, 500, 510, 510])).size == (11, 11)


def test_joints(rich):
    tree = load_tree(rich)
    assert tree.joints.shape == (17, 4, 2)
    assert tree.joints.dtype == np.float32
    np.testing.assert_array_equal(tree.joints[5], tree.joints[0])
    run = rich / "joints" / "joints_run.npz"
    for joints, text in (
        (np.zeros((11, 4, 2)), r"match the frame list: joints_run.npz \(shape \(11, 4, 2\) for 12 frames\)"),
        (np.full((12, 4, 2), np.inf), "other than finite numbers or NaN: joints_run.npz"),
        (np.zeros((12, 5, 2)), r"different numbers of joints: \(5, 4, 2\), \(12, 5, 2\)"),
    ):
        np.savez(run, joints=joints)
        refused(rich, text)
    run.write_bytes(b"PK half")
    refused(rich, "joint files that cannot be read: joints_run.npz")


# --- What is wrong


def test_one_message_names_every_problem(tmp_path):
    root = make_tree(tmp_path / "tree", boxes=True)
    frames, boxes = root / "frames" / "run", root / "bboxes" / "run"
    for i in range(4):
        (frames / "run_00_01" / f"I{i:05d}.png").unlink()
    (frames / "run_01_00" / "I00001.png").unlink()
    (frames / "run_01_00" / "I00002.png").unlink()
    shutil.rmtree(frames / "run_00_00")
    labels = root / "labels_hdf5" / "labels_jump.hdf5"
    labels.write_bytes(labels.read_bytes()[:900])
    write_labels(root / "labels_hdf5" / "labels_run.hdf5", [0], [[12, 3]], [[40]])
    (root / "image_pathes" / "imagePaths_walk.txt").write_text("./walk_00_00/I00000.png\nsomething\n")
    (boxes / "run_00_00.bb").write_text("1 3 5 12 24\n" * 3)
    (boxes / "run_00_01.bb").unlink()
    (boxes / "run_01_00.bb").write_text("1 2 3 4\n")
    with pytest.raises(TreeError) as error:
        load_tree(root)
    for expected in (
        "cannot be used as an Olympic Sports tree, 10 problems",
        "categories without a label file: walk",
        "imagePaths_walk.txt line 2 ('something')",
        "cut off or half written?): labels_jump.hdf5",
        "beyond the category's frame list: labels_run.hdf5 (2 ids of 12 or more, up to 40)",
        "than their sequence has frames: run/run_00_00.bb (3 boxes, 4 frames)",
        "sequences without a box file: run/run_00_01.bb",
        "not five numbers: run/run_01_00.bb",
        "sequences of run with neither a folder of frames nor a .seq file: run_00_00",
        "run/run_00_01/I00003.png, run/run_01_00/I00001.png, ... (6 in all)",
        "categories without a folder of frames: walk",
    ):
        assert expected in str(error.value)


def test_boxes_that_do_not_fit(rich):
    path = rich / "bboxes" / "run" / "run_00_00.bb"
    whole = path.read_text()
    for line, text in (
        ("9\t3\t5", r"miss frames .*run_00_00.bb \(1 frames, the first is 4\)"),
        ("4\t30\t5", r"end before they start: run/run_00_00.bb \(frame 4\)"),
    ):
        path.write_text(whole.replace("4\t3\t5", line))
        refused(rich, text)


def test_label_files_that_are_wrong(root):
    path = root / "labels_hdf5" / "labels_run.hdf5"
    with h5py.File(path, "a") as file:
        del file["neg_flipvals"]
    refused(root, r"without all their data sets: labels_run.hdf5 \(no neg_flipvals\)")
    for rows, text in (
        (([0], [[1], [2]], [[3]]), r"labels_run.hdf5 \(pos_ids must hold one list for each of 1 anchors"),
        (([], [], []), "without an anchor"),
    ):
        write_labels(path, *rows)
        refused(root, text)


def test_trees_that_are_none(tmp_path, root):
    refused(tmp_path / "nowhere", "is no folder: expected one with frames/")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "3 problems")
    shutil.rmtree(root / "frames")
    refused(root, r"1 problem:\n- no frames: expected .*frames with a folder a category")
    tree = load_tree(root, require_frames=False)
    assert len(tree) == 17
    for use in (OlympicFrames, lambda tree: tree.open_frame(0)):
        with pytest.raises(ValueError, match="loaded without its frames"):
            use(tree)
    path = root / "image_pathes" / "imagePaths_run.txt"
    lines = path.read_text().splitlines()
    lines.insert(3, "")  # would move every id after it
    path.write_text("\n".join(lines))
    refused(root, r"imagePaths_run\.txt line 4", require_frames=False)
    path.write_text("\n")
    refused(root, "frame lists without a frame: imagePaths_run.txt", require_frames=False)


# --- Unreadable frames


def test_unreadable_frames(rich):
    whole = load_tree(rich)
    first, last = (rich / "frames" / "run" / f"run_0{s}_00" for s in (0, 1))
    (first / "I00001.png").write_bytes((first / "I00001.png").read_bytes()[:60])
    (first / "I00002.png").write_text("no picture")
    assert sorted(find_unreadable(load_tree(rich))) == [6, 7]
    with pytest.raises(UnreadableImageError, match=r"frame 6 cannot be read \(.*run_00_00/I00001.png\)"):
        OlympicFrames(load_tree(rich))[6]
    (last / "I00003.png").unlink()  # 16, an anchor
    refused(rich, "frames of run are missing: run/run_01_00/I00003.png")
    tree = load_tree(rich, skip_unreadable=True)
    kept = [i for i in range(17) if i not in (6, 7, 16)]
    assert len(tree) == 14
    assert len(tree.excluded) == 3
    assert "run_00_00/I00001.png: " in tree.excluded[0]
    assert tree.excluded[2].endswith("run_01_00/I00003.png: missing")
    assert "3 unreadable frames left out" in tree.summary()
    assert tree.offsets.tolist() == [0, 5, 14]
    assert [red(image) for image in OlympicFrames(tree)] == [10 * i for i in kept]
    for name in ("sequences", "frame_numbers", "sources", "boxes", "joints"):
        np.testing.assert_array_equal(getattr(tree, name), getattr(whole, name)[kept])
    # The ids of the first anchor point at the same frames as before; the second anchor is gone.
    before, after = (one.dataset_labels()["run"] for one in (whole, tree))
    assert [kept[i] for i in after.anchors] == before.anchors[:1].tolist()
    for rows in ("pos_ids", "neg_ids"):
        assert [kept[i] for i in getattr(after, rows)[0]] == getattr(before, rows)[0].tolist()
    assert tree.labels["jump"].neg_flips[0].tolist() == [True, False]


def test_leaving_out_too_much(root):
    tree = load_tree(root)
    assert tree.without([]).names == tree.names
    fewer = tree.without([1, 9, 11])  # a positive of jump, a positive and a negative of the first of run
    assert fewer.labels["run"].pos_ids[0].tolist() == [4, 6]
    assert fewer.labels["jump"].pos_flips[0].tolist() == [True]
    with pytest.raises(TreeError, match="without an anchor once unreadable frames are left out: jump"):
        tree.without([3, 4])
    for path in (root / "frames" / "jump").glob("*/*.png"):
        path.write_bytes(b"")
    refused(root, "categories without a readable frame: jump", skip_unreadable=True)


def test_a_broken_seq_file(root):
    (root / "frames" / "run" / "run_00_01.seq").write_bytes(b"half")
    refused(root, r".seq files that cannot be read: .*run_00_01.seq is no .seq file")
    tree = load_tree(root, skip_unreadable=True)
    assert len(tree) == 13
    assert "is no .seq file" in tree.excluded[0]


# --- Real data


def test_real_annotations_of_olympic_sports(shared_data):
    root = shared_data / "olympic_sports"
    tree = load_tree(root, require_frames=False)
    assert (len(tree), len(tree.categories), tree.num_anchors) == (113_516, 16, 1033)
    assert len(tree.sequence_names) == 525
    assert tree.boxes.shape == (113_516, 4)
    with h5py.File(root / "labels_hdf5" / "labels_triple_jump.hdf5") as file:
        assert tree.frames_of("triple_jump").start == file.attrs["category_offset"] == 102_614
        anchors, flips = file["anchors"][()], file["pos_flipvals"][5]
    assert (tree.dataset_labels()["triple_jump"].anchors == anchors + 102_614).all()
    np.testing.assert_array_equal(tree.labels["triple_jump"].pos_flips[5], flips.astype(bool))
    place = tree.names.index("BJHi-GQg4mY_00440_00715/I00140.png")
    assert tree.boxes[place].tolist() == [258, 78, 417, 316]  # the line of frame 141
    assert tree.source_names[tree.sources[place]] == "BJHi-GQg4mY"
    refused(root, r"1 problem:\n- no frames")


def test_real_postures(shared_data):
    tree = load_tree(shared_data / "jhmdb_postures")
    assert (len(tree), len(tree.categories), tree.num_anchors) == (16_003, 21, 1250)
    assert (len(tree.sequence_names), len(tree.source_names)) == (928, 410)
    assert tree.joints.shape == (16_003, 15, 2)
    frames = OlympicFrames(tree)
    for i in np.random.default_rng(0).integers(0, len(tree), 20):
        assert frames[int(i)].size == (96, 96)
    for labels in tree.dataset_labels().values():
        for anchor, pos in zip(labels.anchors, labels.pos_ids, strict=True):
            assert (tree.sources[pos] != tree.sources[anchor]).all()
