"""Images and small networks for objectives that run the networks themselves."""

import torch
from torch import nn

from pml_posets.data.augmentation import BatchAugmentation


def images_of(count=12, size=8, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def models_of(augment=True, dims=5):
    """A trunk with six maps, which augments or not, and an embedder to `dims` dimensions."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    trunk = nn.Sequential(*([BatchAugmentation(rotation=90)] if augment else []), *layers)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, dims))
    return {"trunk": trunk, "embedder": head}
