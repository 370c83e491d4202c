"""Frames in their order in time."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._validation import check_shape


class Clips:
    """Samples in their order in time: a clip is a run of one source whose steps are max_step at most.

    Without max_step they are twice the median step within sources.
    """

    def __init__(self, codes: np.ndarray | None, times: np.ndarray, max_step: float | None) -> None:
        if codes is None:
            raise ValueError("times count within a source: give sources too, one name for all if it is one")
        self.order = np.lexsort((times, codes))  # place in time to sample
        step, same = np.diff(times[self.order]), np.diff(codes[self.order]) == 0
        if (step[same] == 0).any():
            at = int(np.flatnonzero(same & (step == 0))[0])
            raise ValueError(
                f"times must differ within a source, but samples {self.order[at]} and {self.order[at + 1]} "
                "have the same: give clips of a source times that lie apart"
            )
        if max_step is None:
            max_step = 2 * float(np.median(step[same])) if same.any() else 1.0
        ends = np.flatnonzero(~(same & (step <= max_step)))
        starts, stops = np.r_[0, ends + 1], np.r_[ends, len(times) - 1]
        clip = np.repeat(np.arange(len(starts)), stops - starts + 1)
        self.place = np.empty(len(times), np.int64)
        self.place[self.order] = np.arange(len(times))
        self.first, self.last = starts[clip], stops[clip]  # by place

    def shift(self, samples: np.ndarray, step: int) -> np.ndarray:
        """The samples `step` places later in their clips; beyond an end, the one at that end."""
        place = self.place[samples]
        return self.order[np.clip(place + step, self.first[place], self.last[place])]

    def has(self, samples: np.ndarray, step: int) -> np.ndarray:
        """Whether the clip of each sample has one `step` places later."""
        place = self.place[samples]
        return (place + step >= self.first[place]) & (place + step <= self.last[place])


def as_times(times: Any, num_samples: int) -> np.ndarray:
    """Times, (N,) finite numbers, as float64."""
    array = np.asarray(times)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"times must be numbers, got dtype {array.dtype}")
    check_shape(array, "times", (num_samples,), " to match the samples")
    if not np.isfinite(array).all():
        raise ValueError("times must be finite")
    return array.astype(np.float64)
