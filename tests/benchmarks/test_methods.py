"""The methods of the benchmarks beyond the first four, and the trunks they train."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torchvision import models as torchvision_models

from benchmarks.core import alexnet, methods, trunks
from benchmarks.core.learning import Start, train
from benchmarks.core.recipes import PRESETS
from benchmarks.core.trained import architecture_of, config_of, load_trained
from pml_posets.losses.poset import PosetLoss
from pml_posets.methods.concurl import ConcurlObjective
from pml_posets.methods.contrastive_clustering import ContrastiveClusteringLoss
from pml_posets.methods.stml import STMLObjective
from pml_posets.methods.tac_ccl import AttentionConsistencyObjective
from pml_posets.methods.udml_ss import RotationObjective
from pml_posets.miners import NearestMedoidMiner

NUM, KINDS = 48, 6
NEW = [name for name in methods.METHODS if name not in ("posets", "cliques", "triplet", "ntxent")]
SHORT = dataclasses.replace(
    PRESETS["tiny"],
    rounds=2,
    iterations=1,
    batch_size=8,
    fc_dim=16,
    top_fraction=0.2,
    mirror_images=False,
    random_fraction=0.0,
    num_clusters=5,
    samples_per_cluster=2,
    num_transforms=3,
    precision="float32",
)


class Images(torch.utils.data.Dataset):
    """Uniform noise; three channels, uint8."""

    def __init__(self, size=64):
        self.pixels = np.random.default_rng(1).integers(0, 256, (NUM, 3, size, size), np.uint8)

    def __len__(self):
        return NUM

    def __getitem__(self, index):
        return torch.from_numpy(self.pixels[index].copy())


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


class Watch:
    """Stands for a log: sees every iteration, and kills the run before the next one if asked to."""

    def __init__(self, kill_after=None):
        self.kill_after, self.seen = kill_after, []

    def record(self, trainer):
        self.seen.append({name: float(torch.as_tensor(v).detach()) for name, v in trainer.losses.items()})
        if len(self.seen) == self.kill_after:
            raise Killed


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def start():
    rng = np.random.default_rng(0)
    labels = np.arange(NUM) % KINDS
    kinds = rng.standard_normal((KINDS, 12))[labels]
    features = unit(kinds + 0.9 * rng.standard_normal(kinds.shape))
    return Start(features, unit(features + 0.1 * rng.standard_normal(kinds.shape)), labels=labels)


@pytest.fixture
def run(start):
    def run(method, changes=None, given=start, size=64, seed=0, **options):
        recipe = dataclasses.replace(SHORT, **(changes or {}))
        return train(method, Images(size), given, recipe, seed=seed, progress=False, **options)

    return run


def weights(joint):
    parts = [*joint.models.items(), *joint.loss_funcs.items()]
    state = {f"{name} {key}": value for name, part in parts for key, value in part.state_dict().items()}
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


# --- Every method


@pytest.mark.parametrize("method", NEW)
def test_two_rounds_of_every_method(method, run):
    begin = alexnet.build(SHORT.architecture, seed=0, dropout=0.0)
    watch = Watch()
    joint = run(method, log=watch)
    assert joint.finished
    assert len(watch.seen) == 2
    for seen in watch.seen:
        assert all(math.isfinite(value) for value in seen.values())
        assert seen["total_loss"] > 0
    trunk = joint.models["trunk"][1]
    still = [n for n, p in begin["trunk"].named_parameters() if torch.equal(p, trunk.get_parameter(n))]
    assert still == []
    embedder = joint.models["embedder"]
    moved = [
        n for n, p in begin["embedder"].named_parameters() if not torch.equal(p, embedder.get_parameter(n))
    ]
    assert "fc7.1.weight" in moved
    assert joint.posets.round == (0 if method in ("concurl", "ntxent+feature", "supervised") else 1)
    assert joint.extract(mirror=False).shape == (NUM, SHORT.fc_dim)


@pytest.mark.parametrize("method", ["kmeans", "stml"])
def test_mirror_images_as_samples_of_their_own(method, run):
    joint = run(method, {"mirror_images": True})
    assert joint.sampler.num_samples == len(joint.dataset) == 2 * NUM
    assert not joint.sampler.uses_mirrored


@pytest.mark.parametrize("method", ["udml-ss", "concurl", "stml"])
def test_a_killed_run_ends_as_the_uninterrupted_one(method, run, tmp_path):
    changes = {"iterations": 2, "population": 0.5}
    expected = run(method, changes)
    with pytest.raises(Killed):
        run(method, changes, output_dir=tmp_path, log=Watch(kill_after=3))
    watch = Watch()
    joint = run(method, changes, output_dir=tmp_path, resume=True, log=watch)
    assert len(watch.seen) == 2  # round 2 alone
    assert_same(weights(joint), weights(expected))
    assert joint.history == expected.history
    np.testing.assert_array_equal(joint.extract(mirror=False), expected.extract(mirror=False))


def test_only_the_supervised_method_sees_labels(run, start):
    unknown = dataclasses.replace(start, labels=None)
    for method in ("kmeans", "posets"):
        assert_same(weights(run(method)), weights(run(method, given=unknown)))
    with pytest.raises(ValueError, match="supervised needs the true classes of the images to learn from"):
        run("supervised", given=unknown)
    joint = run("supervised", {"mirror_images": True, "batch_size": 16, "samples_per_cluster": 4})
    np.testing.assert_array_equal(joint.posets.labels, np.tile(start.labels, 2))
    for batch in joint.sampler:
        sizes = np.bincount(joint.posets.labels[batch])
        assert set(sizes) <= {0, 4}


# --- What each is made of


def test_kmeans_draws_as_many_of_each_cluster(run, start):
    joint = run("kmeans", {"num_clusters": 8, "samples_per_cluster": 4})
    assert joint.posets.num_classes == 8
    loss, miner = joint.loss_funcs["metric_loss"].inner, joint.mining_funcs["tuple_miner"].inner
    assert (loss.alpha, loss.beta, loss.base, miner.epsilon) == (2, 40, 0.5, 0.1)
    fewer = run("kmeans", {"num_clusters": None}, given=dataclasses.replace(start, num_clusters=7))
    assert fewer.posets.num_classes == 7
    fixed = run("kmeans", {"regroup": "fixed"})
    assert fixed.posets.round == 0


def test_udml_ss_adds_the_rotation_loss_by_its_weight(run):
    plain, both = Watch(), Watch()
    run("kmeans", log=plain)
    joint = run("udml-ss", log=both)
    assert isinstance(joint.loss_funcs["rotation"], RotationObjective)
    assert joint.loss_weights == {"metric_loss": 1.0, "rotation": 0.1}
    assert "rotation_optimizer" in joint.optimizers
    first = both.seen[0]
    assert first["metric_loss"] == plain.seen[0]["metric_loss"]  # the same batch, labels and network
    assert first["rotation"] == pytest.approx(0.1 * math.log(4), rel=0.5)  # PML has weighed it in place
    assert first["total_loss"] == pytest.approx(first["metric_loss"] + first["rotation"], rel=1e-5)
    joint = run("posets+rotation", {"rotation": 0.5, "iterations": 1, "rounds": 1})
    assert joint.loss_weights == {"metric_loss": 1.0, "classifier_loss": 0.03, "rotation": 0.5}


def test_tac_ccl_weighs_attention_by_the_square_of_its_places(run):
    joint = run("tac-ccl", {"rounds": 1}, log=(watch := Watch()))
    assert isinstance(joint.loss_funcs["metric_loss"].inner, ContrastiveClusteringLoss)
    objective = joint.loss_funcs["attention"]
    assert isinstance(objective, AttentionConsistencyObjective)
    assert joint.loss_weights == {"metric_loss": 1.0, "attention": 49.0**2}  # 7 x 7 maps of 64 px
    assert 1e-3 < watch.seen[0]["attention"] < 10
    assert joint.mining_funcs == {}
    assert run("tac-ccl", {"rounds": 1, "attention": 3.0}).loss_weights["attention"] == 3.0


def test_concurl_remembers_every_image_and_trains_prototypes_if_asked(run, start):
    objective = run("concurl", {"rounds": 1}).loss_funcs["concurl"]
    assert isinstance(objective, ConcurlObjective)
    assert objective.bank.memory.shape == (NUM, SHORT.fc_dim)
    assert (objective.consensus.num_prototypes, objective.views, objective.beta) == (5, 2, 1.0)
    assert (objective.consensus.alpha, objective.consensus.gamma) == (0.0, 1.0)
    assert not objective.consensus.train_prototypes
    changed = {"rounds": 1, "population": 0.5, "exemplar": 0.0, "num_clusters": None}
    objective = run("concurl", changed, given=dataclasses.replace(start, num_clusters=9)).loss_funcs[
        "concurl"
    ]
    assert objective.consensus.train_prototypes
    assert objective.consensus.num_prototypes == 9
    assert objective.beta == 0


def test_stml_draws_whole_queries(run):
    joint = run("stml", {"batch_size": 13, "samples_per_cluster": 3, "rounds": 1})
    assert joint.sampler.batch_size == 12  # 2 queries, their 3 nearest, 2 views
    objective = joint.loss_funcs["stml"]
    assert isinstance(objective, STMLObjective)
    assert objective.k == 6


def test_kmeans_with_the_poset_loss_has_all_samples_for_anchors(run):
    joint = run("kmeans+poset-loss", {"anchors": "unassigned"}, log=(watch := Watch()))
    loss, miner = joint.loss_funcs["metric_loss"], joint.mining_funcs["tuple_miner"]
    assert isinstance(loss.inner, PosetLoss)
    assert isinstance(miner, NearestMedoidMiner)
    assert loss.inner.anchors == miner.anchors == "all"
    assert all(seen["metric_loss"] > 0 for seen in watch.seen)


def test_surrogate_classes_with_multi_similarity_are_those_of_the_cliques(run):
    both = [run(name, {"rounds": 1}).posets.labels for name in ("surrogate+ms", "cliques")]
    np.testing.assert_array_equal(*both)


def test_clusters_and_views_are_learned_from_together(run):
    joint = run("kmeans+ntxent", log=(watch := Watch()))
    batch = next(iter(joint.sampler))
    assert batch[:4] == batch[4:]  # two views of each image
    loss = joint.loss_funcs["metric_loss"]
    assert set(loss.values) == {"clusters", "views"}
    for seen in watch.seen:
        assert seen["metric_loss"] > 0
    total = sum(loss.values.values()).item()
    assert total == pytest.approx(watch.seen[-1]["metric_loss"], rel=1e-5)


def test_views_and_features_are_learned_from_together(run):
    joint = run("ntxent+feature", {"feature": 2.0}, log=(watch := Watch()))
    loss = joint.loss_funcs["metric_loss"]
    total = (loss.values["views"] + 2 * loss.values["feature"]).item()
    assert total == pytest.approx(watch.seen[-1]["metric_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("method", "changes", "text"),
    [
        (
            "kmeans+ntxent",
            {"batch_size": 6},
            "--batch-size must be at least 8 for kmeans.ntxent, two clusters",
        ),
        ("ntxent+feature", {"batch_size": 9}, "--batch-size must be even for ntxent.feature"),
        ("kmeans", {"num_clusters": 25}, r"--num-clusters must leave at least two of 48 images .* use 24 or"),
        ("udml-ss", {"num_clusters": 49}, "--num-clusters"),
        ("tac-ccl", {"samples_per_cluster": 5}, "--batch-size must be at least 10 for tac-ccl, two clusters"),
        ("supervised", {"samples_per_cluster": 5}, "--batch-size must be at least 10 for supervised"),
        ("stml", {"samples_per_cluster": 3}, "--batch-size must be at least 12 for stml, two queries"),
        ("stml", {"batch_size": 400, "samples_per_cluster": 50}, "must be at most the 48 images, got 50"),
        (
            "concurl",
            {"batch_size": 7},
            "--batch-size must be even for concurl, two views of each image, got 7",
        ),
        ("ntxent", {"batch_size": 7}, "--batch-size must be even for ntxent"),
    ],
)
def test_what_a_method_cannot_draw(method, changes, text):
    recipe = dataclasses.replace(SHORT, **changes)
    with pytest.raises(ValueError, match=text):
        methods.check(method, recipe, NUM, num_clusters=100)
    methods.check(method, SHORT, NUM, num_clusters=100)
    if "num_clusters" in changes:
        with pytest.raises(ValueError, match="--num-clusters"):
            methods.check(method, dataclasses.replace(SHORT, num_clusters=None), NUM, num_clusters=100)


# --- Trunks


@pytest.mark.parametrize(
    ("trunk", "size", "dim", "maps"),
    [("googlenet", 64, 1024, (2, 2)), ("resnet18", 64, 512, (2, 2)), ("resnet50", 32, 2048, (4, 4))],
)
def test_trunks(trunk, size, dim, maps):
    config = trunks.TorchvisionConfig(trunk, size, 24)
    found = trunks.build(config, seed=3, dropout=0.0)
    again = trunks.build(dataclasses.replace(config, fc_dim=9), seed=3)
    assert all(
        torch.equal(a, b)
        for a, b in zip(found["trunk"].parameters(), again["trunk"].parameters(), strict=True)
    )
    images = torch.rand(3, 3, size, size)
    for layer, width in (("pooled", dim), ("embedding", 24)):
        assert trunks.up_to(found, layer)(images).shape == (3, width)
    assert trunks.feature_dim(found) == dim
    assert trunks.maps_layer(found["trunk"]) == "features"
    assert trunks.maps_size(found["trunk"], size) == maps
    assert found["trunk"].training
    assert trunks.settings(config)["small_stem"] == (size == 32)


def test_alexnet_is_a_trunk_like_the_others():
    config = alexnet.AlexNetConfig(image_size=64, fc_dim=8)
    found = trunks.build(config, seed=0, dropout=0.0)
    assert trunks.feature_dim(found) == 256 * 9
    maps = found["trunk"].get_submodule(trunks.maps_layer(found["trunk"]))
    assert isinstance(maps, torch.nn.ReLU)
    assert trunks.maps_size(found["trunk"], 64) == (7, 7)
    images = torch.rand(2, 3, 64, 64)
    for trunk_layer, layer in (("pooled", "pool5"), ("embedding", "fc7")):
        torch.testing.assert_close(
            trunks.up_to(found, trunk_layer)(images), alexnet.up_to(found, layer)(images)
        )
    assert trunks.settings(config)["trunk"] == "alexnet"


@pytest.mark.parametrize("trunk", ["googlenet", "resnet18"])
def test_imagenet_weights_of_torchvision(trunk, tmp_path):
    torch.manual_seed(0)
    more = (
        {"aux_logits": True, "init_weights": False, "transform_input": True} if trunk == "googlenet" else {}
    )
    theirs = getattr(torchvision_models, trunk)(weights=None, **more).eval()
    state = {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}  # as in files of old
    torch.save(state, tmp_path / "w.pth")
    config = trunks.TorchvisionConfig(trunk, 64, 8)
    ours = trunks.build(config, seed=1, dropout=0.0)
    trunks.load_imagenet(ours, config, tmp_path / "w.pth")
    images = torch.randn(2, 3, 64, 64)
    pooled = []
    theirs.avgpool.register_forward_hook(lambda module, args, output: pooled.append(output.flatten(1)))
    with torch.no_grad():
        theirs(images)
        torch.testing.assert_close(ours["trunk"].eval()(images), pooled[0], rtol=1e-4, atol=1e-5)
    other = trunks.TorchvisionConfig("resnet50", 64, 8)
    with pytest.raises(
        ValueError, match=r"does not fit resnet50 at .*: give torchvision's weights \(resnet50"
    ):
        trunks.load_imagenet(trunks.build(other, seed=0), other, tmp_path / "w.pth")
    with pytest.raises(FileNotFoundError, match=f"give the local file of torchvision's {trunk}"):
        trunks.load_imagenet(ours, config, tmp_path / "none.pth")


def test_another_trunk_is_trained_and_read_again(run, tmp_path):
    changes = {"trunk": "resnet18", "image_size": 32, "rounds": 1}
    joint = run("tac-ccl", changes, size=32, output_dir=tmp_path)
    assert joint.loss_weights["attention"] == 16.0**2  # 4 x 4 maps
    path = tmp_path / "checkpoint.pt"
    config = trunks.TorchvisionConfig("resnet18", 32, SHORT.fc_dim)
    assert architecture_of(path) == config
    with pytest.raises(ValueError, match="is of a resnet18: give one of --trunk alexnet"):
        config_of(path)
    models = trunks.build(config, seed=9, dropout=0.0)
    load_trained(models, path)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = joint.evaluation_models["trunk"][1].eval()(images)
        torch.testing.assert_close(models["trunk"].eval()(images), expected)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"trunk": "vgg"}, "--trunk must be one of alexnet, googlenet, resnet18, resnet50, got 'vgg'"),
        ({"trunk": "resnet18", "image_size": 31}, "resnet18 needs images of at least 32 px"),
        ({"trunk": "resnet18", "fc_dim": 0}, "--fc-dim 512"),
        ({"samples_per_cluster": 1}, "--samples-per-cluster must be at least 2"),
        ({"rotation": -0.1}, "--rotation must be at least 0"),
        ({"population": 0.0, "consensus": 0.0}, "--population and --consensus are both 0"),
    ],
)
def test_values_out_of_range(changes, text):
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(SHORT, **changes)
