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

    def own_classes(labels: torch.Tensor) -> torch.Tensor:
        return torch.where(labels < 0, 10**6 + torch.arange(len(labels)), labels)

    def poset_step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return poset(x, y, miner(x, y))

    def ntxent_step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return ntxent(x, own_classes(y))

    def similar_step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        y = own_classes(y)
        return similar(x, y, similar_miner(x, y))

    def ntxent_assigned(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return ntxent(x[y >= 0], y[y >= 0])

    def similar_assigned(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x, y = x[y >= 0], y[y >= 0]
        return similar(x, y, similar_miner(x, y))

    found: list[Step] = [poset_step, ntxent_step, similar_step, ntxent_assigned, similar_assigned]
    if compiled:
        found = [torch.compile(step) for step in found]
    return dict(zip(("poset", *RIVALS), found, strict=True))


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
