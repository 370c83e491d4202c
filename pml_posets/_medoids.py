"""What PosetLoss and NearestMedoidMiner share: squared distances, medoids of a batch, who is pulled to whom.

A class is represented by its medoid, the member with the smallest summed distance to the others. Everything
here works on plain embeddings and labels; rounds, datasets and posets are unknown to it.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal

import torch
from pytorch_metric_learning.distances import LpDistance, SNRDistance
from pytorch_metric_learning.distances.base_distance import BaseDistance

__all__ = ["Anchors", "batch_medoids", "check_batch", "positive_mask", "squared_distances"]

Anchors = Literal["all", "unassigned"]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_BLOCK_ROWS = {"cpu": 128}  # assigned samples whose distances are taken at once; classes are never split
_BLOCK_ROWS_ELSEWHERE = 2048
_TIE_EPS = 64  # summed distances closer than this many machine epsilons count as equal


def default_distance() -> BaseDistance:
    """The d^2 of Eq. 4: squared Euclidean distance between L2-normalised embeddings."""
    return LpDistance(normalize_embeddings=True, p=2, power=2)


def full_precision(x: torch.Tensor, ref: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The pair in one dtype of at least 32 bits; `ref is x` stays true."""
    dtype = torch.promote_types(x.dtype, ref.dtype)
    if dtype.itemsize < 4:
        dtype = torch.float32
    same = ref is x
    x = x.to(dtype)
    return x, x if same else ref.to(dtype)


