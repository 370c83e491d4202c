"""PosetLoss in a plain PyTorch loop, with labels for some samples and -1 for the others.

Points lie around twenty centres, blurred by noise that says nothing about them. One in five has a label. The
network learns to tell the centres apart from labelled and unlabelled points together.
"""

from __future__ import annotations

import numpy as np
import torch

from pml_posets import PosetLoss
from pml_posets.neighbors import search

NUM_CLASSES, PER_CLASS, SIGNAL, NOISE = 20, 40, 8, 56


def make_points(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(800, 64) points and their (800,) true classes."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(NUM_CLASSES).repeat_interleave(PER_CLASS)
    centres = torch.randn(NUM_CLASSES, SIGNAL, generator=generator)
    signal = centres[classes] + 0.35 * torch.randn(len(classes), SIGNAL, generator=generator)
    noise = 1.5 * torch.randn(len(classes), NOISE, generator=generator)
    return torch.cat([signal, noise], dim=1), classes


def recall_at_1(embeddings: torch.Tensor, classes: torch.Tensor) -> float:
    """Share of samples whose nearest neighbour is of their class."""
    nearest = search(torch.nn.functional.normalize(embeddings), k=1).indices[:, 0]
    return float(np.mean(classes.numpy()[nearest] == classes.numpy()))


def main() -> None:
    """Train, and print recall@1 before and after."""
    points, classes = make_points()
    labels = classes.clone()
    labels[torch.arange(len(labels)) % 5 != 0] = -1  # four in five are unlabelled

    torch.manual_seed(0)
    model = torch.nn.Linear(SIGNAL + NOISE, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss_func = PosetLoss(num_nearest=2, sigma=0.5)
    unlabelled = labels < 0
    with torch.no_grad():
        before = recall_at_1(model(points)[unlabelled], classes[unlabelled])
    for _ in range(150):
        batch = torch.randperm(len(points))[:256]
        loss = loss_func(model(points[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        after = recall_at_1(model(points)[unlabelled], classes[unlabelled])
    print(f"recall@1 of the unlabelled points: {before:.2f} before, {after:.2f} after training")


if __name__ == "__main__":
    main()
