"""Rounds of grouping and training, and what is left of them after a kill."""

import copy
import multiprocessing
import os
import random
import signal

import numpy as np
import pytest
import torch
import trainings
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
from torch.utils.data import default_collate
from trainings import Killed, assert_same_weights, sgd, weights

from pml_posets.data.datasets import IndexedDataset
from pml_posets.features.network import extract
from pml_posets.losses.feature import FeatureLoss
from pml_posets.losses.poset import PosetLoss
from pml_posets.losses.pseudo_label import PseudoLabelLoss, WeightedLosses
from pml_posets.losses.wrappers import PosetCrossBatchMemory
from pml_posets.methods import RotationHead, RotationObjective
from pml_posets.miners import NearestMedoidMiner
from pml_posets.samplers.pseudo_label import GivenLabels, PseudoLabelSampler

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
    """Two classes, then one more in every round, from the last labels alone; keeps what it groups."""

    def __init__(self):
        self.given = []

    def fit_predict(self, features, labels=None):
        self.given.append(features)
        num_classes = 2 if labels is None else min(labels.max() + 2, 4)
        found = np.arange(len(features)) % 4 % num_classes
        found[::5] = -1
        return found


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


def make(classifier=False, grouping=None, **changes):
    data = Images(augmented=False)
    options = {
        "models": {"trunk": network()},
        "optimizers": {"trunk_optimizer": sgd(0.05)},
        "loss_funcs": {"metric_loss": PosetLoss(sigma=0.5)},
        "feature_dataset": data,
        "iterations_per_round": 5,
        "features": data.images.flatten(1),
        **changes,
    }
    options["sampler_options"] = {"batch_size": 12, **changes.get("sampler_options", {})}
    if classifier:
        options["models"]["classifier"] = lambda num_classes: torch.nn.Linear(8, num_classes)
        options["optimizers"]["classifier_optimizer"] = sgd()
        options["loss_funcs"]["classifier_loss"] = torch.nn.CrossEntropyLoss()
    data = options.pop("dataset", Images())
    return trainings.make(data, None, grouping or Growing(), **options)


def trained(**changes):
    joint = make(**changes)
    joint.train()
    return joint


# --- Rounds


def test_rounds_learn():
    joint = trained(num_rounds=3, iterations_per_round=24, record_every=8, dataset=Images(augmented=False))
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
    trunk = network()
    trunk[3].p = 0.0
    joint = trained(
        num_rounds=1, iterations_per_round=7, dataset=data, models={"trunk": copy.deepcopy(trunk)}
    )
    sampler = make().sampler
    MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": sgd(0.05)(trunk.parameters())},
        batch_size=None,
        loss_funcs={"metric_loss": PseudoLabelLoss(PosetLoss(sigma=0.5), sampler, "keep")},
        dataset=data,
        iterations_per_epoch=7,
        sampler=sampler,
        dataloader_num_workers=0,
    ).train()
    assert_same_weights(joint.models["trunk"].state_dict(), trunk.state_dict())


def test_loss_is_l1_plus_lambda_l2():
    seen = []

    def hook(trainer):
        seen.append({name: float(value) for name, value in trainer.losses.items()})

    options = {"classifier": True, "num_rounds": 1}
    weight = {"classifier_loss": 1.0, "metric_loss": 0.25}
    joint = trained(loss_weights=weight, end_of_iteration_hook=hook, record_every=5, **options)
    for losses in seen:
        total = losses["classifier_loss"] + losses["metric_loss"]  # weighed already
        assert losses["total_loss"] == pytest.approx(total)
    assert joint.history[0]["metric_loss"] == pytest.approx(np.mean([s["metric_loss"] for s in seen]))
    plain = trained(record_every=1, **options).history[0]
    assert plain["metric_loss"] == pytest.approx(4 * seen[0]["metric_loss"])
    assert plain["classifier_loss"] == pytest.approx(seen[0]["classifier_loss"])


