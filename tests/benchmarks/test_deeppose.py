"""DeepPose: joints move with their images, masked losses, runs that are killed and gone on with, reports."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch
from benchmark_runs import assert_picture
from learning_runs import brief_run
from pose_trees import person, poses, upright, write_crops, write_leeds, write_mpii

from benchmarks import deeppose
from benchmarks.core import networks as core_networks
from benchmarks.core.architectures import AlexNetConfig
from benchmarks.core.options import FIGURE_SIZES
from benchmarks.data.mpii import load_mpii
from benchmarks.data.poses import load_lsp, load_lspet
from benchmarks.deeppose import judge, labeled, main, mean_pose
from benchmarks.measures.skeletons import LSP_SKELETON, MPII_SKELETON, mirror_joints
from benchmarks.regression import report, training
from benchmarks.regression.model import PoseAugmentation, PoseRegressor, pose_loss
from benchmarks.regression.options import parse
from benchmarks.regression.recipe import Init, PoseRecipe
from benchmarks.regression.training import batches, fit, predict

SHAPE = AlexNetConfig(64, batch_norm=True, fc_dim=8)
RECIPE = PoseRecipe(iterations=10, batch_size=3, dropout=0.3, precision="float32")


# --- Augmentation


SEEN = torch.ones(1, 3, dtype=torch.bool)


def spot_images(joints, side=64):
    """(B, 3, S, S): a smooth spot about each joint, joints about the middle."""
    grid = (torch.arange(side) + 0.5) / side - 0.5
    gap = (grid - joints[..., :1]) ** 2, (grid - joints[..., 1:]) ** 2  # (B, J, S)
    spots = torch.exp(-(gap[1][..., :, None] + gap[0][..., None, :]) / (2 * 0.03**2))
    return spots[:, :3]


def centers(images):
    """(B, 3, 2): the center of mass of each channel, about the middle."""
    side = images.shape[-1]
    grid = (torch.arange(side) + 0.5) / side - 0.5
    mass = images.sum((2, 3))
    return torch.stack([(images.sum(2) * grid).sum(-1) / mass, (images.sum(3) * grid).sum(-1) / mass], -1)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_joints_move_with_their_images(flip):
    torch.manual_seed(0)
    joints = torch.rand(40, 3, 2) * 0.5 - 0.25
    mirror = (1, 0, 2)
    augment = PoseAugmentation(mirror, scale=(0.7, 1.2), shift=0.1, flip=flip)
    images, moved, visible = augment(spot_images(joints), joints, SEEN.expand(40, 3))
    assert visible.all()
    found = centers(images)
    found = found[:, list(mirror)] if flip else found  # the channels stay, the joints change places
    torch.testing.assert_close(moved, found, atol=4e-3, rtol=0)
    assert (moved - joints).abs().max() > 0.05


def test_a_mirror_image_alone_has_mirrored_joints():
    plain = PoseAugmentation(LSP_SKELETON.mirror, (1.0, 1.0), 0.0, 1.0)
    pose = torch.rand(2, 14, 2)
    _, moved, _ = plain(torch.zeros(2, 3, 8, 8), pose - 0.5, SEEN[:, :1].expand(2, 14))
    np.testing.assert_allclose(moved + 0.5, mirror_joints(pose.numpy()), atol=1e-6)


def test_magnification_and_shift_stay_in_their_ranges():
    torch.manual_seed(0)
    ends = torch.tensor([[0.1, 0.0], [-0.1, 0.0], [0.0, 0.0]]).expand(500, 3, 2)
    augment = PoseAugmentation((0, 1, 2), scale=(0.8, 1.1), shift=0.05)
    _, moved, _ = augment(torch.zeros(500, 3, 4, 4), ends, SEEN.expand(500, 3))
    length = (moved[:, 0] - moved[:, 1]).norm(dim=1) / 0.2
    assert 0.8 <= length.min() < 0.82
    assert 1.08 < length.max() <= 1.1 + 1e-6
    assert 0.048 < moved[:, 2].abs().max() <= 0.05
    mirrored = (moved[:, 0, 0] < moved[:, 1, 0]).float().mean()
    assert 0.4 < mirrored < 0.6


def test_missing_joints_stay_missing_and_those_that_leave_go():
    seen = torch.tensor([[True, False, True]])
    joints = torch.tensor([[[0.4, 0.0], [0.1, 0.1], [-0.45, 0.0]]])
    flip = PoseAugmentation((1, 0, 2), scale=(1.0, 1.0), shift=0.0, flip=1.0)
    _, _, visible = flip(torch.zeros(1, 3, 8, 8), joints, seen)
    assert visible.tolist() == [[False, True, True]]
    larger = PoseAugmentation((0, 1, 2), scale=(1.2, 1.2), shift=0.0, flip=0.0)
    _, moved, visible = larger(torch.zeros(1, 3, 8, 8), joints, seen)
    assert visible.tolist() == [[True, False, False]]
    assert moved[0, 2, 0] == pytest.approx(-0.54)


def test_the_same_seed_moves_alike_whatever_was_drawn():
    augment = PoseAugmentation((1, 0, 2))
    batch = spot_images(torch.zeros(4, 3, 2)), torch.zeros(4, 3, 2), SEEN.expand(4, 3)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(augment(*batch)[1])
    assert torch.equal(*results)
    assert augment(*(part[:0] for part in batch))[1].shape == (0, 3, 2)


# --- Loss and network


def test_the_loss_by_loops():
    rng = np.random.default_rng(0)
    predicted, joints = torch.from_numpy(rng.normal(size=(2, 5, 4, 2)))
    visible = torch.from_numpy(rng.random((5, 4)) < 0.6)
    visible[2] = False
    means = []
    for i in range(5):
        terms = [float(((predicted[i, j] - joints[i, j]) ** 2).sum()) for j in range(4) if visible[i, j]]
        if terms:
            means.append(sum(terms) / len(terms))
    assert pose_loss(predicted, joints, visible).item() == pytest.approx(sum(means) / len(means))
    predicted.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pose_loss(x, joints, visible), predicted)
    pose_loss(predicted, joints, visible).backward()
    assert torch.equal((predicted.grad != 0).all(dim=2), visible)
    predicted.grad = None
    loss = pose_loss(predicted, joints, torch.zeros_like(visible))  # nobody to learn from
    loss.backward()
    assert loss.item() == 0
    assert (predicted.grad == 0).all()


def regressor(seed=0, shape=SHAPE, num_joints=14):
    return PoseRegressor(core_networks.build(shape, seed, 0.3), num_joints, seed)


def test_the_network():
    model = regressor().eval()
    images = torch.randn(3, 3, 64, 64)
    before = torch.get_rng_state()
    again = regressor().eval()
    assert torch.equal(torch.get_rng_state(), before)
    assert model(images).shape == (3, 14, 2)
    assert torch.equal(model(images), again(images))
    features = model.embedder(model.trunk(images)).relu()
    expected = features @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(images), expected.view(3, 14, 2))
    assert (model.head.bias == 0).all()
    pose = np.arange(28.0).reshape(14, 2)
    assert PoseRegressor(core_networks.build(SHAPE, 0), 14, 0, pose).head.bias.tolist() == list(range(28))
    wide = regressor(shape=replace(SHAPE, fc_dim=512))
    assert wide.head.weight.std().item() == pytest.approx(0.01, rel=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images).dtype == torch.float32


# --- Training


@pytest.fixture(scope="module")
def crops():
    """Images of 10 people as tensors, their joints, and which can be seen."""
    rng = np.random.default_rng(0)
    joints = 0.1 + 0.8 * upright() + rng.normal(0, 0.02, (10, 14, 2))
    images = (spot_images(torch.from_numpy(joints) - 0.5) * 255).to(torch.uint8)
    visible = rng.random((10, 14)) < 0.8
    joints[~visible] = np.nan
    return images, joints, visible


def learn(crops, recipe=RECIPE, seed=0, rows=None, model=None, **more):
    images, joints, visible = crops
    rows = np.arange(10) if rows is None else rows
    model = regressor(seed) if model is None else model
    people = SimpleNamespace(joints=joints, visible=visible, skeleton=LSP_SKELETON)
    done = fit(model, images, people, rows, recipe, seed=seed, **more)
    return model, done


def same(model, other):
    state = other.state_dict()
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_it_learns_what_it_sees(crops):
    recipe = replace(RECIPE, iterations=16, batch_size=5, lr=0.05, scale=(1.0, 1.0), shift=0.0)
    before = torch.get_rng_state()
    model, done = learn(crops, recipe)
    assert torch.equal(torch.get_rng_state(), before)
    assert done.iterations == list(range(1, 17))
    assert np.mean(done.losses[-5:]) < 0.3 * np.mean(done.losses[:2])
    assert done.seconds > 0
    predicted = predict(model, crops[0], np.array([3, 1]), recipe, batch_size=1)
    both = predict(model, crops[0], np.array([3, 1]), recipe)
    assert predicted.shape == (2, 14, 2)
    np.testing.assert_allclose(predicted, both, atol=1e-5)
    assert ((predicted >= 0) & (predicted <= 1)).all()
    with torch.no_grad():
        model.head.bias += 9
    assert (predict(model, crops[0], np.array([0]), recipe) == 1).all()  # clipped to the box


def test_a_killed_run_goes_on_to_the_same_weights(crops, tmp_path, monkeypatch):
    path, save = tmp_path / "killed.pt", training.save_checkpoint
    given = {"checkpoint": path, "resume": True, "settings": {"data": "a"}}
    whole, curve = learn(crops, **{**given, "checkpoint": tmp_path / "whole.pt"})

    def killed(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "_RECORDS", 5)  # a record every 2 iterations, a save every 2
        patch.setattr(training, "save_checkpoint", killed)
        for stopped_at in (2, 4):
            with pytest.raises(KeyboardInterrupt):
                learn(crops, **given)
            assert torch.load(path, weights_only=True)["iteration"] == stopped_at
    torch.manual_seed(99)
    resumed, rest = learn(crops, **given)
    assert same(whole, resumed)
    assert rest.iterations == [2, 4, *range(5, 11)]
    assert rest.losses[2:] == curve.losses[4:]
    assert rest.losses[0] == pytest.approx(np.mean(curve.losses[:2]))
    again, done = learn(crops, model=regressor(5), **given)
    assert same(again, whole)  # nothing is left to do
    assert done.losses == rest.losses
    assert torch.load(path, weights_only=True)["optimizer"] is None  # of no use any more
    for changed in ({"recipe": replace(RECIPE, lr=0.5)}, {"settings": {"data": "b"}}, {"seed": 1}):
        with pytest.raises(ValueError, match="belongs to another run"):
            learn(crops, **{**given, **changed})
    with pytest.raises(ValueError, match="does not fit this run"):
        learn(crops, model=regressor(num_joints=3), **given)


@pytest.mark.parametrize("optimizer", ["adagrad", "sgd"])
def test_frozen_convolutions(crops, optimizer):
    few = {"iterations": 2, "frozen_iterations": 2, "schedule": "constant", "lr": 0.01}
    recipe = replace(RECIPE, optimizer=optimizer, **few)
    model, _ = learn(crops, recipe)
    start = regressor()
    assert all(map(torch.equal, start.trunk.parameters(), model.trunk.parameters()))
    assert not torch.equal(start.head.weight, model.head.weight)
    assert all(value.requires_grad for value in model.parameters())
    model, _ = learn(crops, replace(recipe, frozen_iterations=1))
    assert not torch.equal(start.trunk.features[0].weight, model.trunk.features[0].weight)


def test_frozen_parameters(crops):
    model, start = regressor(), regressor()
    core_networks.freeze(model.trunk, ("features.0.*",))
    learn(crops, replace(RECIPE, iterations=2, frozen_iterations=1), model=model)
    stayed = [*map(torch.equal, start.trunk.parameters(), model.trunk.parameters())]
    assert stayed[:2] == [True, True]
    assert not any(stayed[2::2])  # the weights of the rest
    assert [p.requires_grad for p in model.trunk.parameters()] == [i > 1 for i in range(len(stayed))]


def test_bad_runs(crops):
    with pytest.raises(ValueError, match="nobody to learn from"):
        learn(crops, rows=np.array([], np.int64))
    wild = replace(RECIPE, iterations=40, lr=1e6, optimizer="sgd", schedule="constant")
    text = r"the loss of here is (nan|inf) at iteration \d+: lower --lr"
    with pytest.raises(FloatingPointError, match=text):
        learn(crops, wild, name="here")


def test_bfloat16(crops):
    model, done = learn(crops, replace(RECIPE, iterations=2, precision="bfloat16"))
    assert np.isfinite(done.losses).all()
    assert predict(model, crops[0], np.arange(2), RECIPE).dtype == np.float32


def test_batches_are_passes_over_the_rows():
    rows = np.array([7, 9, 2, 5, 4])
    drawn = list(batches(rows, 3, 0, 10, seed=4))
    passes = np.array(drawn).reshape(6, 5)
    assert (np.sort(passes) == [2, 4, 5, 7, 9]).all()
    assert len(np.unique(passes, axis=0)) > 3
    assert list(batches(rows, 3, 4, 10, seed=4)) == drawn[4:]  # whatever came before
    assert list(batches(rows, 3, 0, 10, seed=5)) != drawn
    assert list(batches(np.array([3]), 4, 0, 2, seed=0)) == [[3] * 4] * 2
    assert list(batches(rows, 12, 0, 1, seed=4)) == [passes.reshape(-1)[:12].tolist()]


# --- Budgets, beginnings, scores


def test_budgets_are_nested_and_drawn_by_the_seed():
    everybody = np.arange(100, 300)
    small, middle, large = (labeled(everybody, fraction, 3) for fraction in (0.01, 0.1, 1.0))
    assert (len(small), len(middle), len(large)) == (2, 20, 200)
    assert set(small) < set(middle) < set(large) == set(everybody)
    assert set(labeled(everybody, 0.1, 4)) != set(middle)
    assert len(labeled(everybody, 1e-9, 0)) == 1


def test_the_mean_pose_by_loops(leeds):
    data = load_lspet(leeds / "lspet")
    joints, rows = data.joints.copy(), np.array([2, 0, 5, 1])
    joints[:, [0, 5]] = np.nan  # ankles that nobody has
    data = replace(data, joints=joints, visible=np.isfinite(joints).all(axis=2))
    found = mean_pose(data, rows)
    for j in range(14):
        seen = [joints[i, j] for i in rows if data.visible[i, j]]
        other = data.skeleton.mirror[j]
        seen += [(1 - joints[i, other, 0], joints[i, other, 1]) for i in rows if data.visible[i, other]]
        expected = np.mean(seen, axis=0) if seen else [0.5, 0.5]
        np.testing.assert_allclose(found[j], expected, rtol=1e-6)
    assert found[0].tolist() == [0.5, 0.5]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoint of a tiny run of posets, and its networks."""
    folder = tmp_path_factory.mktemp("posets")
    joint, _ = brief_run(folder, ema=0.5)
    return folder / "checkpoint.pt", joint.evaluation_models


