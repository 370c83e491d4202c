"""Damaged and hostile files: one error that names the file, and no more memory than its size allows."""

import contextlib
import gzip
import io
import shutil
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from contextlib import contextmanager

import h5py
import numpy as np
import pytest
import torchvision.datasets  # noqa: F401 - not while memory is counted
from class_trees import write_omniglot
from olympic_trees import make_tree, picture
from pose_trees import leaning, write_crops
from scipy.io import savemat
from voc_trees import note_of, write_voc

from benchmarks.data.files import read_arrays, read_matlab
from benchmarks.data.labeled_images import load_folder
from benchmarks.data.mpii import load_mpii
from benchmarks.data.olympic import TreeError, load_tree
from benchmarks.data.poses import load_lsp
from benchmarks.data.voc import load_voc
from benchmarks.data.zero_shot import load
from pml_posets.data.datasets import UnreadableImageError

HUGE = 10**12


@contextmanager
def little_memory(most=60e6):
    """See that no more than `most` bytes are allocated."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def write_claim(path, name, shape, num_bytes=0):
    """An .npz file whose array claims a shape, and holds so many bytes of zeros."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", header.getvalue() + bytes(num_bytes))


# --- Trees in the Olympic Sports layout


@pytest.fixture
def root(tmp_path):
    return make_tree(tmp_path / "tree", boxes=True, joints=True)


def change_labels(root, key, make):
    with h5py.File(root / "labels_hdf5" / "labels_run.hdf5", "a") as file:
        del file[key]
        make(file)


def frame_list(root, name):
    path = root / "image_pathes" / "imagePaths_run.txt"
    path.write_text(path.read_text().replace("./run_00_00/I00001.png", name))


def box_file(root, text=None):
    path = root / "bboxes" / "run" / "run_00_00.bb"
    if text is not None:
        return path.write_text(path.read_text().replace("2\t3\t5\t12\t24", text))
    path.unlink()
    return path.mkdir()


def replaced(path, folder):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.mkdir() if folder else path.write_text("nothing")


def archive_of(root, fill):
    shutil.rmtree(root / "bboxes")
    with tarfile.open(root / "bboxes.tar.gz", "w:gz", compresslevel=1) as tar:
        fill(tar)


