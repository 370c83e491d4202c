"""The benchmarks' recipes, what the paper's methods are made of, and two views; the others: test_methods."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from learning_runs import NUM, SHORT, START, Images, Watch, run, unit
from refusals import refuses_each
from torch import nn

from benchmarks.core import groupings, learning, networks
from benchmarks.core.groupings import Start, TwoViews
from benchmarks.core.losses import IndexLoss
from benchmarks.core.methods import METHODS
from benchmarks.core.recipes import PRESETS, flag
from pml_posets.losses.feature import FeatureLoss
from pml_posets.losses.poset import PosetLoss

# --- The methods


def test_posets_learn_by_classes_and_posets_and_features():
    watch = Watch()
    changes = {"lam": 0.5, "feature": 2.0, "classification": 0.25, "regroup": "fixed"}
    joint = run("posets", changes, log=watch)
    for seen in watch.seen:
        assert seen["metric_loss"] == pytest.approx(0.5 * seen["poset"] + 2 * seen["feature"], rel=1e-5)
        total = seen["metric_loss"] + seen["classifier_loss"]  # PML has weighed it in place
        assert seen["total_loss"] == pytest.approx(total, rel=1e-5)
        assert min(seen.values()) > 0
    assert joint.loss_weights == {"classifier_loss": 0.25, "metric_loss": 1.0}
    chance = math.log(joint.posets.num_classes)
    assert watch.seen[0]["classifier_loss"] == pytest.approx(0.25 * chance, rel=0.5)
    assert any((joint.posets.labels[batch] < 0).any() for batch in joint.sampler)
    losses = joint.loss_funcs["metric_loss"].losses
    assert isinstance(losses["poset"].inner, PosetLoss)
    assert losses["poset"].inner.anchors == "all"
    assert isinstance(losses["feature"], FeatureLoss)


def test_cliques_have_lambda_0_and_no_unassigned_sample():
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


@pytest.mark.parametrize("method", ["triplet", "surrogate+ms"])
def test_other_losses_of_the_same_classes_without_unassigned_samples(method):
    changes = {"unassigned_fraction": 0.5, "rounds": 1}
    joint = run(method, changes)
    np.testing.assert_array_equal(joint.posets.labels, run("cliques", changes).posets.labels)
    assert (joint.posets.labels < 0).any()
    assert all((joint.posets.labels[batch] >= 0).all() for batch in joint.sampler)
    assert joint.loss_funcs["metric_loss"].unassigned == "drop"
    assert sorted(joint.history[0]) == ["iteration", "metric_loss", "round", "total_loss"]


def test_ntxent_pairs_two_views_of_a_sample():
    joint, half = run("ntxent"), SHORT.batch_size // 2
    for batch in joint.sampler:
        assert batch[:half] == batch[half:]
        assert len(set(batch)) == half
    embeddings, loss = torch.eye(4)[[0, 1, 0, 1]], joint.loss_funcs["metric_loss"]
    assert isinstance(loss, IndexLoss)
    assert loss(embeddings, torch.tensor([7, 9, 7, 9])) < 0.01  # views of one sample agree
    assert loss(embeddings, torch.tensor([7, 7, 9, 9])) > 5


def test_the_paper_s_loss_has_the_unassigned_for_anchors():
    joint = run("posets", {"anchors": "unassigned", "feature": 0.0})
    (poset,) = joint.loss_funcs["metric_loss"].losses.values()
    assert poset.inner.anchors == "unassigned"
    assert "metric_loss_optimizer" not in joint.optimizers


def test_lambda_0_leaves_classes_alone():
    run("posets", {"lam": 0.0, "feature": 0.0, "rounds": 1}, log=(watch := Watch()))
    assert [seen["metric_loss"] for seen in watch.seen] == [0, 0]
    run("posets", {"lam": 0.0, "feature": 1.0, "rounds": 1}, log=(watch := Watch()))
    assert "poset" not in watch.seen[0]
    assert watch.seen[0]["metric_loss"] == pytest.approx(watch.seen[0]["feature"])


def test_fixed_groups_stay_and_others_do_not():
    def labels(**changes):
        return run("posets", {"iterations": 1, **changes}).posets.labels

    first, network = labels(rounds=1), labels(regroup="network")
    np.testing.assert_array_equal(labels(regroup="fixed"), first)
    assert not np.array_equal(network, first)
    assert not np.array_equal(network, labels(regroup="mixed"))


def test_mixed_features_mix_the_cosines():
    network = unit(np.random.default_rng(5).standard_normal((NUM, 7)))
    turned, first = network[:, ::-1], START.features
    mixed, mirrored = groupings.mixed((network, turned), START, 0.3)
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(mixed @ mixed.T, 0.3 * network @ network.T + 0.7 * first @ first.T, atol=1e-5)
    expected = 0.3 * turned @ network.T + 0.7 * START.mirrored @ first.T
    np.testing.assert_allclose(mirrored @ mixed.T, expected, atol=1e-5)
    np.testing.assert_array_equal(groupings.mixed(network, Start(first), 0.3), mixed)


def test_the_y_step_of_the_paper():
    joint = run("posets", {"refine": True})
    assert joint.sampler.assignment is not None
    assert joint.sampler.warm_start
    assert run("posets", {"refine": False, "rounds": 1}).sampler.assignment is None


def test_training_goes_on_from_models_that_are_given():
    begin = networks.build(SHORT.architecture, seed=123, dropout=0.0)
    kept = begin["trunk"].features[0].weight.detach().clone()
    joint = run("posets", {"lr": 1e-6, "rounds": 1, "optimizer": "sgd"}, models=begin)
    moved = joint.models["trunk"][1].features[0].weight.detach()
    torch.testing.assert_close(moved, kept, atol=1e-3, rtol=0)
    assert not torch.equal(moved, kept)


def test_a_run_of_other_settings_is_not_gone_on_with(tmp_path):
    changes, settings = {"rounds": 1, "iterations": 1}, {"data": "figures"}
    run("cliques", changes, output_dir=tmp_path, settings=settings)
    with pytest.raises(FileExistsError):
        run("cliques", changes, output_dir=tmp_path, settings=settings)
    again = {"output_dir": tmp_path, "resume": True}
    assert run("cliques", changes, settings=settings, **again).finished
    for method, more, given, text in (
        ("cliques", {}, {"data": "others"}, "there your data='figures', here 'others'"),
        ("cliques", {"min_size": 4}, settings, "there your min_size=3, here 4"),
        ("posets", {}, settings, "there your method='cliques', here 'posets'"),
    ):
        with pytest.raises(ValueError, match=text):
            run(method, {**changes, **more}, settings=given, **again)


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
    assert sorted(next(iter(TwoViews(3, 6, 1, seed=0)))) == [0, 0, 1, 1, 2, 2]


# --- Recipes


def test_the_paper_s_preset_holds_the_paper_s_values():
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
    plan = groupings.Plan(START, dataclasses.replace(paper, batch_size=16), {}, seed=0)
    sampler, feature_fn = groupings.surrogate_classes(plan, METHODS["posets"])
    assert sampler.warm_start
    assert sampler.assignment.min_size == 3
    assert sampler.posets.num_classes > 0  # of so few samples 20,000 classes cannot be made: all are kept
    assert feature_fn is None  # the network's own


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


OUT_OF_RANGE = {
    "iterations": 0,
    "batch_size": 1,
    "lam": -1.0,
    "feature": math.nan,
    "num_nearest": 0,
    "num_classes": 0,
    "num_clusters": 1,
    "unassigned_fraction": 1.5,
    "random_fraction": -0.1,
    "mix": 2.0,
    "sigma": 0.0,
    "top_fraction": 0.0,
    "momentum": 1.0,
    "dropout": 1.0,
    "weight_decay": -1e-4,
    "min_size": 1,
    "scale": (0.0, 1.0),
    "brightness": 2.0,
    "samples_per_cluster": 1,
    "rotation": -0.1,
}


test_values_that_do_not_fit = refuses_each(
    lambda changes: dataclasses.replace(PRESETS["small"], **changes),
    *(({name: value}, f"^{flag(name)} must be ") for name, value in OUT_OF_RANGE.items()),
    ({"rounds": 0}, "^--rounds must be at least 1, got 0"),
    ({"feature": math.inf}, "must be at most 1e"),
    ({"lr": 0.0}, "^--lr must be above 0, got 0"),
    ({"sigma": -1.0}, "must be above 0, got -1"),
    ({"ema": 1.0}, "^--ema must be below 1, got 1"),
    ({"anchors": "assigned"}, "^--anchors must be one of unassigned, all, got 'assigned'"),
    ({"mean_size": 20.0}, "must not decrease, got 3, 20.0, 16"),
    ({"max_size": 2}, "must not decrease"),
    ({"scale": (1.4, 1.0)}, "--scale must be two numbers above 0, LOW and HIGH"),
    ({"image_size": 63}, "at least 64 px, got 63: use --image-size 64"),
    ({"fc_dim": 0}, "at least 1 wide, got 0: try --fc-dim 4096"),
    ({"trunk": "resnet18", "image_size": 31}, "resnet18 needs images of at least 32 px"),
    ({"trunk": "resnet18", "fc_dim": 0}, "--fc-dim 512"),
    ({"trunk": "vgg"}, "--trunk must be one of alexnet, .*, or module:function, got 'vgg'"),
    ({"classification": 0.0, "lam": 0.0, "feature": 0.0}, "are all 0: there is nothing to learn"),
    ({"population": 0.0, "consensus": 0.0}, "--population and --consensus are both 0"),
    error=ValueError,
)


test_other_methods_and_too_few_images = refuses_each(
    lambda call: call(),
    (lambda: run("poset"), "method must be one of posets, cliques, .*, supervised, got 'poset'"),
    (lambda: run("posets", {"batch_size": 49}), "got batch_size=49 for 48 samples: lower batch_size"),
    (lambda: run("ntxent", {"batch_size": 98}), "holds 49 samples, but there are only 48: lower batch_s"),
    (lambda: TwoViews(9, 7, 1, seed=0), "must be even for two views of each sample, got 7"),
    (
        lambda: learning.train("cliques", Images(59), START, SHORT, seed=0, progress=False),
        "dataset must have 48 samples",
    ),
    error=ValueError,
)
