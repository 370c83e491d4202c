"""The embedded figures: the layout, the truth, and that the seed decides everything."""

import json
import shutil

import numpy as np
import pytest

from benchmarks.data.olympic import OlympicFrames, load_tree
from benchmarks.figures import dataset as figures
from benchmarks.figures.dataset import (
    FigureSettings,
    load_truth,
    make_figures,
    mirrored_poses,
    pose_distances,
)
from benchmarks.figures.motion import JOINT_NAMES, MIRRORED_JOINTS, PARAMETERS, SPORTS, Body, perform, project

SMALL = {"sports": ("run", "star_jump"), "num_sources": 4, "num_clips": 2, "num_frames": 5, "num_anchors": 8}
TINY = {"num_sources": 2, "num_clips": 1, "num_frames": 2, "num_workers": 1}
PLACE = {joint: i for i, joint in enumerate(JOINT_NAMES)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures") / "small"
    return folder, make_figures(folder, seed=3, num_workers=2, **SMALL)


def shirts(tree, truth, reach):
    """(N, 3) mean colors about the belly, which is on the shirt."""
    colors = []
    for frame, joints in zip(OlympicFrames(tree), truth.joints, strict=True):
        x, y = (joints[PLACE["belly"]] * frame.width).astype(int)
        pixels = np.asarray(frame, dtype=float)[y - reach : y + reach + 1, x - reach : x + reach + 1]
        colors.append(pixels.mean(axis=(0, 1)))
    return np.array(colors)


def test_it_is_a_whole_tree(made):
    folder, truth = made
    tree = load_tree(folder)
    assert len(tree) == 2 * 4 * 2 * 5
    assert tree.categories == ("run", "star_jump")
    assert (len(tree.sequence_names), len(tree.source_names), tree.num_anchors) == (16, 8, 16)
    assert tree.source_names[0] == "run_00"
    assert tree.joint_names == truth.joint_names == JOINT_NAMES
    np.testing.assert_array_equal(tree.joints, truth.joints)
    assert truth.poses.shape == (80, 15, 2)
    assert ((truth.phases >= 0) & (truth.phases < 1)).all()
    frames = OlympicFrames(tree)
    for i in (0, 41, 79):
        width, height = frames[i].size
        assert width == height
        assert 40 <= width <= 80
        assert np.asarray(frames[i]).std() > 10


def test_joints_lie_in_the_boxes_where_the_poses_say(made):
    _, truth = made
    assert (np.abs(truth.joints - 0.5) < 0.62).all()
    # A box has one scale, so joints and poses differ by a shift and a factor.
    joints = truth.joints - truth.joints.mean(axis=1, keepdims=True)
    poses = truth.poses - truth.poses.mean(axis=1, keepdims=True)
    factor = np.linalg.norm(joints, axis=(1, 2)) / np.linalg.norm(poses, axis=(1, 2))
    np.testing.assert_allclose(joints, poses * factor[:, None, None], atol=2e-3)
    head, ankles = truth.joints[:, 2, 1], truth.joints[:, 13:15, 1].max(axis=1)
    assert (head < ankles).all()  # y points down
    right, left = (truth.joints[40:, PLACE[f"{side}_shoulder"], 0] for side in ("right", "left"))
    assert (right < left).all()  # whoever jumps faces us, in mirrored pictures too


def test_the_figure_is_painted_where_the_joints_are(tmp_path):
    # Shirts are vivid, the background is not: the belly joint must lie on the shirt in every frame.
    plain = {"sports": ("star_jump",), "blur": 0.0, "vividness": 0.0, **TINY, "num_frames": 4}
    truth = make_figures(tmp_path / "a", seed=1, **plain)
    assert (np.ptp(shirts(load_tree(tmp_path / "a"), truth, 1), axis=1) > 40).all()


def test_clips_of_a_source_share_scene_and_person(made):
    folder, truth = made
    tree = load_tree(folder)
    colors = shirts(tree, truth, 3)
    colors /= colors.sum(axis=1, keepdims=True)  # exposure differs between clips
    gap = np.linalg.norm(colors[:, None] - colors[None], axis=2)
    same_source = tree.sources[:, None] == tree.sources[None]
    same_clip = tree.sequences[:, None] == tree.sequences[None]
    assert np.median(gap[same_source & ~same_clip]) < 0.5 * np.median(gap[~same_source])


def test_the_seed_decides_every_byte(made, tmp_path):
    for seed in (3, 4):
        make_figures(tmp_path / str(seed), seed=seed, num_workers=1, **SMALL | {"sports": ("run",)})
    paths = [path for path in (tmp_path / "3").rglob("*") if path.is_file() and path.name != "figures.json"]
    assert len(paths) == 40 + 8 + 3  # frames; boxes; list, joints and labels
    for path in paths:
        name = path.relative_to(tmp_path / "3")
        assert path.read_bytes() == (made[0] / name).read_bytes()
        assert path.read_bytes() != (tmp_path / "4" / name).read_bytes() or path.suffix == ".txt"


def test_labels_hold_what_they_promise(made):
    folder, truth = made
    tree = load_tree(folder)
    for category, labels in tree.dataset_labels().items():
        part = tree.frames_of(category)
        for i, anchor in enumerate(labels.anchors):
            others = np.flatnonzero(tree.sources != tree.sources[anchor])
            others = others[(others >= part.start) & (others < part.stop)]
            distance, flip = pose_distances(truth.poses[anchor][None], truth.poses)
            assert len(others) == 30
            ranks = np.argsort(np.argsort(distance[0, others]))
            rank = dict(zip(others.tolist(), ranks.tolist(), strict=True))
            assert [rank[int(p)] for p in labels.pos_ids[i]] == list(range(6))  # a fifth, ten at most
            assert sorted(rank[int(n)] for n in labels.neg_ids[i]) == list(range(7, 16))  # 25 % to 55 %
            for kind in ("pos", "neg"):
                ids, flips = getattr(labels, f"{kind}_ids")[i], getattr(labels, f"{kind}_flips")[i]
                np.testing.assert_array_equal(flips, flip[0, ids])


def test_reused_when_whole_and_refused_when_not(made, tmp_path):
    folder, truth = made
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = make_figures(folder, seed=3, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    np.testing.assert_array_equal(again.joints, truth.joints)
    with pytest.raises(ValueError, match=r"figures of other settings.*seed 3 instead of 4"):
        make_figures(folder, seed=4, **SMALL)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else than embedded figures"):
        make_figures(tmp_path / "full", **SMALL)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    with pytest.raises(ValueError, match=r"figures\.json is missing"):
        load_truth(tmp_path / "full")


def test_broken_off_work_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("out of light")

    with monkeypatch.context() as patch:
        patch.setattr(figures, "_write_annotation", fail)
        with pytest.raises(RuntimeError, match="out of light"):
            make_figures(tmp_path / "figures", **TINY)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "figures").mkdir()  # an empty folder may be filled
    make_figures(tmp_path / "figures", image_format="png", **TINY, sports=("run",))
    assert json.loads((tmp_path / "figures" / "figures.json").read_text())["image_format"] == "png"
    assert len(OlympicFrames(load_tree(tmp_path / "figures"))) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (lambda joints: joints.write_bytes(b"PK"), r"joints_run\.npz is damaged"),
        (lambda joints: np.savez(joints, joints=np.zeros(3)), r"joints_run\.npz lacks poses"),
        (lambda joints: shutil.rmtree(joints.parent), r"holds no joints/joints_<sport>\.npz"),
        (lambda joints: (joints.parents[1] / "figures.json").write_text("[1]"), "holds something else than"),
    ],
)
def test_damaged_trees_of_figures(made, tmp_path, harm, text):
    shutil.copytree(made[0], tmp_path / "tree")
    harm(tmp_path / "tree" / "joints" / "joints_run.npz")
    with pytest.raises(ValueError, match=text):
        make_figures(tmp_path / "tree", seed=3, **SMALL)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"sports": ("chess",)}, r"sports must be some of golf, .*got \['chess'\]"),
        ({"sports": ()}, "got none"),
        ({"sports": ("run", "run")}, "sports must differ"),
        ({"num_sources": 1}, "num_sources must be at least 2, got 1"),
        ({"num_frames": 1}, "num_frames must be at least 2"),
        ({"size": 8}, "size must be at least 32"),
        ({"clutter": -1}, r"clutter must be in \[0, 3\]"),
        ({"blur": 9.0}, r"blur must be in \[0, 3\]"),
        ({"image_format": "gif"}, "jpg or png, got 'gif'"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_bad_settings(tmp_path, settings, text):
    with pytest.raises(ValueError, match=text):
        make_figures(tmp_path / "figures", **settings)
    assert list(tmp_path.iterdir()) == []


def test_default_settings_are_sound():
    settings = FigureSettings()
    settings.check()
    assert len(settings.jobs()) * settings.num_clips * settings.num_frames == 2688


def test_mirroring():
    assert (MIRRORED_JOINTS[MIRRORED_JOINTS] == np.arange(15)).all()
    for i, name in enumerate(JOINT_NAMES):
        other = name.replace("right", "?").replace("left", "right").replace("?", "left")
        assert JOINT_NAMES[MIRRORED_JOINTS[i]] == other
    poses = np.random.default_rng(0).normal(size=(6, 15, 2)).astype(np.float32)
    np.testing.assert_array_equal(mirrored_poses(mirrored_poses(poses)), poses)
    queries = np.concatenate([poses[:2] + 0.01, mirrored_poses(poses[2:4])])
    distance, flip = pose_distances(queries, poses)
    assert distance.argmin(axis=1).tolist() == [0, 1, 2, 3]
    assert np.diag(flip).tolist() == [False, False, True, True]
    for q, query in enumerate(queries):
        for n, pair in enumerate(zip(poses, mirrored_poses(poses), strict=True)):
            plain, turned = (np.mean([np.linalg.norm(query[j] - p[j]) for j in range(15)]) for p in pair)
            assert distance[q, n] == pytest.approx(min(plain, turned), abs=1e-5)


@pytest.mark.parametrize("name", SPORTS)
def test_bodies_keep_their_bones(name):
    body = Body.vary(np.random.default_rng(5))
    poses = perform(SPORTS[name], np.linspace(0, 1, 40, endpoint=False), np.random.default_rng(6))
    points = body.points(poses)
    for a, b, length in (
        ("right_hip", "right_knee", body.thigh),
        ("left_knee", "left_ankle", body.shin),
        ("left_shoulder", "left_elbow", body.upper_arm),
        ("right_elbow", "right_wrist", body.forearm),
        ("right_hip", "left_hip", 2 * body.hips),
        ("right_shoulder", "left_shoulder", 2 * body.shoulders),
    ):
        found = np.linalg.norm(points[:, PLACE[a]] - points[:, PLACE[b]], axis=1)
        np.testing.assert_allclose(found, length, atol=1e-9)
    seen = project(points, 30.0, 5.0, 2.0)
    np.testing.assert_allclose(np.linalg.norm(seen[:, 7] - seen[:, 11], axis=1), body.forearm)
    # A cycle moves, closes, and never jumps from one fortieth to the next.
    step = np.linalg.norm(np.diff(points, axis=0, append=points[:1]), axis=2).max()
    assert 0.02 < step < 0.45


def test_axes():
    rest = np.zeros((1, len(PARAMETERS)))
    points = Body().points(rest)

    def moved(name, degrees, joint):
        pose = rest.copy()
        pose[0, PARAMETERS.index(name)] = degrees
        return (Body().points(pose) - points)[0, PLACE[joint]]

    assert moved("flex_r", 90, "right_wrist")[0] > 0.2  # forward
    assert moved("spread_l", 90, "left_wrist")[2] < -0.2  # to the athlete's left
    assert moved("knee_r", 90, "right_ankle")[0] < -0.2
    assert moved("elbow_l", 90, "left_wrist")[0] > 0.1
    assert moved("lean", 45, "neck")[0] > 0.15
    assert moved("twist", 45, "right_shoulder")[0] < -0.05
    side, front = project(points, 0.0)[0], project(points, 90.0)[0]
    assert side[18, 0] > side[13, 0]  # the toes point right in a side view
    assert front[18, 2] > front[13, 2]  # and at us in a front view
    assert side[2, 1] < side[13, 1]  # y down
