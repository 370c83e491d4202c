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
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from pml_posets import _io
from pml_posets.data import image_store
from pml_posets.data.datasets import ImageList, IndexedDataset, UnreadableImageError
from pml_posets.data.image_store import ImageStore


def picture(seed, size=(23, 31), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def paths(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    files = []
    for i, (size, mode, suffix) in enumerate(
        [((23, 31), "RGB", "png"), ((16, 16), "L", "png"), ((40, 12), "P", "png"), ((9, 9), "RGB", "jpg")]
    ):
        files.append(folder / f"{i}.{suffix}")
        picture(i, size, mode).save(files[-1])
    return files


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store" / "deep"


class Counted(Dataset):
    """Yields (picture, label) and counts how often it is asked."""

    def __init__(self, paths):
        self.paths, self.asked = paths, 0

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        self.asked += 1
        return Image.open(self.paths[index]), index


class Crops(Dataset):
    """Cannot be told from another one by its attributes."""

    def __init__(self, left):
        self.left = left

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return picture(index).crop((self.left, 0, self.left + 8, 8))


def expected(path, size):
    with Image.open(path) as image:
        resized = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def make(dataset, folder, size=16, **options):
    return ImageStore(dataset, folder, size, progress=False, **options)


def files_in(folder):
    return sorted(os.listdir(folder))


def retouch(path, seed=99):
    picture(seed).save(path)
    os.utime(path, ns=(1, 1))


# --- what is in it


@pytest.mark.parametrize("num_workers", [0, 2])
def test_content_is_pil_s_decoding_and_resizing(paths, folder, num_workers):
    store = make(ImageList(paths), folder, num_workers=num_workers)
    assert len(store) == 4
    assert store.shape == (4, 3, 16, 16)
    for index, path in enumerate(paths):
        assert store[index].dtype == torch.uint8
        assert torch.equal(store[index], expected(path, 16))


def test_items_of_a_batch_more_images_than_the_loader_s_batch(folder):
    store = make([picture(i, (5, 4)) for i in range(150)], folder, size=4)
    for index in (0, 63, 64, 127, 128, 149):
        resized = picture(index, (5, 4)).resize((4, 4), Image.Resampling.BILINEAR)
        assert torch.equal(store[index], torch.from_numpy(np.array(resized)).permute(2, 0, 1))
    batch = store.__getitems__([149, 3, 3])
    assert [torch.equal(a, store[i]) for a, i in zip(batch, (149, 3, 3), strict=True)] == [True] * 3
    assert torch.equal(store[-1], store[149])
    with pytest.raises(IndexError):
        store[150]


def test_an_item_is_the_reader_s_own(paths, folder):
    store = make(ImageList(paths), folder)
    store[0].zero_()
    store.__getitems__([0])[0].zero_()
    assert torch.equal(store[0], expected(paths[0], 16))


def test_tuples_give_their_first_element(paths, folder):
    store = make(Counted(paths), folder)
    assert torch.equal(store[2], expected(paths[2], 16))


# --- when it is made


def test_reused_when_nothing_changed(paths, folder):
    first = Counted(paths)
    store = make(first, folder)
    again = Counted(paths)
    same = make(again, folder)
    assert (first.asked, again.asked) == (4, 0)
    assert same.path == store.path
    assert same.data_id == store.data_id
    assert files_in(folder) == [store.path.name]
    assert torch.equal(same[3], store[3])


def test_remade_when_a_file_changes(paths, folder):
    old = make(Counted(paths), folder)
    retouch(paths[1])
    data = Counted(paths)
    new = make(data, folder)
    assert data.asked == 4
    assert new.path != old.path
    assert new.data_id != old.data_id
    assert torch.equal(new[1], expected(paths[1], 16))
    assert not torch.equal(old[1], new[1])


def test_another_size_set_or_order_is_another_file(paths, folder):
    stores = [
        make(ImageList(paths), folder),
        make(ImageList(paths), folder, size=8),
        make(ImageList(paths[::-1]), folder),
        make(Subset(ImageList(paths), [0, 1]), folder),
        make([picture(0)] * 4, folder),
        make([picture(1)] * 4, folder),
    ]
    assert len({store.path for store in stores}) == len({store.data_id for store in stores}) == 6
    assert torch.equal(stores[2][0], expected(paths[3], 16))


def test_data_id_stands_for_data_that_cannot_be_told(folder):
    with pytest.raises(TypeError, match="cannot tell when a Crops changes: give data_id"):
        make(Crops(0), folder)
    left, right = (make(Crops(x), folder, data_id=f"crops from {x}") for x in (0, 9))
    assert left.path != right.path
    assert not torch.equal(left[0], right[0])
    assert make(Crops(0), folder, data_id="crops from 0").path == left.path
    assert make(Crops(0), folder, size=8, data_id="crops from 0").path != left.path


def test_data_id_wins_over_the_files(paths, folder):
    store = make(Counted(paths), folder, data_id="mine")
    retouch(paths[0])
    data = Counted(paths)
    assert make(data, folder, data_id="mine").path == store.path
    assert data.asked == 0


def test_making_it_draws_no_global_randomness(folder):
    class Drawing(Crops):
        def __getitem__(self, index):
            torch.rand(1)
            return super().__getitem__(index)

    before = torch.get_rng_state()
    make(Drawing(0), folder, data_id="x")
    assert torch.equal(before, torch.get_rng_state())


# --- half-made and damaged files


def test_a_half_made_file_is_never_taken(paths, folder):
    class Killed(Counted):
        def __getitem__(self, index):
            if index == 3:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        make(Killed(paths), folder)
    assert files_in(folder) == []
    data = Counted(paths)
    store = make(data, folder)
    assert data.asked == 4
    assert torch.equal(store[3], expected(paths[3], 16))


def test_what_a_killed_process_left_is_not_taken_and_cleared_in_time(paths, folder):
    path = make(Counted(paths), folder).path
    whole = path.read_bytes()
    path.unlink()
    fresh, stale = (folder / f".{path.name}.{pid}.tmp" for pid in (111111, 222222))
    for part in (fresh, stale):
        part.write_bytes(whole[:-100])
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(stale, (two_days_ago, two_days_ago))
    data = Counted(paths)
    assert torch.equal(make(data, folder)[3], expected(paths[3], 16))
    assert data.asked == 4
    assert files_in(folder) == [fresh.name, path.name]  # somebody may still be writing the fresh one


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: b"",
        lambda whole: b"not a file of arrays",
        lambda whole: npy(np.zeros((4, 3, 8, 8), np.uint8)),
        lambda whole: npy(np.zeros((4, 3, 16, 16), np.float32)),
    ],
)
def test_a_damaged_file_is_made_again(paths, folder, damage):
    path = make(ImageList(paths), folder).path
    path.write_bytes(damage(path.read_bytes()))
    store = make(ImageList(paths), folder)
    for index in range(4):
        assert torch.equal(store[index], expected(paths[index], 16))


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# --- what it says when it cannot be made


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