@pytest.mark.parametrize("layers", ["pool5", "fc6", "fc7"])
def test_layers_come_from_the_checkpoint(trained, layers):
    path, networks = trained
    models = Init("posets", "posets", path).models(SHAPE, layers, seed=7, dropout=0.0)
    fresh = core_networks.build(SHAPE, 7)
    assert same(networks["trunk"][1], models["trunk"])  # behind the augmentation; the average
    for name, taken in (("fc6", layers != "pool5"), ("fc7", layers == "fc7")):
        expected = (networks if taken else fresh)["embedder"].get_submodule(name)
        assert same(models["embedder"].get_submodule(name), expected)


def test_layers_come_from_imagenet(tmp_path, monkeypatch):
    def load(models, config, path):  # the real one is tested with the networks
        assert path == init.path
        for model in models.values():
            for value in model.parameters():
                value.data.fill_(0.25)

    init = Init("imagenet", "imagenet", tmp_path / "alexnet.pth")
    assert init.shape(SHAPE) == AlexNetConfig()  # its own, whatever the others have
    monkeypatch.setattr(core_networks, "load_imagenet", load)
    monkeypatch.setattr(Init, "shape", lambda self, shape: shape)
    models = init.models(SHAPE, "fc6", seed=7, dropout=0.0)
    parts = (models["trunk"], *(models["embedder"].get_submodule(name) for name in ("fc6", "fc7")))
    given = [all((value == 0.25).all() for value in part.parameters()) for part in parts]
    assert given == [True, True, False]


