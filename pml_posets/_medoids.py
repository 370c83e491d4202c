"""What PosetLoss and NearestMedoidMiner share: squared distances, medoids of a batch, positives."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import DotProductSimilarity, LpDistance, SNRDistance
from pytorch_metric_learning.distances.base_distance import BaseDistance

__all__ = ["Anchors", "batch_medoids", "positive_mask", "squared_distances"]  # of the old `representatives`

Anchors = Literal["all", "unassigned"]

_BLOCK_ROWS = {"cpu": 256}  # rows whose distances are computed at once
_BLOCK_ROWS_ELSEWHERE = 2048
_TIE_EPS = 64  # summed distances closer than this many float32 epsilons count as equal


def default_distance() -> BaseDistance:
    """The d^2 of Eq. 4: squared Euclidean distance between L2-normalized embeddings."""
    return LpDistance(normalize_embeddings=True, p=2, power=2)


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Autocast off, which takes time only where it is on."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def full_precision(x: torch.Tensor, ref: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in one dtype of at least 32 bits; `ref is x` stays true."""
    dtype = torch.promote_types(x.dtype, ref.dtype)
    if dtype.itemsize < 4:
        dtype = torch.float32
    same = ref is x
    x = x.to(dtype)
    return x, x if same else ref.to(dtype)


def _is_euclidean(distance: BaseDistance) -> bool:
    return type(distance) is LpDistance and distance.p == 2 and not distance.collect_stats


def compares_units(distance: BaseDistance) -> bool:
    """Whether d^2 is that of L2-normalized embeddings, in 0..4."""
    kinds = (LpDistance, DotProductSimilarity)  # CosineSimilarity is one of the latter
    return isinstance(distance, kinds) and distance.normalize_embeddings and distance.p == 2


