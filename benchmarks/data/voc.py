"""PASCAL VOC's objects, each cut out by its box.

<root>/VOCdevkit/VOC2007/JPEGImages/000001.jpg, ...
<root>/VOCdevkit/VOC2007/Annotations/000001.xml, ...          boxes, 1-based and inclusive
<root>/VOCdevkit/VOC2007/ImageSets/Main/trainval.txt, test.txt
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from benchmarks.data.files import files_id
from benchmarks.data.labeled_images import LabeledImages, check_known, numbered
from pml_posets.data.cache import digest
from pml_posets.data.datasets import ImageList, UnreadableImageError

_LARGEST = 10**6  # side of an image, px, and size of an annotation, bytes


class BoxCrops(Dataset[Any]):
    """Objects cut from images when they are read, in the proportions of their boxes.

    Args:
        paths: N image files.
        boxes: (N, 4) int left, top, right, bottom in pixels; right and bottom are not in the box.
    """

    def __init__(self, paths: Sequence[Path], boxes: npt.NDArray[np.int64]) -> None:
        self._files = ImageList(paths)
        self.paths, self.boxes = self._files.paths, boxes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        image, (left, top, right, bottom) = self._files[index], self.boxes[index].tolist()
        if right - left > 2 * image.width or bottom - top > 2 * image.height:
            raise UnreadableImageError(
                f"the box {left, top, right, bottom} does not fit {self.paths[index]} of {image.size}: its "
                "annotation is damaged, unpack it again"
            )
        return image.crop((left, top, right, bottom))

    @property
    def data_id(self) -> str:
        """A digest that changes with the files or the boxes."""
        return str(digest(files_id(self.paths), self.boxes))


def load_voc(
    root: Path, year: str, train: str, test: str, download: bool = False, skip_unreadable: bool = False
) -> LabeledImages:
    """Object boxes of PASCAL VOC, read by torchvision's dataset.

    Objects marked difficult and empty boxes are left out, and named.

    Args:
        root: folder that holds VOCdevkit/.
        year: "2007".
        train, test: image sets, without an image that is in both.
        download: fetch it first.
        skip_unreadable: decode every image now, and leave out those that cannot be, and those without an
            annotation.
    """
    sets = [_voc(root, year, part, download) for part in (train, test)]
    shared = {*sets[0].images} & {*sets[1].images}
    if shared:
        raise ValueError(
            f"the image sets {train} (to learn from) and {test} (to test on) share {len(shared)} images, "
            f"{Path(min(shared)).name} for one: choose sets that share none"
        )
    excluded: dict[str, tuple[str, ...]] = {}

    def leave_out(reason: str, name: str) -> None:
        excluded[reason] = (*excluded.get(reason, ()), name)

    wrong = _unreadable([Path(path) for one in sets for path in one.images], decode=skip_unreadable)
    if wrong and not skip_unreadable:
        path, why = next(iter(wrong.items()))
        raise UnreadableImageError(
            f"cannot read the image {path}: {why}; unpack it again, or leave such images out "
            "(--skip-unreadable)"
        )
    rows = [
        (*row, learned)
        for one, learned in zip(sets, (True, False), strict=True)
        for path, note in zip(map(Path, one.images), map(Path, one.annotations), strict=True)
        for row in _boxes(path, note, path in wrong, skip_unreadable, leave_out)
    ]
    if not rows:
        why = "; ".join(f"{reason}: {len(which)}" for reason, which in excluded.items())
        raise ValueError(f"no object is left in {root} ({why or 'its annotations have none'})")
    labels, classes = numbered([row[2] for row in rows])
    learned_from = np.array([row[4] for row in rows], bool)
    check_known(labels, learned_from, classes, root)
    return LabeledImages(
        name=f"voc{year}",
        images=BoxCrops([row[0] for row in rows], np.array([row[1] for row in rows], np.int64)),
        labels=labels,
        classes=classes,
        train=np.flatnonzero(learned_from),
        test=np.flatnonzero(~learned_from),
        names=tuple(row[3] for row in rows),
        excluded=excluded,
    )


def _boxes(
    path: Path, note: Path, wrong: bool, skip_unreadable: bool, leave_out: Callable[[str, str], None]
) -> Iterator[tuple[Path, list[int], str, str]]:
    """The file, box, class and name of each object of an image that counts."""
    if wrong:
        leave_out("image missing or damaged", path.stem)
    elif skip_unreadable and not os.path.exists(note):
        leave_out("image without annotation", path.stem)
    else:
        for number, (name, box, difficult) in enumerate(_objects(note), 1):
            which = f"{note.stem} object {number}"
            if difficult:
                leave_out("difficult", which)
            elif box[0] >= box[2] or box[1] >= box[3]:
                leave_out("empty box, or outside its image", which)
            else:
                yield path, box, name, which


def _voc(root: Path, year: str, part: str, download: bool) -> Any:
    from torchvision.datasets import VOCDetection

    try:
        return VOCDetection(str(root), year=year, image_set=part, download=download)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the image set {part} of PASCAL VOC {year} in {root} is damaged ({error}): unpack it again"
        ) from error
    except ValueError as error:
        raise ValueError(f"there is no image set {part} of PASCAL VOC {year}: {error}") from error
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"PASCAL VOC {year} {part} is not in {root} ({error}): unpack it so that "
            f"{root}/VOCdevkit/VOC{year} is there, or give --download"
        ) from error


def _unreadable(paths: Sequence[Path], decode: bool) -> dict[Path, str]:
    """Files that are missing or, if they are decoded, damaged; with the reason."""
    if decode:
        return dict(ImageList(paths, skip_unreadable=True).unreadable)
    return {path: "there is no such file" for path in paths if not os.path.isfile(path)}


def _objects(note: Path) -> list[tuple[str, list[int], bool]]:
    """Class, box (left, top, right, bottom; the last two not in it) and difficulty of each object.

    What of a box lies outside the image, by the size that the annotation gives, is cut off.
    """
    try:
        if os.path.getsize(note) > _LARGEST:
            raise ValueError(f"{os.path.getsize(note)} bytes are too many for the objects of an image")
        text = note.read_bytes()
        if b"<!DOCTYPE" in text.replace(b"\0", b"").upper():
            raise ValueError("it defines entities, which may be endless")
        root = ElementTree.fromstring(text)
        size = [int(root.findtext(f"size/{side}", "0")) for side in ("width", "height")]
        most = [side if 0 < side < _LARGEST else _LARGEST for side in size] * 2
        found = []
        for one in root.iter("object"):
            sides = (one.findtext(f"bndbox/{side}", "") for side in ("xmin", "ymin", "xmax", "ymax"))
            left, top, right, bottom = (round(float(text)) for text in sides)
            name, difficult = one.findtext("name", ""), one.findtext("difficult", "0").strip() == "1"
            if not name:
                raise ValueError("an object has no name")
            box = [left - 1, top - 1, right, bottom]
            found.append((name, [min(max(0, x), end) for x, end in zip(box, most, strict=True)], difficult))
        return found
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the annotation {note} is not there: unpack it again, or leave its image out (--skip-unreadable)"
        ) from error
    except (ElementTree.ParseError, OSError, ValueError, OverflowError, LookupError) as error:
        raise ValueError(f"the annotation {note} is damaged ({error}): unpack it again") from error
