"""Rounds of grouping and training, and what is left of them after a kill."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import (
    ContrastiveLoss,
    CrossBatchMemory,
    MultipleLosses,
    MultiSimilarityLoss,
    NormalizedSoftmaxLoss,
    NTXentLoss,
    TripletMarginLoss,
)
from pytorch_metric_learning.miners import MultiSimilarityMiner
from pytorch_metric_learning.trainers import MetricLossOnly
from pytorch_metric_learning.utils.logging_presets import get_hook_container, get_record_keeper

from pml_posets.data.datasets import IndexedDataset
from pml_posets.features.network import extract
from pml_posets.losses.feature import FeatureLoss
from pml_posets.losses.poset import PosetLoss
from pml_posets.losses.pseudo_label import PseudoLabelLoss, WeightedLosses
from pml_posets.losses.wrappers import PosetCrossBatchMemory
from pml_posets.methods import RotationHead, RotationObjective
from pml_posets.miners import NearestMedoidMiner
from pml_posets.samplers.pseudo_label import GivenLabels, PseudoLabelSampler
from pml_posets.training.joint import JointTrainer

NUM, SIZE = 48, 16


class Images(torch.utils.data.Dataset):
    """Stripes of four kinds; augmented, they draw from all three global generators."""

    def __init__(self, augmented=True):
        generator = torch.Generator().manual_seed(0)
        waves = torch.stack([torch.sin(torch.arange(SIZE) * (k + 1) / 3.0) for k in range(4)])
        kinds = waves[torch.arange(NUM) % 4][:, None, None, :].expand(NUM, 1, SIZE, SIZE)
        self.images = kinds + torch.randn(NUM, 1, SIZE, SIZE, generator=generator)
        self.augmented = augmented

    def __len__(self):
        return NUM

    def __getitem__(self, index):
        image = self.images[index]
        if self.augmented:
            image = image * (0.5 + torch.rand(())) + np.random.rand() * 0.1  # noqa: NPY002
            image = image.roll(random.randrange(3), dims=-1)
        return image.float(), "a label"


class Growing:
    """Two classes, then one more in every round: a function of the last labels alone."""

    def fit_predict(self, features, labels=None):
        num_classes = 2 if labels is None else labels.max() + 2
        found = (
            np.arange(len(features)) % 4 % num_classes if num_classes < 4 else np.arange(len(features)) % 4
        )
        found[::5] = -1
        return found


class Watching(Growing):
    """Keeps the features that it groups."""

    def __init__(self):
        self.given = []

    def fit_predict(self, features, labels=None):
        self.given.append(features)
        return super().fit_predict(features, labels)


def network():
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 5, stride=3),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.2),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 8),
    )


def sgd(lr=0.05):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def make(classifier=False, **changes):
    data = Images(augmented=False)
    features = np.stack([data[i][0].numpy().ravel() for i in range(NUM)])
    options = {
        "models": {"trunk": network()},
        "optimizers": {"trunk_optimizer": sgd()},
        "loss_funcs": {"metric_loss": PosetLoss(sigma=0.5)},
        "dataset": Images(),
        "feature_dataset": data,
        "num_rounds": 2,
        "iterations_per_round": 5,
        "progress": False,
        **changes,
    }
    grouping = options.pop("grouping", None) or Growing()
    sampler_options = options.pop("sampler_options", {})
    options.setdefault("sampler", PseudoLabelSampler(features, 12, grouping=grouping, **sampler_options))
    if classifier:
        options["models"]["classifier"] = lambda num_classes: torch.nn.Linear(8, num_classes)
        options["optimizers"]["classifier_optimizer"] = sgd(0.1)
        options["loss_funcs"]["classifier_loss"] = torch.nn.CrossEntropyLoss()
    return JointTrainer(**options)


def weights(joint):
    state = joint._components.state_dict()
    parts = {**state["models"], **state["loss_funcs"]}
    return {f"{name} {key}": w for name, s in parts.items() for key, w in s.items()}


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    different = [name for name in found if not torch.equal(found[name], expected[name])]
    assert different == []


# --- Rounds


def test_rounds_learn():
    joint = make(num_rounds=3, iterations_per_round=24, record_every=8, dataset=Images(augmented=False))
    joint.train()
    assert joint.finished
    assert (joint.round, joint.iteration, joint.global_iteration) == (3, 0, 72)
    assert [(row["round"], row["iteration"]) for row in joint.history] == [
        (r, 24 * r + t) for r in range(3) for t in (8, 16, 24)
    ]
    losses = np.array([row["total_loss"] for row in joint.history]).reshape(3, 3)
    assert (losses[:, 2] < 0.8 * losses[:, 0]).all()
    assert joint.posets.round == 2
    assert [joint.posets.num_classes, joint.trainer.epoch] == [4, 3]


def test_one_round_is_pmls_own_training():
    data = IndexedDataset(Images(augmented=False))
    joint = make(num_rounds=1, iterations_per_round=7, dataset=data)
    joint.models["trunk"][3].p = 0.0
    joint.train()
    trunk = network()
    trunk[3].p = 0.0
    sampler = make().sampler
    trainer = MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": sgd()(trunk.parameters())},
        batch_size=None,
        loss_funcs={"metric_loss": PseudoLabelLoss(PosetLoss(sigma=0.5), sampler, "keep")},
        dataset=data,
        iterations_per_epoch=7,
        sampler=sampler,
        dataloader_num_workers=0,
    )
    trainer.train()
    for name, value in trunk.state_dict().items():
        assert torch.equal(value, joint.models["trunk"].state_dict()[name]), name


def test_loss_is_l1_plus_lambda_l2():
    seen = []

    def hook(trainer):
        seen.append({name: float(value) for name, value in trainer.losses.items()})

    joint = make(
        classifier=True,
        loss_weights={"classifier_loss": 1.0, "metric_loss": 0.25},
        num_rounds=1,
        end_of_iteration_hook=hook,
        record_every=5,
    )
    joint.train()
    for losses in seen:
        total = losses["classifier_loss"] + losses["metric_loss"]  # weighed already
        assert losses["total_loss"] == pytest.approx(total)
    assert joint.history[0]["metric_loss"] == pytest.approx(np.mean([s["metric_loss"] for s in seen]))
    plain = make(classifier=True, num_rounds=1, record_every=1)
    plain.train()
    assert plain.history[0]["metric_loss"] == pytest.approx(4 * seen[0]["metric_loss"])
    assert plain.history[0]["classifier_loss"] == pytest.approx(seen[0]["classifier_loss"])


def test_cliques_alone_and_batches_without_an_assigned_sample():
    joint = make(classifier=True, loss_weights={"classifier_loss": 1.0, "metric_loss": 0.0})
    joint.train()
    assert all(row["metric_loss"] == 0 for row in joint.history)

    class OnlyUnassigned(PseudoLabelSampler):
        def __iter__(self):
            free = self.posets.unassigned.tolist()
            yield from [free[:6]] * len(self)

    features = np.stack([image.numpy().ravel() for image, _ in Images(augmented=False)][:NUM])
    sampler = OnlyUnassigned(features, 6, grouping=Growing())
    joint = make(classifier=True, sampler=sampler, num_rounds=1)
    joint.train()
    assert [row["total_loss"] for row in joint.history] == [0.0]
    assert all(w.isfinite().all() for w in weights(joint).values())


# --- Losses and miners


@pytest.mark.parametrize(
    "loss",
    [
        ContrastiveLoss(),
        TripletMarginLoss(),
        NTXentLoss(),
        MultipleLosses([NTXentLoss(), MultiSimilarityLoss()]),
        CrossBatchMemory(ContrastiveLoss(), 8, memory_size=40),
        PosetCrossBatchMemory(PosetLoss(), 8, memory_size=40),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_any_pml_loss(loss):
    joint = make(loss_funcs={"metric_loss": loss})
    joint.train()
    assert all(np.isfinite(row["total_loss"]) and row["total_loss"] > 0 for row in joint.history)


def test_pml_miner_and_proxies_made_again():
    joint = make(
        loss_funcs={"metric_loss": lambda num_classes: NormalizedSoftmaxLoss(num_classes, 8)},
        mining_funcs={"tuple_miner": MultiSimilarityMiner()},
        optimizers={"trunk_optimizer": sgd(), "metric_loss_optimizer": sgd(0.5)},
        num_rounds=3,
    )
    shapes = []
    joint.start_of_round_hook = lambda joint: shapes.append(joint.loss_funcs["metric_loss"].inner.W.shape[1])
    joint.train()
    assert shapes == [2, 3, 4]
    assert joint.optimizers["metric_loss_optimizer"].param_groups[0]["params"][0].shape == (8, 4)


def test_losses_with_a_proxy_for_each_class_see_the_assigned_alone_beside_medoids():
    joint = make(
        loss_funcs={"metric_loss": lambda num_classes: NormalizedSoftmaxLoss(num_classes, 8)},
        mining_funcs={"tuple_miner": NearestMedoidMiner()},
        optimizers={"trunk_optimizer": sgd(), "metric_loss_optimizer": sgd(0.5)},
        num_rounds=1,
    )
    joint.train()
    assert joint.loss_funcs["metric_loss"].unassigned == "drop"


class Recording(torch.nn.Module):
    """A loss that remembers what it was given; bindable by choice."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, embeddings, labels, indices_tuple=None):
        self.seen.append((labels.clone(), indices_tuple))
        return embeddings.square().mean()


