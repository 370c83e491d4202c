"""olympic.py as a command on a few drawn figures: its files, its resuming, and what it says to bad input."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_runs import (
    FIGURES,
    LEARNED,
    RECIPE,
    TRUNK,
    assert_picture,
    keep_measured,
    quick,
    rows_of,
    table_of,
    weights,
)

from benchmarks import olympic
from benchmarks.core import common, networks, options, results
from benchmarks.core.architectures import AlexNetConfig
from benchmarks.core.groupings import Plan
from benchmarks.core.losses import feature_loss
from benchmarks.core.recipes import PRESETS
from benchmarks.figures.dataset import make_figures
from benchmarks.olympic import LINE, main, verdict

METHODS = [*LINE.plain, "random", "init", *LEARNED]
ROOT = Path(__file__).resolve().parents[2]
KEYS = ["method", "dataset", "metrics", "settings", "seed", "command", "commit", "versions", "seconds"]
DRAWN = {**FIGURES, "num_sources": 4, "num_frames": 9, "num_anchors": 9}
ROUNDS = ["auc_round_0", "auc_round_1", "auc_round_2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A tree of 72 frames beside the folder for what is made of them once."""
    root = tmp_path_factory.mktemp("data")
    make_figures(root / "tree", num_workers=1, **DRAWN)
    return root


def arguments(data, output, *more):
    tree = [] if "--figures" in more else ["--data-root", data / "tree"]
    return quick(data / "cache", output, *tree, "--iterations", 2, *more)


