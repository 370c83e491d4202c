"""A folder of photos made searchable: embeddings, names and an index on disk, extended as photos come."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._io import atomic_write, check_folder, read_npz, write_npz
from ._near_copies import linked_groups, thumbnail, thumbnail_rows
from ._validation import as_count, as_features, as_real, check_shape
from .data.image_list import ImageList, image_files, reason_unreadable
from .data.images import UnreadableImageError
from .embedder import Embedder

if TYPE_CHECKING:
    import faiss

__all__ = ["Added", "Gallery"]

_SAVE_EVERY = 60.0  # seconds of work that a killed run loses at most
_BLOCK = 512  # photos
_LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


@dataclass(frozen=True)
class Added:
    """What `Gallery.add` did: numbers of photos by what became of their files."""

    new: int
    changed: int
    unchanged: int
    gone: int
    unreadable: list[tuple[Path, str]]  # and why; they are left out


class Gallery:
    """The embeddings of a folder of photos, kept in an output folder.

    The folder holds `gallery.npz` (names, file sizes and times, thumbnails, embeddings), `embeddings.npy` and
    `names.txt` for use elsewhere (one name a line, line breaks in it escaped), `index.faiss` (exact, by inner
    product of unit rows) and `embedder.npz`. Every file is written whole or not at all. Row i of each belongs
    to photo i.

    Args:
        folder: the output folder; made if missing.

    Attributes:
        folder: the output folder.
        photos: folder that the names are relative to; None before `add`.
        names: list of N paths relative to it, with forward slashes.
        embeddings: (N, D) float32, unit rows.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if its files are damaged.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> rng = np.random.default_rng(0)
        >>> photos, output = Path(tempfile.mkdtemp()), tempfile.mkdtemp()
        >>> for number in range(6):
        ...     pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        ...     Image.fromarray(pixels).save(photos / f"{number}.png")
        >>> embedder = Embedder(image_size=32).fit(photos)
        >>> gallery = Gallery(output)
        >>> gallery.add(photos, embedder).new, gallery.nearest(gallery.embeddings[3:4], 1)[0].tolist()
        (6, [[3]])
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = check_folder(folder)
        self.photos: Path | None = None
        self.names: list[str] = []
        self.embeddings: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        self._stamps: NDArray[np.int64] = np.zeros((0, 3), np.int64)
        self._thumbnails: NDArray[np.uint8] = np.zeros((0, 8, 8, 3), np.uint8)
        self._embedder = ""
        self._index: faiss.IndexFlatIP | None = None
        if (self.folder / "gallery.npz").exists():
            arrays = read_npz(self.folder / "gallery.npz")
            try:
                self.photos, self.names = Path(str(arrays["photos"])), arrays["names"].tolist()
                self.embeddings, self._stamps = arrays["embeddings"], arrays["stamps"]
                self._thumbnails = arrays["thumbnails"]
                self._embedder = str(arrays["embedder"])
            except KeyError as error:
                raise ValueError(
                    f"{self.folder / 'gallery.npz'} is no gallery of this version ({error} is missing): "
                    "delete it and embed the photos again"
                ) from None

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """The file of a photo."""
        return (self.photos or Path()) / self.names[index]

    def add(
        self,
        photos: str | os.PathLike[str],
        embedder: Embedder,
        report: Callable[[int, int], object] | None = None,
    ) -> Added:
        """Bring the gallery up to date with a folder: embed what is new or changed, drop what is gone.

        The state is written at least once a minute; a run that was killed goes on where it was.

        Args:
            photos: folder, searched with its subfolders.
            embedder: fitted; the same one for every call.
            report: called as report(done, total) after each block of photos. Default None.

        Returns:
            What was done.

        Raises:
            NotADirectoryError, ValueError: for a folder without images or around the output folder, or for
                another folder or embedder than before.
        """
        root = Path(photos).resolve()
        self._check_same(root, embedder)
        stamps = {path.relative_to(root).as_posix(): _stamp(path) for path in image_files(root)}
        before = dict(zip(self.names, map(tuple, self._stamps.tolist()), strict=True))
        kept = [i for i, name in enumerate(self.names) if stamps.get(name) == before[name]]
        waiting = [name for name in stamps if stamps[name] != before.get(name)]
        if len(kept) < len(self):
            self.names, self._index = [self.names[i] for i in kept], None
            self.embeddings, self._stamps = self.embeddings[kept], self._stamps[kept]
            self._thumbnails = self._thumbnails[kept]
        unreadable: list[tuple[Path, str]] = []
        saved = time.monotonic()
        for start in range(0, len(waiting), _BLOCK):
            block = waiting[start : start + _BLOCK]
            unreadable += self._append(block, embedder, stamps)
            if report is not None:
                report(start + len(block), len(waiting))
            if time.monotonic() - saved > _SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        if not self.names:
            raise ValueError(f"none of {len(waiting)} images in {root} is readable: {unreadable[0][1]}")
        self.save()
        new = [name not in before for name in self.names[len(kept) :]]
        gone = len(before.keys() - stamps.keys())
        return Added(sum(new), len(new) - sum(new), len(kept), gone, unreadable)

    def _check_same(self, root: Path, embedder: Embedder) -> None:
        """Take a folder and an embedder, if they are those of the photos that are there."""
        if self.photos not in (None, root):
            raise ValueError(f"{self.folder} holds photos of {self.photos}, not of {root}: choose another")
        if self.folder.resolve().is_relative_to(root):
            raise ValueError(
                f"the output folder {self.folder} lies in the folder of photos {root}, which would take the "
                "pictures there for photos: choose an output folder beside it"
            )
        known_by = embedder.digest()
        if len(self) and known_by != self._embedder:
            raise ValueError(
                f"{self.folder} holds {self.embeddings.shape[1]} columns of an embedder with other settings, "
                f"photos or weights, the embedder gives {embedder.num_features_}: embed into another folder"
            )
        self.photos, self._embedder = root, known_by

    def nearest(
        self, queries: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The nearest photos of some embeddings.

        Args:
            queries: (Q, D) float32, unit rows, of the same embedder.
            count: photos for each, from 1; no more than there are.

        Returns:
            (Q, count) int64 photos by falling cosine similarity, and (Q, count) float32 similarities.

        Raises:
            ValueError: for queries of another width or that are not finite, or a gallery without photos.
        """
        count = min(as_count(count, "count"), len(self))
        if not len(self):
            raise ValueError(f"{self.folder} holds no photos: add some first")
        rows = as_features(queries, "queries")
        check_shape(
            rows, "queries", ("Q", self.embeddings.shape[1]), advice=": embed them by the same embedder"
        )
        similarities, indices = self._search_index().search(rows, count)
        return indices, similarities

    def duplicates(self, threshold: float = 0.9) -> list[list[int]]:
        """Groups of photos that are nearly the same picture, whatever the embedder.

        Photos are compared by the differences of adjacent pixels in thumbnails of 8 x 8. Embeddings are made
        to be alike for different pictures of one thing, and copies may lie far apart: of 300 car photos at
        half their size, none has a cosine of 0.85 with the original by EfficientNet-Lite0, half by HOG.

        Args:
            threshold: cosine similarity of two thumbnails from which they are linked, in (0, 1]. Default 0.9:
                links 99 % of 1,200 copies of car photos (half the size, JPEG quality 40, 2.5 % cut off each
                side, 15 % brighter), and of 2,500 others three pairs, which are copies too.

        Returns:
            Lists of two or more photo indices, the largest group first.
        """
        as_real(threshold, "threshold", low=0, high=1, open_low=True)
        return linked_groups(thumbnail_rows(self._thumbnails), threshold)

    def clusters(self, count: int | None = None, random_state: int = 0) -> NDArray[np.int64]:
        """Groups of similar photos.

        Args:
            count: K: k-means, every photo in one of K clusters. None (default): `SurrogateGrouping`, compact
                groups of photos that are clearly alike; the others belong to none.
            random_state: from 0. Default 0.

        Returns:
            (N,) int64, -1 for a photo of no group; cluster 0 is the largest.
        """
        if count is None:
            from .grouping import SurrogateGrouping

            labels = np.asarray(SurrogateGrouping().fit_predict(self.embeddings))
        else:
            from sklearn.cluster import KMeans

            clusters = as_count(count, "count", 2)
            labels = KMeans(clusters, n_init=3, random_state=random_state).fit_predict(self.embeddings)
        sizes = np.bincount(labels[labels >= 0], minlength=1)
        rank = np.empty(len(sizes), np.int64)
        rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
        return np.where(labels >= 0, rank[labels], -1)

    def save(self) -> None:
        """Write all files; after an OSError the older ones are as they were."""
        import faiss

        arrays = {"photos": np.array(str(self.photos)), "names": np.array(self.names)}
        arrays |= {"stamps": self._stamps, "embeddings": self.embeddings, "thumbnails": self._thumbnails}
        arrays["embedder"] = np.array(self._embedder)
        write_npz(self.folder / "gallery.npz", arrays)
        with atomic_write(self.folder / "embeddings.npy") as file:
            np.save(file, self.embeddings)
        with atomic_write(self.folder / "names.txt", "w", encoding="utf-8") as file:
            file.write("".join(f"{on_a_line(name)}\n" for name in self.names))
        with atomic_write(self.folder / "index.faiss") as file:
            file.write(faiss.serialize_index(self._search_index()).tobytes())

    def _append(
        self, names: Sequence[str], embedder: Embedder, stamps: dict[str, tuple[int, int, int]]
    ) -> list[tuple[Path, str]]:
        """Embed some photos; returns those that cannot be read, which are left out."""
        root, unreadable = self.photos or Path(), []
        try:
            rows = embedder.transform(ImageList([root / name for name in names]))
        except UnreadableImageError:
            reasons = {name: reason_unreadable(root / name) for name in names}
            unreadable = [(root / name, reason) for name, reason in reasons.items() if reason is not None]
            names = [name for name, reason in reasons.items() if reason is None]
            if not names:
                return unreadable
            rows = embedder.transform(ImageList([root / name for name in names]))
        thumbnails = np.stack([thumbnail(root / name) for name in names])
        index = self._search_index(rows.shape[1])
        index.add(rows)
        self.embeddings = np.concatenate([self.embeddings.reshape(-1, rows.shape[1]), rows])
        self._stamps = np.concatenate([self._stamps, [stamps[name] for name in names]])
        self._thumbnails = np.concatenate([self._thumbnails, thumbnails])
        self.names += names
        return unreadable

    def _search_index(self, num_columns: int | None = None) -> Any:
        """The index of all rows, made when it is first asked for."""
        import faiss

        if self._index is None:
            self._index = faiss.IndexFlatIP(num_columns or self.embeddings.shape[1])
            if len(self):
                self._index.add(self.embeddings)
        return self._index


def on_a_line(name: str) -> str:
    """A file's name as text in one line: line breaks, and bytes that are no UTF-8, are escaped."""
    name = "".join(repr(c)[1:-1] if c in _LINE_BREAKS else c for c in name)
    return name.encode("utf-8", "backslashreplace").decode()


def _stamp(path: Path) -> tuple[int, int, int]:
    """Size and times of change: others mean another content."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
