"""Files are written whole or not at all."""

import io
import zipfile
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pml_posets._io import atomic_write, check_folder, read_npz, write_npz
from pml_posets._sheets import save_sheet
from pml_posets.data.cache import FeatureCache
from pml_posets.plots import save_figure
from pml_posets.posets import Posets


def raising(error):
    def fail(*args, **kwargs):
        raise error

    return fail


FULL = OSError(28, "No space left on device")


def test_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    with atomic_write(path, "w", encoding="utf-8") as file:
        file.write("old")
        assert not path.exists()
    for error in (FULL, KeyboardInterrupt(), RuntimeError("x")):
        with pytest.raises(type(error)), atomic_write(path, "w") as file:  # noqa: PT012
            file.write("half")
            raise error
    monkeypatch.setattr("os.replace", raising(FULL))
    with pytest.raises(OSError, match="No space left"), atomic_write(path) as file:
        file.write(b"x")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


WRITERS = {
    "posets": Posets.build(np.eye(2), [0, 0]).save,
    "figure": partial(save_figure, SimpleNamespace(savefig=lambda file, **options: file.write(b"half"))),
    "sheet": partial(save_sheet, Image.new("RGB", (4, 4))),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_what_is_written_takes_the_place_of_an_old_file_when_it_is_whole(write, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_text("old")
    monkeypatch.setattr("os.replace", raising(FULL))
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"]


def test_arrays_come_back_and_damage_is_named(tmp_path):
    path = tmp_path / "a.npz"
    write_npz(path, {"x": np.arange(5), "text": np.array("text")})
    found = read_npz(path)
    assert found["x"].tolist() == [0, 1, 2, 3, 4]
    assert str(found["text"]) == "text"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"a\.npz is damaged"):
        read_npz(path)
    np.save(tmp_path / "b.npy", np.zeros(2))
    with pytest.raises(ValueError, match="damaged or no file of arrays"):
        read_npz(tmp_path / "b.npy")
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "none.npz")


@pytest.mark.parametrize("shape", [(10**13,), (250_000,)])
def test_a_file_claims_no_more_than_it_holds(shape, tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(4 * shape[0] if shape[0] < 10**9 else 8))
    with pytest.raises(ValueError, match=r"is damaged .*x\.npy claims [\d,]+ bytes in a file of"):
        read_npz(tmp_path / "a.npz")


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    folder = check_folder(tmp_path / "deep" / "er", num_bytes=1000)
    assert folder.is_dir()
    assert list(folder.iterdir()) == []
    (tmp_path / "file").write_text("x")
    for make in (check_folder, FeatureCache):
        for place in (tmp_path / "file", tmp_path / "file" / "out"):
            with pytest.raises(OSError, match=f"cannot write to the output folder {place} "):
                make(place)
    with pytest.raises(OSError, match="MB of room, 1000000000000 MB are needed"):
        check_folder(tmp_path, num_bytes=10**18)
    monkeypatch.setattr("pathlib.Path.write_bytes", raising(PermissionError(30, "Read-only file system")))
    with pytest.raises(OSError, match="Read-only"):
        check_folder(tmp_path)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError("no memory")])
def test_reading_that_fails_says_nothing_of_the_bytes(error, tmp_path, monkeypatch):
    write_npz(tmp_path / "a.npz", {"x": np.zeros(2)})
    monkeypatch.setattr(np, "load", raising(error))
    with pytest.raises(type(error)) as raised:
        read_npz(tmp_path / "a.npz")
    assert raised.value is error
