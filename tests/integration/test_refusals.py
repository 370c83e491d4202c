"""A checkpoint is resumed by its own run alone, and whatever cannot be meant is refused before training."""

import collections
import enum
import os
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trainings
from pytorch_metric_learning.losses import (
    ContrastiveLoss,
    CosFaceLoss,
    NormalizedSoftmaxLoss,
    NTXentLoss,
    ProxyNCALoss,
)
from pytorch_metric_learning.miners import BaseMiner, MultiSimilarityMiner
from pytorch_metric_learning.trainers import (
    CascadedEmbeddings,
    DeepAdversarialMetricLearning,
    TwoStreamMetricLoss,
)
from pytorch_metric_learning.trainers.base_trainer import BaseTrainer
from refusals import refuses_each
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR, StepLR
from torchvision.transforms import v2
from trainings import assert_same_weights, sgd, weights

from pml_posets import extract
from pml_posets.grouping.relaxed_assignment import RelaxedAssignment
from pml_posets.grouping.surrogate import SurrogateGrouping
from pml_posets.losses.feature import FeatureLoss
from pml_posets.losses.poset import PosetLoss
from pml_posets.losses.pseudo_label import PseudoLabelLoss
from pml_posets.losses.wrappers import PosetCrossBatchMemory
from pml_posets.miners import NearestMedoidMiner
from pml_posets.samplers.neighbor_batches import NeighborBatches
from pml_posets.samplers.pseudo_label import GivenLabels
from pml_posets.training._rounds import finish_first
from pml_posets.training.checkpoints import check_settings

NUM = 24
LABELS = [0, 1, 2, -1] * 6


def pictures(number=0, count=NUM):
    return trainings.noise(count, 6, number)


FEATURES = torch.stack(pictures()).flatten(1)


def trunk(p=0.0, width=8):
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, width), nn.Dropout(p), nn.Linear(width, 4))


def make(data=None, **changes):
    data = pictures() if data is None else data
    given = {"features": FEATURES[: len(data)], **changes}
    return trainings.make(data, trunk(), GivenLabels(LABELS[: len(data)]), **given)


# --- What changes a run: dicts of options


def loss(metric_loss, **more):
    return {"loss_funcs": {"metric_loss": metric_loss, **more}}


def miner(tuple_miner):
    return {"mining_funcs": {"tuple_miner": tuple_miner}}


def network(module, **more):
    return {"models": {"trunk": module, **more}}


def optimizer(given, **more):
    return {"optimizers": {"trunk_optimizer": given, **more}}


def schedule(function, kind="epoch"):
    return {"lr_schedulers": {f"trunk_scheduler_by_{kind}": function}}


def exponential(gamma):
    return schedule(lambda optimizer: ExponentialLR(optimizer, gamma))


def one_cycle(steps):
    return schedule(lambda optimizer: OneCycleLR(optimizer, 0.1, steps), "iteration")


def sampling(**options):
    return {"sampler_options": options}


def features_by(function):
    return {"feature_fn": function}


def with_classifier(lr=0.1, head=lambda n: nn.Linear(4, n), head_optimizer=None):
    return {
        **network(trunk(), classifier=head),
        **optimizer(sgd(), classifier_optimizer=head_optimizer or sgd(lr)),
        "loss_funcs": {"classifier_loss": nn.CrossEntropyLoss()},
    }


def with_proxies(metric_loss):
    return {**loss(metric_loss), **optimizer(sgd(), metric_loss_optimizer=sgd())}


# --- Another run


class Changed(torch.utils.data.Dataset):
    """Images under random noise; its transform is not used."""

    def __init__(self, noise=0.0, erased=0.5):
        self.images, self.noise, self.transform = pictures(), noise, v2.RandomErasing(erased)

    def __len__(self):
        return NUM

    def __getitem__(self, index):
        return self.images[index] + self.noise * torch.rand(())


def half_frozen():
    module = trunk()
    module[1].requires_grad_(False)
    return module


def mixture(weights, *, scale=1.0):
    def features(joint, *, scale=scale):
        return np.hstack([weight * scale * joint.extract(layer="1") for weight in weights])

    return features


