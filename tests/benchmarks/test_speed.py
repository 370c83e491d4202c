"""The speed benchmark in tiny sizes: every part writes rows; memory is foreseen."""

import json
import math
import re
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import speed
from benchmarks.timing import clock, graph, loss, plan, planted, training, ystep
from pml_posets.grouping.surrogate import SurrogateGrouping
from pml_posets.neighbors.nearest import search
from pml_posets.posets import Posets
from pml_posets.samplers.pseudo_label import PseudoLabelSampler

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    *("--quiet", "--repeats", "1", "--samples", "600", "--dim", "16", "--batch-sizes", "16"),
    *("--loss-dim", "8", "--image-size", "64", "--batch-size", "8", "--steps", "1", "--images", "2"),
    *("--workers", "0", "--nodes", "800", "--degree", "16", "--graph-dim", "4"),
]


@pytest.fixture
def here(monkeypatch):
    """Parts in this process, as a fresh one takes seconds to import torch; and a network of one layer."""

    def thin():
        layers = {"conv": nn.Conv2d(3, 512, 8, 64), "flat": nn.Flatten(), "fc": nn.Identity()}
        return nn.Sequential(OrderedDict(layers))

    monkeypatch.setattr(plan, "in_child", lambda function, *arguments, threads=0: function(*arguments))
    monkeypatch.setattr(training, "_NUM_IMAGES", 32)
    monkeypatch.setattr(training, "resnet18", thin)


def rows_of(folder, *options):
    assert speed.main(["--output", str(folder), *TINY, *options]) == 0
    return json.loads((folder / "results.json").read_text())


def test_training_of_another_network_and_precision(here, tmp_path):
    rows = rows_of(tmp_path, "--part", "training", "--network", "resnet18", "--bfloat16", "--channels-last")
    assert {row["dataset"] for row in rows} == {"resnet18, 64 px, batch 8, bfloat16, channels last"}


@pytest.mark.parametrize("part", [part for part in speed.PARTS if part != "startup"])
def test_a_part_writes_rows(here, tmp_path, capsys, part):
    if part == "hog":
        pytest.importorskip("skimage")
    rows = rows_of(tmp_path, "--part", part)
    assert {row["settings"]["part"] for row in rows} == {part}
    for row in rows:
        ratios = [v for k, v in row["metrics"].items() if re.search("over_|^of_|times_", k)]
        assert all(value > 0 and math.isfinite(value) for value in ratios)
        assert ratios or part == "graph"
    assert part in (tmp_path / "table.md").read_text()
    if part in ("training", "feeding") and not torch.cuda.is_available():
        assert "torch sees no GPU" in capsys.readouterr().out


def test_rows_that_are_there_are_left_out(here, tmp_path, monkeypatch):
    rows_of(tmp_path, "--part", "graph")
    with pytest.raises(ValueError, match="holds rows already: go on with --resume"):
        rows_of(tmp_path, "--part", "graph")
    monkeypatch.setattr(plan.graph, "time_graph", lambda *_: pytest.fail("timed again"))
    rows_of(tmp_path, "--part", "graph", "--resume")
    with pytest.raises(pytest.fail.Exception):
        rows_of(tmp_path, "--part", "graph", "--resume", "--nodes", "900")
    with pytest.raises(ValueError, match=r"rows of other settings: y-step, seed 0 \(threads 0, here 1"):
        rows_of(tmp_path, "--part", "graph", "--resume", "--threads", "1")


@pytest.mark.parametrize(
    ("option", "value", "least"), [("--repeats", 0, 1), ("--samples", 10, 500), ("--batch-sizes", 4, 16)]
)
def test_wrong_options_are_told(option, value, least):
    with pytest.raises(ValueError, match=f"{option} must be {least} or more, got {value}"):
        speed.parse([option, str(value)])