def squared_distances(distance: BaseDistance, x: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """The d^2 of Eq. 4 by any PML distance.

    A distance of power 2 stands as it is and one of power 1 is squared. A similarity s becomes 2 - 2s, which
    for cosine is the squared distance of the normalised embeddings.

    Args:
        distance: a PML distance of power 1 or 2, or a similarity of power 1 (see `check_distance`).
        x: (B, D) floating point, at least 32 bits.
        ref: (K, D), dtype of `x`.

    Returns:
        (B, K), dtype of `x`; not negative unless the similarity exceeds 1.

    Example:
        >>> x = torch.tensor([[3.0, 0.0], [0.0, 5.0]])
        >>> squared_distances(LpDistance(power=1), x, x[:1]).flatten().round(decimals=4).tolist()
        [0.0, 2.0]
    """
    mat = distance(x, ref)  # (B, K)
    if distance.is_inverted:
        return 2 - 2 * mat
    return mat if distance.power == 2 else mat.square()


def batch_medoids(
    embeddings: torch.Tensor, labels: torch.Tensor, distance: BaseDistance | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The medoid of every class in a batch.

    medoid_c = argmin over i in class c of sum over j in class c of d(x_i, x_j), d unsquared. Sums that differ
    by rounding alone are tied, and of tied members the one with the lowest index is taken; so it is in a
    class of two. No gradient flows here: it flows through the rows that the caller picks by the result.

    Args:
        embeddings: (B, D), floating point.
        labels: (B,) integers, -1 for a sample without a class.
        distance: a PML distance; None (default) for normalised Euclidean.

    Returns:
        Indices of the medoids, (K,) int64, and their classes, (K,) in the dtype of `labels`, ascending. Both
        are empty without an assigned sample. Memory is K blocks of a class squared, in groups of a hundred
        samples or so, not B x B (only a class that holds the whole batch needs that).

    Source: "Deep Unsupervised Similarity Learning using Partially Ordered Sets" (CVPR 2017), section 3.2.
    Differs from the paper: the medoids are those of the batch, not of the whole class.

    Example:
        >>> embeddings = torch.tensor([[0.0], [1.0], [3.0], [9.0], [2.0]])
        >>> plain = LpDistance(normalize_embeddings=False)
        >>> batch_medoids(embeddings, torch.tensor([7, 7, 7, 2, -1]), plain)
        (tensor([3, 1]), tensor([2, 7]))
    """
    distance = default_distance() if distance is None else distance
    device = embeddings.device
    with torch.no_grad(), torch.autocast(device_type=device.type, enabled=False):
        ordered, order = torch.sort(labels, stable=True)  # -1 first, then class by class
        num_unassigned = int((labels < 0).sum())
        ordered, order = ordered[num_unassigned:], order[num_unassigned:]  # (A,)
        if order.numel() == 0:
            return order, ordered
        opens = torch.ones_like(ordered, dtype=torch.bool)
        opens[1:] = ordered[1:] != ordered[:-1]
        group = opens.cumsum(0) - 1  # (A,) in 0..K-1
        starts = opens.nonzero().squeeze(1)  # (K,)
        x, _ = full_precision(embeddings, embeddings)
        sums = _summed_distances(x[order], group, starts, distance)  # (A,)

        num_classes, num_assigned = starts.numel(), order.numel()
        best = sums.new_full((num_classes,), math.inf).scatter_reduce_(0, group, sums, "amin")
        slack = best.abs() * (_TIE_EPS * torch.finfo(sums.dtype).eps)
        place = torch.arange(num_assigned, device=device)
        place = place.masked_fill(sums > (best + slack)[group], num_assigned - 1)
        first = place.new_full((num_classes,), num_assigned - 1).scatter_reduce_(0, group, place, "amin")
        return order[first], ordered[starts]


def _summed_distances(
    x: torch.Tensor, group: torch.Tensor, starts: torch.Tensor, distance: BaseDistance
) -> torch.Tensor:
    """Sum of each row's unsquared distances to its own group, (A, D) -> (A,); rows are sorted by group."""
    rows = _BLOCK_ROWS.get(x.device.type, _BLOCK_ROWS_ELSEWHERE)
    if len(x) <= rows:
        return _block_sums(x, group, distance)
    window = torch.div(starts, rows, rounding_mode="floor")  # a block: the classes that start in one window
    opens = torch.ones_like(window, dtype=torch.bool)
    opens[1:] = window[1:] != window[:-1]
    bounds = [*starts[opens].tolist(), len(x)]
    return torch.cat([_block_sums(x[a:b], group[a:b], distance) for a, b in pairwise(bounds)])


def _block_sums(x: torch.Tensor, group: torch.Tensor, distance: BaseDistance) -> torch.Tensor:
    mat = squared_distances(distance, x, x)  # (b, b)
    if not isinstance(distance, SNRDistance):  # the one that is not symmetric by definition
        mat = mat + mat.T  # by rounding it may not be: so that two members are exactly tied
    if distance.is_inverted:  # 2 - 2s may be negative: keep its order
        mat = mat.sign() * mat.abs().sqrt()
    else:
        mat = mat.sqrt()
    mat = mat.masked_fill(group[:, None] != group[None, :], 0).fill_diagonal_(0)
    return mat.sum(dim=1)


def positive_mask(
    sq_dist: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor, num_nearest: int, anchors: Anchors
) -> torch.Tensor:
    """Which representatives each sample is pulled to.

    An unassigned sample (label -1) is pulled to the `num_nearest` nearest ones, to all if there are fewer. An
    assigned sample is pulled to the representative of its own class, if `anchors` is "all" and that class has
    one.

    Args:
        sq_dist: (B, K) squared distances to the representatives.
        labels: (B,) integers, -1 unassigned.
        classes: (K,) integers >= 0, the representatives' classes.
        num_nearest: Z, at least 1.
        anchors: "all" or "unassigned".

    Returns:
        (B, K) bool; a row without True is no anchor.

    Example:
        >>> sq_dist = torch.tensor([[0.0, 4.0, 9.0], [2.0, 1.0, 3.0]])
        >>> positive_mask(sq_dist, torch.tensor([5, -1]), torch.tensor([5, 6, 8]), 2, "all").int().tolist()
        [[1, 0, 0], [1, 1, 0]]
    """
    num_nearest = min(num_nearest, sq_dist.shape[1])
    nearest = sq_dist.detach().topk(num_nearest, dim=1, largest=False, sorted=False).indices  # (B, Z)
    mask = torch.zeros_like(sq_dist, dtype=torch.bool).scatter_(1, nearest, True)
    mask &= (labels < 0)[:, None]
    if anchors == "all":
        mask |= labels[:, None] == classes[None, :]
    return mask


def check_batch(
    embeddings: Any, labels: Any, ref_emb: Any = None, ref_labels: Any = None, *, lowest: int = -1
) -> None:
    """Raise what is wrong with a batch, in words; cheap enough for every step.

    Under torch.compile the values are not looked at (that would break the graph): only types and shapes are.

    Args:
        embeddings: to be (B, D), floating point, finite.
        labels: None, or to be (B,) integers, none below `lowest`.
        ref_emb: None, or as `embeddings`, with the same D.
        ref_labels: None, or as `labels` for `ref_emb`.
        lowest: the smallest label allowed.

    Raises:
        TypeError: for something that is no tensor, embeddings that are no floats, labels that are no
            integers.
        ValueError: for shapes that do not match, NaN or infinite embeddings, labels below `lowest`.

    Example:
        >>> check_batch(torch.zeros(4, 8), torch.tensor([0, 0, -1]))
        Traceback (most recent call last):
        ValueError: labels must have shape (4,) to match embeddings (4, 8), got (3,): give one label a sample
    """
    _check_embeddings("embeddings", embeddings)
    if labels is not None:
        _check_labels("labels", labels, "embeddings", embeddings, lowest)
    if ref_emb is None:
        if ref_labels is not None:
            raise ValueError("ref_labels were given without ref_emb: give both, or neither")
        return
    if ref_emb is not embeddings:
        _check_embeddings("ref_emb", ref_emb)
        if ref_emb.shape[1] != embeddings.shape[1]:
            raise ValueError(
                f"ref_emb must have {embeddings.shape[1]} columns like embeddings {tuple(embeddings.shape)}, "
                f"got {tuple(ref_emb.shape)}: embed both with the same model"
            )
    if ref_labels is not None and not (ref_labels is labels and ref_emb is embeddings):
        _check_labels("ref_labels", ref_labels, "ref_emb", ref_emb, lowest)


def _check_embeddings(name: str, x: Any) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(x).__name__}: convert it by torch.as_tensor"
        )
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}: convert them by {name}.float()")
    if x.ndim != 2:
        raise ValueError(
            f"{name} must have shape (batch, dimensions), got {tuple(x.shape)}: flatten each sample"
        )
    if torch.compiler.is_compiling():
        return
    x = x.detach()
    if not math.isfinite(x.sum(dtype=torch.promote_types(x.dtype, torch.float32)).item()):
        bad = (~x.isfinite()).any(dim=1).nonzero().squeeze(1)
        if bad.numel():  # else the sum alone overflowed
            raise ValueError(
                f"{name} must be finite, found NaN or infinity in {bad.numel()} of {len(x)} rows (first: row "
                f"{int(bad[0])}): lower the learning rate, or look for bad inputs and divisions by zero"
            )


