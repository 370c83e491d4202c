"""Small pictures in memory and on disk, and images that are drawn at random."""

import random

import numpy as np
import torch
from PIL import Image


def noise(height=24, width=24, seed=0):
    """(height, width, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(num, size=40, seed=0):
    """(num, size, size, 3) uint8: smooth noise, so that neighboring blocks are correlated."""
    small = np.random.default_rng(seed).integers(0, 256, (num, 6, 6, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((size, size))) for image in small])


def striped(num_each, size=32):
    """(6 * num_each, size, size, 3) uint8: six patterns of stripes, some photos of each."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    images = []
    for angle in np.linspace(0, np.pi / 2, 6):
        for _ in range(num_each):
            wave = np.sin(0.7 * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 6))
            images.append(128 + 80 * wave[:, :, None] + rng.normal(0, 8, (size, size, 3)))
    return np.clip(images, 0, 255).astype(np.uint8)


def saved(folder, images):
    """The files 0.png, 1.png, ... that the images are written to."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


class Noisy(torch.utils.data.Dataset):
    """Pairs of an image and a label; images draw from every global generator, as random transforms do."""

    def __init__(self, size=12, shape=(1, 1, 3)):
        self.size, self.shape = size, shape

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        drawn = torch.rand(()).item() + np.random.rand() + random.random()  # noqa: NPY002
        return torch.full(self.shape, (index / self.size + drawn) / 4), "a label"


def generators():
    """The state of every global generator."""
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
