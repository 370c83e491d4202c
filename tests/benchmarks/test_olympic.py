"""olympic.py as a command on a few drawn figures: its files, its resuming, and what it says to bad input."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from benchmark_runs import LEARNED, RECIPE, THIN, assert_picture, quick, rows_of, weights

from benchmarks import olympic
from benchmarks.core import common, described, networks, options, results
from benchmarks.core.architectures import AlexNetConfig
from benchmarks.core.options import FILES
from benchmarks.figures.dataset import make_figures
from benchmarks.olympic import LINE, main, verdict

ROOT = Path(__file__).resolve().parents[2]
FIGURES = {
    "sports": ("run", "throw"),
    "num_sources": 4,
    "num_clips": 1,
    "num_frames": 9,
    "size": 48,
    "num_anchors": 9,
}
KEYS = ["method", "dataset", "metrics", "settings", "seed", "command", "commit", "versions", "seconds"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A tree of 72 frames beside the folder for what is made of them once."""
    root = tmp_path_factory.mktemp("data")
    make_figures(root / "tree", num_workers=1, **FIGURES)
    return root


def arguments(data, output, *more):
    tree = [] if "--figures" in more else ["--data-root", data / "tree"]
    return quick(data / "cache", output, *tree, "--iterations", 2, *more)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run of every method."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(arguments(data, folder, "--method", "all")) == 0
    return folder


# --- A whole run


def test_a_row_for_every_method(whole):
    rows = json.loads((whole / "results.json").read_text())
    assert [list(row) for row in rows] == [KEYS] * 10
    assert [row["method"] for row in rows] == [m for m in LINE.methods if m not in (*FILES, "init")]
    for row in rows:
        assert row["dataset"] == "tree"
        assert row["seed"] == 0
        assert row["commit"] == common.commit()
        assert row["versions"]["torch"]
        assert row["seconds"] >= 0
        by_category = [row["metrics"][f"auc/{name}"] for name in FIGURES["sports"]]
        assert row["metrics"]["auc"] == pytest.approx(np.mean(by_category))
        rounds = sorted(name for name in row["metrics"] if "round" in name)
        if row["method"] in LEARNED:
            assert rounds == ["auc_round_1", "auc_round_2"]
            assert row["metrics"]["auc_round_2"] == row["metrics"]["auc"]
        else:
            assert rounds == []
    assert results.read_results(whole / "results.json")  # which checks the file


def test_settings_are_those_that_the_numbers_depend_on(whole):
    rows = rows_of(whole)
    posets = rows["posets", 0]["settings"]
    expected = {
        "frames": 72, "left_out": 0, "data": "tree", "hog_size": 32, "first_similarities": "hog-window",
        "window": [0.2, 0.6], "components": 32, "rounds": 2, "iterations": 2, "fc_dim": 8,
        "preset": "tiny", "layer": "fc7",
        "device": "cpu", "precision": "float32", "regroup": "mixed", "init": None,
    }  # fmt: skip
    assert {name: posets[name] for name in expected} == expected
    assert set(olympic.parse([*map(str, RECIPE)]).recipe.settings()) <= set(posets)
    assert rows["posets-fixed", 0]["settings"]["regroup"] == "fixed"
    assert sorted(rows["hog", 0]["settings"]) == ["data", "frame_names", "frames", "hog_size", "left_out"]
    assert "window" in rows["start", 0]["settings"]
    assert rows["random", 0]["settings"]["fc_dim"] == 8
    assert "rounds" not in rows["random", 0]["settings"]
    assert str(ROOT) not in json.dumps([row["settings"] for row in rows.values()])  # no path of a machine


def test_what_is_taught_is_of_frames_in_time_or_alone(data, whole, tmp_path):
    assert rows_of(whole)["posets", 0]["settings"]["teacher"] == "motion"
    assert "teacher" not in rows_of(whole)["start", 0]["settings"]
    more = ["--teacher", "start", "--method", "posets", "start"]
    assert main(arguments(data, tmp_path, *more)) == 0
    alone = rows_of(tmp_path)
    assert alone["start", 0]["metrics"] == rows_of(whole)["start", 0]["metrics"]
    assert alone["posets", 0]["metrics"] != rows_of(whole)["posets", 0]["metrics"]


