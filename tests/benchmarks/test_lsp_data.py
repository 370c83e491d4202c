"""What lsp.py learns from, and what it says to data that are incomplete, damaged or of no use."""

import shutil

import numpy as np
import pytest
from benchmark_runs import few_patches, rows_of
from PIL import Image
from pose_trees import PEOPLE, RUNNERS, lsp_arguments, write_lsp_and_more

from benchmarks import lsp
from benchmarks.core import options
from benchmarks.data.poses import load_lsp
from benchmarks.figures.dataset import make_figures
from benchmarks.lsp import main


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """LSP, its extended set and a tree of olympic.py beside the folder for what is made of them once."""
    root = write_lsp_and_more(tmp_path_factory.mktemp("data"), PEOPLE)
    make_figures(root / "tree", num_workers=1, **RUNNERS)
    with few_patches():
        yield root


# --- What is learned from


def pool_of(data, *roots):
    given = lsp.parse(lsp_arguments(data, data / "unused", "--method", "random", "--train-root", *roots))
    return lsp.read_pool(load_lsp(data / "lsp"), given)


def same(found, expected):
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(found, expected, strict=True))


def test_several_folders_are_learned_from_together(data, capsys):
    pool = pool_of(data, data / "lspet", data / "tree", data / "lsp")
    said = capsys.readouterr().out
    assert "LSPET: 6 people" in said
    assert "20 frames, 1 categories" in said
    assert pool.name == "lspet+tree+lsp"
    assert len(pool.images) == len(pool.names) == 6 + 20 + PEOPLE
    # crops of the extended set, frames of the tree, the train half: in this order, and nobody to test on
    people = load_lsp(data / "lsp")
    assert same((pool.images[26 + i] for i in range(PEOPLE)), (people.images[i] for i in range(PEOPLE)))
    extended = (Image.open(data / "lspet" / "images" / f"im0000{i}.jpg") for i in range(1, 7))
    assert same((pool.images[i] for i in range(6)), extended)
    # each crop is its own source, the frames of an athlete share theirs
    athletes = np.repeat(np.arange(6, 10), 5)
    assert pool.sources.tolist() == [*range(6), *athletes, *range(10, 10 + PEOPLE)]
    assert len(set(pool.names)) == len(pool.names)


def test_only_the_train_half_of_lsp_is_learned_from_wherever_it_lies(data, tmp_path):
    shutil.copytree(data / "lsp", tmp_path / "copy")
    here, there = pool_of(data, data / "lsp"), pool_of(data, tmp_path / "copy")
    assert len(here.images) == len(there.images) == PEOPLE
    assert here.names == there.names
    assert here.images.data_id != there.images.data_id  # which is for caches


def test_images_of_the_test_people_are_learned_from_when_asked_for(data):
    people = load_lsp(data / "lsp")
    alone, more = pool_of(data, data / "lsp"), pool_of(data, data / "lspet", data / "lsp", "--transductive")
    assert (alone.name, more.name) == ("lsp", "lspet+lsp+test images")
    assert len(more.images) == len(set(more.names)) == 6 + 2 * PEOPLE
    assert same((more.images[6 + PEOPLE + i] for i in range(PEOPLE)), (people.images[i] for i in people.test))
    assert more.sources.tolist() == list(range(6 + 2 * PEOPLE))
    np.testing.assert_array_equal(more.joints[6 : 6 + PEOPLE], people.joints[people.train])
    assert np.isnan(more.joints[6 + PEOPLE :]).all()  # their poses stay hidden


def test_what_a_transductive_run_is_called(data, tmp_path, capsys):
    main(lsp_arguments(data, tmp_path, "--transductive", "--method", "random"))
    assert f"learned from: lsp+test images, {2 * PEOPLE} images" in capsys.readouterr().out
    assert rows_of(tmp_path)["random", 0]["dataset"] == "lsp, learned on lsp+test images"


def test_drawn_frames_of_an_athlete_share_their_source(data, tmp_path, monkeypatch):
    monkeypatch.setitem(options.FIGURE_SIZES, "tiny", RUNNERS)
    given = lsp.parse(lsp_arguments(data, tmp_path, "--figures", "tiny", "--method", "random")).settled("cpu")
    task = lsp.prepare(given)
    assert task.pool.sources.tolist() == np.repeat([0, 1, 2], 5).tolist()
    assert task.start.sources is task.pool.sources