def test_scores(tmp_path):
    joints = poses(6, skeleton=MPII_SKELETON)
    entries = [(f"{i}.jpg", [person(joints[i], head=i % 2 == 0)], 1, joints[i]) for i in range(6)]
    data = load_mpii(*write_mpii(tmp_path, entries), test_share=0.7)
    assert deeppose.measure_of(data) == "pckh"
    true = data.joints[data.test]
    perfect = judge(true, data, "neck")
    assert perfect["pckh_total"] == perfect["pckh/ankle"] == 100
    assert (perfect["judged"], perfect["not_judged"], perfect["distance"]) == (64, 0, 0)

    def with_ankles_off(size):
        """One ankle within half of the size, one beyond."""
        off = true.copy()
        off[:, 0, 0] += 0.49 * size
        off[:, 5, 0] += 0.51 * size
        return off

    neck = np.linalg.norm(true[:, 9] - true[:, 8], axis=1)
    assert judge(with_ankles_off(neck), data, "neck")["pckh/ankle"] == 50
    # the head box is 8 px wide and as high as head top and neck are apart
    boxes = data.head_boxes[data.test]
    size = 0.6 * np.linalg.norm(boxes[:, 2:] - boxes[:, :2], axis=1)
    unknown = np.isnan(size).sum()
    assert 0 < unknown < 4
    boxed = judge(with_ankles_off(np.nan_to_num(size, nan=9)), data, "box")
    assert (boxed["pckh/ankle"], boxed["not_judged"]) == (50, 16 * unknown)
    with pytest.raises(ValueError, match="has no head boxes: use --head-size neck"):
        judge(true, replace(data, head_boxes=None), "box")


