"""The embedded figures: the layout, the truth, and that the seed decides everything."""

import hashlib
import json
import shutil
from dataclasses import replace

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
from benchmarks.figures.motion import (
    JOINT_NAMES,
    MIRRORED_JOINTS,
    PARAMETERS,
    SPORTS,
    Body,
    perform,
    project,
)
from benchmarks.measures.postures import RetrievalLabels

SMALL = {"sports": ("run", "star_jump"), "num_sources": 4, "num_clips": 2, "num_frames": 5, "num_anchors": 8}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures") / "small"
    return folder, make_figures(folder, seed=3, num_workers=2, **SMALL)


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


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


def test_the_figure_is_painted_where_the_joints_are(tmp_path):
    # Shirts are vivid, most of the background is not: the belly joint must lie on the shirt in every frame.
    plain = {
        "sports": ("star_jump",),
        "num_sources": 2,
        "num_clips": 1,
        "num_frames": 4,
        "blur": 0.0,
        "vividness": 0.0,
    }
    truth = make_figures(tmp_path / "a", seed=1, num_workers=1, **plain)
    tree = load_tree(tmp_path / "a")
    frames = OlympicFrames(tree)
    for i in range(len(tree)):
        pixels = np.asarray(frames[i], dtype=float)
        x, y = (truth.joints[i, 1] * len(pixels)).astype(int)
        shirt = pixels[y - 1 : y + 2, x - 1 : x + 2].mean(axis=(0, 1))
        assert np.ptp(shirt) > 40


def test_the_seed_decides_every_byte(made, tmp_path):
    folder, _ = made
    make_figures(tmp_path / "again", seed=3, num_workers=1, **SMALL)
    make_figures(tmp_path / "other", seed=4, num_workers=1, **SMALL)
    first, again, other = digests(folder), digests(tmp_path / "again"), digests(tmp_path / "other")
    assert first == again
    assert first.keys() == other.keys()
    images = [name for name in first if name.endswith(".jpg")]
    assert len(images) == 80
    assert all(first[name] != other[name] for name in images)


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


def test_true_poses_retrieve_perfectly(made):
    folder, truth = made
    poses, mirrored = truth.poses, mirrored_poses(truth.poses)
    for labels in load_tree(folder).dataset_labels().values():
        for i, anchor in enumerate(labels.anchors):
            near, far = (
                np.linalg.norm(
                    np.where(flips[:, None, None], mirrored[ids], poses[ids]) - poses[anchor], axis=-1
                ).sum(axis=1)
                for ids, flips in (
                    (labels.pos_ids[i], labels.pos_flips[i]),
                    (labels.neg_ids[i], labels.neg_flips[i]),
                )
            )
            assert near.max() < far.min()


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

    tiny = SMALL | {"num_sources": 2, "num_clips": 1, "num_frames": 2}
    with monkeypatch.context() as patch:
        patch.setattr(figures, "_write_annotation", fail)
        with pytest.raises(RuntimeError, match="out of light"):
            make_figures(tmp_path / "figures", num_workers=1, **tiny)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "figures").mkdir()  # an empty folder may be filled
    make_figures(tmp_path / "figures", num_workers=1, image_format="png", **tiny)
    assert json.loads((tmp_path / "figures" / "figures.json").read_text())["image_format"] == "png"
    assert len(OlympicFrames(load_tree(tmp_path / "figures"))) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]


def test_a_worker_that_fails_says_why(tmp_path):
    with pytest.raises(TypeError, match="multiply sequence"):
        figures._render(tmp_path / "work", FigureSettings(sports=("run",), num_sources=2, size="?"), 2)


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (lambda r: (r / "joints" / "joints_run.npz").write_bytes(b"PK"), r"joints_run\.npz is damaged"),
        (
            lambda r: np.savez(r / "joints" / "joints_run.npz", joints=np.zeros(3)),
            r"joints_run\.npz lacks poses",
        ),
        (lambda r: shutil.rmtree(r / "joints"), r"holds no joints/joints_<sport>\.npz"),
        (lambda r: (r / "figures.json").write_text("[1]"), "holds something else than embedded figures"),
    ],
)
def test_damaged_trees_of_figures(tmp_path, harm, text):
    tiny = {"sports": ("run",), "num_sources": 2, "num_clips": 1, "num_frames": 2}
    make_figures(tmp_path / "tree", num_workers=1, **tiny)
    harm(tmp_path / "tree")
    with pytest.raises(ValueError, match=text):
        make_figures(tmp_path / "tree", num_workers=1, **tiny)


