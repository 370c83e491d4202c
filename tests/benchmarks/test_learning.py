"""The benchmarks' recipes, and the first methods for two short rounds."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from learning_runs import SHORT, Images, Killed, Watch, assert_same, start_of_kinds, unit, weights
from torch import nn

from benchmarks.core import groupings, learning, networks
from benchmarks.core.groupings import Start
from benchmarks.core.learning import train
from benchmarks.core.methods import METHODS
from benchmarks.core.recipes import PRESETS, Recipe
from benchmarks.core.two_views import IndexLoss, TwoViews
from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.losses.feature import FeatureLoss
from pml_posets.losses.poset import PosetLoss

NUM, KINDS = 60, 10
FIRST = ("posets", "cliques", "triplet", "ntxent")  # the others: test_methods.py


@pytest.fixture(scope="module")
def start():
    """Ten kinds of six samples; a source has one of each kind."""
    return start_of_kinds(NUM, KINDS, sources=np.arange(NUM) // KINDS)


@pytest.fixture(scope="module")
def images():
    return Images(NUM)


@pytest.fixture
def run(images, start):
    """Train by a method, by the short recipe but for some of its values."""

    def run(method="posets", changes=None, seed=0, **options):
        recipe = dataclasses.replace(SHORT, **(changes or {}))
        return train(method, images, start, recipe, seed=seed, progress=False, **options)

    return run


# --- The methods


@pytest.mark.parametrize("method", FIRST)
def test_two_rounds_of_every_method(method, run, images):
    begin = networks.build(SHORT.architecture, seed=0, dropout=0.0)
    rounds = []
    joint = run(method, end_of_round=lambda joint: rounds.append(joint.round))
    assert joint.finished
    assert rounds == [0, 1]
    assert len(joint.history) == 4
    assert all(math.isfinite(row["total_loss"]) and row["total_loss"] > 0 for row in joint.history)
    trunk = joint.models["trunk"][1]
    moved = [
        name
        for name, value in begin["trunk"].named_parameters()
        if not torch.equal(value, trunk.get_parameter(name))
    ]
    assert len(moved) == len(list(trunk.parameters()))
    assert isinstance(joint.models["trunk"][0], BatchAugmentation)
    assert ("classifier" in joint.models) == (method in ("posets", "cliques"))
    assert joint.posets.round == (0 if method == "ntxent" else 1)
    features, mirrored = joint.extract(mirror=True)
    assert features.shape == mirrored.shape == (NUM, SHORT.fc_dim)


def test_posets_learn_by_classes_and_posets_and_features(run):
    watch = Watch()
    changes = {"lam": 0.5, "feature": 2.0, "classification": 0.25, "regroup": "fixed"}
    joint = run("posets", changes, log=watch)
    for seen in watch.seen:
        assert seen["metric_loss"] == pytest.approx(0.5 * seen["poset"] + 2 * seen["feature"], rel=1e-5)
        total = seen["metric_loss"] + seen["classifier_loss"]  # PML has weighed it in place
        assert seen["total_loss"] == pytest.approx(total, rel=1e-5)
        assert min(seen.values()) > 0
    assert joint.loss_weights == {"classifier_loss": 0.25, "metric_loss": 1.0}
    assert watch.seen[0]["classifier_loss"] == pytest.approx(
        0.25 * math.log(joint.posets.num_classes), rel=0.2
    )
    labels = joint.posets.labels
    assert any((labels[batch] < 0).any() for batch in joint.sampler)
    losses = joint.loss_funcs["metric_loss"].losses
    assert isinstance(losses["poset"].inner, PosetLoss)
    assert losses["poset"].inner.anchors == "all"
    assert isinstance(losses["feature"], FeatureLoss)


def test_cliques_have_lambda_0_and_no_unassigned_sample(run):
    watch = Watch()
    changes = {"lam": 9.0, "classification": 3.0, "unassigned_fraction": 0.5, "regroup": "fixed"}
    joint = run("cliques", changes, log=watch)
    assert joint.loss_weights == {"classifier_loss": 1.0, "metric_loss": 0.0}
    for seen in watch.seen:
        assert seen["metric_loss"] == 0
        assert seen["total_loss"] == seen["classifier_loss"] > 0
    labels = joint.posets.labels
    assert (labels < 0).any()
    for epoch in range(5):
        joint.sampler.set_epoch(epoch)
        assert all((labels[batch] >= 0).all() for batch in joint.sampler)


def test_triplets_are_of_the_same_classes_without_unassigned_samples(run):
    changes = {"unassigned_fraction": 0.5, "rounds": 1}
    joint = run("triplet", changes)
    np.testing.assert_array_equal(joint.posets.labels, run("cliques", changes).posets.labels)
    assert (joint.posets.labels < 0).any()
    assert all((joint.posets.labels[batch] >= 0).all() for batch in joint.sampler)
    assert joint.loss_funcs["metric_loss"].unassigned == "drop"
    assert sorted(joint.history[0]) == ["iteration", "metric_loss", "round", "total_loss"]


def test_ntxent_pairs_two_views_of_a_sample(run):
    joint = run("ntxent")
    for batch in joint.sampler:
        half = SHORT.batch_size // 2
        assert batch[:half] == batch[half:]
        assert len(set(batch)) == half
    embeddings = torch.eye(4)[[0, 1, 0, 1]]
    loss = joint.loss_funcs["metric_loss"]
    assert isinstance(loss, IndexLoss)
    assert loss(embeddings, torch.tensor([7, 9, 7, 9])) < 0.01  # views of one sample agree
    assert loss(embeddings, torch.tensor([7, 7, 9, 9])) > 5


def test_the_paper_s_loss_has_the_unassigned_for_anchors(run):
    joint = run("posets", {"anchors": "unassigned", "feature": 0.0})
    (poset,) = joint.loss_funcs["metric_loss"].losses.values()
    assert poset.inner.anchors == "unassigned"
    assert "metric_loss_optimizer" not in joint.optimizers


def test_lambda_0_leaves_classes_alone(run):
    watch = Watch()
    run("posets", {"lam": 0.0, "feature": 0.0, "rounds": 1}, log=watch)
    assert [seen["metric_loss"] for seen in watch.seen] == [0, 0]
    run("posets", {"lam": 0.0, "feature": 1.0, "rounds": 1}, log=(watch := Watch()))
    assert "poset" not in watch.seen[0]
    assert watch.seen[0]["metric_loss"] == pytest.approx(watch.seen[0]["feature"])


def test_fixed_groups_stay_and_others_do_not(run):
    kinds = ("fixed", "network", "mixed")
    labels = {
        regroup: run("posets", {"regroup": regroup, "iterations": 1}).posets.labels for regroup in kinds
    }
    first = run("posets", {"rounds": 1, "iterations": 1}).posets.labels
    np.testing.assert_array_equal(labels["fixed"], first)
    assert not np.array_equal(labels["network"], first)
    assert not np.array_equal(labels["network"], labels["mixed"])


def test_mixed_features_mix_the_cosines(start):
    network = unit(np.random.default_rng(5).standard_normal((NUM, 7)))
    turned = network[:, ::-1]
    mixed, mirrored = groupings.mixed((network, turned), start, 0.3)
    assert mixed.dtype == np.float32
    expected = 0.3 * network @ network.T + 0.7 * start.features @ start.features.T
    np.testing.assert_allclose(mixed @ mixed.T, expected, atol=1e-5)
    expected = 0.3 * turned @ network.T + 0.7 * start.mirrored @ start.features.T
    np.testing.assert_allclose(mirrored @ mixed.T, expected, atol=1e-5)
    alone = groupings.mixed(network, Start(start.features), 0.3)
    np.testing.assert_array_equal(alone, mixed)


@pytest.mark.parametrize("method", ["posets", "ntxent"])
def test_mirror_images_as_samples_of_their_own(method, run, images, start):
    joint = run(method, {"mirror_images": True, "rounds": 1})
    assert len(joint.posets.labels) == 2 * NUM
    assert not joint.posets.flips.any()
    torch.testing.assert_close(joint.feature_dataset[NUM + 3], images[3].flip(-1))
    both = start.with_mirror_images()
    np.testing.assert_array_equal(both.features[NUM:], start.mirrored)
    np.testing.assert_array_equal(both.sources, np.tile(start.sources, 2))
    alone = Start(start.features).with_mirror_images()
    assert len(alone.features) == len(np.unique(alone.sources)) == NUM


def test_the_y_step_of_the_paper(run):
    joint = run("posets", {"refine": True})
    assert joint.sampler.assignment is not None
    assert joint.sampler.warm_start
    assert run("posets", {"refine": False, "rounds": 1}).sampler.assignment is None


def test_the_seed_changes_everything(run):
    first, again, other = (weights(run("posets", {"rounds": 1}, seed=seed)) for seed in (0, 0, 1))
    assert_same(again, first)
    assert not torch.equal(other["trunk 1.features.0.weight"], first["trunk 1.features.0.weight"])


def test_training_goes_on_from_models_that_are_given(run):
    begin = networks.build(SHORT.architecture, seed=123, dropout=0.0)
    kept = begin["trunk"].features[0].weight.detach().clone()
    joint = run("posets", {"lr": 1e-6, "rounds": 1, "optimizer": "sgd"}, models=begin)
    torch.testing.assert_close(joint.models["trunk"][1].features[0].weight.detach(), kept, atol=1e-3, rtol=0)
    assert not torch.equal(joint.models["trunk"][1].features[0].weight, kept)


# --- Kills


@pytest.mark.parametrize("method", ["posets", "ntxent"])
def test_a_killed_run_ends_as_the_uninterrupted_one(method, run, tmp_path):
    changes = {"iterations": 3, "ema": 0.5, "dropout": 0.2}
    expected = run(method, changes)
    with pytest.raises(Killed):
        run(method, changes, output_dir=tmp_path, log=Watch(kill_after=5))
    watch = Watch()
    joint = run(method, changes, output_dir=tmp_path, resume=True, log=watch)
    assert len(watch.seen) == 3  # round 2 alone
    assert_same(weights(joint), weights(expected))
    assert joint.history == expected.history
    np.testing.assert_array_equal(joint.extract(), expected.extract())


def test_a_run_of_other_settings_is_not_gone_on_with(run, tmp_path):
    changes = {"rounds": 1, "iterations": 1}
    run("cliques", changes, output_dir=tmp_path, settings={"data": "figures"})
    with pytest.raises(FileExistsError):
        run("cliques", changes, output_dir=tmp_path, settings={"data": "figures"})
    again = {"output_dir": tmp_path, "resume": True}
    assert run("cliques", changes, settings={"data": "figures"}, **again).finished
    with pytest.raises(ValueError, match="there your data='figures', here 'others'"):
        run("cliques", changes, settings={"data": "others"}, **again)
    with pytest.raises(ValueError, match="there your min_size=3, here 4"):
        run("cliques", {**changes, "min_size": 4}, settings={"data": "figures"}, **again)
    with pytest.raises(ValueError, match="there your method='cliques', here 'posets'"):
        run("posets", changes, settings={"data": "figures"}, **again)


# --- Two views


def test_two_views_are_a_function_of_seed_and_epoch():
    views = TwoViews(10, 6, 4, seed=0)
    epochs = [list(views) for _ in range(3)]
    assert len(views) == len(epochs[0]) == 4
    assert epochs[0] != epochs[1]
    assert views.state_dict() == {"epoch": 3}
    views.set_epoch(1)
    assert list(views) == epochs[1]
    other = TwoViews(10, 6, 4, seed=0)
    other.load_state_dict({"epoch": 2})
    assert list(other) == epochs[2]
    assert list(TwoViews(10, 6, 4, seed=1)) != epochs[0]
    drawn = np.bincount(np.ravel(list(TwoViews(10, 6, 500, seed=2))), minlength=10)
    assert drawn.min() > 0.8 * drawn.mean()
    assert views.regroup(np.zeros((10, 2))) is views.posets


def test_two_views_need_pairs():
    assert sorted(next(iter(TwoViews(3, 6, 1, seed=0)))) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="holds 4 samples, but there are only 3: lower batch_size"):
        TwoViews(3, 8, 1, seed=0)
    with pytest.raises(ValueError, match="must be even for two views of each sample, got 7"):
        TwoViews(9, 7, 1, seed=0)


# --- Recipes


def test_the_paper_s_preset_holds_the_paper_s_values(monkeypatch, images, start):
    paper = PRESETS["paper"]
    expected = {
        "image_size": 227,
        "rounds": 10,
        "iterations": 20_000,
        "batch_size": 128,
        "optimizer": "sgd",
        "momentum": 0.9,
        "lr": 1e-3,
        "schedule": "constant",
        "num_nearest": 2,
        "num_classes": 20_000,
        "mean_size": 8.0,
        "top_fraction": 0.05,
        "anchors": "unassigned",
        "classification": 1.0,
        "lam": 1.0,
        "feature": 0.0,
        "random_fraction": 0.0,
        "mirror_images": False,
        "regroup": "network",
        "refine": True,
        "ema": 0.0,
        "sigma": None,
        "scale": (1.0, 1.41),
        "brightness": 0.0,
        "color": 0.0,
        "gray": 0.0,
        "batch_norm": False,
        "fc_dim": 4096,
        "dropout": 0.5,
    }
    assert {name: getattr(paper, name) for name in expected} == expected
    augmentation = learning.augmentation(paper)
    assert augmentation.scale == (1.0, 1.41)
    assert (augmentation.rotation, augmentation.shear) == (10.0, 4.0)
    assert augmentation.translation == pytest.approx(15 / 227)
    assert (augmentation.brightness, augmentation.color, augmentation.gray) == (0, 0, 0)
    weight = nn.Parameter(torch.zeros(1))
    (group,) = learning.optimizer(paper)([weight]).param_groups
    assert (group["lr"], group["momentum"]) == (1e-3, 0.9)
    scheduler = learning.schedule(paper, 200_000)(torch.optim.SGD([weight], lr=1e-3))
    assert {scheduler.lr_lambdas[0](step) for step in (0, 5, 100_000, 200_000)} == {1.0}
    plan = groupings.Plan(start, dataclasses.replace(paper, batch_size=16), {}, seed=0)
    sampler = groupings.surrogate_classes(plan, METHODS["posets"])[0]
    assert sampler.warm_start
    assert sampler.assignment.min_size == 3
    assert sampler.posets.num_classes > 0  # of 60 samples 20,000 classes cannot be made: all are kept
    assert groupings.feature_fn(start, paper) is None  # the network's own


def test_the_cosine_schedule_warms_up_and_ends_at_nothing():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = learning.schedule(dataclasses.replace(SHORT, schedule="cosine"), 100)(optimizer)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(2.0 / 20)
    assert np.argmax(rates) == 19
    assert rates[50] == pytest.approx(1.0)
    assert rates[-1] < 0.01
    assert optimizer.param_groups[0]["lr"] == 0


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole(name):
    settings = PRESETS[name].settings()
    assert {field.name for field in dataclasses.fields(Recipe)} <= set(settings)
    assert settings["trunk"] == "hog" or settings["stem_stride"] in (2, 4)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rounds": 0}, "--rounds must be at least 1, got 0"),
        ({"iterations": 0}, "--iterations must be at least 1"),
        ({"batch_size": 1}, "--batch-size must be at least 2"),
        ({"lam": -1.0}, "--lambda must be at least 0, got -1.0"),
        ({"feature": math.nan}, "--feature must be"),
        ({"feature": math.inf}, "--feature must be at most 1e"),
        ({"num_nearest": 0}, "--num-nearest must be at least 1"),
        ({"num_classes": 0}, "--num-classes must be at least 1"),
        ({"unassigned_fraction": 1.5}, "--unassigned-fraction must be at most 1, got 1.5"),
        ({"random_fraction": -0.1}, "--random-fraction must be at least 0"),
        ({"mix": 2.0}, "--mix must be at most 1"),
        ({"lr": 0.0}, "--lr must be above 0"),
        ({"sigma": 0.0}, "--sigma must be above 0"),
        ({"sigma": -1.0}, "--sigma must be above 0"),
        ({"top_fraction": 0.0}, "--top-fraction must be above 0"),
        ({"momentum": 1.0}, "--momentum must be below 1"),
        ({"dropout": 1.0}, "--dropout must be below 1"),
        ({"ema": 1.0}, "--ema must be below 1"),
        ({"weight_decay": -1e-4}, "--weight-decay must be at least 0"),
        ({"min_size": 1}, "--min-size must be at least 2"),
        ({"mean_size": 20.0}, "must not decrease, got 3, 20.0, 16"),
        ({"max_size": 2}, "must not decrease"),
        ({"scale": (1.4, 1.0)}, "--scale must be two numbers above 0, LOW and HIGH"),
        ({"scale": (0.0, 1.0)}, "--scale must be"),
        ({"brightness": 2.0}, "--brightness must be at most 1"),
        ({"image_size": 32}, "--image-size 64"),
        ({"fc_dim": 0}, "--fc-dim"),
        ({"classification": 0.0, "lam": 0.0, "feature": 0.0}, "are all 0: there is nothing to learn"),
        ({"population": 0.0, "consensus": 0.0}, "--population and --consensus are both 0"),
        ({"anchors": "assigned"}, "--anchors must be one of unassigned, all, got 'assigned'"),
        (
            {"trunk": "vgg"},
            r"--trunk must be one of alexnet, .*, efficientnet-lite0.*, or module:function, got 'vgg'",
        ),
        ({"trunk": "resnet18", "image_size": 31}, "resnet18 needs images of at least 32 px"),
        ({"trunk": "resnet18", "fc_dim": 0}, "--fc-dim 512"),
        ({"samples_per_cluster": 1}, "--samples-per-cluster must be at least 2"),
        ({"rotation": -0.1}, "--rotation must be at least 0"),
    ],
)
def test_values_out_of_range_are_told_by_their_option(changes, text):
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(PRESETS["small"], **changes)


def test_other_methods_and_too_few_images(run, images, start):
    with pytest.raises(
        ValueError, match=r"method must be one of posets, cliques, .*, supervised, got 'poset'"
    ):
        run("poset")
    with pytest.raises(ValueError, match="got batch_size=61 for 60 samples: lower batch_size"):
        run("posets", {"batch_size": 61})
    with pytest.raises(ValueError, match="there are only 60: lower batch_size"):
        run("ntxent", {"batch_size": 122})
    with pytest.raises(ValueError, match="dataset must have 60 samples"):
        train("cliques", Images(59), start, SHORT, seed=0, progress=False)
