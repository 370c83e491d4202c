"""A checkpoint is resumed by its own run alone, and whatever cannot be meant is refused before training."""

import enum
import os
import signal
import threading

import numpy as np
import pytest
import torch
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
    MetricLossOnly,
    TwoStreamMetricLoss,
)
from pytorch_metric_learning.trainers.base_trainer import BaseTrainer
from torchvision.transforms import v2

from pml_posets import extract
from pml_posets.grouping.relaxed_assignment import RelaxedAssignment
from pml_posets.grouping.surrogate import SurrogateGrouping
from pml_posets.losses.feature import FeatureLoss
from pml_posets.losses.poset import PosetLoss
from pml_posets.losses.pseudo_label import PseudoLabelLoss
from pml_posets.losses.wrappers import PosetCrossBatchMemory
from pml_posets.miners import NearestMedoidMiner
from pml_posets.samplers.neighbor_batches import NeighborBatches
from pml_posets.samplers.pseudo_label import GivenLabels, PseudoLabelSampler
from pml_posets.training.checkpoints import check_settings
from pml_posets.training.joint import JointTrainer

NUM = 24
LABELS = [0, 1, 2, -1] * 6


def pictures(number=0, count=NUM):
    return list(torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(number)))


def trunk(p=0.0, width=8):
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(36, width), torch.nn.Dropout(p), torch.nn.Linear(width, 4)
    )


def sgd(**options):
    return lambda parameters: torch.optim.SGD(parameters, **{"lr": 0.1, "momentum": 0.9, **options})


def make(data=None, features=None, sampler_options=None, **changes):
    data = pictures() if data is None else data
    features = torch.stack(pictures()[: len(data)]).flatten(1) if features is None else features
    options = {
        "models": {"trunk": trunk()},
        "optimizers": {"trunk_optimizer": sgd()},
        "loss_funcs": {"metric_loss": PosetLoss(sigma=0.5)},
        "dataset": data,
        "num_rounds": 2,
        "iterations_per_round": 3,
        "progress": False,
        **changes,
    }
    if "sampler" not in options:
        kwargs = {"grouping": GivenLabels(LABELS[: len(data)]), "batch_size": 8, **(sampler_options or {})}
        options["sampler"] = PseudoLabelSampler(features, **kwargs)
    return JointTrainer(**options)


def weights(joint):
    return [w.clone() for model in joint.models.values() for w in model.state_dict().values()]


def assert_equal(one, other):
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))
    assert one.history == other.history


# --- Another run


def schedule(gamma):
    return {"trunk_scheduler_by_epoch": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma)}


class Augmented(torch.utils.data.Dataset):
    def __init__(self, strength):
        self.images, self.strength = pictures(), strength

    def __len__(self):
        return NUM

    def __getitem__(self, index):
        return self.images[index] + self.strength * torch.rand(())


def neighbor_batches(**options):
    features = torch.stack(pictures()).flatten(1)
    return NeighborBatches(features, 12, samples_per_query=3, grouping=GivenLabels(LABELS), **options)


def mixture(weights, *, scale=1.0):
    def features(joint, *, scale=scale):
        return np.hstack([weight * scale * joint.extract(layer="1") for weight in weights])

    return features


def half_frozen():
    network = trunk()
    network[1].requires_grad_(False)
    return network


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


def with_proxies(**options):
    return {
        "loss_funcs": {"metric_loss": lambda classes: CosFaceLoss(classes, 4, **options)},
        "optimizers": {"trunk_optimizer": sgd(), "metric_loss_optimizer": sgd()},
    }


class Transformed(Augmented):
    def __init__(self, p):
        super().__init__(0.0)
        self.transform = v2.RandomErasing(p)


def surrogate(**options):
    return {"grouping": SurrogateGrouping(min_size=2, **options)}


def with_classifier(lr=0.1):
    return {
        "models": {"trunk": trunk(), "classifier": lambda n: torch.nn.Linear(4, n)},
        "optimizers": {"trunk_optimizer": sgd(), "classifier_optimizer": sgd(lr=lr)},
        "loss_funcs": {"classifier_loss": torch.nn.CrossEntropyLoss()},
    }


