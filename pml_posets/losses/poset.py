"""PosetLoss: samples to the representatives of their Z nearest classes (Eq. 4), as a PML loss."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances.base_distance import BaseDistance
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.utils import common_functions as c_f

from .._medoids import (
    Anchors,
    batch_medoids,
    check_batch,
    check_distance,
    default_distance,
    full_precision,
    positive_mask,
    squared_distances,
)
from .._validation import as_count, check_option

__all__ = ["Margin", "PosetLoss", "poset_terms"]

Margin = Literal["paper", "magnet", "additive"]


def poset_terms(
    sq_dist: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor,
    sigma_squared: torch.Tensor | float,
    gamma: float = 0.0,
    margin: Margin = "paper",
) -> torch.Tensor:
    """Eq. 4 for each row, given the squared distances and who is pulled and pushed.

    With P and N the logarithms of the sums of exp(-d^2 / 2 sigma^2) over positives and negatives:

        paper      log(1 + exp(N - P)) - gamma / (2 sigma^2)
        magnet     max(0, N - P + gamma)
        additive   log(1 + exp(N - P + gamma / (2 sigma^2)))

    Args:
        sq_dist: (B, K) squared distances, at least 32 bits.
        positives: (B, K) bool, the representatives in numerator and denominator.
        negatives: (B, K) bool, those in the denominator alone; disjoint from `positives`.
        sigma_squared: above 0; a number or a scalar tensor.
        gamma: the margin, at least 0; default 0.
        margin: where it stands; default "paper". See `PosetLoss`.

    Returns:
        (B,) losses, dtype of `sq_dist`. Without negatives 0 (less the margin for "paper"); a row without
        positives holds a finite number without meaning.

    Source: "Deep Unsupervised Similarity Learning using Partially Ordered Sets" (CVPR 2017), Eq. 4; "magnet":
    "Metric Learning with Adaptive Density Discrimination" (ICLR 2016); "additive": "Additive Margin Softmax
    for Face Verification" (2018).
    Differs from the paper: with margin="paper" in nothing known; the other two margins are not in it.

    Example:
        >>> sq_dist = torch.tensor([[0.0, 2.0]])
        >>> near = torch.tensor([[True, False]])
        >>> round(poset_terms(sq_dist, near, ~near, 1.0).item(), 4)  # log(1 + exp(-1))
        0.3133
    """
    similarity = sq_dist * (-0.5 / sigma_squared)  # (B, K)
    least = torch.finfo(similarity.dtype).min
    pull = similarity.masked_fill(~positives, least).logsumexp(dim=1)  # (B,) P
    push = similarity.masked_fill(~negatives, least).logsumexp(dim=1)  # (B,) N
    gap = push - pull
    if margin == "magnet":
        return F.relu(gap + gamma)
    if gamma == 0:
        return F.softplus(gap, threshold=50)
    shift = gamma * (0.5 / sigma_squared)
    if margin == "additive":
        return F.softplus(gap + shift, threshold=50)
    return F.softplus(gap, threshold=50) - shift


class _Pairs(NamedTuple):
    sq_dist: torch.Tensor  # (B, K) to the representatives
    positives: torch.Tensor  # (B, K) bool
    negatives: torch.Tensor  # (B, K) bool
    columns: torch.Tensor  # (K,) where the representatives stand in ref_emb


class PosetLoss(BaseMetricLossFunction):
    """Pull each sample to the representatives of its Z nearest classes, relative to all representatives.

        L2(x) = -log( sum_{z=1..Z} exp(-(d^2(x, r_z) - gamma) / 2 sigma^2)
                      / sum_{j=1..K} exp(-d^2(x, r_j) / 2 sigma^2) )

    r_1..r_K are the medoids of the classes in the batch, r_1..r_Z those nearest to x. Z = 1 is cross-entropy
    whose logits are the similarities -d^2 / 2 sigma^2 to the representatives.

    **With labels alone.** Labels are class ids from 0, and -1 for an unassigned sample. The representatives
    are the medoids of the classes present (`pml_posets.representatives.batch_medoids`). An unassigned sample
    takes its Z nearest representatives as positives; an assigned one, with anchors="all", that of its own
    class. Given ref_emb and ref_labels, the representatives come from them, and an assigned sample whose
    class is not among them is no anchor. With fewer than Z representatives all are positives.

    **With a pair tuple** (a1, p, a2, n), e.g. of `NearestMedoidMiner`: the numerator runs over the p of an
    anchor in a1, the denominator over its p and n, exactly as given (a pair listed twice counts once;
    triplets work too). Labels are then needed for sigma only. Mind that PML's own miners and its
    `DistributedLossWrapper` with efficient=True take -1 for a class: give them tuples of
    `NearestMedoidMiner`.

    **The margin** gamma, and what it does to the gradient:

    - "paper": as printed. gamma factors out, L2(gamma) = L2(0) - gamma / (2 sigma^2): it shifts the value and
      has **no effect on the gradient**.
    - "magnet": max(0, gamma + N - P), P and N the log-sums over positives and negatives; the positives are
      left out of the denominator. The gradient is 0 for a sample already nearer by gamma (in units of the
      exponent), and of full size for every other sample, however slightly it violates.
    - "additive": d^2 + gamma stands for d^2 of the positives, in numerator and denominator. The gradient is
      weighted as if they lay gamma further off: every sample keeps one, larger the larger gamma is.

    Args:
        num_nearest: Z, at least 1. Default 2 (the paper: 2 or more).
        sigma: a number above 0, in units of the distance, or None (default): sigma^2 is the mean squared
            distance of the batch's assigned samples to the medoid of their class (medoids count, with 0),
            detached, at least min_sigma^2. With a tuple: to what it holds of their class. Without any such
            sample it is taken over ref_emb, and without labels over the pairs (a1, p). For normalised
            embeddings sigma^2 is the temperature of a softmax over cosines.
        gamma: the margin, at least 0. Default 0. In squared distance for "paper" and "additive", in units of
            the exponent for "magnet".
        margin: "paper" (default), "magnet" or "additive".
        anchors: "all" (default): assigned samples are anchors too, medoids included. "unassigned": the
            paper's L2.
        detach_representatives: True cuts the gradient at the representatives (they still get one as anchors).
            Default False: both ends move, as they are embedded in one batch.
        min_sigma: floor of an estimated sigma, above 0. Default 0.02. It decides alone where every class has
            a single sample: give sigma then.
        **kwargs: PML's distance, reducer, embedding_regularizer, embedding_reg_weight, collect_stats. The
            default distance is LpDistance(normalize_embeddings=True, p=2, power=2). A distance of power 1 is
            squared; for a similarity s, d^2 is 2 - 2s.

    Shapes: embeddings (B, D) floating point, labels (B,) integers, ref_emb (R, D), ref_labels (R,). Half
    precision and autocast are computed in float32; the loss has the dtype of the embeddings, under autocast
    float32.

    Reducers get one element loss per anchor. Without an anchor or a representative the loss is 0 and
    `backward` works. `ClassWeightedReducer` indexes its weights by label, so unassigned anchors get the last
    one: append a weight for them. Recorded with collect_stats: num_anchors, num_representatives, sigma_used.

    `DistributedLossWrapper` shows the loss the samples of all ranks (keep its default efficient=False: then
    the gradients are those of one process). `CrossBatchMemory` and `SelfSupervisedLoss` know losses by name:
    use `PosetCrossBatchMemory` and `PosetSelfSupervisedLoss`.

    Raises:
        TypeError: labels that are no integer tensor, embeddings that are no floating point tensor.
        ValueError: an option out of range or unknown; labels below -1 or of a wrong shape; NaN or infinite
            embeddings; neither labels nor tuple; ref_emb without ref_labels or tuple; indices out of range.

    Source: "Deep Unsupervised Similarity Learning using Partially Ordered Sets" (CVPR 2017), sec. 3.3, Eq. 4.
    Differs from the paper: assigned samples are anchors too by default; sigma is that of the batch;
    representatives are the batch's medoids unless a miner bound to posets gives those of the round; two more
    margins.

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
        sigma: float | None = None,
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
        self.sigma = None if sigma is None else _number("sigma", sigma, above_zero=True)
        self.gamma = _number("gamma", gamma)
        self.margin = check_option(margin, "margin", Margin)
        self.anchors = check_option(anchors, "anchors", Anchors)
        self.detach_representatives = bool(detach_representatives)
        self.min_sigma = _number("min_sigma", min_sigma, above_zero=True)
        settings = ["num_nearest", "gamma", "min_sigma" if sigma is None else "sigma"]
        self.add_to_recordable_attributes(list_of_names=settings, is_stat=False)
        stats = ["num_anchors", "num_representatives", "sigma_used"]
        self.add_to_recordable_attributes(list_of_names=stats, is_stat=True)

    def get_default_distance(self) -> BaseDistance:
        """Squared Euclidean distance of L2-normalised embeddings."""
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
        if indices_tuple is None:
            if labels is None:
                raise ValueError("labels or indices_tuple must be given, got neither: pass class ids, or -1")
            if ref_emb is not None and ref_labels is None:
                raise ValueError(
                    "ref_emb needs ref_labels or an indices_tuple, got neither: pass its class ids"
                )
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
        with torch.autocast(device_type=kind, enabled=False):
            x, ref = full_precision(embeddings, ref_emb)
            if indices_tuple is None:
                pairs = self._pairs_of_labels(x, labels, ref, ref_labels)
            else:
                pairs = self._pairs_of_tuple(x, indices_tuple, ref)
            if pairs is None:
                return self.zero_losses()
            anchors = pairs.positives.any(dim=1).nonzero().squeeze(1)  # (A,)
            if anchors.numel() == 0:
                return self.zero_losses()
            sigma_squared = self._sigma_squared(pairs, labels, ref, ref_labels)
            losses = poset_terms(
                pairs.sq_dist, pairs.positives, pairs.negatives, sigma_squared, self.gamma, self.margin
            )  # (B,)
            if anchors.numel() < losses.numel():
                losses = losses[anchors]
        if self.collect_stats:
            self.num_anchors, self.num_representatives = anchors.numel(), pairs.columns.numel()
            self.sigma_used = float(sigma_squared) ** 0.5
        return {
            "loss": {
                "losses": losses.to(dtype),
                "indices": anchors,
                "reduction_type": "element",
                "divisor": anchors.numel(),
            }
        }

    def _pairs_of_labels(
        self, x: torch.Tensor, labels: Any, ref: torch.Tensor, ref_labels: Any
    ) -> _Pairs | None:
        columns, classes = batch_medoids(ref, ref_labels, self.distance)
        if columns.numel() == 0 or x.shape[0] == 0:
            return None
        sq_dist = self._to_representatives(x, ref, columns)
        positives = positive_mask(sq_dist, labels, classes, self.num_nearest, self.anchors)
        return _Pairs(sq_dist, positives, ~positives, columns)

    def _pairs_of_tuple(self, x: torch.Tensor, indices_tuple: Any, ref: torch.Tensor) -> _Pairs | None:
        a1, p, a2, n = _as_pairs(indices_tuple, x, ref)
        if a1.numel() == 0:
            return None
        used = torch.zeros(len(ref), dtype=torch.bool, device=ref.device)
        used[p] = True
        used[n] = True
        columns, column_of = used.nonzero().squeeze(1), used.cumsum(0) - 1  # (K,), (R,)
        sq_dist = self._to_representatives(x, ref, columns)
        positives = torch.zeros_like(sq_dist, dtype=torch.bool)
        negatives = torch.zeros_like(positives)
        positives[a1, column_of[p]] = True
        negatives[a2, column_of[n]] = True
        return _Pairs(sq_dist, positives, negatives & ~positives, columns)

    def _to_representatives(self, x: torch.Tensor, ref: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        representatives = ref[columns]  # (K, D)
        if self.detach_representatives:
            representatives = representatives.detach()
        return squared_distances(self.distance, x, representatives)  # (B, K)

    @torch.no_grad()
    def _sigma_squared(
        self, pairs: _Pairs, labels: torch.Tensor | None, ref: torch.Tensor, ref_labels: torch.Tensor | None
    ) -> torch.Tensor | float:
        if self.sigma is not None:
            return self.sigma**2
        sq_dist, own = pairs.sq_dist, None
        if labels is not None and ref_labels is not None:
            classes = ref_labels[pairs.columns]  # (K,)
            own = _same_class(labels, classes)
            if not own.any():
                members = (ref_labels >= 0).nonzero().squeeze(1)
                sq_dist = squared_distances(self.distance, ref[members], ref[pairs.columns])
                own = _same_class(ref_labels[members], classes)
                if not own.any():
                    sq_dist, own = pairs.sq_dist, None
        mask = pairs.positives if own is None else own
        mean = sq_dist.masked_fill(~mask, 0).sum() / mask.sum()
        return mean.clamp_min(self.min_sigma**2)


def _same_class(labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(B,), (K,) -> (B, K) bool; -1 is no class."""
    return (labels[:, None] == classes[None, :]) & (labels >= 0)[:, None]


def _as_pairs(indices_tuple: Any, x: torch.Tensor, ref: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(a1, p, a2, n) on the device of `x`, checked."""
    if not isinstance(indices_tuple, tuple | list) or len(indices_tuple) not in (3, 4):
        found = (
            len(indices_tuple) if isinstance(indices_tuple, tuple | list) else type(indices_tuple).__name__
        )
        raise ValueError(
            f"indices_tuple must be (a1, p, a2, n) or (a, p, n), got {found}: use a PML miner's output"
        )
    if len(indices_tuple) == 3:
        a, p, n = indices_tuple
        indices_tuple = (a, p, a, n)
    pairs = tuple(c_f.to_device(i, device=x.device) for i in indices_tuple)
    sizes = [len(x), len(ref), len(x), len(ref)]
    for name, index, size in zip(("a1", "p", "a2", "n"), pairs, sizes, strict=True):
        if index.numel() == 0 or torch.compiler.is_compiling():
            continue
        low, high = (int(value) for value in torch.stack(torch.aminmax(index)))
        if low < 0 or high >= size:
            wrong = low if low < 0 else high
            raise ValueError(
                f"indices {name} must lie in 0..{size - 1}, found {wrong}: mine on the same batch"
            )
    for one, other, names in ((pairs[0], pairs[1], "a1 and p"), (pairs[2], pairs[3], "a2 and n")):
        if one.shape != other.shape or one.ndim != 1:
            raise ValueError(
                f"{names} must be 1-D and of one length, got {tuple(one.shape)}, {tuple(other.shape)}"
            )
    return tuple(index.long() for index in pairs)


def _number(name: str, value: Any, above_zero: bool = False) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number) or number < 0 or (above_zero and number == 0):
        bound = "above 0" if above_zero else "at least 0"
        hint = "; None estimates it" if name == "sigma" else ""
        raise ValueError(f"{name} must be finite and {bound}, got {value!r}{hint}")
    return number
