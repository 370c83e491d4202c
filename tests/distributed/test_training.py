"""Rounds on two real processes against one process: the same weights, whatever the losses."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import trainings
from pytorch_metric_learning.losses import CrossBatchMemory, NTXentLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from pytorch_metric_learning.trainers.base_trainer import BaseTrainer
from ranks import run, values

from pml_posets.distributed.process_group import is_main, rank
from pml_posets.grouping.surrogate import SurrogateGrouping
from pml_posets.losses.feature import FeatureLoss
from pml_posets.losses.poset import PosetLoss
from pml_posets.losses.pseudo_label import PseudoLabelLoss, WeightedLosses
from pml_posets.methods.udml_ss import RotationHead, RotationObjective
from pml_posets.miners import NearestMedoidMiner
from pml_posets.samplers.pseudo_label import GivenLabels
from pml_posets.training import _ranks as parallel
from pml_posets.training._ranks import rank_positions

NUM, SIZE = 48, 8


class Images(torch.utils.data.Dataset):
    """Four kinds; augmented, they draw from a global generator."""

    def __init__(self, augmented=True):
        generator = torch.Generator().manual_seed(0)
        kinds = torch.randn(4, 1, SIZE, SIZE, generator=generator)
        self.images = kinds[torch.arange(NUM) % 4] + 0.5 * torch.randn(
            NUM, 1, SIZE, SIZE, generator=generator
        )
        self.augmented = augmented

    def __len__(self):
        return NUM

    def __getitem__(self, index):
        image = self.images[index]
        return (image * (0.5 + torch.rand(())) if self.augmented else image).double()


def features():
    return Images(augmented=False).images.flatten(1).numpy()


def network(batch_norm=False, dropout=0.0):
    torch.manual_seed(3 + rank())  # ranks begin with the weights of rank 0
    norm = torch.nn.BatchNorm2d(3) if batch_norm else torch.nn.Identity()
    layers = [torch.nn.Conv2d(1, 3, 3), norm, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Dropout(dropout)]
    return torch.nn.Sequential(*layers, torch.nn.Linear(108, 6)).double()


sgd = trainings.sgd(0.05)


def losses(name):
    """(metric loss, miners) of a name."""
    if name == "features too":
        poset = PseudoLabelLoss(PosetLoss(), unassigned="keep")
        parts = {"poset": poset, "feature": FeatureLoss(6, features())}
        return WeightedLosses(parts, {"poset": 1.0, "feature": 2.0}).double(), {}
    return {
        "posets": (PosetLoss(), {}),
        "medoids of the round": (PosetLoss(), {"tuple_miner": NearestMedoidMiner()}),
        "pairs": (NTXentLoss(), {"tuple_miner": MultiSimilarityMiner()}),
        "memory": (CrossBatchMemory(NTXentLoss(), 6, memory_size=24), {}),
    }[name]


def make(loss="posets", views=1, batch_norm=False, dropout=0.0, grouping=None, batch_size=12, **changes):
    labels = np.where(np.arange(NUM) % 5 == 0, -1, np.arange(NUM) % 4)
    metric_loss, miners = losses(loss)
    options = {
        "models": {
            "trunk": network(batch_norm, dropout),
            "classifier": lambda num_classes: torch.nn.Linear(6, num_classes).double(),
        },
        "optimizers": {"trunk_optimizer": sgd, "classifier_optimizer": sgd},
        "loss_funcs": {"metric_loss": metric_loss, "classifier_loss": torch.nn.CrossEntropyLoss()},
        "loss_weights": {"metric_loss": 0.7, "classifier_loss": 1.0},
        "mining_funcs": miners,
        "feature_dataset": Images(augmented=False),
        "feature_options": {"batch_size": 10},
        "iterations_per_round": 4,
        "record_every": 2,
        "features": features(),
        "sampler_options": {"batch_size": batch_size, "views": views, "samples_per_class": 2},
        **changes,
    }
    if loss == "features too":
        options["optimizers"]["metric_loss_optimizer"] = sgd
    return trainings.make(Images(), None, grouping or GivenLabels(labels), **options)


def outcome(joint):
    found = {name: w.numpy() for name, w in trainings.weights(joint).items()}
    return {"weights": found, "history": joint.history, "labels": joint.posets.labels}


def train(options, resume=False):
    torch.set_num_threads(1)
    joint = make(**options)
    joint.train(resume=resume)
    return outcome(joint)


def train_all(cases):
    """Several runs in the same processes, as starting these is what takes time."""
    return {name: train(options) for name, options in cases.items()}


def assert_same(found, expected, bits=False):
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    assert found["weights"].keys() == expected["weights"].keys()
    near = {"rtol": 0, "atol": 0} if bits else {"rtol": 1e-6, "atol": 1e-8}
    for name, weights in expected["weights"].items():
        np.testing.assert_allclose(found["weights"][name], weights, err_msg=name, **near)
    assert len(found["history"]) == len(expected["history"])
    for one, other in zip(found["history"], expected["history"], strict=True):
        assert one == (other if bits else pytest.approx(other, rel=1e-6))


# --- Which samples


@pytest.mark.parametrize(("size", "views", "ranks"), [(12, 1, 3), (12, 2, 2), (24, 3, 4), (6, 6, 1)])
def test_parts_make_up_the_batch_and_hold_whole_views(size, views, ranks):
    parts = [rank_positions(size, views, number, ranks) for number in range(ranks)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(size))
    drawn = size // views
    for part in parts:
        assert len(part) == size // ranks
        samples = part.reshape(views, -1) % drawn
        assert (samples == samples[0]).all()


class OwnTrainer(BaseTrainer):
    """Computes its loss in a way of its own."""


@pytest.mark.parametrize(
    ("views", "ranks", "text"), [(1, 5, "ranks, 5, got 12"), (2, 4, "ranks times 2 views, 8, got 12")]
)
def test_batches_that_cannot_be_split(views, ranks, text):
    with pytest.raises(ValueError, match=f"a multiple of the number of {text}"):
        rank_positions(12, views, 0, ranks)


OBJECTIVES = {
    "metric_loss": PosetLoss(),
    "classifier_loss": torch.nn.CrossEntropyLoss(),
    "rotation": RotationObjective(RotationHead(6)).requires_grad_(False),
}


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"batch_size": 13}, ValueError, "a multiple of the number of ranks, 2, got 13"),
        (
            {"mining_funcs": {"subset_batch_miner": MultiSimilarityMiner()}},
            ValueError,
            "a subset_batch_miner",
        ),
        ({"trainer_class": OwnTrainer}, TypeError, "several ranks need MetricLossOnly or a subclass"),
        (
            {"loss_funcs": OBJECTIVES, "loss_weights": None},
            ValueError,
            r"see the share of one rank alone: \['rotation'\] need one process",
        ),
    ],
)
def test_what_several_ranks_cannot_do(changes, error, text, monkeypatch):
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    with pytest.raises(error, match=text):
        make(**changes)


# --- The same as one process

CASES = {
    "posets": {},
    "medoids of the round": {"loss": "medoids of the round"},
    "features too": {"loss": "features too", "ema_decay": 0.9},
    "pairs": {"loss": "pairs"},
    "memory": {"loss": "memory"},
    "views": {"views": 2},
    "groups": {"grouping": SurrogateGrouping(top_fraction=0.2, min_size=3)},
}


@pytest.fixture(scope="module")
def alone():
    return train_all(CASES)


def test_training_is_that_of_one_process(alone):
    everyone = values(run(3, train_all, CASES))
    for name, expected in alone.items():
        assert expected["labels"].max() > 0
        for found in everyone:
            assert_same(found[name], expected)
            assert_same(found[name], everyone[0][name], bits=True)


def test_batch_norm_and_dropout_are_of_the_ranks_and_weights_of_all():
    cases = {"norm": {"batch_norm": True}, "dropout": {"dropout": 0.5}}
    first, second = values(run(2, train_all, cases))
    for name in cases:
        assert_same(second[name], first[name], bits=True)  # running means too


# --- Checkpoints


def killed_and_resumed(folder):
    """A run that is stopped in its second round, as far as it has come."""

    def stop(trainer):
        if trainer.joint.global_iteration == 6:
            raise KeyboardInterrupt

    joint = make(batch_norm=True, output_dir=folder, checkpoint_every=2, end_of_iteration_hook=stop)
    joint.train()


def writes_alone(folder):
    where = Path(folder) / str(rank())  # only that of rank 0 is ever made
    joint = make(output_dir=where, progress=True, batch_norm=True)
    joint.train()
    return outcome(joint), sorted(path.name for path in Path(folder).rglob("*")), joint.progress


def test_only_rank_0_writes_and_shows(tmp_path):
    for number, (found, files, shows) in enumerate(values(run(2, writes_alone, tmp_path))):
        assert shows == (number == 0)
        assert files == ["0", "checkpoint.pt"]
        assert found["history"]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3)])
def test_another_number_of_ranks_goes_on(before, after, tmp_path, alone):
    options = {"output_dir": tmp_path, "num_rounds": 1}
    values(run(before, train, options))
    options["num_rounds"] = 2
    for found in values(run(after, train, options, True)):
        assert_same(found, alone["posets"])


def test_the_same_number_of_ranks_goes_on_bit_for_bit(tmp_path):
    whole = values(run(2, train, {"batch_norm": True, "output_dir": tmp_path / "a", "checkpoint_every": 2}))
    stopped = run(2, killed_and_resumed, tmp_path / "b")
    assert all(text.startswith("KeyboardInterrupt") or "RankError" in text for _, text in stopped)
    options = {"batch_norm": True, "output_dir": tmp_path / "b", "checkpoint_every": 2}
    for found in values(run(2, train, options, True)):
        assert_same(found, whole[0], bits=True)


def test_an_old_run_is_an_error_on_all(tmp_path):
    train({"output_dir": tmp_path})
    first, second = run(2, train, {"output_dir": tmp_path})
    for state, text in (first, second):
        assert state == "error"
        assert "holds a run already" in text


# --- Failures


def dies(how):
    def fail(trainer):
        if rank() == 1 and trainer.joint.global_iteration == 5:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError("the disk is gone")

    make(end_of_iteration_hook=fail, num_rounds=50).train()


@pytest.mark.parametrize("how", ["kill", "error"])
def test_a_rank_that_dies_ends_the_run(how):
    begun = time.monotonic()
    first, second = run(2, dies, how)
    assert time.monotonic() - begun < 30
    assert second == (("dead", -signal.SIGKILL) if how == "kill" else ("error", "OSError: the disk is gone"))
    assert first[0] == "error"
    assert "RankError: rank 0 of 2 goes no further" in first[1]


def stops():
    """The hook of one rank ends the run of all."""
    joint = make(end_of_epoch_hook=lambda trainer: is_main())
    joint.train()
    return joint.round, joint.finished


def test_a_hook_of_one_rank_stops_all():
    assert values(run(2, stops)) == [(1, True), (1, True)]


def test_processes_must_be_started_first(monkeypatch):
    joint = make()
    monkeypatch.setattr("pml_posets.training.joint.world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="there were 1 ranks when this was made, now there are 2"):
        joint.train()