def test_clips_of_a_source_share_scene_and_person(made):
    folder, truth = made
    tree = load_tree(folder)
    frames = OlympicFrames(tree)
    colors = np.empty((len(tree), 3))
    for i in range(len(tree)):
        pixels = np.asarray(frames[i], dtype=float)
        x, y = (truth.joints[i, 1] * len(pixels)).astype(int)
        shirt = pixels[y - 3 : y + 4, x - 3 : x + 4].mean(axis=(0, 1))
        colors[i] = shirt / shirt.sum()  # exposure differs between clips
    gap = np.linalg.norm(colors[:, None] - colors[None], axis=2)
    same_source = tree.sources[:, None] == tree.sources[None]
    same_clip = tree.sequences[:, None] == tree.sequences[None]
    assert np.median(gap[same_source & ~same_clip]) < 0.5 * np.median(gap[~same_source])


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
    assert len(settings.sports) >= 4
    count = len(settings.sports) * settings.num_sources * settings.num_clips * settings.num_frames
    assert 2000 <= count <= 3000
    with pytest.raises(ValueError, match="blur"):
        replace(settings, blur=9.0).check()


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
    assert flip[[0, 1, 2, 3], [0, 1, 2, 3]].tolist() == [False, False, True, True]
    for q in range(4):
        for n in range(6):
            plain, turned = (
                np.mean([np.linalg.norm(queries[q, j] - p[j]) for j in range(15)])
                for p in (poses[n], mirrored_poses(poses)[n])
            )
            assert distance[q, n] == pytest.approx(min(plain, turned), abs=1e-5)


@pytest.mark.parametrize("name", SPORTS)
def test_bodies_keep_their_bones(name):
    body = Body.vary(np.random.default_rng(5))
    poses = perform(SPORTS[name], np.linspace(0, 1, 40, endpoint=False), np.random.default_rng(6))
    points = body.points(poses)
    place = {joint: i for i, joint in enumerate(JOINT_NAMES)}
    for a, b, length in (
        ("right_hip", "right_knee", body.thigh),
        ("left_knee", "left_ankle", body.shin),
        ("left_shoulder", "left_elbow", body.upper_arm),
        ("right_elbow", "right_wrist", body.forearm),
        ("right_hip", "left_hip", 2 * body.hips),
        ("right_shoulder", "left_shoulder", 2 * body.shoulders),
    ):
        found = np.linalg.norm(points[:, place[a]] - points[:, place[b]], axis=1)
        np.testing.assert_allclose(found, length, atol=1e-9)
    seen = project(points, 30.0, 5.0, 2.0)
    np.testing.assert_allclose(
        np.linalg.norm(seen[:, 7] - seen[:, 11], axis=1), np.linalg.norm(points[:, 7] - points[:, 11], axis=1)
    )
    # A cycle moves, closes, and never jumps from one fortieth to the next.
    step = np.linalg.norm(np.diff(points, axis=0, append=points[:1]), axis=2).max()
    assert 0.02 < step < 0.45


def test_axes():
    rest = np.zeros((1, len(PARAMETERS)))
    place = {joint: i for i, joint in enumerate(JOINT_NAMES)}

    def moved(**values):
        pose = rest.copy()
        for key, value in values.items():
            pose[0, PARAMETERS.index(key)] = value
        return Body().points(pose)[0] - Body().points(rest)[0]

    assert moved(flex_r=90)[place["right_wrist"], 0] > 0.2  # forward
    assert moved(spread_l=90)[place["left_wrist"], 2] < -0.2  # to the athlete's left
    assert moved(knee_r=90)[place["right_ankle"], 0] < -0.2
    assert moved(elbow_l=90)[place["left_wrist"], 0] > 0.1
    assert moved(lean=45)[place["neck"], 0] > 0.15
    assert moved(twist=45)[place["right_shoulder"], 0] < -0.05
    points = Body().points(rest)
    assert (
        project(points, 0.0)[0, 18, 0] > project(points, 0.0)[0, 13, 0]
    )  # the toes point right in a side view
    assert project(points, 90.0)[0, 18, 2] > project(points, 90.0)[0, 13, 2]  # and at us in a front view
    assert project(points, 0.0)[0, 2, 1] < project(points, 0.0)[0, 13, 1]  # y down


def test_ids_of_labels_are_those_of_the_category(made):
    folder, _ = made
    labels = load_tree(folder).labels["star_jump"]
    assert isinstance(labels, RetrievalLabels)
    assert labels.max_id < 40
