"""lsp.py as a command on a few people: its numbers by hand, its files, its resuming."""

import json
import shutil

import numpy as np
import pytest
from benchmark_runs import THIN, assert_picture, few_patches, rows_of
from PIL import Image
from pose_trees import PEOPLE, RUNNERS, draw, leaning, lsp_arguments, write_crops, write_lsp_and_more

from benchmarks import lsp
from benchmarks.core import options, session
from benchmarks.data.poses import load_lsp
from benchmarks.lsp import main
from benchmarks.measures.skeletons import LSP_SKELETON

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


# --- By hand


def distance(a, b):
    return float(np.sqrt((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2))


def mirror(pose):
    """Left and right change places, and x is counted from the other side."""
    swapped = np.empty_like(pose)
    for j, name in enumerate(LSP_SKELETON.joints):
        side = {"left": "right", "right": "left"}.get(name.split("_")[0])
        other = name if side is None else "_".join([side, *name.split("_")[1:]])
        x, y = pose[LSP_SKELETON.joints.index(other)]
        swapped[j] = (1 - x, y)
    return swapped


def pcp_by_hand(predicted, people):
    """Part to percent, and how many sticks there are that cannot be judged."""
    sticks = [
        ("T", ("left_shoulder", "right_shoulder"), ("left_hip", "right_hip")),
        ("H", ("neck",), ("head_top",)),
    ]
    limbs = {
        "UL": ("hip", "knee"),
        "LL": ("knee", "ankle"),
        "UA": ("shoulder", "elbow"),
        "LA": ("elbow", "wrist"),
    }
    for part, (start, end) in limbs.items():
        sticks += [(part, (f"{side}_{start}",), (f"{side}_{end}",)) for side in ("left", "right")]
    by_stick, unjudged = {}, 0
    for part, *ends in sticks:
        right = []
        for found, true in zip(predicted, people, strict=True):
            there, here = ([np.mean([p[LSP_SKELETON.joints.index(n)] for n in names], 0) for names in ends] for p in (true, found))  # fmt: skip  # noqa: E501
            length = distance(*there)
            if not length > 0:  # without length, or NaN
                unjudged += 1
                continue
            right.append(all(distance(a, b) <= length / 2 for a, b in zip(here, there, strict=True)))
        by_stick.setdefault(part, []).append(100 * np.mean(right))
    return {part: float(np.mean(of_sides)) for part, of_sides in by_stick.items()}, unjudged


@pytest.fixture(scope="module")
def known(data):
    """The people whose poses are copied, and their mirror images; those that are tested."""
    people = load_lsp(data / "lsp").joints.astype(np.float64)
    complete = [pose for pose in people[:PEOPLE] if np.isfinite(pose).all()]
    return [*complete, *map(mirror, complete)], people[PEOPLE:]


def check(row, predicted, people):
    parts, unjudged = pcp_by_hand(predicted, people)
    assert unjudged == 3  # an elbow ends two sticks
    found = row["metrics"]
    assert found["sticks_left_out"] == unjudged
    assert {part: found[f"pcp/{part}"] for part in PARTS} == pytest.approx(parts)
    assert found["pcp_total"] == pytest.approx(np.mean(list(parts.values())))


def test_the_oracle_takes_the_pose_with_the_nearest_joints(whole, known):
    gallery, people = known
    assert len(gallery) == 2 * (PEOPLE - 2)
    predicted = []
    for true in people:
        seen = [j for j in range(14) if np.isfinite(true[j]).all()]
        means = [np.mean([distance(pose[j], true[j]) for j in seen]) for pose in gallery]
        predicted.append(gallery[int(np.argmin(means))])
    check(rows_of(whole)["oracle", 0], predicted, people)


def test_the_mean_pose_is_that_of_the_gallery_and_its_mirror_images(whole, known):
    gallery, people = known
    check(rows_of(whole)["mean-pose", 0], [np.mean(gallery, axis=0)] * len(people), people)


def test_pixels_take_the_most_similar_image(whole, known, data):
    gallery, people = known
    images = load_lsp(data / "lsp").images
    small = [
        np.asarray(images[i].resize((32, 32), Image.Resampling.BILINEAR), float) for i in range(2 * PEOPLE)
    ]
    kept = [small[i] for i in range(PEOPLE) if i not in (2, 7)]
    both = [*kept, *(image[:, ::-1] for image in kept)]
    mean = np.mean(both, axis=0)
    predicted = []
    for query in small[PEOPLE:]:
        cosines = []
        for image in both:
            a, b = (query - mean).ravel(), (image - mean).ravel()
            cosines.append(a @ b / np.sqrt((a @ a) * (b @ b)))
        predicted.append(gallery[int(np.argmax(cosines))])
    check(rows_of(whole)["pixels", 0], predicted, people)


def test_a_mirrored_person_is_found_in_the_mirror(data, tmp_path):
    joints = leaning(8, 3)
    root = write_crops(
        tmp_path / "twins", np.concatenate([joints, [mirror(j) for j in joints]]), np.zeros((16, 14))
    )
    for i in range(8):
        image = draw(60 * joints[i] + 0.5, size=(60, 60))
        image.save(root / "images" / f"im{i + 1:04d}.png")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "images" / f"im{i + 9:04d}.png")
    for path in (root / "images").glob("*.jpg"):
        path.unlink()
    given = lsp.parse([*lsp_arguments(data, tmp_path / "out"), "--data-root", str(root)]).settled("cpu")
    task = lsp.prepare(given)
    for method in ("oracle", "pixels", "hog", "start", "random"):
        score = session.run_method(method, 0, task, tmp_path).score
        assert score.metrics["pcp_total"] == 100, method
        assert score.shown.flips[:, 0].all()
        assert score.shown.indices[:, 0].tolist() == list(range(8, 16))