def weighted(weight):
    """A feature_fn that reads its weight from a container, and writes to others."""
    seen, last = [], {}

    def features(joint):
        seen.append(joint.round)
        last[joint.round, 0] = len(seen)
        return weight["of"][0] * joint.extract()

    return features


class Mode(enum.Enum):
    ONE = 1
    TWO = 2


class Mixture:
    """A feature_fn that keeps its settings under names of its own."""

    def __init__(self, *parts):
        self.parts, self.mode, self.counter = list(parts[:-1]), parts[-1], 0

    def __call__(self, joint):
        self.counter += 1
        return self.parts[0] * joint.extract()


def unassigned(how):
    return loss(PseudoLabelLoss(NTXentLoss(), unassigned=how))


def margin(number):
    return loss(ContrastiveLoss(neg_margin=number))


def top(fraction):
    return sampling(grouping=SurrogateGrouping(top_fraction=fraction))


def cosines(scale):
    return with_proxies(lambda classes: CosFaceLoss(classes, 4, scale=scale))


def views(number):
    features, grouping = torch.stack(pictures()).flatten(1), GivenLabels(LABELS)
    return {"sampler": NeighborBatches(features, 12, samples_per_query=3, grouping=grouping, views=number)}


OTHERS = [  # two runs, and what tells them apart
    ({}, {"data": pictures(1)}, "dataset images"),
    ({}, {"data": [*pictures()[:5], torch.zeros(1, 6, 6), *pictures()[6:]]}, "others in 1 of 24 rows"),
    ({"data": Changed(0.1)}, {"data": Changed(0.5)}, "dataset images"),
    ({"data": Changed()}, {"data": Changed(erased=0.6)}, "dataset transform p=0.5, here 0.6"),
    ({}, {"feature_dataset": pictures(2)}, "feature_dataset images"),
    ({}, {"features": FEATURES.flip(0)}, "first features features=24 rows, here others in"),
    (sampling(mirrored=torch.ones(NUM, 36)), {}, "mirrored=24 rows, here None"),
    ({}, optimizer(sgd(0.2)), "there trunk_optimizer lr=0.1, here 0.2"),
    ({}, optimizer(sgd(weight_decay=1.0)), "trunk_optimizer weight_decay=0, here 1.0"),
    ({}, optimizer(torch.optim.Adam), "trunk_optimizer type='SGD'"),
    (exponential(0.5), exponential(0.6), "trunk_scheduler_by_epoch gamma=0.5, here 0.6"),
    (exponential(0.5), {}, "trunk_scheduler_by_epoch gamma=0.5, here None"),
    ({}, loss(PosetLoss(sigma=0.4)), "metric_loss sigma=0.5, here 0.4"),
    (margin(1.0), margin(0.5), "metric_loss neg_margin=1.0, here 0.5"),
    (unassigned("own"), unassigned("drop"), "metric_loss unassigned='own', here 'drop'"),
    ({}, {"loss_weights": {"metric_loss": 0.5}}, "loss_weights"),
    ({}, miner(NearestMedoidMiner()), "tuple_miner type=None, here"),
    (miner(MultiSimilarityMiner(0.1)), miner(MultiSimilarityMiner(0.2)), "inner.epsilon=0.1, here 0.2"),
    ({}, sampling(num_nearest=1), "sampler num_nearest=2, here 1"),
    ({}, sampling(sources=np.arange(NUM)), "sampler sources=None"),
    ({}, sampling(grouping=GivenLabels(LABELS[::-1])), "sampler grouping.labels"),
    ({}, top(0.2), "sampler grouping.type='GivenLabels'"),
    (top(0.2), top(0.3), "sampler grouping.top_fraction=0.2, here 0.3"),
    ({}, sampling(assignment=RelaxedAssignment()), "sampler assignment.type"),
    (views(2), views(1), "sampler views=2, here 1"),
    ({}, network(trunk(0.1)), "trunk 2.p=0.0, here 0.1"),
    ({}, network(trunk(width=9)), r"trunk 1.weight='\(8, 36\) float32', here '\(9, 36\)"),
    ({}, network(half_frozen()), r"1.weight='\(8, 36\) float32', here '\(8, 36\) float32, frozen'"),
    ({}, features_by("fixed"), "feature_fn name='extract'"),
    (features_by(lambda _: 0.8), features_by(lambda _: 0.9), "feature_fn numbers"),
    (features_by(lambda _: "1"), features_by(lambda _: "3"), "feature_fn constants"),
    (features_by(lambda _: np.abs(1)), features_by(lambda _: np.square(1)), "feature_fn names"),
    (features_by(lambda _: NUM), features_by(lambda _: LABELS[0]), "feature_fn NUM=24, here None"),
    (features_by(mixture((1.0, 0.5))), features_by(mixture((1.0, 0.6))), r"weights='\[1.0, 0.5\]'"),
    (features_by(mixture(())), features_by(mixture((), scale=2.0)), "keyword defaults.scale=1.0, here 2.0"),
    (features_by(weighted({"of": [1.0]})), features_by(weighted({"of": [2.0]})), r"weight.of='\[1.0\]'"),
    (features_by(Mixture(1, Mode.ONE)), features_by(Mixture(2, Mode.ONE)), r"feature_fn parts='\[1\]'"),
    (features_by(Mixture(1, Mode.ONE)), features_by(Mixture(1, Mode.TWO)), "feature_fn mode='Mode.ONE'"),
    (cosines(10), cosines(20), "metric_loss scale=10, here 20"),
    ({}, {"feature_options": {"normalize": False}}, "feature_options normalize=None"),
    ({}, {"freeze_trunk_batchnorm": True}, "freeze_trunk_batchnorm=None, here True"),
    ({}, {"seed": 4}, "seed=0, here 4"),
    ({}, {"iterations_per_round": 6}, "iterations_per_round=3, here 6"),
    ({"settings": {"size": 16}}, {"settings": {"size": 32}}, "your size=16, here 32"),
    ({"ema_decay": 0.9}, {}, "ema_decay=0.9, here None"),
    (with_classifier(), {}, "classifier_loss type='CrossEntropyLoss', here None"),
]