def member(name, size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info


def many_members(root):
    shutil.rmtree(root / "bboxes")
    (root / "bboxes.tgz").write_bytes(gzip.compress(member("x", 0).tobuf() * 40_000, 1))


CLAIM = {"chunks": (64,), "shape": (HUGE,)}
RUN = "bboxes/run/run_00_00.bb"
NO_SET = "label files without all their data sets"
LINES = "lines of frame lists are not of the form"


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (
            lambda r: change_labels(r, "pos_ids", lambda f: f.create_group("pos_ids")),
            rf"{NO_SET}: labels_run.hdf5 \(pos_ids is a group\)",
        ),
        (
            lambda r: change_labels(r, "anchors", lambda f: f.create_group("anchors/more")),
            rf"{NO_SET}: labels_run.hdf5 \(anchors is a group\)",
        ),
        (
            lambda r: change_labels(r, "anchors", lambda f: f.create_dataset("anchors", dtype="i4", **CLAIM)),
            r"cannot be read .*labels_run.hdf5 \(/anchors claims 4000000000000 bytes",
        ),
        (
            lambda r: change_labels(
                r,
                "neg_ids",
                lambda f: f.create_dataset("neg_ids", dtype=h5py.vlen_dtype("i4"), **CLAIM),
            ),
            r"cannot be read .*labels_run.hdf5 \(/neg_ids claims",
        ),
        (
            lambda r: change_labels(
                r,
                "anchors",
                lambda f: f.create_dataset("anchors", (2,), "i4", chunks=(10**8,), maxshape=(None,)),
            ),
            r"cannot be read .*labels_run.hdf5 \(/anchors claims 400000000 bytes",
        ),
        (
            lambda r: change_labels(
                r, "anchors", lambda f: f.create_dataset("anchors", data=h5py.Empty("i4"))
            ),
            "labels_run.hdf5",
        ),
        (
            lambda r: change_labels(r, "anchors", lambda f: f.create_dataset("anchors", data=3)),
            "labels_run.hdf5",
        ),
        (
            lambda r: change_labels(r, "pos_ids", lambda f: f.create_dataset("pos_ids", data=["a", "b"])),
            "content does not fit together: labels_run.hdf5",
        ),
        (
            lambda r: change_labels(
                r, "anchors", lambda f: f.create_dataset("anchors", data=np.uint64([0, 2**63]))
            ),
            "content does not fit together: labels_run.hdf5 .*fit int64",
        ),
        (lambda r: replaced(r / "labels_hdf5" / "labels_run.hdf5", True), "cannot be read .*labels_run.hdf5"),
        (lambda r: frame_list(r, f"./run_00_00/I{2**64}.png"), f"{LINES} .*imagePaths_run.txt line 2"),
        (lambda r: frame_list(r, f"./run_00_00/I{'9' * 5000}.png"), f"{LINES} .*imagePaths_run.txt line 2"),
        (
            lambda r: frame_list(r, f"./{'x' * 300}/I00001.png"),
            "neither a folder of frames nor a .seq file: xxx",
        ),
        (lambda r: frame_list(r, "./a\0b/I00001.png"), "neither a folder of frames nor a .seq file: a"),
        (
            lambda r: replaced(r / "image_pathes" / "imagePaths_run.txt", True),
            "frame lists that cannot be read",
        ),
        (box_file, "box files that cannot be read: run/run_00_00.bb"),
        (lambda r: replaced(r / "bboxes", False), "bboxes is no folder"),
        (
            lambda r: (shutil.rmtree(r / "bboxes"), replaced(r / "bboxes.tar.gz", True)),
            "archives of boxes that cannot be read: bboxes.tar.gz",
        ),
        (
            lambda r: box_file(r, "2\t3\t5\t12\t1e300"),
            r"boxes beyond any frame: run/run_00_00.bb \(frame 2\)",
        ),
        (
            lambda r: box_file(r, "2\t3\t5\t12\t999999"),
            r"boxes beyond any frame: run/run_00_00.bb \(frame 2\)",
        ),
        (lambda r: box_file(r, f"2\t3\t5\t12\t{'9' * 400}"), "not five numbers: run/run_00_00.bb"),
        (
            lambda r: box_file(r, "2\t3\t5\t12\t24\n" * 10**4),
            "too large for their sequences: run/run_00_00.bb",
        ),
        (
            lambda r: archive_of(r, lambda tar: tar.addfile(member(RUN, 10**8), io.BytesIO(bytes(10**8)))),
            "too large for their sequences: run/run_00_00.bb",
        ),
        (
            lambda r: archive_of(r, lambda tar: tar.addfile(member("more", 10**8), io.BytesIO(bytes(10**8)))),
            "archives of boxes that cannot be read: bboxes.t.*it unpacks to more than",
        ),
        (
            lambda r: archive_of(
                r, lambda tar: tar.addfile(member("x", 10**7, tarfile.XHDTYPE), io.BytesIO(bytes(10**7)))
            ),
            "archives of boxes that cannot be read: bboxes.t.*it unpacks to more than",
        ),
        (
            lambda r: many_members(r),
            "archives of boxes that cannot be read: bboxes.t.*it unpacks to more than",
        ),
        (lambda r: write_claim(r / "joints" / "joints_run.npz", "joints", (12, HUGE, 2)), "claims the shape"),
        (
            lambda r: write_claim(r / "joints" / "joints_run.npz", "joints", (12, 10**6, 2), 96 * 10**6),
            "joint files that cannot be read: joints_run.npz .*unpacks to more",
        ),
        (
            lambda r: np.savez(r / "joints" / "joints_run.npz", joints=np.full((12, 4, 2), "x")),
            "other than finite numbers or NaN: joints_run.npz",
        ),
        (lambda r: replaced(r / "joints", False), "categories without joints"),
        (
            lambda r: replaced(r / "joints" / "joints_run.npz", True),
            "categories without joints.*joints_run.npz",
        ),
    ],
)
def test_damaged_trees(root, harm, text):
    harm(root)
    with little_memory(), pytest.raises(TreeError, match=text):
        load_tree(root)