# --- A whole run


def test_a_row_for_every_method(data, whole):
    rows = json.loads((whole / "results.json").read_text())
    assert [row["method"] for row in rows] == [*PLAIN, "random", *TRAINED]
    every = lsp.parse(lsp_arguments(data, whole, "--method", "all")).methods
    assert {*every} == {*lsp.LINE.methods} - {*options.FILES, "init"} >= {row["method"] for row in rows}
    for row in rows:
        metrics = row["metrics"]
        assert (row["dataset"], row["seed"]) == ("lsp", 0)
        assert metrics["pcp_total"] == pytest.approx(np.mean([metrics[f"pcp/{part}"] for part in PARTS]))
        assert metrics["sticks_left_out"] == 3
        rounds = [f"pcp_total_round_{number}" for number in (1, 2)] if row["method"] in TRAINED else []
        assert sorted(metrics) == sorted(
            [*(f"pcp/{p}" for p in PARTS), "pcp_total", "sticks_left_out", *rounds]
        )
        if rounds:
            assert metrics["pcp_total_round_2"] == metrics["pcp_total"]
    totals = {row["method"]: row["metrics"]["pcp_total"] for row in rows}
    assert all(totals["oracle"] > totals[method] for method in totals if method != "oracle"), totals


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
    views = {"num_images", "num_views", "flips", "scale", "brightness", "color", "gray"}
    assert more["hog-views"] == more["hog"] | views
    assert more["start"] == {"hog_size", "background", "first_similarities", "window"}
    assert {"image_size", "fc_dim", "layer", "precision", "device"} <= more["random"]
    assert not {"rounds", "pool"} & more["random"]
    posets = rows["posets", 0]["settings"]
    expected = {
        "pool": "LSP", "images": 20, "hog_size": 32, "first_similarities": "hog-window", "window": [0.2, 0.6],
        "components": 32, "rounds": 2, "iterations": 1, "fc_dim": 8, "preset": "tiny", "layer": "pool5",
        "regroup": "mixed", "init": None,
    }  # fmt: skip
    assert {name: posets[name] for name in expected} == expected
    assert "/" not in json.dumps([row["settings"] for row in rows.values()])  # no path of a machine


def test_table(whole):
    table, notes = (whole / "table.md").read_text().split("\n\n")
    header, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert header == ["method", "PCP total", *PARTS, "seeds", "round 1", "round 2", "paper (total, LSP)"]
    by_method = {line[0]: line for line in lines}
    assert list(by_method) == [*PLAIN, "random", *TRAINED]
    paper = {
        "oracle": "69.2", "cliques": "43.5 (from ImageNet)", "triplet": "30.0",
        "posets": "34.3 (from ImageNet: 48.3)",
    }  # fmt: skip
    assert {method: line[-1] for method, line in by_method.items() if line[-1]} == paper
    metrics = rows_of(whole)["posets", 0]["metrics"]
    names = ["pcp_total", *(f"pcp/{part}" for part in PARTS)]
    assert by_method["posets"][1:8] == [f"{metrics[name]:.1f}" for name in names]
    first, second, third = notes.splitlines()
    assert first == (
        "Strict PCP@0.5 in percent on 20 people (3 sticks not judged). Gallery: 18 people and their mirror "
        "images (2 left out, joints missing)."
    )
    assert second == "Here: LSP, learned from LSP; 64 px, random weights at the beginning, pool5 scored."
    for what in ("Leeds Sports", "227 px", "Olympic Sports frames", "Shuffle & Learn", "ImageNet weights"):
        assert what in third


