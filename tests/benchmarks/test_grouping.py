"""The benchmark of grouping quality: measures against plain loops, rows, wrong options."""

import json
from itertools import permutations

import numpy as np
import pytest
from class_trees import write_folder

from benchmarks import grouping
from benchmarks.grouping import Samples


def test_measures_agree_with_plain_loops():
    rng = np.random.default_rng(0)
    labels, classes = rng.integers(-1, 9, 60), rng.integers(-1, 5, 60)
    labels[labels == 4] = -1
    labels[0] = 9  # a class of one is none
    found = grouping.quality(labels, Samples("some", np.zeros((60, 2)), classes), 0)
    kept = {c: np.flatnonzero(labels == c) for c in range(9) if (labels == c).any()}
    right = [classes[i] == classes[j] != -1 for inside in kept.values() for i, j in permutations(inside, 2)]
    most = 0
    for inside in kept.values():
        own = classes[inside][classes[inside] >= 0]
        most += max([*np.bincount(own), 1 if len(own) < len(inside) else 0])
    members = np.concatenate([*kept.values()])
    assert found == {
        "pairs_right": pytest.approx(np.mean(right)),
        "coverage": pytest.approx((classes[members] >= 0).sum() / (classes >= 0).sum()),
        "classes": len(kept),
        "purity": pytest.approx(most / len(members)),
        "noise": (classes[members] < 0).sum(),
    }


def test_many_pairs_are_drawn_at_random(monkeypatch):
    labels = np.repeat([0, 1, -1], [30, 90, 20])
    monkeypatch.setattr(grouping, "MAX_PAIRS", 2000)
    first, second = grouping.pairs(labels, np.array([30, 90]), 0)
    assert len(first) == 2000
    assert (first != second).all()
    assert (labels[first] == labels[second]).all()
    expected = 30 * 29 / (30 * 29 + 90 * 89)
    assert (labels[first] == 0).mean() == pytest.approx(expected, abs=0.03)


def test_poses_are_alike_wherever_and_however_large_they_are():
    rng = np.random.default_rng(0)
    poses = rng.normal(size=(200, 15, 2))
    poses[1] = 3 * poses[0] + 7
    poses[1, 2] = np.nan
    samples = Samples("poses", np.zeros((200, 2)), poses=poses, sources=np.arange(200) // 2)
    right = samples.right(np.array([0, 0, 0]), np.array([1, 1, 150]))
    assert np.isnan(right[0])  # one source
    apart = Samples("poses", np.zeros((200, 2)), poses=poses, sources=np.arange(200))
    assert apart.right(np.array([0]), np.array([1])).tolist() == [1]
    a, b = rng.integers(0, 200, (2, 5000))
    different = a != b
    assert np.nanmean(apart.right(a, b)[different]) == pytest.approx(grouping.CLOSE, abs=0.02)


def test_every_method_writes_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(grouping, "BLOBS", ((12, 9, 40),))
    arguments = ["--output", str(tmp_path), "--quiet"]
    assert grouping.main(arguments) == 0
    rows = {row["method"]: row["metrics"] for row in json.loads((tmp_path / "results.json").read_text())}
    assert list(rows) == list(grouping.METHODS)
    assert rows["surrogate"]["classes"] == 12
    assert rows["surrogate"]["noise"] == 0
    assert rows["surrogate-paper"]["noise"] > 0
    assert all(0 <= row["pairs_right"] <= 1 and row["cpu_seconds"] > 0 for row in rows.values())
    assert "12 blobs of 9, 40 of noise" in (tmp_path / "table.md").read_text()
    with pytest.raises(ValueError, match="go on with --resume"):
        grouping.main(arguments)
    assert grouping.main([*arguments, "--resume", "--seed", "1", "--method", "dbscan"]) == 0
    assert len(json.loads((tmp_path / "results.json").read_text())) == len(rows) + 1
    assert "dbscan, seed 1" in (tmp_path / "table.md").read_text()
    with pytest.raises(ValueError, match="samples 4000, here 300"):
        grouping.main([*arguments, "--resume", "--samples", "300"])


def test_images_of_a_folder_are_described_once(tmp_path, monkeypatch):
    write_folder(tmp_path / "images", 4, 30)
    arguments = ["--data-root", str(tmp_path / "images"), "--part", "test", "--method", "sure-.4", "--quiet"]
    arguments += ["--cache", str(tmp_path / "cache")]
    assert grouping.main([*arguments, "--output", str(tmp_path / "a")]) == 0
    monkeypatch.setattr(grouping, "HOGLDA", None)  # it is kept
    assert grouping.main([*arguments, "--output", str(tmp_path / "b")]) == 0
    rows = [json.loads((tmp_path / run / "results.json").read_text())[0] for run in "ab"]
    assert rows[0]["dataset"] == "images, test, hog"
    assert rows[0]["metrics"]["pairs_right"] == rows[1]["metrics"]["pairs_right"]


def test_wrong_options_are_told():
    for option, value in (("--samples", "99"), ("--seed", "-1")):
        with pytest.raises(ValueError, match=f"{option} must be"):
            grouping.parse([option, value])