OTHERS = {
    "images": ({}, {"data": pictures(1)}, "dataset images"),
    "order": ({}, {"data": pictures()[::-1]}, "dataset images"),
    "augmentation": ({"data": Augmented(0.1)}, {"data": Augmented(0.5)}, "dataset images"),
    "feature dataset": ({}, {"feature_dataset": pictures(2)}, "feature_dataset images"),
    "features": ({}, {"features": torch.randn(NUM, 36)}, "first features features=24 rows, here others in"),
    "rows of features": (
        {}, {"features": torch.stack(pictures()).flatten(1).flip(0)}, "first features features"
    ),
    "mirrored": (
        {"sampler_options": {"mirrored": torch.ones(NUM, 36)}}, {}, "mirrored=24 rows, here None"
    ),
    "lr": ({}, {"optimizers": {"trunk_optimizer": sgd(lr=0.2)}}, "there trunk_optimizer lr=0.1, here 0.2"),
    "momentum": ({}, {"optimizers": {"trunk_optimizer": sgd(momentum=0.8)}}, "trunk_optimizer momentum=0.9"),
    "decay": ({}, {"optimizers": {"trunk_optimizer": sgd(weight_decay=1.0)}}, "weight_decay=0, here 1.0"),
    "optimizer": ({}, {"optimizers": {"trunk_optimizer": torch.optim.Adam}}, "trunk_optimizer type='SGD'"),
    "schedule": ({"lr_schedulers": schedule(0.5)}, {"lr_schedulers": schedule(0.6)}, "gamma=0.5, here 0.6"),
    "no schedule": ({"lr_schedulers": schedule(0.5)}, {}, "trunk_scheduler_by_epoch gamma=0.5, here None"),
    "sigma": ({}, {"loss_funcs": {"metric_loss": PosetLoss(sigma=0.4)}}, "metric_loss sigma=0.5, here 0.4"),
    "margin": (
        {"loss_funcs": {"metric_loss": ContrastiveLoss(neg_margin=1.0)}},
        {"loss_funcs": {"metric_loss": ContrastiveLoss(neg_margin=0.5)}},
        "metric_loss neg_margin=1.0, here 0.5",
    ),
    "loss": ({}, {"loss_funcs": {"metric_loss": ContrastiveLoss()}}, "metric_loss type='PosetLoss'"),
    "unassigned": (
        {"loss_funcs": {"metric_loss": PseudoLabelLoss(NTXentLoss(), unassigned="own")}},
        {"loss_funcs": {"metric_loss": PseudoLabelLoss(NTXentLoss())}},
        "metric_loss unassigned='own', here 'drop'",
    ),
    "weight": ({}, {"loss_weights": {"metric_loss": 0.5}}, "loss_weights"),
    "miner": ({}, {"mining_funcs": {"tuple_miner": NearestMedoidMiner()}}, "tuple_miner type=None, here"),
    "epsilon": (
        {"mining_funcs": {"tuple_miner": MultiSimilarityMiner(0.1)}},
        {"mining_funcs": {"tuple_miner": MultiSimilarityMiner(0.2)}},
        "tuple_miner inner.epsilon=0.1, here 0.2",
    ),
    "num_nearest": ({}, {"sampler_options": {"num_nearest": 1}}, "sampler num_nearest=2, here 1"),
    "grouping": ({}, {"sampler_options": surrogate()}, "sampler grouping.type='GivenLabels'"),
    "labels": ({}, {"sampler_options": {"grouping": GivenLabels(LABELS[::-1])}}, "sampler grouping.labels"),
    "top_fraction": (
        {"sampler_options": surrogate(top_fraction=0.2)},
        {"sampler_options": surrogate(top_fraction=0.3)},
        "sampler grouping.top_fraction=0.2, here 0.3",
    ),
    "assignment": ({}, {"sampler_options": {"assignment": RelaxedAssignment()}}, "sampler assignment.type"),
    "sources": ({}, {"sampler_options": {"sources": np.arange(NUM)}}, "sampler sources=None"),
    "sampler": ({"sampler": neighbor_batches()}, {"sampler": neighbor_batches(views=1)}, "sampler views=2"),
    "dropout": ({}, {"models": {"trunk": trunk(0.1)}}, "trunk 2.p=0.0, here 0.1"),
    "width": ({}, {"models": {"trunk": trunk(width=9)}}, r"trunk 1.weight='\(8, 36\) float32', here"),
    "feature_fn": ({}, {"feature_fn": "fixed"}, "feature_fn name='extract'"),
    "mixture": (
        {"feature_fn": lambda joint: 0.8 * joint.extract()},
        {"feature_fn": lambda joint: 0.9 * joint.extract()},
        "feature_fn numbers",
    ),
    "order of a mixture": (
        {"feature_fn": lambda joint: np.hstack([joint.extract(), joint.extract(layer="1")])},
        {"feature_fn": lambda joint: np.hstack([joint.extract(), joint.extract(layer="3")])},
        "feature_fn constants",
    ),
    "weights of a mixture": (
        {"feature_fn": mixture((1.0, 0.5))},
        {"feature_fn": mixture((1.0, 0.6))},
        r"feature_fn weights='\[1.0, 0.5\]', here",
    ),
    "keyword default": (
        {"feature_fn": mixture((1.0,))},
        {"feature_fn": mixture((1.0,), scale=2.0)},
        "feature_fn keyword defaults.scale=1.0, here 2.0",
    ),
    "a container around it": (
        {"feature_fn": weighted({"of": [1.0]})},
        {"feature_fn": weighted({"of": [2.0]})},
        "feature_fn weight.of='\\[1.0\\]', here",
    ),
    "attributes of another name": (
        {"feature_fn": Mixture(1, Mode.ONE)}, {"feature_fn": Mixture(2, Mode.TWO)},
        "feature_fn parts='\\[1\\]', here '\\[2\\]'; there feature_fn mode='Mode.ONE', here 'Mode.TWO'"
    ),
    "a setting of a head that a function makes": (
        with_proxies(scale=10), with_proxies(scale=20), "metric_loss scale=10, here 20"
    ),
    "one image": (
        {}, {"data": [*pictures()[:5], torch.zeros(1, 6, 6), *pictures()[6:]]}, "others in 1 of 24 rows"
    ),
    "another function": (
        {"feature_fn": lambda joint: np.abs(joint.extract())},
        {"feature_fn": lambda joint: np.square(joint.extract())},
        "feature_fn names",
    ),
    "global": (
        {"feature_fn": lambda joint: joint.extract()[:, :NUM]},
        {"feature_fn": lambda joint: joint.extract()[:, : LABELS[0]]},
        "feature_fn NUM=24, here None",
    ),
    "transform": ({"data": Transformed(0.5)}, {"data": Transformed(0.55)}, "dataset transform p=0.5, here"),
    "frozen": ({}, {"models": {"trunk": half_frozen()}}, r"trunk 1.weight='\(8, 36\) float32', here"),
    "feature options": ({}, {"feature_options": {"normalize": False}}, "feature_options normalize=None"),
    "freezing": ({}, {"freeze_trunk_batchnorm": True}, "freeze_trunk_batchnorm=None, here True"),
    "seed": ({}, {"seed": 4}, "seed=0, here 4"),
    "length of a round": ({}, {"iterations_per_round": 6}, "iterations_per_round=3, here 6"),
    "settings": ({"settings": {"size": 16}}, {"settings": {"size": 32}}, "your size=16, here 32"),
    "samples": ({}, {"sampler_options": {"samples_per_class": 3}}, "samples_per_class=4, here 3"),
    "average": ({"ema_decay": 0.9}, {}, "ema_decay=0.9, here None"),
    "head": (with_classifier(), {}, "classifier_loss type='CrossEntropyLoss', here None"),
}  # fmt: skip