# --- The command


@pytest.fixture(scope="module")
def leeds(tmp_path_factory):
    """LSP as crops and LSPET as released, 16 and 14 people."""
    root = tmp_path_factory.mktemp("leeds")
    unit = (poses(16) - (15, 5)) / (100, 90)
    write_crops(root / "lsp", unit, np.zeros((16, 14)))
    flags = np.ones((14, 14))
    flags[2, 5:] = flags[3] = 0
    write_leeds(root / "lspet", poses(14, seed=1), flags, digits=5, extended=True)
    return root


def arguments(root, output, *more):
    recipe = ["--fc-dim", "8", "--iterations", "3", "--batch-size", "4", "--precision", "float32"]
    shared = ["--cache", root / "cache", "--workers", "0", "--device", "cpu", "--quiet", *recipe]
    data = [] if "--mpii-images" in more else ["--data-root", root / "lsp", "--extra-root", root / "lspet"]
    return [str(a) for a in (*data, "--output", output, *shared, *more)]


def rows_of(folder):
    rows = json.loads((folder / "results.json").read_text())
    return {(row["method"], row["settings"]["num_labels"], row["seed"]): row for row in rows}


@pytest.fixture(scope="module")
def whole(leeds, trained, tmp_path_factory):
    """A run of two beginnings with two budgets under two seeds."""
    folder = tmp_path_factory.mktemp("whole")
    more = ("--init", "random", "--init", "posets", trained[0], "--label-fraction", "1", "0.2")
    assert main(arguments(leeds, folder, *more, "--seed", "0", "1")) == 0
    return folder, more


