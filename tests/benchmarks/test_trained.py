"""Networks from checkpoints of the benchmarks: the very weights, and what is said of other files."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.core import alexnet
from benchmarks.core.learning import Start, train
from benchmarks.core.recipes import TINY
from benchmarks.core.trained import config_of, load_trained
from pml_posets.training.checkpoints import save_checkpoint


@pytest.fixture(scope="module", params=[0.0, 0.5], ids=["plain", "average"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    features = rng.normal(size=(24, 6)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    images = torch.from_numpy(rng.integers(0, 255, (24, 3, 64, 64), dtype=np.uint8))
    recipe = replace(
        TINY, rounds=1, iterations=2, batch_size=8, fc_dim=8, ema=request.param, precision="float32",
        top_fraction=0.5, mirror_images=False,
    )  # fmt: skip
    joint = train("posets", images, Start(features), recipe, seed=0, output_dir=folder, progress=False)
    return joint, recipe, folder / "checkpoint.pt"


def test_the_weights_are_those_of_the_run(run):
    joint, recipe, path = run
    assert config_of(path) == replace(recipe.architecture, stem_stride=2)
    models = alexnet.build(config_of(path), seed=5)
    load_trained(models, path)
    for name, model in joint.evaluation_models.items():
        theirs = model[1] if name == "trunk" else model
        for key, value in theirs.state_dict().items():
            torch.testing.assert_close(models[name].state_dict()[key], value, rtol=0, atol=0)


def test_a_trunk_alone(run):
    _, _, path = run
    models = alexnet.build(config_of(path), seed=5)
    load_trained({"trunk": models["trunk"]}, path)


def test_another_architecture(run):
    _, recipe, path = run
    models = alexnet.build(replace(recipe.architecture, fc_dim=16), seed=5)
    before = {key: value.clone() for key, value in models["trunk"].state_dict().items()}
    with pytest.raises(ValueError, match=r"is of another architecture.*embedder fc6.*fc_dim 8"):
        load_trained(models, path)
    for key, value in before.items():
        assert torch.equal(models["trunk"].state_dict()[key], value)


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        config_of(tmp_path / "none.pt")
    save_checkpoint(tmp_path / "a.pt", {"settings": {"seed": 0}})
    with pytest.raises(ValueError, match=r"is of no benchmark's AlexNet \(image_size, batch_norm"):
        config_of(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged or none"):
        load_trained({}, tmp_path / "b.pt")
