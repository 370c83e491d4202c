"""Indexed datasets and lists of images."""

import os
import random

import numpy as np
import pytest
import torch
from pictures import Noisy, generators
from PIL import Image
from refusals import refuses_each
from torch.utils.data import ConcatDataset, DataLoader, Subset

from pml_posets._random import derive_seeds, preserved_randomness, seed_everything
from pml_posets.data.datasets import (
    ImageList,
    IndexedDataset,
    SeededDataset,
    UnreadableImageError,
    WithMirrorImages,
    WithViews,
    image_files,
    read_batches,
)


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
    images = torch.rand(4, 3, 2, 2)
    data = IndexedDataset([wrap(image) for image in images])
    assert len(data) == 4
    for i in range(4):
        image, index = data[i]
        assert index == i
        assert torch.equal(image, images[i])


def test_flips_by_array_function_and_replacement():
    data = IndexedDataset([torch.arange(3.0).reshape(1, 1, 3)] * 3, flips=np.array([False, True, False]))
    assert [data[i][0].flatten().tolist() for i in range(3)] == [[0, 1, 2], [2, 1, 0], [0, 1, 2]]
    data.flips = lambda index: index == 0
    assert [data[i][0].flatten().tolist() for i in range(2)] == [[2, 1, 0], [0, 1, 2]]
    data.flips = None
    assert data[1][0].flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_seed_alone_decides_the_augmentation(num_workers):
    data = IndexedDataset(Noisy())
    keys = [[(3, 11), (5, 12)], [(3, 11), (3, 13)]]
    before = generators()
    loader = DataLoader(data, batch_sampler=keys, num_workers=num_workers, generator=torch.Generator())
    first, second = (images for images, _ in loader)
    assert torch.equal(first[0], second[0])  # same index, same seed, another batch
    assert not torch.equal(second[0], second[1])  # same index, another seed
    assert torch.equal(first[1], data[(5, 12)][0])  # alone as in a batch, in this process as in a worker
    assert generators() == before
    assert not torch.equal(data[3][0], data[3][0])  # without a seed it varies


class AtOnce(Noisy):
    """Loads a batch at once."""

    def __getitems__(self, indices):
        self.asked = indices
        return [self[index] for index in indices]


def test_a_dataset_that_loads_batches_is_asked_to_unless_there_are_seeds():
    plain = AtOnce()
    data = IndexedDataset(plain, flips=np.arange(12) == 5)
    assert [index for _, index in data.__getitems__([3, 5])] == [3, 5]
    assert plain.asked == [3, 5]
    plain.asked = None
    batch = data.__getitems__([(3, 11), (5, 12)])
    assert plain.asked is None  # one seed for a batch would let an image's views depend on its neighbors
    assert batch.seeds == [11, 12]
    assert torch.equal(data.__getitems__([(3, 11), (5, 99)])[0][0], batch[0][0])


@pytest.mark.parametrize("part", [Subset(Noisy(), [4, 2, 7]), ConcatDataset([Noisy(1), Noisy(2)]), AtOnce(3)])
def test_seeds_are_those_of_the_samples_in_parts_of_datasets(part):
    data = IndexedDataset(part)
    together = [image for image, _ in data.__getitems__([(0, 5), (1, 6), (2, 7)])]
    for i, image in enumerate(together):
        assert torch.equal(image, data[(i, 5 + i)][0])


test_bad_arguments_and_samples = refuses_each(
    lambda arguments: IndexedDataset(*arguments)[0],
    ((iter([1]),), TypeError, "length and items"),
    (([],), ValueError, "at least one sample"),
    ((Noisy(), [True, False]), ValueError, r"shape \(12,\) to match the dataset, got \(2,\)"),
    ((Noisy(2), [0, 1]), TypeError, "booleans"),
    (([{"image": 1}],), TypeError, r"dict with the keys \['image'\]"),
)