class Bindable(Recording):
    def bind(self, posets):
        self.bound = posets


def test_what_losses_see():
    plain = Recording()
    make(loss_funcs={"metric_loss": plain}, num_rounds=1).train()
    assert all((labels >= 0).all() and len(labels) < 12 for labels, _ in plain.seen)

    own = Bindable()
    joint = make(loss_funcs={"metric_loss": own}, num_rounds=2)
    joint.train()
    assert own.bound is joint.posets
    assert all(len(labels) == 12 and labels.max() > 3 for labels, _ in own.seen)  # dataset indices

    fed = Recording()
    joint = make(
        loss_funcs={"metric_loss": fed},
        mining_funcs={"tuple_miner": NearestMedoidMiner(anchors="unassigned")},
        num_rounds=1,
    )
    joint.train()
    for labels, (a1, p, a2, n) in fed.seen:
        assert (labels[a1] == -1).all()
        assert (labels[a2] == -1).all()
        assert (labels[torch.cat([p, n])] >= 0).all()
        assert len(a1) > 0
    assert joint.mining_funcs["tuple_miner"].posets is joint.posets


def test_views_of_each_image_need_no_class():
    seen = []

    class Views(NTXentLoss):
        def forward(self, embeddings, labels, *rest):
            first, second = embeddings.detach().chunk(2)
            seen.append((labels.chunk(2), bool((first != second).any(dim=1).all())))
            return super().forward(embeddings, labels, *rest)

    joint = make(
        loss_funcs={"metric_loss": PseudoLabelLoss(Views(), unassigned="own")},
        grouping=GivenLabels(np.full(NUM, -1)),
        sampler_options={"views": 2},
        feature_fn="fixed",
    )
    assert joint.sampler.posets.num_classes == 0  # grouped, so the losses are not tried before
    joint.train()
    assert len(seen) == 10
    for (first, second), differ in seen:
        assert torch.equal(first, second)
        assert first.unique().numel() == 6
        assert differ  # augmented again
    assert joint.history[-1]["total_loss"] > 0