def prepared_pair(
    distance: BaseDistance, x: torch.Tensor, ref: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in full precision, and of length 1 for the default distance; `ref is x` stays true."""
    x, ref = full_precision(x, ref)
    if _is_euclidean(distance) and distance.normalize_embeddings:
        same = ref is x
        x = F.normalize(x)
        ref = x if same else F.normalize(ref)
    return x, ref


def prepared_distances(distance: BaseDistance, x: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """The d^2 of Eq. 4 by any PML distance, prepared (B, D) and (K, D) to (B, K), in at least 32 bits.

    A distance of power 2 stands as it is, one of power 1 is squared. A similarity s becomes 2 - 2s, which for
    cosine is the squared distance of the normalized embeddings. Embeddings that are not normalized may lie
    far from the origin: their Euclidean distances are computed around the mean of `ref`, in float64.
    """
    if not _is_euclidean(distance):
        mat = distance(x, ref)
        if distance.is_inverted:
            return 2 - 2 * mat
        return mat if distance.power == 2 else mat.square()
    if distance.normalize_embeddings:
        with torch.no_grad():  # lengths are 1, or 0
            squares = _squares(x, ref)
        return torch.addmm(squares, x, ref.T, alpha=-2).clamp_min(0)
    center = ref.detach().mean(dim=0) if len(ref) else 0
    wide, ref = _wide(x - center), _wide(ref - center)
    return torch.addmm(_squares(wide, ref), wide, ref.T, alpha=-2).clamp_min(0).to(x.dtype)


def squared_distances(distance: BaseDistance, x: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """`prepared_distances` of embeddings as they come."""
    return prepared_distances(distance, *prepared_pair(distance, x, ref))


def batch_medoids(
    embeddings: torch.Tensor, labels: torch.Tensor, distance: BaseDistance | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`prepared_medoids` of embeddings as they come; the default distance is that of Eq. 4."""
    distance = default_distance() if distance is None else distance
    with torch.no_grad(), without_autocast(embeddings.device):
        x, _ = prepared_pair(distance, embeddings, embeddings)
        return prepared_medoids(x, labels, distance)


def _squares(x: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """|x|^2 + |ref|^2, (B, K)."""
    lengths = x.square().sum(dim=1)
    return lengths[:, None] + (lengths if ref is x else ref.square().sum(dim=1))


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.device.type == "mps" else x.double()  # which has no float64


def prepared_medoids(
    x: torch.Tensor, labels: torch.Tensor, distance: BaseDistance
) -> tuple[torch.Tensor, torch.Tensor]:
    """The medoid of every class in a batch: (K,) indices and (K,) classes, ascending; -1 is no class.

    medoid_c = argmin over i in class c of sum over j in class c of d(x_i, x_j), d unsquared; without
    gradient, in memory linear in B. `x` is prepared. Sums that differ by rounding alone are tied, and of tied
    members the one with the lowest index is taken; so it is in a class of two.
    """
    with torch.no_grad():
        assigned = (labels >= 0).nonzero().squeeze(1)  # (A,)
        x, of = _wide(x[assigned]), labels[assigned]
        classes, group = of.unique(return_inverse=True)  # (K,), (A,)
        if not len(classes):
            return assigned, classes
        sums = _summed_distances(x, of, distance)  # (A,)
        best = sums.new_full((len(classes),), math.inf).scatter_reduce_(0, group, sums, "amin")
        best.add_(best.abs(), alpha=_TIE_EPS * torch.finfo(torch.float32).eps)
        candidates = assigned.masked_fill(sums > best[group], len(labels))
        first = candidates.new_full((len(classes),), len(labels))
        return first.scatter_reduce_(0, group, candidates, "amin"), classes


def _summed_distances(x: torch.Tensor, labels: torch.Tensor, distance: BaseDistance) -> torch.Tensor:
    """Sum of each row's unsquared distances to the rows of its label, (A, D) -> (A,)."""
    rows = _BLOCK_ROWS.get(x.device.type, _BLOCK_ROWS_ELSEWHERE)
    if len(x) <= rows:
        mat = prepared_distances(distance, x, x)  # (A, A)
        if not isinstance(distance, SNRDistance):  # symmetric by definition, not by rounding
            mat = mat + mat.T  # so that the two members of a class are exactly tied
        return _sums_in_class(mat, labels, labels, 0, distance.is_inverted)
    ordered, order = labels.sort()
    x = x[order]
    starts = torch.arange(0, len(x), rows, device=x.device)
    last = ordered[(starts + rows - 1).clamp_max(len(x) - 1)]
    low = torch.searchsorted(ordered, ordered[starts])  # first and one past the last row of the classes ...
    high = torch.searchsorted(ordered, last, right=True)  # ... of each block of rows
    sums = []
    for start, i, j in torch.stack([starts, low, high], dim=1).tolist():
        block = slice(start, start + rows)
        mat = prepared_distances(distance, x[block], x[i:j])
        sums.append(_sums_in_class(mat, ordered[block], ordered[i:j], start - i, distance.is_inverted))
    return torch.empty_like(x[:, 0]).scatter_(0, order, torch.cat(sums))


def _sums_in_class(
    sq_dist: torch.Tensor, labels: torch.Tensor, others: torch.Tensor, offset: int, signed: bool
) -> torch.Tensor:
    """(b, m) squared distances, (b,) and (m,) labels -> (b,) sums of distances; row 0 is column `offset`."""
    mat = sq_dist.sign() * sq_dist.abs().sqrt() if signed else sq_dist.sqrt()  # 2 - 2s may be negative
    mat.diagonal(offset).zero_()
    return mat.masked_fill_(labels[:, None] != others, 0).sum(dim=1)


def positive_mask(
    sq_dist: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor, num_nearest: int, anchors: Anchors
) -> torch.Tensor:
    """Which representatives each sample is pulled to, (B, K) bool; a row without True is no anchor.

    An unassigned sample (label -1) is pulled to the `num_nearest` nearest ones, to all if there are fewer. An
    assigned sample is pulled to the representative of its own class, if `anchors` is "all" and that class has
    one. `sq_dist` is (B, K), `labels` (B,), `classes` (K,) those of the representatives.
    """
    num_nearest = min(num_nearest, sq_dist.shape[1])
    nearest = sq_dist.detach().topk(num_nearest, dim=1, largest=False, sorted=False).indices  # (B, Z)
    mask = torch.zeros_like(sq_dist, dtype=torch.bool).scatter_(
        1, nearest, (labels < 0)[:, None].expand_as(nearest)
    )
    return mask | (labels[:, None] == classes) if anchors == "all" else mask
