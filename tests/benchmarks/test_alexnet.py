"""The benchmarks' AlexNet: its shapes, its weights, and torchvision's network as its oracle."""

import math

import pytest
import torch
import torchvision
from torch import nn

from benchmarks.core.alexnet import (
    LAYERS,
    AlexNetConfig,
    build,
    load_imagenet,
    num_parameters,
    settings,
    up_to,
)


def network(**options):
    return AlexNetConfig(**{"fc_dim": 12, **options})


@pytest.fixture(scope="module")
def oracle():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return torchvision.models.alexnet(weights=None).eval()


@pytest.fixture(scope="module")
def weights(oracle, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(oracle.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def ours(weights):
    models = build(AlexNetConfig(), seed=0)
    load_imagenet(models, weights)
    return {name: model.eval() for name, model in models.items()}


# --- shapes


@pytest.mark.parametrize(
    ("size", "stride", "grid"), [(64, 2, 3), (96, 2, 5), (127, 2, 6), (128, 4, 3), (224, 4, 6), (227, 4, 6)]
)
def test_shapes_at_every_size(size, stride, grid):
    config = network(image_size=size)
    assert (config.stride, config.grid) == (stride, grid)
    models = {name: model.eval() for name, model in build(config, 0).items()}
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        shapes = {layer: up_to(models, layer)(images).shape for layer in LAYERS}
    assert shapes == {"pool5": (2, 256 * grid**2), "fc6": (2, 12), "fc7": (2, 12)}


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("size", [64, 96, 131])
def test_the_grid_is_that_of_the_map(stride, size):
    config = network(image_size=size, stem_stride=stride)
    trunk = build(config, 0)["trunk"]
    with torch.no_grad():
        found = trunk.features(torch.zeros(1, 3, size, size)).shape
    assert found == (1, 256, max(found[-1], 1), found[-1])
    assert config.grid == min(6, found[-1])


def test_the_paper_s_shapes():
    config = AlexNetConfig()
    assert (config.image_size, config.grid, 256 * config.grid**2, config.fc_dim) == (227, 6, 9216, 4096)


def test_fc6_is_after_its_relu_and_fc7_before():
    models = {name: model.eval() for name, model in build(network(image_size=64), 0).items()}
    images = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        assert up_to(models, "fc6")(images).min() == 0
        assert up_to(models, "fc7")(images).min() < 0
        pool5 = up_to(models, "pool5")(images)
        assert torch.equal(models["embedder"](pool5), up_to(models, "fc7")(images))
    assert up_to(models, "pool5") is models["trunk"]


def test_batch_norm_after_every_convolution_and_fc6():
    models = build(network(image_size=64, batch_norm=True), 0)
    kinds = [type(module).__name__ for module in models["trunk"].modules()]
    assert kinds.count("Conv2d") == kinds.count("BatchNorm2d") == 5
    assert sum(isinstance(module, nn.BatchNorm1d) for module in models["embedder"].modules()) == 1
    images = 5 * torch.randn(8, 3, 64, 64) + 3
    models["embedder"](models["trunk"](images)).sum().backward()
    for model in models.values():
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    with torch.no_grad():
        normal = models["trunk"].features[:2](images)
    assert normal.mean((0, 2, 3)).abs().max() < 1e-3
    assert normal.std((0, 2, 3)).sub(1).abs().max() < 1e-2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 63}, "at least 64 px, got 63: use --image-size 64"),
        ({"stem_stride": 3}, "must be 2 or 4, got 3"),
        ({"stem_stride": 0}, "must be 2 or 4, got 0"),
        ({"fc_dim": 0}, "at least 1 wide, got 0"),
    ],
)
def test_shapes_that_cannot_be_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        AlexNetConfig(**options)


def test_unknown_layers_and_dropout_are_refused():
    with pytest.raises(ValueError, match="layer must be one of pool5, fc6, fc7, got 'fc8'"):
        up_to({}, "fc8")
    for dropout in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="dropout must lie in"):
            build(network(), 0, dropout)


# --- weights


def states(models):
    return {f"{name}.{key}": value for name, m in models.items() for key, value in m.state_dict().items()}