def test_lists_that_share_a_long_one(root):
    """Each of 4,000 anchors refers to the same 50,000 ids: a file of 300 kB that would unpack to 800 MB."""
    with h5py.File(root / "labels_hdf5" / "labels_run.hdf5", "w") as file:
        file["anchors"] = np.zeros(4000, np.int32)
        for key in ("pos_ids", "neg_ids", "pos_flipvals", "neg_flipvals"):
            file.create_dataset(key, (4000,), h5py.vlen_dtype("i4"))[0] = np.zeros(50_000, np.int32)
    path = root / "labels_hdf5" / "labels_run.hdf5"
    data = bytearray(path.read_bytes())
    first = struct.pack("<I", 50_000)
    at = 0
    while (at := data.find(first, at)) >= 0:
        reference, rest = bytes(data[at : at + 16]), data[at + 16 : at + 16 * 4000]
        if len(rest) == 16 * 3999 and not any(rest):
            data[at : at + 16 * 4000] = reference * 4000
        at += 4
    path.write_bytes(data)
    with (
        little_memory(),
        pytest.raises(TreeError, match="the lists of /pos_ids are longer than the file can hold"),
    ):
        load_tree(root)


def test_boxes_of_a_plain_archive_with_other_files(root):
    expected = load_tree(root).boxes
    with tarfile.open(root / "bboxes.tar", "w") as tar:
        tar.addfile(member("bboxes/run/._run_00_00.bb", 4), io.BytesIO(b"\0\1\2\3"))
        tar.add(root / "bboxes", "bboxes")
    shutil.rmtree(root / "bboxes")
    np.testing.assert_array_equal(load_tree(root).boxes, expected)


# --- PASCAL VOC


def voc_note(root, change):
    note = root / "VOCdevkit" / "VOC2007" / "Annotations" / "000001.xml"
    note.write_text(change(note.read_text()))


LAUGHS = (
    "<!DOCTYPE a [<!ENTITY a0 'ha'>"
    + "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 12))
    + "]><annotation>&a11;</annotation>"
)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: LAUGHS,
        lambda text: f"<?xml version='1.0' encoding='klingon'?>{text}",
        lambda text: text + " " * 10**6,
        lambda text: text.replace("<xmin>2</xmin>", f"<xmin>{'9' * 5000}</xmin>"),
        lambda text: text.replace("<width>40</width>", f"<width>{'9' * 5000}</width>"),
    ],
)
def test_damaged_annotations_of_voc(tmp_path, change):
    sets = {"trainval": {1: [("dog", (2, 3, 11, 22))]}, "test": {3: [("dog", (5, 5, 20, 20))]}}
    write_voc(tmp_path, sets)
    voc_note(tmp_path, change)
    with little_memory(), pytest.raises(ValueError, match=r"the annotation .*000001\.xml is damaged"):
        load_voc(tmp_path, "2007", "trainval", "test")


def test_folders_in_place_of_files_of_voc(tmp_path):
    sets = {"trainval": {1: [("dog", (2, 3, 11, 22))]}, "test": {3: [("dog", (5, 5, 20, 20))]}}
    base = write_voc(tmp_path, sets)
    replaced(base / "Annotations" / "000001.xml", True)
    with pytest.raises(ValueError, match=r"the annotation .*000001\.xml is damaged"):
        load_voc(tmp_path, "2007", "trainval", "test")
    (base / "ImageSets" / "Main" / "test.txt").write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match=r"the image set test of PASCAL VOC 2007 in .* is damaged"):
        load_voc(tmp_path, "2007", "trainval", "test")
    replaced(base / "ImageSets" / "Main" / "test.txt", True)
    with pytest.raises(FileNotFoundError, match="PASCAL VOC 2007 test is not in"):
        load_voc(tmp_path, "2007", "trainval", "test")