def test_rows_and_files(whole):
    folder, _ = whole
    rows = rows_of(folder)
    assert set(rows) == {(m, n, s) for m in ("random", "posets") for n in (4, 21) for s in (0, 1)}
    shared = {"num_train": 21, "num_test": 8, "image_size": 64, "fc_dim": 8, "iterations": 3}
    for (method, _, _), row in rows.items():
        assert row["dataset"] == "LSP+LSPET"
        metrics, settings = row["metrics"], row["settings"]
        parts = [metrics[f"pcp/{part}"] for part in LSP_SKELETON.parts]
        assert metrics["pcp_total"] == pytest.approx(np.mean(parts))
        assert metrics["judged"] + metrics["not_judged"] == 80
        assert metrics["distance"] > 0
        assert settings.items() >= {"init": method, **shared}.items()
        assert settings["left_out"] == {"no joint annotated": 1}
        assert ("init_id" in settings) == (method == "posets")
    assert len({row["metrics"]["distance"] for row in rows.values()}) == 8
    text = (folder / "table.md").read_text()
    for line in (
        "| random                     | 4      |",
        "| posets                     | 21     |",
        "| paper (LSP): posets        | 11000  | 89.7 | 62.1 | 48.2 | 36.0 | 16.0 | 54.2 | 51.0",
        *("± ", "49.3", "42.0", "55.7", "square crops, 1.3 times"),
    ):
        assert line in text
    for name in ("poses.png", "loss.png"):
        assert_picture(folder / name)
    home = folder / "posets-labels0.2-seed1"
    with np.load(home / "predictions.npz") as found:
        assert found["joints"].shape == (8, 14, 2)
        assert found["iterations"].tolist() == [1, 2, 3]
    assert torch.load(home / "checkpoint.pt", weights_only=True)["iteration"] == 3


