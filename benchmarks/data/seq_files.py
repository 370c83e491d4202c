"""Random access to the frames of a .seq video (StreamPix, Piotr Dollar's toolbox), raw or JPEG.

A .seq file is a header and then single frames. Raw frames lie at fixed distances. JPEG frames have a length,
a time stamp and padding whose size differs between writers, so the start of every frame is looked up once.
"""

from __future__ import annotations

import io
import os
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

MAGIC = 0xFEED
RAW_FORMATS = {100: 1, 200: 3}
JPEG_FORMATS = (102, 201)
_HEADER_END = 592
_TIME_STAMP = 6
_JPEG_START = b"\xff\xd8\xff"
_WINDOW = 1 << 16


class SeqFile:
    """The frames of one .seq file.

    The file is opened for every frame, so that one object may be shared by threads and copied into worker
    processes. The frame count in the header is not trusted: what lies in the file counts, and a last frame
    that was cut off is left out.

    Attributes:
        width, height: of a frame, in pixels.
        offsets: F positions of the image data of each frame, in bytes; of raw frames a range.

    Raises:
        ValueError: no .seq file, a pixel format that is not supported, a damaged header, not one whole frame.

    Source: format of Piotr Dollar's toolbox (little-endian; color raw frames hold blue, green, red).
    """

    offsets: Sequence[int]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.size = self.path.stat().st_size
        with open(self.path, "rb") as file:
            header = file.read(_HEADER_END)
            if len(header) < _HEADER_END or struct.unpack_from("<I", header)[0] != MAGIC:
                raise ValueError(f"{self.path} is no .seq file: it does not start with a .seq header")
            (start,) = struct.unpack_from("<I", header, 32)
            self.width, self.height, bits, _, _, self.format, _, _, step = struct.unpack_from(
                "<9I", header, 548
            )
            if not _HEADER_END <= start <= self.size or not self.width or not self.height:
                raise ValueError(
                    f"{self.path} has a damaged .seq header: {start} bytes of header in a file of "
                    f"{self.size}, frames of {self.width} x {self.height}"
                )
            if self.format in RAW_FORMATS:
                channels = RAW_FORMATS[self.format]
                if bits != 8 * channels:
                    raise ValueError(
                        f"{self.path}: {bits} bits a pixel, expected {8 * channels} (format {self.format})"
                    )
                self.offsets = self._raw_index(start, step)
            elif self.format in JPEG_FORMATS:
                self.offsets = self._jpeg_index(file, start)
            else:
                known = sorted([*RAW_FORMATS, *JPEG_FORMATS])
                raise ValueError(f"{self.path}: image format {self.format} is not one of {known}")
        if not self.offsets:
            raise ValueError(f"{self.path} holds no whole frame ({self.size} bytes)")

    def __len__(self) -> int:
        return len(self.offsets)

    def read(self, index: int) -> Image.Image:
        """Frame `index` (from 0) as an RGB image of (height, width) pixels.

        Raises:
            IndexError: no such frame.
            ValueError: the frame cannot be decoded, or is larger than the header says.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has frames 0 to {len(self) - 1}, asked for {index}")
        jpeg = self.format in JPEG_FORMATS
        with open(self.path, "rb") as file:
            file.seek(self.offsets[index] - 4 * jpeg)
            length = int.from_bytes(file.read(4), "little") - 4 if jpeg else self._raw_length
            data = file.read(max(0, min(length, self.size)))
        if len(data) < length:
            raise ValueError(f"{self.path} has become shorter: frame {index} ends beyond its end")
        if jpeg:
            return self._decode(data, index)
        pixels = np.frombuffer(data, dtype=np.uint8).reshape(self.height, self.width, -1)
        if pixels.shape[2] == 1:
            return Image.fromarray(pixels[:, :, 0]).convert("RGB")
        return Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1]))

    def _decode(self, data: bytes, index: int) -> Image.Image:
        try:
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                if image.width > 2 * self.width or image.height > 2 * self.height:
                    raise ValueError(f"it is {image.size}, the header says {(self.width, self.height)}")
                return image.convert("RGB")
        except Exception as error:  # decoders raise anything
            raise ValueError(f"{self.path}: frame {index} cannot be decoded: {error}") from error

    @property
    def _raw_length(self) -> int:
        return self.width * self.height * RAW_FORMATS[self.format]

    def _raw_index(self, start: int, step: int) -> range:
        length, room = self._raw_length, self.size - start
        if step < length:
            raise ValueError(f"{self.path}: frames {step} bytes apart cannot hold {length} bytes of pixels")
        count = (room - length) // step + 1 if room >= length else 0  # the last one may lack its padding
        return range(start, start + count * step, step)

    def _jpeg_index(self, file: io.BufferedReader, start: int) -> array[int]:
        offsets = array("q")
        at = self._next_jpeg(file, start)
        while at is not None:
            file.seek(at)
            (length,) = struct.unpack("<I", file.read(4))
            if at + length > self.size:
                break
            offsets.append(at + 4)
            at = self._next_jpeg(file, at + length + _TIME_STAMP, at + length)
        return offsets

    def _next_jpeg(self, file: io.BufferedReader, guess: int, earliest: int | None = None) -> int | None:
        """Where the next frame's length stands: at the guess, or wherever a JPEG starts after `earliest`."""
        file.seek(guess)
        head = file.read(7)
        if head[4:] == _JPEG_START and struct.unpack_from("<I", head)[0] > 8:
            return guess
        at = guess if earliest is None else earliest
        while at < self.size:
            file.seek(at)
            block = file.read(_WINDOW)
            start = block.find(_JPEG_START, 4)
            while start >= 0:
                if struct.unpack_from("<I", block, start - 4)[0] > 8:
                    return at + start - 4
                start = block.find(_JPEG_START, start + 1)
            if len(block) < _WINDOW:
                return None
            at += _WINDOW - 6  # a start that straddles two blocks is seen in the second
        return None