def described(changes):
    """What a checkpoint of this run says about it."""
    joint = make(**changes)
    joint._components.fit(3, 0, joint.device)
    return joint._described()


@pytest.mark.parametrize(("first", "second", "text"), OTHERS)
def test_another_run_is_not_resumed(first, second, text):
    saved = described(first)
    check_settings(saved, described(first), "a.pt")
    with pytest.raises(ValueError, match=rf"belongs to another run \(.*{text}.*another folder"):
        check_settings(saved, described(second), "a.pt")


@pytest.mark.parametrize("function", [weighted({"of": (1.0,)}), Mixture(1, Mode.ONE)])
def test_what_functions_and_objects_write_to_is_no_setting(function):
    before = described(features_by(function))
    function(SimpleNamespace(round=1, extract=lambda: 1.0))
    check_settings(before, described(features_by(function)), "a.pt")


def test_one_message_lists_all_differences_heads_too(tmp_path):
    make(output_dir=tmp_path, num_rounds=1, **with_classifier()).train()
    content = (tmp_path / "checkpoint.pt").read_bytes()
    other = make(
        pictures(1), output_dir=tmp_path, seed=3, **sampling(num_nearest=1), **with_classifier(lr=0.3)
    )
    with pytest.raises(ValueError, match="another run") as error:
        other.train(resume=True)
    for text in (
        "seed=0, here 3",
        "classifier_optimizer lr=0.1, here 0.3",
        "num_nearest=2",
        "dataset images",
    ):
        assert text in str(error.value)
    assert (tmp_path / "checkpoint.pt").read_bytes() == content
    make(output_dir=tmp_path, **with_classifier()).train(resume=True)


def test_layers_that_are_not_made_yet_are_saved(tmp_path):
    for rounds in (1, 2):
        lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
        make(output_dir=tmp_path, num_rounds=rounds, **network(lazy)).train(resume=rounds > 1)


