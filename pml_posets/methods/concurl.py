"""ConCURL as an objective: instance discrimination and consensus clustering, with heads of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .._validation import as_count
from ._networks import check_images, pooled_features
from .consensus_loss import ConsensusLoss
from .memory_bank import MemoryBankNCE

__all__ = ["ConcurlObjective"]


class ConcurlObjective(nn.Module):
    """Two views of the batch: each image told from all others, and in the same cluster in both.

        L = beta L_ex + alpha L_pop + gamma L_cons

    with L_ex of `MemoryBankNCE` on the first view, L_pop and L_cons of `ConsensusLoss`, which brings alpha
    and gamma along, on both. L_ex is taken of the embedder's output, so that the embedding that is used and
    evaluated in the end is the one that it trains, or of a head of its own; the clusters are those of a
    projection of the pooled trunk's features: Linear, BatchNorm, ReLU, Linear.

    **Views.** With views=1 the trunk sees the batch twice and must augment it anew each time, as one that
    begins with `pml_posets.augmentation.BatchAugmentation` does in training mode. With views=2 the batch
    holds two views already, one after another, as samplers with views=2 draw it.

    Called as objective(images, indices, models) with images (B, C, H, W), dataset indices (B,) and models
    {"trunk": ..., "embedder": ...}. Returns a scalar of at least 32 bits; without images 0, with a gradient
    path.

    Args:
        feature_dim: width of the trunk's output, pooled if it is maps.
        consensus: a `ConsensusLoss`; its dim is the width of the projection.
        bank: a `MemoryBankNCE`; its dim is the width of the embedding. None only with beta 0.
        nce_head: from the pooled features to the embedding of L_ex, such as Linear(feature_dim, 128). Default
            None: the embedder.
        hidden_dim: of the projection. Default 2048, the published value.
        beta: weight of L_ex, from 0. Default 1, the published value.
        views: 1 (default) or 2, see above.

    Attributes:
        values: {"exemplar": L_ex, "population": ..., "consensus": ...} of the last call, detached and
            unweighted.

    Raises:
        TypeError, ValueError: for options out of range, a batch that is no two views, a trunk that does not
            augment though views is 1 (seen at the first call in training mode), a bank that is missing.

    Source: "Representation Learning for Clustering via Building Consensus" (2021).
    Differs from the paper: both views pass through the network in one batch, which batch normalisation sees.

    Example:
        >>> from pml_posets.data.augmentation import BatchAugmentation
        >>> trunk = nn.Sequential(BatchAugmentation(), nn.Flatten(), nn.Linear(192, 16))
        >>> models = {"trunk": trunk, "embedder": nn.Linear(16, 128)}
        >>> consensus = ConsensusLoss(num_prototypes=4, num_transforms=3)
        >>> objective = ConcurlObjective(16, consensus, MemoryBankNCE(50, num_negatives=20), hidden_dim=32)
        >>> loss = objective(torch.rand(8, 3, 8, 8), torch.arange(8), models)
        >>> loss.backward()
        >>> sorted(objective.values)
        ['consensus', 'exemplar']
    """

    def __init__(
        self,
        feature_dim: int,
        consensus: ConsensusLoss,
        bank: MemoryBankNCE | None,
        nce_head: nn.Module | None = None,
        hidden_dim: int = 2048,
        beta: float = 1.0,
        views: int = 1,
    ) -> None:
        super().__init__()
        if not isinstance(consensus, ConsensusLoss):
            raise TypeError(f"consensus must be a ConsensusLoss, got {type(consensus).__name__}")
        if not isinstance(bank, MemoryBankNCE | None):
            raise TypeError(f"bank must be a MemoryBankNCE, got {type(bank).__name__}")
        if not 0 <= beta < math.inf:
            raise ValueError(f"beta must be finite and at least 0, got {beta}")
        if beta and bank is None:
            raise ValueError("L_ex needs a bank: give MemoryBankNCE(num_samples), or beta=0")
        if views not in (1, 2):
            raise ValueError(
                f"views must be 1 (the trunk augments) or 2 (the batch holds both views), got {views}"
            )
        width, hidden = as_count(feature_dim, "feature_dim"), as_count(hidden_dim, "hidden_dim")
        self.consensus, self.bank, self.nce_head = consensus, bank, nce_head
        self.projection = nn.Sequential(
            nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, consensus.dim)
        )
        self.beta, self.views = float(beta), views
        self.values: dict[str, torch.Tensor] = {}
        self._seen_two_views = False

    def forward(self, images: torch.Tensor, indices: torch.Tensor, models: Mapping[str, Any]) -> torch.Tensor:
        """The loss of the batch."""
        check_images(images, indices, models)
        if not len(images):
            nothing = torch.zeros((), device=images.device)
            return sum((p.flatten()[:0].sum().float() for p in self.parameters()), nothing)
        if self.views == 1:
            images = torch.cat([images, images])  # (2B, C, H, W)
        else:
            indices = self._of_first_view(indices)
        count = len(images) // 2
        features = models["trunk"](images)
        if self.views == 1:
            self._check_augmentation(features)
        pooled = pooled_features(features)  # (2B, D)
        first, second = self.projection(pooled).split(count)  # (B, d)
        loss = self.consensus(first, second)
        values = dict(self.consensus.values)
        if self.beta and self.bank is not None:
            if self.nce_head is not None:
                embeddings = self.nce_head(pooled[:count])
            else:
                embeddings = self._embedder(models)(features[:count])
            exemplar = self.bank(embeddings, indices)
            values["exemplar"] = exemplar.detach()
            loss = loss + self.beta * exemplar
        self.values = values
        return loss

    def _of_first_view(self, indices: torch.Tensor) -> torch.Tensor:
        count = len(indices) // 2
        if len(indices) % 2 or not torch.equal(indices[:count], indices[count:]):
            raise ValueError(
                f"with views=2 a batch must be two views of the same samples, one after another, got "
                f"{len(indices)} images whose halves are of different samples: give the sampler views=2, or "
                "views=1 here"
            )
        return indices[:count]

    def _check_augmentation(self, features: torch.Tensor) -> None:
        if not self.training or self._seen_two_views:
            return
        count = len(features) // 2
        if torch.equal(features[:count], features[count:]):
            raise ValueError(
                "there is but a single view: the trunk gave the same features for both passes. Put an "
                "augmentation in front of it (BatchAugmentation, in training mode), or give batches of two "
                "views and views=2"
            )
        self._seen_two_views = True

    @staticmethod
    def _embedder(models: Mapping[str, Any]) -> nn.Module:
        embedder = models.get("embedder")
        if not isinstance(embedder, nn.Module):
            raise TypeError('models must have a module "embedder" for L_ex, or give the objective a nce_head')
        return embedder

    def extra_repr(self) -> str:
        """What the module's repr says beside its parts."""
        return f"beta={self.beta}, views={self.views}"
