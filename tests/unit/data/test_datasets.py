"""Indexed datasets and lists of images."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pml_posets._random import derive_seeds, preserved_randomness, seed_everything
from pml_posets.data.datasets import (
    ImageList,
    IndexedDataset,
    UnreadableImageError,
    WithViews,
    image_files,
    mirror,
)


class Noisy(Dataset):
    """Images whose augmentation draws from all three global generators."""

    def __init__(self, size=12):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        draws = [torch.rand(()).item(), np.random.rand(), random.random()]  # noqa: NPY002
        return torch.tensor(draws).float().reshape(1, 1, 3) + index, "a label"


@pytest.fixture
def folder(tmp_path):
    for name, color in (("b.png", 10), ("a.JPG", 20), ("deep/c.png", 30)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (9, 7), color).save(tmp_path / name, format="png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


# --- IndexedDataset


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x, 3), lambda x: [x, "label", 5]])
def test_yields_the_image_and_its_index(wrap):
    images = [torch.full((3, 2, 2), float(i)) for i in range(4)]
    data = IndexedDataset([wrap(image) for image in images])
    assert len(data) == 4
    for i in range(4):
        image, index = data[i]
        assert index == i
        assert torch.equal(image, images[i])


def test_flips_by_array_function_and_replacement():
    images = [torch.arange(3.0).reshape(1, 1, 3) for _ in range(3)]
    data = IndexedDataset(images, flips=np.array([False, True, False]))
    assert [data[i][0].flatten().tolist() for i in range(3)] == [[0, 1, 2], [2, 1, 0], [0, 1, 2]]
    data.flips = lambda index: index == 0
    assert [data[i][0].flatten().tolist() for i in range(2)] == [[2, 1, 0], [0, 1, 2]]
    data.flips = None
    assert data[1][0].flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_seed_alone_decides_the_augmentation(num_workers):
    data = IndexedDataset(Noisy())
    keys = [[(3, 11), (5, 12)], [(3, 11), (3, 13)]]
    loader = DataLoader(data, batch_sampler=keys, num_workers=num_workers)
    seed_everything(99)
    first, second = (images for images, _ in loader)
    assert torch.equal(first[0], second[0])  # same index, same seed, another batch
    assert not torch.equal(second[0], second[1])  # same index, another seed
    assert torch.equal(first[1], data[(5, 12)][0])  # alone as in a batch, in this process as in a worker


class AtOnce(Noisy):
    """Loads a batch at once."""

    def __getitems__(self, indices):
        self.asked = indices
        return [self[index] for index in indices]


def test_a_dataset_that_loads_batches_is_asked_to():
    plain = AtOnce()
    data = IndexedDataset(plain, flips=np.arange(12) == 5)
    seed_everything(1)
    first = data.__getitems__([(3, 11), (5, 12)])
    assert plain.asked == [3, 5]
    again = data.__getitems__([(3, 11), (5, 99)])
    assert [index for _, index in first] == [3, 5]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again, strict=True))
    other = data.__getitems__([(3, 10), (5, 12)])
    assert not torch.equal(first[0][0], other[0][0])
    data.flips = None
    assert torch.equal(data.__getitems__([(3, 11), (5, 12)])[1][0], first[1][0].flip(-1))
    assert len({float(image[0, 0, 0]) for image, _ in data.__getitems__([3, 3, 3])}) == 3


def test_a_seeded_sample_leaves_the_generators_alone():
    data = IndexedDataset(Noisy())
    seed_everything(5)
    expected = (torch.rand(3), np.random.rand(3), random.random())  # noqa: NPY002
    seed_everything(5)
    data.__getitems__([(1, 7), (2, 8)])
    found = (torch.rand(3), np.random.rand(3), random.random())  # noqa: NPY002
    assert torch.equal(expected[0], found[0])
    assert np.array_equal(expected[1], found[1])
    assert expected[2] == found[2]


def test_without_a_seed_the_augmentation_varies():
    data = IndexedDataset(Noisy())
    assert not torch.equal(data[3][0], data[3][0])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((iter([1]),), TypeError, "length and items"),
        (([],), ValueError, "at least one sample"),
        (
            ([torch.zeros(1, 2, 2)] * 3, [True, False]),
            ValueError,
            r"shape \(3,\) to match the dataset, got \(2,\)",
        ),
        (([torch.zeros(1, 2, 2)] * 2, [0, 1]), TypeError, "booleans"),
    ],
)
def test_bad_arguments(arguments, error, text):
    with pytest.raises(error, match=text):
        IndexedDataset(*arguments)


def test_bad_samples():
    with pytest.raises(TypeError, match=r"dict with the keys \['image'\]"):
        IndexedDataset([{"image": 1}])[0]
    with pytest.raises(IndexError, match=r"0\.\.0, got 1"):
        IndexedDataset([torch.zeros(1)])[1]
    with pytest.raises(IndexError, match="got -1"):
        IndexedDataset([torch.zeros(1)])[-1]


# --- mirror


def test_mirror_of_every_kind():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert mirror(array).tolist() == [[2, 1, 0], [5, 4, 3]]
    assert mirror(torch.from_numpy(array)[None]).tolist() == [[[2, 1, 0], [5, 4, 3]]]
    assert np.asarray(mirror(Image.fromarray(array))).tolist() == [[2, 1, 0], [5, 4, 3]]
    color = np.stack([array] * 3, axis=2)
    assert np.array_equal(mirror(color), color[:, ::-1])
    views = mirror((array, color))
    assert isinstance(views, tuple)
    assert np.array_equal(views[1], color[:, ::-1])
    with pytest.raises(TypeError, match=r"to be mirrored, got builtins\.str"):
        mirror("image")


# --- ImageList


def test_image_files_sorted_in_depth(folder):
    assert [path.name for path in image_files(folder)] == ["a.JPG", "b.png", "c.png"]
    with pytest.raises(NotADirectoryError, match="nowhere"):
        image_files(folder / "nowhere")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        image_files(folder / "empty")


def test_image_list_reads_rgb_in_order(folder):
    images = ImageList(image_files(folder))
    assert [images[i].getpixel((0, 0)) for i in range(3)] == [(20,) * 3, (10,) * 3, (30,) * 3]
    sizes = ImageList(image_files(folder), transform=lambda image: image.size)
    assert sizes[0] == (9, 7)


def test_unreadable_images_are_named_or_counted(folder):
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])
    paths = [*image_files(folder), folder / "missing.png"]
    images = ImageList(paths)
    with pytest.raises(UnreadableImageError, match=r"b\.png"):
        images[1]
    with pytest.raises(UnreadableImageError, match=r"missing\.png"):
        images[3]
    kept = ImageList(paths, skip_unreadable=True)
    assert [path.name for path in kept.paths] == ["a.JPG", "c.png"]
    assert [path.name for path, _ in kept.unreadable] == ["b.png", "missing.png"]
    assert kept[1].getpixel((0, 0)) == (30,) * 3
    with pytest.raises(ValueError, match="none of 1 images is readable"):
        ImageList([folder / "missing.png"], skip_unreadable=True)


def test_unreadable_image_in_a_worker_is_named(folder):
    (folder / "b.png").write_bytes(b"")
    loader = DataLoader(ImageList([folder / "b.png"], transform=np.asarray), num_workers=1)
    with pytest.raises(OSError, match=r"b\.png"):
        next(iter(loader))


def test_bad_paths(folder):
    with pytest.raises(ValueError, match="at least one image file"):
        ImageList([])
    with pytest.raises(TypeError, match="image_files"):
        ImageList(folder)


# --- seeding


def test_derived_seeds_differ_wherever_a_part_differs():
    seeds = [seed for r in range(5) for t in range(50) for seed in derive_seeds(3, r, t, count=4)]
    assert len(set(seeds)) == len(seeds)
    assert derive_seeds(1, 2) != derive_seeds(1, 2, 0)  # nor do trailing zeros vanish
    assert all(0 <= seed < 2**63 for seed in seeds)
    with pytest.raises(ValueError, match=">= 0"):
        derive_seeds(1, -1)


def test_preserved_randomness_even_if_it_fails():
    seed_everything(1)
    expected = torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
    seed_everything(1)

    def fail():
        with preserved_randomness():
            seed_everything(2)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (torch.rand(1), np.random.rand(), random.random()) == expected  # noqa: NPY002


# --- Views


def test_views_are_a_function_of_seed_image_and_number():
    images = [(torch.full((2,), float(i)), "label") for i in range(3)]
    views = WithViews(images, lambda image: image + torch.rand(2), num_views=4, seed=5)
    assert len(views) == 12
    np.testing.assert_array_equal(views.instances, np.repeat([0, 1, 2], 4))
    assert views.instances.dtype == np.int64
    found = torch.stack([views[i] for i in range(12)])
    assert torch.equal(found.floor()[:, 0], torch.from_numpy(views.instances).float())
    assert len(found.frac().unique()) == 24  # all differ
    assert torch.equal(torch.stack([views[i] for i in reversed(range(12))]).flip(0), found)
    other = WithViews(images, lambda image: image + torch.rand(2), num_views=4, seed=6)
    assert not torch.equal(other[0], views[0])


def test_views_draw_from_any_generator_and_leave_it_as_it_was():
    def changed(image):
        return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002

    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    views = WithViews([0, 0], changed, num_views=2)
    assert views[1] == views[1] != views[2]
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


def test_views_refuse_what_is_not_there():
    views = WithViews([1, 2], lambda image: image, num_views=2)
    for index in (-1, 4):
        with pytest.raises(IndexError, match=f"items are 0 to 3, asked for {index}"):
            views[index]
    with pytest.raises(ValueError, match="num_views must be at least 1, got 0"):
        WithViews([1], lambda image: image, num_views=0)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        WithViews([1], lambda image: image, seed=-1)
