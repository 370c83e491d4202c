"""PosetLoss: samples to the representatives of their Z nearest classes (Eq. 4), as a PML loss."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances.base_distance import BaseDistance
from pytorch_metric_learning.losses import BaseMetricLossFunction

from .._batch_checks import check_batch, check_distance, check_tuple, warn_once
from .._medoids import (
    Anchors,
    compares_units,
    default_distance,
    positive_mask,
    prepared_distances,
    prepared_medoids,
    prepared_pair,
    without_autocast,
)
from .._validation import as_count, as_flag, as_real, check_option

__all__ = ["Margin", "PosetLoss", "poset_terms"]

Margin = Literal["paper", "magnet", "additive"]

# Labeled Omniglot, recall@1: .803; estimated .738, .2 .802, .5 .780, triplet .805 (benchmarks/NOTES.md).
_UNIT_SIGMA = 0.3


def poset_terms(
    sq_dist: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor,
    sigma_squared: torch.Tensor | float,
    gamma: float = 0.0,
    margin: Margin = "paper",
) -> torch.Tensor:
    """Eq. 4 for each row, given the squared distances and the masks of positives and negatives.

    With P and N the logarithms of the sums of exp(-d^2 / 2 sigma^2) over positives and negatives:

        paper      log(1 + exp(N - P)) - gamma / (2 sigma^2)
        magnet     max(0, N - P + gamma)
        additive   log(1 + exp(N - P + gamma / (2 sigma^2)))

    Args:
        sq_dist: (B, K) squared distances, at least 32 bits.
        positives, negatives: (B, K) bool, disjoint: numerator and denominator, or denominator alone.
        sigma_squared: above 0; a number or a scalar tensor.
        gamma, margin: as in `PosetLoss`.

    Returns:
        (B,) losses, dtype of `sq_dist`. Without negatives 0 (less the margin for "paper"); a row without
        positives holds a finite number without meaning.

    Source: as `PosetLoss`; "magnet": "Metric Learning with Adaptive Density Discrimination" (ICLR 2016);
    "additive": "Additive Margin Softmax for Face Verification" (2018).

    Example:
        >>> sq_dist = torch.tensor([[0.0, 2.0]])
        >>> near = torch.tensor([[True, False]])
        >>> round(poset_terms(sq_dist, near, ~near, 1.0).item(), 4)  # log(1 + exp(-1))
        0.3133
    """
    similarity = sq_dist * (-0.5 / sigma_squared)  # (B, K)
    sides = torch.stack([positives, negatives])  # (2, B, K)
    pull, push = similarity.where(sides, torch.finfo(similarity.dtype).min).logsumexp(dim=2)  # (B,) P, N
    gap = push - pull
    if margin == "magnet":
        return F.relu(gap + gamma)
    shift = gamma * (0.5 / sigma_squared)
    if margin == "additive":
        return F.softplus(gap + shift, threshold=50)
    return F.softplus(gap, threshold=50) - shift


class PosetLoss(BaseMetricLossFunction):
    """Pull each sample to the representatives of its Z nearest classes, relative to all representatives.

        L2(x) = -log( sum_{z=1..Z} exp(-(d^2(x, r_z) - gamma) / 2 sigma^2)
                      / sum_{j=1..K} exp(-d^2(x, r_j) / 2 sigma^2) )

    r_1..r_K are the representatives of the classes in the batch, r_1..r_Z those nearest to x. Z = 1 is
    cross-entropy whose logits are the similarities -d^2 / 2 sigma^2 to the representatives.

    **With labels alone.** Labels are class ids from 0, and -1 for an unassigned sample. The representatives
    are the medoids of the classes in the batch, or in ref_emb if that is given. An unassigned sample takes
    its Z nearest (or all) as positives; an assigned one, with anchors="all", that of its own class, if there
    is one.

    **With a pair tuple** (a1, p, a2, n), e.g. of `NearestMedoidMiner`: the representatives are the samples in
    p and n. The numerator runs over the p of an anchor, the denominator over its p and n; a pair listed twice
    counts once; triplets work too. An anchor that has no p but is itself a representative, as a medoid is, is
    its own positive. Labels are then needed for sigma only. PML's own miners, and its
    `DistributedLossWrapper` with efficient=True, treat -1 as a class: use tuples of `NearestMedoidMiner`.

    **The margin** gamma, and what it does to the gradient:

    - "paper": as printed. gamma factors out, L2(gamma) = L2(0) - gamma / (2 sigma^2): it shifts the value and
      has **no effect on the gradient**.
    - "magnet": max(0, gamma + N - P), P and N the log-sums over positives and negatives. The gradient is 0
      for a sample already nearer by gamma (in units of the exponent), and of full size for every other.
    - "additive": d^2 + gamma replaces d^2 of the positives, in numerator and denominator: every sample keeps
      a gradient, larger for a larger gamma.

    Args:
        num_nearest: Z, at least 1. Default 2 (the paper: 2 or more).
        sigma: a number above 0, in units of the distance; None; or "auto" (default): 0.3 for distances and
            cosines of L2-normalized embeddings, None for all others. None estimates it: sigma^2 is the mean
            squared distance of the batch's assigned samples to the medoid of their class (medoids count, with
            0), detached, at least min_sigma^2. With a tuple: to the representatives of their class in it.
            Without any such sample it is the mean over ref_emb, and without labels over the positive pairs.
            For normalized embeddings sigma^2 is the temperature of a softmax over cosines.
        gamma: the margin, at least 0. Default 0. In squared distance for "paper" and "additive", in units of
            the exponent for "magnet".
        margin: "paper" (default), "magnet" or "additive".
        anchors: "all" (default): assigned samples are anchors too, medoids included. "unassigned": the
            paper's L2.
        detach_representatives: True cuts the gradient at the representatives (they still get one as anchors).
            Default False: both ends move, as they are embedded in one batch.
        min_sigma: floor of an estimated sigma, above 0. Default 0.02. It is sigma itself where every class
            has a single sample: give sigma then.
        **kwargs: PML's distance, reducer, embedding_regularizer, embedding_reg_weight, collect_stats. The
            default distance is LpDistance(normalize_embeddings=True, p=2, power=2). A distance of power 1 is
            squared; for a similarity s, d^2 is 2 - 2s.

    Shapes: embeddings (B, D) floating point, labels (B,) integers, ref_emb (R, D), ref_labels (R,). Half
    precision and autocast are computed in float32; the loss has the dtype of the embeddings, under autocast
    float32.

    Reducers get one element loss per anchor. Without an anchor or a representative the loss is 0 and
    `backward` works. The first batch whose labels teach no similarity (all different, all equal, all -1, or
    none of them -1 with anchors="unassigned") gives a warning. `ClassWeightedReducer` indexes its weights by
    label, so unassigned anchors get the last one: append a weight for them. Recorded with collect_stats:
    num_anchors, num_representatives, sigma_used.

    `DistributedLossWrapper` gathers the samples of all ranks (keep its default efficient=False: then the
    gradients are those of one process). `CrossBatchMemory` and `SelfSupervisedLoss` know losses by name: use
    `PosetCrossBatchMemory` and `PosetSelfSupervisedLoss`.

    Raises:
        TypeError: labels that are not an integer tensor, embeddings that are not a floating point tensor.
        ValueError: an option out of range or unknown; labels below -1 or of a wrong shape; NaN or infinite
            embeddings; neither labels nor tuple; ref_emb without ref_labels or tuple; indices out of range.

    Source: section 3.3, Eq. 4 of the paper.
    Differs from the paper: by default assigned samples are anchors too, sigma is 0.3 (None estimates it, from
    the batch's assignment) and representatives are the batch's medoids; two more margins.

    Example:
        >>> embeddings = torch.nn.Parameter(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]]))
        >>> labels = torch.tensor([0, 0, 1, -1])
        >>> loss = PosetLoss(num_nearest=1, sigma=0.5)(embeddings, labels)
        >>> loss.backward()
        >>> round(loss.item(), 4)
        0.1946
    """

    def __init__(
        self,
        num_nearest: int = 2,
        sigma: float | Literal["auto"] | None = "auto",
        gamma: float = 0.0,
        margin: Margin = "paper",
        anchors: Anchors = "all",
        detach_representatives: bool = False,
        min_sigma: float = 0.02,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_distance(self.distance)
        self.num_nearest = as_count(num_nearest, "num_nearest")
        if isinstance(sigma, str) and sigma == "auto":
            sigma = _UNIT_SIGMA if compares_units(self.distance) else None
        self.sigma = None if sigma is None else as_real(sigma, "sigma", low=0, open_low=True)
        self.gamma = as_real(gamma, "gamma", low=0)
        self.margin = check_option(margin, "margin", Margin)
        self.anchors = check_option(anchors, "anchors", Anchors)
        self.detach_representatives = as_flag(detach_representatives, "detach_representatives")
        self.min_sigma = as_real(min_sigma, "min_sigma", low=0, open_low=True)
        for name, value in (("sigma", self.sigma), ("min_sigma", self.min_sigma)):
            if value is not None and value < 1e-15:
                raise ValueError(f"{name} must be at least 1e-15, or its square leaves float32, got {value}")
        settings = ["num_nearest", "gamma", "min_sigma" if sigma is None else "sigma"]
        self.add_to_recordable_attributes(list_of_names=settings, is_stat=False)
        stats = ["num_anchors", "num_representatives", "sigma_used"]
        self.add_to_recordable_attributes(list_of_names=stats, is_stat=True)

    def get_default_distance(self) -> BaseDistance:
        """Squared Euclidean distance of L2-normalized embeddings."""
        return default_distance()

    def forward(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor | None = None,
        indices_tuple: Any = None,
        ref_emb: torch.Tensor | None = None,
        ref_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The reduced loss; shapes and errors as in the class's description."""
        check_batch(embeddings, labels, ref_emb, ref_labels)
        if indices_tuple is None and labels is None:
            raise ValueError("labels or indices_tuple must be given, got neither: pass class ids, or -1")
        if indices_tuple is None and ref_emb is not None and ref_labels is None:
            raise ValueError("ref_emb needs ref_labels or an indices_tuple, got neither: pass its class ids")
        return super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    def compute_loss(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor | None,
        indices_tuple: Any,
        ref_emb: torch.Tensor,
        ref_labels: torch.Tensor | None,
    ) -> dict[str, Any]:
        """One element loss per anchor, as PML's reducers take them."""
        kind = embeddings.device.type
        dtype = torch.float32 if torch.is_autocast_enabled(kind) else embeddings.dtype
        with without_autocast(embeddings.device):
            x, ref = prepared_pair(self.distance, embeddings, ref_emb)  # (B, D), (R, D)
            if indices_tuple is None:
                columns, positives, sq_dist = self._of_labels(x, labels, ref, ref_labels)
                negatives = ~positives
            else:
                mined = check_tuple(indices_tuple, len(x), len(ref), x.device)
                columns, positives, negatives = _masks_of_tuple(mined, len(x), len(ref), ref is x)
                sq_dist = self._to_representatives(x, ref, columns)
            anchors = positives.any(dim=1).nonzero().squeeze(1)  # (A,)
            if not len(anchors):
                return self.zero_losses()
            sigma_squared = self._sigma_squared(sq_dist, positives, columns, labels, ref, ref_labels)
            losses = poset_terms(sq_dist, positives, negatives, sigma_squared, self.gamma, self.margin)
            losses = losses if len(anchors) == len(x) else losses[anchors]
        if self.collect_stats:
            self.num_anchors, self.num_representatives = len(anchors), len(columns)
            self.sigma_used = float(sigma_squared) ** 0.5
        element = {"losses": losses.to(dtype), "indices": anchors, "reduction_type": "element"}
        return {"loss": {**element, "divisor": len(anchors)}}

    def _to_representatives(self, x: torch.Tensor, ref: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        representatives = ref[columns]  # (K, D)
        if self.detach_representatives:
            representatives = representatives.detach()
        return prepared_distances(self.distance, x, representatives)  # (B, K)

    def _of_labels(
        self, x: torch.Tensor, labels: Any, ref: torch.Tensor, ref_labels: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(K,) rows of `ref` that represent its classes, (B, K) positives and d^2."""
        columns, classes = prepared_medoids(ref, ref_labels, self.distance)
        sq_dist = self._to_representatives(x, ref, columns)
        positives = positive_mask(sq_dist, labels, classes, self.num_nearest, self.anchors)
        idle = None
        if not len(columns):
            idle = "no sample has a class, every label is -1"
        elif len(columns) == 1:
            idle = "there is one class only. Are the batches or the grouping right?"
        elif ref is x and len(columns) == len(x):
            idle = "every sample has a label of its own. Are the labels dataset indices? Then use "
            idle += 'PseudoLabelLoss(loss, posets, unassigned="keep")'
        elif self.anchors == "unassigned" and not (labels < 0).any():
            idle = 'no label is -1, and anchors="unassigned". Use anchors="all"'
        if idle and len(x) > 1:
            warn_once(self, f"PosetLoss cannot learn similarities from this batch: {idle}")
        return columns, positives, sq_dist

    @torch.no_grad()
    def _sigma_squared(
        self,
        sq_dist: torch.Tensor,
        positives: torch.Tensor,
        columns: torch.Tensor,
        labels: torch.Tensor | None,
        ref: torch.Tensor,
        ref_labels: torch.Tensor | None,
    ) -> torch.Tensor | float:
        """sigma^2: given, or the mean d^2 of assigned samples to the representative of their class."""
        if self.sigma is not None:
            return self.sigma**2
        if labels is not None and ref_labels is not None:
            classes = ref_labels[columns]
            own = _same_class(labels, classes)  # (B, K)
            if not own.any() and (own := _same_class(ref_labels, classes)).any():  # take the reference rows
                sq_dist = prepared_distances(self.distance, ref, ref[columns])
            positives = own if own.any() else positives
        mean = sq_dist.masked_fill(~positives, 0).sum() / positives.sum()
        return mean.clamp_min(self.min_sigma**2)


def _same_class(labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(B,), (K,) -> (B, K) bool; -1 is not a class."""
    return (labels[:, None] == classes) & (labels >= 0)[:, None]


def _masks_of_tuple(
    mined: tuple[torch.Tensor, ...], num_rows: int, num_refs: int, same: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(K,) rows of ref_emb in a tuple of pairs or triplets, and its (B, K) positives and negatives."""
    a1, p, a2, n = mined if len(mined) == 4 else (mined[0], mined[1], mined[0], mined[2])
    used = torch.zeros(num_refs, dtype=torch.bool, device=a1.device)
    used.index_fill_(0, p, True).index_fill_(0, n, True)
    columns, column_of = used.nonzero().squeeze(1), used.cumsum(0) - 1  # (K,), (R,)
    shape = num_rows, len(columns)
    positives, negatives = used.new_zeros(shape), used.new_zeros(shape)
    positives.view(-1).index_fill_(0, a1 * shape[1] + column_of[p], True)
    negatives.view(-1).index_fill_(0, a2 * shape[1] + column_of[n], True)
    if same:  # a representative without a positive: the pair with itself, which no miner gives
        alone = (negatives.any(dim=1) > positives.any(dim=1))[columns]  # (K,)
        positives[columns[alone], alone.nonzero().squeeze(1)] = True
    return columns, positives, negatives & ~positives
