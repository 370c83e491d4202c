"""PosetLoss in a plain PyTorch loop, with labels for some samples and -1 for the others.

Of 1200 handwritten digits (8 x 8 pixels, they come with scikit-learn) five of each digit have a label. The
network is trained once on these alone and once on all, and scored on digits it has not seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.datasets import load_digits
from torch import nn

from pml_posets import PosetLoss

NUM_TRAIN, NUM_LABELLED, HALF_BATCH = 1200, 5, 64


def main(arguments: Sequence[str] | None = None) -> None:
    """Train twice, and print how well unseen digits are retrieved."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--iterations", type=int, default=300)
    iterations = parser.parse_args(arguments).iterations
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images / 16, dtype=torch.float32)[order, None]  # (N, 1, 8, 8)
    digits = torch.tensor(data.target)[order]

    labels = torch.full((NUM_TRAIN,), -1)
    for digit in range(10):
        labels[(digits[:NUM_TRAIN] == digit).nonzero()[:NUM_LABELLED]] = digit

    report("before training", make_network(), images, digits)
    for name, unlabelled in (("labelled digits alone", False), ("and unlabelled ones", True)):
        network = make_network()
        train(network, images, labels, iterations, unlabelled)
        report(name, network, images, digits)


def train(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor, iterations: int, unlabelled: bool
) -> None:
    """The loop. Half of a batch is labelled; the other half, if wanted, is not."""
    # Digits are ten classes that look alike in no order, so each sample has one nearest class. Where classes
    # are many and small, num_nearest=2 or more lets a sample lie between them.
    loss_func = PosetLoss(num_nearest=1, sigma=0.5)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    halves = [(labels >= 0).nonzero()[:, 0], *([(labels < 0).nonzero()[:, 0]] if unlabelled else [])]
    for _ in range(iterations):
        batch = torch.cat([half[torch.randint(len(half), (HALF_BATCH,))] for half in halves])
        shift = torch.randint(-1, 2, (2,)).tolist()
        embeddings = network(images[batch].roll(shift, dims=(2, 3)))
        loss = loss_func(embeddings, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def make_network() -> nn.Module:
    """A small network, (B, 1, 8, 8) to (B, 64), with the same weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 16, 64),
    )  # fmt: skip


def report(name: str, network: nn.Module, images: torch.Tensor, digits: torch.Tensor) -> None:
    """Print recall@1 and the mean average precision at R of the digits that were not trained on."""
    network.eval()
    with torch.no_grad():
        embeddings = nn.functional.normalize(network(images[NUM_TRAIN:]))
    found = AccuracyCalculator(include=("precision_at_1", "mean_average_precision_at_r")).get_accuracy(
        embeddings, digits[NUM_TRAIN:]
    )
    recall, precision = found["precision_at_1"], found["mean_average_precision_at_r"]
    print(f"{name:22s} recall@1 {recall:.3f}   MAP@R {precision:.3f}", flush=True)


if __name__ == "__main__":
    main()