def test_rows_that_are_there_are_kept(whole, leeds, tmp_path, capsys, monkeypatch):
    folder, more = whole
    shutil.copytree(folder, tmp_path / "run")
    given = arguments(leeds, tmp_path / "run", *more)
    with pytest.raises(FileExistsError, match="holds a run already"):
        main(given)
    # one row is gone, as after a kill; another was never there
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    gone = [row for row in rows if row["settings"]["num_labels"] != 21]
    (tmp_path / "run" / "results.json").write_text(json.dumps(gone))
    counted = create_autospec(training.fit, side_effect=training.fit)
    monkeypatch.setattr(training, "fit", counted)
    assert main([*given, "--resume"]) == 0
    fits = [call.kwargs["name"] for call in counted.call_args_list]
    assert fits == ["random-labels1-seed0", "posets-labels1-seed0"]
    assert capsys.readouterr().out.count("is there already") == 2
    before, after = rows_of(folder), rows_of(tmp_path / "run")
    assert set(after) == {key for key in before if key[1] == 4 or key[2] == 0}
    for key, row in after.items():  # from the finished checkpoints: the very numbers
        assert row["metrics"] == before[key]["metrics"]
    with pytest.raises(ValueError, match=r"random with 0\.2 of the labels, seed 0, of other settings.*lr 0"):
        main([*given, "--resume", "--lr", "0.5"])
    without_extra = [word for word in given if word not in ("--extra-root", str(leeds / "lspet"))]
    with pytest.raises(ValueError, match="is of other data"):
        main([*without_extra, "--resume"])