def test_a_sample_more_is_another_data_set(tmp_path):
    make(pictures()[:12], output_dir=tmp_path).train()
    text = r"there num_samples=12, here 13.*dataset samples=12, here 13.*is a new data set"
    with pytest.raises(ValueError, match=text):
        make(pictures()[:13], output_dir=tmp_path).train(resume=True)


def test_a_moved_folder_and_rounding_are_no_difference(tmp_path):
    from PIL import Image

    from pml_posets.data.datasets import ImageList, image_files

    def read(image):
        return torch.from_numpy(np.float32(image)[:6, :6, :1].copy()).permute(2, 0, 1)

    def run(name, resume=False):
        data = ImageList(image_files(tmp_path / name), transform=read)
        features = FEATURES + 1e-6 * resume * torch.randn(FEATURES.shape)
        make(data, features=features, output_dir=tmp_path / "out", num_rounds=1).train(resume=resume)

    (tmp_path / "a").mkdir()
    rng = np.random.default_rng(0)
    for i in range(NUM):
        Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8)).save(tmp_path / "a" / f"{i:02d}.png")
    run("a")
    moved = (tmp_path / "a").rename(tmp_path / "b")
    run("b", resume=True)
    with open(moved / "07.png", "ab") as file:
        file.write(b"and more")
    text = r"\(there dataset file sizes=[^;]*; there feature_dataset file sizes=[^;]*\)"
    with pytest.raises(ValueError, match=text):
        run("b", resume=True)
    (moved / "07.png").rename(moved / "99.png")
    with pytest.raises(ValueError, match=r"dataset file names.*is a new data set"):
        run("b", resume=True)


def test_objects_that_have_learned_make_the_same_run_again(tmp_path):
    module = trunk()
    memory = PosetCrossBatchMemory(PosetLoss(sigma=0.5, collect_stats=True), 4, memory_size=16)
    parts = {**network(module), **optimizer(sgd()(module.parameters())), **loss(memory), **exponential(0.5)}
    for rounds in (1, 2):  # as in a notebook, whose cells are run again
        make(output_dir=tmp_path, num_rounds=rounds, **parts).train(resume=rounds > 1)


# --- Checkpoints that can be read back


def test_numbers_of_numpy_come_back(tmp_path):
    changes = {
        **optimizer(sgd(np.float64(0.1), momentum=np.float32(0.5))),
        **exponential(np.float64(0.5)),
        **loss(PosetLoss(sigma=np.float64(0.5))),
        "settings": {"size": np.int64(8), "scale": np.float32(0.5), "sizes": np.arange(3)},
        "loss_weights": {"metric_loss": np.float64(0.5)},
        "ema_decay": np.float64(0.9),
        "seed": np.int64(3),
        "iterations_per_round": np.int32(3),
    }
    whole = make(**changes)
    whole.train()
    for rounds in (1, 2):
        joint = make(output_dir=tmp_path, num_rounds=rounds, **changes)
        joint.train(resume=rounds > 1)
    assert_same_weights(weights(joint), weights(whole))
    assert joint.history == whole.history


class WithState(PosetLoss):
    """Keeps what a checkpoint cannot hold."""

    def get_extra_state(self):
        return {"rng": np.random.default_rng(0)}

    def set_extra_state(self, state):
        pass


def test_what_a_checkpoint_cannot_hold_is_named_before_training(tmp_path):
    steps = []
    joint = make(output_dir=tmp_path, end_of_iteration_hook=steps.append, **loss(WithState()))
    text = r"parts\['loss_funcs'\]\['metric_loss'\].*\['rng'\] is a numpy.random"
    with pytest.raises(TypeError, match=text):
        joint.train()
    assert steps == list(tmp_path.iterdir()) == []


# --- Nothing learns


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = trunk()

    def forward(self, images):
        return self.layers(images).detach()


class Constant(nn.Module):
    def forward(self, *_):
        return torch.zeros(())


def of(*modules):
    """An optimizer of the weights of these modules."""
    return torch.optim.SGD([p for module in modules for p in module.parameters()], lr=0.1)