def test_cliques_alone_and_batches_without_an_assigned_sample():
    joint = trained(classifier=True, loss_weights={"classifier_loss": 1.0, "metric_loss": 0.0})
    assert all(row["metric_loss"] == 0 for row in joint.history)

    class OnlyUnassigned(PseudoLabelSampler):
        def __iter__(self):
            yield from [self.posets.unassigned.tolist()[:6]] * len(self)

    sampler = OnlyUnassigned(Images().images.flatten(1), 6, grouping=Growing())
    joint = trained(classifier=True, sampler=sampler, num_rounds=1)
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
    joint = trained(loss_funcs={"metric_loss": loss})
    assert all(np.isfinite(row["total_loss"]) and row["total_loss"] > 0 for row in joint.history)


@pytest.mark.parametrize("miner", [MultiSimilarityMiner(), NearestMedoidMiner()])
def test_miners_and_proxies_made_again(miner):
    shapes = []
    joint = trained(
        loss_funcs={"metric_loss": lambda num_classes: NormalizedSoftmaxLoss(num_classes, 8)},
        mining_funcs={"tuple_miner": miner},
        optimizers={"trunk_optimizer": sgd(), "metric_loss_optimizer": sgd(0.5)},
        num_rounds=3,
        start_of_round_hook=lambda joint: shapes.append(joint.loss_funcs["metric_loss"].inner.W.shape[1]),
    )
    assert shapes == [2, 3, 4]
    assert joint.optimizers["metric_loss_optimizer"].param_groups[0]["params"][0].shape == (8, 4)
    assert joint.loss_funcs["metric_loss"].unassigned == "drop"  # a proxy for each class, medoids or not


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
    plain, own, fed = Recording(), Bindable(), Recording()
    trained(loss_funcs={"metric_loss": plain}, num_rounds=1)
    assert all((labels >= 0).all() and len(labels) < 12 for labels, _ in plain.seen)
    joint = trained(loss_funcs={"metric_loss": own})
    assert own.bound is joint.posets
    assert all(len(labels) == 12 and labels.max() > 3 for labels, _ in own.seen)  # dataset indices
    miner = NearestMedoidMiner(anchors="unassigned")
    joint = trained(loss_funcs={"metric_loss": fed}, mining_funcs={"tuple_miner": miner}, num_rounds=1)
    for labels, (a1, p, a2, n) in fed.seen:
        assert (labels[torch.cat([a1, a2])] == -1).all()
        assert (labels[torch.cat([p, n])] >= 0).all()
        assert len(a1) > 0
    assert miner.posets is joint.posets


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
    options = {"loss_funcs": {"metric_loss": memory}, "feature_dataset": Images(augmented=False)}
    options["start_of_round_hook"] = lambda joint: filled.append(memory.queue_idx)
    trained(**options)
    trained(feature_fn="fixed", **options)
    assert filled[:2] == [0, 0]
    assert filled[3] - filled[2] == 60


def test_classifier_grows_with_the_classes():
    seen = []

    def hook(joint):
        optimizer = joint.optimizers["classifier_optimizer"]
        rate = optimizer.param_groups[0]["lr"]
        seen.append((joint.models["classifier"], optimizer, len(optimizer.state), rate))

    schedules = {
        "classifier_scheduler_by_iteration": lambda o: torch.optim.lr_scheduler.StepLR(o, 5, gamma=0.5),
        "trunk_scheduler_by_epoch": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.1),
    }
    joint = trained(classifier=True, num_rounds=5, start_of_round_hook=hook, lr_schedulers=schedules)
    heads, optimizers, momenta, rates = zip(*seen, strict=True)
    assert [head.out_features for head in heads] == [2, 3, 4, 4, 4]
    assert heads[2] is heads[3] is heads[4]
    assert heads[0] is not heads[1]
    assert len(set(map(id, optimizers))) == 1
    assert momenta == (0, 2, 2, 2, 2)  # weight and bias, carried over with the rows
    assert rates == pytest.approx([0.1 * 0.5**r for r in range(5)])  # the schedule goes on
    assert joint.optimizers["trunk_optimizer"].param_groups[0]["lr"] == pytest.approx(0.05 * 0.1**5)
    held = {id(p) for group in optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in heads[-1].parameters()}


# --- The y-step


