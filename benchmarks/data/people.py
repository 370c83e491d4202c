"""People with annotated joints: crops to read, joints in them, and what was left out, by name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch.utils.data import Dataset

from benchmarks.data.files import files_id, left_out
from benchmarks.data.images import JoinedImages
from benchmarks.data.olympic import crop_box
from benchmarks.measures.skeletons import Skeleton
from pml_posets.data.cache import digest
from pml_posets.data.datasets import ImageList, UnreadableImageError

BOX_SCALE = 1.3
"""Side of a crop, relative to the longer side of the box around a person's joints."""
SLACK = 3.0
"""How far a joint may lie outside its image and still count, pixels: annotators click beside the border."""
MIN_SPAN = 6.0
"""People whose joints span fewer pixels are left out."""


@dataclass(frozen=True, eq=False)
class PoseData:
    """People, each a square crop with joints, split into those to learn from and those to test on.

    Args:
        name: of the data, for results.
        images: item i is the crop of person i, a PIL image; `images.data_id` changes with the data.
        joints: (N, J, 2) float32, x to the right and y down in [0, 1] of the crop; NaN where not visible. A
            joint that lies in the image may lie outside its crop.
        visible: (N, J) bool: the joint is annotated, be it occluded or not, and counts.
        train, test: dataset indices, int64.
        skeleton: of the joints.
        names: N names of the people, for messages.
        head_boxes: (N, 4) float32 x1, y1, x2, y2 in [0, 1] of the crop, NaN where unknown; None: no such
            data.
        excluded: reason to the names of what it leaves out: a person, or a joint or stick of a person.
    """

    name: str
    images: Any
    joints: npt.NDArray[np.float32]
    visible: npt.NDArray[np.bool_]
    train: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    skeleton: Skeleton
    names: tuple[str, ...]
    head_boxes: npt.NDArray[np.float32] | None = None
    excluded: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count, num_joints = len(self.images), len(self.skeleton.joints)
        expected: dict[str, tuple[int, ...]] = {
            "joints": (count, num_joints, 2),
            "visible": (count, num_joints),
            "names": (count,),
            **({} if self.head_boxes is None else {"head_boxes": (count, 4)}),
        }
        for name, shape in expected.items():
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(
                    f"{name} of {self.name} must have shape {shape} to match {count} images of "
                    f"{num_joints} joints, got {np.shape(getattr(self, name))}"
                )
        if not np.array_equal(np.isfinite(self.joints).all(axis=2), self.visible):
            raise ValueError(f"joints of {self.name} must be numbers where visible, and NaN elsewhere")
        both = np.concatenate([self.train, self.test])
        if len(np.unique(both)) != len(both) or (len(both) and not 0 <= both.min() <= both.max() < count):
            raise ValueError(f"train and test of {self.name} must name each of {count} people once at most")

    def __len__(self) -> int:
        return len(self.images)

    def summary(self) -> str:
        """What there is and what was left out, a line each."""
        lines = [
            f"{self.name}: {len(self)} people, {len(self.train)} to learn from, {len(self.test)} to test on, "
            f"{len(self.skeleton.joints)} joints, {self.visible.mean():.1%} of them annotated"
        ]
        return "\n".join([*lines, *left_out(self.excluded)])

    def settings(self) -> dict[str, Any]:
        """What identifies these data, for results."""
        return {
            "data": self.name,
            "people": digest(list(self.names), self.joints, self.train, self.test)[:16],
            "num_train": len(self.train),
            "num_test": len(self.test),
            "left_out": {reason: len(names) for reason, names in self.excluded.items()},
        }

    def with_training(self, extra: PoseData) -> PoseData:
        """These data, and the people to learn from of another set behind them."""
        if extra.skeleton != self.skeleton:
            raise ValueError(
                f"{extra.name} has other joints than {self.name}: they cannot be learned together"
            )
        boxes = [
            np.full((len(data), 4), np.nan, np.float32) if data.head_boxes is None else data.head_boxes
            for data in (self, extra)
        ]
        excluded = dict(self.excluded)
        for reason, names in extra.excluded.items():
            excluded[reason] = (*excluded.get(reason, ()), *names)
        return PoseData(
            name=f"{self.name}+{extra.name}",
            images=JoinedImages((self.images, extra.images)),
            joints=np.concatenate([self.joints, extra.joints]),
            visible=np.concatenate([self.visible, extra.visible]),
            train=np.concatenate([self.train, len(self) + extra.train]),
            test=self.test,
            skeleton=self.skeleton,
            names=(*self.names, *extra.names),
            head_boxes=None if self.head_boxes is None else np.concatenate(boxes),
            excluded=excluded,
        )


