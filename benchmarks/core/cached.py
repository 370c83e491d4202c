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

    Args:
        augmentation: for images; maps have passed it.
        trunk: the network.
        layer: name of its submodule whose maps are cached.
        image_size: S.
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
        """Maps of random views of images, those of before where they are in the folder.

        Args:
            images: yields (3, S, S) uint8 tensors.
            folder: where they are kept.
            recipe: says how many views.
            flips: every second view is mirrored.
            progress: show a progress bar.
            views: how many; None: as many as the recipe says.
        """
        augmentation = self[0]
        amp = torch.bfloat16 if recipe.precision == "bfloat16" else None
        how: dict[str, Any] = {"mirror": flips, "amp": amp, "progress": progress, "batch_size": 64}
        views = recipe.cached_views if views is None else views
        return main_first(
            lambda: CachedMaps(images, self.tail, folder, augmentation=augmentation, num_views=views, **how)
        )


def score_maps(network: nn.Module, images: Any, folder: Path, recipe: Recipe, progress: bool) -> Any:
    """The images, or their unchanged maps if the network was trained on such; not to be mirrored."""
    trunk = next((part for part in network.modules() if isinstance(part, CachedTrunk)), None)
    if trunk is None:
        return images
    return trunk.maps_of(images, folder, recipe, False, progress, views=0)
