"""Files that hold a run: whole, checked, and of this run."""

import os
import zipfile

import pytest
import torch

from pml_posets._io import check_folder
from pml_posets.training.checkpoints import check_settings, load_checkpoint, save_checkpoint

CONTENT = {"weights": torch.arange(5000.0), "position": [1, 2, True], "name": "a", "nothing": None}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, CONTENT)
    return path


def test_comes_back_as_it_was(saved):
    content = load_checkpoint(saved)
    assert torch.equal(content.pop("weights"), CONTENT["weights"])
    assert content == {"format": 1, "position": [1, 2, True], "name": "a", "nothing": None}
    assert [path.name for path in saved.parent.iterdir()] == ["a.pt"]


def test_every_byte_of_every_part_is_checked(saved):
    content = saved.read_bytes()
    with zipfile.ZipFile(saved) as archive:
        parts = [archive.read(info) for info in archive.infolist() if info.file_size > 8]
    assert len(parts) >= 2
    for part in parts:
        for place in (0, len(part) // 3, len(part) - 1):
            damaged = bytearray(content)
            damaged[content.find(part) + place] ^= 4
            saved.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"a\.pt is damaged or none"):
                load_checkpoint(saved)


@pytest.mark.parametrize("length", [0, 1, 100, 15_000])
def test_half_written(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(saved)


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*b\.pt"):
        load_checkpoint(tmp_path / "b.pt")
    torch.save({"weights": 1}, tmp_path / "b.pt")  # a whole file of something else
    with pytest.raises(ValueError, match="format is not 1"):
        load_checkpoint(tmp_path / "b.pt")


class Code:
    def __reduce__(self):
        return os.mkdir, ("/tmp/never-made",)


def test_nothing_in_the_file_is_run(tmp_path):
    torch.save({"format": 1, "code": Code()}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"a whole file, but no checkpoint.*posix\.mkdir"):
        load_checkpoint(tmp_path / "c.pt")
    assert not os.path.exists("/tmp/never-made")


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    old = saved.read_bytes()

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"cannot write the checkpoint .*No space left.*unchanged"):
        save_checkpoint(saved, {"weights": 2})
    assert saved.read_bytes() == old
    assert [path.name for path in saved.parent.iterdir()] == ["a.pt"]


def test_a_folder_that_is_gone(tmp_path):
    with pytest.raises(OSError, match="cannot write the checkpoint"):
        save_checkpoint(tmp_path / "gone" / "a.pt", CONTENT)


def test_check_folder(tmp_path, monkeypatch):
    folder = check_folder(tmp_path / "deep" / "er", num_bytes=1000)
    assert folder.is_dir()
    assert list(folder.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write to the output folder .*file"):
        check_folder(tmp_path / "file")
    with pytest.raises(OSError, match=r"MB of room, 1000000000000 MB are needed"):
        check_folder(tmp_path, num_bytes=10**18)

    def readonly(self, content):
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.write_bytes", readonly)
    with pytest.raises(OSError, match="Read-only"):
        check_folder(tmp_path)


def test_settings_are_compared_both_ways():
    check_settings({"a": 1, "b": None}, {"a": 1}, "x")
    with pytest.raises(ValueError, match=r"there a=1, here 2; there b=None, here 3"):
        check_settings({"a": 1}, {"a": 2, "b": 3}, "x")
    with pytest.raises(ValueError, match=r"there c=5, here None"):
        check_settings({"c": 5}, {}, "x")
