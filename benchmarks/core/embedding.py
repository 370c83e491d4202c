"""Linear maps behind a network that are learned without a gradient: PCA and InstanceLDA."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.core.alexnet import AlexNetEmbedder
from pml_posets.data.datasets import WithViews
from pml_posets.features.instance_lda import InstanceLDA
from pml_posets.features.network import extract
from pml_posets.features.pooled import PartialWhitening


def begin_whitened(
    trunk: nn.Module, embedder: nn.Module, images: Any, power: float, *, device: str, progress: bool
) -> None:
    """Let a linear embedder begin as `PartialWhitening` of the trunk's features of images.

    Raises:
        ValueError: for AlexNet's embedder, or one wider than the features have directions.
    """
    linear = list(embedder.modules())[-1]
    if isinstance(embedder, AlexNetEmbedder) or not isinstance(linear, nn.Linear):
        raise ValueError("--set whitening is for the linear embedder of another trunk than alexnet")
    rows = extract(trunk.to(device), images, normalize=False, device=device, progress=progress)
    found = PartialWhitening(linear.out_features, power).fit(rows)
    if len(found.weight_) < linear.out_features:
        raise ValueError(f"--fc-dim must be at most {len(found.weight_)} with --set whitening")
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(found.weight_))
        linear.bias.copy_(torch.from_numpy(-found.weight_ @ found.mean_))


class Embedded(nn.Module):
    """Features of a network, scaled to unit length and embedded: (B, ...) -> (B, K), in float32."""

    def __init__(self, network: nn.Module, linear: nn.Linear) -> None:
        super().__init__()
        self.network, self.linear = network, linear

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The embedding of a batch of images."""
        features = self.network(images).flatten(1).float()
        with torch.autocast(features.device.type, enabled=False):
            return self.linear(F.normalize(features))


def with_instance_lda(network: nn.Module, views: WithViews, device: str, **how: Any) -> Embedded:
    """The network and, behind it, an `InstanceLDA` of its features of these views."""
    rows = extract(network, views, batch_size=256, device=device, **how)
    return Embedded(network, InstanceLDA().fit(rows, views.instances).linear().to(device))
