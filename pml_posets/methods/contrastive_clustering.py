"""The contrastive clustering loss (CCL) of TAC-CCL, reconstructed from the abstract of its paper.

"Unsupervised Deep Metric Learning with Transformed Attention Consistency and Contrastive Clustering Loss"
(ECCV 2020). The abstract has a triplet loss with the centers of clusters for samples. The softmax form, the
margin and the temperature are ours.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances.base_distance import BaseDistance
from pytorch_metric_learning.losses import BaseMetricLossFunction

from .._batch_checks import check_batch, check_distance, warn_once
from .._medoids import default_distance, full_precision, prepared_distances, prepared_pair, without_autocast
from .._validation import as_real, check_option

__all__ = ["CenterForm", "ContrastiveClusteringLoss"]

CenterForm = Literal["hinge", "softmax"]


class ContrastiveClusteringLoss(BaseMetricLossFunction):
    """Pull each sample to the center of its cluster, away from the nearest or from all other centers.

        hinge      L(z) = max(0, m + |z - c_y|^2 - min_{k != y} |z - c_k|^2)
        softmax    L(z) = -log( exp(-|z - c_y|^2 / t) / sum_k exp(-|z - c_k|^2 / t) )

    with y the cluster of z. Samples with the label -1, and those whose cluster has no center, are left out.
    With a single center both forms are 0, which gives a warning. The centers c_k are, in this order:

    - the means of ref_emb over its ref_labels;
    - what `set_centers` was given: centers of all data, fixed until the next call;
    - the means of the batch's clusters. The gradient then reaches the samples through the centers too.

    Args:
        margin: m of the hinge, at least 0, in units of the squared distance. Default 0.2.
        form: "hinge" (default) or "softmax".
        temperature: t of the softmax, above 0, in units of the squared distance. Default 0.1.
        detach_centers: True cuts the gradient at the centers. Default False.
        **kwargs: PML's distance, reducer, embedding_regularizer, embedding_reg_weight, collect_stats. The
            default distance is LpDistance(normalize_embeddings=True, p=2, power=2), which brings the centers
            to unit length too. A distance of power 1 is squared; for a similarity s, |z - c|^2 is 2 - 2s.

    Shapes: embeddings (B, D) floating point, labels (B,) integers from -1, ref_emb (R, D), ref_labels (R,).
    Half precision and autocast are computed in float32; the loss has the dtype of the embeddings, under
    autocast float32. A miner's tuple is ignored. Reducers get one element loss per sample that has a center;
    without one the loss is 0 and `backward` works. Recorded with collect_stats: num_anchors, num_centers.

    Raises:
        TypeError, ValueError: for an invalid option or batch, or ref_emb without ref_labels.

    Example:
        >>> loss = ContrastiveClusteringLoss(margin=0.5)
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], requires_grad=True)
        >>> centers = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> value = loss(embeddings, torch.tensor([0, 0, -1]), ref_emb=centers, ref_labels=torch.arange(2))
        >>> round(value.item(), 4)  # the mean of max(0, 0.5 + 0 - 2) and 0.5 + 0.8 - 0.4
        0.45
    """

    def __init__(
        self,
        margin: float = 0.2,
        form: CenterForm = "hinge",
        temperature: float = 0.1,
        detach_centers: bool = False,
        **kwargs: Any,
    ) -> None:
        if "detach_centres" in kwargs:
            warnings.warn("detach_centres is detach_centers now", DeprecationWarning, stacklevel=2)
            detach_centers = kwargs.pop("detach_centres")
        super().__init__(**kwargs)
        check_distance(self.distance)
        self.form = check_option(form, "form", CenterForm)
        self.margin = as_real(margin, "margin", low=0)
        self.temperature = as_real(temperature, "temperature", low=0, open_low=True)
        self.detach_centers = bool(detach_centers)
        self._given: tuple[torch.Tensor, torch.Tensor] | None = None  # not a buffer: its size changes
        setting = "margin" if form == "hinge" else "temperature"
        self.add_to_recordable_attributes(name=setting, is_stat=False)
        self.add_to_recordable_attributes(list_of_names=["num_anchors", "num_centers"], is_stat=True)

    def get_default_distance(self) -> BaseDistance:
        """Squared Euclidean distance of L2-normalized embeddings."""
        return default_distance()

    def set_centers(self, centers: torch.Tensor | None, labels: torch.Tensor | None = None) -> None:
        """Use these centers from now on, where a call brings none of its own; they travel in the state dict.

        Args:
            centers: (K, D) floating point, at least one, copied; None: those of the batch again.
            labels: (K,) integers from 0, the clusters of the rows. Default None: 0..K-1.

        Raises:
            TypeError, ValueError: for what `forward` does not take as ref_emb and ref_labels, or no row.
        """
        if centers is None:
            self._given = None
            return
        check_batch(centers, labels, lowest=0)
        if not len(centers):
            raise ValueError("centers must hold at least one row, got none: give None to use the batch's own")
        labels = torch.arange(len(centers)) if labels is None else labels
        self._given = centers.detach().clone(), labels.detach().clone().long()

    def set_centres(self, centers: torch.Tensor | None, labels: torch.Tensor | None = None) -> None:
        """The old name of `set_centers`."""
        warnings.warn("set_centres is set_centers now", DeprecationWarning, stacklevel=2)
        self.set_centers(centers, labels)

    def forward(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor | None = None,
        indices_tuple: Any = None,
        ref_emb: torch.Tensor | None = None,
        ref_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The reduced loss; shapes and errors as in the class's description."""
        if labels is None:
            raise ValueError("labels must be given: the cluster of each sample, or -1")
        if ref_emb is None and ref_labels is None and self._given is not None:
            ref_emb, ref_labels = (part.to(embeddings.device) for part in self._given)
        check_batch(embeddings, labels, ref_emb, ref_labels)
        if ref_emb is not None and ref_labels is None:
            raise ValueError("ref_emb needs ref_labels: pass the cluster of each row")
        return super().forward(embeddings, labels, None, ref_emb, ref_labels)

    def compute_loss(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        indices_tuple: Any,
        ref_emb: torch.Tensor,
        ref_labels: torch.Tensor,
    ) -> dict[str, Any]:
        """One element loss per sample that has a center, as PML's reducers take them."""
        kind = embeddings.device.type
        dtype = torch.float32 if torch.is_autocast_enabled(kind) else embeddings.dtype
        with without_autocast(embeddings.device):
            x, ref = full_precision(embeddings, ref_emb)
            centers, clusters = self._means(ref, ref_labels)  # (K, D), (K,)
            own = labels[:, None] == clusters  # (B, K), -1 is no cluster
            anchors = own.any(dim=1).nonzero().squeeze(1)  # (A,)
            if anchors.numel() == 0:
                return self.zero_losses()
            if len(clusters) == 1:
                advice = "there is one cluster only. Is the grouping right?"
                warn_once(self, f"ContrastiveClusteringLoss is 0: {advice}")
            own = own[anchors]
            centers = centers.detach() if self.detach_centers else centers
            pair = prepared_pair(self.distance, x[anchors], centers)
            sq_dist = prepared_distances(self.distance, *pair)  # (A, K)
            to_own = sq_dist[own]  # (A,), each has one
            if self.form == "hinge":
                to_nearest = sq_dist.masked_fill(own, math.inf).amin(dim=1)  # (A,)
                losses = F.relu(self.margin + to_own - to_nearest)
            else:
                losses = to_own / self.temperature + (-sq_dist / self.temperature).logsumexp(dim=1)
        if self.collect_stats:
            self.num_anchors, self.num_centers = anchors.numel(), clusters.numel()
        return {"loss": {"losses": losses.to(dtype), "indices": anchors, "reduction_type": "element"}}

    def _means(self, ref: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean of each cluster, (K, D), and the clusters, (K,), ascending; without rows of -1."""
        members = (labels >= 0).nonzero().squeeze(1)
        clusters, which, sizes = labels[members].unique(return_inverse=True, return_counts=True)
        rows = self.distance.maybe_normalize(ref[members])
        sums = rows.new_zeros(len(clusters), ref.shape[1]).index_add(0, which, rows)
        return sums / sizes[:, None], clusters

    def get_extra_state(self) -> dict[str, Any]:
        return {} if self._given is None else dict(zip(("centers", "labels"), self._given, strict=True))

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        self.set_centers(state.get("centers", state.get("centres")), state.get("labels"))