def test_mpii_as_a_command(leeds, tmp_path, capsys):
    people = enumerate(poses(20, skeleton=MPII_SKELETON))
    entries = [(f"{i:03d}.jpg", [person(joints)], 1, joints) for i, joints in people]
    annotation, images = write_mpii(tmp_path / "mpii", entries)
    mpii = ("--mpii-annotations", annotation, "--mpii-images", images, "--label-fraction", "0.5")
    shape = ("--image-size", "64", "--batch-norm")
    assert main(arguments(leeds, tmp_path / "run", *mpii, *shape, "--head-size", "box")) == 0
    ((key, row),) = rows_of(tmp_path / "run").items()
    assert key == ("random", 9, 0)
    assert (row["dataset"], row["settings"]["head_size"]) == ("MPII", "box")
    names = {name.removeprefix("pckh/") for name in row["metrics"] if name.startswith("pckh/")}
    assert names == report.MPII["posets"].keys() - {"total"}
    text = capsys.readouterr().out
    assert "PCKh@0.5 in percent, by MPII's head box" in text
    assert "| paper (MPII): posets        | 17928  | 83.8" in text


def test_drawn_figures(tmp_path, capsys, monkeypatch):
    small = {"sports": ("run",), "num_sources": 4, "num_clips": 1, "num_frames": 3, "num_anchors": 2}
    monkeypatch.setitem(FIGURE_SIZES, "tiny", small)
    options = ["--figures", "tiny", "--preset", "tiny", "--iterations", "1", "--batch-size", "2"]
    more = ["--cache", str(tmp_path / "cache"), "--workers", "1", "--quiet", "--label-fraction", "0.3"]
    assert main([*options, *more, "--output", str(tmp_path / "run")]) == 0
    assert "figures-tiny: 12 people, 9 to learn from, 3 to test on" in capsys.readouterr().out
    assert list(rows_of(tmp_path / "run")) == [("random", 3, 0)]
    again = ["--data-root", str(tmp_path / "cache" / "figures-tiny"), *options[2:], *more]
    assert main([*again, "--output", str(tmp_path / "run"), "--resume"]) == 0
    assert "is there already" in capsys.readouterr().out


def test_the_table_of_the_paper():
    for values in (*report.LSP.values(), *report.MPII.values()):
        *parts, total = values.values()
        assert total == pytest.approx(np.mean(parts), abs=0.11)


def test_defaults(trained):
    init = ("--init", "posets", str(trained[0]))
    options = parse(init)
    assert options.recipe.architecture == SHAPE  # of the checkpoint
    assert (options.preset, options.label_fraction) == ("figures", [0.01, 0.1, 1.0])
    assert [init.name for init in options.inits] == ["posets"]
    assert parse([*init, "--init-layers", "pool5", "--fc-dim", "32"]).recipe.fc_dim == 32
    paper = parse(["--preset", "paper", "--data-root", "lsp", "--precision", "float32"]).recipe
    assert paper.architecture == AlexNetConfig()
    assert (paper.optimizer, paper.lr, paper.batch_size) == ("adagrad", 5e-4, 128)
    assert parse(["--data-root", "lsp"]).preset == "small"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "pace=1"], "--set pace=1: give name=value; --set help lists"),
        (["--iterations", "0"], "--iterations must be at least 1, got 0"),
        (["--batch-size", "1"], "--batch-size must be at least 2, got 1"),
        (["--lr", "0"], "--lr must be above 0, got 0"),
        (["--set", "lr=nan"], "--lr must be"),
        (["--set", "weight_decay=-1"], "--weight-decay must be at least 0"),
        (["--set", "dropout=1"], "--dropout must be below 1, got 1"),
        (["--set", "frozen_iterations=-1"], "--frozen-iterations must be at least 0"),
        (["--set", "shift=2"], "--shift must be at most 1, got 2"),
        (["--init", "best"], "--init must be one of random, pretrained, posets, imagenet, got 'best'"),
        (["--init", "random", "x"], "--init random x: expected --init random"),
        (["--init", "posets"], r"--init posets: expected --init posets FILE \[NAME\]"),
        (["--init", "posets", "none.pt"], "--init posets: there is no file none.pt"),
        (["--init", "imagenet", "FILE", "name"], "expected --init imagenet FILE"),
        (["--init", "posets", "FILE", "a/b"], "a name is of letters"),
        (["--init", "posets", "FILE", "--init", "posets", "FILE"], "posets is there twice"),
        (["--init", "posets", "FILE", "--fc-dim", "16"], "is of another architecture"),
        (["--init", "imagenet", "FILE"], "does not fit this AlexNet|holds no state_dict"),
        (["--init", "pretrained"], "--trunk alexnet has no weights of its own, use --init random"),
        (["--trunk", "resnet18", "--init-layers", "fc6"], "is AlexNet's: of resnet18 take pooled"),
        (["--trunk", "hog"], "--trunk hog is of a checkpoint alone"),
        (["--label-fraction", "0"], "--label-fraction must lie above 0 and up to 1, got 0"),
        (["--label-fraction", "1.5"], "--label-fraction must lie above 0"),
        (["--mpii-images", "a"], "belong together"),
        (["--mpii-images", "a", "--mpii-annotations", "b", "--data-root", "c"], "stands in place of"),
        (["--mpii-people", "all"], "--mpii-people is for --mpii-annotations"),
        (["--head-size", "box"], "--head-size is for --mpii-annotations"),
        (["--extra-root", "a"], "beside --data-root"),
        (["--skip-unreadable"], "drawn figures can be read"),
        (["--figures", "tiny", "--data-root", "a"], "--figures are drawn where there is no --data-root"),
        (["--seed", "-1"], "must be 0 or more"),
        (["--workers", "-1"], "--workers must be 0 or more"),
        (["--resume"], "--resume needs --output"),
    ],
)
def test_options_are_checked(trained, options, message):
    with pytest.raises(ValueError, match=message):
        parse([str(trained[0]) if word == "FILE" else word for word in options])