@pytest.mark.parametrize("name", ["loss", "neighbors", "heatmaps"])
def test_pictures(whole, name):
    assert_picture(whole / f"{name}.png")


# --- Drawn figures, layers


def test_without_data_figures_are_drawn(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(options.FIGURE_SIZES, "tiny", RUNNERS)
    main(lsp_arguments(data, tmp_path, "--figures", "tiny", "--method", "oracle", "random", "--seed", 0, 1))
    said = capsys.readouterr().out
    assert "figures-tiny: 20 people, 15 to learn from, 5 to test on, 14 joints" in said
    assert "learned from: figures-tiny, 15 images" in said
    rows = rows_of(tmp_path)
    assert list(rows) == [("oracle", 0), ("random", 0), ("random", 1)]
    assert {row["dataset"] for row in rows.values()} == {"figures-tiny"}
    assert rows["random", 0]["settings"]["num_test"] == 5


@pytest.mark.parametrize(("layer", "width"), [("pool5", THIN[-1] * 9), ("fc7", 8)])
def test_layers(data, tmp_path, layer, width, monkeypatch):
    seen = []
    measured = lsp.Poses.measured
    monkeypatch.setattr(lsp.Poses, "measured", lambda self, pair: seen.append(pair) or measured(self, pair))
    main(lsp_arguments(data, tmp_path, "--method", "random", "--layer", layer))
    assert [part.shape for part in seen[0]] == [(2 * PEOPLE, width)] * 2
    assert rows_of(tmp_path)["random", 0]["settings"]["layer"] == layer


@pytest.mark.usefixtures("pictures")
def test_a_checkpoint_of_another_run_is_scored(data, whole, tmp_path):
    path = whole / "posets-seed0" / "checkpoint.pt"
    main(lsp_arguments(data, tmp_path, "--method", "checkpoint", "--checkpoint", path, "--fc-dim", 4))
    row, theirs = rows_of(tmp_path)["checkpoint", 0], rows_of(whole)["posets", 0]
    assert row["metrics"]["pcp_total"] == pytest.approx(theirs["metrics"]["pcp_total"])
    assert (row["settings"]["file"], row["settings"]["fc_dim"]) == ("checkpoint.pt", 8)
    assert (tmp_path / "neighbors.png").is_file()


# --- Going on


def test_a_run_goes_on_where_the_data_have_moved(data, whole, tmp_path):
    shutil.copytree(data / "lsp", tmp_path / "elsewhere" / "lsp")
    shutil.copytree(whole / "cliques-seed0", tmp_path / "out" / "cliques-seed0")
    chosen = lsp_arguments(data, tmp_path / "out", "--resume", "--method", "cliques")
    chosen[chosen.index("--data-root") + 1] = str(tmp_path / "elsewhere" / "lsp")
    main(chosen)
    found, expected = rows_of(tmp_path / "out")["cliques", 0], rows_of(whole)["cliques", 0]
    assert (found["metrics"], found["settings"]) == (expected["metrics"], expected["settings"])


def test_a_checkpoint_that_learned_from_others(data, whole, tmp_path):
    shutil.copytree(whole / "cliques-seed0", tmp_path / "cliques-seed0")
    with pytest.raises(
        ValueError, match=r"belongs to another run .*there your pool='LSP', here 'lspet\+lsp'"
    ):
        main(
            lsp_arguments(
                data,
                tmp_path,
                "--resume",
                "--method",
                "cliques",
                "--train-root",
                data / "lspet",
                data / "lsp",
            )
        )


# --- Real data


def test_ground_truth_on_leeds_sports(shared_data, tmp_path):
    chosen = ["--data-root", shared_data / "lsp", "--output", tmp_path, "--cache", tmp_path]
    task = lsp.prepare(lsp.parse([str(part) for part in chosen]).settled("cpu"))
    metrics = task.plain("oracle").metrics
    expected = {"T": 93.8, "UL": 78.5, "LL": 72.7, "UA": 61.9, "LA": 37.0, "H": 71.4}
    assert {part: round(metrics[f"pcp/{part}"], 1) for part in PARTS} == expected
    assert round(metrics["pcp_total"], 1) == 69.2
    assert metrics["sticks_left_out"] == 2
    assert (len(task.gallery), task.incomplete, len(task.people.test)) == (1000, 0, 1000)