def described(changes):
    """What a checkpoint of this run says about it."""
    joint = make(**changes)
    joint._components.fit(3, 0, joint.device)
    return joint._described()


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_not_resumed(name):
    first, second, text = OTHERS[name]
    saved = described(first)
    check_settings(saved, described(first), "a.pt")
    with pytest.raises(ValueError, match=rf"belongs to another run \(.*{text}.*another folder"):
        check_settings(saved, described(second), "a.pt")


def test_what_functions_and_objects_write_to_is_no_setting(tmp_path):
    for number, feature_fn in enumerate([weighted({"of": (1.0,)}), Mixture(1, Mode.ONE)]):
        for rounds in (2, 3):
            make(output_dir=tmp_path / str(number), num_rounds=rounds, feature_fn=feature_fn).train(
                resume=rounds > 2
            )


def test_one_message_lists_all_differences(tmp_path):
    make(output_dir=tmp_path, num_rounds=1).train()
    content = (tmp_path / "checkpoint.pt").read_bytes()
    other = make(
        pictures(1), output_dir=tmp_path, seed=3, optimizers={"trunk_optimizer": sgd(lr=0.2)},
        loss_funcs={"metric_loss": PosetLoss(sigma=0.1)}, sampler_options={"num_nearest": 1},
    )  # fmt: skip
    with pytest.raises(ValueError, match="another run") as error:
        other.train(resume=True)
    for text in (
        "seed=0, here 3",
        "lr=0.1, here 0.2",
        "sigma=0.5, here 0.1",
        "num_nearest=2",
        "dataset images",
    ):
        assert text in str(error.value)
    assert (tmp_path / "checkpoint.pt").read_bytes() == content
    make(output_dir=tmp_path).train(resume=True)


def test_layers_that_are_not_made_yet_are_saved(tmp_path):
    def lazy():
        return {"trunk": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(4))}

    make(output_dir=tmp_path, models=lazy()).train()
    make(output_dir=tmp_path, models=lazy(), num_rounds=3).train(resume=True)


