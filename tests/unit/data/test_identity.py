"""What tells images from others: any change of files, contents, transforms or code, or a refusal."""

import functools
import os
import types

import numpy as np
import pytest
import torch
from pictures import noise, saved
from PIL import Image
from torch.utils.data import Dataset, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from pml_posets.data import BatchAugmentation, ImageList, ImageStore, UnreadableImageError, data_identity
from pml_posets.data.datasets import WithMirrorImages
from pml_posets.data.identity import digest

BOX = (0, 0, 8, 8)


@pytest.fixture
def paths(tmp_path):
    return saved(tmp_path / "class", [noise(64, 64, seed) for seed in range(3)])


def crop(image):
    return image.crop(BOX)


class Cropping:
    def __init__(self, left):
        self.left = left

    def __call__(self, image):
        return image.crop((self.left, 0, self.left + 8, 8))

    def __repr__(self):
        return "Cropping()"


class Cropped(Dataset):
    """A user's dataset: its files are known, and so are its values and code."""

    def __init__(self, paths, left=0, transform=None):
        self.paths, self.left, self.transform = paths, left, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        image = Image.open(self.paths[index]).convert("RGB")
        return image.crop((self.left, 0, self.left + 32, 32))


def reading(read):
    """A dataset of one's own whose samples are made by a function (self, index)."""
    return type("Reading", (Cropped,), {"__getitem__": read})


def reads_global(self, index):
    return Image.open(self.paths[index]).crop(BOX)


def calls_code(self, index):
    return crop(Image.open(self.paths[index]))


def reads_by_name(self, index):
    return [globals()["BOX"] for _ in range(1)]


def reads_the_environment(self, index):
    return os.environ["BOX"]


def imports_inside(self, index):
    import pytest

    return pytest


class Slotted:
    __slots__ = ()
    paths = ("a.png",)

    def __len__(self):
        return 1


class PathsByMethod(Cropped):
    def __init__(self, paths):
        self._paths = paths

    def paths(self):
        return self._paths


def test_contents_in_memory_count():
    arrays = np.zeros((2, 4, 4), np.uint8)
    first = data_identity(arrays)
    assert data_identity(list(arrays)) == data_identity(torch.zeros(2, 4, 4, dtype=torch.uint8)) == first
    assert data_identity([Image.fromarray(array) for array in arrays]) == first
    assert data_identity([(array, "label") for array in arrays]) == first
    arrays[1, 2, 3] = 1
    assert data_identity(arrays)[1] != first[1]
    palette = Image.new("P", (4, 4))
    palette.putpalette([9, 9, 9])
    assert data_identity([palette]) != data_identity([Image.new("P", (4, 4))])


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (v2.Resize(8), v2.Resize(9)),
        (v2.Resize(8), transforms.Resize(8)),
        (v2.RandomApply([v2.Resize(8)]), v2.RandomApply([v2.Resize(9)])),
        (v2.Normalize([0.5], [0.5]), v2.Normalize([0.5], [0.25])),
        (v2.ToDtype(torch.float32, scale=True), v2.ToDtype(torch.float32, scale=False)),
        (v2.Resize(8), v2.Resize(8, v2.InterpolationMode.BICUBIC)),
        (functools.partial(Image.Image.resize, size=8), functools.partial(Image.Image.resize, size=9)),
        (transforms.RandomChoice([v2.Resize(8)]), transforms.RandomChoice([v2.Resize(8)], p=[1.0])),
        (BatchAugmentation(mean=(0.1, 0.2, 0.3)), BatchAugmentation(mean=(0.1, 0.2, 0.300001))),
        (np.asarray, np.array),
    ],
)
def test_transforms_of_libraries_count_by_every_value(paths, first, other):
    names = [data_identity(ImageList(paths, transform=transform))[0] for transform in (None, first, other)]
    assert len(set(names)) == 3
    assert data_identity(ImageList(paths, transform=first))[0] == names[1]


def test_a_dataset_counts_by_its_values_and_its_code(paths):
    images = [
        ImageList(paths),
        ImageFolder(paths[0].parent.parent),
        ImageFolder(paths[0].parent.parent, transform=v2.Resize(8)),
        Cropped(paths),
        Cropped(paths, left=8),
        Cropped(paths, transform=v2.Resize(8)),
        reading(reads_global)(paths),
        Subset(ImageList(paths), [0, 2]),
        Subset(ImageList(paths), [2, 0]),
    ]
    names = [data_identity(one)[0] for one in images]
    assert len(set(names)) == len(names)
    assert data_identity(Cropped(paths)) == data_identity(Cropped(paths))