def test_a_run_that_learns_from_several_folders(data, tmp_path, capsys):
    roots = [data / name for name in ("lspet", "tree", "lsp")]
    main(lsp_arguments(data, tmp_path, "--train-root", *roots, "--method", "hog", "ntxent", "--rounds", 1))
    assert "learned from: lspet+tree+lsp, 46 images" in capsys.readouterr().out
    rows = rows_of(tmp_path)
    assert {row["dataset"] for row in rows.values()} == {"lsp, learned on lspet+tree+lsp"}
    settings = rows["ntxent", 0]["settings"]
    assert (settings["pool"], settings["images"], settings["num_test"]) == ("lspet+tree+lsp", 46, 20)
    assert rows["hog", 0]["settings"]["background"] == "lspet+tree+lsp"
    assert "Here: LSP, learned from lspet+tree+lsp; 64 px" in (tmp_path / "table.md").read_text()
    with pytest.raises(ValueError, match=r"is of other data \(lsp, learned on lspet\+tree\+lsp, here lsp\)"):
        main(lsp_arguments(data, tmp_path, "--resume"))


def test_hog_is_centered_on_what_is_learned_from(data, tmp_path):
    """The same people in the same cache, described against other backgrounds."""
    found = []
    for root in ("lsp", "lspet", "lsp"):
        given = lsp_arguments(data, tmp_path, "--method", "random", "--train-root", data / root)
        found.append(lsp.prepare(lsp.parse(given).settled("cpu")).tested.hog("hog")[0])
    np.testing.assert_array_equal(found[0], found[2])
    assert np.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("roots", "text"),
    [
        (["file"], r"file is no folder: score it by --method checkpoint --checkpoint .*file$"),
        (["lspet", "nowhere"], "--train-root .*nowhere is no folder$"),
        (["lspet", "tree", "lspet/."], "names a folder twice"),
    ],
)
def test_train_roots_that_are_wrong(data, tmp_path, roots, text):
    (data / "file").touch()
    roots = [f"{data}/{root}" for root in roots]
    with pytest.raises(ValueError, match=text):
        main(lsp_arguments(data, tmp_path / "out", "--method", "random", "--train-root", *roots))
    assert not (tmp_path / "out").exists()  # before any work


# --- Bad data


@pytest.fixture
def broken(data, tmp_path):
    """Copies of LSP and its extended set, to be broken."""
    for name in ("lsp", "lspet"):
        shutil.copytree(data / name, tmp_path / "data" / name)
    return tmp_path / "data"


def lose_joints(root, which):
    with np.load(root / "lsp" / "joints.npz") as file:
        content = dict(file)
    content["joints"][which] = np.nan
    np.savez(root / "lsp" / "joints.npz", **content)


def test_unreadable_images(broken, tmp_path, capsys):
    chosen = lsp_arguments(broken, tmp_path / "out", "--method", "oracle", "--train-root", broken / "lspet")
    for path in (broken / "lspet" / "images" / "im00002.jpg", broken / "lsp" / "images" / "im0030.jpg"):
        image = path.read_bytes()
        path.unlink()
        with pytest.raises(OSError, match=rf"{path.name}: there is no such file.*--skip-unreadable"):
            main(chosen)
        path.write_bytes(image[:200])
    main([*chosen, "--skip-unreadable"])
    said = capsys.readouterr().out
    for text in ("im0030", "im00002"):
        assert f"left out, image missing or damaged: 1 ({text})" in said
    settings = rows_of(tmp_path / "out")["oracle", 0]["settings"]
    assert settings["left_out"]["image missing or damaged"] == 1
    assert (settings["num_train"], settings["num_test"]) == (20, 19)


def test_missing_joints(broken, tmp_path, capsys):
    lose_joints(broken, [4, 33])
    main(lsp_arguments(broken, tmp_path / "out", "--method", "mean-pose"))
    assert "left out, no joint annotated: 2 (im0005, im0034)" in capsys.readouterr().out
    settings = rows_of(tmp_path / "out")["mean-pose", 0]["settings"]
    assert (settings["gallery"], settings["num_test"]) == (17, 19)
    lose_joints(broken, np.s_[:PEOPLE, 3])
    with pytest.raises(ValueError, match="nobody to learn from in LSP has every joint annotated"):
        main(lsp_arguments(broken, tmp_path / "none", "--method", "oracle"))
    assert not (tmp_path / "none" / "results.json").exists()


def test_fewer_images_than_a_batch(data, tmp_path):
    chosen = lsp_arguments(data, tmp_path / "out", "--method", "cliques", "--batch-size", 60)
    with pytest.raises(ValueError, match=r"60 images, but LSP holds only 20 \(each with its mirror image\)"):
        main(chosen)
