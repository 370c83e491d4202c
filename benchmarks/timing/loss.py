"""A loss step: PosetLoss and its miner against PML's losses on the same batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch

from benchmarks.timing.clock import forget_peak, in_turns, peak_bytes
from pml_posets._memory import available_bytes

RIVALS = ("ntxent", "multi-similarity", "ntxent-assigned", "multi-similarity-assigned")
_PER_CLASS = 4
_PAIR_BYTES = 20  # seen of PML's NTXentLoss for a positive and a negative pair

Step: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_batch(size: int, num_dims: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, D) embeddings and (B,) labels: half in classes of four, half unassigned (-1), in random order."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(size, num_dims, generator=generator)
    labels = torch.arange(size) // _PER_CLASS
    labels[size // 2 :] = -1
    return embeddings, labels[torch.randperm(size, generator=generator)]


def steps(compiled: bool) -> dict[str, Step]:
    """Name to a loss of embeddings and labels. PML's see each unassigned sample as a class of its own, or,
    "-assigned", the assigned samples alone: half of the batch, and less to do."""
    from pytorch_metric_learning.losses import MultiSimilarityLoss, NTXentLoss
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    from pml_posets import NearestMedoidMiner, PosetLoss

    poset, miner = PosetLoss(anchors="unassigned"), NearestMedoidMiner(anchors="unassigned")
    ntxent, similar, similar_miner = NTXentLoss(), MultiSimilarityLoss(), MultiSimilarityMiner()

    def each_its_class(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, torch.where(y < 0, 10**6 + torch.arange(len(y)), y)

    def assigned(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x[y >= 0], y[y >= 0]

    def similar_mined(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return similar(x, y, similar_miner(x, y))

    found: dict[str, Step] = {
        "poset": lambda x, y: poset(x, y, miner(x, y)),
        "ntxent": lambda x, y: ntxent(*each_its_class(x, y)),
        "multi-similarity": lambda x, y: similar_mined(*each_its_class(x, y)),
        "ntxent-assigned": lambda x, y: ntxent(*assigned(x, y)),
        "multi-similarity-assigned": lambda x, y: similar_mined(*assigned(x, y)),
    }
    return {name: torch.compile(step) if compiled else step for name, step in found.items()}


def too_large(size: int, available: int | None) -> list[str]:
    """Rivals whose comparison of all positive with all negative pairs would not fit into half of memory."""
    found = []
    for name, num in (("ntxent", size), ("ntxent-assigned", size // 2)):
        pairs = size // 2 * (_PER_CLASS - 1) * num**2  # positive by negative
        if available is not None and _PAIR_BYTES * pairs > available / 2:
            found.append(name)
    return found


def time_loss(
    size: int, num_dims: int, seed: int, repeats: int, compiled: bool, quiet: bool
) -> dict[str, float]:
    """Ratios of a forward and backward pass, in turns; to be called in a process of its own."""
    embeddings, labels = make_batch(size, num_dims, seed)

    def done(step: Step) -> None:
        x = embeddings.clone().requires_grad_()
        step(x, labels).backward()

    left_out = too_large(size, available_bytes())
    things = {name: partial(done, step) for name, step in steps(compiled).items() if name not in left_out}
    times = in_turns(things, repeats, f"loss {size} {'compiled' if compiled else 'eager'}", quiet, warm_up=2)
    forget_peak()
    before = peak_bytes()
    things["poset"]()
    extra = peak_bytes() - before
    metrics = {f"milliseconds_{name}": 1e3 * times.seconds(name) for name in things}
    for rival in RIVALS:
        if rival in left_out:
            metrics[f"over_{rival}"] = math.nan
            continue
        metrics[f"over_{rival}"] = times.ratio("poset", rival)
        metrics[f"over_{rival}_cpu"] = times.ratio("poset", rival, "cpu")
    return {**metrics, "peak_mib": max(0, extra) / 2**20}
