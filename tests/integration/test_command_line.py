"""python -m pml_posets on a small drawn folder: every command, twice, and what it says when it cannot."""

import csv
import shutil
import sys

import pytest
import torch
from pictures import striped
from PIL import Image

from pml_posets import embedder
from pml_posets.__main__ import main


def draw(folder):
    """Six patterns of stripes, ten photos of each, a copy of one and a broken file."""
    (folder / "sub").mkdir(parents=True)
    for number, pixels in enumerate(striped(10, 40)):
        image = Image.fromarray(pixels)
        image.save(folder / f"{number // 10}-{number % 10}.png")
    image.save(folder / "sub" / "copy.png")
    (folder / "broken.jpg").write_bytes(b"half a photo")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command-line")
    draw(folder / "photos")
    assert main(["embed", str(folder / "photos"), "--output", str(folder / "out")]) == 0
    return folder


def run(capsys, *arguments, status=0):
    """What a command prints, or says of an error."""
    found = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert found == status, said.err
    return said.err if status else said.out


def test_embedding_again_has_nothing_to_do(embedded, capsys):
    before = (embedded / "out" / "embedder.npz").stat().st_mtime_ns
    out = run(capsys, "embed", embedded / "photos", "--output", embedded / "out")
    assert "61 photos: 0 new, 0 changed, 61 as before, 0 gone, 1 unreadable" in out
    assert "broken.jpg" in out
    assert "Judged without labels on 61 photos: score" in out
    assert (embedded / "out" / "embedder.npz").stat().st_mtime_ns == before
    report = (embedded / "out" / "report.md").read_text(encoding="utf-8")
    for picture in ("nearest.png", "map.png"):
        assert f"]({picture})" in report
        assert min(Image.open(embedded / "out" / picture).size) > 100


def test_search_finds_the_photo_and_its_kind(embedded, capsys):
    query = embedded / "photos" / "2-4.png"
    out = run(capsys, "search", embedded / "out", query, "--count", 5)
    lines = [line.split() for line in out.splitlines() if line.startswith("  ")]
    assert lines[0] == ["1.000", "2-4.png"]
    assert len(lines) == 5
    assert sum(name.startswith("2-") for _, name in lines) >= 4
    assert Image.open(embedded / "out" / "search.png").size[0] > 500


def test_duplicates_are_listed(embedded, capsys):
    out = run(capsys, "duplicates", embedded / "out", "--threshold", 0.9999)
    assert "groups of photos whose thumbnails have a similarity of 0.9999 or more: 1\n" in out
    with open(embedded / "out" / "duplicates.csv", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["group", "file"], ["0", "5-9.png"], ["0", "sub/copy.png"]]


def test_clusters_and_map(embedded, capsys):
    out = run(capsys, "clusters", embedded / "out", "--count", 6)
    assert "6 clusters of 61 photos, 0 photos in none" in out
    with open(embedded / "out" / "clusters.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 61
    assert {row["cluster"] for row in rows} == set("012345")
    run(capsys, "clusters", embedded / "out")
    out = run(capsys, "picture", embedded / "out", "--method", "pca")
    assert "PCA map of 61 photos" in out


def test_a_network_of_ones_own_is_used_and_asked_for_again(embedded, capsys, tmp_path, monkeypatch):
    (tmp_path / "tinynet.py").write_text(
        "import torch\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    layers = [torch.nn.Conv2d(3, 8, 3, 2), torch.nn.ReLU(), torch.nn.Conv2d(8, 12, 3, 2)]\n"
        "    return torch.nn.Sequential(*layers, torch.nn.Flatten())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    given = ("--network", "tinynet:build", "--layers", "1", "2", "--image-size", 40, "--amp", "bfloat16")
    out = run(capsys, "embed", embedded / "photos", "--output", tmp_path / "out", *given)
    assert "20 columns from layers 1, 2" in out
    seen = []
    extract = embedder.extract
    monkeypatch.setattr(embedder, "extract", lambda *a, **how: seen.append(how["amp"]) or extract(*a, **how))
    out = run(capsys, "search", tmp_path / "out", embedded / "photos" / "0-0.png", "--count", 1)
    assert out.splitlines()[1].split() == ["1.000", "0-0.png"]
    assert seen == [torch.bfloat16]


def test_torchvision_names_take_local_weights(embedded, capsys, tmp_path):
    from torchvision.models import mobilenet_v3_small

    torch.save(mobilenet_v3_small().state_dict(), tmp_path / "weights.pt")
    given = ("--network", "mobilenet_v3_small", "--image-size", 32, "--layers", "features.9")
    given += ("--weights", tmp_path / "weights.pt")
    out = run(capsys, "embed", embedded / "photos", "--output", tmp_path / "out", *given)
    assert "columns from layers features.9" in out


NEW, AGAIN = "embed {photos} --output new", "embed {photos} --output {out}"
UNFIT = "is no state dict of --network squeezenet1_1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("search none query.jpg", "none holds no embeddings: run python -m pml_posets embed PHOTOS"),
        ("clusters none", "holds no embeddings"),
        ("embed nowhere --output new", "nowhere is no folder"),
        ("search {out} {photos}/broken.jpg", "broken.jpg"),
        (f"{NEW} --network no_such:build", "No module named 'no_such'"),
        (f"{NEW} --network tinynet:build", "must return a torch module, got int"),
        (f"{NEW} --layers x", "--layers is of a network, and none is given: give --network"),
        (f"{NEW} --weights x", "--weights is of a network"),
        (f"{NEW} --amp bfloat16", "--amp is of a network"),
        (f"{NEW} --network alexnet", "needs --weights FILE: nothing is downloaded"),
        (f"{NEW} --network squeezenet1_1 --weights {{photos}}/0-0.png", f"0-0.png {UNFIT}"),
        (f"{NEW} --network squeezenet1_1 --weights other.pt", f"other.pt {UNFIT}"),
        # Other options than before.
        (f"{AGAIN} --network x:y", "was embedded with HOG, not with x:y: choose another"),
        (f"{AGAIN} --image-size 64", "was embedded with image-size 96, not 64: choose"),
        (f"{AGAIN} --no-mirror", "was embedded with no-mirror False, not True"),
        (f"{AGAIN} --amp bfloat16", "was embedded with amp None, not bfloat16"),
        (f"{AGAIN} --layers x", "was embedded with layers [], not ['x']"),
    ],
)
def test_errors_are_said_in_one_line(arguments, message, embedded, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(1)}, "other.pt")
    (tmp_path / "tinynet.py").write_text("build = int\n")
    monkeypatch.delitem(sys.modules, "tinynet", raising=False)
    arguments = arguments.format(out=embedded / "out", photos=embedded / "photos").split()
    err = run(capsys, *arguments, status=1)
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"network": null, "weights": null, "amp": "float8"}'])
def test_damaged_settings_are_named(text, embedded, capsys, tmp_path):
    shutil.copytree(embedded / "out", tmp_path / "out")
    (tmp_path / "out" / "settings.json").write_text(text)
    err = run(capsys, "search", tmp_path / "out", embedded / "photos" / "2-4.png", status=1)
    assert "settings.json is damaged or missing" in err
