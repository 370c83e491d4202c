"""Any PML loss, trained without labels: pseudo-labels from PseudoLabelSampler, steps by a PML trainer.

The images are scikit-learn's 8 x 8 handwritten digits. Groups of look-alikes are the classes, and a network learns
16 numbers for each image. The true digits are used for nothing but the score, on images not trained on.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from pytorch_metric_learning.trainers import MetricLossOnly
from sklearn.datasets import load_digits

from pml_posets import PseudoLabelLoss, PseudoLabelMiner, PseudoLabelSampler, SurrogateGrouping
from pml_posets.datasets import IndexedDataset
from pml_posets.features import extract
from pml_posets.neighbors import search


def recall_at_1(embeddings: np.ndarray, digits: np.ndarray) -> float:
    """Share of images whose nearest neighbour is the same digit."""
    return float(np.mean(digits[search(embeddings, k=1).indices[:, 0]] == digits))


def main() -> None:
    """Group, train, and print recall@1 on unseen images before and after."""
    logging.getLogger("PML").setLevel(logging.ERROR)
    pixels, digits = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels.astype(np.float32) / 16)
    train, test = images[:1200], images[1200:]

    sampler = PseudoLabelSampler(
        train, batch_size=96, grouping=SurrogateGrouping(top_fraction=0.02), samples_per_class=6, seed=0
    )
    assigned = sampler.labels >= 0
    print(f"{sampler.posets.num_classes} classes hold {assigned.sum()} of {len(train)} images")

    torch.manual_seed(0)
    trunk = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 16))
    before = recall_at_1(extract(trunk, test, progress=False), digits[1200:])
    trainer = MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.Adam(trunk.parameters(), lr=1e-3)},
        batch_size=sampler.batch_size,
        loss_funcs={"metric_loss": PseudoLabelLoss(MultiSimilarityLoss(), sampler)},
        mining_funcs={"tuple_miner": PseudoLabelMiner(MultiSimilarityMiner(), sampler)},
        dataset=IndexedDataset(train),  # yields (image, index): the labels channel carries indices
        sampler=sampler,
        dataloader_num_workers=0,
    )
    trainer.train(num_epochs=12)
    after = recall_at_1(extract(trunk, test, progress=False), digits[1200:])
    print(f"recall@1 of unseen digits in 16 numbers: {before:.3f} before, {after:.3f} after training")


if __name__ == "__main__":
    main()
