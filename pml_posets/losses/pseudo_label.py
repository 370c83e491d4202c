"""Adapters between dataset indices in PML's labels channel and losses and miners of class ids.

What has a method `bind(posets)` takes dataset indices itself and is given the posets of each round; what has
none goes into `PseudoLabelLoss` or `PseudoLabelMiner`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias

import torch

from .._batch_checks import as_indices, check_tuple, warn_once
from .._validation import check_option
from ..posets import Posets

__all__ = ["PseudoLabelLoss", "PseudoLabelMiner", "WeightedLosses"]

Unassigned = Literal["drop", "keep", "own"]

_SIDES = {3: (0, 1, 1), 4: (0, 1, 0, 1)}  # which parts of a tuple index embeddings (0), which ref_emb (1)


class HasPosets(Protocol):
    """A store of posets that change, such as `PseudoLabelSampler`."""

    @property
    def posets(self) -> Posets:
        """Those of the current round."""


Store: TypeAlias = "Posets | HasPosets | None"


class _Adapter(torch.nn.Module):
    """Looks labels up; the posets are not a buffer, so that they stay out of logs and state dicts."""

    def __init__(self, inner: Any, posets: Store = None, unassigned: Unassigned = "drop") -> None:
        super().__init__()
        if not callable(inner) or isinstance(inner, type):
            raise TypeError(f"inner must be a loss or miner (an instance), got {inner!r}")
        if isinstance(inner, _Adapter) or (hasattr(inner, "bind") and getattr(inner, "posets", None)):
            kind = type(inner).__name__
            raise TypeError(f"inner must take class ids, but this {kind} takes indices itself")
        self.inner = inner
        self.unassigned = check_option(unassigned, "unassigned", Unassigned)
        self.bind(posets)

    def bind(self, posets: Store) -> None:
        """Look labels up in these `Posets` from now on, or in those that a store (a sampler) has then."""
        self._store = posets

    def class_ids(self, indices: torch.Tensor, num_rows: int | None = None) -> torch.Tensor:
        """(B,) dataset indices to (B,) int64 class ids on the CPU, -1 for unassigned ("own": C + index).

        Raises:
            RuntimeError: if nothing is bound.
            TypeError, ValueError: for what are no indices, are out of range or not `num_rows` (if given).
        """
        posets = getattr(self._store, "posets", self._store)
        if not isinstance(posets, Posets):
            raise RuntimeError("no posets are bound: call bind(posets), or bind(sampler)")
        indices = as_indices(indices, posets.num_samples, num_rows)
        labels = torch.from_numpy(posets.labels)[indices]
        if self.unassigned == "own":
            labels = torch.where(labels < 0, posets.num_classes + indices, labels)
        return labels

    def _classes(
        self,
        embeddings: torch.Tensor,
        indices: torch.Tensor,
        ref_emb: torch.Tensor | None,
        ref_labels: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B,) and (R,) class ids, and which of them stay, on the CPU."""
        if (ref_emb is None) != (ref_labels is None):
            raise ValueError("ref_emb and ref_labels must be given together, the latter as dataset indices")
        labels = self.class_ids(indices, len(embeddings))
        refs = labels if ref_labels is None or ref_emb is None else self.class_ids(ref_labels, len(ref_emb))
        lowest = 0 if self.unassigned == "drop" else -1
        return labels, refs, labels >= lowest, refs >= lowest

    def extra_repr(self) -> str:
        return f"unassigned={self.unassigned!r}"


