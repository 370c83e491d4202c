"""NearestMedoidMiner: pairs of samples and class representatives, for PosetLoss and PML's tuple losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pytorch_metric_learning.distances.base_distance import BaseDistance
from pytorch_metric_learning.miners import BaseMiner

from ._batch_checks import as_indices, check_batch, check_distance, warn_once
from ._medoids import (
    Anchors,
    default_distance,
    positive_mask,
    prepared_distances,
    prepared_medoids,
    prepared_pair,
    without_autocast,
)
from ._validation import as_count, check_option

if TYPE_CHECKING:
    from .losses.pseudo_label import Store

__all__ = ["NearestMedoidMiner"]


class NearestMedoidMiner(BaseMiner):
    """Pair each sample with the medoids of its Z nearest classes against the other medoids: (a1, p, a2, n).

    **Unbound** (posets=None), labels are class ids from 0, and -1 for an unassigned sample. Representatives
    and positives are those of `PosetLoss`, all other representatives are negatives: `loss(e, y)` and
    `loss(e, y, miner(e, y))` agree if both have the same `num_nearest`, `anchors` and distance.

    **Bound** to `Posets`, by `posets=` or by `bind` at each new round, the labels channel carries **dataset
    indices** (ref_labels too). Classes, medoids and nearest classes are then those of the round, not those of
    the current embeddings: representatives are the medoids of the round that are in the batch (of several
    copies the first), the positives of an unassigned sample are those of its first `num_nearest`
    `Posets.nearest_classes` that are in it; without one it is no anchor. A loss given along with this tuple
    still expects class ids, `posets.labels[indices]`.

    A medoid is never paired with itself: it has negatives alone. `PosetLoss` counts it as its own positive;
    other losses need no such pair, and some have no finite gradient for it.

    Args:
        num_nearest: Z, at least 1, and at most that of the posets. Default 2 (the paper: 2 or more).
        anchors: "all" (default): assigned samples are anchors too. "unassigned": the paper's L2.
        posets: the `Posets` to be bound to, or a sampler that has them, or None (default).
        **kwargs: PML's distance and collect_stats. The default distance is that of `PosetLoss`,
            LpDistance(normalize_embeddings=True, p=2, power=2); a bound miner uses no distance at all.

    Returns:
        Of `forward(embeddings, labels, ref_emb=None, ref_labels=None)`: a1, p, a2, n, int64 tensors on the
        embeddings' device. a1 and a2 index embeddings, p and n index ref_emb (embeddings if None). All are
        empty without an anchor or a representative. Memory is linear in samples times representatives.

    Raises:
        TypeError, ValueError: as `PosetLoss`; for other dataset indices, or posets with a smaller Z.

    Source: section 3.3 of the paper, the pairs of Eq. 4; bound, the R^(m) of Eq. 6.
    Differs from the paper: unbound, representatives are of the batch; assigned samples are anchors too.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.1], [0.5, 0.6]])
        >>> labels = torch.tensor([0, 0, 1, 2, -1])
        >>> a1, p, a2, n = NearestMedoidMiner(anchors="unassigned")(embeddings, labels)
        >>> a1.tolist(), p.tolist(), a2.tolist(), n.tolist()
        ([4, 4], [0, 2], [4], [3])
    """

    def __init__(
        self,
        num_nearest: int = 2,
        anchors: Anchors = "all",
        posets: Store = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_distance(self.distance)
        self.num_nearest = as_count(num_nearest, "num_nearest")
        self.anchors = check_option(anchors, "anchors", Anchors)
        self.add_to_recordable_attributes(name="num_nearest", is_stat=False)
        self.bind(posets)

    def get_default_distance(self) -> BaseDistance:
        """Squared Euclidean distance of L2-normalized embeddings."""
        return default_distance()

    def bind(self, posets: Store) -> None:
        """Take classes and representatives from `posets` from now on; None: from the batch again.

        Args:
            posets: anything with `labels` (N,), `medoids` (C,) and `nearest_classes` (N, Z); or a store that
                has the current ones as `.posets` (a `PseudoLabelSampler`), looked at with every batch.

        Raises:
            TypeError, ValueError: if one of the three is missing or does not match, or Z is too small.
        """
        self._store = posets if hasattr(posets, "posets") else None
        self._take(posets if self._store is None else self._store.posets)

    def _take(self, posets: Any) -> None:
        """Copy the tables of these posets."""
        self._tables: tuple[torch.Tensor, ...] = ()
        self.posets = posets
        if posets is None:
            return
        names = ("labels", "medoids", "nearest_classes")
        missing = [name for name in names if not hasattr(posets, name)]
        if missing:
            without = f"{type(posets).__name__} without {', '.join(missing)}"
            raise TypeError(f"posets must be a pml_posets.posets.Posets, got {without}: use Posets.build")
        tables = (torch.from_numpy(np.array(getattr(posets, name), dtype=np.int64)) for name in names)
        labels, medoids, nearest = tables
        if labels.ndim != 1 or medoids.ndim != 1 or nearest.ndim != 2 or len(nearest) != len(labels):
            raise ValueError(
                "posets must have labels (N,), medoids (C,) and nearest_classes (N, Z), got "
                f"{tuple(labels.shape)}, {tuple(medoids.shape)}, {tuple(nearest.shape)}"
            )
        if nearest.shape[1] < self.num_nearest:
            raise ValueError(
                f"posets must have at least num_nearest={self.num_nearest} nearest classes a sample, got "
                f"{nearest.shape[1]}: build them with num_nearest={self.num_nearest} or more"
            )
        self._tables = (labels, medoids, nearest[:, : self.num_nearest].contiguous())

    def forward(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        ref_emb: torch.Tensor | None = None,
        ref_labels: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The pairs (a1, p, a2, n) of a batch; shapes and errors as in the class's description."""
        if labels is None or (ref_emb is not None and ref_labels is None):
            missing = "labels" if labels is None else "ref_labels"
            raise ValueError(f"{missing} must be given, got None: the miner finds the classes by them")
        if self._store is not None and self._store.posets is not self.posets:
            self._take(self._store.posets)
        check_batch(embeddings, labels, ref_emb, ref_labels, lowest=0 if self._tables else -1)
        return super().forward(embeddings, labels, ref_emb, ref_labels)

    def mine(
        self, embeddings: torch.Tensor, labels: torch.Tensor, ref_emb: torch.Tensor, ref_labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `forward` returns; called by PML without gradient."""
        if self._tables:
            representatives, positives = self._of_round(labels, ref_labels, embeddings.device)
        else:
            representatives, positives = self._of_batch(embeddings, labels, ref_emb, ref_labels)
        negatives = positives.any(dim=1, keepdim=True) & ~positives
        if ref_emb is embeddings and self.anchors == "all":
            positives[representatives, torch.arange(len(representatives), device=positives.device)] = False
        a1, p = positives.nonzero(as_tuple=True)
        a2, n = negatives.nonzero(as_tuple=True)
        return a1, representatives[p], a2, representatives[n]

    def _of_batch(
        self, embeddings: torch.Tensor, labels: torch.Tensor, ref_emb: torch.Tensor, ref_labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Representatives, (K,) indices into ref_emb, and who is pulled to them, (B, K) bool."""
        with without_autocast(embeddings.device):
            x, ref = prepared_pair(self.distance, embeddings, ref_emb)
            medoids, classes = prepared_medoids(ref, ref_labels, self.distance)
            if ref is x and len(medoids) == len(x) > 1:
                warn_once(
                    self,
                    "NearestMedoidMiner finds no positive pair: every sample has a label of its own. Are the "
                    "labels dataset indices? Then bind the miner, NearestMedoidMiner(posets=sampler)",
                )
            sq_dist = prepared_distances(self.distance, x, ref[medoids])  # (B, K)
            return medoids, positive_mask(sq_dist, labels, classes, self.num_nearest, self.anchors)

    def _of_round(
        self, labels: torch.Tensor, ref_labels: torch.Tensor, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for dataset indices, by the bound posets."""
        if self._tables[0].device != device:
            self._tables = tuple(table.to(device) for table in self._tables)
        class_of, medoids, nearest = self._tables
        if not torch.compiler.is_compiling():
            _ = as_indices(labels, len(class_of)), as_indices(ref_labels, len(class_of))
        index, ref_index = labels.long(), ref_labels.long()
        ref_class = class_of[ref_index]  # (R,)
        rows = (ref_class >= 0).nonzero().squeeze(1)
        rows = rows[medoids[ref_class[rows]] == ref_index[rows]]  # medoids of the round in the batch
        classes, which = ref_class[rows].unique(return_inverse=True)  # (K,)
        first = rows.new_full((len(classes),), len(ref_index)).scatter_reduce_(0, which, rows, "amin")

        own = class_of[index][:, None]  # (B, 1)
        wanted = nearest[index].masked_fill(own >= 0, -1)  # (B, Z)
        if self.anchors == "all":
            wanted = torch.where(own >= 0, own, wanted)
        return first, (wanted[:, :, None] == classes).any(dim=1)
