"""Frames of .seq files: raw and JPEG, odd padding, wrong counts, damage."""

import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from olympic_trees import picture, write_seq

from benchmarks.data.seq_files import SeqFile

PICTURES = [picture(20 * i, (36, 24)) for i in range(7)]


def gray(image):
    return np.asarray(image.convert("L").convert("RGB"))


@pytest.mark.parametrize("claimed", [7, 3, 500, 0])
def test_raw_color_and_mono(tmp_path, claimed):
    color = SeqFile(write_seq(tmp_path / "c.seq", PICTURES, 200, claimed=claimed))
    mono = SeqFile(write_seq(tmp_path / "m.seq", PICTURES, 100, claimed=claimed))
    assert len(color) == len(mono) == 7
    for i in (6, 0, 3):
        np.testing.assert_array_equal(np.asarray(color.read(i)), np.asarray(PICTURES[i]))
        np.testing.assert_array_equal(np.asarray(mono.read(i)), gray(PICTURES[i]))
    assert color.read(0).mode == mono.read(0).mode == "RGB"
    assert (color.width, color.height, color.truncated) == (36, 24, False)


@pytest.mark.parametrize("padding", [(10,), (2,), (0,), (10, 18, 0, 7, 300), (70_000, 65_520)])
@pytest.mark.parametrize("image_format", [201, 102])
def test_jpeg_with_any_padding(tmp_path, padding, image_format):
    file = SeqFile(write_seq(tmp_path / "j.seq", PICTURES, image_format, padding, claimed=2))
    assert len(file) == 7
    for i in (5, 1, 6):
        expected = np.asarray(PICTURES[i]) if image_format == 201 else gray(PICTURES[i])
        assert np.abs(np.asarray(file.read(i)).astype(int) - expected).max() <= 12
        assert file.read(i).mode == "RGB"


def test_every_place_of_a_start_within_a_block(tmp_path):
    # The search reads blocks of 65,536 bytes: starts at and around the border of two must not be missed.
    for pad in range(65_536 - 12, 65_536 + 4):
        file = SeqFile(write_seq(tmp_path / "j.seq", PICTURES[:2], 201, (pad,)))
        assert len(file) == 2, pad


def test_a_file_that_was_cut_off_keeps_its_whole_frames(tmp_path):
    jpeg = SeqFile(write_seq(tmp_path / "j.seq", PICTURES, 201, cut=200))
    raw = SeqFile(write_seq(tmp_path / "r.seq", PICTURES, 200, cut=200))
    assert len(jpeg) == len(raw) == 6
    assert jpeg.truncated
    assert raw.truncated
    # Only padding missing: nothing is lost.
    whole = SeqFile(write_seq(tmp_path / "p.seq", PICTURES, 200, cut=20))
    assert (len(whole), whole.truncated) == (7, False)


def test_another_header_size(tmp_path):
    file = SeqFile(write_seq(tmp_path / "h.seq", PICTURES, 200, header_size=8192))
    np.testing.assert_array_equal(np.asarray(file.read(2)), np.asarray(PICTURES[2]))


def test_copies_into_other_processes(tmp_path):
    file = pickle.loads(pickle.dumps(SeqFile(write_seq(tmp_path / "c.seq", PICTURES, 200))))
    np.testing.assert_array_equal(np.asarray(file.read(4)), np.asarray(PICTURES[4]))


def test_errors(tmp_path):
    path = write_seq(tmp_path / "c.seq", PICTURES, 200)
    file = SeqFile(path)
    with pytest.raises(IndexError, match="frames 0 to 6, asked for 7"):
        file.read(7)
    data = bytearray(path.read_bytes())

    def altered(offset, value):
        copy = bytearray(data)
        struct.pack_into("<I", copy, offset, value)
        (tmp_path / "x.seq").write_bytes(copy)
        return tmp_path / "x.seq"

    with pytest.raises(ValueError, match=r"no .seq file"):
        SeqFile(altered(0, 1))
    with pytest.raises(ValueError, match=r"damaged .seq header"):
        SeqFile(altered(32, 10**8))
    with pytest.raises(ValueError, match="image format 1 is not one of"):
        SeqFile(altered(568, 1))
    with pytest.raises(ValueError, match="16 bits a pixel, expected 24"):
        SeqFile(altered(556, 16))
    with pytest.raises(ValueError, match="cannot hold"):
        SeqFile(altered(580, 100))
    (tmp_path / "x.seq").write_bytes(data[:300])
    with pytest.raises(ValueError, match=r"no .seq file"):
        SeqFile(tmp_path / "x.seq")
    (tmp_path / "x.seq").write_bytes(data[:1200])
    with pytest.raises(ValueError, match="no whole frame"):
        SeqFile(tmp_path / "x.seq")
    path.write_bytes(data[:2000])
    with pytest.raises(ValueError, match="has become shorter"):
        file.read(6)
    with pytest.raises(FileNotFoundError):
        SeqFile(tmp_path / "none.seq")


def test_a_jpeg_that_cannot_be_decoded(tmp_path):
    path = write_seq(tmp_path / "j.seq", PICTURES, 201)
    file = SeqFile(path)
    data = bytearray(path.read_bytes())
    start = file.offsets[2]
    (length,) = struct.unpack_from("<I", data, start - 4)
    data[start + 3 : start + length - 4] = bytes(length - 7)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="frame 2 cannot be decoded"):
        SeqFile(path).read(2)
    assert SeqFile(path).read(3).size == (36, 24)


def test_the_index_of_tiny_frames_takes_no_memory(tmp_path):
    path = write_seq(tmp_path / "t.seq", [picture(7, (1, 1))] * 2, 100, raw_padding=0)
    path.write_bytes(path.read_bytes()[:1024] + bytes(7 * 2_000_000))
    tracemalloc.start()
    file = SeqFile(path)
    assert len(file) == 2_000_000
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    assert file.read(1_999_999).size == (1, 1)


def test_the_index_of_tiny_jpegs_takes_less_memory_than_they(tmp_path):
    path = write_seq(tmp_path / "j.seq", PICTURES[:1], 201)
    tiny = struct.pack("<I", 9) + b"\xff\xd8\xff\0\0" + bytes(6)  # claims nothing but a start
    path.write_bytes(path.read_bytes()[:1024] + tiny * 20_000)
    tracemalloc.start()
    file = SeqFile(path)
    assert tracemalloc.get_traced_memory()[1] < file.size
    tracemalloc.stop()
    assert len(file) == 20_000
    with pytest.raises(ValueError, match="frame 3 cannot be decoded"):
        file.read(3)


def test_a_jpeg_larger_than_the_header_says_is_not_decoded(tmp_path):
    path = write_seq(tmp_path / "j.seq", [picture(0, (36, 24)), picture(0, (3000, 2000))], 201)
    with pytest.raises(ValueError, match=r"frame 1 cannot be decoded: it is \(3000, 2000\), the header says"):
        SeqFile(path).read(1)
    huge = bytearray(path.read_bytes())
    at = huge.index(b"\xff\xc0")  # the sizes of the first frame
    huge[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    path.write_bytes(huge)
    with pytest.raises(ValueError, match="frame 0 cannot be decoded"):
        SeqFile(path).read(0)
