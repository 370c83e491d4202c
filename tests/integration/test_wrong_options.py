"""A wrong value of an option is refused by the option's name, whatever the option."""

import numpy as np
import pytest
import torch
from torch import nn

from pml_posets import (
    BatchAugmentation,
    ConfidentGrouping,
    Embedder,
    JointTrainer,
    PosetLoss,
    PseudoLabelSampler,
    SurrogateGrouping,
    WithViews,
    extract,
    search,
)
from pml_posets.evaluation import retrieval_scores
from pml_posets.features import InstanceLDA, MotionHOG, PartialWhitening
from pml_posets.features.pooled import LayerOutputs
from pml_posets.grouping import KMeansGrouping
from pml_posets.methods import AttentionConsistencyObjective
from pml_posets.posets import Posets
from pml_posets.training import CachedMaps, FromLayer, parameter_groups

ROWS = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
CLASSES = np.arange(30) // 5
IMAGES = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NETWORK = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 4))


def cached_maps(**options):
    return CachedMaps(IMAGES, FromLayer(NETWORK, "0", 8), "never", progress=False, **options)


def joint(**options):
    parts = {
        "models": {"trunk": NETWORK},
        "optimizers": {"trunk_optimizer": lambda p: torch.optim.SGD(p, 0.1)},
        "loss_funcs": {"metric_loss": PosetLoss()},
        "dataset": IMAGES,
    }
    return JointTrainer(sampler=PseudoLabelSampler(ROWS, 10, warm_start=False), **{**parts, **options})


CALLS = {
    "surrogate": lambda **x: SurrogateGrouping(**x).fit_predict(ROWS),
    "confident": lambda **x: ConfidentGrouping(**x).fit_predict(ROWS),
    "kmeans": lambda **x: KMeansGrouping(3, **x).fit_predict(ROWS),
    "search": lambda **x: search(ROWS, 2, **x),
    "posets": lambda **x: Posets.build(ROWS, CLASSES, 2, **x),
    "sampler": lambda **x: PseudoLabelSampler(ROWS, 10, **x).labels,
    "loss": PosetLoss,
    "extract": lambda **x: extract(NETWORK, IMAGES, progress=False, **x),
    "whitening": lambda **x: PartialWhitening(2, **x).fit(ROWS).transform(ROWS),
    "lda": lambda **x: InstanceLDA(**x).fit(ROWS, CLASSES).transform(ROWS),
    "motion": lambda **x: MotionHOG(16, **x).fit_transform(IMAGES, [0] * 30, range(30)),
    "augmentation": BatchAugmentation,
    "views": lambda transform: WithViews(IMAGES, transform),
    "embedder": lambda **x: Embedder(**x).fit(IMAGES),
    "layer": lambda network: FromLayer(network, "0", 8),
    "maps": cached_maps,
    "attention": AttentionConsistencyObjective,
    "groups": lambda **x: parameter_groups(**{"module": NETWORK, "lr": 0.1, **x}),
    "layers": lambda layers: LayerOutputs(NETWORK, layers),
    "scores": lambda ks: retrieval_scores(ROWS, CLASSES, ks),
    "joint": joint,
}
TWO = np.array([1.0, 2.0])
WRONG = {
    "surrogate": {
        "mean_size": ["a", TWO, 2.5],
        "contrast": [None, "a", 0.5],
        "max_widening": [None, TWO, np.nan],
    },
    "confident": {"one_per_source": ["False", None, 2], "method": [TWO, None], "max_step": [0, np.inf]},
    "kmeans": {"warm_start": ["no", 1]},
    "search": {"exclude_self": ["no", None], "device": [1.5, "nowhere", True], "backend": [TWO]},
    "posets": {"neighbors": [TWO, 1]},
    "sampler": {"warm_start": ["no", None], "sources": [[None] * 30, [np.nan] * 30]},
    "loss": {"detach_representatives": ["no", TWO], "sigma": [TWO, "b", np.nan], "margin": [TWO]},
    "extract": {
        "mirror": ["no", None, TWO],
        "normalize": ["no", TWO],
        "layer": [[1], 3],
        "num_workers": [None, -1, 1.5, "a"],
        "device": [TWO, -1, "nowhere"],
        "amp": [TWO, 16],
        "mean": ["a", (1, 2)],
    },
    "whitening": {"normalize": ["no", None]},
    "lda": {"normalize": ["no", TWO]},
    "motion": {
        "components": [0, True],
        "max_step": [0, "a"],
        "window": [0.2, (0, 1), None],
        "parts": [0.5, "a"],
    },
    "augmentation": {"scale": [None, 1.2, (2, 1)], "mean": [0.5, None, (1, 2)], "std": [True, (0, 1, 1)]},
    "views": {"transform": [None, TWO]},
    "embedder": {"network": ["resnet18", 3], "mean": [0.5, None], "std": [(1, 2)], "mirror": ["no"]},
    "layer": {"network": [None, "resnet18"]},
    "maps": {"augmentation": [True, "a"], "amp": [True, "bfloat16"]},
    "attention": {"scale": [1.5, None]},
    "groups": {"module": [None, [NETWORK]], "freeze": ["0.*", None], "lr": [0, "a"]},
    "layers": {"layers": ["0", [0], []]},
    "scores": {"ks": [None, 1.5, (0,)]},
    "joint": {
        "models": [None, [NETWORK]],
        "optimizers": [None, [1]],
        "loss_funcs": [PosetLoss(), None],
        "mining_funcs": [[1], True],
        "lr_schedulers": [[1]],
        "settings": [True],
        "feature_dataset": [True, 1.5],
    },
}
CASES = [(call, name, value) for call, given in WRONG.items() for name in given for value in given[name]]


@pytest.mark.parametrize(
    ("call", "name", "value"), CASES, ids=lambda x: x if isinstance(x, str) else repr(x)[:20]
)
def test_the_message_names_the_option(call, name, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((TypeError, ValueError), match=name):
        CALLS[call](**{name: value})
    assert not any(tmp_path.iterdir())
