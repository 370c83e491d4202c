"""The labels of posture retrieval: anchors with ids of similar and of dissimilar samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class RetrievalLabels:
    """Anchors, each with the ids of samples that are similar (positive) and dissimilar (negative) to it.

    Args:
        anchors: (A,) integer ids of the anchors.
        pos_ids, neg_ids: A sequences of at least one id each.
        pos_flips, neg_flips: like the ids, 1 where the mirror image of the sample is meant. Default: nowhere.

    Raises:
        TypeError, ValueError: if ids are no integers from 0, the lengths do not match, or a list is empty.
    """

    def __init__(
        self,
        anchors: npt.ArrayLike,
        pos_ids: Sequence[npt.ArrayLike],
        neg_ids: Sequence[npt.ArrayLike],
        pos_flips: Sequence[npt.ArrayLike] | None = None,
        neg_flips: Sequence[npt.ArrayLike] | None = None,
    ) -> None:
        self.anchors = _ids(anchors, "anchors")
        self.pos_ids, self.pos_flips = _rows(pos_ids, pos_flips, len(self.anchors), "pos")
        self.neg_ids, self.neg_flips = _rows(neg_ids, neg_flips, len(self.anchors), "neg")

    def __len__(self) -> int:
        return len(self.anchors)

    @property
    def max_id(self) -> int:
        """The largest id, -1 without anchors."""
        return max((int(a.max()) for a in (self.anchors, *self.pos_ids, *self.neg_ids) if len(a)), default=-1)

    def shifted(self, offset: int) -> RetrievalLabels:
        """The same labels with `offset` added to every id: from ids in a category to dataset indices."""
        pos, neg = ([row + offset for row in rows] for rows in (self.pos_ids, self.neg_ids))
        return RetrievalLabels(self.anchors + offset, pos, neg, self.pos_flips, self.neg_flips)


def _ids(values: npt.ArrayLike, name: str) -> npt.NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {array.shape}")
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must hold integer ids, got dtype {array.dtype}")
    if array.size and array.min() < 0:
        raise ValueError(f"{name} must hold ids from 0, found {array.min()}")
    if array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must hold ids that fit int64, found {array.max()}")
    return array.astype(np.int64)


def _rows(
    lists: Sequence[npt.ArrayLike], flips: Sequence[npt.ArrayLike] | None, num_anchors: int, name: str
) -> tuple[tuple[npt.NDArray[np.int64], ...], tuple[npt.NDArray[np.bool_], ...]]:
    if len(lists) != num_anchors or (flips is not None and len(flips) != num_anchors):
        given = f"{len(lists)} lists" + ("" if flips is None else f" with {len(flips)} lists of flips")
        raise ValueError(f"{name}_ids must hold one list for each of {num_anchors} anchors, found {given}")
    rows = tuple(_ids(row, f"{name}_ids[{i}]") for i, row in enumerate(lists))
    empty = [i for i, row in enumerate(rows) if len(row) == 0]
    if empty:
        raise ValueError(
            f"{name}_ids must not be empty, but is for {len(empty)} anchors, the first is {empty[0]}"
        )
    if flips is None:
        return rows, tuple(np.zeros(len(row), dtype=bool) for row in rows)
    flags = []
    for i, (row, values) in enumerate(zip(rows, flips, strict=True)):
        array = np.asarray(values)
        if array.shape != row.shape:
            raise ValueError(f"{name}_flips[{i}] must have shape {row.shape} like its ids, got {array.shape}")
        if not np.isin(array, (0, 1)).all():
            raise ValueError(
                f"{name}_flips[{i}] must hold 0 and 1 only, found {np.unique(array)[:5].tolist()}"
            )
        flags.append(array.astype(bool))
    return rows, tuple(flags)
