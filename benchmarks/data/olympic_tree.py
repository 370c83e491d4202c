"""A tree of postures that was read: which frames there are, in which order, and what is known of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.data.olympic_files import Problems
from benchmarks.data.seq_files import SeqFile
from benchmarks.measures.anchors import RetrievalLabels
from pml_posets.data.images import UnreadableImageError, read_image


def source_of(category: str, sequence: str) -> str:
    """The source that a sequence was cut from: all its sequences share person and scene.

    - `<category>_<source>_<clip>` (J-HMDB, the embedded figures): `<category>_<source>`.
    - `<video>_<start>_<end>`, both of five digits or more (Olympic Sports): `<video>`, the YouTube id, which
      may occur in several categories.
    - Any other name is its own source, `<category>/<sequence>`.

    Example:
        >>> source_of("jump", "jump_03_01"), source_of("vault", "-wmGlrcdXgU_01290_01392")
        ('jump_03', '-wmGlrcdXgU')
    """
    if match := re.fullmatch(rf"({re.escape(category)}_[^_]+)_[^_]+", sequence):
        return match[1]
    if match := re.fullmatch(r"(.+)_\d{5,}_\d{5,}", sequence):
        return match[1]
    return f"{category}/{sequence}"


@dataclass(frozen=True, eq=False)
class OlympicTree:
    """A tree that was read and checked; frames are indexed by category in sorted order, then in list order.

    Attributes:
        root: the tree's folder.
        categories: C names, sorted.
        offsets: (C + 1,) int64; category c has the frames offsets[c] to offsets[c + 1] - 1.
        names: N strings `<sequence>/<frame name>` as in the lists.
        sequence_names, source_names: S strings `<category>/<sequence>`, and names of sources (`source_of`).
        sequences, sources: (N,) int64, of each frame.
        frame_numbers: (N,) int64, the number in the frame's name: its time within the sequence.
        labels: category to its anchors, the ids counted from the start of the category as in the files.
        boxes: (N, 4) int64 xmin, ymin, xmax, ymax, 1-based, inclusive, in pixels; None: frames are crops.
        joints: (N, J, 2) float32 as in the files, NaN where unknown; None: the tree has none.
        joint_names: J names, empty where the files give none.
        paths: N image files ("" where the frame lies in a .seq file); empty without frames.
        seq_files: sequence number to its .seq file.
        excluded: the frames left out by `skip_unreadable`, each with the reason.
    """

    root: Path
    categories: tuple[str, ...]
    offsets: npt.NDArray[np.int64]
    names: tuple[str, ...]
    sequence_names: tuple[str, ...]
    sequences: npt.NDArray[np.int64]
    frame_numbers: npt.NDArray[np.int64]
    source_names: tuple[str, ...]
    sources: npt.NDArray[np.int64]
    labels: dict[str, RetrievalLabels]
    boxes: npt.NDArray[np.int64] | None = None
    joints: npt.NDArray[np.float32] | None = None
    joint_names: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    seq_files: dict[int, SeqFile] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def frame_categories(self) -> npt.NDArray[np.int64]:
        """(N,) int64, the frame's category as its place in `categories`."""
        return np.repeat(np.arange(len(self.categories)), np.diff(self.offsets))

    @property
    def frame_names(self) -> tuple[str, ...]:
        """N names, `<category>/<sequence>/<frame name>`."""
        pairs = zip(self.sequences, self.names, strict=True)
        return tuple(f"{self.sequence_names[number]}/{Path(name).name}" for number, name in pairs)

    @property
    def times(self) -> npt.NDArray[np.int64]:
        """(N,) int64, when each frame was seen within its source: sequences lie far apart."""
        return self.sequences * (10 * int(self.frame_numbers.max(initial=0)) + 10) + self.frame_numbers

    @property
    def num_anchors(self) -> int:
        """Anchors of all categories together."""
        return sum(len(labels) for labels in self.labels.values())

    def frames_of(self, category: str) -> slice:
        """The dataset indices of a category's frames."""
        if category not in self.categories:
            raise ValueError(f"no category {category!r}, the tree has {', '.join(self.categories)}")
        c = self.categories.index(category)
        return slice(int(self.offsets[c]), int(self.offsets[c + 1]))

    def dataset_labels(self) -> dict[str, RetrievalLabels]:
        """`labels` with dataset indices as ids: what `measures.postures.retrieval_report` takes."""
        return {name: labels.shifted(self.frames_of(name).start) for name, labels in self.labels.items()}

    def summary(self) -> str:
        """One line that says what the tree holds."""
        extras = [name for name in ("boxes", "joints") if getattr(self, name) is not None]
        if not self.paths:
            extras.append("no frames")
        if self.excluded:
            extras.append(f"{len(self.excluded)} unreadable frames left out")
        return (
            f"{self.root}: {len(self)} frames, {len(self.categories)} categories, "
            f"{len(self.sequence_names)} sequences, {len(self.source_names)} sources, "
            f"{self.num_anchors} anchors" + "".join(f", {extra}" for extra in extras)
        )

    def describe(self, index: int) -> str:
        """Where frame `index` lies, for messages."""
        sequence = int(self.sequences[index])
        if sequence in self.seq_files:
            return f"{self.seq_files[sequence].path}, frame {self.frame_numbers[index]}"
        return self.paths[index] if self.paths else f"{self.sequence_names[sequence]} {self.names[index]}"

    def open_frame(self, index: int) -> Image.Image:
        """The whole frame as an RGB image.

        Raises:
            UnreadableImageError: it cannot be read; the message names the file.
            ValueError: the tree was loaded without its frames.
        """
        if not self.paths:
            raise ValueError(f"{self.root} was loaded without its frames (require_frames=False)")
        sequence = int(self.sequences[index])
        try:
            if sequence in self.seq_files:
                return self.seq_files[sequence].read(int(self.frame_numbers[index]))
            return read_image(self.paths[index])
        except Exception as error:  # decoders raise anything
            raise UnreadableImageError(
                f"frame {index} cannot be read ({self.describe(index)}): {error}; repair the file, or leave "
                "such frames out (skip_unreadable, --skip-unreadable)"
            ) from error

    def without(self, frames: Iterable[int], reasons: Sequence[str] = ()) -> OlympicTree:
        """The tree without the frames of these dataset indices; frames and the ids of labels are renumbered.

        A frame that is left out leaves its anchors' lists; an anchor goes when it is left out itself, or has
        no positive or no negative left. `reasons` are kept in `excluded`; default: the frames' names.

        Raises:
            TreeError: a category would have no frame or no anchor left.
        """
        gone = np.unique(np.fromiter(frames, dtype=np.int64))
        keep = np.ones(len(self), dtype=bool)
        keep[gone] = False
        kept = np.flatnonzero(keep)
        problems, labels = Problems(), {}
        for name in self.categories:
            part = self.frames_of(name)
            inside = keep[part]
            if name in self.labels:
                found = _filtered(self.labels[name], inside, np.cumsum(inside) - 1)
                if found is None:
                    problems.add("categories without an anchor once unreadable frames are left out", name)
                else:
                    labels[name] = found
            if not inside.any():
                problems.add("categories without a readable frame", name)
        problems.raise_if_any(self.root)
        return replace(
            self,
            offsets=np.concatenate([[0], np.cumsum(keep)])[self.offsets],
            names=tuple(self.names[i] for i in kept),
            sequences=self.sequences[kept],
            frame_numbers=self.frame_numbers[kept],
            sources=self.sources[kept],
            labels=labels,
            boxes=None if self.boxes is None else self.boxes[kept],
            joints=None if self.joints is None else self.joints[kept],
            paths=tuple(self.paths[i] for i in kept) if self.paths else (),
            excluded=(*self.excluded, *(reasons or (self.describe(int(i)) for i in gone))),
        )


def _filtered(
    labels: RetrievalLabels, keep: npt.NDArray[np.bool_], new_index: npt.NDArray[np.int64]
) -> RetrievalLabels | None:
    """Labels among the kept frames, renumbered; None when no anchor is left."""
    rows = []
    for i, anchor in enumerate(labels.anchors):
        pos, neg = keep[labels.pos_ids[i]], keep[labels.neg_ids[i]]
        if keep[anchor] and pos.any() and neg.any():
            ids = new_index[labels.pos_ids[i][pos]], new_index[labels.neg_ids[i][neg]]
            rows.append((new_index[anchor], *ids, labels.pos_flips[i][pos], labels.neg_flips[i][neg]))
    if not rows:
        return None
    anchors, pos_ids, neg_ids, pos_flips, neg_flips = zip(*rows, strict=True)
    return RetrievalLabels(np.array(anchors), pos_ids, neg_ids, pos_flips, neg_flips)