def rows_after(data, output, *more):
    assert main(arguments(data, output, *more)) == 0
    return rows_of(output)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run of all methods but those that need a file, and of those that learn of some."""
    folder = tmp_path_factory.mktemp("whole")
    rows_after(data, folder, "--method", *METHODS)
    return folder


# --- A whole run


def test_a_row_for_every_method(whole):
    rows = rows_of(whole)
    assert list(rows) == [(method, 0) for method in METHODS]
    for (method, _), row in rows.items():
        assert list(row) == KEYS
        assert row["dataset"] == "tree"
        assert row["commit"] == common.commit()
        assert row["versions"]["torch"]
        assert row["seconds"] >= 0
        metrics = row["metrics"]
        assert metrics["auc"] == pytest.approx(np.mean([metrics[f"auc/{name}"] for name in DRAWN["sports"]]))
        assert sorted(name for name in metrics if "round" in name) == (ROUNDS if method in LEARNED else [])
    joint, fixed = rows["posets", 0]["metrics"], rows["posets-fixed", 0]["metrics"]
    assert joint["auc_round_1"] == fixed["auc_round_1"]  # which differ only after the first round
    assert results.read_results(whole / "results.json")  # which checks the file


def test_the_ceiling_learns_poses_where_a_tree_knows_them(data, tmp_path):
    one_pose = ["--method", "supervised"]
    assert list(rows_after(data, tmp_path / "out", *one_pose)) == [("supervised", 0)]
    shutil.copytree(data / "tree", tmp_path / "tree")
    shutil.rmtree(tmp_path / "tree" / "joints")
    unknown = ["--data-root", tmp_path / "tree", *one_pose]
    with pytest.raises(ValueError, match="supervised needs the true classes of the images to learn from"):
        main(quick(data / "cache", tmp_path / "unknown", *unknown))
    every = olympic.parse(arguments(data, tmp_path, "--method", "all")).methods
    assert "supervised" not in every


@pytest.mark.parametrize("method", LEARNED)
def test_logs_and_checkpoints(whole, method):
    home, metrics = whole / f"{method}-seed0", rows_of(whole)[method, 0]["metrics"]
    assert metrics["auc_round_2"] == metrics["auc"]
    assert (home / "checkpoint.pt").is_file()
    with open(home / "logs" / "scores.csv") as file:
        header, *rows = [line.strip().split(",") for line in file]
    assert header == ["~iteration~", "auc"]
    assert [(int(at), float(auc)) for at, auc in rows] == [
        (2 * number, metrics[name]) for number, name in enumerate(ROUNDS)
    ]
    assert len((home / "logs" / "losses.csv").read_text().splitlines()) == 1 + 4
    assert list((home / "logs" / "tensorboard").iterdir())


def test_settings_are_those_that_the_numbers_depend_on(whole):
    rows = {method: row["settings"] for (method, _), row in rows_of(whole).items()}
    expected = {
        "frames": 72, "left_out": 0, "data": "tree", "hog_size": 32, "first_similarities": "hog-window",
        "window": [0.2, 0.6], "components": 32, "rounds": 2, "iterations": 2, "fc_dim": 8, "trunk": TRUNK,
        "preset": "tiny", "layer": "embedding", "device": "cpu", "precision": "float32", "regroup": "mixed",
        "init": None, "teacher": "motion",
    }  # fmt: skip
    assert rows["posets"].items() >= expected.items()
    assert set(olympic.parse([*map(str, RECIPE)]).recipe.settings()) <= set(rows["posets"])
    assert rows["posets-fixed"]["regroup"] == "fixed"
    assert sorted(rows["hog"]) == ["data", "frame_names", "frames", "hog_size", "left_out"]
    assert "window" in rows["start"]
    assert "teacher" not in rows["start"]
    assert rows["random"]["fc_dim"] == 8
    assert "rounds" not in rows["random"]
    assert str(ROOT) not in json.dumps(rows)  # no path of a machine


def test_tables_and_pictures(whole):
    (header, *lines), below = table_of(whole)
    assert header == [
        "method", "AUC", "seeds", "begin", "round 1", "round 2", "paper (Olympic Sports)",
    ]  # fmt: skip
    assert len(lines) == len(METHODS)
    metrics = rows_of(whole)["posets", 0]["metrics"]
    begin, first, second = (f"{metrics[name]:.3f}" for name in ROUNDS)
    assert ["posets", second, "1", begin, first, second, "0.78"] in lines
    categories, said = below.split("\n\n")
    assert [line.split("|")[1].strip() for line in categories.splitlines()[2:]] == ["run", "throw"]
    assert "posets against start: " in said
    for name in ("loss", "roc", "neighbors", "posets"):
        assert_picture(whole / f"{name}.png")


def test_the_last_lines_say_what_training_was_worth():
    def row(method, seed, auc, **more):
        return results.Result(method, "data", {"auc": auc, **more}, {}, seed, seconds=1)

    rows = [row("start", 0, 0.6), row("random", 0, 0.5), row("random", 1, 0.7)]
    assert verdict(rows) == []
    rows += [row("posets", 0, 0.62, auc_round_1=0.61, auc_round_2=0.62)]
    rows += [row("posets", 1, 0.64, auc_round_1=0.65, auc_round_2=0.64)]
    assert verdict(rows) == [
        "posets against start: +0.030 AUC, above it in 2 of 2 seeds",
        "posets against random: +0.030 AUC, above it in 1 of 2 seeds",
        "posets against its own first round: +0.000 AUC, above it in 1 of 2 seeds",
    ]


# --- Other options


def test_groups_by_motion_beside_the_first_similarities_as_targets(data, tmp_path):
    def start(teacher):
        task = olympic.prepare(olympic.parse(arguments(data, tmp_path, "--teacher", teacher)).settled("cpu"))
        return task.start

    motion, first, both = start("motion"), start("start"), start("motion-groups")
    assert motion.targets == ()
    assert np.array_equal(both.features, motion.features)
    assert np.array_equal(both.targets[0], first.features)
    assert np.array_equal(both.targets[1], first.mirrored)
    assert np.array_equal(both.unmirrored().with_mirror_images().targets[0], first.features)
    twice = both.with_mirror_images()
    plan = Plan(twice, PRESETS["tiny"], {}, 0)
    assert np.array_equal(feature_loss(plan)._targets, np.concatenate(both.targets))
    assert np.array_equal(feature_loss(replace(plan, start=first))._targets, first.features)


@pytest.mark.parametrize(
    ("more", "settings"),
    [
        (["--teacher", "start"], {"teacher": "start"}),
        (
            ["--groups", "sure", "--set", "coverage=0.5", "mutual=3"],
            {"groups": "sure", "coverage": 0.5, "mutual": 3},
        ),
        (
            ["--preset", "paper", "--image-size", 64, "--rounds", 2],
            {"first_similarities": "hog-lda", "window": None, "regroup": "network", "refine": True},
        ),
    ],
)
def test_other_choices_make_other_rows(data, whole, tmp_path, more, settings):
    found, usual = rows_after(data, tmp_path, *more, "--method", "posets", "start"), rows_of(whole)
    assert found["posets", 0]["settings"].items() >= settings.items()
    assert found["posets", 0]["metrics"] != usual["posets", 0]["metrics"]
    assert (found["start", 0]["metrics"] == usual["start", 0]["metrics"]) == ("paper" not in more)


def test_a_network_that_begins_as_hog_is_trained_and_scored_again(data, tmp_path):
    network = ["--trunk", "hog", "--image-size", 32, "--fc-dim", 16]
    first = rows_after(data, tmp_path / "first", "--method", "posets", *network)
    assert "posets against the same network before training: " in table_of(tmp_path / "first")[1]
    kept = ["--method", "checkpoint", "--checkpoint", tmp_path / "first/posets-seed0/checkpoint.pt"]
    again = rows_after(data, tmp_path / "again", *kept)["checkpoint", 0]  # the shapes are those of the file
    assert again["metrics"]["auc"] == first["posets", 0]["metrics"]["auc"]
    assert (again["settings"]["file"], again["settings"]["fc_dim"]) == ("checkpoint.pt", 16)


def test_without_a_tree_figures_are_drawn(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(options.FIGURE_SIZES, "tiny", FIGURES)
    rows = rows_after(data, tmp_path, "--figures", "tiny", "--method", "random", "hog", "--seed", 0, 1)
    said = capsys.readouterr().out
    assert "36 frames, 2 categories" in said
    assert f"Everything lies in {tmp_path}" in said
    assert list(rows) == [("random", 0), ("hog", 0), ("random", 1)]  # hog leaves nothing to chance
    assert {row["dataset"] for row in rows.values()} == {"figures-tiny"}
    assert rows["random", 0]["metrics"] != rows["random", 1]["metrics"]
    assert " ± " in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(("layer", "width"), [("pool5", 256 * 9), ("fc6", 8), ("fc7", 8)])
def test_layers_of_alexnet(data, tmp_path, layer, width, monkeypatch):
    seen = keep_measured(monkeypatch, olympic.Postures)
    chosen = ["--trunk", "alexnet", "--method", "random", "--categories", "run"]
    rows = rows_after(data, tmp_path, *chosen, "--layer", layer)
    (((plain, mirrored), _),) = seen
    assert plain.shape == mirrored.shape == (36, width)
    assert rows["random", 0]["settings"]["layer"] == layer


def test_categories_are_another_data_set(data, tmp_path):
    row = rows_after(data, tmp_path, "--method", "random", "--categories", "throw")["random", 0]
    assert row["dataset"] == "tree: throw"
    assert sorted(row["metrics"]) == ["auc", "auc/throw"]
    assert row["settings"]["frames"] == 36
    with pytest.raises(ValueError, match=r"is of other data \(tree: throw, here tree\): choose another --o"):
        main(arguments(data, tmp_path, "--method", "hog", "--resume"))


def test_imagenet_weights_are_scored_at_their_own_size(data, tmp_path, monkeypatch):
    loaded = []

    def load(models, config, path):
        loaded.append((models["embedder"].fc7[-1].in_features, Path(path).name))

    monkeypatch.setattr(options, "IMAGENET", AlexNetConfig(image_size=80, fc_dim=12))
    monkeypatch.setattr(networks, "load_imagenet", load)
    (tmp_path / "w.pth").touch()
    chosen = ["--trunk", "alexnet", "--method", "alexnet-imagenet", "--imagenet-weights", tmp_path / "w.pth"]
    (row,) = rows_after(data, tmp_path / "out", *chosen, "--seed", 0, 1).values()
    assert loaded == [(12, "w.pth")]  # for one seed
    assert (row["settings"]["image_size"], row["settings"]["batch_norm"]) == (80, False)


# --- Going on


KILL = """
import os, signal, sys
from benchmarks.core import logs
from benchmarks import olympic
record = logs.RunLog.record
def kill(self, trainer):
    record(self, trainer)
    if trainer.joint.global_iteration + 1 == 3:
        os.kill(os.getpid(), signal.SIGKILL)
