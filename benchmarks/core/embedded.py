"""Networks with a linear embedding behind them that is learned from views, when their training is over."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pml_posets.data.datasets import WithViews
from pml_posets.features.instance_lda import InstanceLDA
from pml_posets.features.network import extract


class Embedded(nn.Module):
    """Features of a network, scaled to unit length and embedded: (B, ...) -> (B, K), in float32.

    Args:
        network: gives (B, ...) features, which are flattened.
        linear: their embedding.
    """

    def __init__(self, network: nn.Module, linear: nn.Linear) -> None:
        super().__init__()
        self.network, self.linear = network, linear

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The embedding of a batch of images."""
        features = self.network(images).flatten(1).float()
        with torch.autocast(features.device.type, enabled=False):
            return self.linear(F.normalize(features))


def with_instance_lda(network: nn.Module, views: WithViews, device: str, how: dict[str, Any]) -> Embedded:
    """The network and, behind it, an `InstanceLDA` of its features.

    Args:
        network: gives (B, ...) features.
        views: of the images to learn from.
        device: to compute on.
        how: further options of `extract`.
    """
    rows = extract(network, views, batch_size=256, device=device, **how)
    return Embedded(network, InstanceLDA().fit(rows, views.instances).linear().to(device))