def test_heads_are_compared_though_functions_make_them(tmp_path):
    make(output_dir=tmp_path, **with_classifier()).train()
    with pytest.raises(ValueError, match=r"\(there classifier_optimizer lr=0.1, here 0.3\)"):
        make(output_dir=tmp_path, **with_classifier(lr=0.3)).train(resume=True)
    make(output_dir=tmp_path, **with_classifier()).train(resume=True)


def test_a_sample_more_is_another_data_set(tmp_path):
    make(pictures()[:12], output_dir=tmp_path).train()
    with pytest.raises(ValueError, match=r"there num_samples=12, here 13.*dataset samples=12, here 13"):
        make(pictures()[:13], output_dir=tmp_path).train(resume=True)


def test_a_moved_folder_and_rounding_are_no_difference(tmp_path):
    from PIL import Image

    from pml_posets.data.datasets import ImageList, image_files

    def run(name, resume=False):
        files = image_files(tmp_path / name)
        data = ImageList(
            files, transform=lambda im: torch.from_numpy(np.float32(im)[:6, :6, :1].copy()).permute(2, 0, 1)
        )
        features = torch.stack(pictures()).flatten(1)
        noise = 1e-6 * torch.randn(features.shape) if resume else 0
        make(data, features + noise, output_dir=tmp_path / "out").train(resume=resume)

    (tmp_path / "a").mkdir()
    rng = np.random.default_rng(0)
    for i in range(NUM):
        Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8)).save(tmp_path / "a" / f"{i:02d}.png")
    run("a")
    (tmp_path / "a").rename(tmp_path / "b")
    run("b", resume=True)
    with open(tmp_path / "b" / "07.png", "ab") as file:
        file.write(b"and more")
    with pytest.raises(
        ValueError, match=r"\(there dataset file sizes=[^;]*; there feature_dataset file sizes=[^;]*\)"
    ):
        run("b", resume=True)
    (tmp_path / "b" / "07.png").rename(tmp_path / "b" / "99.png")
    with pytest.raises(ValueError, match="dataset file names"):
        run("b", resume=True)


def test_objects_that_have_learned_make_the_same_run_again(tmp_path):
    network = trunk()
    optimizer = sgd()(network.parameters())
    loss = PosetCrossBatchMemory(PosetLoss(sigma=0.5, collect_stats=True), 4, memory_size=16)

    def again(**changes):
        return make(
            models={"trunk": network}, optimizers={"trunk_optimizer": optimizer}, output_dir=tmp_path,
            lr_schedulers=schedule(0.5), loss_funcs={"metric_loss": loss}, **changes,
        )  # fmt: skip

    again(num_rounds=1).train()
    again().train(resume=True)  # as in a notebook, whose cells are run again


# --- Checkpoints that can be read back


def test_numbers_of_numpy_come_back(tmp_path):
    changes = {
        "optimizers": {"trunk_optimizer": sgd(lr=np.float64(0.1), momentum=np.float32(0.5))},
        "lr_schedulers": schedule(np.float64(0.5)),
        "settings": {"size": np.int64(8), "scale": np.float32(0.5), "sizes": np.arange(3)},
        "loss_weights": {"metric_loss": np.float64(0.5)},
        "ema_decay": np.float64(0.9),
        "loss_funcs": {"metric_loss": PosetLoss(sigma=np.float64(0.5))},
        "seed": np.int64(3),
        "iterations_per_round": np.int32(3),
    }
    whole = make(**changes)
    whole.train()
    make(output_dir=tmp_path, **{**changes, "num_rounds": 1}).train()
    joint = make(output_dir=tmp_path, **changes)
    joint.train(resume=True)
    assert_equal(joint, whole)


class WithState(PosetLoss):
    """Keeps what a checkpoint cannot hold."""

    def get_extra_state(self):
        return {"rng": np.random.default_rng(0)}

    def set_extra_state(self, state):
        pass


def test_what_a_checkpoint_cannot_hold_is_named_before_training(tmp_path):
    steps = []
    joint = make(
        loss_funcs={"metric_loss": WithState(sigma=0.5)},
        output_dir=tmp_path,
        end_of_iteration_hook=steps.append,
    )
    with pytest.raises(
        TypeError, match=r"parts\['loss_funcs'\]\['metric_loss'\].*\['rng'\] is a numpy.random"
    ):
        joint.train()
    assert steps == []
    assert list(tmp_path.iterdir()) == []


# --- Nothing learns