test_a_key_is_an_index_or_index_and_seed = refuses_each(
    lambda key: IndexedDataset(Noisy())[key],
    ([5, 6, 7], TypeError, r"must be an integer, got \[5, 6, 7\]: a sampler .* batch_sampler="),
    ([(5, 1), (6, 2)], TypeError, "batch_sampler"),
    (np.array([5, 6]), TypeError, "batch_sampler"),
    (torch.tensor([1]), TypeError, "must be an integer, got tensor"),
    (torch.tensor(True), TypeError, "must be an integer, got tensor"),
    (slice(0, 2), TypeError, "must be an integer, got slice"),
    (1.0, TypeError, "must be an integer, got 1.0"),
    (True, TypeError, "must be an integer, got True"),
    ((5, 6, 7), TypeError, r"an index or \(index, seed\), got \(5, 6, 7\)"),
    ((5, 1.5), TypeError, "the seed of a key must be an integer"),
    ((5, -1), ValueError, "the seed of a key must be at least 0"),
    ((12, 3), IndexError, r"0\.\.11, got 12"),
    (-1, IndexError, "got -1"),
)


@pytest.mark.parametrize("key", [np.int64(2), torch.tensor(2), (np.int32(2), np.int64(9))])
def test_integers_of_any_kind_are_keys(key):
    assert IndexedDataset(Noisy())[key][1] == 2


@pytest.mark.parametrize("wrap", [WithMirrorImages, SeededDataset, lambda x: WithViews(x, lambda y: y)])
def test_other_datasets_refuse_lists_too(wrap):
    for key in ([0, 1], 1.5):
        with pytest.raises(TypeError, match="must be an integer"):
            wrap(Noisy())[key]
    for key in (-1, len(wrap(Noisy()))):
        with pytest.raises(IndexError, match=f"got {key}"):
            wrap(Noisy())[key]
    with pytest.raises(ValueError, match="at least one sample"):
        wrap([])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_seeded_dataset_draws_the_same_for_an_item(num_workers):
    data = SeededDataset(Noisy(), seed=3)
    loader = DataLoader(data, batch_size=5, num_workers=num_workers, sampler=[7, 1, 7, 0, 3, 2, 1])
    images = torch.cat([images for images, _ in loader])
    assert torch.equal(images[0], images[2])
    assert torch.equal(images[1], images[6])
    assert torch.equal(images[3], data[0][0])
    assert not torch.allclose(images[0] - images[1], torch.tensor(6 / 12 / 4))  # each draws its own
    assert not torch.equal(images[0], SeededDataset(Noisy(), seed=4)[7][0])


# --- ImageList


def names_in(folder, *more):
    return [path.relative_to(folder).as_posix() for path in image_files(folder, *more)]


def test_image_files_sorted_in_depth_without_hidden_ones(folder):
    (folder / ".thumbnails").mkdir()
    for name in ("._a.jpg", ".thumbnails/a.jpg"):
        Image.new("L", (4, 4)).save(folder / name)
    assert names_in(folder) == ["a.JPG", "b.png", "deep/c.png"]
    assert names_in(folder / ".thumbnails") == ["a.jpg"]  # one that is asked for
    with pytest.raises(NotADirectoryError, match="nowhere"):
        image_files(folder / "nowhere")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        image_files(folder / "empty")


