"""Where candidates are looked for: features moved to the origin, and reduced for an approximate search."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MIN_REDUCED_SAMPLES = 8_192  # below this, looking at samples in full is faster
MAX_REDUCED_DIM = 512
_VARIANCE_KEPT = 0.95
_MAX_SQUARE = 1e36  # squared distances beyond may overflow
_FAR = 4.0  # squared distance to the origin, over the variance, from which features are centered
_MIN_AUTO = 20_000  # samples and queries from which "auto" is approximate ...
_MIN_AUTO_DIM = (
    1024  # ... for features this long: from here on it is faster even if no direction is negligible
)


def faster_method(num_samples: int, num_queries: int, num_dims: int) -> str:
    """The method that "auto" stands for: approximate only where that was measured to save time."""
    large = min(num_samples, num_queries) >= _MIN_AUTO and num_dims >= _MIN_AUTO_DIM
    return "approximate" if large else "exact"


def row_squares(table: Tensor) -> Tensor:
    """(N, D) to (N,) squared lengths."""
    step = max(1, 2**24 // table.shape[1])
    return torch.cat([part.square().sum(1) for part in table.split(step)])


def center_of(table: Tensor) -> Tensor | None:
    """(D,) mean of a sample of the rows if they lie far from the origin for their spread, else None.

    |x|^2 - 2 x.y loses the digits that |x|^2 takes up: distances of far features are computed around this.
    """
    sample = table[:: max(1, len(table) // 1024)]
    center = sample.mean(0, dtype=torch.float64)
    variance = float((sample - center.float()).square().sum(1).mean())
    return center.float() if float(center.square().sum()) > _FAR * variance else None


def check_size(squares: Tensor) -> float:
    """The largest of the squared lengths, if distances between such rows can be computed."""
    largest = float(squares.max())
    if not largest < _MAX_SQUARE:
        raise ValueError(
            f"features must be shorter than {_MAX_SQUARE**0.5:.0e} to be searched, got {largest**0.5:.0e}: "
            "scale them"
        )
    return largest


def principal_directions(table: Tensor, seed: int) -> Tensor | None:
    """(D, d) orthonormal directions that hold 95 % of the variance, or 512; None where it cannot pay.

    They are estimated on up to 4096 samples, by a randomized range finder with one power step.
    """
    num_samples, dim = table.shape
    most = min(MAX_REDUCED_DIM, dim // 2)
    if num_samples < MIN_REDUCED_SAMPLES or dim <= 256:
        return None
    generator = np.random.default_rng(seed)
    rows = np.sort(generator.choice(num_samples, min(num_samples, 4096), replace=False))
    sample = table[torch.from_numpy(rows).to(table.device)]
    sample = sample - sample.mean(0)
    probe = torch.from_numpy(generator.standard_normal((dim, most), dtype=np.float32)).to(table.device)
    basis = torch.linalg.qr(sample.T @ (sample @ probe)).Q  # (D, most)
    reduced = sample @ basis
    variance, rotation = torch.linalg.eigh(reduced.T @ reduced)  # ascending
    kept = variance.flip(0).cumsum(0) / sample.square().sum().clamp_min(1e-30)
    enough = int((kept < _VARIANCE_KEPT).sum()) + 1
    return (basis @ rotation.flip(1)[:, : min(most, max(64, enough))]).contiguous()
