"""Indexed datasets and lists of images."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

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


def test_a_dataset_that_loads_batches_is_asked_to_unless_there_are_seeds():
    plain = AtOnce()
    data = IndexedDataset(plain, flips=np.arange(12) == 5)
    assert [index for _, index in data.__getitems__([3, 5])] == [3, 5]
    assert plain.asked == [3, 5]
    assert len({float(image[0, 0, 0]) for image, _ in data.__getitems__([3, 3, 3])}) == 3
    plain.asked = None
    first, second = data.__getitems__([(3, 11), (5, 12)])
    assert plain.asked is None  # one seed for a batch would let an image's views depend on its neighbors
    assert torch.equal(data.__getitems__([(3, 11), (5, 99)])[0][0], first[0])
    assert torch.equal(data[(5, 12)][0], second[0])
    data.flips = None
    assert torch.equal(data[(5, 12)][0], second[0].flip(-1))


@pytest.mark.parametrize("part", [Subset(Noisy(), [4, 2, 7]), ConcatDataset([Noisy(1), Noisy(2)]), AtOnce(3)])
def test_seeds_are_those_of_the_samples_in_parts_of_datasets(part):
    data = IndexedDataset(part)
    together = [image for image, _ in data.__getitems__([(0, 5), (1, 6), (2, 7)])]
    for i, image in enumerate(together):
        assert torch.equal(image, data[(i, 5 + i)][0])


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


@pytest.mark.parametrize(
    ("key", "error", "text"),
    [
        ([5, 6, 7], TypeError, r"must be an integer, got \[5, 6, 7\]: a sampler .* batch_sampler="),
        ([5, 6], TypeError, "batch_sampler"),
        ([(5, 1), (6, 2)], TypeError, "batch_sampler"),
        (np.array([5, 6]), TypeError, "batch_sampler"),
        (torch.tensor([5, 6]), TypeError, "batch_sampler"),
        (slice(0, 2), TypeError, "must be an integer, got slice"),
        (torch.tensor(True), TypeError, "must be an integer, got tensor"),
        (torch.tensor([1]), TypeError, "must be an integer, got tensor"),
        (1.0, TypeError, "must be an integer, got 1.0"),
        (True, TypeError, "must be an integer, got True"),
        ((5, 6, 7), TypeError, r"an index or \(index, seed\), got \(5, 6, 7\)"),
        ((5, 1.5), TypeError, "the seed of a key must be an integer"),
        ((5, -1), ValueError, "the seed of a key must be at least 0"),
        ((12, 3), IndexError, r"0\.\.11, got 12"),
    ],
)
def test_a_key_is_an_index_or_index_and_seed(key, error, text):
    with pytest.raises(error, match=text):
        IndexedDataset(Noisy())[key]


@pytest.mark.parametrize("key", [np.int64(2), torch.tensor(2), (np.int32(2), np.int64(9))])
def test_integers_of_any_kind_are_keys(key):
    assert IndexedDataset(Noisy())[key][1] == 2


def test_a_sampler_of_batches_in_the_place_of_one_of_samples_is_refused():
    loader = DataLoader(IndexedDataset(Noisy()), batch_size=4, sampler=[[0, 1, 2], [3, 4, 5]])
    with pytest.raises(TypeError, match="batch_sampler="):
        next(iter(loader))


@pytest.mark.parametrize("wrap", [WithMirrorImages, SeededDataset, lambda x: WithViews(x, lambda y: y)])
def test_other_datasets_refuse_lists_too(wrap):
    for key in ([0, 1], 1.5, slice(2)):
        with pytest.raises(TypeError, match="must be an integer"):
            wrap(Noisy())[key]
    with pytest.raises(IndexError, match="got -1"):
        wrap(Noisy())[-1]
    with pytest.raises(ValueError, match="at least one sample"):
        wrap([])


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_seeded_dataset_draws_the_same_for_an_item(num_workers):
    data = SeededDataset(Noisy(), seed=3)
    loader = DataLoader(data, batch_size=5, num_workers=num_workers, sampler=[7, 1, 7, 0, 3, 2, 1])
    images = torch.cat([images for images, _ in loader])
    assert torch.equal(images[0], images[2])
    assert torch.equal(images[1], images[6])
    assert torch.equal(images[3], data[0][0])
    assert not torch.equal(images[0], SeededDataset(Noisy(), seed=4)[7][0])


# --- ImageList


def test_image_files_sorted_in_depth(folder):
    assert [path.name for path in image_files(folder)] == ["a.JPG", "b.png", "c.png"]
    with pytest.raises(NotADirectoryError, match="nowhere"):
        image_files(folder / "nowhere")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        image_files(folder / "empty")


def test_hidden_files_and_folders_are_left_out(folder):
    before = image_files(folder)
    (folder / ".thumbnails").mkdir()
    for name in ("._a.jpg", ".thumbnails/a.jpg"):
        Image.new("L", (4, 4)).save(folder / name)
    assert image_files(folder) == before
    assert len(image_files(folder / ".thumbnails")) == 1  # one that is asked for


def test_linked_folders_are_visited_once(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    Image.new("L", (4, 4)).save(elsewhere / "linked.png")
    (folder / "a-link").symlink_to(elsewhere, target_is_directory=True)
    (folder / "b-link").symlink_to(elsewhere, target_is_directory=True)
    (folder / "deep" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "a-sibling").symlink_to(folder / "deep", target_is_directory=True)
    (folder / "file.png").symlink_to(elsewhere / "linked.png")
    (folder / "broken.png").symlink_to(elsewhere / "gone.png")
    found = [str(path.relative_to(folder)) for path in image_files(folder)]
    assert found == ["a-link/linked.png", "a.JPG", "b.png", "deep/c.png", "file.png"]
    (elsewhere / "to here").symlink_to(folder, target_is_directory=True)
    assert len(image_files(elsewhere / "to here")) == 5


@pytest.mark.parametrize(
    ("suffixes", "expected"),
    [
        ((".PNG",), ["b.png", "c.png"]),
        (["png"], ["b.png", "c.png"]),
        (".png", ["b.png", "c.png"]),
        ("Jpg", ["a.JPG"]),
        ({".jpg", "PNG"}, ["a.JPG", "b.png", "c.png"]),
        (("ng", ".txt"), ["notes.txt"]),
    ],
)
def test_suffixes_in_any_form(folder, suffixes, expected):
    (folder / "png").write_text("no suffix")
    (folder / ".png").write_text("no suffix either")
    assert [path.name for path in image_files(folder, suffixes)] == expected


@pytest.mark.parametrize("suffixes", ["", ("",), (".png", ".")])
def test_an_empty_suffix_is_refused(folder, suffixes):
    with pytest.raises(ValueError, match="suffixes must not be empty"):
        image_files(folder, suffixes)


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
    data = ImageList([folder / "b.png"], transform=np.asarray)
    with pytest.raises(OSError, match=r"b\.png"):
        next(read_batches(data, range(1), np.stack, 1, 1, "read", False))


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
        with pytest.raises(IndexError, match=rf"index must be in 0\.\.3, got {index}"):
            views[index]
    with pytest.raises(ValueError, match="num_views must be at least 1, got 0"):
        WithViews([1], lambda image: image, num_views=0)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        WithViews([1], lambda image: image, seed=-1)
