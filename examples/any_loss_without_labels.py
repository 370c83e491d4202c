"""Any PML loss trained without labels: classes by PseudoLabelSampler, steps by a PML trainer.

The images are handwritten digits (they come with scikit-learn), each over another, dimmer one. HOG-LDA is
misled by these, but its closest look-alikes are good enough to learn from. The true digits are used for
nothing but the score, on images not trained on.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any

import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.trainers import MetricLossOnly
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.datasets import load_digits
from torch import nn

from pml_posets import HOGLDA, PseudoLabelLoss, PseudoLabelSampler
from pml_posets.data.datasets import IndexedDataset
from pml_posets.features.network import extract

NUM_TRAIN = 1200


class Shifted(torch.utils.data.Dataset[torch.Tensor]):
    """Images, each moved by a pixel at random."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index].roll(torch.randint(-1, 2, (2,)).tolist(), dims=(1, 2))


def main(arguments: Sequence[str] | None = None) -> None:
    """Group, train, and print how well unseen images are retrieved before and after."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--iterations", type=int, default=300)
    iterations = parser.parse_args(arguments).iterations
    logging.getLogger("PML").setLevel(logging.ERROR)
    torch.manual_seed(0)
    images, digits = make_images()
    train, test = images[:NUM_TRAIN], images[NUM_TRAIN:]

    hog = HOGLDA(image_size=32, cell_size=4).fit_background(train, num_patches=300, progress=False)
    sampler = PseudoLabelSampler(
        hog.transform(train, progress=False), unassigned_fraction=0, num_batches=iterations
    )
    print(f"{sampler.posets.num_classes} classes of {(sampler.labels >= 0).sum()} of {NUM_TRAIN} images")

    trunk = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 4, 64),
    )  # fmt: skip
    trainer = MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.Adam(trunk.parameters(), lr=1e-3)},
        batch_size=None,
        loss_funcs={"metric_loss": PseudoLabelLoss(MultiSimilarityLoss(beta=10), sampler)},  # any PML loss
        dataset=IndexedDataset(Shifted(train)),  # yields (image, index): its labels are dataset indices
        sampler=sampler,
        dataloader_num_workers=0,
    )
    report("HOG-LDA", hog.transform(test, progress=False), digits)
    report("before training", extract(trunk, test, progress=False), digits)
    trainer.train()
    report("after training", extract(trunk, test, progress=False), digits)


def make_images() -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 1, 16, 16) images and their (N,) digits, in random order."""
    data = load_digits()
    order = torch.randperm(len(data.target))
    small = torch.tensor(data.images / 16, dtype=torch.float32)[order, None]
    images = nn.functional.interpolate(small, size=16, mode="bilinear")
    others = [image.roll(torch.randint(-5, 6, (2,)).tolist(), dims=(1, 2)) for image in images.flip(0)]
    return torch.maximum(images, 0.6 * torch.stack(others)), torch.tensor(data.target)[order]


def report(name: str, features: Any, digits: torch.Tensor) -> None:
    """Print recall@1 and the mean average precision at R of the test images' features."""
    found = AccuracyCalculator(include=("precision_at_1", "mean_average_precision_at_r")).get_accuracy(
        torch.as_tensor(features), digits[NUM_TRAIN:]
    )
    recall, precision = found["precision_at_1"], found["mean_average_precision_at_r"]
    print(f"{name:16s} recall@1 {recall:.3f}   MAP@R {precision:.3f}", flush=True)


if __name__ == "__main__":
    main()
