"""Decoded images in one mapped file: what is in it, when it is made, and what it says when it cannot be."""

import errno
import io
import multiprocessing
import os
import pickle
import time
from collections import namedtuple

import numpy as np
import pytest
import torch
from pictures import Noisy, generators, noise
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from pml_posets import _io
from pml_posets.data import image_store
from pml_posets.data.datasets import ImageList, IndexedDataset, UnreadableImageError
from pml_posets.data.image_store import ImageStore


@pytest.fixture
def paths(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    kinds = [((23, 31), "RGB", "png"), ((16, 16), "L", "png"), ((40, 12), "P", "png"), ((9, 9), "RGB", "jpg")]
    files = []
    for i, (size, mode, suffix) in enumerate(kinds):
        files.append(folder / f"{i}.{suffix}")
        Image.fromarray(noise(*size, i)).convert(mode).save(files[-1])
    return files


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store" / "deep"


class Counted(Dataset):
    """Yields (picture, label), counts how often it is asked, and may fail at the last picture."""

    def __init__(self, paths, error=None):
        self.paths, self.error, self.asked = paths, error, 0

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        self.asked += 1
        if self.error is not None and index == len(self) - 1:
            raise self.error
        return Image.open(self.paths[index]), index


class Drawn(Noisy):
    """Pictures that cannot be told from others by their attributes."""

    def __getitem__(self, index):
        super().__getitem__(index)
        return Image.fromarray(noise(8, 8, index))


def expected(path, size=16):
    with Image.open(path) as image:
        resized = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def make(dataset, folder, size=16, **options):
    return ImageStore(dataset, folder, size, progress=False, **options)


def files_in(folder):
    return sorted(os.listdir(folder))


# --- What is in it


@pytest.mark.parametrize("num_workers", [0, 2])
def test_content_is_pil_s_decoding_and_resizing(paths, folder, num_workers):
    store = make(ImageList(paths), folder, num_workers=num_workers)
    assert len(store) == 4
    assert store.shape == (4, 3, 16, 16)
    for index, path in enumerate(paths):
        assert store[index].dtype == torch.uint8
        assert torch.equal(store[index], expected(path))
    store[0].zero_()
    store.__getitems__([0])[0].zero_()
    assert torch.equal(store[0], expected(paths[0]))  # an item is the reader's own


def test_items_of_a_batch_more_images_than_the_loader_s_batch(folder):
    images = [noise(4, 4, seed) for seed in range(150)]
    store = make([(Image.fromarray(image), "label") for image in images], folder, size=4)
    for index in (0, 63, 64, 127, 128, 149, -1):
        np.testing.assert_array_equal(store[index].permute(1, 2, 0), images[index])
    batch = store.__getitems__([149, 3, 3])
    assert torch.equal(torch.stack(batch), torch.stack([store[149], store[3], store[3]]))
    with pytest.raises(IndexError):
        store[150]


# --- When it is made


def test_reused_when_nothing_changed_and_remade_when_a_file_does(paths, folder):
    first, again, changed = (Counted(paths) for _ in range(3))
    store, same = make(first, folder), make(again, folder)
    assert (first.asked, again.asked) == (4, 0)
    assert (same.path, same.data_id) == (store.path, store.data_id)
    assert files_in(folder) == [store.path.name]
    Image.fromarray(noise(seed=99)).save(paths[1])
    os.utime(paths[1], ns=(1, 1))
    new = make(changed, folder)
    assert changed.asked == 4
    assert new.path != store.path
    assert new.data_id != store.data_id
    assert torch.equal(new[1], expected(paths[1]))
    assert not torch.equal(store[1], new[1])


def test_another_size_set_or_order_is_another_file(paths, folder):
    stores = [
        make(ImageList(paths), folder),
        make(ImageList(paths), folder, size=8),
        make(ImageList(paths[::-1]), folder),
        make(Subset(ImageList(paths), [0, 1]), folder),
        make([Image.fromarray(noise(seed=0))] * 4, folder),
        make([Image.fromarray(noise(seed=1))] * 4, folder),
    ]
    assert len({store.path for store in stores}) == len({store.data_id for store in stores}) == 6
    assert torch.equal(stores[2][0], expected(paths[3]))


def test_data_id_stands_for_the_data(paths, folder):
    with pytest.raises(TypeError, match="cannot tell when a Drawn changes: give data_id"):
        make(Drawn(), folder)
    before = generators()
    stores = [make(Drawn(), folder, data_id=name) for name in ("a", "b")]
    assert generators() == before  # of the transforms too
    assert stores[0].path != stores[1].path
    assert make(Drawn(), folder, data_id="a").path == stores[0].path
    assert make(Drawn(), folder, size=8, data_id="a").path != stores[0].path
    store = make(Counted(paths), folder, data_id="mine")
    os.utime(paths[0], ns=(1, 1))
    data = Counted(paths)
    assert make(data, folder, data_id="mine").path == store.path
    assert data.asked == 0


# --- Half-made and damaged files


def test_a_half_made_file_is_never_taken(paths, folder):
    with pytest.raises(KeyboardInterrupt):
        make(Counted(paths, KeyboardInterrupt()), folder, data_id="x")
    assert files_in(folder) == []
    path = make(Counted(paths), folder).path
    whole = path.read_bytes()
    path.unlink()
    fresh, stale = (folder / f".{path.name}.{pid}.tmp" for pid in (111111, 222222))
    for part in (fresh, stale):
        part.write_bytes(whole[:-100])
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(stale, (two_days_ago, two_days_ago))
    data = Counted(paths)
    assert torch.equal(make(data, folder)[3], expected(paths[3]))
    assert data.asked == 4
    assert files_in(folder) == [fresh.name, path.name]  # somebody may still be writing the fresh one


def npy(shape, dtype):
    file = io.BytesIO()
    np.save(file, np.zeros(shape, dtype))
    return file.getvalue()


@pytest.mark.parametrize(
    "damaged",
    [None, b"", b"not a file of arrays", npy((4, 3, 8, 8), np.uint8), npy((4, 3, 16, 16), np.float32)],
    ids=["half", "empty", "other", "shape", "dtype"],
)
def test_a_damaged_file_is_made_again(paths, folder, damaged):
    path = make(ImageList(paths), folder).path
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damaged is None else damaged)
    make(ImageList(paths), folder)
    assert path.read_bytes() == whole