def test_weights_that_an_optimizer_of_another_part_holds_or_that_are_frozen():
    module, embedder = trunk(), nn.Linear(4, 4)
    make(**network(module, embedder=embedder), **optimizer(of(module, embedder)))
    alone = {"optimizers": {"embedder_optimizer": sgd()}}
    make(**network(module, embedder=embedder), **alone, freeze_these=("trunk",))


def test_weights_that_are_only_warned_of():
    text = r"no optimizer holds 2 of 4 weights of trunk \(the first is 1.weight\)"
    with pytest.warns(UserWarning, match=text):
        make(**optimizer(lambda parameters: torch.optim.SGD(parameters[2:], lr=0.1)))
    module = trunk()
    with pytest.warns(UserWarning, match="1 of the 5 weights in trunk_optimizer"):
        make(**network(module), **optimizer(of(module, nn.Linear(1, 1, bias=False))))


def stop_rates(joint):
    joint.optimizers["trunk_optimizer"].param_groups[0]["lr"] = 0.0


@pytest.mark.parametrize(
    "changes",
    [
        optimizer(sgd(0.0)),
        {**exponential(0.0), **features_by("fixed"), "start_of_round_hook": stop_rates},
        network(nn.Sequential(trunk(), nn.Threshold(9.0, 0.0))),
    ],
)
def test_a_round_that_moves_no_weight_is_said(changes):
    with pytest.warns(UserWarning, match="no weight of trunk_optimizer has changed in round 0"):
        make(num_rounds=1, **changes).train()


def test_a_grouping_that_collapses_later_leaves_the_groups():
    class Collapsing:
        def fit_predict(self, features, labels=None):
            return np.arange(NUM) % 3 if labels is None else np.zeros(NUM, int)

    joint = make(**sampling(grouping=Collapsing()))
    with pytest.raises(ValueError, match="a single class of 24 samples in round 1"):
        joint.train()
    assert joint.posets.num_classes == 3


# --- Refused at once


class FailingMiner(BaseMiner):
    def mine(self, embeddings, labels, ref_emb, ref_labels):
        return embeddings @ torch.zeros(1, 1)


IDENTITY = nn.Identity()


