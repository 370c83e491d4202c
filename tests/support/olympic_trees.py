"""Small trees in the Olympic Sports layout, and .seq files, for the tests."""

import io
import struct
from pathlib import Path

import h5py
import numpy as np
from PIL import Image


def write_labels(path, anchors, pos_ids, neg_ids, pos_flips=None, neg_flips=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    ragged = h5py.vlen_dtype(np.dtype("int32"))
    with h5py.File(path, "w") as file:
        file["anchors"] = np.array(anchors, dtype=np.int32)
        for name, rows in (
            ("pos_ids", pos_ids),
            ("neg_ids", neg_ids),
            ("pos_flipvals", pos_flips or [[0] * len(row) for row in pos_ids]),
            ("neg_flipvals", neg_flips or [[0] * len(row) for row in neg_ids]),
        ):
            data = file.create_dataset(name, (len(rows),), dtype=ragged)
            for i, row in enumerate(rows):
                data[i] = np.array(row, dtype=np.int32)


def picture(value, size=(20, 30)):
    """A picture whose red tells which it is, with a gradient over x in green and over y in blue."""
    width, height = size
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = value
    pixels[..., 1] = np.arange(width) * 5
    pixels[..., 2] = np.arange(height)[:, None] * 5
    return Image.fromarray(pixels)


def make_tree(root: Path, suffix=".png", boxes=False, joints=False):
    """Two categories: run (run_00_00, run_00_01, run_01_00; 4 frames each) and jump (one video, 5 frames).

    Frame i of the whole tree (jump first) is `picture(10 * i)`; its box is the inside of the picture.
    """
    index = 0
    layout = {
        "jump": [("abc_DE-1234_00010_00050", range(3, 8))],
        "run": [(f"run_{s:02d}_{c:02d}", range(4)) for s, c in ((0, 0), (0, 1), (1, 0))],
    }
    for category, sequences in layout.items():
        lines = []
        for sequence, numbers in sequences:
            folder = root / "frames" / category / sequence
            folder.mkdir(parents=True)
            rows = []
            for number in numbers:
                picture(10 * index).save(folder / f"I{number:05d}{suffix}")
                lines.append(f"./{sequence}/I{number:05d}.png")
                rows.append(f"{number + 1}\t3\t5\t12\t24")
                index += 1
            if boxes:
                path = root / "bboxes" / category / f"{sequence}.bb"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("\n".join(rows) + "\n")
        path = root / "image_pathes" / f"imagePaths_{category}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        if joints:
            (root / "joints").mkdir(exist_ok=True)
            points = np.arange(len(lines) * 8, dtype=np.float32).reshape(len(lines), 4, 2)
            np.savez(root / "joints" / f"joints_{category}.npz", joints=points)
    write_labels(root / "labels_hdf5" / "labels_jump.hdf5", [0], [[1, 2]], [[3, 4]], [[0, 1]], [[1, 0]])
    write_labels(root / "labels_hdf5" / "labels_run.hdf5", [0, 11], [[4, 5, 8], [3]], [[6, 7, 9, 10], [1, 2]])
    return root


def write_seq(
    path,
    pictures,
    image_format=201,
    padding=(10,),
    claimed=None,
    raw_padding=24,
    header_size=1024,
    cut=0,
    quality=95,
):
    """A .seq file; `padding` are the bytes after the time stamp of the JPEG frames, taken in turn."""
    width, height = pictures[0].size
    channels = 3 if image_format in (200, 201) else 1
    size = width * height * channels
    header = bytearray(header_size)
    struct.pack_into("<I24sII", header, 0, 0xFEED, "Norpix seq\n".encode("utf-16-le"), 3, header_size)
    true_size = size + 6 + raw_padding
    count = len(pictures) if claimed is None else claimed
    fields = width, height, 8 * channels, 8, size, image_format, count, 0, true_size
    struct.pack_into("<9I", header, 548, *fields)
    struct.pack_into("<d", header, 584, 25.0)
    out = bytearray(header)
    for i, image in enumerate(pictures):
        image = image.convert("RGB" if channels == 3 else "L")
        if image_format in (100, 200):
            pixels = np.asarray(image)
            data = (pixels[:, :, ::-1] if channels == 3 else pixels).tobytes()
            rest = raw_padding
        else:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality, subsampling=0)
            out += struct.pack("<I", len(buffer.getvalue()) + 4)
            data, rest = buffer.getvalue(), padding[i % len(padding)]
        out += data + struct.pack("<IH", 1000 + i, 40 * i) + bytes(rest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out[: len(out) - cut])
    return path