# --- What it says when it cannot be made


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", [ImageList, Counted])
def test_an_unreadable_image_is_named(paths, folder, kind, num_workers):
    paths[2].write_bytes(paths[2].read_bytes()[:60])
    before = multiprocessing.active_children()
    with pytest.raises(UnreadableImageError, match=r"cannot read the image .*2\.png") as caught:
        make(kind(paths), folder, num_workers=num_workers)
    if not num_workers:  # a worker's message holds its traceback
        assert str(caught.value).count("cannot read") == 1
    assert multiprocessing.active_children() == before  # though `caught` holds the loader's frames
    assert files_in(folder) == []


def test_an_image_that_is_gone_or_has_no_name(paths, folder):
    broken = Counted(paths, ValueError("no such box"))
    with pytest.raises(UnreadableImageError, match=r"cannot read the image .*3\.jpg: no such box"):
        make(broken, folder, data_id="x")
    with pytest.raises(UnreadableImageError, match="cannot read the image number 0: no such box"):
        make(Subset(broken, [3]), folder, data_id="x")
    paths[1].unlink()
    with pytest.raises(UnreadableImageError, match=r"cannot read the image .*1\.png"):
        make(Counted(paths), folder, data_id="x")


def test_a_full_disk_is_told_before_decoding(paths, folder, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(image_store.shutil, "disk_usage", lambda path: usage(9000, 6000, 3000))
    data = Counted(paths)
    text = r"images to .*npy \(there are 3,000 bytes free\): they take 3,072 bytes; free some space"
    with pytest.raises(OSError, match=text):
        make(data, folder)
    assert data.asked == 0
    assert files_in(folder) == []


class Full(io.BytesIO):
    def write(self, data):
        if self.tell() + len(data) > 1000:
            full()
        return super().write(data)


def full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("module", "name", "put"),
    [
        (_io, "open", lambda *arguments: Full()),  # while the images are written
        (image_store.np.lib.format, "write_array_header_1_0", full),
        (image_store.os, "fsync", full),
        (image_store.os, "replace", full),
    ],
)
def test_a_disk_that_fills_up_is_told(paths, folder, monkeypatch, module, name, put):
    monkeypatch.setattr(module, name, put, raising=False)
    with pytest.raises(OSError, match=r"cannot write .* \(No space left on device\): they take 3,072 bytes"):
        make(ImageList(paths), folder)
    monkeypatch.undo()
    assert files_in(folder) == []


def test_bad_arguments(paths, folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for dataset, place, size, error, message in (
        (ImageList(paths), folder, 0, ValueError, "size must be at least 1, got 0"),
        (ImageList(paths), folder, 8.5, TypeError, r"size must be an integer, got 8\.5"),
        ([], folder, 8, ValueError, "dataset must hold at least one sample, got none"),
        ([torch.zeros(3, 8, 8)], folder, 8, TypeError, "must yield PIL images, got Tensor: leave out its"),
        (ImageList(paths), tmp_path / "file" / "a", 8, OSError, "cannot write .*another folder"),
    ):
        with pytest.raises(error, match=message):
            make(dataset, place, size)


# --- Use


def test_works_in_the_workers_of_a_loader(paths, folder):
    store = make(ImageList(paths), folder)
    data = IndexedDataset(store, flips=np.array([False, True, False, False]))
    loader = DataLoader(data, batch_size=3, num_workers=1)
    images, indices = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert indices.tolist() == [0, 1, 2, 3]
    assert torch.equal(images[0], expected(paths[0]))
    assert torch.equal(images[1], expected(paths[1]).flip(-1))


def test_a_pickle_holds_no_images(folder):
    store = make([Image.fromarray(noise(32, 32, seed)) for seed in range(20)], folder, size=32)
    packed = pickle.dumps(store)
    assert len(packed) < 2000
    assert torch.equal(pickle.loads(packed)[7], store[7])
    store.path.unlink()
    with pytest.raises(OSError, match="are gone: make the ImageStore again"):
        pickle.loads(packed)