def test_memories_are_emptied_when_groups_change():
    filled = []
    memory = PosetCrossBatchMemory(PosetLoss(), 8, memory_size=500)

    def hook(joint):
        filled.append(memory.queue_idx)

    make(loss_funcs={"metric_loss": memory}, start_of_round_hook=hook).train()
    assert filled == [0, 0]
    filled.clear()
    make(loss_funcs={"metric_loss": memory}, start_of_round_hook=hook, feature_fn="fixed").train()
    assert filled[1] - filled[0] == 60


def test_classifier_grows_with_the_classes():
    seen = []

    def hook(joint):
        optimizer = joint.optimizers["classifier_optimizer"]
        momentum = len(optimizer.state)
        seen.append((joint.models["classifier"], optimizer, momentum, optimizer.param_groups[0]["lr"]))

    joint = make(
        classifier=True,
        num_rounds=5,
        start_of_round_hook=hook,
        lr_schedulers={
            "classifier_scheduler_by_iteration": lambda o: torch.optim.lr_scheduler.StepLR(o, 5, gamma=0.5),
            "trunk_scheduler_by_epoch": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.1),
        },
    )
    joint.train()
    heads, optimizers, momenta, rates = zip(*seen, strict=True)
    assert [head.out_features for head in heads] == [2, 3, 4, 4, 4]
    assert heads[2] is heads[3] is heads[4]
    assert heads[0] is not heads[1]
    assert len(set(map(id, optimizers))) == 1
    assert momenta == (0, 2, 2, 2, 2)  # weight and bias, carried over with the rows
    assert rates == pytest.approx([0.1 * 0.5**r for r in range(5)])  # the schedule goes on
    assert joint.optimizers["trunk_optimizer"].param_groups[0]["lr"] == pytest.approx(0.05 * 0.1**5)
    assert {id(p) for g in optimizers[0].param_groups for p in g["params"]} == {
        id(p) for p in heads[-1].parameters()
    }