@pytest.mark.parametrize("size", [None, (10**30, 10**30)])
def test_a_box_far_beyond_its_image(tmp_path, size):
    sets = {"trainval": {1: [("dog", (2, 3, 11, 22))]}, "test": {3: [("dog", (5, 5, 20, 20))]}}
    write_voc(tmp_path, sets)
    voc_note(tmp_path, lambda text: note_of(1, [("dog", (1, 1, 10**9, 10**9))], size=size))
    data = load_voc(tmp_path, "2007", "trainval", "test")
    with (
        little_memory(),
        pytest.raises(UnreadableImageError, match=r"does not fit .*000001\.jpg of \(40, 30\)"),
    ):
        data.images[0]


# --- Folders with labels.csv, Omniglot


@pytest.mark.parametrize(
    ("content", "error", "text"),
    [
        (b"file,class\n1.png,\xff\xfe\n", ValueError, r"labels\.csv is damaged or no table"),
        (b"file,class\n1.png," + b"c" * 140_000, ValueError, r"labels\.csv is damaged or no table"),
        (b"file,class\n" + b"x" * 300 + b",cat\n", FileNotFoundError, r"line 2 of .*labels\.csv names xxx"),
        (b"file,class\na\0b,cat\n", (FileNotFoundError, ValueError), r"labels\.csv"),
        (b"\0" * 1000, ValueError, r"labels\.csv"),
    ],
)
def test_damaged_lists(tmp_path, content, error, text):
    picture(0).save(tmp_path / "1.png")
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(error, match=text):
        load_folder(tmp_path, "images")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"class_names": np.array("Latin/a")}, r"class_names must be a list, got \(\)"),
        ({"class_names": np.array([["Latin/a", "b"]])}, "class_names must be a list"),
        ({"shape": np.array(105)}, r"packed of .* must be \(N, H, ceil\(W / 8\)\) uint8 for W = 105"),
        ({"shape": np.array([16, 40, -3])}, "packed of"),
        ({"shape": np.array(["a"])}, "packed of"),
        ({"packed": np.zeros((16, 40), np.uint8)}, "packed of"),
        ({"packed": np.zeros((16, 40, 5))}, "packed of"),
        ({"labels": np.full(16, 0.5)}, r"labels of .* must have shape \(16,\), got \(16,\) float64"),
        ({"evaluation": np.array(["yes"] * 16)}, "evaluation of .* must have shape"),
        ({"names": np.arange(16)}, "names of .* must have shape"),
        ({"names": np.array([None] * 16)}, "is damaged or no .npz file .*allow_pickle"),
        ({"labels": np.full(16, -1)}, r"labels of .* must be in 0\.\.3"),
    ],
)
def test_damaged_omniglot(tmp_path, changes, text):
    write_omniglot(tmp_path / "omniglot.npz", **changes)
    with pytest.raises(ValueError, match=text):
        load("omniglot", tmp_path)


# --- People


def test_joints_that_are_no_list_of_names(tmp_path):
    root = write_crops(tmp_path, leaning(4, 0), np.zeros((4, 14)))
    np.savez(root / "joints.npz", joints=np.zeros((4, 14, 3)), joint_names=np.array("neck"))
    with pytest.raises(ValueError, match=r"the joints of .* are \('neck',\)"):
        load_lsp(root)


@pytest.mark.parametrize("harm", ["claim", "bomb", "folder", "pickle"])
def test_damaged_joints_of_leeds(tmp_path, harm):
    root = write_crops(tmp_path, leaning(4, 0), np.zeros((4, 14)))
    path = root / "joints.npz"
    if harm == "folder":
        replaced(path, True)
        with pytest.raises(FileNotFoundError, match="holds neither"):
            load_lsp(root)
        return
    if harm == "pickle":
        np.savez(path, joints=np.array([{}], object))
    else:
        write_claim(path, "joints", (HUGE, 14, 3), 0 if harm == "claim" else 10**8)
    with little_memory(), pytest.raises(ValueError, match=r"joints\.npz is damaged or no \.npz file"):
        load_lsp(root)


