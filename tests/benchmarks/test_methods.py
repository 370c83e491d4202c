"""The methods of the benchmarks beyond the first four."""

import dataclasses
import math

import learning_runs
import numpy as np
import pytest
import torch
from learning_runs import Images, Killed, Watch, assert_same, start_of_kinds, weights

from benchmarks.core import groupings, losses, methods, networks
from benchmarks.core.architectures import TrunkConfig
from benchmarks.core.learning import train
from benchmarks.core.methods import METHODS, Method
from benchmarks.core.networks import architecture_of, config_of, load_trained
from pml_posets.losses.poset import PosetLoss
from pml_posets.methods.concurl import ConcurlObjective
from pml_posets.methods.contrastive_clustering import ContrastiveClusteringLoss
from pml_posets.methods.stml import STMLObjective
from pml_posets.methods.tac_ccl import AttentionConsistencyObjective
from pml_posets.methods.udml_ss import RotationObjective
from pml_posets.miners import NearestMedoidMiner
from pml_posets.training.joint import keep_groups

NUM, KINDS = 48, 6
NEW = [name for name in methods.LEARNED if name not in ("posets", "cliques", "triplet", "ntxent")]
SHORT = dataclasses.replace(
    learning_runs.SHORT, iterations=1, num_clusters=5, samples_per_cluster=2, num_transforms=3
)


@pytest.fixture(scope="module")
def start():
    return start_of_kinds(NUM, KINDS, labels=np.arange(NUM) % KINDS)


@pytest.fixture
def run(start):
    def run(method, changes=None, given=start, size=64, seed=0, **options):
        recipe = dataclasses.replace(SHORT, **(changes or {}))
        return train(method, Images(NUM, size), given, recipe, seed=seed, progress=False, **options)

    return run


# --- The table


def test_every_entry_is_made_of_entries():
    for name, method in METHODS.items():
        assert method.says, name
        assert method.grouping in groupings.GROUPINGS, name
        assert set(method.losses) <= losses.LOSSES.keys(), name
    kinds = (methods.PLAIN, methods.NETWORKS, methods.LEARNED)
    assert sorted(name for kind in kinds for name in kind) == sorted(METHODS)
    assert methods.recipe_of("posets-fixed", SHORT) == dataclasses.replace(SHORT, regroup="fixed")


def test_a_method_and_a_grouping_are_one_entry_each(run, start, monkeypatch):
    seen = {}

    class Pairs:
        """Each sample with its successor in a source."""

        def fit_predict(self, features, *, sources=None):
            seen["sources"] = sources
            return np.arange(2 * NUM) // 2

    def pairs(plan, method):
        seen["times"] = plan.start.times
        return groupings.pseudo_label_batches(plan, method, Pairs(), samples_per_class=2), keep_groups

    monkeypatch.setitem(groupings.GROUPINGS, "pairs", pairs)
    monkeypatch.setitem(METHODS, "surer", Method("pairs of frames", ("multi-similarity",), "pairs"))
    given = dataclasses.replace(start, sources=np.arange(NUM) // 4, times=np.arange(NUM) % 4)
    joint = run("surer", {"mirror_images": True}, given=given)
    assert joint.posets.num_classes == NUM
    np.testing.assert_array_equal(seen["sources"], np.tile(given.sources, 2))
    far = 40  # mirror images of a clip are a clip far from it
    np.testing.assert_array_equal(seen["times"], np.concatenate([given.times, given.times + far]))


def test_frozen_parameters_stay(run):
    begin = networks.build(SHORT.architecture, seed=0, dropout=0.0)["trunk"]
    trunk = run("ntxent", {"freeze": ("features.0.*", "features.4.*")}).models["trunk"][1]
    same = [n for n, p in begin.named_parameters() if torch.equal(p, trunk.get_parameter(n))]
    assert same == ["features.0.weight", "features.0.bias", "features.4.weight", "features.4.bias"]


# --- Every method


@pytest.mark.parametrize("method", NEW)
def test_two_rounds_of_every_method(method, run):
    begin = networks.build(SHORT.architecture, seed=0, dropout=0.0)
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
    assert joint.posets.round == (
        0 if method in ("concurl", "ntxent+feature", "posets-fixed", "supervised") else 1
    )
    assert joint.extract(mirror=False).shape == (NUM, SHORT.fc_dim)


@pytest.mark.parametrize("method", ["concurl", "stml"])
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


@pytest.mark.parametrize("method", ["kmeans", "stml"])
def test_mirror_images_as_samples_of_their_own(method, run):
    joint = run(method, {"mirror_images": True})
    assert joint.sampler.num_samples == len(joint.dataset) == 2 * NUM
    assert not joint.sampler.uses_mirrored


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


def test_another_trunk_is_trained_and_read_again(run, tmp_path):
    changes = {"trunk": "resnet18", "image_size": 64, "rounds": 1}
    joint = run("tac-ccl", changes, output_dir=tmp_path)
    assert joint.loss_weights["attention"] == 4.0**2  # 2 x 2 maps
    path = tmp_path / "checkpoint.pt"
    config = TrunkConfig("resnet18", 64, SHORT.fc_dim)
    assert architecture_of(path) == config
    with pytest.raises(ValueError, match="is of a resnet18: give one of --trunk alexnet"):
        config_of(path)
    models = networks.build(config, seed=9, dropout=0.0)
    load_trained(models, path)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = joint.evaluation_models["trunk"][1].eval()(images)
        torch.testing.assert_close(models["trunk"].eval()(images), expected)