def test_classifier_is_made_again_when_ids_mean_something_else():
    class Turning:
        def fit_predict(self, features, labels=None):
            first = np.arange(len(features)) % 4
            return first if labels is None else (labels + 1) % 4

    heads = []
    make(
        classifier=True,
        grouping=Turning(),
        start_of_round_hook=lambda joint: heads.append(joint.models["classifier"]),
    ).train()
    assert heads[0] is not heads[1]


# --- The y-step


def test_features_of_the_current_network_make_the_groups():
    grouping = Watching()
    joint = make(grouping=grouping, num_rounds=2)
    expected = []
    joint.start_of_round_hook = lambda joint: expected.append(
        extract(joint.models["trunk"], Images(augmented=False), progress=False)
    )
    joint.train()
    assert grouping.given[0].shape == (NUM, SIZE * SIZE)  # those given to the sampler
    assert np.array_equal(grouping.given[1], expected[1])
    assert not np.array_equal(grouping.given[1], expected[0])
    assert joint.models["trunk"].training  # extraction left the mode as it was


def test_feature_fn_mixes_or_keeps():
    hog = np.random.default_rng(0).normal(size=(NUM, 5)).astype(np.float32)
    calls = []

    def mixed(joint):
        calls.append(joint.round)
        return np.hstack([0.8 * joint.extract(), 0.6 * hog]), np.hstack([0.8 * joint.extract(), 0.6 * hog])

    joint = make(feature_fn=mixed, num_rounds=3)
    joint.train()
    assert calls == [1, 2]
    assert joint.posets.num_classes == 4
    fixed = make(feature_fn="fixed", num_rounds=3)
    first = fixed.posets
    fixed.train()
    assert fixed.posets is first


def test_flips_reach_the_images():
    class Flipping(Growing):
        def fit_predict(self, features, labels=None):
            self.flips_ = np.arange(len(features)) % 3 == 0
            return super().fit_predict(features, labels)

    mirrored = np.ones((NUM, SIZE * SIZE), np.float32)
    joint = make(grouping=Flipping(), sampler_options={"mirrored": mirrored})
    flips = []
    joint.start_of_round_hook = lambda joint: flips.append((joint.dataset.flips, joint.posets.flips))
    joint.train()
    assert all(used is wanted and used.any() for used, wanted in flips)
    assert isinstance(joint.extract(), tuple)  # with those of the mirrored images


def test_no_class_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"no class of 48 samples in round 0.*min_size"):
        make(grouping=GivenLabels(np.full(NUM, -1))).train()


# --- Hooks, records, options of PML


def test_hooks_and_record_keeper(tmp_path):
    pytest.importorskip("tensorboard")
    keeper, _, _ = get_record_keeper(str(tmp_path / "csv"), str(tmp_path / "tb"))
    hooks = get_hook_container(keeper, log_freq=2)
    rounds = []

    def end_of_epoch(trainer):
        rounds.append((trainer.epoch, trainer.joint.round, trainer.joint.iteration))
        keeper.save_records()
        return trainer.epoch < 3

    joint = make(
        classifier=True,
        mining_funcs={"tuple_miner": MultiSimilarityMiner(collect_stats=True)},
        num_rounds=10,
        end_of_iteration_hook=hooks.end_of_iteration_hook,
        end_of_epoch_hook=end_of_epoch,
    )
    joint.train()
    assert rounds == [(1, 0, 5), (2, 1, 5), (3, 2, 5)]
    assert joint.finished  # ended by False, not by num_rounds
    losses = hooks.get_loss_history()
    assert len(losses["total_loss"]) == 9
    assert all(np.isfinite(losses["total_loss"]))
    names = {path.name for path in (tmp_path / "csv").iterdir()}
    assert any("MultiSimilarityMiner" in name or "tuple_miner" in name for name in names)
    assert sum(path.stat().st_size for path in (tmp_path / "csv").iterdir()) < 1_000_000


