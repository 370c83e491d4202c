"""Image files: which lie under a folder, and a dataset of them."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from .images import UnreadableImageError, read_image

__all__ = ["IMAGE_SUFFIXES", "ImageList", "image_files"]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageList(Dataset[Any]):
    """Images by their paths, upright and in RGB, without labels or folders of classes.

    Args:
        paths: image files; their order is the order of the samples.
        transform: applied to each PIL image (RGB); None (default): the PIL image itself.
        skip_unreadable: False (default): an unreadable file raises when it is read. True: every file is
            decoded once now (in threads) and the unreadable ones are left out of `paths`.
        num_threads: for that check. Default: one a core.

    Attributes:
        paths: list of Path, those that are in the dataset.
        unreadable: list of (path, reason), those that were left out.

    Raises:
        ValueError: if there are no paths, or none is readable.
        UnreadableImageError: when a sample is read, if its file is missing, truncated or no image.

    Example:
        >>> import tempfile, PIL.Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> PIL.Image.new("RGB", (8, 8)).save(folder / "a.png")
        >>> _ = (folder / "b.png").write_bytes(b"half an image")
        >>> images = ImageList(image_files(folder), skip_unreadable=True)
        >>> len(images), images.unreadable[0][0].name
        (1, 'b.png')
    """

    def __init__(
        self,
        paths: Iterable[str | os.PathLike[str]],
        transform: Callable[[Any], Any] | None = None,
        *,
        skip_unreadable: bool = False,
        num_threads: int | None = None,
    ) -> None:
        if isinstance(paths, (str, os.PathLike)):
            raise TypeError(f"paths must be a list of files, got one path {paths}: use image_files(folder)")
        self.paths = [Path(path) for path in paths]
        self.transform = transform
        self.unreadable: list[tuple[Path, str]] = []
        if not self.paths:
            raise ValueError("paths must hold at least one image file, got none")
        if skip_unreadable:
            with ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool:
                reasons = list(pool.map(reason_unreadable, self.paths))
            pairs = list(zip(self.paths, reasons, strict=True))
            self.unreadable = [(path, reason) for path, reason in pairs if reason is not None]
            self.paths = [path for path, reason in pairs if reason is None]
            if not self.paths:
                raise ValueError(f"none of {len(pairs)} images is readable: {self.unreadable[0][1]}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        image = read_image(self.paths[operator.index(index)])
        return image if self.transform is None else self.transform(image)


def image_files(folder: str | os.PathLike[str], suffixes: str | Iterable[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Image files under a folder and its subfolders, linked ones too but no hidden ones (`.name`), by path.

    Args:
        folder: where to look. A subfolder that is reached by several links is visited once.
        suffixes: endings that count, one or several, in any case, with their dot or without.

    Returns:
        The paths, at least one.

    Raises:
        NotADirectoryError: if there is no such folder.
        ValueError: if it holds no image, or a suffix is empty.
        OSError: if a subfolder cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder")
    given = [suffixes] if isinstance(suffixes, str) else suffixes
    wanted = tuple("." + suffix.lower().lstrip(".") for suffix in given)
    if "." in wanted:
        raise ValueError(f"suffixes must not be empty, got {suffixes!r}: give for example ('.png', '.jpg')")
    found, visited, waiting = [], set(), [str(folder)]
    while waiting:
        for root, folders, names in os.walk(waiting.pop(0), onerror=_raise):
            if (real := os.path.realpath(root)) in visited:
                folders.clear()
                continue
            visited.add(real)
            folders[:] = [name for name in folders if not name.startswith(".")]  # thumbnails, trash
            shown = [name for name in names if not name.startswith(".")]
            paths = [Path(root, name) for name in shown if name.lower().endswith(wanted)]
            found += [path for path in paths if path.suffix and path.is_file()]
            links = [os.path.join(root, name) for name in sorted(folders)]
            waiting += [link for link in links if os.path.islink(link)]
    if not found:
        raise ValueError(f"{folder} holds no image (looked for {', '.join(wanted)})")
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def reason_unreadable(path: Path) -> str | None:
    """Why an image file cannot be read; None if it can."""
    try:
        read_image(path)
    except UnreadableImageError as error:
        return str(error)
    return None
