"""A trunk that begins as HOG: a fixed layer of oriented gradients, and a few convolutions beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.core.architectures import HogConfig
from pml_posets.features.hog import HogGrid, window_weights

RIDGE = 0.1  # of the mean eigenvalue
WINDOW = (0.2, 0.6)


class HogTrunk(nn.Module):
    """Windowed HOG and the maps of convolutions: (B, 3, S, S) normalized images -> (B, D).

    Attributes:
        features: the convolutions; their output are the last maps.
        num_hog: columns that are HOG, the first ones, of unit length; nothing in them is learned.
        dim: D.
        offset: (num_hog,) what is subtracted from HOG, set by `begin`.
    """

    mean: torch.Tensor
    std: torch.Tensor
    weights: torch.Tensor
    offset: torch.Tensor

    def __init__(self, config: HogConfig) -> None:
        super().__init__()
        self.grid = HogGrid(config.image_size)
        self.num_hog = self.grid.num_features
        widths = ((3, 32, 8, 4), (32, 64, 3, 2), (64, 128, 3, 2), (128, 32, 1, 1))
        self.features = nn.Sequential()
        for given, made, side, stride in widths:
            padding = (side - 1) // 2
            self.features.append(nn.Conv2d(given, made, side, stride, padding, bias=False))
            self.features.extend([nn.BatchNorm2d(made), nn.ReLU(inplace=True)])
        with torch.no_grad():
            maps = self.features.eval()(torch.zeros(1, 3, config.image_size, config.image_size))
        self.features.train()
        self.dim = self.num_hog + maps.numel()
        weights = np.repeat(window_weights(self.grid.centers, WINDOW), self.grid.channels)
        self.register_buffer("weights", torch.from_numpy(weights), persistent=False)
        self.register_buffer("offset", torch.zeros(self.num_hog))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(-1, 1, 1), persistent=False)

    def finished(self, hog: torch.Tensor) -> torch.Tensor:
        """(B, num_hog) HOG, the mean subtracted, in the window, of unit length."""
        return nn.functional.normalize((hog - self.offset) * self.weights)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) normalized images -> (B, D)."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            pixels = (images.float() * self.std + self.mean) * 255
            pixels = pixels.clamp_(0, 255).add_(0.5).floor_()  # whole numbers, none of them -0
            hog = self.finished(self.grid.describe_tensor(pixels))
        maps = self.features(images.contiguous(memory_format=torch.channels_last)).flatten(1)
        return torch.cat([hog, maps.to(hog.dtype)], dim=1)


def begin(
    models: Mapping[str, nn.Module], images: Any, targets: np.ndarray, device: str = "cpu", fit: bool = True
) -> None:
    """Center HOG, and let the embedding begin as the linear map that predicts the targets best (ridge).

    The convolutions have no say in it yet: training finds theirs.

    Args:
        images: yields N (3, S, S) uint8 tensors.
        targets: (N, K) float32, unit rows. Of more columns than the embedding has the first are predicted.
        fit: False: HOG is centered alone, and the embedding begins at random.
    """
    trunk: Any = models["trunk"].to(device)
    embedder: Any = models["embedder"].to(device)
    linear = embedder[-1]
    rows = torch.empty(len(targets), trunk.num_hog, dtype=torch.float16)
    for start in range(0, len(targets), 256):
        batch = torch.stack([images[i] for i in range(start, min(start + 256, len(targets)))])
        rows[start : start + 256] = trunk.grid.describe_tensor(batch.to(device).float()).cpu()
    trunk.offset.copy_(rows.float().mean(0))
    if not fit:
        return
    size, width = trunk.num_hog, min(targets.shape[1], linear.out_features)
    gram, cross = torch.zeros(size, size), torch.zeros(size, width)
    for start in range(0, len(targets), 4096):
        part = trunk.finished(rows[start : start + 4096].to(device).float()).cpu()
        gram += part.T @ part
        cross += part.T @ torch.from_numpy(targets[start : start + 4096, :width])
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.zero_()
        linear.weight[:width, :size] = torch.linalg.solve(gram, cross).T.to(device)