def test_sure_groups(data, whole, tmp_path):
    more = ["--groups", "sure", "--set", "coverage=0.5", "mutual=3", "--method", "posets"]
    assert main(arguments(data, tmp_path, *more)) == 0
    settings = rows_of(tmp_path)["posets", 0]["settings"]
    assert (settings["groups"], settings["coverage"], settings["mutual"]) == ("sure", 0.5, 3)
    assert rows_of(tmp_path)["posets", 0]["metrics"] != rows_of(whole)["posets", 0]["metrics"]


def test_a_network_that_begins_as_hog_is_trained_and_scored_again(data, tmp_path):
    network = ["--trunk", "hog", "--image-size", 32, "--fc-dim", 16]
    assert main(arguments(data, tmp_path / "first", "--method", "posets", *network)) == 0
    table = (tmp_path / "first" / "table.md").read_text()
    assert "| begin " in table
    assert "posets against the same network before training: " in table
    kept = ["--method", "checkpoint", "--checkpoint", tmp_path / "first/posets-seed0/checkpoint.pt"]
    assert main(arguments(data, tmp_path / "again", *kept, "--layer", "embedding")) == 0
    first, again = (rows_of(tmp_path / name) for name in ("first", "again"))
    assert again["checkpoint", 0]["metrics"]["auc"] == first["posets", 0]["metrics"]["auc"]


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


def test_tables(whole):
    text = (whole / "table.md").read_text()
    main_table, categories, said = text.split("\n\n")
    lines = main_table.splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == [
        "method", "AUC", "seeds", "round 1", "round 2", "paper (Olympic Sports)",
    ]  # fmt: skip
    posets = next(line for line in lines if line.startswith("| posets "))
    metrics = rows_of(whole)["posets", 0]["metrics"]
    first, second = f"{metrics['auc_round_1']:.3f}", f"{metrics['auc']:.3f}"
    cells = [cell.strip() for cell in posets.strip("|").split("|")]
    assert cells == ["posets", second, "1", first, second, "0.78"]
    assert len(lines) == 2 + 10
    assert [line.split("|")[1].strip() for line in categories.splitlines()[2:]] == ["run", "throw"]
    assert "posets against start: " in said


@pytest.mark.parametrize("name", ["loss", "roc", "neighbors", "posets"])
def test_pictures(whole, name):
    assert_picture(whole / f"{name}.png")


@pytest.mark.parametrize("method", LEARNED)
def test_logs_and_checkpoints(whole, method):
    home = whole / f"{method}-seed0"
    assert (home / "checkpoint.pt").is_file()
    with open(home / "logs" / "scores.csv") as file:
        header, *rows = [line.strip().split(",") for line in file]
    assert header == ["~iteration~", "auc"]
    metrics = rows_of(whole)[method, 0]["metrics"]
    assert [int(row[0]) for row in rows] == [2, 4]
    assert [float(row[1]) for row in rows] == [metrics["auc_round_1"], metrics["auc_round_2"]]
    assert len((home / "logs" / "losses.csv").read_text().splitlines()) == 1 + 4
    assert list((home / "logs" / "tensorboard").iterdir())


def test_fixed_groups_differ_from_joint_ones_only_after_the_first_round(whole):
    rows = rows_of(whole)
    joint, fixed = rows["posets", 0]["metrics"], rows["posets-fixed", 0]["metrics"]
    assert joint["auc_round_1"] == fixed["auc_round_1"]
    assert weights(whole / "posets-seed0").keys() == weights(whole / "posets-fixed-seed0").keys()


# --- Drawn figures, seeds, layers, other weights