def test_globals_defaults_and_enclosing_values_of_a_dataset_count(paths, monkeypatch):
    before = data_identity(reading(reads_global)(paths))
    monkeypatch.setitem(globals(), "BOX", (1, 0, 8, 8))
    assert data_identity(reading(reads_global)(paths)) != before

    def by_default(side):
        return reading(lambda self, index, *, side=side: (index, side))(paths)

    def by_closure(side):
        return reading(lambda self, index: (index, side))(paths)

    for cropped in (by_default, by_closure):
        assert data_identity(cropped(3)) == data_identity(cropped(3)) != data_identity(cropped(4))

    class Options:
        side = 3

    with pytest.raises(TypeError, match=r"give data_id.*Options is code"):
        data_identity(by_closure(Options))


def test_files_that_changed_places_are_other_data(paths):
    content = paths[0].read_bytes()
    paths[1].write_bytes(content[:-1] + b"x")  # of the same size
    for path in paths:
        os.utime(path, ns=(1, 1))
    before = data_identity(ImageList(paths))
    paths[0].rename(paths[0].with_suffix(".tmp"))
    paths[1].rename(paths[0])
    paths[0].with_suffix(".tmp").rename(paths[1])
    assert paths[0].stat().st_mtime_ns == 1
    assert data_identity(ImageList(paths))[0] == before[0]
    assert data_identity(ImageList(paths)) != before


@pytest.mark.parametrize(
    "make",
    [
        reading(calls_code),
        reading(reads_by_name),
        reading(reads_the_environment),
        reading(imports_inside),
        PathsByMethod,
        *(
            functools.partial(ImageList, transform=transform)
            for transform in (
                v2.Lambda(lambda image: image.crop((0, 0, 32, 32))),
                functools.partial(Image.Image.crop, box=BOX, extra=crop),
                Cropping(3),
                types.FunctionType((lambda image: image).__code__, {"__name__": "torch.made"}),
                v2.Compose([v2.Resize(8), v2.RandomApply([crop])]),
                np.random.default_rng(0).permutation,
            )
        ),
        lambda paths: Cropped(paths, left=object()),
        lambda paths: ImageFolder(paths[0].parent.parent, loader=lambda path: Image.open(path)),
        lambda paths: torch.utils.data.TensorDataset(torch.zeros(2, 3, 8, 8)),
        lambda paths: torch.utils.data.ConcatDataset([ImageList(paths)]),
        lambda paths: [object()],
        lambda paths: [{"image": paths[0]}],
        lambda paths: np.array([None]),
        lambda paths: Slotted(),
    ],
)
def test_what_nothing_is_known_of_needs_a_data_id(paths, make):
    with pytest.raises(TypeError, match=r"cannot tell when an? .* changes: give data_id"):
        data_identity(make(paths))


def test_every_form_of_images_is_known(paths, tmp_path):
    pixels = torch.rand(2, 3, 16, 16)
    store = ImageStore(ImageList(paths), tmp_path, 16, progress=False)
    forms = [
        [[pixels[0], 1], [pixels[1], 2]],
        pixels.clone().requires_grad_(),
        [pixels[0].clone().requires_grad_(), pixels[1].bfloat16()],
        [os.path.relpath(path) for path in paths],
        [(path, 3) for path in paths],
        np.array([str(path) for path in paths]),
        (paths[0], pixels[0], Image.open(paths[1])),
        store,
        Subset(store, [1]),
    ]
    found = [data_identity(images) for images in forms]
    assert found[0] == found[1]
    assert found[3] == found[4] == found[5]
    assert len(set(found)) == 6


def test_images_that_cannot_be_read(paths):
    paths[0].write_bytes(paths[0].read_bytes()[:500])
    with pytest.raises(UnreadableImageError, match=r"cannot read an image in memory: .*truncated"):
        data_identity([Image.open(paths[0])])
    paths[0].unlink()
    with pytest.raises(UnreadableImageError, match=r"0\.png"):
        data_identity(paths)


def test_digest_refuses_what_it_cannot_read():
    assert digest(np.float32(1), np.int64(2)) == digest(1.0, 2)
    with pytest.raises(TypeError, match="cannot digest an object"):
        digest({"a": [object()]})


def test_mirror_images_have_an_identity_of_their_own():
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    both = data_identity(WithMirrorImages(images))
    assert both == data_identity(WithMirrorImages(images.copy()))
    assert both[1] not in (data_identity(images)[1], data_identity(WithMirrorImages(images + 1))[1])
