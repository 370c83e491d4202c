"""Every method of the benchmarks for two short rounds, and what those beyond the paper's are made of."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from learning_runs import NUM, SHORT, START, Images, Watch, run, weights
from trainings import Killed, assert_same_weights

from benchmarks.core import groupings, methods, networks
from benchmarks.core.architectures import TrunkConfig
from benchmarks.core.groupings import Start
from benchmarks.core.methods import METHODS, Method
from benchmarks.core.networks import architecture_of, load_trained
from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.losses.poset import PosetLoss
from pml_posets.methods.concurl import ConcurlObjective
from pml_posets.methods.contrastive_clustering import ContrastiveClusteringLoss
from pml_posets.methods.stml import STMLObjective
from pml_posets.methods.tac_ccl import AttentionConsistencyObjective
from pml_posets.methods.udml_ss import RotationObjective
from pml_posets.miners import NearestMedoidMiner
from pml_posets.training.joint import keep_groups

STAYING = ("ntxent", "concurl", "ntxent+feature", "posets-fixed", "supervised")  # their groups
ONCE = {"rounds": 1, "iterations": 1}

# --- The table


def test_every_entry_says_what_it_is_and_is_of_one_kind():
    for name, method in METHODS.items():
        assert method.says, name
    kinds = (methods.PLAIN, methods.NETWORKS, methods.LEARNED)
    assert sorted(name for kind in kinds for name in kind) == sorted(METHODS)
    assert methods.recipe_of("posets-fixed", SHORT) == dataclasses.replace(SHORT, regroup="fixed")


def test_a_method_and_a_grouping_are_one_entry_each(monkeypatch):
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
    given = dataclasses.replace(START, sources=np.arange(NUM) // 4, times=np.arange(NUM) % 4)
    joint = run("surer", {**ONCE, "mirror_images": True}, given=given)
    assert joint.posets.num_classes == NUM
    np.testing.assert_array_equal(seen["sources"], np.tile(given.sources, 2))
    far = 40  # mirror images of a clip are a clip far from it
    np.testing.assert_array_equal(seen["times"], np.concatenate([given.times, given.times + far]))


# --- Every method


@pytest.mark.parametrize("method", methods.LEARNED)
def test_two_rounds_of_every_method(method):
    begin = networks.build(SHORT.architecture, seed=0, dropout=0.0)
    rounds, watch = [], Watch()
    joint = run(method, log=watch, end_of_round=lambda joint: rounds.append(joint.round))
    assert joint.finished
    assert rounds == [0, 1]
    assert len(watch.seen) == len(joint.history) == 4
    for seen in watch.seen:
        assert all(math.isfinite(value) for value in seen.values())
        assert seen["total_loss"] > 0
    assert isinstance(joint.models["trunk"][0], BatchAugmentation)
    for name, trained in (("trunk", joint.models["trunk"][1]), ("embedder", joint.models["embedder"])):
        for key, value in begin[name].named_parameters():
            assert not torch.equal(value, trained.get_parameter(key)), key
    surrogate = {"posets", "classes"} & {*METHODS[method].losses}
    assert ("classifier" in joint.models) == bool(surrogate)
    assert joint.posets.round == (0 if method in STAYING else 1)
    assert joint.extract(mirror=False).shape == (NUM, SHORT.fc_dim)


@pytest.mark.parametrize("method", ["posets", "ntxent", "concurl", "stml"])
def test_a_killed_run_ends_as_the_uninterrupted_one(method, tmp_path):
    changes = {"population": 0.5, "ema": 0.5, "dropout": 0.2}
    expected = run(method, changes)
    with pytest.raises(Killed):
        run(method, changes, output_dir=tmp_path, log=Watch(kill_after=3))
    watch = Watch()
    joint = run(method, changes, output_dir=tmp_path, resume=True, log=watch)
    assert len(watch.seen) == 2  # round 2 alone
    assert_same_weights(weights(joint), weights(expected))
    assert joint.history == expected.history
    np.testing.assert_array_equal(joint.extract(mirror=False), expected.extract(mirror=False))


def test_the_seed_changes_everything():
    first, again, other = (weights(run("posets", ONCE, seed=seed)) for seed in (0, 0, 1))
    assert_same_weights(again, first)
    assert not torch.equal(other["trunk 1.features.0.weight"], first["trunk 1.features.0.weight"])


@pytest.mark.parametrize("method", ["posets", "ntxent", "kmeans", "stml"])
def test_mirror_images_as_samples_of_their_own(method):
    joint = run(method, {**ONCE, "mirror_images": True})
    assert len(joint.posets.labels) == len(joint.dataset) == 2 * NUM
    assert not joint.posets.flips.any()
    assert not getattr(joint.sampler, "uses_mirrored", False)
    torch.testing.assert_close(joint.feature_dataset[NUM + 3], Images(NUM)[3].flip(-1))
    both = START.with_mirror_images()
    np.testing.assert_array_equal(both.features[NUM:], START.mirrored)
    np.testing.assert_array_equal(both.sources, np.tile(START.sources, 2))
    alone = Start(START.features).with_mirror_images()
    assert len(alone.features) == len(np.unique(alone.sources)) == NUM


def test_only_the_supervised_method_sees_labels():
    unknown = dataclasses.replace(START, labels=None)
    for method in ("kmeans", "posets"):
        assert_same_weights(weights(run(method, ONCE)), weights(run(method, ONCE, given=unknown)))
    with pytest.raises(ValueError, match="supervised needs the true classes of the images to learn from"):
        run("supervised", given=unknown)
    joint = run("supervised", {**ONCE, "mirror_images": True, "batch_size": 16, "samples_per_cluster": 8})
    np.testing.assert_array_equal(joint.posets.labels, np.tile(START.labels, 2))
    for batch in joint.sampler:
        assert set(np.bincount(joint.posets.labels[batch])) <= {0, 8}


# --- What each is made of


def test_kmeans_draws_as_many_of_each_cluster():
    joint = run("kmeans", ONCE)
    assert joint.posets.num_classes == 5
    assert set(np.bincount(joint.posets.labels[next(iter(joint.sampler))])) <= {0, 2}
    loss, miner = joint.loss_funcs["metric_loss"].inner, joint.mining_funcs["tuple_miner"].inner
    assert (loss.alpha, loss.beta, loss.base, miner.epsilon) == (2, 40, 0.5, 0.1)
    fewer = run("kmeans", {**ONCE, "num_clusters": None}, given=dataclasses.replace(START, num_clusters=7))
    assert fewer.posets.num_classes == 7
    assert run("kmeans", {"iterations": 1, "regroup": "fixed"}).posets.round == 0


def test_udml_ss_adds_the_rotation_loss_by_its_weight():
    plain, both = Watch(), Watch()
    run("kmeans", ONCE, log=plain)
    joint = run("udml-ss", ONCE, log=both)
    assert isinstance(joint.loss_funcs["rotation"], RotationObjective)
    assert joint.loss_weights == {"metric_loss": 1.0, "rotation": 0.1}
    assert "rotation_optimizer" in joint.optimizers
    first = both.seen[0]
    assert first["metric_loss"] == plain.seen[0]["metric_loss"]  # the same batch, labels and network
    assert first["rotation"] == pytest.approx(0.1 * math.log(4), rel=0.5)  # PML has weighed it in place
    assert first["total_loss"] == pytest.approx(first["metric_loss"] + first["rotation"], rel=1e-5)
    joint = run("posets+rotation", {**ONCE, "rotation": 0.5})
    assert joint.loss_weights == {"metric_loss": 1.0, "classifier_loss": 0.03, "rotation": 0.5}


def test_tac_ccl_weighs_attention_by_the_square_of_its_places():
    joint = run("tac-ccl", ONCE, log=(watch := Watch()))
    assert isinstance(joint.loss_funcs["metric_loss"].inner, ContrastiveClusteringLoss)
    assert isinstance(joint.loss_funcs["attention"], AttentionConsistencyObjective)
    assert joint.loss_weights == {"metric_loss": 1.0, "attention": 49.0**2}  # 7 x 7 maps of 64 px
    assert 1e-3 < watch.seen[0]["attention"] < 10
    assert joint.mining_funcs == {}
    assert run("tac-ccl", {**ONCE, "attention": 3.0}).loss_weights["attention"] == 3.0


def test_concurl_remembers_every_image_and_trains_prototypes_if_asked():
    objective = run("concurl", ONCE).loss_funcs["concurl"]
    assert isinstance(objective, ConcurlObjective)
    assert objective.bank.memory.shape == (NUM, SHORT.fc_dim)
    assert (objective.consensus.num_prototypes, objective.views, objective.beta) == (5, 2, 1.0)
    assert (objective.consensus.alpha, objective.consensus.gamma) == (0.0, 1.0)
    assert not objective.consensus.train_prototypes
    changed = {**ONCE, "population": 0.5, "exemplar": 0.0, "num_clusters": None}
    given = dataclasses.replace(START, num_clusters=9)
    objective = run("concurl", changed, given=given).loss_funcs["concurl"]
    assert objective.consensus.train_prototypes
    assert (objective.consensus.num_prototypes, objective.beta) == (9, 0)


def test_stml_draws_whole_queries():
    joint = run("stml", {**ONCE, "batch_size": 13, "samples_per_cluster": 3})
    assert joint.sampler.batch_size == 12  # 2 queries, their 3 nearest, 2 views
    objective = joint.loss_funcs["stml"]
    assert isinstance(objective, STMLObjective)
    assert objective.k == 6


def test_kmeans_with_the_poset_loss_has_all_samples_for_anchors():
    joint = run("kmeans+poset-loss", {**ONCE, "anchors": "unassigned"}, log=(watch := Watch()))
    loss, miner = joint.loss_funcs["metric_loss"], joint.mining_funcs["tuple_miner"]
    assert isinstance(loss.inner, PosetLoss)
    assert isinstance(miner, NearestMedoidMiner)
    assert loss.inner.anchors == miner.anchors == "all"
    assert all(seen["metric_loss"] > 0 for seen in watch.seen)


@pytest.mark.parametrize(
    ("method", "parts"),
    [("kmeans+ntxent", {"clusters": 1, "views": 1}), ("ntxent+feature", {"views": 1, "feature": 2.0})],
)
def test_losses_that_are_learned_from_together(method, parts):
    joint = run(method, {**ONCE, "feature": 2.0}, log=(watch := Watch()))
    batch = next(iter(joint.sampler))
    assert batch[:4] == batch[4:]  # two views of each image
    found = joint.loss_funcs["metric_loss"].values
    total = sum(weight * found[name].item() for name, weight in parts.items())
    assert set(found) == set(parts)
    assert total == pytest.approx(watch.seen[-1]["metric_loss"], rel=1e-5)


STILL = {"movement": 0.0, "scale": (1.0, 1.0), "brightness": 0.0, "color": 0.0, "gray": 0.0}


@pytest.mark.parametrize(
    ("method", "changes", "text"),
    [
        ("kmeans+ntxent", {"batch_size": 6}, "--batch-size must be at least 8 for kmeans.ntxent, two clu"),
        ("ntxent+feature", {"batch_size": 9}, "--batch-size must be even for ntxent.feature"),
        ("kmeans", {"num_clusters": 25}, r"--num-clusters must leave at least two of 48 images .* use 24 or"),
        ("kmeans", {"num_clusters": None}, "--num-clusters must leave .* got 100"),
        ("tac-ccl", {"samples_per_cluster": 5}, "--batch-size must be at least 10 for tac-ccl, two clusters"),
        ("supervised", {"samples_per_cluster": 5}, "--batch-size must be at least 10 for supervised"),
        ("stml", {"samples_per_cluster": 3}, "--batch-size must be at least 12 for stml, two queries"),
        ("stml", {"batch_size": 400, "samples_per_cluster": 50}, "must be at most the 48 images, got 50"),
        ("concurl", {"batch_size": 7}, "must be even for concurl, two views of each image, got 7"),
        ("ntxent", STILL, "ntxent learns from two views of each image, which would be equal"),
        ("stml", STILL, "stml learns from two views"),
        ("ntxent", {"batch_size": 7}, "--batch-size must be even for ntxent"),
    ],
)
def test_what_a_method_cannot_draw(method, changes, text):
    methods.check(method, SHORT, NUM, num_clusters=100)
    with pytest.raises(ValueError, match=text):
        methods.check(method, dataclasses.replace(SHORT, **changes), NUM, num_clusters=100)


def test_another_trunk_is_trained_frozen_and_read_again(tmp_path):
    begin = networks.build(TrunkConfig("resnet18", 64, SHORT.fc_dim), seed=0, dropout=0.0)["trunk"]
    changes = {**ONCE, "trunk": "resnet18", "image_size": 64, "freeze": ("features.layer[12].*",)}
    joint = run("tac-ccl", changes, output_dir=tmp_path)
    assert joint.loss_weights["attention"] == 4.0**2  # 2 x 2 maps
    trained = joint.models["trunk"][1]
    for name, value in begin.named_parameters():
        frozen = name.startswith(("features.layer1.", "features.layer2."))
        assert torch.equal(value, trained.get_parameter(name)) == frozen, name
    path = tmp_path / "checkpoint.pt"
    config = architecture_of(path)
    assert config == TrunkConfig("resnet18", 64, SHORT.fc_dim)
    models = networks.build(config, seed=9, dropout=0.0)
    load_trained(models, path)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = joint.evaluation_models["trunk"][1].eval()(images)
        torch.testing.assert_close(models["trunk"].eval()(images), expected)