def test_settings_are_given_by_name():
    words = ["--set", "lr=0.5", "mean-pose=no", "scale=0.9,1.2", "--seed", "3", "--set", "fc_dim=32"]
    options = ["--lr", "0.5", "--no-mean-pose", "--scale", "0.9", "1.2", "--seed", "3", "--fc-dim", "32"]
    found, expected = (parse(["--data-root", "lsp", *given]) for given in (words, options))
    assert (found.recipe, found.seed) == (expected.recipe, [3])
    assert (found.recipe.lr, found.recipe.mean_pose, found.recipe.scale) == (0.5, False, (0.9, 1.2))


def test_a_trunk_that_brings_weights(leeds, tmp_path, monkeypatch):
    nn = torch.nn
    layers = nn.Conv2d(3, 6, 3, 4), nn.ReLU(), nn.Conv2d(6, 5, 3)
    monkeypatch.setattr(core_networks, "_function", lambda config: lambda: nn.Sequential(*layers))
    more = ("--trunk", "mine:small", "--freeze", "features.0.*", "--label-fraction", "1")
    assert main(arguments(leeds, tmp_path, *more)) == 0
    ((key, row),) = rows_of(tmp_path).items()
    assert key == ("pretrained", 21, 0)
    settings = row["settings"]
    assert (settings["trunk"], settings["freeze"], settings["fc_dim"]) == ("mine:small", ["features.0.*"], 8)
    with pytest.raises(ValueError, match="has weights of its own, use --init pretrained"):
        parse(["--trunk", "mine:small", "--init", "random"])


def test_what_fails_leaves_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither joints\.mat"):
        main(["--data-root", str(tmp_path), "--output", str(tmp_path / "a"), "--cache", str(tmp_path / "b")])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged or none"):
        parse(["--init", "posets", str(tmp_path / "checkpoint.pt")])


def test_real_people_are_masked_as_annotated(shared_data):
    data = load_lsp(shared_data / "lsp")
    score = judge(np.nan_to_num(data.joints[data.test]), data, "neck")
    assert score["pcp_total"] == 100
    assert (score["judged"], score["not_judged"]) == (9998, 2)
