"""The README and the pages it leads to: code and commands run, links and names lead somewhere."""

import configparser
import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks import olympic
from pml_posets.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "docs" / page for page in ("getting-started.md", "how-to/photos.md", "how-to/rounds.md")]
TEXT = "\n".join([README, *(page.read_text(encoding="utf-8") for page in PAGES)])


def blocks(language):
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


def run_block(containing, changes=()):
    """Run the one Python block that contains a text, with some texts replaced; returns its names."""
    (code,) = [block for block in blocks("python") if containing in block]
    for old, new in changes:
        assert code.count(old) == 1, f"the block no longer holds {old!r} once"
        code = code.replace(old, new)
    names = {}
    exec(compile(code, "docs", "exec"), names)
    return names


def command(ending):
    """The one line that makes an environment and ends as given."""
    found = re.findall(rf"^python3 -m venv .*{re.escape(ending)}$", README, flags=re.MULTILINE)
    assert len(found) == 1, found
    return found[0]


@pytest.fixture
def draw_folder(monkeypatch):
    """The function of the example that draws a folder of figures."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("rounds_on_a_folder").draw_folder


def test_the_loss_drops_into_a_script():
    names = run_block("was: losses")
    assert names["loss"].item() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in names["model"].parameters())
    assert any((labels < 0).any() for _, labels in names["loader"])


def test_any_loss_trains_without_labels():
    names = run_block("PseudoLabelLoss(MultiSimilarityLoss(), sampler)")
    posets = names["sampler"].posets
    assert posets.num_classes > 5
    assigned = posets.labels >= 0
    pairs = posets.labels[:, None] == posets.labels
    planted = np.tile(np.arange(50), 4)
    right = (planted[:, None] == planted)[pairs & assigned & assigned[:, None]]
    assert right.mean() > 0.5
    assert names["trainer"].epoch == 2


def test_views_make_an_embedding():
    assert run_block("InstanceLDA().fit")["embeddings"].shape == (40, 39)


def test_rounds_run_on_a_folder(draw_folder, tmp_path, monkeypatch):
    draw_folder(tmp_path / "photos", num_postures=4, num_images=20)
    monkeypatch.chdir(tmp_path)
    changes = [("num_rounds=10", "num_rounds=2"), ("iterations_per_round=1000", "iterations_per_round=2")]
    names = run_block('image_files("photos")', changes)
    assert names["joint"].finished
    assert names["features"].shape == (80, 128)
    np.testing.assert_allclose(np.linalg.norm(names["features"], axis=1), 1, rtol=1e-5)
    assert (tmp_path / "runs" / "photos" / "checkpoint.pt").is_file()


def test_a_folder_is_embedded(draw_folder, tmp_path, monkeypatch):
    draw_folder(tmp_path / "photos", num_postures=4, num_images=5)
    monkeypatch.chdir(tmp_path)
    names = run_block("Embedder().fit(")
    assert names["embeddings"].shape == (20, 19)  # at most one column less than there are photos
    assert (tmp_path / "photos.embedder.npz").is_file()


def commands(start):
    """The arguments of the README's command lines that begin so."""
    lines = re.findall(rf"^{re.escape(start)}\b(.*)$", README, flags=re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_the_commands_for_photos_print(draw_folder, tmp_path, monkeypatch, capsys):
    draw_folder(tmp_path / "photos", num_postures=4, num_images=5)
    shutil.copy(next((tmp_path / "photos").rglob("*.png")), tmp_path / "query.jpg")
    monkeypatch.chdir(tmp_path)
    given = commands("python -m pml_posets")
    assert [arguments[0] for arguments in given] == ["embed", "search", "clusters", "duplicates"]
    for arguments in given:
        assert main(arguments) == 0
        assert capsys.readouterr().out.count("\n") >= 2, arguments


def test_the_command_for_a_table_is_one():
    options = olympic.parse(commands("python benchmarks/olympic.py")[0])
    assert (options.data.figures, options.seeds) == ("tiny", (0,))


@pytest.mark.parametrize("ending", ["benchmarks/olympic.py", "-m pytest -n 2 --dist loadfile"])
def test_the_commands_make_an_environment_and_run_one_thing(ending):
    environment, install, work = command(ending).split(" && ")
    assert environment == "python3 -m venv .venv"
    extra = re.fullmatch(r'\.venv/bin/pip install -q -e "\.\[(\w+)\]"', install).group(1)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert extra in setup["options.extras_require"]
    assert work.startswith(".venv/bin/python ")


def test_the_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README)
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), f"{link} does not exist"


def test_the_rooms_exist():
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", contributing.split("## The rooms")[1], flags=re.MULTILINE)
    rooms = [room for row in rows for room in re.findall(r"`(\w+)`", row)]
    assert len(rooms) > 10
    for room in rooms:
        assert importlib.util.find_spec(f"pml_posets.{room}") is not None, room