def test_freezing_clipping_and_other_options_pass_through():
    before = network().state_dict()
    calls = []
    joint = make(
        models={"trunk": network(), "embedder": torch.nn.Linear(8, 4)},
        optimizers={"embedder_optimizer": sgd()},
        freeze_these=("trunk",),
        gradient_clippers={"embedder_grad_clipper": lambda: calls.append(1)},
    )
    joint.train()
    assert len(calls) == 10
    assert all(torch.equal(joint.models["trunk"].state_dict()[name], w) for name, w in before.items())


def test_moving_average_is_used_for_features():
    joint = make(ema_decay=0.9)
    expected = None
    means = []

    def hook(trainer):
        nonlocal expected
        weight = trainer.models["trunk"][0].weight.detach().clone()
        t = len(means) + 1
        decay = min(0.9, t / (t + 9))
        expected = (
            decay * (network()[0].weight.detach() if expected is None else expected) + (1 - decay) * weight
        )
        means.append(joint.evaluation_models["trunk"][0].weight.clone())
        assert torch.allclose(means[-1], expected, atol=1e-6)

    joint.trainer_options["end_of_iteration_hook"] = hook
    joint.train()
    assert len(means) == 10
    assert not torch.equal(means[-1], joint.models["trunk"][0].weight)
    averaged = extract(joint.evaluation_models["trunk"], Images(augmented=False), progress=False)
    assert np.array_equal(joint.extract(), averaged)


def test_autocast():
    dtypes = set()

    def hook(module, arguments, output):
        if module.training:
            dtypes.add(output.dtype)

    joint = make(autocast=torch.bfloat16)
    joint.models["trunk"][-1].register_forward_hook(hook)
    joint.train()
    assert dtypes == {torch.bfloat16}
    assert all(w.dtype == torch.float32 for w in joint.models["trunk"].parameters())
    assert joint.extract().dtype == np.float32


def test_the_global_generators_are_given_back():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    joint = make()
    torch.manual_seed(0)
    joint.train()
    assert torch.equal(torch.rand(3), expected)


def test_nan_ends_the_run_before_a_checkpoint(tmp_path):
    class Exploding(torch.nn.Module):
        calls = 0

        def forward(self, embeddings, labels):
            self.calls += 1  # of this object: the trial before the first grouping calls a copy
            return embeddings.sum() * (float("nan") if self.calls > 6 else 1.0)

    joint = make(
        loss_funcs={"metric_loss": Exploding()}, output_dir=tmp_path, checkpoint_every=1, record_every=4
    )
    with pytest.raises(
        FloatingPointError, match="became nan in the 2 iterations before round 1, iteration 7"
    ):
        joint.train()
    again = make(
        loss_funcs={"metric_loss": Exploding()}, output_dir=tmp_path, checkpoint_every=1, record_every=4
    )
    again.load(tmp_path / "checkpoint.pt")
    assert again.global_iteration == 6
    assert all(w.isfinite().all() for w in weights(again).values())


# --- Killed and resumed


class Killed(BaseException):
    """Stands for a kill: nothing in the package may catch it."""


def full(**changes):
    """A run with everything that has a state, and the same first weights each time."""
    torch.manual_seed(5)
    options = {
        "classifier": True,
        "num_rounds": 3,
        "iterations_per_round": 5,
        "checkpoint_every": 2,
        "record_every": 3,
        "ema_decay": 0.9,
        "optimizers": {f"{name}_optimizer": sgd() for name in ("trunk", "metric_loss", "rotation")},
        "loss_funcs": {
            "metric_loss": WeightedLosses(
                {
                    "poset": PseudoLabelLoss(PosetCrossBatchMemory(PosetLoss(), 8, 40), unassigned="keep"),
                    "feature": FeatureLoss(8, Images(augmented=False).images.flatten(1)[:, :5]),
                }
            ),
            "rotation": RotationObjective(RotationHead(8, 4), num_images=2),
        },
        "lr_schedulers": {
            "trunk_scheduler_by_iteration": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 15)
        },
        **changes,
    }
    return make(**options)


@pytest.fixture(scope="module")
def uninterrupted():
    joint = full()
    joint.train()
    return joint


