"""lsp.py as a command on a few people: its numbers by hand, its files, its resuming."""

import json
import shutil

import numpy as np
import pytest
from benchmark_runs import assert_picture, few_patches, rows_of, table_of
from PIL import Image
from pose_trees import PEOPLE, RUNNERS, draw, leaning, lsp_arguments, write_crops, write_lsp_and_more

from benchmarks import lsp
from benchmarks.core import options, session
from benchmarks.data.poses import load_lsp
from benchmarks.figures.dataset import make_figures
from benchmarks.lsp import main
from benchmarks.measures.pose import pcp, pose_classes
from benchmarks.measures.skeletons import LSP_SKELETON, mirror_joints

PLAIN = ["oracle", "mean-pose", "pixels", "hog", "hog-lda", "hog-views", "start"]
PARTS = ["T", "UL", "LL", "UA", "LA", "H"]
TRAINED = ["posets", "cliques", "triplet"]  # the others: test_olympic.py


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """LSP and its extended set beside the folder for what is made of them once."""
    root = write_lsp_and_more(tmp_path_factory.mktemp("data"), PEOPLE)
    with few_patches():
        yield root


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run of every method without training, and of three that train."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(lsp_arguments(data, folder, "--method", *PLAIN, "random", *TRAINED)) == 0
    return folder


def task_of(data, output, *more):
    return lsp.prepare(lsp.parse([*lsp_arguments(data, output), *map(str, more)]).settled("cpu"))


# --- By hand


@pytest.fixture(scope="module")
def known(data):
    """The people whose poses are copied, and their mirror images; those that are tested."""
    people = load_lsp(data / "lsp").joints.astype(np.float64)
    complete = people[:PEOPLE][np.isfinite(people[:PEOPLE]).all(axis=(1, 2))]
    return np.concatenate([complete, mirror_joints(complete, LSP_SKELETON)]), people[PEOPLE:]


def check(row, predicted, people):
    found, expected = row["metrics"], pcp(np.array(predicted), people, LSP_SKELETON)
    assert found["sticks_left_out"] == expected.num_excluded == 3  # an elbow ends two sticks
    assert {part: found[f"pcp/{part}"] for part in PARTS} == pytest.approx(expected.parts)
    assert found["pcp_total"] == pytest.approx(expected.total)


def test_the_oracle_takes_the_pose_with_the_nearest_joints(whole, known):
    gallery, people = known
    assert len(gallery) == 2 * (PEOPLE - 2)
    predicted = []
    for true in people:
        seen = [j for j in range(14) if np.isfinite(true[j]).all()]
        means = [np.mean([np.hypot(*(pose[j] - true[j])) for j in seen]) for pose in gallery]
        predicted.append(gallery[int(np.argmin(means))])
    check(rows_of(whole)["oracle", 0], predicted, people)


def test_the_mean_pose_is_that_of_the_gallery_and_its_mirror_images(whole, known):
    gallery, people = known
    check(rows_of(whole)["mean-pose", 0], [gallery.mean(axis=0)] * len(people), people)


def test_pixels_take_the_most_similar_image(whole, known, data):
    gallery, people = known
    images = load_lsp(data / "lsp").images
    small = [np.asarray(images[i].resize((32, 32), 2), float) for i in range(2 * PEOPLE)]
    kept = [small[i] for i in range(PEOPLE) if i not in (2, 7)]
    both = np.stack([*kept, *(image[:, ::-1] for image in kept)])
    rows = (both - both.mean(axis=0)).reshape(len(both), -1)
    predicted = []
    for query in small[PEOPLE:]:
        products = rows @ (query - both.mean(axis=0)).ravel()
        predicted.append(gallery[np.argmax(products / np.linalg.norm(rows, axis=1))])
    check(rows_of(whole)["pixels", 0], predicted, people)


