"""A short stand-in for arrays, to tell whether two runs were given the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ._validation import as_features


def sketch(rows: Any) -> torch.Tensor:
    """(N, D) to (N,): one number a row, the same up to rounding for the same row, another for any other one.

    Checkpoints hold it in place of the rows; the rounding of another machine does not make another run.
    """
    rows = as_features(rows)
    direction = np.random.default_rng(0).standard_normal(rows.shape[1]).astype(np.float32)
    return torch.from_numpy(rows @ direction)