def _check_labels(name: str, labels: Any, owner: str, x: torch.Tensor, lowest: int) -> None:
    if not isinstance(labels, torch.Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(labels).__name__}: convert them by torch.as_tensor"
        )
    if labels.dtype not in _INTEGERS:
        raise TypeError(f"{name} must be integers, got {labels.dtype}: convert them by {name}.long()")
    if labels.shape != (len(x),):
        raise ValueError(
            f"{name} must have shape ({len(x)},) to match {owner} {tuple(x.shape)}, got "
            f"{tuple(labels.shape)}: give one label a sample"
        )
    if torch.compiler.is_compiling() or labels.numel() == 0:
        return
    smallest = int(labels.min())
    if smallest < lowest:
        hint = "mark every sample without a class by -1" if lowest == -1 else "ids count from 0"
        raise ValueError(f"{name} must be {lowest} or more, found {smallest}: {hint}")


def check_distance(distance: Any) -> None:
    """Raise unless d^2 can be had from `distance`."""
    if not isinstance(distance, BaseDistance):
        raise TypeError(
            f"distance must be a pytorch_metric_learning distance, got {type(distance).__name__}: "
            "give for example LpDistance(power=2) or CosineSimilarity()"
        )
    allowed = (1,) if distance.is_inverted else (1, 2)
    if distance.power not in allowed:
        kind = "a similarity" if distance.is_inverted else "a distance"
        raise ValueError(
            f"{kind} must have power {' or '.join(map(str, allowed))}, got {distance.power}: d^2 comes of it"
        )