def test_turns_alternate():
    done = []
    times = clock.in_turns({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, 2, "", True)
    assert done == ["a", "b"] * 3
    assert len(times.wall["a"]) == 2
    times = clock.Times({"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 1.0]}, {})
    assert times.ratio("a", "b") == 3
    assert times.seconds("a") == 4


def test_planted_postures_are_what_is_near():
    data = planted.plant(2000, 64, seed=0)
    assert data.features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(data.features, axis=1), 1, atol=1e-5)
    assert (data.postures < 0).mean() == pytest.approx(0.1, abs=0.04)
    nearest = search(data.features, 1).indices[:, 0]
    assert (nearest == np.arange(2000) ^ 1).mean() > 0.9  # the other frame of the showing
    others = search(data.features, 1, sources=data.sources).indices[:, 0]
    there = data.postures >= 0
    assert (data.postures[others] == data.postures)[there].mean() > 0.7
    again = planted.plant(2000, 64, seed=0)
    np.testing.assert_array_equal(data.features, again.features)


def test_posets_of_two_are_the_first_columns_of_five():
    data = planted.plant(900, 16, seed=0)
    labels = SurrogateGrouping().fit_predict(data.features, sources=data.sources)
    five, two = (Posets.build(data.features, labels, z, sources=data.sources) for z in (5, 2))
    np.testing.assert_array_equal(five.nearest_classes[:, :2], two.nearest_classes)
    np.testing.assert_array_equal(five.nearest_distances[:, :2], two.nearest_distances)


def test_the_defaults_alone_are_timed_apart(here, tmp_path):
    options = ("--part", "ystep", "--method", "exact")
    rows_of(tmp_path, *options)
    rows = rows_of(tmp_path, *options, "--steering", "none", "--resume")
    steered, alone = (row for row in rows if row["method"] == "exact")
    assert alone["settings"]["steering"] == "none"
    assert alone["metrics"]["seconds_assignment"] == 0 < steered["metrics"]["seconds_assignment"]
    data = planted.plant(600, 16, seed=0)
    labels = SurrogateGrouping().fit_predict(data.features, sources=data.sources)
    assert alone["metrics"]["classes"] == labels.max() + 1


def test_what_ships_is_timed(monkeypatch):
    regroup = create_autospec(PseudoLabelSampler.regroup, side_effect=PseudoLabelSampler.regroup)
    monkeypatch.setattr(PseudoLabelSampler, "regroup", regroup)
    data = planted.plant(700, 16, seed=0)
    answer = ystep.y_step(data, "exact")()
    regroup.assert_called_once()
    sampler = regroup.call_args.args[0]
    np.testing.assert_array_equal(answer.labels, sampler.posets.labels)
    neighbors = sampler.grouping.find_neighbors(data.features, sources=data.sources)
    np.testing.assert_array_equal(answer.neighbors, neighbors.indices)
    assert set(answer.seconds) == set(ystep.PHASES)
    assert min(answer.seconds.values()) > 0


def test_recall_by_hand():
    exact = np.array([[1, 2, 3], [4, -1, -1]])
    assert ystep.recall(np.array([[2, 9, 1], [4, -1, -1]]), exact, 2) == pytest.approx(2 / 3)


def test_half_of_a_batch_is_unassigned():
    x, y = loss.make_batch(32, 8, seed=0)
    assert x.shape == (32, 8)
    assert (y < 0).sum() == 16
    assert (y[y >= 0].bincount() == 4).all()


def test_a_loss_that_would_not_fit_is_left_out():
    assert loss.too_large(512, 20 * 10**9) == []
    assert loss.too_large(2048, 20 * 10**9) == ["ntxent", "ntxent-assigned"]
    assert loss.too_large(2048, None) == []


def test_the_graph_is_what_it_says_and_its_classes_are_found():
    features, classes, neighbors = graph.planted_graph(2000, 24, 8, seed=0)
    index = neighbors.indices
    assert index.shape == (2000, 24)
    assert not (index == np.arange(2000)[:, None]).any()
    assert 0 <= index.min() <= index.max() < 2000
    gaps = np.linalg.norm(features[index] - features[:, None], axis=2)
    np.testing.assert_allclose(neighbors.distances, gaps, rtol=1e-4, atol=1e-5)
    assert (np.diff(neighbors.distances, axis=1) >= 0).all()
    planted_ones = classes >= 0
    assert (np.sort(classes[index[planted_ones, :7]], 1) == classes[planted_ones, None]).mean() > 0.99
    assert len(set(map(tuple, np.sort(index, 1).tolist()))) > 1000
    found = graph.time_graph(2000, 24, 8, 0, True)
    assert found["purity"] > 0.99
    assert found["planted_found"] > 0.99


def test_errors_come_back_from_the_child():
    with pytest.raises(ValueError, match=r"invalid literal .* 'no number'"):
        clock.in_child(int, "no number")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_child_ends_with_a_killed_parent():
    script = "import time; from benchmarks.timing import clock; clock.in_child(time.sleep, 300)"
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)

    def children() -> list[str]:
        return Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()

    def sleeping(pid: str) -> bool:
        path = Path(f"/proc/{pid}/cmdline")
        return path.exists() and b"spawn_main" in path.read_bytes()

    until = time.monotonic() + 60
    while not (found := [pid for pid in children() if sleeping(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    assert found
    time.sleep(1)  # the child is being set up
    parent.kill()
    parent.wait()
    while any(map(sleeping, found)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(sleeping, found))