test_what_is_no_kind_of_argument_is_refused_at_once = refuses_each(
    lambda changes: make(**changes),
    ({"sampler": torch.utils.data.BatchSampler([1], 1, True)}, "PseudoLabelSampler"),
    ({"trainer_class": nn.Linear}, "trainer_class must be a class of PML trainers"),
    ({"trainer_class": "MetricLossOnly"}, "trainer_class must be a class of PML trainers"),
    ({"trainer_class": BaseTrainer}, "BaseTrainer computes no loss: use MetricLossOnly"),
    ({"trainer_class": CascadedEmbeddings}, "does not support CascadedEmbeddings"),
    ({"trainer_class": TwoStreamMetricLoss}, "does not support TwoStreamMetricLoss"),
    ({"trainer_class": type("Own", (DeepAdversarialMetricLearning,), {})}, "not support DeepAdv"),
    ({"end_of_iterations_hook": print}, "end_of_iterations_hook"),
    ({"batch_size": 4}, "batch_size"),
    ({"end_of_epoch_hook": 3}, "end_of_epoch_hook must be a function, got 3"),
    ({"start_of_round_hook": "print"}, "start_of_round_hook must be a function"),
    ({"judge": 1}, "judge must be a function"),
    (features_by("fixd"), 'feature_fn must be a function of the trainer, or "fixed"'),
    ({"gradient_clippers": {"trunk_grad_clipper": 1.0}}, "trunk_grad_clipper must be a function"),
    ({"dataloader_num_workers": "2"}, "dataloader_num_workers must be an integer"),
    ({"models": {"embedder": IDENTITY}}, 'a module "trunk"'),
    (with_classifier(head=5), "classifier must be"),
    (loss(PosetLoss(), mine=ContrastiveLoss()), "'mine', a ContrastiveLoss, which takes embeddings"),
    (loss(PosetLoss(), mine=PosetLoss()), "'mine', a PosetLoss, which takes embeddings"),
    (loss(PosetLoss(), mine=PseudoLabelLoss(NTXentLoss())), "'mine', a PseudoLabelLoss, which takes"),
    ({"loss_weights": 2}, "loss_weights must be a dict"),
    *(({"loss_weights": {"metric_loss": weight}}, "weight") for weight in ("1", None, True)),
    (optimizer(3), "trunk_optimizer must be an optimizer"),
    (optimizer(lambda parameters: None), "trunk_optimizer must return an optimizer, got NoneType"),
    (optimizer(torch.optim.LBFGS), "trunk_optimizer is LBFGS, whose step needs a closure"),
    (schedule(lambda optimizer: None), "by_epoch must return a scheduler, got NoneType"),
    error=TypeError,
)
test_what_does_not_fit_is_refused_at_once = refuses_each(
    lambda changes: make(**changes),
    ({"dataset": pictures()[:20]}, "dataset must have 24 samples.* got 20"),
    ({"feature_dataset": pictures()[:20]}, "feature_dataset must have 24"),
    *(({name: 0}, name) for name in ("num_rounds", "iterations_per_round")),
    *(({name: 0}, name) for name in ("checkpoint_every", "record_every")),
    ({"seed": -1}, "seed"),
    ({"ema_decay": 1.0}, "decay"),
    ({"autocast": torch.float16}, "bfloat16"),
    (network(trunk(), embeder=IDENTITY), r"models has the names \['embeder'\]"),
    ({"mining_funcs": {"miner": MultiSimilarityMiner()}}, r"mining_funcs has the names \['miner'\]"),
    ({"freeze_these": ("trnk",)}, "freeze_these has"),
    ({"loss_funcs": {"classifier_loss": nn.CrossEntropyLoss()}}, 'models no "classifier"'),
    (network(trunk(), classifier=nn.Linear(4, 9)), 'loss_funcs no "classifier_loss"'),
    *((loss(PosetLoss(), **{name: IDENTITY}), f"name '{name}'") for name in ("total_loss", "round")),
    *((loss(PosetLoss(), **{name: IDENTITY}), f"name '{name}'") for name in ("iteration", "trunk")),
    *(({"loss_funcs": {name: IDENTITY}}, "the name of a loss must be") for name in ("", " mine", 3)),
    ({"loss_weights": {"metric_los": 1}}, "keys of loss_funcs"),
    *(({"loss_weights": {"metric_loss": weight}}, "weight") for weight in (0.0, -1.0, np.nan, np.inf)),
    ({"optimizers": {"trunc_optimizer": sgd()}}, "trunc_optimizer.*use metric_loss_opt"),
    (optimizer(of(trunk())), "4 of the 4 weights in trunk_optimizer are in no model and no loss"),
    ({"lr_schedulers": {"trunk_scheduler": 3}}, "_by_iteration"),
    ({"lr_schedulers": {"metric_loss_scheduler_by_epoch": 3}}, "no metric_loss_optimizer"),
    (schedule(StepLR(of(trunk()), 1)), "by_epoch is the scheduler of another optimizer"),
    (one_cycle(5), "trunk_scheduler_by_iteration has total_steps=5 of 6"),
    (network(trunk(), embedder=nn.Linear(4, 4)), "embedder has weights to learn: optimizers needs emb"),
    (loss(NormalizedSoftmaxLoss(3, 4)), "metric_loss has weights to learn"),
    ({"optimizers": {}}, "trunk has weights to learn"),
    ({**network(IDENTITY), "optimizers": {}}, "requires a gradient, so nothing can learn"),
    error=ValueError,
)


def test_a_schedule_of_just_as_many_steps():
    make(**one_cycle(6)).train()


# --- Refused by `train`: errors before the first grouping, not after a round


class Sized(torch.utils.data.Dataset):
    def __len__(self):
        return NUM

    def __getitem__(self, index):
        return torch.rand(1, 6, 6 + index % 3)


def padded(items):
    images, indices = zip(*items, strict=True)
    same = [nn.functional.pad(image, (0, 8 - image.shape[-1]))[..., :6] for image in images]
    return torch.stack(same), torch.tensor(indices)


