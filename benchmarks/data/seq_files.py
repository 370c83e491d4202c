"""Random access to the frames of a .seq video (StreamPix, Piotr Dollar's toolbox), raw or JPEG.

A .seq file is a header and then single frames. Raw frames lie at fixed distances; JPEG frames have a length,
a time stamp and padding whose size differs between writers, so the start of every frame is looked up once.
"""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
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

    The file is opened anew for every frame, so that one object may be shared by threads and copied into
    worker processes. The frame count in the header is not trusted: what lies in the file counts, and a last
    frame that was cut off is left out (`truncated`).

    Args:
        path: the file.

    Attributes:
        path: the file.
        width, height: of a frame, in pixels.
        offsets: (F,) int64, where the image data of each frame starts, in bytes.
        lengths: (F,) int64, its length in bytes.
        truncated: the file ends inside a frame.

    Raises:
        ValueError: no .seq file, a pixel format that is not supported, a damaged header, not one whole frame.
        FileNotFoundError: no such file.

    Source: format of Piotr Dollar's toolbox (little-endian; colour raw frames hold blue, green, red).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.size = self.path.stat().st_size
        with open(self.path, "rb") as file:
            header = file.read(_HEADER_END)
            if len(header) < _HEADER_END or struct.unpack_from("<I", header)[0] != MAGIC:
                raise ValueError(f"{self.path} is no .seq file: it does not start with a .seq header")
            (header_size,) = struct.unpack_from("<I", header, 32)
            self.width, self.height, bits, _, _, self.format, _, _, true_size = struct.unpack_from(
                "<9I", header, 548
            )
            if not _HEADER_END <= header_size <= self.size or not self.width or not self.height:
                raise ValueError(
                    f"{self.path} has a damaged .seq header: {header_size} bytes of header in a file of "
                    f"{self.size}, frames of {self.width} x {self.height}"
                )
            if self.format in RAW_FORMATS:
                channels = RAW_FORMATS[self.format]
                if bits != 8 * channels:
                    raise ValueError(
                        f"{self.path}: {bits} bits a pixel, expected {8 * channels} (format {self.format})"
                    )
                self.offsets, self.lengths, self.truncated = self._raw_index(header_size, channels, true_size)
            elif self.format in JPEG_FORMATS:
                self.offsets, self.lengths, self.truncated = self._jpeg_index(file, header_size)
            else:
                known = sorted([*RAW_FORMATS, *JPEG_FORMATS])
                raise ValueError(f"{self.path}: image format {self.format} is not one of {known}")
        if len(self.offsets) == 0:
            raise ValueError(f"{self.path} holds no whole frame ({self.size} bytes)")

    def __len__(self) -> int:
        return len(self.offsets)

    def read(self, index: int) -> Image.Image:
        """Frame `index` (from 0) as an RGB image of (height, width) pixels.

        Raises:
            IndexError: no such frame.
            ValueError: the frame cannot be decoded.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has frames 0 to {len(self) - 1}, asked for {index}")
        length = int(self.lengths[index])
        with open(self.path, "rb") as file:
            file.seek(int(self.offsets[index]))
            data = file.read(length)
        if len(data) < length:
            raise ValueError(f"{self.path} has become shorter: frame {index} ends beyond its end")
        if self.format in JPEG_FORMATS:
            try:
                with Image.open(io.BytesIO(data)) as image:
                    return image.convert("RGB")
            except (OSError, SyntaxError) as error:
                raise ValueError(f"{self.path}: frame {index} cannot be decoded: {error}") from error
        pixels = np.frombuffer(data, dtype=np.uint8)
        if RAW_FORMATS[self.format] == 1:
            return Image.fromarray(pixels.reshape(self.height, self.width)).convert("RGB")
        return Image.fromarray(np.ascontiguousarray(pixels.reshape(self.height, self.width, 3)[:, :, ::-1]))

    def _raw_index(
        self, start: int, channels: int, step: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], bool]:
        length = self.width * self.height * channels
        if step < length:
            raise ValueError(f"{self.path}: frames {step} bytes apart cannot hold {length} bytes of pixels")
        room = self.size - start
        count = (room - length) // step + 1 if room >= length else 0
        left = room - count * step  # may be negative: the padding of the last frame need not be there
        return start + step * np.arange(count), np.full(count, length), left > 0

    def _jpeg_index(
        self, file: io.BufferedReader, start: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], bool]:
        offsets, lengths, truncated = [], [], False
        at = self._next_jpeg(file, start)
        while at is not None:
            file.seek(at)
            (length,) = struct.unpack("<I", file.read(4))
            if at + length > self.size:
                truncated = True
                break
            offsets.append(at + 4)
            lengths.append(length - 4)
            at = self._next_jpeg(file, at + length + _TIME_STAMP, at + length)
        return np.array(offsets, dtype=np.int64), np.array(lengths, dtype=np.int64), truncated

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
            found = block.find(_JPEG_START, 4)
            while found >= 0:
                if struct.unpack_from("<I", block, found - 4)[0] > 8:
                    return at + found - 4
                found = block.find(_JPEG_START, found + 1)
            if len(block) < _WINDOW:
                return None
            at += _WINDOW - 6  # a start that straddles two blocks is seen in the second
        return None
