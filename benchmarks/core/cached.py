"""Training behind a frozen front, whose maps of a few views of each image are computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.core.recipes import Recipe
from pml_posets.distributed.sharing import main_first
from pml_posets.training.cached_maps import CachedMaps, FromLayer


class CachedTrunk(nn.Sequential):
    """Augmentation and trunk, which take images (B, 3, S, S) or the maps of one of the trunk's layers.

    What runs before the layer is frozen; the weights are those of the two modules, by the same names.
    """

    def __init__(self, augmentation: nn.Module, trunk: nn.Module, layer: str, image_size: int) -> None:
        super().__init__(augmentation, trunk)
        try:
            # In a list, or its weights would be listed twice.
            self._behind = [FromLayer(trunk, layer, image_size)]
        except ValueError as error:
            raise ValueError(f"--cached-maps {layer}: {error}") from error

    @property
    def tail(self) -> FromLayer:
        """What is trained."""
        return self._behind[0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The trunk's output of images, or of maps of the layer."""
        if tuple(images.shape[1:]) == self.tail.shape:
            return self.tail(images)
        return super().forward(images)

    def train(self, mode: bool = True) -> CachedTrunk:
        """Set the mode of what is trained; the front stays in evaluation mode."""
        super().train(mode)
        if hasattr(self, "_behind"):
            self.tail.train(mode)
        return self

    def maps_of(
        self, images: Any, folder: Path, recipe: Recipe, flips: bool, progress: bool, views: int | None = None
    ) -> CachedMaps:
        """Maps of random views of images, or those of before in the folder: as many as the recipe says.

        With `flips` every second view is mirrored.
        """
        amp = torch.bfloat16 if recipe.precision == "bfloat16" else None
        how: dict[str, Any] = {
            "augmentation": self[0],
            "num_views": recipe.cached_views if views is None else views,
            "mirror": flips,
            "amp": amp,
            "progress": progress,
            "batch_size": 64,
        }
        return main_first(lambda: CachedMaps(images, self.tail, folder, **how))


def score_maps(network: nn.Module, images: Any, folder: Path, recipe: Recipe, progress: bool) -> Any:
    """The images, or their unchanged maps if the network was trained on such; not to be mirrored."""
    trunk = next((part for part in network.modules() if isinstance(part, CachedTrunk)), None)
    if trunk is None:
        return images
    return trunk.maps_of(images, folder, recipe, False, progress, views=0)