def test_a_mirrored_person_is_found_in_the_mirror(data, tmp_path):
    joints = leaning(8, 3)
    twins = np.concatenate([joints, mirror_joints(joints, LSP_SKELETON)])
    root = write_crops(tmp_path / "twins", twins, np.zeros((16, 14)))
    for i in range(8):
        image = draw(60 * joints[i] + 0.5, size=(60, 60))
        image.save(root / "images" / f"im{i + 1:04d}.png")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "images" / f"im{i + 9:04d}.png")
    for path in (root / "images").glob("*.jpg"):
        path.unlink()
    task = task_of(data, tmp_path / "out", "--data-root", root)
    for method in ("oracle", "pixels", "hog", "start", "random"):
        score = session.run_method(method, 0, task, tmp_path).score
        assert score.metrics["pcp_total"] == 100, method
        assert score.shown.flips[:, 0].all()
        assert score.shown.indices[:, 0].tolist() == list(range(8, 16))


# --- A whole run


def test_a_row_for_every_method(data, whole):
    rows = rows_of(whole)
    assert list(rows) == [(method, 0) for method in (*PLAIN, "random", *TRAINED)]
    every = lsp.parse(lsp_arguments(data, whole, "--method", "all")).methods
    assert {*every} == {*lsp.LINE.methods} - {*options.FILES, "supervised"} >= {method for method, _ in rows}
    for (method, _), row in rows.items():
        metrics = row["metrics"]
        assert row["dataset"] == "lsp"
        assert metrics["pcp_total"] == pytest.approx(np.mean([metrics[f"pcp/{part}"] for part in PARTS]))
        rounds = {f"pcp_total_round_{number}" for number in range(3)} if method in TRAINED else set()
        assert {*metrics} == {*(f"pcp/{part}" for part in PARTS), "pcp_total", "sticks_left_out"} | rounds
        assert method == "oracle" or metrics["pcp_total"] < rows["oracle", 0]["metrics"]["pcp_total"]


def test_the_ceiling_learns_the_true_poses(data, tmp_path):
    chosen = lsp_arguments(data, tmp_path / "out", "--method", "supervised")
    task = lsp.prepare(lsp.parse(chosen).settled("cpu"))
    found = pose_classes(task.pool.joints).tolist()
    assert task.start.labels.tolist() == found
    assert task.start.with_mirror_images().labels.tolist() == found + [-1] * len(found)  # another pose
    assert task_of(data, tmp_path / "out").start.labels is None  # no other method sees them
    assert main(chosen) == 0
    assert list(rows_of(tmp_path / "out")) == [("supervised", 0)]


def test_joints_of_several_folders_are_joined_where_their_names_agree(data, tmp_path):
    def joints(*roots):
        return task_of(data, tmp_path / "out", "--train-root", *roots).pool.joints

    first = tmp_path / "first"
    make_figures(first, num_workers=1, **RUNNERS)
    named, unnamed = (shutil.copytree(first, tmp_path / name) for name in ("named", "unnamed"))
    for path in (unnamed / "joints").glob("*.npz"):
        with np.load(path) as file:
            np.savez(path, joints=file["joints"])
    assert joints(data / "lspet", data / "lsp").shape == (6 + PEOPLE, 14, 2)
    assert joints(first, named).shape == (40, 15, 2)
    assert joints(unnamed).shape == (20, 15, 2)
    assert joints(first, unnamed) is None  # their orders may differ
    assert joints(unnamed, shutil.copytree(unnamed, tmp_path / "more")) is None
    assert joints(first, data / "lsp") is None


def test_mirror_images_are_not_scored_by_mirrored_maps(data, tmp_path):
    more = ["--cached-maps", "features.3", "--rounds", 1, "--method", "posets", "--cache", tmp_path / "cache"]
    assert main(lsp_arguments(data, tmp_path / "out", *more)) == 0
    assert len(list((tmp_path / "cache").glob("maps-*"))) == 1  # of the views to learn from alone


