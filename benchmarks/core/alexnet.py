"""The AlexNet of the benchmarks: torchvision's layers, cut where the paper reads its features."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.core.architectures import AlexNetConfig


class AlexNetTrunk(nn.Module):
    """Convolutions of AlexNet up to pool5, flattened: (B, 3, S, S) -> (B, 256 * grid^2)."""

    def __init__(self, config: AlexNetConfig) -> None:
        super().__init__()
        stride = config.stride
        convolutions = [
            (nn.Conv2d(3, 64, kernel_size=11 if stride == 4 else 7, stride=stride, padding=2), True),
            (nn.Conv2d(64, 192, kernel_size=5, padding=2), True),
            (nn.Conv2d(192, 384, kernel_size=3, padding=1), False),
            (nn.Conv2d(384, 256, kernel_size=3, padding=1), False),
            (nn.Conv2d(256, 256, kernel_size=3, padding=1), True),
        ]
        layers: list[nn.Module] = []
        for convolution, pooled in convolutions:
            layers.append(convolution)
            if config.batch_norm:
                layers.append(nn.BatchNorm2d(convolution.out_channels))
            layers.append(nn.ReLU(inplace=True))
            if pooled:
                layers.append(nn.MaxPool2d(kernel_size=3, stride=2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(config.grid)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) normalized images -> (B, 256 * grid^2)."""
        images = images.contiguous(memory_format=torch.channels_last)  # a third faster on a CPU
        return self.pool(self.features(images)).flatten(1)


class AlexNetEmbedder(nn.Module):
    """fc6 and fc7 of AlexNet: (B, 256 * grid^2) -> (B, fc_dim), fc7 before its ReLU."""

    def __init__(self, config: AlexNetConfig, dropout: float) -> None:
        super().__init__()
        norm: list[nn.Module] = [nn.BatchNorm1d(config.fc_dim)] if config.batch_norm else []
        self.fc6 = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * config.grid**2, config.fc_dim),
            *norm,
            nn.ReLU(inplace=True),
        )
        self.fc7 = nn.Sequential(nn.Dropout(dropout), nn.Linear(config.fc_dim, config.fc_dim))

    def forward(self, pool5: torch.Tensor) -> torch.Tensor:
        """(B, 256 * grid^2) -> (B, fc_dim)."""
        return self.fc7(self.fc6(pool5))
