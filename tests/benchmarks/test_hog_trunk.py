"""The trunk that begins as HOG."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.core import networks
from benchmarks.core.architectures import HogConfig
from benchmarks.core.hog_trunk import RIDGE, begin
from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.features.hog import HogGrid


@pytest.fixture
def images():
    source = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=source)


def test_its_first_columns_are_hog_and_nothing_in_them_is_learned(images):
    trunk = networks.build(HogConfig(32, 5), seed=0)["trunk"].eval()
    rows = nn.Sequential(BatchAugmentation(), trunk).eval()(images)
    hog = HogGrid(32).describe(images.permute(0, 2, 3, 1).numpy()) * trunk.weights.numpy()
    hog /= np.linalg.norm(hog, axis=1, keepdims=True)
    np.testing.assert_allclose(rows[:, : trunk.num_hog].detach(), hog, atol=1e-4)
    assert rows.shape == (40, trunk.dim)
    side = trunk.grid.side
    window = trunk.weights.reshape(side, side, -1)[..., 0]
    assert window[side // 2, 0] < window[0, side // 2]  # a person is taller than wide
    rows[:, : trunk.num_hog].sum().backward()
    assert not any(p.grad.any() for p in trunk.parameters())


def test_it_begins_as_the_ridge_regression_of_its_targets(images):
    models = networks.build(HogConfig(32, 7), seed=0, dropout=0.0)
    targets = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    begin(models, images, targets)
    network = nn.Sequential(BatchAugmentation(), models["trunk"], models["embedder"]).eval()
    told = network(images).detach().numpy()
    hog = models["trunk"].finished(torch.from_numpy(HogGrid(32).describe(images.permute(0, 2, 3, 1).numpy())))
    hog = hog.double().numpy()
    ridge = RIDGE * np.mean((hog**2).sum(0))
    wanted = hog @ hog.T @ np.linalg.solve(hog @ hog.T + ridge * np.eye(40), targets)
    np.testing.assert_allclose(told[:, :5], wanted, atol=0.02)
    assert not told[:, 5:].any()


def test_it_may_begin_at_random(images):
    models, untouched = (networks.build(HogConfig(32, 7), seed=0, dropout=0.0) for _ in range(2))
    begin(models, images, np.ones((40, 5), np.float32), fit=False)
    assert models["trunk"].offset.any()
    for mine, theirs in zip(models["embedder"].parameters(), untouched["embedder"].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