class PersonCrops(Dataset[Any]):
    """Square crops about people, cut when they are read; item i is an RGB PIL image.

    Args:
        paths: image files, one a person.
        boxes: (N, 3) int left, top, side in pixels, from 0; None: the files are the crops. What lies outside
            an image repeats its border.
    """

    def __init__(
        self, paths: Sequence[str | os.PathLike[str]], boxes: npt.NDArray[np.int64] | None = None
    ) -> None:
        self._files = ImageList(paths)
        self.paths = self._files.paths
        self.boxes = boxes
        if boxes is not None and (boxes.shape != (len(self.paths), 3) or boxes[:, 2].min() < 1):
            raise ValueError(
                f"boxes must have shape ({len(self.paths)}, 3) of left, top and a side of at least 1, got "
                f"{boxes.shape}"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        image = self._files[index]
        if self.boxes is None:
            return image
        left, top, side = (int(value) for value in self.boxes[index])
        return crop_box(image, np.array([left + 1, top + 1, left + side, top + side]))

    @property
    def data_id(self) -> str:
        """A digest that changes with the files (names, sizes, times of change) and the boxes."""
        return digest(files_id(self.paths), np.zeros(0) if self.boxes is None else self.boxes)


class People:
    """Annotated people on their way into `PoseData`; what is wrong with them is noted and left out.

    Args:
        names, paths: N names and image files.
        joints: (N, J, 2) numbers in pixels from the image's left and top edge, or shares of a crop.
        visible: (N, J) bool: annotated.
        skeleton: of the joints.
        others: further arrays of N rows that stay with their people.
    """

    def __init__(
        self,
        names: Sequence[str],
        paths: Sequence[Path],
        joints: npt.NDArray[Any],
        visible: npt.ArrayLike,
        skeleton: Skeleton,
        **others: npt.NDArray[Any],
    ) -> None:
        self.names, self.paths = list(names), list(paths)
        self.joints = np.array(joints, np.float64)
        self.visible = np.array(visible, bool)
        self.skeleton, self.others = skeleton, others
        self.excluded: dict[str, tuple[str, ...]] = {}

    def note(self, reason: str, names: Sequence[str]) -> None:
        """Note what a reason leaves out."""
        if len(names):
            self.excluded[reason] = (*self.excluded.get(reason, ()), *names)

    def drop(self, reason: str, gone: npt.ArrayLike) -> None:
        """Leave people out, (N,) bool, and note who they are."""
        gone = np.asarray(gone, bool)
        self.note(reason, [self.names[i] for i in np.flatnonzero(gone)])
        kept = np.flatnonzero(~gone)
        self.names, self.paths = [self.names[i] for i in kept], [self.paths[i] for i in kept]
        self.joints, self.visible = self.joints[kept], self.visible[kept]
        self.others = {name: rows[kept] for name, rows in self.others.items()}

    def hide(self, reason: str, hidden: npt.ArrayLike) -> None:
        """Take joints for not annotated, (N, J) bool, and note those that were."""
        hidden = np.asarray(hidden, bool)
        found = np.argwhere(hidden & self.visible).tolist()
        self.note(reason, [f"{self.names[i]} {self.skeleton.joints[j]}" for i, j in found])
        self.visible &= ~hidden

    def check_joints(self, size: npt.NDArray[Any], slack: float) -> None:
        """Leave out joints without numbers or outside the image, people without any; note empty sticks.

        Args:
            size: (N, 2) width and height of the images, in the unit of the joints.
            slack: how far outside a joint may lie.
        """
        self.hide("joint without numbers", ~np.isfinite(self.joints).all(axis=2))
        with np.errstate(invalid="ignore"):
            outside = ((self.joints < -slack) | (self.joints > size[:, None] + slack)).any(axis=2)
        self.hide("joint outside its image", outside)
        self.drop("no joint annotated", ~self.visible.any(axis=1))
        self.joints[~self.visible] = np.nan
        for stick in self.skeleton.sticks:
            start, end = (
                self.joints[:, self.skeleton.indices(ends)].mean(axis=1) for ends in (stick.start, stick.end)
            )
            empty = np.flatnonzero((start == end).all(axis=1))
            what = f"{'/'.join(stick.start)} to {'/'.join(stick.end)}"
            self.note("stick without length, not judged", [f"{self.names[i]} {what}" for i in empty])

    def sizes(self, skip_unreadable: bool) -> npt.NDArray[np.float64]:
        """(N, 2) width and height of the images, of those that are left: unreadable ones go or raise.

        Args:
            skip_unreadable: False: a missing image is an error now, a damaged one when it is read. True:
                all are decoded once, and those that cannot be are left out, and noted.
        """
        files = list(dict.fromkeys(self.paths))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            decode = [skip_unreadable] * len(files)
            found = dict(zip(files, pool.map(_size_of, files, decode), strict=True))
        unreadable = {path: why for path, why in found.items() if isinstance(why, str)}
        if unreadable and not skip_unreadable:
            path, why = next(iter(unreadable.items()))
            others = f" ({len(unreadable)} such images)" if len(unreadable) > 1 else ""
            raise UnreadableImageError(
                f"cannot read the image {path}: {why}{others}; mend the data, or leave such images out "
                "(skip_unreadable, --skip-unreadable)"
            )
        self.drop("image missing or damaged", np.array([path in unreadable for path in self.paths], bool))
        return np.array([found[path] for path in self.paths], np.float64).reshape(-1, 2)

    def cut(self) -> npt.NDArray[np.int64]:
        """(N, 3) left, top, side of the crops about the joints; the joints become shares of them.

        People whose joints span less than `MIN_SPAN` are left out.
        """
        low, high = np.nanmin(self.joints, axis=1), np.nanmax(self.joints, axis=1)  # (N, 2)
        small = (high - low).max(axis=1, initial=0) < MIN_SPAN
        self.drop(f"joints within less than {MIN_SPAN:g} px", small)
        low, high = low[~small], high[~small]
        side = np.ceil(BOX_SCALE * (high - low).max(axis=1, initial=0))  # (N,)
        corner = np.round((low + high - side[:, None]) / 2)
        self.joints = (self.joints - corner[:, None]) / side[:, None, None]
        return np.column_stack([corner, side]).astype(np.int64)

    def finish(
        self,
        name: str,
        train: npt.NDArray[np.bool_],
        *,
        test: bool = True,
        images: Any = None,
        boxes: npt.NDArray[np.int64] | None = None,
        head_boxes: npt.NDArray[Any] | None = None,
    ) -> PoseData:
        """The data set; a ValueError if nobody is left to train or test on.

        Args:
            name: of the data.
            train: (N,) bool: who is to be learned from.
            test: whether the others are to be tested on.
            images: the crops, N; None: those of the paths and boxes.
            boxes: (N, 3) of `PersonCrops`.
            head_boxes: (N, 4) in shares of the crops.
        """
        split = {"train": np.flatnonzero(train), "test": np.flatnonzero(~train)}
        empty = [part for part, rows in split.items() if not len(rows) and (part == "train" or test)]
        if empty:
            why = "; ".join(f"{reason}: {len(names)}" for reason, names in self.excluded.items())
            raise ValueError(
                f"nobody is left to {empty[0]} on in {name} ({why or 'there are too few people'})"
            )
        return PoseData(
            name=name,
            images=PersonCrops(self.paths, boxes) if images is None else images,
            joints=np.where(self.visible[:, :, None], self.joints, np.nan).astype(np.float32),
            visible=self.visible,
            skeleton=self.skeleton,
            names=tuple(self.names),
            head_boxes=None if head_boxes is None else head_boxes.astype(np.float32),
            excluded=self.excluded,
            **split,
        )


_ORIENTATION = 274  # of EXIF


def _size_of(path: Path, decode: bool) -> tuple[int, int] | str:
    """Width and height of an upright image file, or why it cannot be read."""
    try:
        with Image.open(path) as image:
            if decode:
                image.load()
            lies = image.getexif().get(_ORIENTATION, 1) >= 5  # on its side
            return (image.height, image.width) if lies else image.size
    except FileNotFoundError:
        return "there is no such file"
    except Exception as error:  # decoders raise anything
        return str(error)