def test_features_of_the_current_network_make_the_groups():
    grouping, expected = Growing(), []

    def note(joint):
        expected.append(extract(joint.models["trunk"], Images(augmented=False), progress=False))

    joint = trained(grouping=grouping, start_of_round_hook=note)
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

    assert trained(feature_fn=mixed, num_rounds=3).posets.num_classes == 4
    assert calls == [1, 2]
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
    joint = trained(
        models={"trunk": network(), "embedder": torch.nn.Linear(8, 4)},
        optimizers={"embedder_optimizer": sgd()},
        freeze_these=("trunk",),
        gradient_clippers={"embedder_grad_clipper": lambda: calls.append(1)},
    )
    assert len(calls) == 10
    assert_same_weights(joint.models["trunk"].state_dict(), before)


def test_moving_average_is_used_for_features():
    means, expected = [], [network()[0].weight.detach()]

    def hook(trainer):
        decay = min(0.9, len(expected) / (len(expected) + 9))
        weight = trainer.models["trunk"][0].weight.detach().clone()
        expected.append(decay * expected[-1] + (1 - decay) * weight)
        means.append(trainer.joint.evaluation_models["trunk"][0].weight.clone())

    joint = trained(ema_decay=0.9, end_of_iteration_hook=hook)
    torch.testing.assert_close(torch.stack(means), torch.stack(expected[1:]), atol=1e-6, rtol=0)
    assert not torch.equal(means[-1], joint.models["trunk"][0].weight)
    averaged = extract(joint.evaluation_models["trunk"], Images(augmented=False), progress=False)
    assert np.array_equal(joint.extract(), averaged)


def test_autocast():
    dtypes, trunk = set(), network()

    def note(module, given, output):
        if module.training:
            dtypes.add(output.dtype)

    trunk[-1].register_forward_hook(note)
    joint = trained(autocast=torch.bfloat16, models={"trunk": trunk})
    assert dtypes == {torch.bfloat16}
    assert all(w.dtype == torch.float32 for w in trunk.parameters())
    assert joint.extract().dtype == np.float32


def test_the_global_generators_are_given_back():
    joint = make()
    state = torch.get_rng_state()
    joint.train()
    assert torch.equal(torch.get_rng_state(), state)


class Exploding(torch.nn.Module):
    calls = 0

    def forward(self, embeddings, labels):
        self.calls += 1  # of this object: the trial before the first grouping calls a copy
        return embeddings.sum() * (float("nan") if self.calls > 6 else 1.0)


def test_nan_ends_the_run_before_a_checkpoint(tmp_path):
    options = {"output_dir": tmp_path, "checkpoint_every": 1, "record_every": 4}
    text = "became nan in the 2 iterations before round 1, iteration 7"
    with pytest.raises(FloatingPointError, match=text):
        trained(loss_funcs={"metric_loss": Exploding()}, **options)
    again = make(loss_funcs={"metric_loss": Exploding()}, **options)
    again.load(tmp_path / "checkpoint.pt")
    assert again.global_iteration == 6
    assert all(w.isfinite().all() for w in weights(again).values())


# --- Killed and resumed


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


def resumed(folder):
    joint = full(output_dir=folder)
    joint.train(resume=True)
    return joint


def test_every_iteration_has_its_own_randomness_that_the_seed_changes(uninterrupted):
    seeds = []
    other = full(seed=1, end_of_iteration_hook=lambda trainer: seeds.append(torch.initial_seed()))
    other.train()
    assert len(set(seeds)) == len(seeds) == 15
    name = "trunk 0.weight"
    assert not torch.equal(weights(other)[name], weights(uninterrupted)[name])


def test_killed_after_every_iteration_in_turn(tmp_path, uninterrupted):
    for at in range(15):

        def kill(trainer, at=at):
            if trainer.joint.global_iteration == at:
                raise Killed

        joint = full(output_dir=tmp_path, end_of_iteration_hook=kill)
        torch.manual_seed(at)  # whatever is drawn in between
        with pytest.raises(Killed):
            joint.train(resume=at > 0)
    assert_same_run(resumed(tmp_path), uninterrupted)