def test_weights_that_no_optimizer_holds():
    embedder = torch.nn.Linear(4, 4)
    with pytest.raises(
        ValueError, match="embedder has weights to learn: optimizers needs embedder_optimizer"
    ):
        make(models={"trunk": trunk(), "embedder": embedder})
    with pytest.raises(ValueError, match="metric_loss has weights to learn"):
        make(loss_funcs={"metric_loss": NormalizedSoftmaxLoss(3, 4)})
    with pytest.raises(ValueError, match="trunk has weights to learn"):
        make(models={"trunk": trunk(), "embedder": embedder}, optimizers={"embedder_optimizer": sgd()})
    with pytest.raises(ValueError, match="requires a gradient, so nothing can learn"):
        make(models={"trunk": trunk().requires_grad_(False)}, optimizers={})
    network = trunk()
    make(  # one optimizer may hold both, and what is frozen needs none
        models={"trunk": network, "embedder": embedder},
        optimizers={
            "trunk_optimizer": torch.optim.SGD([*network.parameters(), *embedder.parameters()], lr=0.1)
        },
    )
    make(
        models={"trunk": trunk(), "embedder": embedder},
        optimizers={"embedder_optimizer": sgd()},
        freeze_these=("trunk",),
    )
    with pytest.warns(
        UserWarning, match=r"no optimizer holds 2 of 4 weights of trunk \(the first is 1.weight\)"
    ):
        make(optimizers={"trunk_optimizer": lambda p: torch.optim.SGD(p[2:], lr=0.1)})


def stop_rates(joint):
    joint.optimizers["trunk_optimizer"].param_groups[0]["lr"] = 0.0


class Detached(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = trunk()

    def forward(self, images):
        return self.layers(images).detach()


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizers": {"trunk_optimizer": sgd(lr=0.0)}},
        {"lr_schedulers": schedule(0.0), "feature_fn": "fixed", "start_of_round_hook": stop_rates},
        {"models": {"trunk": torch.nn.Sequential(trunk(), torch.nn.Threshold(9.0, 0.0))}},
    ],
)  # fmt: skip
def test_a_round_that_moves_no_weight_is_said(changes):
    with pytest.warns(UserWarning, match="no weight of trunk_optimizer has changed in round 0"):
        make(**changes).train()


def test_losses_and_networks_without_a_gradient():
    with pytest.raises(TypeError, match="embeddings without a gradient, though they have weights"):
        make(models={"trunk": Detached()}).train()
    constant = type("Constant", (torch.nn.Module,), {"forward": lambda self, *_: torch.zeros(())})()
    with pytest.raises(RuntimeError, match="the losses have no gradient to weights"):
        make(loss_funcs={"metric_loss": constant}).train()


def test_optimizers_and_schedulers_that_are_none():
    with pytest.raises(TypeError, match="trunk_optimizer must return an optimizer, got NoneType"):
        make(optimizers={"trunk_optimizer": lambda parameters: None})
    with pytest.raises(TypeError, match="trunk_scheduler_by_epoch must return a scheduler, got NoneType"):
        make(lr_schedulers={"trunk_scheduler_by_epoch": lambda optimizer: None})
    network = trunk()
    other = torch.optim.lr_scheduler.StepLR(sgd()(network.parameters()), 1)
    with pytest.raises(ValueError, match="trunk_scheduler_by_epoch is the scheduler of another optimizer"):
        make(models={"trunk": network}, lr_schedulers={"trunk_scheduler_by_epoch": other})


def test_an_optimizer_of_other_weights():
    other = torch.optim.SGD(trunk().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="4 of the 4 weights in trunk_optimizer are in no model and no loss"):
        make(optimizers={"trunk_optimizer": other})
    network, stray = trunk(), torch.nn.Parameter(torch.ones(1))
    with pytest.warns(UserWarning, match="1 of the 5 weights in trunk_optimizer"):
        make(
            models={"trunk": network},
            optimizers={"trunk_optimizer": torch.optim.SGD([*network.parameters(), stray], lr=0.1)},
        )
    with pytest.raises(ValueError, match="2 of the 2 weights in classifier_optimizer"):
        make(
            models={"trunk": trunk(), "classifier": lambda n: torch.nn.Linear(4, n)},
            optimizers={
                "trunk_optimizer": sgd(),
                "classifier_optimizer": lambda p: torch.optim.SGD(torch.nn.Linear(4, 3).parameters(), lr=0.1),
            },
            loss_funcs={"classifier_loss": torch.nn.CrossEntropyLoss()},
        ).train()


