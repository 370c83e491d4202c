"""FeatureLoss: an embedding must predict given features of its image, by a linear map that is learned too."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .._batch_checks import as_indices, check_batch, check_width
from .._medoids import full_precision
from .._validation import ArrayLike, as_count, as_features, as_mirrored
from ..posets import Posets

__all__ = ["FeatureLoss"]


class FeatureLoss(nn.Module):
    """Pulls a linear map of each normalized embedding towards given features of the sample, by their cosine.

        L3(x_i) = 1 - cos( W phi(x_i) / |phi(x_i)| + b,  f_i )

    with f the given features (HOG-LDA, say; bring wide ones down to a few hundred columns by
    `pml_posets.features.principal_components`). It passes on all similarities of the features at once, for
    every sample, and so gives a network from scratch a footing in a few hundred steps; it cannot teach what
    the features do not know.

    PML's labels channel carries dataset indices. W and b are learned: give an optimizer for "metric_loss".
    PML's logging presets note every weight of a loss, and so all of W: use hooks of your own.

    Args:
        embedding_dim: D', the width of the embeddings.
        features: (N, D) float32, in dataset order.
        mirrored: (N, D) float32, those of the mirrored images; needed where posets with flips are bound.

    Shapes: embeddings (B, D') floating point, indices (B,) integers -> a scalar, in [0, 2], of at least 32
    bits whatever the autocast; without samples 0, with a gradient path.

    Raises:
        TypeError, ValueError: for what is not finite or does not match, or flips without mirrored features.

    Example:
        >>> import numpy as np
        >>> features = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
        >>> loss = FeatureLoss(8, features)
        >>> loss(torch.randn(5, 8), torch.arange(5)).ndim
        0
    """

    def __init__(self, embedding_dim: int, features: ArrayLike, mirrored: ArrayLike | None = None) -> None:
        super().__init__()
        targets = as_features(features)
        turned = as_mirrored(mirrored, targets)
        # Not buffers: the tables belong to the data and stay out of logs, state dicts and the device.
        self._targets = torch.tensor(targets)  # (N, D), a copy: the caller's array may change
        self._mirrored = None if turned is None else torch.tensor(turned)
        self._flips: torch.Tensor | None = None
        self.map = nn.Linear(as_count(embedding_dim, "embedding_dim"), targets.shape[1])

    def bind(self, posets: Posets) -> None:
        """Heed the flips of these posets: a mirrored sample must predict its mirrored features."""
        if not isinstance(posets, Posets):
            raise TypeError(f"FeatureLoss is bound to Posets, got {type(posets).__name__}")
        if posets.num_samples != len(self._targets):
            counts = f"the posets have {posets.num_samples} samples, the features {len(self._targets)}"
            raise ValueError(f"{counts}: do both belong to one dataset?")
        flipped = bool(posets.flips.any())
        if flipped and self._mirrored is None:
            raise ValueError("the posets mirror some samples: give FeatureLoss the mirrored features too")
        self._flips = torch.from_numpy(posets.flips) if flipped else None

    def forward(
        self,
        embeddings: torch.Tensor,
        indices: torch.Tensor,
        indices_tuple: Any = None,
        ref_emb: torch.Tensor | None = None,
        ref_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The mean over the batch; a miner's tuple is ignored."""
        if ref_emb is not None or ref_labels is not None:
            raise ValueError("FeatureLoss looks at one sample at a time: it takes no ref_emb")
        check_batch(embeddings, None)
        rows = as_indices(indices, len(self._targets), len(embeddings))
        check_width("embeddings", embeddings, self.map.in_features, "the loss, its embedding_dim")
        if not len(embeddings):
            return full_precision(embeddings, self.map.weight)[0].sum()
        targets = self._targets[rows]  # (B, D)
        if self._flips is not None and self._mirrored is not None:
            targets = torch.where(self._flips[rows][:, None], self._mirrored[rows], targets)
        with torch.autocast(embeddings.device.type, enabled=False):
            x, weight = full_precision(embeddings, self.map.weight)
            predicted = F.linear(F.normalize(x), weight, self.map.bias.to(weight.dtype))  # (B, D)
            return (1 - F.cosine_similarity(predicted, targets.to(predicted), dim=1)).mean()