def test_randomness_of_the_y_step_is_derived_too(tmp_path):
    def noisy(joint):
        return joint.extract() + 0.1 * torch.randn(NUM, 8).numpy()

    whole, part, rest = Growing(), Growing(), Growing()
    make(feature_fn=noisy, grouping=whole).train()
    make(feature_fn=noisy, grouping=part, num_rounds=1, output_dir=tmp_path).train()
    torch.manual_seed(9)
    make(feature_fn=noisy, grouping=rest, output_dir=tmp_path).train(resume=True)
    assert [len(part.given), len(rest.given)] == [1, 1]
    assert np.array_equal(whole.given[1], rest.given[0])


class Counting(MultiSimilarityMiner):
    """A miner with a state: how many batches it has seen."""

    def __init__(self):
        super().__init__()
        self.register_buffer("batches", torch.zeros(()))

    def mine(self, *args):
        self.batches += 1
        return super().mine(*args)


def test_the_state_of_a_miner_goes_on(tmp_path):
    def run(num_rounds, resume):
        miners = {"tuple_miner": Counting()}
        joint = make(num_rounds=num_rounds, mining_funcs=miners, output_dir=tmp_path)
        joint.train(resume=resume)
        return joint.mining_funcs["tuple_miner"].state_dict()

    (before,) = run(1, resume=False).values()
    (after,) = run(2, resume=True).values()
    assert after == 2 * before > 0


@pytest.mark.parametrize("what", ["start_of_round_hook", "end_of_epoch_hook", "extract", "replace"])
def test_killed_between_the_steps(what, tmp_path, uninterrupted, monkeypatch):
    writes, replace = [], os.replace

    def kill(thing):
        if getattr(thing, "joint", thing).round == 1:
            raise Killed

    def kill_writing(source, target):
        writes.append(target)
        if len(writes) == 6:
            raise Killed
        replace(source, target)

    hooks = {what: kill} if what.endswith("hook") else {}
    if what == "extract":
        hooks = {"start_of_round_hook": lambda joint: monkeypatch.setattr(joint, "feature_fn", kill)}
    if what == "replace":
        monkeypatch.setattr(os, "replace", kill_writing)
    with pytest.raises(Killed):
        full(output_dir=tmp_path, **hooks).train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]  # no temporary file
    assert_same_run(resumed(tmp_path), uninterrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def killed_by_the_system(folder):
    def kill(trainer):
        if trainer.joint.global_iteration == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    full(output_dir=folder, end_of_iteration_hook=kill).train()


def test_killed_by_the_system(tmp_path):
    torch.set_num_threads(1)  # in both processes: bits depend on it
    process = multiprocessing.get_context("fork").Process(target=killed_by_the_system, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    whole = full()
    whole.train()
    assert_same_run(resumed(tmp_path), whole)


def test_workers_change_nothing(uninterrupted):
    joint = full(dataloader_num_workers=2)
    joint.train()
    assert_same_run(joint, uninterrupted)


def noisy(items):
    images, indices = default_collate(items)
    return images * torch.rand(()), indices


def test_a_random_collate_fn_draws_the_same_in_workers():
    alone, with_workers = (trained(num_rounds=1, collate_fn=noisy, dataloader_num_workers=n) for n in (0, 1))
    assert_same_weights(weights(with_workers), weights(alone))


def test_a_finished_run_may_be_prolonged(tmp_path, uninterrupted):
    full(output_dir=tmp_path, num_rounds=2).train()
    joint = resumed(tmp_path)
    assert_same_run(joint, uninterrupted)
    joint.train()  # nothing is left to do
    assert_same_run(joint, uninterrupted)
    assert_same_run(resumed(tmp_path), uninterrupted)


def test_resume_without_a_checkpoint_begins(tmp_path):
    joint = make(output_dir=tmp_path / "new" / "folder")
    with pytest.warns(UserWarning, match=r"there is nothing to resume: no .*folder.checkpoint\.pt"):
        joint.train(resume=True)
    assert joint.finished


def test_an_old_run_is_not_overwritten(tmp_path):
    make(output_dir=tmp_path, num_rounds=1).train()
    saved = tmp_path / "checkpoint.pt"
    content = saved.read_bytes()
    with pytest.raises(FileExistsError, match="resume=True"):
        make(output_dir=tmp_path).train()
    assert saved.read_bytes() == content
    saved.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
        make(output_dir=tmp_path).train(resume=True)
    assert saved.read_bytes() == content[:-100]


def test_bad_output_folders(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    grouping = Growing()
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