class Squeezing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = trunk()

    def forward(self, images):
        return self.layers(images).squeeze()


class Failing(nn.Module):
    def forward(self, embeddings, labels, indices_tuple=None):
        raise KeyError("of my own")


class Grouped(GivenLabels):
    """Given labels that count how often they were asked for."""

    calls = 0

    def fit_predict(self, features):
        self.calls += 1
        return super().fit_predict(features)


ARRAYS = [image.numpy() for image in pictures()]
BYTES = [(255 * image).byte() for image in pictures()]
UNGROUPED = [
    ({"data": ARRAYS}, TypeError, "image tensors"),
    ({"data": Sized(), "collate_fn": padded}, ValueError, "extracted without your collate_fn"),
    ({"data": Sized()}, RuntimeError, "equal size"),
    ({**network(Squeezing()), "feature_options": {"batch_size": 23}}, TypeError, r"\(1, \.\.\.\)"),
    ({"data": BYTES}, TypeError, "trunk does not take images of torch.uint8"),
    ({"data": BYTES, "dtype": torch.float32}, ValueError, r"in 0\.\.255"),
    (network(nn.Sequential(trunk(), nn.Flatten(0))), TypeError, r"must return \(16, D"),
    (network(Detached()), TypeError, "embeddings without a gradient, though they have weights"),
    ({"dtype": torch.float64}, RuntimeError, "dtype"),
    ({"collate_fn": lambda items: items[0][0]}, TypeError, r"\(images, indices\)"),
    (loss(Failing()), KeyError, "of my own"),
    (with_proxies(lambda classes: ProxyNCALoss(classes, 7)), RuntimeError, "columns|4 and 7"),
    (with_proxies(FeatureLoss(4, np.ones((3, 5)))), ValueError, "3"),
    (miner(FailingMiner()), RuntimeError, "shape"),
]


@pytest.mark.parametrize(("changes", "error", "text"), UNGROUPED)
def test_bad_batches_and_losses_are_errors_before_the_first_grouping(changes, error, text):
    grouping = Grouped(LABELS)
    joint = make(**sampling(grouping=grouping), **changes)
    before = weights(joint)
    with pytest.raises(error, match=text) as raised:
        joint.train()
    if changes.keys() & {"loss_funcs", "mining_funcs"} and hasattr(raised.value, "add_note"):  # Python 3.11
        assert "before the first grouping" in raised.value.__notes__[0]
    assert grouping.calls == 0
    assert_same_weights(weights(joint), before)
    assert joint.models["trunk"].training


def grouped(*labels):
    return sampling(grouping=GivenLabels(labels))


def other_weights(parameters):
    return of(nn.Linear(4, 3))


test_what_is_refused_with_the_first_groups = refuses_each(
    lambda changes: make(**changes).train(),
    (loss(Constant()), RuntimeError, "the losses have no gradient to weights"),
    (grouped(*[0] * 20, *[-1] * 4), ValueError, r"formed a single class of 24.*round 0.*nothing to learn"),
    ({**loss(NTXentLoss()), **grouped(*[0] * NUM)}, ValueError, "a single class of 24 samples"),
    (grouped(*[-1] * NUM), ValueError, r"no class of 24 samples in round 0.*min_size"),
    (with_classifier(head=nn.Linear(4, 2)), ValueError, "2 outputs for 3 classes: give it as a function"),
    (with_classifier(head=lambda n: n), TypeError, "must return a module, got int"),
    (with_classifier(head_optimizer=of(trunk())), TypeError, "classifier_optimizer must be a function"),
    (with_classifier(head_optimizer=other_weights), ValueError, "2 of the 2 weights in classifier_opt"),
    ({**with_classifier(), **optimizer(sgd())}, ValueError, "has weights to learn: optimizers needs"),
)


def test_a_trunk_that_squeezes_a_batch_that_never_comes():
    make(num_rounds=2, feature_options={"batch_size": 8}, **network(Squeezing())).train()


def test_a_feature_fn_of_ones_own_is_only_warned():
    with pytest.warns(UserWarning, match="extract would fail, if your feature_fn calls it"):
        make(ARRAYS, feature_fn=lambda joint: FEATURES.numpy() + joint.round).train()


