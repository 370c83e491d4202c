"""Checks of what losses and miners are called with in every step."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from pytorch_metric_learning.distances.base_distance import BaseDistance

from ._validation import check_shape

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_batch(
    embeddings: Any, labels: Any, ref_emb: Any = None, ref_labels: Any = None, *, lowest: int = -1
) -> None:
    """Check (B, D) embeddings, (B,) labels from `lowest` or None, and the like of references, or None.

    Under torch.compile only types and shapes are checked: looking at values would break the graph.
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
        check_width("ref_emb", ref_emb, embeddings.shape[1], f"embeddings {tuple(embeddings.shape)}")
    if ref_labels is not None and not (ref_labels is labels and ref_emb is embeddings):
        _check_labels("ref_labels", ref_labels, "ref_emb", ref_emb, lowest)


def check_width(name: str, x: torch.Tensor, width: int, like: str) -> None:
    """Raise unless (B, D) `x` is as wide as something else."""
    if x.shape[1] != width:
        raise ValueError(f"{name} must have {width} columns like {like}, got {tuple(x.shape)}")


def _check_embeddings(name: str, x: Any) -> None:
    _check_tensor(name, x)
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}: convert them by {name}.float()")
    check_shape(x, name, ("batch", "dimensions"), advice=": flatten each sample")
    if torch.compiler.is_compiling():
        return
    x = x.detach()
    if not math.isfinite(x.sum(dtype=torch.promote_types(x.dtype, torch.float32)).item()):
        bad = (~x.isfinite()).any(dim=1).nonzero().squeeze(1)
        if bad.numel():  # otherwise only the sum overflowed
            raise ValueError(
                f"{name} must be finite, found NaN or infinity in {bad.numel()} of {len(x)} rows (first: row "
                f"{int(bad[0])}): lower the learning rate, or look for bad inputs and divisions by zero"
            )


def _check_tensor(name: str, x: Any) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(x).__name__}: convert it by torch.as_tensor"
        )


def _check_labels(name: str, labels: Any, owner: str, x: torch.Tensor, lowest: int) -> None:
    _check_tensor(name, labels)
    if labels.dtype not in _INTEGERS:
        raise TypeError(f"{name} must be integers, got {labels.dtype}: convert them by {name}.long()")
    why = f" to match {owner} {tuple(x.shape)}"
    check_shape(labels, name, (len(x),), why, ": give one label a sample")
    if torch.compiler.is_compiling() or labels.numel() == 0:
        return
    smallest = int(labels.min())
    if smallest < lowest:
        hint = "mark every sample without a class by -1" if lowest == -1 else "ids count from 0"
        raise ValueError(f"{name} must be {lowest} or more, found {smallest}: {hint}")


def out_of_range(indices: torch.Tensor, limit: int) -> tuple[int, int] | None:
    """The lowest and highest of the indices, if they are not all in 0..`limit` - 1."""
    if not indices.numel():
        return None
    low, high = (int(value) for value in torch.aminmax(indices))
    return (low, high) if low < 0 or high >= limit else None


def as_indices(indices: Any, num_samples: int | None, num_rows: int | None = None) -> torch.Tensor:
    """(B,) dataset indices as int64 on the CPU, where PML's loaders put them.

    None for `num_samples`, the size of the dataset, or for `num_rows`, B, leaves it unchecked.
    """
    if not isinstance(indices, torch.Tensor) or indices.dtype not in _INTEGERS:
        found = indices.dtype if isinstance(indices, torch.Tensor) else type(indices).__name__
        raise TypeError(
            f"dataset indices must be an integer tensor, got {found}: wrap the dataset in "
            "pml_posets.IndexedDataset"
        )
    check_shape(indices, "dataset indices", ("B" if num_rows is None else num_rows,), ", one a sample")
    indices = indices.detach().cpu().long()
    if num_samples is not None and (range_ := out_of_range(indices, num_samples)):
        raise ValueError(
            f"dataset indices must be in 0..{num_samples - 1}, got {range_[0]} to {range_[1]}: does the "
            "dataset yield (image, index), and do posets and features belong to it?"
        )
    return indices


def check_tuple(mined: Any, num_rows: int, num_refs: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """A miner's (a1, p, a2, n) or (a, p, n), int64: anchors among `num_rows`, partners among `num_refs`."""
    if not isinstance(mined, tuple | list) or len(mined) not in (3, 4):
        found = len(mined) if isinstance(mined, tuple | list) else type(mined).__name__
        raise ValueError(
            f"indices_tuple must be (a1, p, a2, n) or (a, p, n), got {found}: use a PML miner's output"
        )
    parts = tuple(torch.as_tensor(part, device=device).long() for part in mined)
    for group in (parts[:2], parts[2:]) if len(parts) == 4 else (parts,):
        if any(part.ndim != 1 or part.shape != group[0].shape for part in group):
            raise ValueError(
                "anchors and their partners in indices_tuple must be 1-D and of one length, got "
                f"{', '.join(str(tuple(part.shape)) for part in parts)}"
            )
    if torch.compiler.is_compiling():
        return parts
    anchors, partners = ([parts[0]], [*parts[1:]]) if len(parts) == 3 else (parts[::2], parts[1::2])
    limits = {num_rows: parts} if num_rows == num_refs else {num_rows: anchors, num_refs: partners}
    for limit, some in limits.items():
        if bad := out_of_range(torch.cat(tuple(some)), limit):
            raise ValueError(
                f"indices_tuple must hold indices in 0..{limit - 1}, found "
                f"{bad[0] if bad[0] < 0 else bad[1]}: mine on the same batch"
            )
    return parts


def check_distance(distance: Any) -> None:
    """Raise unless d^2 can be computed from `distance`: a PML distance of power 1 or 2, or a similarity."""
    if not isinstance(distance, BaseDistance):
        raise TypeError(
            f"distance must be a pytorch_metric_learning distance, got {type(distance).__name__}: "
            "give for example LpDistance(power=2) or CosineSimilarity()"
        )
    allowed = (1,) if distance.is_inverted else (1, 2)
    if distance.power not in allowed:
        kind = "a similarity" if distance.is_inverted else "a distance"
        raise ValueError(
            f"{kind} must have power {' or '.join(map(str, allowed))}, got {distance.power}: d^2 is needed"
        )


def warn_once(owner: torch.nn.Module, message: str) -> None:
    """Warn of a batch that teaches nothing, the first time that `owner` sees one."""
    if not torch.compiler.is_compiling() and not getattr(owner, "_has_warned", False):
        owner._has_warned = True  # type: ignore[assignment]
        warnings.warn(message, stacklevel=3)
