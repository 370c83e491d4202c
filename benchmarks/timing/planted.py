"""Features with planted postures in sequences, as large as one likes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

INNER = 32  # dimensions in which postures differ
SEQUENCE = 120  # frames
PER_CLASS = 113_516 / 20_000  # frames for each surrogate class at the paper's scale


@dataclass
class Planted:
    """N samples; each is a frame of a sequence.

    Args:
        features: (N, D) float32, unit rows.
        postures: (N,) posture of each sample; -1 for one like no other.
        sources: (N,) its sequence.
        num_classes: how many are asked of the grouping: the paper's 20,000 by its 113,516 frames.
    """

    features: np.ndarray
    postures: np.ndarray
    sources: np.ndarray
    num_classes: int


def plant(num_samples: int, num_dims: int, seed: int) -> Planted:
    """Draw postures that recur over sequences, each shown for two frames at a time.

    A posture is a point of 32 dimensions whose spread falls off; it is seen in about 4 sequences, each time
    moved a quarter as far as postures are apart. The two frames of one showing are near-duplicates. A tenth
    of the showings has a posture of its own. The 32 dimensions are mapped to D at random, and noise of full
    rank, a fifth as long and falling off too, is added: to that end features of networks look alike, whose
    spread lies in a few dozen directions. It favours a search in principal directions as far as real
    features do; it does not favour cells, for the postures themselves are in no clusters.

    Args:
        num_samples: N.
        num_dims: D.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    num_showings = -(-num_samples // 2)
    num_postures = max(2, round(num_samples / (2 * PER_CLASS)))
    posture = rng.permutation(np.arange(num_showings) % num_postures)
    alone = rng.random(num_showings) < 0.1
    spread = (1 + np.arange(INNER) / 4) ** -0.5
    inner = rng.normal(size=(num_postures, INNER))[posture]
    inner[alone] = rng.normal(size=(int(alone.sum()), INNER))
    inner = np.repeat((inner + 0.25 * rng.normal(size=inner.shape)) * spread, 2, axis=0)[:num_samples]
    inner += 0.02 * rng.normal(size=inner.shape) * spread
    mapping = (rng.normal(size=(INNER, num_dims)) / np.sqrt(num_dims)).astype(np.float32)
    falling = (1 + np.arange(num_dims) / 32) ** -0.5
    falling *= 0.2 * np.linalg.norm(spread) / np.linalg.norm(falling)
    features = np.empty((num_samples, num_dims), np.float32)
    for start in range(0, num_samples, 4096):  # in place: no second copy at any time
        part = features[start : start + 4096]
        rng.standard_normal(out=part, dtype=np.float32)
        part *= falling.astype(np.float32)
        part += inner[start : start + 4096].astype(np.float32) @ mapping
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    postures = np.repeat(np.where(alone, -1, posture), 2)[:num_samples]
    return Planted(
        features, postures, np.arange(num_samples) // SEQUENCE, max(1, round(num_samples / PER_CLASS))
    )