def bomb(path, order):
    """A .mat file of 100 kB whose one element unpacks to 100 MB."""
    packed = zlib.compress(struct.pack(f"{order}II", 14, 10**8) + bytes(10**8))
    mark = b"\x00\x01IM" if order == "<" else b"\x01\x00MI"
    path.write_bytes(
        b"MATLAB 5.0 MAT-file".ljust(124) + mark + struct.pack(f"{order}II", 15, len(packed)) + packed
    )
    return path


@pytest.mark.parametrize("order", "<>")
def test_matlab_files_that_unpack_to_too_much(tmp_path, order):
    path = bomb(tmp_path / "joints.mat", order)
    (tmp_path / "images").mkdir()
    for read in (lambda: load_lsp(tmp_path), lambda: load_mpii(path, tmp_path / "images")):
        with little_memory(), pytest.raises(ValueError, match=r"joints\.mat is damaged .*unpacks to more"):
            read()


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 200, b"MATLAB 5.0".ljust(126) + b"IM" + b"\x0f\0\0\0\xff\xff\xff\xff"]
)
def test_matlab_files_that_are_none(tmp_path, content):
    (tmp_path / "a.mat").write_bytes(content)
    with (
        little_memory(),
        pytest.raises(ValueError, match=r"a\.mat is damaged or no MATLAB file|holds no struct"),
    ):
        load_mpii(tmp_path / "a.mat", tmp_path)


def test_what_is_large_for_a_reason_is_read(tmp_path):
    """Noise does not shrink: the bound grows with the file."""
    noise = np.random.default_rng(0).integers(0, 256, 2_000_000, np.uint8)
    np.savez_compressed(tmp_path / "a.npz", noise=noise, zeros=np.zeros(3 * 10**7, np.uint8))
    arrays = read_arrays(tmp_path / "a.npz", ("noise",), ("zeros", "ones"))
    np.testing.assert_array_equal(arrays["noise"], noise)
    assert set(arrays) == {"noise", "zeros"}
    savemat(tmp_path / "a.mat", {"noise": noise}, do_compression=True)
    np.testing.assert_array_equal(read_matlab(tmp_path / "a.mat")["noise"][0], noise)


def test_a_matlab_file_that_ends_its_reader(tmp_path):
    """scipy follows damaged tags out of its memory: the process that reads is another than ours."""
    path, joints = tmp_path / "joints.mat", leaning(3, 0)
    savemat(path, {"joints": joints, "RELEASE": {"annolist": {"image": [{"name": "a"}] * 9}}})
    good = path.read_bytes()
    np.testing.assert_array_equal(read_matlab(path)["joints"], joints)
    assert read_matlab(path, struct_as_record=False, squeeze_me=True)["RELEASE"].annolist.image[8].name == "a"
    for at in (2812, 2820, 2836, 2900):  # tags of the struct
        path.write_bytes(good[:at] + b"\xff\xff\xff\x7f" + good[at + 4 :])
        with contextlib.suppress(ValueError):  # in some places the damage goes unseen, or changes a value
            read_matlab(path)
    path.write_bytes(good[:136])
    with pytest.raises(ValueError, match=r"joints\.mat is damaged or no MATLAB file \(.*Error"):
        read_matlab(path)


def test_a_reader_that_is_killed(tmp_path, monkeypatch):
    savemat(tmp_path / "a.mat", {"a": 1})
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr("benchmarks.data.files._LOAD", kill)
    with pytest.raises(ValueError, match=r"a\.mat is damaged .*its reader ended with status -11"):
        read_matlab(tmp_path / "a.mat")