def test_settings_are_those_that_the_numbers_depend_on(whole):
    rows = rows_of(whole)
    of_people = {"data": "LSP", "num_train": 20, "num_test": 20, "gallery": 18, "mirrored_gallery": True}
    left_out = {
        "joint without numbers": 2,
        "joint outside its image": 1,
        "stick without length, not judged": 1,
    }
    for row in rows.values():
        assert row["settings"].items() >= {**of_people, "left_out": left_out}.items()
        assert len(row["settings"]["people"]) == 16
    keys = {*of_people, "left_out", "people"}
    more = {method: set(rows[method, 0]["settings"]) - keys for method in (*PLAIN, "random")}
    assert more["oracle"] == more["mean-pose"] == set()
    assert more["pixels"] == {"side"}
    assert more["hog"] == more["hog-lda"] == {"hog_size", "background"}
    assert more["hog-views"] > more["hog"] < more["start"]
    assert {"image_size", "fc_dim", "layer", "precision", "device"} <= more["random"]
    assert not {"rounds", "pool"} & more["random"]
    posets = rows["posets", 0]["settings"]
    expected = {
        "pool": "LSP", "images": 20, "hog_size": 32, "first_similarities": "hog-window", "window": [0.2, 0.6],
        "components": 32, "rounds": 2, "iterations": 1, "fc_dim": 8, "preset": "tiny", "layer": "pooled",
        "regroup": "mixed", "init": None,
    }  # fmt: skip
    assert {name: posets[name] for name in expected} == expected
    assert "/" not in json.dumps([row["settings"] for row in rows.values()])  # no path of a machine


def test_table_and_pictures(whole):
    (header, *lines), notes = table_of(whole)
    last = ["seeds", "begin", "round 1", "round 2", "paper (total, LSP)"]
    assert header == ["method", "PCP total", *PARTS, *last]
    assert [line[0] for line in lines] == [*PLAIN, "random", *TRAINED]
    paper = {
        "oracle": "69.2", "cliques": "43.5 (from ImageNet)", "triplet": "30.0",
        "posets": "34.3 (from ImageNet: 48.3)",
    }  # fmt: skip
    assert {line[0]: line[-1] for line in lines if line[-1]} == paper
    metrics = rows_of(whole)["posets", 0]["metrics"]
    shown = [f"{metrics[name]:.1f}" for name in ("pcp_total", *(f"pcp/{part}" for part in PARTS))]
    assert ["posets", *shown] in [line[:8] for line in lines]
    first, second, third = notes.splitlines()
    assert first == (
        "Strict PCP@0.5 in percent on 20 people (3 sticks not judged). Gallery: 18 people and their mirror "
        "images (2 left out, joints missing)."
    )
    assert second.startswith("Here: LSP, learned from LSP; 64 px, ")
    assert second.endswith(" weights at the beginning, pooled scored.")
    for what in ("Leeds Sports", "227 px", "Olympic Sports frames", "Shuffle & Learn", "ImageNet weights"):
        assert what in third
    for name in ("loss", "neighbors", "heatmaps"):
        assert_picture(whole / f"{name}.png")


# --- Other places


def test_where_the_people_lie_does_not_count(data, tmp_path):
    shutil.copytree(data / "lsp", tmp_path / "elsewhere" / "lsp")
    here, there = (
        task_of(data, tmp_path),
        task_of(data, tmp_path, "--data-root", tmp_path / "elsewhere" / "lsp"),
    )
    assert (here.origin(), here.scored_settings()) == (there.origin(), there.scored_settings())


def test_a_checkpoint_that_learned_from_others(data, whole, tmp_path):
    shutil.copytree(whole / "cliques-seed0", tmp_path / "cliques-seed0")
    roots = ["--train-root", data / "lspet", data / "lsp"]
    with pytest.raises(ValueError, match=r"another run .*there your pool='LSP', here 'lspet\+lsp'"):
        main(lsp_arguments(data, tmp_path, "--resume", "--method", "cliques", *roots))


# --- Real data


def test_ground_truth_on_leeds_sports(shared_data, tmp_path):
    task = task_of(tmp_path, tmp_path, "--data-root", shared_data / "lsp")
    metrics = task.plain("oracle").metrics
    expected = {"T": 93.8, "UL": 78.5, "LL": 72.7, "UA": 61.9, "LA": 37.0, "H": 71.4}
    assert {part: round(metrics[f"pcp/{part}"], 1) for part in PARTS} == expected
    assert round(metrics["pcp_total"], 1) == 69.2
    assert metrics["sticks_left_out"] == 2
    assert (len(task.gallery), task.incomplete, len(task.people.test)) == (1000, 0, 1000)