@pytest.mark.parametrize("labels", [[0] * NUM, [0] * 20 + [-1] * 4])
@pytest.mark.parametrize("loss", [PosetLoss(), NTXentLoss()])
def test_a_grouping_of_one_class(labels, loss):
    joint = make(loss_funcs={"metric_loss": loss}, sampler_options={"grouping": GivenLabels(labels)})
    with pytest.raises(ValueError, match=r"formed a single class of 24 samples in round 0.*nothing to learn"):
        joint.train()


def test_a_grouping_that_collapses_later_leaves_the_groups():
    class Collapsing:
        def fit_predict(self, features, labels=None):
            return np.arange(NUM) % 3 if labels is None else np.zeros(NUM, int)

    joint = make(sampler_options={"grouping": Collapsing()})
    with pytest.raises(ValueError, match="a single class of 24 samples in round 1"):
        joint.train()
    assert joint.posets.num_classes == 3


# --- Errors before training, not after a round


class Sized(torch.utils.data.Dataset):
    def __len__(self):
        return NUM

    def __getitem__(self, index):
        return torch.rand(1, 6, 6 + index % 3)


def padded(items):
    images, indices = zip(*items, strict=True)
    return torch.stack(
        [torch.nn.functional.pad(im, (0, 8 - im.shape[-1]))[..., :6] for im in images]
    ), torch.tensor(indices)


class Squeezing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = trunk()

    def forward(self, images):
        return self.layers(images).squeeze()


class Failing(torch.nn.Module):
    def forward(self, embeddings, labels, indices_tuple=None):
        raise KeyError("of my own")


class FailingMiner(BaseMiner):
    def mine(self, embeddings, labels, ref_emb, ref_labels):
        return embeddings @ torch.zeros(1, 1)


def with_loss(loss):
    optimizers = {"trunk_optimizer": sgd(), "metric_loss_optimizer": sgd()}
    return {"loss_funcs": {"metric_loss": loss}, "optimizers": optimizers}


BYTES = [(255 * im).byte() for im in pictures()]
FLAT = torch.nn.Sequential(trunk(), torch.nn.Flatten(0))
BAD = [
    ({"data": [im.numpy() for im in pictures()]}, TypeError, "image tensors"),
    ({"data": Sized(), "collate_fn": padded}, ValueError, "extracted without your collate_fn"),
    ({"data": Sized()}, RuntimeError, "equal size"),
    ({"models": {"trunk": Squeezing()}, "feature_options": {"batch_size": 23}}, TypeError, r"\(1, \.\.\.\)"),
    ({"data": BYTES}, TypeError, "trunk does not take images of torch.uint8"),
    ({"data": BYTES, "dtype": torch.float32}, ValueError, r"in 0\.\.255"),
    ({"models": {"trunk": FLAT}}, TypeError, r"must return \(16, D"),
    ({"dtype": torch.float64}, RuntimeError, "dtype"),
    ({"collate_fn": lambda items: torch.stack([im for im, _ in items])}, TypeError, r"\(images, indices\)"),
    ({"loss_funcs": {"metric_loss": Failing()}}, KeyError, "of my own"),
    (with_loss(lambda classes: ProxyNCALoss(classes, 7)), RuntimeError, "same number of columns|4 and 7"),
    (with_loss(FeatureLoss(4, np.ones((3, 5)))), ValueError, "3"),
    ({"mining_funcs": {"tuple_miner": FailingMiner()}}, RuntimeError, "shape"),
]


@pytest.mark.parametrize(("changes", "error", "text"), BAD)
def test_bad_batches_and_losses_are_errors_before_the_first_grouping(changes, error, text):
    grouped = []

    class Watching(GivenLabels):
        def fit_predict(self, features):
            grouped.append(len(features))
            return super().fit_predict(features)

    joint = make(sampler_options={"grouping": Watching(LABELS)}, **changes)
    before = weights(joint)
    with pytest.raises(error, match=text) as raised:
        joint.train()
    if changes.keys() & {"loss_funcs", "mining_funcs"} and hasattr(raised.value, "add_note"):  # Python 3.11
        assert "before the first grouping" in raised.value.__notes__[0]
    assert grouped == []
    assert all(torch.equal(a, b) for a, b in zip(weights(joint), before, strict=True))
    assert joint.models["trunk"].training


def test_a_trunk_that_squeezes_a_batch_that_never_comes():
    make(models={"trunk": Squeezing()}, feature_options={"batch_size": 8}).train()


def test_a_feature_fn_of_ones_own_is_only_warned():
    data = [im.numpy() for im in pictures()]
    features = torch.stack(pictures()).flatten(1).numpy()
    with pytest.warns(UserWarning, match="extract would fail, if your feature_fn calls it"):
        make(data, feature_fn=lambda joint: features + joint.round).train()