def assert_same_run(joint, expected):
    assert joint.finished
    assert_same_weights(weights(joint), weights(expected))
    mine, theirs = joint._averages["trunk"].state_dict(), expected._averages["trunk"].state_dict()
    assert_same_weights(mine, theirs)
    assert joint.history == expected.history
    assert joint.posets.equals(expected.posets)


def test_every_iteration_of_every_round_has_its_own_randomness():
    seeds = []
    full(end_of_iteration_hook=lambda trainer: seeds.append(torch.initial_seed())).train()
    assert len(set(seeds)) == len(seeds) == 15


def test_killed_after_every_iteration_in_turn(tmp_path, uninterrupted):
    for at in range(15):

        def kill(trainer, at=at):
            if trainer.joint.global_iteration == at:
                raise Killed

        joint = full(output_dir=tmp_path, end_of_iteration_hook=kill)
        torch.manual_seed(at)  # whatever is drawn in between
        with pytest.raises(Killed):
            joint.train(resume=at > 0)
    joint = full(output_dir=tmp_path)
    joint.train(resume=True)
    assert_same_run(joint, uninterrupted)


def test_randomness_of_the_y_step_is_derived_too(tmp_path):
    def noisy(joint):
        return joint.extract() + 0.1 * torch.randn(NUM, 8).numpy()

    whole, part, rest = Watching(), Watching(), Watching()
    make(feature_fn=noisy, grouping=whole).train()
    make(feature_fn=noisy, grouping=part, num_rounds=1, output_dir=tmp_path).train()
    torch.manual_seed(9)
    make(feature_fn=noisy, grouping=rest, output_dir=tmp_path).train(resume=True)
    assert [len(part.given), len(rest.given)] == [1, 1]
    assert np.array_equal(whole.given[1], rest.given[0])


@pytest.mark.parametrize("what", ["start_of_round_hook", "end_of_epoch_hook", "extract"])
def test_killed_between_the_steps(what, tmp_path, uninterrupted, monkeypatch):
    def kill(thing):
        if (thing if what != "end_of_epoch_hook" else thing.joint).round == 1:
            raise Killed

    hooks = {what: kill}
    if what == "extract":
        hooks = {"start_of_round_hook": lambda joint: monkeypatch.setattr(joint, "feature_fn", kill)}
    with pytest.raises(Killed):
        full(output_dir=tmp_path, **hooks).train()
    joint = full(output_dir=tmp_path)
    joint.train(resume=True)
    assert_same_run(joint, uninterrupted)