logs.RunLog.record = kill
olympic.main(sys.argv[1:])
"""


def test_a_killed_run_goes_on_to_the_same_numbers_and_weights(data, whole, tmp_path):
    chosen = arguments(data, tmp_path, "--method", "hog", "posets")
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}"
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    run = subprocess.run(
        [sys.executable, "-c", KILL, *chosen], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert list(rows_of(tmp_path)) == [("hog", 0)]
    with pytest.raises(FileExistsError, match=r"holds a run already: .* by --resume, or choose another"):
        main(chosen)
    assert main([*chosen, "--resume"]) == 0
    rows, expected = rows_of(tmp_path), rows_of(whole)
    for key in (("hog", 0), ("posets", 0)):
        assert rows[key]["metrics"] == expected[key]["metrics"]
        assert rows[key]["settings"] == expected[key]["settings"]
    mine, theirs = (home / "posets-seed0" for home in (tmp_path, whole))
    found, wanted = weights(mine), weights(theirs)
    assert found.keys() == wanted.keys()
    assert [name for name in found if not torch.equal(found[name], wanted[name])] == []
    for name in ("losses", "scores"):
        assert (mine / "logs" / f"{name}.csv").read_text() == (theirs / "logs" / f"{name}.csv").read_text()
    progress = (mine / "logs" / "progress.csv").read_text().splitlines()
    # with the time of the process that was killed
    assert rows["posets", 0]["seconds"] >= float(progress[2].split(",")[-1])


def test_a_finished_run_goes_on_with_more_methods_and_nothing_is_lost(data, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before, held = rows_of(tmp_path), weights(tmp_path / "cliques-seed0")
    rows = rows_after(data, tmp_path, "--resume", "--method", "random", "cliques", "--seed", 0, 1)
    assert set(rows) == {*before, ("random", 1), ("cliques", 1)}
    assert all(rows[key]["metrics"] == row["metrics"] for key, row in before.items())
    assert rows["cliques", 1]["metrics"] != rows["cliques", 0]["metrics"]
    found = weights(tmp_path / "cliques-seed0")
    assert all(torch.equal(found[name], held[name]) for name in held)
    assert "± " in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("left", ["results.json", "posets-seed3/checkpoint.pt"])
def test_a_folder_with_a_run_in_it_is_not_written_over(data, tmp_path, left, monkeypatch):
    path = tmp_path / left
    path.parent.mkdir(exist_ok=True)
    path.write_text("[]")
    monkeypatch.setattr(olympic, "prepare", None)  # before any work
    with pytest.raises(FileExistsError, match=r"--resume, or choose another --output"):
        main(arguments(data, tmp_path))
    assert path.read_text() == "[]"


def test_there_is_nothing_to_resume(data, tmp_path, monkeypatch):
    monkeypatch.setattr(olympic, "prepare", None)  # before any work
    with pytest.raises(FileNotFoundError, match=r"nothing to resume: .*rnu does not exist: correct --output"):
        main(arguments(data, tmp_path / "rnu", "--resume"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "change", "text"),
    [
        ("hog", ["--layer", "pooled"], r"random, seed 0.*\(--layer 'embedding', here 'pooled'\)"),
        ("posets", ["--lambda", "0.7"], r"cliques, seed 0.*\(--lambda 0.03, here 0.7\)"),
        ("hog", ["--initial", "hog"], r"start, seed 0.*--first-similarities 'hog-window', here 'hog'; --win"),
        ("hog", ["--hog-size", "48"], r"start, seed 0.*\(--hog-size 32, here 48\)"),
        ("random", ["--fc-dim", "4"], r"cliques, seed 0.*\(--fc-dim 8, here 4\)"),
        ("hog", ["--preset", "small"], r"cliques, seed 0.*\(--preset 'tiny', here 'small'"),
    ],
)
def test_rows_of_other_settings_are_refused(data, whole, method, change, text):
    before = (whole / "results.json").read_bytes()
    with pytest.raises(ValueError, match=text):
        main(arguments(data, whole, "--resume", "--method", method, *change))
    assert (whole / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (["--lambda", "0.7"], "belongs to another run .*there your lam=.*, here 0.7"),
        (["--initial", "hog"], "there your first_similarities='hog-window', here 'hog'"),
        (["--window", "0.3", "0.6"], r"there your window='\[0.2, 0.6\]', here '\[0.3, 0.6\]'"),
        (["--batch-size", "18"], "there sampler batch_size=16, here 18"),
        (None, "checkpoint.pt is damaged or none "),
    ],
)
def test_a_checkpoint_of_another_run(data, whole, tmp_path, change, text):
    path = tmp_path / "cliques-seed0" / "checkpoint.pt"
    path.parent.mkdir()
    content = (whole / "cliques-seed0" / "checkpoint.pt").read_bytes()
    content = content[: len(content) // 2] if change is None else content
    path.write_bytes(content)
    with pytest.raises(ValueError, match=text):
        main(arguments(data, tmp_path, "--resume", "--method", "hog", "cliques", *(change or [])))
    assert path.read_bytes() == content
    assert list(rows_of(tmp_path)) == [("hog", 0)]  # what was done is kept


# --- Bad data


@pytest.fixture
def frames(data, tmp_path):
    """The frames of a copy of the tree, to be broken."""
    shutil.copytree(data / "tree", tmp_path / "tree")
    return sorted((tmp_path / "tree" / "frames" / "run").rglob("*.jpg"))


def test_no_tree_and_no_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="is no folder: expected one with frames/"):
        main(arguments(tmp_path, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_unreadable_images_are_counted_and_left_out(frames, tmp_path, capsys):
    frames[5].write_bytes(b"no image")
    frames[7].unlink()
    rows = rows_after(tmp_path, tmp_path / "out", "--method", "random", "--skip-unreadable")
    said = capsys.readouterr().out
    assert "70 frames" in said
    assert "2 unreadable frames left out" in said
    assert f"left out: {frames[5]}" in said
    assert f"left out: {frames[7]}" in said
    settings = rows["random", 0]["settings"]
    assert (settings["frames"], settings["left_out"]) == (70, 2)


def test_the_command_ends_with_one_line_and_a_status(frames, tmp_path):
    frames[5].write_bytes(frames[5].read_bytes()[:100])
    script = [sys.executable, str(ROOT / "benchmarks" / "olympic.py")]
    chosen = arguments(tmp_path, tmp_path / "out", "--workers", 1, "--trunk", "alexnet")
    run = subprocess.run([*script, *chosen], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 1
    assert "72 frames, 2 categories" in run.stdout
    (said,) = run.stderr.splitlines()
    assert said.startswith(f"olympic.py: frame 5 cannot be read ({frames[5]}): ")
    assert said.endswith("(skip_unreadable, --skip-unreadable)")


@pytest.mark.parametrize(
    ("size", "more", "text"),
    [
        (200, "--mirror-images", r"200 images, but .*tree holds only 72 \(each .*: use --batch-size 144"),
        (73, "--no-mirror-images", r"tree holds only 72: use --batch-size 72 or less"),
    ],
)  # fmt: skip
def test_fewer_images_than_a_batch(data, tmp_path, size, more, text):
    with pytest.raises(ValueError, match=text):
        main(arguments(data, tmp_path / "out", "--method", "cliques", "--batch-size", size, more))


def test_a_file_in_place_of_a_folder(data, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write to .*file .* another --cache"):
        main(arguments(data, tmp_path / "new", "--cache", tmp_path / "file"))
    monkeypatch.setattr(olympic, "prepare", None)  # before any work
    with pytest.raises(OSError, match=r"cannot write to the output folder .*file .* another --output"):
        main(arguments(data, tmp_path / "file"))


def test_a_disk_that_fills_while_it_runs_leaves_what_was_written(data, tmp_path, monkeypatch):
    replace = os.replace

    def full(source, target):
        if Path(target).name == "results.json" and Path(target).exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(common.os, "replace", full)
    with pytest.raises(OSError, match=r"cannot write .*results.json \(No space left on device\)"):
        main(arguments(data, tmp_path, "--method", "hog", "random"))
    assert list(rows_of(tmp_path)) == [("hog", 0)]
