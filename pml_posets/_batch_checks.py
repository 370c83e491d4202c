"""Checks of what losses and miners are called with in every step."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from pytorch_metric_learning.distances.base_distance import BaseDistance

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_batch(
    embeddings: Any, labels: Any, ref_emb: Any = None, ref_labels: Any = None, *, lowest: int = -1
) -> None:
    """Check the types, shapes and values of a batch.

    Under torch.compile only types and shapes are checked: looking at values would break the graph.

    Args:
        embeddings: (B, D), floating point, finite.
        labels: None, or (B,) integers, none below `lowest`.
        ref_emb: None, or (R, D), like `embeddings`.
        ref_labels: None, or (R,), like `labels`.
        lowest: the smallest label allowed. Default -1.

    Raises:
        TypeError: not a tensor, embeddings that are not floats, labels that are not integers.
        ValueError: shapes that do not match, NaN or infinite embeddings, labels below `lowest`.

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
        if bad.numel():  # otherwise only the sum overflowed
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


def as_indices(indices: Any, num_samples: int | None, num_rows: int | None = None) -> torch.Tensor:
    """Dataset indices as int64 on the CPU.

    Args:
        indices: (B,) integers in 0..`num_samples` - 1.
        num_samples: the size of the dataset; None where it is not known.
        num_rows: B, the number of embeddings or images. Default None: any.

    Returns:
        (B,) int64 on the CPU, where PML's loaders put them.

    Raises:
        TypeError: not an integer tensor.
        ValueError: another number than `num_rows`, or an index out of range.

    Example:
        >>> as_indices(torch.tensor([3, 10]), num_samples=10)
        Traceback (most recent call last):
        ValueError: dataset indices must be in 0..9, got 3 to 10: does the dataset yield ...
    """
    if not isinstance(indices, torch.Tensor) or indices.dtype not in _INTEGERS:
        found = indices.dtype if isinstance(indices, torch.Tensor) else type(indices).__name__
        raise TypeError(
            f"dataset indices must be an integer tensor, got {found}: wrap the dataset in "
            "pml_posets.IndexedDataset"
        )
    if indices.ndim != 1 or (num_rows is not None and len(indices) != num_rows):
        wanted = "(B,)" if num_rows is None else f"({num_rows},)"
        raise ValueError(
            f"dataset indices must have shape {wanted}, one a sample, got {tuple(indices.shape)}"
        )
    indices = indices.detach().cpu().long()
    if num_samples is not None and indices.numel():
        low, high = (int(value) for value in torch.aminmax(indices))
        if low < 0 or high >= num_samples:
            raise ValueError(
                f"dataset indices must be in 0..{num_samples - 1}, got {low} to {high}: does the dataset "
                "yield (image, index), and do posets and features belong to it?"
            )
    return indices


def check_tuple(mined: Any, num_rows: int, num_refs: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """A miner's tuple, checked.

    Args:
        mined: (a1, p, a2, n) or (a, p, n), integer tensors.
        num_rows: the number of embeddings, which anchors index.
        num_refs: the number of rows of ref_emb, which positives and negatives index.
        device: where the result lies.

    Returns:
        The parts, int64.

    Raises:
        ValueError: another number of parts, parts of different lengths, indices out of range.

    Example:
        >>> empty = torch.zeros(0)
        >>> len(check_tuple((empty, empty, empty), 4, 4, torch.device("cpu")))
        3
    """
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
        values = torch.cat(tuple(some))
        if values.numel():
            low, high = (int(value) for value in torch.aminmax(values))
            if low < 0 or high >= limit:
                raise ValueError(
                    f"indices_tuple must hold indices in 0..{limit - 1}, found {low if low < 0 else high}: "
                    "mine on the same batch"
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
