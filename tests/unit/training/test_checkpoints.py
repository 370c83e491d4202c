"""Files that hold a run: whole, checked, and of this run."""

import collections
import enum
import os
import re
import zipfile

import numpy as np
import pytest
import torch

from pml_posets.training.checkpoints import check_settings, load_checkpoint, save_checkpoint

CONTENT = {"weights": torch.arange(5000.0), "position": [1, 2, True], "name": "a", "nothing": None}


def raising(error):
    def fail(*args, **kwargs):
        raise error

    return fail


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
    places = [content.find(part) + i for part in parts for i in (0, len(part) // 3, len(part) - 1)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 4
        saved.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.pt is damaged or none"):
            load_checkpoint(saved)


def test_any_flipped_bit_is_damage_or_none(saved):
    content = saved.read_bytes()
    for place in range(0, len(content), len(content) // 100):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        saved.write_bytes(flipped)
        try:
            load_checkpoint(saved)  # names and times in the archive do not matter
        except ValueError as error:
            assert re.search("damaged or none|format is not", str(error))  # noqa: PT017


@pytest.mark.parametrize("length", [0, 1, 100, 15_000])
def test_half_written(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(saved)


def test_no_checkpoint(tmp_path):
    path = tmp_path / "b.pt"
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*b\.pt"):
        load_checkpoint(path)
    torch.save({"weights": 1}, path)  # a whole file of something else
    with pytest.raises(ValueError, match="format is not 1"):
        load_checkpoint(path)
    torch.save({"format": 2}, path)
    with pytest.raises(ValueError, match="format is not 1 but 2"):
        load_checkpoint(path)


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
    monkeypatch.undo()
    with pytest.raises(OSError, match="cannot write the checkpoint"):
        save_checkpoint(saved.parent / "gone" / "a.pt", CONTENT)


@pytest.mark.parametrize("where", ["zipfile.ZipFile.testzip", "torch.load"])
@pytest.mark.parametrize(
    "error",
    [OSError(5, "Input/output error"), MemoryError("no memory"), PermissionError(13, "not allowed")],
)
def test_what_says_nothing_of_the_bytes_comes_through(error, where, saved, monkeypatch):
    monkeypatch.setattr(where, raising(error))
    with pytest.raises(type(error), match=str(error.args[-1])) as raised:
        load_checkpoint(saved)
    assert raised.value is error


def test_memory_that_torch_cannot_have(saved, monkeypatch):
    text = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
    monkeypatch.setattr(torch, "load", raising(RuntimeError(text)))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load_checkpoint(saved)


def test_numpy_numbers_and_other_subclasses_become_plain(tmp_path):
    class Level(enum.IntEnum):
        HIGH = 3

    content = {
        "a": np.float64(0.1), "b": [np.int32(1), (np.bool_(True), np.str_("x"))],
        "c": {np.int64(2): Level.HIGH}, "d": torch.nn.Parameter(torch.ones(2)),
        "e": collections.Counter(x=np.int64(1)),
    }  # fmt: skip
    save_checkpoint(tmp_path / "a.pt", content)
    found = load_checkpoint(tmp_path / "a.pt")
    assert found["a"] == 0.1
    assert type(found["a"]) is float
    assert found["b"] == [1, (True, "x")]
    assert found["c"] == {2: 3}
    assert type(found["d"]) is torch.Tensor
    assert found["e"] == {"x": 1}


@pytest.mark.parametrize("value", [np.zeros(2), np.random.default_rng(0), lambda: 0, object(), Code()])
def test_what_cannot_be_read_back_is_named_and_not_written(value, saved):
    old = saved.read_bytes()
    with pytest.raises(TypeError, match=r"state\['x'\]\[1\] is a "):
        save_checkpoint(saved, {"state": {"x": [1, value]}})
    assert saved.read_bytes() == old


@pytest.mark.parametrize("at", [1, 3, 8])
@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_ends_a_write_stays_what_it_is(raised, at, saved, monkeypatch):
    old, write, calls = saved.read_bytes(), torch.save, []

    class Interrupted:
        def __init__(self, file):
            self.file, self.flush = file, file.flush

        def write(self, data):
            calls.append(1)
            if len(calls) == at:
                raise raised("now")
            return self.file.write(data)

    monkeypatch.setattr(torch, "save", lambda content, file: write(content, Interrupted(file)))
    with pytest.raises(raised, match="now"):
        save_checkpoint(saved, {"weights": torch.ones(50_000)})
    assert saved.read_bytes() == old
    assert [path.name for path in saved.parent.iterdir()] == ["a.pt"]


ROWS = torch.linspace(1, 2, 10)
SHIFTED = ROWS + torch.eye(10)[4]


@pytest.mark.parametrize(
    ("found", "expected", "text"),
    [
        ({"a": 1, "b": None}, {"a": 1}, None),
        ({"a": ROWS, "b": float("nan")}, {"a": ROWS + 1e-6, "b": float("nan")}, None),
        ({"a": 1}, {"a": 2, "b": 3}, r"there a=1, here 2; there b=None, here 3"),
        ({"c": 5}, {}, r"there c=5, here None"),
        ({"a": ROWS}, {"a": SHIFTED}, r"there a=10 rows, here others in 1 of 10 rows \(the first is 4\)"),
        ({"a": ROWS}, {"a": ROWS[1:]}, r"there a=10 rows, here 9 rows"),
        ({"b": 1}, {"b": ROWS[:2]}, r"there b=1, here 2 rows"),
    ],
)
def test_settings_are_compared_both_ways_tensors_but_for_rounding(found, expected, text):
    if text is None:
        check_settings(found, expected, "x")
    else:
        with pytest.raises(ValueError, match=text):
            check_settings(found, expected, "x")
