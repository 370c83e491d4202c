"""Contrastive clustering (CCL): nearer to the centre of the own cluster than to that of any other.

The method's text and code were not at hand. This is a reconstruction from its abstract.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances.base_distance import BaseDistance
from pytorch_metric_learning.losses import BaseMetricLossFunction

from .._batch_checks import check_batch, check_distance
from .._medoids import default_distance, full_precision, squared_distances
from .._validation import check_option

__all__ = ["CentreForm", "ContrastiveClusteringLoss"]

CentreForm = Literal["hinge", "softmax"]


class ContrastiveClusteringLoss(BaseMetricLossFunction):
    """Pull each sample to the centre of its cluster, away from the nearest or from all other centres.

        hinge      L(z) = max(0, m + |z - c_y|^2 - min_{k != y} |z - c_k|^2)
        softmax    L(z) = -log( exp(-|z - c_y|^2 / t) / sum_k exp(-|z - c_k|^2 / t) )

    with y the cluster of z, m the margin and t the temperature. Samples with the label -1 are in no cluster:
    they are left out. With a single centre both forms are 0: there is nothing to be nearer than.

    **The centres** c_k are, in this order of precedence:

    - the means of ref_emb over its ref_labels; with one row a cluster these rows themselves, such as the
      centres of a k-means, with ref_labels = torch.arange(K);
    - what `set_centres` was given: centres of all data, fixed until it is called again (in a
      `JointTrainer`, by its start_of_round_hook);
    - the means of the batch's clusters. The gradient then reaches the samples through the centres too.

    A sample whose cluster has no centre is left out.

    Args:
        margin: m of the hinge, at least 0, in units of the squared distance. Default 0.2 (the paper's value
            is not known to us).
        form: "hinge" (default) or "softmax".
        temperature: t of the softmax, above 0, in units of the squared distance. Default 0.1.
        detach_centres: True cuts the gradient at the centres. Default False.
        **kwargs: PML's distance, reducer, embedding_regularizer, embedding_reg_weight, collect_stats. The
            default distance is LpDistance(normalize_embeddings=True, p=2, power=2), which brings the centres
            to unit length too; give it normalize_embeddings=False to keep them where they are. A distance of
            power 1 is squared; for a similarity s, |z - c|^2 is 2 - 2s.

    Shapes: embeddings (B, D) floating point, labels (B,) integers from -1, ref_emb (R, D), ref_labels (R,).
    Half precision and autocast are computed in float32; the loss has the dtype of the embeddings, under
    autocast float32. The tuple of a miner is passed over: every sample meets every centre.

    Reducers get one element loss per sample that has a centre. Without such a sample the loss is 0 and
    `backward` works. Recorded with collect_stats: num_anchors, num_centres.

    Raises:
        TypeError: labels that are no integer tensor, embeddings that are no floating point tensor.
        ValueError: an option out of range or unknown; no labels; labels below -1 or of a wrong shape; NaN or
            infinite embeddings; ref_emb without ref_labels; centres of another width.

    Source: "Unsupervised Deep Metric Learning with Transformed Attention Consistency and Contrastive
    Clustering Loss" (ECCV 2020).
    Differs from the paper: a reconstruction from its abstract (a triplet loss with the centres of clusters
    for samples); the softmax form, margin and temperature are ours.

    Example:
        >>> loss = ContrastiveClusteringLoss(margin=0.5)
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], requires_grad=True)
        >>> centres = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> value = loss(embeddings, torch.tensor([0, 0, -1]), ref_emb=centres, ref_labels=torch.arange(2))
        >>> round(value.item(), 4)  # the mean of max(0, 0.5 + 0 - 2) and 0.5 + 0.8 - 0.4
        0.45
    """

    def __init__(
        self,
        margin: float = 0.2,
        form: CentreForm = "hinge",
        temperature: float = 0.1,
        detach_centres: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_distance(self.distance)
        self.form = check_option(form, "form", CentreForm)
        if not 0 <= margin < math.inf:
            raise ValueError(f"margin must be finite and at least 0, got {margin}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be finite and above 0, got {temperature}")
        self.margin, self.temperature = float(margin), float(temperature)
        self.detach_centres = bool(detach_centres)
        self._given: tuple[torch.Tensor, torch.Tensor] | None = None  # no buffer: it has no fixed size
        setting = "margin" if form == "hinge" else "temperature"
        self.add_to_recordable_attributes(name=setting, is_stat=False)
        self.add_to_recordable_attributes(list_of_names=["num_anchors", "num_centres"], is_stat=True)

    def get_default_distance(self) -> BaseDistance:
        """Squared Euclidean distance of L2-normalised embeddings."""
        return default_distance()

    def set_centres(self, centres: torch.Tensor | None, labels: torch.Tensor | None = None) -> None:
        """Use these centres from now on, where a call brings none of its own; they travel in the state dict.

        Args:
            centres: (K, D) floating point, copied, without gradient; None: those of the batch again.
            labels: (K,) integers from 0, the clusters of the rows. Default None: 0..K-1.

        Raises:
            TypeError, ValueError: for what `forward` does not take as ref_emb and ref_labels, or no row.
        """
        if centres is None:
            self._given = None
            return
        check_batch(centres, labels, lowest=0)
        if not len(centres):
            raise ValueError("centres must hold at least one row, got none: give None to use the batch's own")
        labels = torch.arange(len(centres)) if labels is None else labels
        self._given = centres.detach().clone(), labels.detach().clone().long()

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
        """One element loss per sample that has a centre, as PML's reducers take them."""
        kind = embeddings.device.type
        dtype = torch.float32 if torch.is_autocast_enabled(kind) else embeddings.dtype
        with torch.autocast(device_type=kind, enabled=False):
            x, ref = full_precision(embeddings, ref_emb)
            centres, clusters = self._means(ref, ref_labels)  # (K, D), (K,)
            own = labels[:, None] == clusters  # (B, K), -1 is no cluster
            anchors = own.any(dim=1).nonzero().squeeze(1)  # (A,)
            if anchors.numel() == 0:
                return self.zero_losses()
            if self.detach_centres:
                centres = centres.detach()
            own = own[anchors]
            sq_dist = squared_distances(self.distance, x[anchors], centres)  # (A, K)
            to_own = sq_dist[own]  # (A,), each has one
            if self.form == "hinge":
                to_nearest = sq_dist.masked_fill(own, math.inf).amin(dim=1)  # (A,)
                losses = F.relu(self.margin + to_own - to_nearest)
            else:
                losses = to_own / self.temperature + (-sq_dist / self.temperature).logsumexp(dim=1)
        if self.collect_stats:
            self.num_anchors, self.num_centres = anchors.numel(), clusters.numel()
        return {"loss": {"losses": losses.to(dtype), "indices": anchors, "reduction_type": "element"}}

    def _means(self, ref: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean of each cluster, (K, D), and the clusters, (K,), ascending; without rows of -1."""
        members = (labels >= 0).nonzero().squeeze(1)
        clusters, which, sizes = labels[members].unique(return_inverse=True, return_counts=True)
        rows = self.distance.maybe_normalize(ref[members])
        sums = rows.new_zeros(len(clusters), ref.shape[1]).index_add(0, which, rows)
        return sums / sizes[:, None], clusters

    def get_extra_state(self) -> dict[str, Any]:
        """The centres given by `set_centres`, for a checkpoint."""
        return {} if self._given is None else dict(zip(("centres", "labels"), self._given, strict=True))

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take the centres back."""
        self.set_centres(state.get("centres"), state.get("labels"))