def test_without_a_tree_figures_are_drawn(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(options.FIGURE_SIZES, "tiny", {**FIGURES, "num_sources": 2, "num_frames": 4})
    chosen = ["--figures", "tiny", "--method", "random", "hog", "--seed", 0, 1]
    assert main(arguments(data, tmp_path, *chosen)) == 0
    said = capsys.readouterr().out
    assert "16 frames, 2 categories" in said
    assert f"Everything lies in {tmp_path}" in said
    rows = rows_of(tmp_path)
    assert list(rows) == [("random", 0), ("hog", 0), ("random", 1)]  # hog leaves nothing to chance
    assert {row["dataset"] for row in rows.values()} == {"figures-tiny"}
    assert rows["random", 0]["metrics"] != rows["random", 1]["metrics"]
    assert " ± " in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(("layer", "width"), [("pool5", THIN[-1] * 9), ("fc6", 8), ("fc7", 8)])
def test_layers(data, tmp_path, layer, width, monkeypatch):
    seen = []
    measured = olympic.Postures.measured
    monkeypatch.setattr(
        olympic.Postures, "measured", lambda self, two: seen.append(two) or measured(self, two)
    )
    main(arguments(data, tmp_path, "--method", "random", "--layer", layer))
    ((plain, mirrored),) = seen
    assert plain.shape == mirrored.shape == (72, width)
    assert rows_of(tmp_path)["random", 0]["settings"]["layer"] == layer


def test_categories_are_another_data_set(data, tmp_path, capsys):
    main(arguments(data, tmp_path, "--method", "random", "--categories", "throw"))
    row = rows_of(tmp_path)["random", 0]
    assert row["dataset"] == "tree: throw"
    assert sorted(row["metrics"]) == ["auc", "auc/throw"]
    assert row["settings"]["frames"] == 36
    with pytest.raises(
        ValueError, match=r"is of other data \(tree: throw, here tree\): choose another --output"
    ):
        main(arguments(data, tmp_path, "--method", "hog", "--resume"))
    with pytest.raises(ValueError, match="categories without a frame list: swim"):
        main(arguments(data, tmp_path / "b", "--method", "hog", "--categories", "swim"))


def test_the_paper_s_preset_runs(data, tmp_path):
    chosen = arguments(data, tmp_path, "--method", "posets", "--rounds", 2, "--image-size", 64)
    for option in ("--preset", "--components"):
        del chosen[chosen.index(option) : chosen.index(option) + 2]
    assert main([*chosen, "--preset", "paper"]) == 0
    settings = rows_of(tmp_path)["posets", 0]["settings"]
    expected = {
        "first_similarities": "hog-lda", "window": None, "components": 0, "regroup": "network",
        "refine": True,
        "num_classes": 20_000, "mean_size": 8.0, "optimizer": "sgd", "anchors": "unassigned",
    }  # fmt: skip
    assert {name: settings[name] for name in expected} == expected


def test_imagenet_weights_are_scored_at_their_own_size(data, tmp_path, monkeypatch):
    loaded = []

    def load(models, config, path):
        loaded.append((models["embedder"].fc7[-1].in_features, Path(path).name))

    monkeypatch.setattr(options, "IMAGENET", AlexNetConfig(image_size=80, fc_dim=12))
    monkeypatch.setattr(networks, "load_imagenet", load)
    (tmp_path / "w.pth").touch()
    chosen = ["--method", "alexnet-imagenet", "--imagenet-weights", tmp_path / "w.pth", "--seed", 0, 1]
    main(arguments(data, tmp_path / "out", *chosen))
    assert loaded == [(12, "w.pth")]  # for one seed
    (row,) = rows_of(tmp_path / "out").values()
    assert (row["settings"]["image_size"], row["settings"]["batch_norm"]) == (80, False)


def test_training_begins_from_given_weights(data, tmp_path, monkeypatch):
    loaded = []
    shapes = AlexNetConfig(image_size=64, batch_norm=True, fc_dim=8)
    monkeypatch.setattr(options, "IMAGENET", shapes)
    monkeypatch.setattr(
        networks, "load_imagenet", lambda models, config, path: loaded.append(models["trunk"])
    )
    (tmp_path / "w.pth").touch()
    main(
        arguments(data, tmp_path / "out", "--method", "cliques", "--rounds", 1, "--init", tmp_path / "w.pth")
    )
    assert len(loaded) == 1
    assert rows_of(tmp_path / "out")["cliques", 0]["settings"]["init"] == "w.pth"


# --- Going on


KILL = """
import os, signal, sys
from benchmark_runs import THIN
from benchmarks.core import alexnet, logs
from benchmarks import olympic
alexnet.WIDTHS = THIN
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
    with pytest.raises(
        FileExistsError, match=r"holds a run already: .* by --resume, or choose another --output"
    ):
        main(chosen)
    assert main([*chosen, "--resume"]) == 0
    rows, expected = rows_of(tmp_path), rows_of(whole)
    for key in (("hog", 0), ("posets", 0)):
        assert rows[key]["metrics"] == expected[key]["metrics"]
        assert rows[key]["settings"] == expected[key]["settings"]
    found, wanted = weights(tmp_path / "posets-seed0"), weights(whole / "posets-seed0")
    assert found.keys() == wanted.keys()
    assert [name for name in found if not torch.equal(found[name], wanted[name])] == []
    for name in ("losses", "scores"):
        path = Path("posets-seed0", "logs", f"{name}.csv")
        assert (tmp_path / path).read_text() == (whole / path).read_text()
    seconds = [
        float(line.split(",")[-1]) for line in _lines(tmp_path / "posets-seed0" / "logs" / "progress.csv")
    ]
    assert rows["posets", 0]["seconds"] >= seconds[1]  # with the time of the process that was killed


def _lines(path):
    return path.read_text().splitlines()[1:]


def test_a_finished_run_goes_on_with_more_methods_and_nothing_is_lost(data, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before = rows_of(tmp_path)
    held = weights(tmp_path / "cliques-seed0")
    main(
        arguments(data, tmp_path, "--resume", "--method", "random", "cliques", "--seed", 0, 1, "--rounds", 2)
    )
    rows = rows_of(tmp_path)
    assert set(rows) == {*before, ("random", 1), ("cliques", 1)}
    assert {key: row["metrics"] for key, row in rows.items() if key in before} == {
        key: row["metrics"] for key, row in before.items()
    }
    assert rows["cliques", 1]["metrics"] != rows["cliques", 0]["metrics"]
    found = weights(tmp_path / "cliques-seed0")
    assert all(torch.equal(found[name], held[name]) for name in held)
    assert "± " in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("left", ["results.json", "checkpoint.pt"])
def test_a_folder_with_a_run_in_it_is_not_written_over(data, tmp_path, left, monkeypatch):
    path = tmp_path / left if left == "results.json" else tmp_path / "posets-seed3" / left
    path.parent.mkdir(exist_ok=True)
    path.write_text("[]")
    monkeypatch.setattr(olympic, "prepare", None)  # before any work
    with pytest.raises(FileExistsError, match=r"--resume, or choose another --output"):
        main(arguments(data, tmp_path))
    assert path.read_text() == "[]"


def test_results_that_are_damaged(data, tmp_path):
    (tmp_path / "results.json").write_text('[{"method": "ho')
    with pytest.raises(ValueError, match=r"results.json is no results file .* choose another --output"):
        main(arguments(data, tmp_path, "--resume"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (["--lambda", "0.7"], "belongs to another run .*there your lam=.*, here 0.7"),
        (["--initial", "hog"], "there your first_similarities='hog-window', here 'hog'"),
        (["--window", "0.3", "0.6"], r"there your window='\[0.2, 0.6\]', here '\[0.3, 0.6\]'"),
        (["--batch-size", "18"], "there sampler batch_size=16, here 18"),
    ],
)
def test_a_checkpoint_of_another_run(data, whole, tmp_path, change, text):
    home = tmp_path / "cliques-seed0"
    home.mkdir()
    shutil.copy(whole / "cliques-seed0" / "checkpoint.pt", home)
    before = (home / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=text):
        main(arguments(data, tmp_path, "--resume", "--method", "cliques", *change))
    assert (home / "checkpoint.pt").read_bytes() == before


def test_a_damaged_checkpoint(data, whole, tmp_path):
    home = tmp_path / "cliques-seed0"
    home.mkdir()
    content = (whole / "cliques-seed0" / "checkpoint.pt").read_bytes()
    (home / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"checkpoint.pt is damaged or none "):
        main(arguments(data, tmp_path, "--resume", "--method", "hog", "cliques"))
    assert list(rows_of(tmp_path)) == [("hog", 0)]  # what was done is kept


# --- Bad data


@pytest.fixture
def broken(data, tmp_path):
    """A copy of the data, to be broken."""
    shutil.copytree(data / "tree", tmp_path / "data" / "tree")
    return tmp_path / "data"


def refused(data, tmp_path, text, *more, error=ValueError):
    with pytest.raises(error, match=text):
        main(arguments(data, tmp_path / "out", "--method", "random", *more))
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_missing_label_file(broken, tmp_path):
    (broken / "tree" / "labels_hdf5" / "labels_run.hdf5").unlink()
    refused(broken, tmp_path, "categories without a label file: run")


def test_a_half_written_label_file(broken, tmp_path):
    path = broken / "tree" / "labels_hdf5" / "labels_throw.hdf5"
    path.write_bytes(path.read_bytes()[:-2000])
    refused(broken, tmp_path, r"cannot be read \(cut off or half written\?\): labels_throw.hdf5")


def test_ids_out_of_range(broken, tmp_path):
    with h5py.File(broken / "tree" / "labels_hdf5" / "labels_run.hdf5", "r+") as file:
        file["anchors"][0] = 36
    refused(broken, tmp_path, r"labels_run.hdf5 \(1 ids of 36 or more, up to 36\)")


def test_no_tree(tmp_path):
    refused(tmp_path / "nowhere", tmp_path, "is no folder: expected one with frames/")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(broken, tmp_path, workers):
    path = sorted((broken / "tree" / "frames" / "run").rglob("*.jpg"))[5]
    path.write_bytes(path.read_bytes()[:100])
    refused(
        broken, tmp_path, f"cannot be read .*{path}.* --skip-unreadable", "--workers", workers, error=OSError
    )


def test_unreadable_images_are_counted_and_left_out(broken, tmp_path, capsys):
    paths = sorted((broken / "tree" / "frames" / "run").rglob("*.jpg"))
    paths[5].write_bytes(b"no image")
    paths[7].unlink()
    main(arguments(broken, tmp_path / "out", "--method", "random", "--skip-unreadable"))
    said = capsys.readouterr().out
    assert "70 frames" in said
    assert "2 unreadable frames left out" in said
    assert f"left out: {paths[5]}" in said
    assert f"left out: {paths[7]}" in said
    settings = rows_of(tmp_path / "out")["random", 0]["settings"]
    assert (settings["frames"], settings["left_out"]) == (70, 2)


def test_fewer_images_than_a_batch(data, tmp_path):
    size = ["--method", "cliques", "--batch-size"]
    text = r"200 images, but .*tree holds only 72 \(each with its mirror image\): use --batch-size 144"
    with pytest.raises(ValueError, match=text):
        main(arguments(data, tmp_path / "out", *size, 200, "--mirror-images"))
    with pytest.raises(ValueError, match=r"tree holds only 72: use --batch-size 72 or less"):
        main(arguments(data, tmp_path / "out", *size, 73, "--no-mirror-images"))


def test_background_statistics_are_kept_and_made_again_when_damaged(tmp_path, monkeypatch):
    images = list(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8))
    path, few = tmp_path / "statistics.npz", {"num_patches": 20, "progress": False}
    made = described.background(images, path, 32, few)
    path.write_bytes(path.read_bytes()[:100])
    again = described.background(images, path, 32, few)
    monkeypatch.setattr(described.HOGLDA, "fit_background", None)
    kept = described.background(images, path, 32, few)
    for found in (again, kept):
        np.testing.assert_array_equal(found.mean_, made.mean_)
        assert (found.whiten, found.normalize, found.grid.image_size) == (False, False, 32)


# --- Bad folders


def test_a_file_in_place_of_a_folder(data, tmp_path):
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write to the output folder .*out .* another --output"):
        main(arguments(data, tmp_path / "out"))
    (tmp_path / "cache").write_text("in the way")
    blocked = arguments(data, tmp_path / "new")
    blocked[blocked.index("--cache") + 1] = str(tmp_path / "cache")
    with pytest.raises(OSError, match=r"cannot write to .*cache .* another --cache"):
        main(blocked)


@pytest.mark.parametrize(("code", "words"), [(errno.EROFS, "Read-only"), (errno.ENOSPC, "No space left")])
def test_a_folder_without_room_or_permission(data, tmp_path, monkeypatch, code, words):
    def refuse(*arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(olympic, "prepare", None)  # before any work
    with pytest.raises(OSError, match=rf"cannot write to the output folder .*\({words}.*another --output"):
        main(arguments(data, tmp_path / "out"))


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


# --- As a command


def test_the_command_ends_with_one_line_and_a_status(broken, tmp_path):
    path = sorted((broken / "tree" / "frames" / "run").rglob("*.jpg"))[5]
    path.write_bytes(path.read_bytes()[:100])
    script = [sys.executable, str(ROOT / "benchmarks" / "olympic.py")]
    chosen = arguments(broken, tmp_path / "out", "--workers", 1)
    run = subprocess.run([*script, *chosen], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 1
    assert "72 frames, 2 categories" in run.stdout
    (said,) = run.stderr.splitlines()
    assert said.startswith(f"olympic.py: frame 5 cannot be read ({path}): ")
    assert said.endswith("(skip_unreadable, --skip-unreadable)")


def test_a_checkpoint_of_another_run_is_scored(data, whole, tmp_path):
    path = whole / "posets-seed0" / "checkpoint.pt"
    main(arguments(data, tmp_path, "--method", "checkpoint", "--checkpoint", path, "--fc-dim", 4))
    row, theirs = rows_of(tmp_path)["checkpoint", 0], rows_of(whole)["posets", 0]
    assert row["metrics"]["auc"] == pytest.approx(theirs["metrics"]["auc"], abs=1e-6)
    assert (row["settings"]["file"], row["settings"]["fc_dim"]) == ("checkpoint.pt", 8)