def test_killed_while_a_checkpoint_is_written(tmp_path, uninterrupted, monkeypatch):
    calls, replace = [], os.replace

    def kill(source, target):
        calls.append(target)
        if len(calls) == 6:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(Killed):
        full(output_dir=tmp_path).train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]  # no temporary file
    joint = full(output_dir=tmp_path)
    joint.train(resume=True)
    assert_same_run(joint, uninterrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_killed_by_the_system(tmp_path):
    script = """
import os, signal, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_trainers import full
def kill(trainer):
    if trainer.joint.global_iteration == 8:
        os.kill(os.getpid(), signal.SIGKILL)
full(output_dir=sys.argv[2], end_of_iteration_hook=kill).train()
"""
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run([sys.executable, "-c", script, here, str(tmp_path)], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    torch.set_num_threads(1)  # as in the other process: bits depend on it
    joint, whole = full(output_dir=tmp_path), full()
    joint.train(resume=True)
    assert joint.global_iteration == 15
    whole.train()
    assert_same_run(joint, whole)


def test_workers_change_nothing(uninterrupted):
    joint = full(dataloader_num_workers=2)
    joint.train()
    assert_same_run(joint, uninterrupted)


def test_the_seed_changes_everything(uninterrupted):
    other = full(seed=1)
    other.train()
    name = "trunk 0.weight"
    assert not torch.equal(weights(other)[name], weights(uninterrupted)[name])


def test_a_finished_run_may_be_prolonged(tmp_path, uninterrupted):
    full(output_dir=tmp_path, num_rounds=2).train()
    joint = full(output_dir=tmp_path)
    joint.train(resume=True)
    assert_same_run(joint, uninterrupted)
    joint.train()  # nothing is left to do
    assert_same_run(joint, uninterrupted)
    done = full(output_dir=tmp_path)
    done.train(resume=True)
    assert_same_run(done, uninterrupted)


def test_resume_without_a_checkpoint_begins(tmp_path, uninterrupted):
    joint = full(output_dir=tmp_path / "new" / "folder")
    with pytest.warns(UserWarning, match=r"there is nothing to resume: no .*folder.checkpoint\.pt"):
        joint.train(resume=True)
    assert_same_run(joint, uninterrupted)


def test_an_old_run_is_not_overwritten(tmp_path):
    full(output_dir=tmp_path, num_rounds=1).train()
    saved = tmp_path / "checkpoint.pt"
    content = saved.read_bytes()
    with pytest.raises(FileExistsError, match="resume=True"):
        full(output_dir=tmp_path).train()
    assert saved.read_bytes() == content
    saved.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
        full(output_dir=tmp_path).train(resume=True)
    assert saved.read_bytes() == content[:-100]


# --- Bad input


def test_bad_output_folders(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    grouping = Watching()
    with pytest.raises(OSError, match="cannot write to the output folder"):
        make(output_dir=tmp_path / "file" / "run", grouping=grouping).train()
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(OSError, match="MB of room"):
        make(output_dir=tmp_path, grouping=grouping).train()
    assert grouping.given == []  # before any work
    with pytest.raises(ValueError, match="needs an output_dir"):
        make().train(resume=True)
    with pytest.raises(ValueError, match="save needs a path"):
        make().save()


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"dataset": Images().images[:40]}, ValueError, "dataset must have 48 samples.* got 40"),
        ({"feature_dataset": Images().images[:40]}, ValueError, "feature_dataset must have 48"),
        ({"sampler": torch.utils.data.BatchSampler([1], 1, True)}, TypeError, "PseudoLabelSampler"),
        ({"models": {"embedder": network()}}, TypeError, 'a module "trunk"'),
        ({"models": {"trunk": network(), "classifier": 5}}, TypeError, "classifier must be"),
        ({"num_rounds": 0}, ValueError, "num_rounds"),
        ({"iterations_per_round": 0}, ValueError, "iterations_per_round"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every"),
        ({"record_every": 0}, ValueError, "record_every"),
        ({"seed": -1}, ValueError, "seed"),
        ({"ema_decay": 1.0}, ValueError, "decay"),
        ({"autocast": torch.float16}, ValueError, "bfloat16"),
        ({"optimizers": {"trunc_optimizer": sgd()}}, ValueError, "trunc_optimizer.*use metric_loss_opt"),
        ({"optimizers": {"trunk_optimizer": 3}}, TypeError, "trunk_optimizer must be an optimizer"),
        ({"lr_schedulers": {"trunk_scheduler": 3}}, ValueError, "_by_iteration"),
        ({"lr_schedulers": {"metric_loss_scheduler_by_epoch": 3}}, ValueError, "no metric_loss_optimizer"),
        ({"loss_weights": {"metric_los": 1}}, ValueError, "keys of loss_funcs"),
        ({"end_of_iterations_hook": print}, TypeError, "end_of_iterations_hook"),
        ({"batch_size": 4}, TypeError, "batch_size"),
    ],
)
def test_bad_arguments(changes, error, text):
    with pytest.raises(error, match=text):
        make(**changes)


@pytest.mark.parametrize(
    ("head", "optimizers", "error", "text"),
    [
        (torch.nn.Linear(8, 2), sgd(), ValueError, "2 outputs for 3 classes: give it as a function"),
        (
            lambda n: torch.nn.Linear(8, n),
            torch.optim.SGD(network().parameters(), lr=0.1),
            TypeError,
            "classifier_optimizer must be a function",
        ),
        (lambda n: torch.nn.Linear(8, n), None, ValueError, "has weights to learn: optimizers needs"),
        (lambda n: n, None, TypeError, "must return a module, got int"),
    ],
)
def test_heads_that_cannot_be_made_again(head, optimizers, error, text):
    with pytest.raises(error, match=text):
        make(
            models={"trunk": network(), "classifier": head},
            optimizers={
                "trunk_optimizer": sgd(),
                **({} if optimizers is None else {"classifier_optimizer": optimizers}),
            },
            loss_funcs={"classifier_loss": torch.nn.CrossEntropyLoss()},
        ).train()
