"""Pooled layers of a network, their partial whitening, and which layers are chosen."""

import numpy as np
import pytest
import torch
from refusals import refuses_each
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from torch import nn

from pml_posets.features import LayerOutputs, PartialWhitening, choose_layers, extract, pooled


class Block(nn.Module):
    def __init__(self, channels, inside=0):
        super().__init__()
        self.inside = nn.Sequential(*(Block(channels) for _ in range(inside)))
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.unused = nn.Identity()

    def forward(self, images):
        return torch.relu(self.norm(self.conv(self.inside(images))))


def network(num_blocks=6):
    torch.manual_seed(0)
    blocks = [Block(4) for _ in range(num_blocks)]
    return nn.Sequential(nn.Conv2d(3, 4, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 9))


def test_outputs_are_the_layers_pooled():
    net = network(2).eval()
    images = torch.rand(5, 3, 8, 8)
    outputs = LayerOutputs(net, ["2", "1", "5"])
    rows = outputs(images)
    maps = [net[:3](images), net[:2](images)]
    torch.testing.assert_close(rows, torch.cat([*(m.mean((2, 3)) for m in maps), net(images)], dim=1))
    assert outputs.widths == [4, 4, 9]
    with pytest.raises(RuntimeError):
        outputs(torch.rand(2, 5, 8, 8))
    assert not any(module._forward_hooks for module in net.modules())


def test_tokens_are_averaged():
    tokens = nn.Sequential(nn.Flatten(2), nn.Linear(16, 7))
    images = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(LayerOutputs(tokens, ["1"])(images), tokens(images).mean(1))


test_layers_that_do_not_do = refuses_each(
    lambda net, layers: LayerOutputs(net, layers)(torch.rand(1, 3, 8, 8)),
    (network(1), ["no"], "layers must be submodules of the network, got 'no'"),
    (network(1), [], "at least one"),
    (network(1), ["1.unused"], r"layer '1\.unused' takes no part"),
    (nn.Sequential(nn.Unflatten(1, (1, 3))), ["0"], r"'0' must give a tensor \(B, C\), \(B, T, C\) or"),
    error=(ValueError, TypeError),
)


def test_blocks_of_the_last_third_are_chosen():
    net = network(7).train()
    assert choose_layers(net, 8, num_blocks=3) == ["5", "6", "7"]
    assert choose_layers(net, 8, num_blocks=1) == ["5", "7"]  # and the last maps
    assert net[1].norm.num_batches_tracked == 0
    nested = nn.Sequential(nn.Conv2d(3, 4, 1), *(Block(4, inside=2) for _ in range(3)))
    assert choose_layers(nested, 8, num_blocks=3) == ["2", "3"]  # the outermost
    assert extract(LayerOutputs(net, ["1", "2"]), torch.rand(6, 3, 8, 8), progress=False).shape == (6, 8)
    assert all(module.training for module in net.modules())
    with pytest.raises(ValueError, match="no layer of the network gives maps"):
        choose_layers(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), 8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ["layer3.1", "layer4.0", "layer4.1"]),
        ("mobilenet_v3_small", ["features.8", "features.9", "features.10", "features.11", "features"]),
        ("vit_b_32", [*(f"encoder.layers.encoder_layer_{i}" for i in (7, 9, 10, 11)), "encoder"]),
    ],
)
def test_blocks_of_known_networks(name, expected):
    from torchvision.models import get_model

    with torch.device("meta"):
        model = get_model(name, weights=None)
    model.to_empty(device="cpu")
    assert choose_layers(model, 224) == expected


@pytest.mark.parametrize("power", [0.0, 0.75, 1.0])
def test_whitening_is_pca_divided_by_a_power_of_the_deviation(power):
    rows = np.random.default_rng(0).normal(size=(200, 5)) * [5, 4, 3, 2, 1] + 7
    whitening = PartialWhitening(3, power, normalize=False)
    found = whitening.fit_transform(rows)
    pca = PCA(3).fit(rows)
    deviation = np.sqrt(pca.explained_variance_ * 199 / 200)
    expected = pca.transform(rows) / deviation**power
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-3, atol=1e-4)
    unit = whitening.set_params(normalize=True).transform(rows)
    np.testing.assert_allclose(unit, found / np.linalg.norm(found, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("num_rows", [200, 50])  # of 50 rows, 20 directions are not few
def test_directions_of_wide_features(monkeypatch, num_rows):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(num_rows, 40)) * 0.9 ** np.arange(40) @ rng.normal(size=(40, 120)) + 3
    exact = PartialWhitening(20).fit_transform(features.astype(np.float32))
    monkeypatch.setattr(pooled, "_WIDE", 100)
    monkeypatch.setattr(np.linalg, "eigh", None)
    found = PartialWhitening(20).fit_transform(features.astype(np.float32))
    np.testing.assert_allclose(found @ found.T, exact @ exact.T, atol=1e-3)
    assert np.array_equal(PartialWhitening(20).fit_transform(features.astype(np.float32)), found)


def test_whitening_keeps_no_more_directions_than_there_are():
    rng = np.random.default_rng(0)
    assert PartialWhitening(50).fit(rng.normal(size=(6, 9))).weight_.shape == (5, 9)
    flat = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 9))
    assert PartialWhitening(50).fit(flat).weight_.shape == (2, 9)


@pytest.mark.parametrize(
    ("options", "rows", "message"),
    [
        ({"power": 1.5}, np.eye(3), r"power must be in \[0, 1\]"),
        ({"num_components": 0}, np.eye(3), "num_components must be at least 1"),
        ({}, np.ones((4, 3)), "two different rows"),
        ({}, np.ones((1, 3)), "two different rows"),
        ({}, np.eye(3), "features must have 3 columns, as fitted"),
    ],
)
def test_wrong_whitening_is_named(options, rows, message):
    whitening = PartialWhitening(**options)
    with pytest.raises(NotFittedError):
        whitening.transform(rows)
    with pytest.raises(ValueError, match=message):
        whitening.fit(rows).transform(np.eye(4))
