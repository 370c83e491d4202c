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

import h5py
import numpy as np
import pytest
import torchvision.datasets  # noqa: F401 - not while memory is counted
from class_trees import write_omniglot
from olympic_trees import make_tree
from pose_trees import leaning, write_crops
from scipy.io import savemat
from voc_trees import note_of, write_voc

from benchmarks.data.files import read_arrays, read_matlab
from benchmarks.data.mpii import load_mpii
from benchmarks.data.olympic import TreeError, load_tree
from benchmarks.data.poses import load_lsp
from benchmarks.data.voc import load_voc
from benchmarks.data.zero_shot import load
from pml_posets.data.datasets import UnreadableImageError

HUGE = 10**12
IDS = h5py.vlen_dtype("i4")


@contextlib.contextmanager
def refused(error, text, most=60e6):
    """See that this error comes before more than `most` bytes are allocated."""
    tracemalloc.start()
    try:
        with pytest.raises(error, match=text):
            yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def write_claim(path, shape, num_bytes=0):
    """An .npz file whose joints claim a shape, and hold so many bytes of zeros."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("joints.npy", header.getvalue() + bytes(num_bytes))


def replaced(path, folder):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.mkdir() if folder else path.write_text("nothing")


# --- Trees in the Olympic Sports layout; each harm is a function of the tree's root


@pytest.fixture
def root(tmp_path):
    return make_tree(tmp_path / "tree", boxes=True, joints=True)


def labels(key, **content):
    """Another data set of the label file, or a group."""

    def harm(root):
        with h5py.File(root / "labels_hdf5" / "labels_run.hdf5", "a") as file:
            del file[key]
            file.create_dataset(key, **content) if content else file.create_group(key)

    return harm


def text(name, old, new):
    """Another word in a text file."""

    def harm(root):
        assert old in (root / name).read_text()
        (root / name).write_text((root / name).read_text().replace(old, new))

    return harm


def frame(name):
    return text("image_pathes/imagePaths_run.txt", "./run_00_00/I00001.png", name)


def box(line):
    return text("bboxes/run/run_00_00.bb", "2\t3\t5\t12\t24", line)


def archive(name, size=0, kind=tarfile.REGTYPE, times=1):
    """Members of a name, each of so many zeros (a multiple of 512), in place of the boxes."""

    def harm(root):
        info = tarfile.TarInfo(name)
        info.size, info.type = size, kind
        shutil.rmtree(root / "bboxes")
        (root / "bboxes.tgz").write_bytes(gzip.compress((info.tobuf() + bytes(size)) * times, 1))

    return harm


def other(name, folder):
    return lambda root: replaced(root / name, folder)


def joints(*claim):
    return lambda root: write_claim(root / "joints" / "joints_run.npz", *claim)


CLAIM = {"chunks": (64,), "shape": (HUGE,)}
NO_SET = "label files without all their data sets: labels_run.hdf5"
NO_LABELS = "label files that cannot be read .*labels_run.hdf5"
NO_FIT = "content does not fit together: labels_run.hdf5"
LINES = "lines of frame lists are not of the form .*imagePaths_run.txt line 2"
NO_FRAMES = "neither a folder of frames nor a .seq file:"
BEYOND = r"boxes beyond any frame: run/run_00_00.bb \(frame 2\)"
NO_ARCHIVE = "archives of boxes that cannot be read: bboxes.tgz"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (labels("pos_ids"), rf"{NO_SET} \(pos_ids is a group\)"),
        (labels("anchors"), rf"{NO_SET} \(anchors is a group\)"),
        (labels("anchors", dtype="i4", **CLAIM), rf"{NO_LABELS} \(/anchors claims 4000000000000 bytes"),
        (labels("neg_ids", dtype=IDS, **CLAIM), rf"{NO_LABELS} \(/neg_ids claims"),
        (
            labels("anchors", shape=(2,), dtype="i4", chunks=(10**8,), maxshape=(None,)),
            rf"{NO_LABELS} \(/anchors claims 400000000 bytes",
        ),
        (labels("anchors", data=h5py.Empty("i4")), "labels_run.hdf5"),
        (labels("anchors", data=3), "labels_run.hdf5"),
        (labels("pos_ids", data=["a", "b"]), NO_FIT),
        (labels("anchors", data=np.uint64([0, 2**63])), f"{NO_FIT} .*fit int64"),
        (other("labels_hdf5/labels_run.hdf5", True), NO_LABELS),
        (frame(f"./run_00_00/I{'9' * 5000}.png"), LINES),
        (frame(f"./{'x' * 300}/I00001.png"), f"{NO_FRAMES} xxx"),
        (frame("./a\0b/I00001.png"), f"{NO_FRAMES} a"),
        (other("image_pathes/imagePaths_run.txt", True), "frame lists that cannot be read"),
        (other("bboxes/run/run_00_00.bb", True), "box files that cannot be read: run/run_00_00.bb"),
        (other("bboxes", False), "bboxes is no folder"),
        (box("2\t3\t5\t12\t1e300"), BEYOND),
        (box("2\t3\t5\t12\t999999"), BEYOND),
        (box(f"2\t3\t5\t12\t{'9' * 400}"), "not five numbers: run/run_00_00.bb"),
        (box("2\t3\t5\t12\t24\n" * 10**4), "too large for their sequences: run/run_00_00.bb"),
        (archive("bboxes/run/run_00_00.bb", 2**26), "too large for their sequences: run/run_00_00.bb"),
        (archive("more", 2**26), f"{NO_ARCHIVE}.*it unpacks to more than"),
        (archive("x", 2**23, tarfile.XHDTYPE), f"{NO_ARCHIVE}.*it unpacks to more than"),
        (archive("x", times=9000), f"{NO_ARCHIVE}.*it unpacks to more than"),
        (lambda root: (root / "bboxes").rename(root / "bboxes.tgz"), NO_ARCHIVE),
        (joints((12, HUGE, 2)), "claims the shape"),
        (joints((12, 10**6, 2), 96 * 10**6), "cannot be read: joints_run.npz .*unpacks to more"),
        (
            lambda root: np.savez(root / "joints" / "joints_run.npz", joints=np.full((12, 4, 2), "x")),
            "other than finite numbers or NaN: joints_run.npz",
        ),
        (other("joints", False), "categories without joints"),
        (other("joints/joints_run.npz", True), "categories without joints.*joints_run.npz"),
    ],
)
def test_damaged_trees(root, harm, message):
    harm(root)
    with refused(TreeError, message):
        load_tree(root)


def test_lists_that_share_a_long_one(root):
    """Each of 4,000 anchors refers to the same 50,000 ids: a file of 300 kB that would unpack to 800 MB."""
    path = root / "labels_hdf5" / "labels_run.hdf5"
    with h5py.File(path, "w") as file:
        file["anchors"] = np.zeros(4000, np.int32)
        for key in ("pos_ids", "neg_ids", "pos_flipvals", "neg_flipvals"):
            file.create_dataset(key, (4000,), IDS)[0] = np.zeros(50_000, np.int32)
    data = bytearray(path.read_bytes())
    at = 0
    while (at := data.find(struct.pack("<I", 50_000), at)) >= 0:
        rest = data[at + 16 : at + 16 * 4000]
        if len(rest) == 16 * 3999 and not any(rest):
            data[at : at + 16 * 4000] = data[at : at + 16] * 4000
        at += 4
    path.write_bytes(data)
    with refused(TreeError, "the lists of /pos_ids are longer than the file can hold"):
        load_tree(root)


def test_boxes_of_a_plain_archive_with_other_files(root):
    expected = load_tree(root).boxes
    with tarfile.open(root / "bboxes.tar", "w") as tar:
        info = tarfile.TarInfo("bboxes/run/._run_00_00.bb")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"\0\1\2\3"))
        tar.add(root / "bboxes", "bboxes")
    shutil.rmtree(root / "bboxes")
    np.testing.assert_array_equal(load_tree(root).boxes, expected)


# --- PASCAL VOC


@pytest.fixture
def voc(tmp_path):
    """The folder of two images with a dog each."""
    sets = {"trainval": {1: [("dog", (2, 3, 11, 22))]}, "test": {3: [("dog", (5, 5, 20, 20))]}}
    return write_voc(tmp_path, sets)


def read_voc(base, **options):
    return load_voc(base.parents[1], "2007", "trainval", "test", **options)


NOTE = "Annotations/000001.xml"
ENTITIES = "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 12))
LAUGHS = f"<!DOCTYPE a [<!ENTITY a0 'ha'>{ENTITIES}]><annotation>&a11;"


@pytest.mark.parametrize(
    "harm",
    [
        text(NOTE, "<annotation>", LAUGHS),
        text(NOTE, "<annotation>", "<?xml version='1.0' encoding='klingon'?><annotation>"),
        text(NOTE, "</annotation>", "</annotation>" + " " * 10**6),
        text(NOTE, "<bndbox>", "<bndbox"),
        text(NOTE, "<xmin>2</xmin>", ""),
        *(text(NOTE, "<xmin>2<", f"<xmin>{number}<") for number in ("two", "nan", "inf", "9" * 5000)),
        *(text(NOTE, "<width>40<", f"<width>{number}<") for number in ("wide", "9" * 5000)),
        text(NOTE, "<name>dog<", "<name><"),
        other(NOTE, True),
    ],
)
def test_damaged_annotations_of_voc(voc, harm):
    harm(voc)
    for skip in (False, True):
        with refused(ValueError, r"the annotation .*000001\.xml is damaged \(.*\): unpack it again"):
            read_voc(voc, skip_unreadable=skip)


def test_damaged_image_sets_of_voc(voc):
    (voc / "ImageSets" / "Main" / "test.txt").write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match=r"the image set test of PASCAL VOC 2007 in .* is damaged"):
        read_voc(voc)
    replaced(voc / "ImageSets" / "Main" / "test.txt", True)
    with pytest.raises(FileNotFoundError, match="PASCAL VOC 2007 test is not in"):
        read_voc(voc)


@pytest.mark.parametrize("size", [None, (10**30, 10**30)])
def test_a_box_far_beyond_its_image(voc, size):
    (voc / "Annotations" / "000001.xml").write_text(note_of(1, [("dog", (1, 1, 10**9, 10**9))], size=size))
    data = read_voc(voc)
    with refused(UnreadableImageError, r"does not fit .*000001\.jpg of \(40, 30\)"):
        data.images[0]


# --- Omniglot


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"class_names": np.array("Latin/a")}, r"class_names must be a list, got \(\)"),
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


NO_ARRAYS = r"joints\.npz is damaged or no \.npz file"


@pytest.mark.parametrize(
    ("harm", "error", "text"),
    [
        (lambda path: write_claim(path, (HUGE, 14, 3)), ValueError, NO_ARRAYS),
        (lambda path: write_claim(path, (HUGE, 14, 3), 10**8), ValueError, NO_ARRAYS),
        (lambda path: np.savez(path, joints=np.array([{}], object)), ValueError, NO_ARRAYS),
        (lambda path: replaced(path, True), FileNotFoundError, "holds neither"),
        (
            lambda path: np.savez(path, joints=np.zeros((4, 14, 3)), joint_names=np.array("neck")),
            ValueError,
            r"the joints of .* are \('neck',\)",
        ),
    ],
)
def test_damaged_joints_of_leeds(tmp_path, harm, error, text):
    root = write_crops(tmp_path, leaning(4, 0), np.zeros((4, 14)))
    harm(root / "joints.npz")
    with refused(error, text):
        load_lsp(root)


@pytest.mark.parametrize("order", "<>")
def test_matlab_files_that_unpack_to_too_much(tmp_path, order):
    """A file of 100 kB whose one element unpacks to 100 MB."""
    packed = zlib.compress(struct.pack(f"{order}II", 14, 10**8) + bytes(10**8))
    mark = b"\x00\x01IM" if order == "<" else b"\x01\x00MI"
    head = b"MATLAB 5.0 MAT-file".ljust(124) + mark + struct.pack(f"{order}II", 15, len(packed))
    (tmp_path / "joints.mat").write_bytes(head + packed)
    with refused(ValueError, r"joints\.mat is damaged .*unpacks to more"):
        load_lsp(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 200, b"MATLAB 5.0".ljust(126) + b"IM" + b"\x0f\0\0\0\xff\xff\xff\xff"]
)
def test_matlab_files_that_are_none(tmp_path, content):
    (tmp_path / "a.mat").write_bytes(content)
    with refused(ValueError, r"a\.mat is damaged or no MATLAB file|holds no struct"):
        load_mpii(tmp_path / "a.mat", tmp_path)


def test_what_is_large_for_a_reason_is_read(tmp_path):
    """Noise does not shrink: the bound grows with the file."""
    noise = np.random.default_rng(0).integers(0, 256, 10**6, np.uint8)
    np.savez_compressed(tmp_path / "a.npz", noise=noise, zeros=np.zeros(2 * 10**7, np.uint8))
    arrays = read_arrays(tmp_path / "a.npz", ("noise",), ("zeros", "ones"))
    np.testing.assert_array_equal(arrays["noise"], noise)
    assert set(arrays) == {"noise", "zeros"}
    savemat(tmp_path / "a.mat", {"noise": noise}, do_compression=True)
    np.testing.assert_array_equal(read_matlab(tmp_path / "a.mat")["noise"][0], noise)


def test_matlab_files_that_end_their_reader(tmp_path, monkeypatch):
    """scipy follows damaged tags out of its memory: the process that reads is another than ours."""
    path, joints = tmp_path / "joints.mat", leaning(3, 0)
    savemat(path, {"joints": joints, "RELEASE": {"annolist": {"image": [{"name": "a"}] * 9}}})
    good = path.read_bytes()
    found = read_matlab(path, struct_as_record=False, squeeze_me=True)
    np.testing.assert_array_equal(found["joints"], joints)
    assert found["RELEASE"].annolist.image[8].name == "a"
    for at in (2812, 2836):  # tags of the struct
        path.write_bytes(good[:at] + b"\xff\xff\xff\x7f" + good[at + 4 :])
        with contextlib.suppress(ValueError):  # in some places the damage goes unseen, or changes a value
            read_matlab(path)
    path.write_bytes(good[:136])
    with pytest.raises(ValueError, match=r"joints\.mat is damaged or no MATLAB file \(.*Error"):
        read_matlab(path)
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr("benchmarks.data.files._LOAD", kill)
    with pytest.raises(ValueError, match=r"joints\.mat is damaged .*its reader ended with status -11"):
        read_matlab(path)
