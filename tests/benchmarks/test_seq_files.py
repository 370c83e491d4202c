"""Frames of .seq files: raw and JPEG, odd padding, wrong counts, damage."""

import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from olympic_trees import picture, write_seq

from benchmarks.data.seq_files import SeqFile

PICTURES = [picture(20 * i, (36, 24)) for i in range(7)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "video.seq"


def gray(image):
    return np.asarray(image.convert("L").convert("RGB"))


@pytest.mark.parametrize("claimed", [7, 3, 500, 0])
@pytest.mark.parametrize(("image_format", "expected"), [(200, np.asarray), (100, gray)])
def test_raw_color_and_mono(path, claimed, image_format, expected):
    file = SeqFile(write_seq(path, PICTURES, image_format, claimed=claimed, header_size=1024 + claimed))
    assert (len(file), file.width, file.height) == (7, 36, 24)
    copied = pickle.loads(pickle.dumps(file))  # into another process
    for i in (6, 0, 3):
        assert file.read(i).mode == "RGB"
        np.testing.assert_array_equal(np.asarray(copied.read(i)), expected(PICTURES[i]))


@pytest.mark.parametrize("padding", [(10,), (2,), (0,), (10, 18, 0, 7, 300), (70_000, 65_520)])
@pytest.mark.parametrize(("image_format", "expected"), [(201, np.asarray), (102, gray)])
def test_jpeg_with_any_padding(path, padding, image_format, expected):
    file = SeqFile(write_seq(path, PICTURES, image_format, padding, claimed=2))
    assert len(file) == 7
    for i in (5, 1, 6):
        assert np.abs(np.asarray(file.read(i)).astype(int) - expected(PICTURES[i])).max() <= 12
        assert file.read(i).mode == "RGB"


def test_every_place_of_a_start_within_a_block(path):
    # The search reads blocks of 65,536 bytes: starts at and around the border of two must not be missed.
    for pad in range(65_536 - 12, 65_536 + 4):
        assert len(SeqFile(write_seq(path, PICTURES[:2], 201, (pad,)))) == 2, pad


@pytest.mark.parametrize(
    ("image_format", "cut", "count"),
    [(201, 200, 6), (200, 200, 6), (200, 20, 7)],  # only padding missing: nothing is lost
)
def test_a_file_that_was_cut_off_keeps_its_whole_frames(path, image_format, cut, count):
    assert len(SeqFile(write_seq(path, PICTURES, image_format, cut=cut))) == count


@pytest.mark.parametrize(
    ("offset", "value", "size", "text"),
    [
        (0, 1, None, "no .seq file"),
        (32, 10**8, None, "damaged .seq header"),
        (568, 1, None, "image format 1 is not one of"),
        (556, 16, None, "16 bits a pixel, expected 24"),
        (580, 100, None, "cannot hold"),
        (0, 0xFEED, 300, "no .seq file"),
        (0, 0xFEED, 1200, "no whole frame"),
    ],
)
def test_damaged_headers(path, offset, value, size, text):
    data = bytearray(write_seq(path, PICTURES, 200).read_bytes())
    struct.pack_into("<I", data, offset, value)
    path.write_bytes(data[:size])
    with pytest.raises(ValueError, match=text):
        SeqFile(path)


def test_frames_that_are_not_there(path):
    with pytest.raises(FileNotFoundError):
        SeqFile(path)
    file = SeqFile(write_seq(path, PICTURES, 200))
    for index in (-1, 7):
        with pytest.raises(IndexError, match=f"frames 0 to 6, asked for {index}"):
            file.read(index)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="has become shorter"):
        file.read(6)


def test_a_jpeg_that_cannot_be_decoded(path):
    file = SeqFile(write_seq(path, PICTURES, 201))
    data, start = bytearray(path.read_bytes()), file.offsets[2]
    (length,) = struct.unpack_from("<I", data, start - 4)
    data[start + 3 : start + length - 4] = bytes(length - 7)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="frame 2 cannot be decoded"):
        file.read(2)
    assert file.read(3).size == (36, 24)


TINY = struct.pack("<I", 9) + b"\xff\xd8\xff\0\0" + bytes(6)  # claims nothing but a start


@pytest.mark.parametrize(
    ("image_format", "content", "count", "share"),
    [(100, bytes(7), 2_000_000, 0.07), (201, TINY, 20_000, 1)],
)
def test_the_index_of_tiny_frames_takes_less_memory_than_they(path, image_format, content, count, share):
    header = write_seq(path, [picture(7, (1, 1))] * 2, image_format, raw_padding=0).read_bytes()[:1024]
    path.write_bytes(header + content * count)
    tracemalloc.start()
    file = SeqFile(path)
    assert tracemalloc.get_traced_memory()[1] < share * file.size
    tracemalloc.stop()
    assert len(file) == count
    if image_format == 100:
        assert file.read(count - 1).size == (1, 1)
    else:
        with pytest.raises(ValueError, match="frame 3 cannot be decoded"):
            file.read(3)


def test_a_jpeg_larger_than_the_header_says_is_not_decoded(path):
    write_seq(path, [picture(0, (36, 24)), picture(0, (3000, 2000))], 201)
    with pytest.raises(ValueError, match=r"frame 1 cannot be decoded: it is \(3000, 2000\), the header says"):
        SeqFile(path).read(1)
    huge = bytearray(path.read_bytes())
    at = huge.index(b"\xff\xc0")  # the sizes of the first frame
    huge[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    path.write_bytes(huge)
    with pytest.raises(ValueError, match="frame 0 cannot be decoded"):
        SeqFile(path).read(0)