def test_float64_trains_and_extracts():
    joint = make(models={"trunk": trunk().double()}, dtype=torch.float64)
    joint.train()
    expected = extract(joint.models["trunk"], [im.double() for im in pictures()], progress=False)
    np.testing.assert_array_equal(joint.extract(), expected)


def test_the_trial_changes_nothing():
    norm = torch.nn.BatchNorm1d(4)
    joint = make(models={"trunk": torch.nn.Sequential(trunk(), norm)}, num_rounds=1)
    joint.train()
    assert norm.num_batches_tracked == 3


# --- Trainers, names and weights that are refused


@pytest.mark.parametrize("kind", [CascadedEmbeddings, TwoStreamMetricLoss, DeepAdversarialMetricLearning])
def test_trainers_of_other_losses(kind):
    with pytest.raises(TypeError, match=f"does not support {kind.__name__}"):
        make(trainer_class=kind)
    with pytest.raises(TypeError, match=f"does not support {kind.__name__}"):
        make(trainer_class=type("Own", (kind,), {}))


@pytest.mark.parametrize("given", [torch.nn.Linear, "MetricLossOnly", MetricLossOnly.__init__])
def test_what_is_no_trainer(given):
    with pytest.raises(TypeError, match="trainer_class must be a class of PML trainers"):
        make(trainer_class=given)


def test_a_trainer_without_a_loss():
    with pytest.raises(TypeError, match="BaseTrainer computes no loss: use MetricLossOnly"):
        make(trainer_class=BaseTrainer)


@pytest.mark.parametrize("weight", [0, 0.0, -1.0, float("nan"), float("inf"), "1", None, True])
def test_bad_weights_of_losses(weight):
    with pytest.raises((ValueError, TypeError), match="weight"):
        make(loss_weights={"metric_loss": weight})


def test_a_loss_of_embeddings_is_no_objective():
    for loss in (ContrastiveLoss(), PosetLoss(), PseudoLabelLoss(NTXentLoss())):
        with pytest.raises(TypeError, match=rf"'mine', a {type(loss).__name__}, which takes embeddings"):
            make(loss_funcs={"metric_loss": PosetLoss(), "mine": loss})


def test_an_optimizer_that_needs_a_closure():
    with pytest.raises(TypeError, match="trunk_optimizer is LBFGS, whose step needs a closure"):
        make(optimizers={"trunk_optimizer": torch.optim.LBFGS})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"end_of_epoch_hook": 3}, "end_of_epoch_hook must be a function, got 3"),
        ({"start_of_round_hook": "print"}, "start_of_round_hook must be a function"),
        ({"judge": 1}, "judge must be a function"),
        ({"gradient_clippers": {"trunk_grad_clipper": 1.0}}, "trunk_grad_clipper must be a function"),
        ({"dataloader_num_workers": "2"}, "dataloader_num_workers must be an integer"),
        ({"loss_weights": 2}, "loss_weights must be a dict"),
    ],
)
def test_what_is_called_later_is_checked_at_once(changes, text):
    with pytest.raises(TypeError, match=text):
        make(**changes)


def test_a_schedule_that_ends_before_the_run():
    def one_cycle(total_steps):
        return lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps)

    with pytest.raises(ValueError, match="trunk_scheduler_by_iteration has total_steps=5 of 6"):
        make(lr_schedulers={"trunk_scheduler_by_iteration": one_cycle(5)})
    make(lr_schedulers={"trunk_scheduler_by_iteration": one_cycle(6)}).train()


@pytest.mark.parametrize("name", ["", " mine", 3])
def test_names_of_losses_that_are_none(name):
    with pytest.raises(ValueError, match="the name of a loss must be a string"):
        make(loss_funcs={"metric_loss": PosetLoss(), name: torch.nn.Identity()})


@pytest.mark.parametrize("name", ["trunk", "embedder", "total_loss", "round", "iteration"])
def test_names_of_losses_that_are_taken(name):
    losses = {"metric_loss": PosetLoss(), name: torch.nn.Identity()}
    models = {"trunk": trunk(), "embedder": torch.nn.Identity()}
    with pytest.raises(ValueError, match=f"name '{name}'"):
        make(models=models, loss_funcs=losses)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"models": {"trunk": trunk(), "embeder": torch.nn.Identity()}},
            r"models has the names \['embeder'\]",
        ),
        ({"mining_funcs": {"miner": MultiSimilarityMiner()}}, r"mining_funcs has the names \['miner'\]"),
        ({"freeze_these": ("trnk",)}, "freeze_these has"),
        ({"loss_funcs": {"classifier_loss": torch.nn.CrossEntropyLoss()}}, 'models no "classifier"'),
        (
            {"models": {"trunk": trunk(), "classifier": torch.nn.Linear(4, 9)}},
            'loss_funcs no "classifier_loss"',
        ),
    ],
)
def test_names_that_nothing_would_use(changes, text):
    with pytest.raises(ValueError, match=text):
        make(**changes)


