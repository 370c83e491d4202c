"""Class heads from one round to the next: which class is which, and where its weights go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array, hstack, identity
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

Axes = Mapping[str, tuple[int, int]]
"""Name of a weight to the axis that the classes lie on, and its rows for each class."""

_OF_CLASSES = (("W", 2, 1), ("proxies", 2, 0), ("beta", 1, 0))  # of PML's losses: name, dimensions, axis


def match_classes(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """For each class that of the round before which it goes on, or -1, so that most samples stay in theirs.

    `before` and `after` are (N,) int64 labels, -1 for unassigned; no class goes on in two. This is
    `scipy.optimize.linear_sum_assignment` for the table of overlaps, by the sparse method: a table of 20,000
    x 20,000 classes has few entries that are not 0.

    Example:
        >>> match_classes(np.array([0, 0, 1, 1, 2, 2]), np.array([1, 1, 0, 0, 2, -1]))
        array([1, 0, 2])
    """
    old, new = int(before.max(initial=-1)) + 1, int(after.max(initial=-1)) + 1
    both = (before >= 0) & (after >= 0)
    if not both.any():
        return np.full(new, -1)
    pairs = (np.ones(both.sum()), (after[both], before[both]))
    overlap = coo_array(pairs, shape=(new, old)).tocsr()  # (C, C of before)
    none = identity(new, format="csr") / (2 * new)  # a column for each class that goes on none
    rows, columns = min_weight_full_bipartite_matching(hstack([overlap, none]).tocsr(), maximize=True)
    matches = np.full(new, -1)
    matches[rows] = np.where(columns < old, columns, -1)
    return matches


def class_axes(function: Callable[[int], Any], module: torch.nn.Module, num_classes: int) -> Axes | None:
    """Where the classes lie in the weights of what `function` returned for a number of them.

    The function is called for one class more. None if that does not tell.
    """
    try:
        larger = function(num_classes + 1)
        shapes = {name: weight.shape for name, weight in larger.state_dict().items()}
    except Exception:  # a function that knows its own numbers of classes only
        return None
    axes, state = {}, module.state_dict()
    for name, weight in state.items():
        other = shapes.get(name, torch.Size())
        if larger is module or len(other) != weight.ndim:
            return None
        for axis, (size, grown) in enumerate(zip(weight.shape, other, strict=True)):
            if size != grown:
                axes[name] = axis, grown - size
    fits = all(state[name].shape[axis] == rows * num_classes for name, (axis, rows) in axes.items())
    return axes if fits else None


def carry_rows(
    old: torch.Tensor, new: torch.Tensor, axis: int, rows: int, matches: np.ndarray
) -> torch.Tensor:
    """`new`, changed in place: `rows` on `axis` of each class that goes on (`matches`) come from `old`."""
    target = np.flatnonzero(matches >= 0)
    to, source = (
        torch.from_numpy((c[:, None] * rows + np.arange(rows)).reshape(-1)) for c in (target, matches[target])
    )
    with torch.no_grad():
        picked = old.index_select(axis, source.to(old.device)).to(new)
        return new.index_copy_(axis, to.to(new.device), picked)


def carry_state(
    old: torch.nn.Module,
    new: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None,
    axes: Axes,
    matches: np.ndarray,
) -> dict[torch.Tensor, dict[str, Any]]:
    """Take weights and buffers of a head over into a new one; rows of classes without a match stay.

    Returns what the optimizer knows of the new parameters: rows without a match are 0.
    """

    def carried(name: str, value: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
        if name in axes:
            return carry_rows(value, fresh, *axes[name], matches)
        return fresh.copy_(value) if value.shape == fresh.shape else fresh

    states: dict[torch.Tensor, dict[str, Any]] = {}
    before, parameters = old.state_dict(), dict(old.named_parameters())
    with torch.no_grad():
        for name, weight in new.state_dict().items():
            if name in before:
                carried(name, before[name], weight)
        for name, parameter in new.named_parameters():
            known = optimizer.state.get(parameters[name]) if optimizer and name in parameters else None
            if known:
                shape = parameters[name].shape
                states[parameter] = {
                    key: carried(name, value, torch.zeros_like(parameter, dtype=value.dtype))
                    if isinstance(value, torch.Tensor) and value.shape == shape
                    else value
                    for key, value in known.items()
                }
    return states


def class_axis(module: torch.nn.Module, num_outputs: int) -> Axes:
    """Weights of one layer with a single axis of this size, for heads that are given as modules."""
    rows = getattr(module, "sub_centers", getattr(module, "centers_per_class", 1))
    axes = {}
    for name, weight in module.named_parameters(recurse=False):
        fitting = [axis for axis, size in enumerate(weight.shape) if size == num_outputs * rows]
        if len(fitting) == 1 or (fitting and isinstance(module, torch.nn.Linear)):
            axes[name] = fitting[0], rows
    return axes


def num_outputs(layer: torch.nn.Module, name: str) -> int | None:
    """How many classes a layer of a head has room for; None if it is no such layer."""
    if name == "classifier":
        count = getattr(layer, "out_features", None)
    else:  # a loss of PML's; some keep weights of their classes alone
        kept = dict(layer.named_parameters(recurse=False))
        fitting = [
            kept[key].shape[axis] for key, dims, axis in _OF_CLASSES if key in kept and kept[key].ndim == dims
        ]
        count = getattr(layer, "num_classes", 0) or max(fitting, default=None)  # 0: of the last batch
        count = None if count == 1 else count  # MarginLoss has one beta for all by default
    return count if isinstance(count, int) else None