def test_float64_trains_and_extracts():
    joint = make(dtype=torch.float64, **network(trunk().double()))
    joint.train()
    expected = extract(joint.models["trunk"], [image.double() for image in pictures()], progress=False)
    np.testing.assert_array_equal(joint.extract(), expected)


def test_the_trial_changes_nothing():
    norm = nn.BatchNorm1d(4)
    make(num_rounds=1, **network(nn.Sequential(trunk(), norm))).train()
    assert norm.num_batches_tracked == 3


# --- Heads follow their classes


class Changing:
    """Four classes; then class 1 is gone, and the others have other ids; then other ids again."""

    calls = 0

    def fit_predict(self, features, labels=None):
        self.calls += 1
        return np.array([[0, 1, 2, 3], [2, -1, 0, 1], [1, -1, 2, 0]])[self.calls - 1, np.arange(NUM) % 4]


@pytest.mark.parametrize("head", [lambda n: nn.Linear(4, n), nn.Linear(4, 6)], ids=["function", "module"])
def test_heads_follow_their_classes(head):
    seen = []

    def note(joint):
        layer, states = joint.models["classifier"], joint.optimizers["classifier_optimizer"].state
        momenta = [states.get(p, {}).get("momentum_buffer", torch.zeros(1)) for p in layer.parameters()]
        seen.append([tensor.detach().clone() for tensor in (layer.weight, layer.bias, *momenta)])

    make(
        num_rounds=3,
        start_of_round_hook=note,
        end_of_epoch_hook=lambda trainer: note(trainer.joint),
        **sampling(grouping=Changing()),
        **with_classifier(head=head),
    ).train()
    for ended, begun, order in ((*seen[1:3], [2, 3, 0]), (*seen[3:5], [1, 2, 0])):
        for before, after in zip(ended, begun, strict=True):
            assert torch.equal(after[:3], before[order])


# --- Ctrl-C


@pytest.fixture
def answers_ctrl_c():
    """A shell makes its background jobs ignore Ctrl-C, pytest among them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press():
    os.kill(os.getpid(), signal.SIGINT)


def stop():
    raise KeyboardInterrupt


@pytest.mark.usefixtures("answers_ctrl_c")
@pytest.mark.parametrize("where", ["loss", "hook", "round hook", "start hook", "features", "save"])
def test_an_interrupted_step_is_done_once(where, tmp_path, monkeypatch):
    armed, calls = [], collections.Counter()

    def strike(place, act, call=2):
        calls[place] += 1
        if armed and place == where and calls[place] == call:
            armed.clear()
            act()

    class Loss(PosetLoss):
        def forward(self, *args, **kwargs):
            strike("loss", press)
            return super().forward(*args, **kwargs)

    def features(joint):
        strike("features", press, call=1)
        return joint.extract()

    def run(**changes):
        return make(
            **changes,
            **loss(Loss(sigma=0.5)),
            feature_fn=features,
            checkpoint_every=1,
            end_of_iteration_hook=lambda trainer: strike("hook", stop),
            end_of_epoch_hook=lambda trainer: strike("round hook", stop),
            start_of_round_hook=lambda joint: strike("start hook", stop),
        )

    whole = run()
    whole.train()
    write = torch.save
    monkeypatch.setattr(torch, "save", lambda *args: (strike("save", press, call=3), write(*args)))
    armed.append(True)
    calls.clear()
    joint = run(output_dir=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        joint.train()
    joint.train()
    assert_same_weights(weights(joint), weights(whole))
    assert joint.history == whole.history
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("answers_ctrl_c")
@pytest.mark.parametrize("times", [1, 2])
def test_a_second_interrupt_comes_through_at_once(times):
    done = []

    def interrupted():
        with finish_first():
            for _ in range(times):
                press()
                done.append(True)
            raise RuntimeError("a worker has ended by the same Ctrl-C")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == [True]


@pytest.mark.usefixtures("answers_ctrl_c")
def test_interrupts_are_left_alone_in_other_threads():
    found = []

    def run():
        with finish_first():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