def test_linked_folders_are_visited_once(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    Image.new("L", (4, 4)).save(elsewhere / "linked.png")
    for name, target in (
        ("a-link", elsewhere),
        ("b-link", elsewhere),
        ("deep/loop", folder),
        ("a-sibling", folder / "deep"),
        ("file.png", elsewhere / "linked.png"),
        ("broken.png", elsewhere / "gone.png"),
    ):
        os.symlink(target, folder / name)
    assert names_in(folder) == ["a-link/linked.png", "a.JPG", "b.png", "deep/c.png", "file.png"]
    os.symlink(folder, elsewhere / "to here")
    assert len(image_files(elsewhere / "to here")) == 5


@pytest.mark.parametrize(
    ("suffixes", "expected"),
    [
        ((".PNG",), ["b.png", "deep/c.png"]),
        (".png", ["b.png", "deep/c.png"]),
        ("Jpg", ["a.JPG"]),
        ({".jpg", "PNG"}, ["a.JPG", "b.png", "deep/c.png"]),
        (("ng", ".txt"), ["notes.txt"]),
    ],
)
def test_suffixes_in_any_form(folder, suffixes, expected):
    (folder / "png").write_text("no suffix")
    (folder / ".png").write_text("no suffix either")
    assert names_in(folder, suffixes) == expected


@pytest.mark.parametrize("suffixes", ["", (".png", ".")])
def test_an_empty_suffix_is_refused(folder, suffixes):
    with pytest.raises(ValueError, match="suffixes must not be empty"):
        image_files(folder, suffixes)


def test_image_list_reads_rgb_in_order_and_names_what_is_unreadable(folder):
    paths = [*image_files(folder), folder / "missing.png"]
    assert [ImageList(paths)[i].getpixel((0, 0)) for i in range(3)] == [(20,) * 3, (10,) * 3, (30,) * 3]
    assert ImageList(paths, transform=lambda image: image.size)[0] == (9, 7)
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:50])
    for index in (1, 3):
        with pytest.raises(UnreadableImageError, match=paths[index].name):
            ImageList(paths)[index]
    with pytest.raises(OSError, match=r"b\.png"):
        next(read_batches(ImageList(paths[1:]), range(1), np.stack, 1, 1, "read", False))  # in a worker
    kept = ImageList(paths, skip_unreadable=True)
    assert [path.name for path in kept.paths] == ["a.JPG", "c.png"]
    assert [path.name for path, _ in kept.unreadable] == ["b.png", "missing.png"]
    assert kept[1].getpixel((0, 0)) == (30,) * 3
    with pytest.raises(ValueError, match="none of 1 images is readable"):
        ImageList(paths[3:], skip_unreadable=True)


def test_bad_paths(folder):
    with pytest.raises(ValueError, match="at least one image file"):
        ImageList([])
    with pytest.raises(TypeError, match="image_files"):
        ImageList(folder)


# --- Seeds


def test_derived_seeds_differ_wherever_a_part_differs():
    seeds = [seed for r in range(5) for t in range(50) for seed in derive_seeds(3, r, t, count=4)]
    assert len(set(seeds)) == len(seeds)
    assert derive_seeds(1, 2) != derive_seeds(1, 2, 0)  # nor do trailing zeros vanish
    assert all(0 <= seed < 2**63 for seed in seeds)
    with pytest.raises(ValueError, match=">= 0"):
        derive_seeds(1, -1)


def test_generators_are_seeded_and_preserved_even_if_it_fails():
    def draw(seed):
        seed_everything(seed)
        return torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002

    before = generators()
    with pytest.raises(RuntimeError), preserved_randomness():  # noqa: PT012
        assert draw(2) == draw(2)
        assert not any(a == b for a, b in zip(draw(2), draw(3), strict=True))
        raise RuntimeError
    assert generators() == before


# --- Views


def test_views_are_a_function_of_seed_image_and_number():
    def changed(image):
        return image + torch.rand(2) / 2 + np.random.rand() / 8 + random.random() / 8  # noqa: NPY002

    images = [(torch.full((2,), float(i)), "label") for i in range(3)]
    before = generators()
    views = WithViews(images, changed, num_views=4, seed=5)
    assert len(views) == 12
    np.testing.assert_array_equal(views.instances, np.repeat([0, 1, 2], 4))
    assert views.instances.dtype == np.int64
    found = torch.stack([views[i] for i in range(12)])
    assert generators() == before
    assert torch.equal(found.floor()[:, 0], torch.from_numpy(views.instances).float())
    assert len(found.frac().unique()) == 24  # all differ
    assert torch.equal(torch.stack([views[i] for i in reversed(range(12))]).flip(0), found)
    assert not torch.equal(WithViews(images, changed, num_views=4, seed=6)[0], views[0])
    for options, message in (({"num_views": 0}, "num_views must be at least 1"), ({"seed": -1}, "seed must")):
        with pytest.raises(ValueError, match=message):
            WithViews(images, changed, **options)