# --- Heads follow their classes


class Changing:
    """Classes by parity and thirds; in the next round class 1 is gone, and the others have other ids."""

    rounds = (np.arange(NUM) % 4, np.array([2, -1, 0, 1])[np.arange(NUM) % 4], np.arange(NUM) % 4)

    def __init__(self):
        self.calls = 0

    def fit_predict(self, features, labels=None):
        self.calls += 1
        return self.rounds[self.calls - 1]


@pytest.mark.parametrize("as_function", [True, False])
def test_heads_follow_their_classes(as_function):
    seen = []

    def note(joint):
        head, optimizer = joint.models["classifier"], joint.optimizers["classifier_optimizer"]
        momenta = [
            optimizer.state.get(p, {}).get("momentum_buffer", torch.zeros(1)) for p in head.parameters()
        ]
        seen.append([tensor.detach().clone() for tensor in (head.weight, head.bias, *momenta)])

    joint = make(
        models={
            "trunk": trunk(),
            "classifier": (lambda n: torch.nn.Linear(4, n)) if as_function else torch.nn.Linear(4, 6),
        },
        optimizers={"trunk_optimizer": sgd(), "classifier_optimizer": sgd()},
        loss_funcs={"classifier_loss": torch.nn.CrossEntropyLoss()},
        sampler_options={"grouping": Changing()},
        num_rounds=3,
        start_of_round_hook=note,
        end_of_epoch_hook=lambda trainer: note(trainer.joint),
    )
    joint.train()
    _, ended, begun, ended_again, begun_again = seen[:5]  # begun, ended, begun, ...
    for new, old in enumerate([2, 3, 0]):
        for before, after in zip(ended, begun, strict=True):
            assert torch.equal(after[new], before[old])
        for before, after in zip(ended_again, begun_again, strict=True):
            assert torch.equal(after[old], before[new])
    if as_function:
        assert not begun_again[2][1].any()  # nothing is known of the new class 1


# --- Ctrl-C


def interrupted_at(joint, where):
    """Trains with one KeyboardInterrupt, and then to the end."""
    with pytest.raises(KeyboardInterrupt):
        joint.train()
    where["armed"] = False
    joint.train()


@pytest.mark.parametrize("where", ["loss", "hook", "round hook", "start hook", "features", "save"])
def test_an_interrupted_step_is_done_once(where, tmp_path, monkeypatch):
    state = {"armed": True, "calls": 0}

    def interrupt(*_):
        state["calls"] += 1
        if state["armed"] and state["calls"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    def raising(*_):
        state["calls"] += 1
        if state["armed"] and state["calls"] == 2:
            raise KeyboardInterrupt

    class Loss(PosetLoss):
        def forward(self, *args, **kwargs):
            interrupt()
            return super().forward(*args, **kwargs)

    def features(joint):
        found = joint.extract()
        if where == "features":
            state["calls"] = 1
            interrupt()
        return found

    def options(changes=True):
        chosen = {
            "feature_fn": features,
            "checkpoint_every": 1,
            "loss_funcs": {"metric_loss": PosetLoss(sigma=0.5)},
        }
        if changes:
            chosen |= {
                "loss": {"loss_funcs": {"metric_loss": Loss(sigma=0.5)}},
                "hook": {"end_of_iteration_hook": raising},
                "round hook": {"end_of_epoch_hook": raising},
                "start hook": {"start_of_round_hook": raising},
            }.get(where, {})
        return chosen

    state["armed"] = False
    whole = make(**options())
    whole.train()
    state.update(armed=True, calls=0)
    joint = make(output_dir=tmp_path, **options())
    if where == "save":
        write, calls = torch.save, []

        def save(content, file):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return write(content, file)

        monkeypatch.setattr(torch, "save", save)
    interrupted_at(joint, state)
    assert_equal(joint, whole)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_comes_through_at_once():
    from pml_posets.training._rounds import finish_first

    done = []

    def interrupt(times):
        with finish_first():
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
                done.append(times)
            raise RuntimeError("a worker has ended by the same Ctrl-C")

    for times, expected in ((1, [1]), (2, [1, 2])):
        with pytest.raises(KeyboardInterrupt):
            interrupt(times)
        assert done == expected


def test_interrupts_are_left_alone_in_other_threads():
    from pml_posets.training._rounds import finish_first

    found = []

    def run():
        with finish_first():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
