"""Randomness that is derived, not carried: every random step is a function of a few whole numbers.

A run that draws the randomness of step t from (seed, round, t) needs no generator state in its checkpoints,
and neither workers nor what ran before can change what step t sees.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seeds(*parts: int, count: int = 1) -> list[int]:
    """`count` seeds in 0..2^63 - 1, which look unrelated if one of the numbers (from 0) differs."""
    if min(parts, default=0) < 0:
        raise ValueError(f"seeds are derived from whole numbers >= 0, got {parts}")
    state = np.random.SeedSequence([len(parts), *parts]).generate_state(count, np.uint64)
    return [int(word >> np.uint64(1)) for word in state]


def seed_everything(seed: int, accelerators: bool = True) -> None:
    """Seed the global generators of torch, numpy and random, which augmentations and dropout draw from.

    Without `accelerators` (those of GPUs stay as they are) it takes 20 us.
    """
    seed %= 2**63
    if accelerators:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - augmentations of others draw from it
    random.seed(seed)


@contextmanager
def preserved_randomness(accelerators: bool = True) -> Iterator[None]:
    """Give the global generators, with `accelerators` that of the current GPU too, back as they were."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    started = accelerators and torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = [torch.cuda.current_device()] if started else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


@contextmanager
def seeded(seed: int, accelerators: bool = True) -> Iterator[None]:
    """Seed the global generators, and give them back as they were at the end."""
    with preserved_randomness(accelerators):
        seed_everything(seed, accelerators)
        yield