def test_the_seed_decides_the_weights_and_nothing_else():
    before = torch.get_rng_state()
    config = network(image_size=64)
    first = states(build(config, 3))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    again, other = states(build(config, 3)), states(build(config, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [key for key in first if first[key].any()]  # the convolutions' biases are 0
    assert len(drawn) == 9
    assert not any(torch.equal(first[key], other[key]) for key in drawn)
    wider = states(build(network(image_size=64, fc_dim=20), 3))
    assert all(torch.equal(first[key], wider[key]) for key in first if key.startswith("trunk."))


def test_convolutions_start_as_he_says():
    for module in build(network(image_size=64), 5)["trunk"].modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.03)
            assert not module.bias.any()


def test_dropout_acts_in_training_alone():
    models = build(network(image_size=64), 0, dropout=0.5)
    pool5 = torch.rand(4, 256 * 9)
    assert not torch.equal(models["embedder"](pool5), models["embedder"](pool5))
    models["embedder"].eval()
    assert torch.equal(models["embedder"](pool5), models["embedder"](pool5))
    without = build(network(image_size=64), 0, dropout=0.0)["embedder"]
    assert torch.equal(without(pool5), models["embedder"](pool5))


def test_number_of_parameters():
    models = build(network(image_size=64), 0)
    for parameter in models["trunk"].parameters():
        parameter.requires_grad_(False)
    assert num_parameters(models) == 256 * 9 * 12 + 12 + 12 * 12 + 12


def test_settings_are_plain_and_complete():
    assert settings(network(image_size=64)) == {
        "image_size": 64,
        "batch_norm": False,
        "stem_stride": 2,
        "fc_dim": 12,
        "grid": 3,
    }


# --- torchvision's AlexNet


def test_features_equal_torchvision_s(oracle, ours):
    images = torch.randn(2, 3, 227, 227, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pool5 = oracle.avgpool(oracle.features(images)).flatten(1)
        fc6, fc7 = oracle.classifier[:3](pool5), oracle.classifier[:5](pool5)
        scores = oracle.classifier[5:](up_to(ours, "fc7")(images))
        assert pool5.shape == (2, 9216)
        torch.testing.assert_close(up_to(ours, "pool5")(images), pool5, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(up_to(ours, "fc6")(images), fc6, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(up_to(ours, "fc7")(images), fc7, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(scores, oracle(images), rtol=1e-5, atol=1e-6)
    assert pool5.std() > 1e-3  # not equal because nothing is left


def test_as_many_parameters_as_torchvision_s(oracle, ours):
    last = sum(parameter.numel() for parameter in oracle.classifier[6].parameters())
    assert num_parameters(ours) == sum(parameter.numel() for parameter in oracle.parameters()) - last


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no ImageNet weights at .*none\.pth: give the local file"):
        load_imagenet({}, tmp_path / "none.pth")


@pytest.mark.parametrize("options", [{"image_size": 64}, {"fc_dim": 12}, {"fc_dim": 12, "batch_norm": True}])
def test_weights_of_other_shapes_are_refused_and_nothing_is_loaded(weights, options):
    options = {"fc_dim": 12, **options}
    models = build(AlexNetConfig(**options), 0)
    before = {key: value.clone() for key, value in states(models).items()}
    with pytest.raises(ValueError, match=r"alexnet\.pth does not fit this AlexNet at .*no batch norm"):
        load_imagenet(models, weights)
    assert all(torch.equal(before[key], value) for key, value in states(models).items())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is damaged or no file of weights"),
        (b"no weights at all", "is damaged or no file of weights"),
        (torch.zeros(3), "holds no state_dict"),
        ({"model": {"features.0.weight": torch.zeros(3)}}, "holds no state_dict"),
        ({}, r"does not fit this AlexNet at features\.0\.bias, features\.0\.weight"),
        ({"layer1.weight": torch.zeros(3)}, "does not fit this AlexNet"),
    ],
)
def test_files_of_something_else_are_refused(tmp_path, content, words):
    path = tmp_path / "other.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=rf"other\.pth {words}"):
        load_imagenet(build(network(image_size=64), 0), path)


def test_a_half_written_file_is_refused(tmp_path):
    path = tmp_path / "half.pth"
    torch.save({"features.0.weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"half\.pth is damaged"):
        load_imagenet(build(network(image_size=64), 0), path)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    path = tmp_path / "code.pth"
    torch.save({"features.0.weight": print}, path)
    with pytest.raises(ValueError, match=r"code\.pth is damaged or no file of weights"):
        load_imagenet(build(network(image_size=64), 0), path)
