"""Training behind a layer on stored maps: the same numbers as from images, one pass through the front."""

import pickle

import numpy as np
import pytest
import torch
import trainings
from torch import nn
from trainings import sgd

from pml_posets import BatchAugmentation
from pml_posets.data.datasets import IndexedDataset
from pml_posets.samplers.pseudo_label import GivenLabels
from pml_posets.training import CachedMaps, FromLayer


def network():
    torch.manual_seed(0)
    front = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    behind = [nn.Conv2d(4, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(54, 5)]
    return nn.Sequential(*front, *behind).eval()


def photos(count=12):
    return torch.randint(
        0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def plain():
    return BatchAugmentation(mean=[0.5] * 3, std=[0.25] * 3)


@pytest.mark.parametrize(("layer", "shape"), [("2", (4, 8, 8)), ("4", (6, 3, 3))])
def test_maps_say_all_that_images_do(layer, shape):
    net = network()
    tail = FromLayer(net, layer, image_size=8)
    images = torch.rand(5, 3, 8, 8)
    maps = tail.front(images)
    assert tail.shape == shape
    before = maps.clone()
    torch.testing.assert_close(tail(maps), net(images))
    assert torch.equal(maps, before)  # the layer behind "4" writes into a copy
    assert not any(module._forward_hooks for module in net.modules())


def test_a_network_may_flatten_by_the_number_of_images():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.behind = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1)

        def forward(self, images):
            return self.behind(self.layer(images)).mean((2, 3)).view(images.size(0), -1)

    net, images = Flat().eval(), torch.rand(5, 3, 8, 8)
    tail = FromLayer(net, "layer", image_size=8)
    torch.testing.assert_close(tail(tail.front(images)), net(images))


def test_only_what_lies_behind_is_trained():
    net = network()
    tail = FromLayer(net, "2", image_size=8).train()
    start = net[1].running_mean.clone()
    tail(torch.rand(4, 4, 8, 8)).sum().backward()
    assert torch.equal(net[1].running_mean, start)
    assert not net[1].training
    assert net[4].training
    behind = ["3.weight", "3.bias", "4.weight", "4.bias", "7.weight", "7.bias"]
    assert [name for name, p in net.named_parameters() if p.grad is not None] == behind
    assert [name for name, p in net.named_parameters() if p.requires_grad] == behind


def test_a_way_past_the_layer_is_refused():
    class Past(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, images):
            return self.layer(images) + images

    with pytest.raises(ValueError, match="reads the images, or layers before, behind that layer too"):
        FromLayer(Past(), "layer", image_size=8)
    with pytest.raises(ValueError, match="layer must be a submodule of the network, got 'no'"):
        FromLayer(network(), "no", image_size=8)


@pytest.mark.parametrize("mirror", [False, True])
def test_views_are_those_of_the_augmentation(mirror, tmp_path):
    tail = FromLayer(network(), "2", image_size=8)
    still = BatchAugmentation((1, 1), 0, 0, 0, mean=[0.5] * 3, std=[0.25] * 3)
    options = {"batch_size": 5, "mirror": mirror, "progress": False}
    normalized = (photos() / 255 - 0.5) / 0.25
    straight, turned = tail.front(normalized), tail.front(normalized.flip(-1))
    first = CachedMaps(photos(), tail, tmp_path, augmentation=still, num_views=1, **options)
    for index in range(12):
        torch.testing.assert_close(
            first[index], (turned if mirror else straight)[index], rtol=2e-3, atol=2e-3
        )
    both = CachedMaps(photos(), tail, tmp_path, augmentation=still, num_views=2, **options)
    assert (
        len({round(float(both[3].sum()), 3) for _ in range(40)}) == 1 + mirror
    )  # the second is not mirrored
    changed = CachedMaps(photos(), tail, tmp_path, augmentation=plain(), num_views=1, **options)
    for index in range(12):
        torch.testing.assert_close(changed.plain[index], straight[index], rtol=2e-3, atol=2e-3)


def test_a_seed_gives_the_same_view_and_the_file_is_used_again(tmp_path):
    tail = FromLayer(network(), "2", image_size=8)
    maps = CachedMaps(photos(), tail, tmp_path, num_views=4, progress=False)
    state = torch.get_rng_state()
    indexed = IndexedDataset(maps)
    assert torch.equal(indexed[(3, 7)][0], indexed[(3, 7)][0])
    assert len({float(indexed[(3, seed)][0].sum()) for seed in range(30)}) == 4
    assert torch.equal(torch.get_rng_state(), state)
    written = maps.path.stat().st_mtime_ns
    with torch.no_grad():
        tail.network[7].weight.add_(1)  # behind the layer
    again = CachedMaps(photos(), tail, tmp_path, num_views=4, progress=False)
    assert again.path == maps.path
    assert again.path.stat().st_mtime_ns == written
    assert torch.equal(pickle.loads(pickle.dumps(maps)).plain[2], maps.plain[2])


@pytest.mark.parametrize(
    "change", ["front", "images", {"seed": 1}, {"augmentation": plain()}, {"mirror": False}]
)
def test_other_maps_lie_in_another_file(change, tmp_path):
    tail, images = FromLayer(network(), "2", image_size=8), photos()
    options = {"num_views": 1, "progress": False}
    first = CachedMaps(images, tail, tmp_path, **options)
    if change == "front":
        with torch.no_grad():
            tail.network[0].weight[0] += 1
    images = 255 - images if change == "images" else images
    changed = change if isinstance(change, dict) else {}
    assert CachedMaps(images, tail, tmp_path, **options, **changed).path != first.path


def test_too_much_is_refused_before_it_is_computed(tmp_path):
    tail = FromLayer(network(), "2", image_size=8)
    text = r"the maps would take 0\.0 GiB of 1e-06 \(max_gib\): take fewer views"
    with pytest.raises(ValueError, match=text):
        CachedMaps(photos(), tail, tmp_path, max_gib=1e-6, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_joint_trainer_learns_from_maps(tmp_path):
    net = network()
    tail = FromLayer(net, "2", image_size=8)
    maps = CachedMaps(photos(), tail, tmp_path, augmentation=plain(), num_views=2, progress=False)
    front = net[0].weight.clone()
    start = net[7].weight.clone()
    optimizer = sgd()
    joint = trainings.make(
        maps,
        tail,
        GivenLabels([0, 0, 0, 1, 1, 1, 2, 2, 2, -1, -1, -1]),
        features=np.random.default_rng(0).normal(size=(12, 4)),
        optimizers={"trunk_optimizer": lambda weights: optimizer([w for w in weights if w.requires_grad])},
        feature_dataset=maps.plain,
        sampler_options={"batch_size": 12},
    )
    joint.train()
    assert joint.extract().shape == (12, 5)
    assert torch.equal(net[0].weight, front)
    assert not torch.equal(net[7].weight, start)