class PseudoLabelLoss(_Adapter):
    """Any loss of class ids, given dataset indices: labels are looked up in the posets of the round.

    Args:
        inner: called with (embeddings or logits, class ids), and with the tuple of a miner and ref_emb,
            ref_labels if they are given: a PML loss, or a classification loss such as CrossEntropyLoss.
        posets: `Posets`, or a store with an attribute `posets` that changes, such as the sampler; None
            (default): to be given by `bind`.
        unassigned: what happens to unassigned samples. "drop" (default): they are left out, with their
            pairs and triplets; "keep": they have the label -1, for losses that know what it means
            (`PosetLoss`) or see only the miner's tuple; "own": each is a class of its own with an id from C
            up, for losses of pairs (not for those with a proxy or logit for each class).

    Shapes: embeddings (B, D), indices (B,) integers; the loss is what `inner` returns. Without any sample
    left it is 0, with a gradient path, never NaN.

    Raises:
        TypeError, ValueError: for bad indices or options, or a tuple that was not mined by the same classes.
        RuntimeError: if nothing is bound when it is called.

    Source: Eq. 3 of the paper (the indicator y_i != -1).
    Differs from the paper: a mean over the assigned samples, not over all of the batch: lambda does not
    depend on how many are assigned.

    Example:
        >>> import numpy as np
        >>> posets = Posets.build(np.float32([[0.0], [0.1], [5.0]]), [0, 0, -1])
        >>> loss = PseudoLabelLoss(torch.nn.CrossEntropyLoss(), posets)
        >>> loss(torch.zeros(2, 4), torch.tensor([1, 2])).item()  # sample 2 is left out
        1.3862943649291992
    """

    def __init__(self, inner: Any, posets: Store = None, unassigned: Unassigned = "drop") -> None:
        super().__init__(inner, posets, unassigned)
        if unassigned != "drop" and (kind := kind_with_classes(inner, unassigned)):
            raise ValueError(
                f"unassigned must be 'drop' for {kind}, which has an output or a proxy for each class and "
                f"none for unassigned samples, got {unassigned!r}"
            )

    def forward(
        self,
        embeddings: torch.Tensor,
        indices: torch.Tensor,
        indices_tuple: Any = None,
        ref_emb: torch.Tensor | None = None,
        ref_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The inner loss; `indices` and `ref_labels` are dataset indices."""
        labels, refs, kept, ref_kept = self._classes(embeddings, indices, ref_emb, ref_labels)
        if indices_tuple is not None:
            parts = check_tuple(indices_tuple, len(labels), len(refs), embeddings.device)
            self._check_mined(parts, labels, refs, ref_emb is None)
            indices_tuple = _restrict(parts, kept, ref_kept)
        x, labels, refs = _rows(embeddings, kept), labels[kept].to(embeddings.device), refs[ref_kept]
        if not len(labels) or not len(refs):
            return embeddings[:0].sum()  # 0, with a gradient path
        if ref_emb is not None:
            return self.inner(x, labels, indices_tuple, _rows(ref_emb, ref_kept), refs.to(ref_emb.device))
        return self.inner(x, labels) if indices_tuple is None else self.inner(x, labels, indices_tuple)

    def _check_mined(
        self, mined: tuple[torch.Tensor, ...], labels: torch.Tensor, refs: torch.Tensor, same: bool
    ) -> None:
        """Refuse a tuple that was mined by something else than these classes; warn where it may have been."""
        a1, p, a2, n = (part.cpu() for part in (mined if len(mined) == 4 else (*mined[:2], *mined[::2])))
        advice = "does the miner see class ids? Bind it, or wrap it in PseudoLabelMiner"
        against = int(((labels[a2] == refs[n]) & (refs[n] >= 0)).sum())
        if against and (not len(a1) or (same and torch.equal(a1, p))):
            raise ValueError(
                "indices_tuple must be mined by class ids, got no positive pair of two samples and "
                f"{against} negative pairs of one class: {advice}"
            )
        assigned = labels[labels >= 0]
        if against or (not len(a1) and not len(a2) and same and len(assigned.unique()) < len(assigned)):
            found = f"{against} negative pairs of one class" if against else "no pair at all"
            warn_once(self, f"PseudoLabelLoss was given {found} by the miner: {advice}")


class PseudoLabelMiner(_Adapter):
    """Any PML miner of class ids, given dataset indices; its tuple points into the whole batch.

    Args:
        inner: a PML miner. `NearestMedoidMiner` takes indices itself once it is bound; put it in here only if
            it is to use the medoids of the batch (with unassigned="keep").
        posets, unassigned: as in `PseudoLabelLoss`; dropped samples are in no pair.

    A batch without a sample to mine gives an empty tuple. Raises what `PseudoLabelLoss` does.

    Example:
        >>> import numpy as np
        >>> from pytorch_metric_learning.miners import MultiSimilarityMiner
        >>> posets = Posets.build(np.float32([[0.0], [0.1], [5.0], [5.1], [9.0]]), [0, 0, 1, 1, -1])
        >>> miner = PseudoLabelMiner(MultiSimilarityMiner(epsilon=9.0), posets)
        >>> a1, p, a2, n = miner(torch.eye(4), torch.tensor([4, 0, 1, 2]))
        >>> sorted(set(a1.tolist()))
        [1, 2]
    """

    _gives_subsets = False

    def forward(
        self,
        embeddings: torch.Tensor,
        indices: torch.Tensor,
        ref_emb: torch.Tensor | None = None,
        ref_labels: torch.Tensor | None = None,
    ) -> Any:
        """The inner miner's tuple; `indices` and `ref_labels` are dataset indices."""
        labels, refs, kept, ref_kept = self._classes(embeddings, indices, ref_emb, ref_labels)
        rows, ref_rows = (mask.nonzero().squeeze(1).to(embeddings.device) for mask in (kept, ref_kept))
        if not len(rows) or not len(ref_rows):
            if hasattr(self.inner, "reset_stats"):
                self.inner.reset_stats()
            return rows[:0] if self._gives_subsets else (rows[:0],) * 4
        given = [_rows(embeddings, kept), labels[kept].to(embeddings.device)]
        if ref_emb is not None:
            given += [_rows(ref_emb, ref_kept), refs[ref_kept].to(ref_emb.device)]
        mined = self.inner(*given)
        self._gives_subsets = isinstance(mined, torch.Tensor)  # as a subset_batch_miner does
        if self._gives_subsets:
            return rows[mined.to(rows.device)]
        sides = _SIDES[len(mined)]
        return tuple((rows, ref_rows)[side][part] for side, part in zip(sides, mined, strict=True))

    def __getattr__(self, name: str) -> Any:
        # record-keeper looks for the inner miner's records (number of pairs, ...) here.
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "inner" or name.startswith("__"):
                raise
            return getattr(self.inner, name)


class WeightedLosses(torch.nn.Module):
    """A weighted sum of losses that take dataset indices, as one loss: sum_k w_k L_k.

    Args:
        losses: modules with a method `bind` (`PseudoLabelLoss`, `FeatureLoss`), by name.
        weights: a finite number from 0 for each name; a loss of weight 0 is left out. Default None: all 1.

    Attributes:
        values: name to the loss of the last call, a scalar, detached and unweighted, for logs.

    Raises:
        TypeError: for a loss without `bind`.
        ValueError: for weights that do not go with the losses, or none above 0.

    Example:
        >>> import numpy as np
        >>> from pml_posets.losses import FeatureLoss, PosetLoss
        >>> features = np.float32([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [0.7, 0.7]])
        >>> poset = PseudoLabelLoss(PosetLoss(sigma=0.5), unassigned="keep")
        >>> parts = {"poset": poset, "feature": FeatureLoss(2, features)}
        >>> both = WeightedLosses(parts, {"poset": 1.0, "feature": 3.0})
        >>> both.bind(Posets.build(features, [0, 0, 1, -1]))
        >>> both(torch.from_numpy(features), torch.arange(4)).item() > 0
        True
    """

    def __init__(
        self, losses: Mapping[str, torch.nn.Module], weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        weights = {name: 1.0 for name in losses} if weights is None else dict(weights)
        if sorted(weights) != sorted(losses) or not all(0 <= w < math.inf for w in weights.values()):
            names = f"the names of the losses, {sorted(losses)}"
            raise ValueError(f"weights must be finite numbers from 0 with {names}, got {weights}")
        if not any(weights.values()):
            raise ValueError("there is no loss with a weight above 0: give at least one")
        for name, loss in losses.items():
            if "." in name or hasattr(torch.nn.ModuleDict, name):
                raise ValueError(
                    f"losses has the name {name!r}, which a torch.nn.ModuleDict cannot hold: take another"
                )
            if not hasattr(loss, "bind"):
                raise TypeError(f"the loss {name} takes no dataset indices: put it into PseudoLabelLoss")
        self.weights = {name: float(weight) for name, weight in weights.items() if weight}
        self.losses = torch.nn.ModuleDict({name: losses[name] for name in self.weights})
        self.values: dict[str, torch.Tensor] = {}

    def bind(self, posets: Posets) -> None:
        """Bind every loss."""
        for loss in self.losses.values():
            loss.bind(posets)  # type: ignore[operator]

    def forward(self, embeddings: torch.Tensor, indices: torch.Tensor, *rest: Any) -> torch.Tensor:
        """The sum for (B, D) embeddings and (B,) dataset indices; the rest goes to every loss."""
        terms = {name: loss(embeddings, indices, *rest) for name, loss in self.losses.items()}
        self.values = {name: value.detach() for name, value in terms.items()}
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()


def kind_with_classes(loss: Any, unassigned: Unassigned) -> str | None:
    """The name of a loss of torch or PML, in `loss`, that takes ids of its own classes alone."""
    for part in loss.modules() if isinstance(loss, torch.nn.Module) else ():
        ignored = unassigned == "keep" and getattr(part, "ignore_index", None) == -1
        of_torch = isinstance(part, torch.nn.CrossEntropyLoss | torch.nn.NLLLoss) and not ignored
        several = hasattr(part, "num_classes") or torch.as_tensor(getattr(part, "beta", 0.0)).numel() > 1
        if of_torch or (several and type(part).__module__.startswith("pytorch_metric_learning")):
            return type(part).__name__
    return None


def _rows(x: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The rows of x, on any device, that a mask on the CPU keeps."""
    return x if bool(kept.all()) else x[kept.nonzero().squeeze(1).to(x.device)]


def _restrict(
    mined: tuple[torch.Tensor, ...], kept: torch.Tensor, ref_kept: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """A tuple of pairs or triplets without the samples that are dropped, pointing into the rest."""
    masks = [(kept, ref_kept)[side].to(mined[0].device) for side in _SIDES[len(mined)]]
    parts = list(mined)
    for group in [(0, 1, 2)] if len(mined) == 3 else [(0, 1), (2, 3)]:
        whole = torch.stack([masks[i][parts[i]] for i in group]).all(dim=0)
        for i in group:
            parts[i] = (masks[i].cumsum(0) - 1)[parts[i][whole]]
    return tuple(parts)