def test_an_image_that_is_gone_is_named(paths, folder):
    data = Counted(paths)
    paths[1].unlink()
    with pytest.raises(UnreadableImageError, match=r"cannot read the image .*1\.png"):
        make(data, folder, data_id="x")


def test_without_names_the_number_is_given(folder):
    class Broken(Crops):
        def __getitem__(self, index):
            raise ValueError("no such box")

    with pytest.raises(UnreadableImageError, match="cannot read the image number 0: no such box"):
        make(Broken(0), folder, data_id="x")


def test_a_full_disk_is_told_before_decoding(paths, folder, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(image_store.shutil, "disk_usage", lambda path: usage(9000, 6000, 3000))
    data = Counted(paths)
    with pytest.raises(
        OSError,
        match=r"images to .*npy \(there are 3,000 bytes free\): they take 3,072 bytes; free some space",
    ):
        make(data, folder)
    assert data.asked == 0
    assert files_in(folder) == []


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_disk_that_fills_up_is_told(paths, folder, monkeypatch, step):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "write":
        monkeypatch.setattr(image_store.np.lib.format, "write_array_header_1_0", full)
    else:
        monkeypatch.setattr(image_store.os, step, full)
    with pytest.raises(OSError, match=r"cannot write .* \(No space left on device\): they take 3,072 bytes"):
        make(ImageList(paths), folder)
    monkeypatch.undo()
    assert files_in(folder) == []


def test_images_that_do_not_fit_while_they_are_written(paths, folder, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            if self.tell() + len(data) > 1000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr(_io, "open", lambda *arguments: Full(), raising=False)
    with pytest.raises(OSError, match="No space left on device"):
        make(ImageList(paths), folder)
    assert files_in(folder) == []


def test_a_folder_that_cannot_be_made_is_told(paths, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write the decoded images to .*another folder"):
        make(ImageList(paths), tmp_path / "file" / "store")


def test_bad_arguments(paths, folder):
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        make(ImageList(paths), folder, size=0)
    with pytest.raises(TypeError, match=r"size must be an integer, got 8\.5"):
        make(ImageList(paths), folder, size=8.5)
    with pytest.raises(ValueError, match="dataset must hold at least one sample, got none"):
        make([], folder)
    with pytest.raises(TypeError, match="must yield PIL images, got Tensor: leave out its transform"):
        make([torch.zeros(3, 8, 8)], folder)


# --- use


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_works_in_the_workers_of_a_loader(paths, folder, context):
    store = make(ImageList(paths), folder)
    loader = DataLoader(
        IndexedDataset(store, flips=np.array([False, True, False, False])),
        batch_size=3,
        num_workers=1,
        multiprocessing_context=context,
    )
    images, indices = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert indices.tolist() == [0, 1, 2, 3]
    assert torch.equal(images[0], expected(paths[0], 16))
    assert torch.equal(images[1], expected(paths[1], 16).flip(-1))


def test_batches_straight_from_a_loader(paths, folder):
    store = make(ImageList(paths), folder)
    batches = list(DataLoader(store, batch_size=4, num_workers=1))
    assert torch.equal(batches[0], torch.stack([expected(path, 16) for path in paths]))


def test_a_pickle_holds_no_images(folder):
    store = make([picture(i) for i in range(20)], folder, size=32)
    packed = pickle.dumps(store)
    assert len(packed) < 2000
    assert torch.equal(pickle.loads(packed)[7], store[7])
    store.path.unlink()
    with pytest.raises(OSError, match="are gone: make the ImageStore again"):
        pickle.loads(packed)
