"""What the pixels of an image are: files, modes, arrays and tensors, against numbers worked out by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refuses_each

from pml_posets.data import (
    BatchAugmentation,
    ImageList,
    ImageStore,
    IndexedDataset,
    WithMirrorImages,
    WithViews,
)
from pml_posets.data.images import (
    as_image,
    check_pixels,
    mirror,
    read_image,
    scale_pixels,
)
from pml_posets.features.hog import HogItems

RAMP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # 16 bits; / 257: all of 0..255
BYTES = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOR = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def pixels(image):
    return np.asarray(as_image(image))


# --- Files


@pytest.mark.parametrize("suffix", ["png", "tiff", "ppm"])
def test_16_bit_gray_keeps_its_levels(tmp_path, suffix):
    if suffix == "ppm":
        data = b"P5 16 16 65535\n" + RAMP.astype(">u2").tobytes()
        (tmp_path / "a.ppm").write_bytes(data)
    else:
        Image.fromarray(RAMP).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image)[:, :, 1], BYTES)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOR).save(tmp_path / "a.png", exif=exif)
    turned = {
        1: COLOR,
        2: COLOR[:, ::-1],
        3: COLOR[::-1, ::-1],
        4: COLOR[::-1],
        5: COLOR.transpose(1, 0, 2),
        6: np.rot90(COLOR, -1),
        7: COLOR[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(COLOR),
    }[orientation]
    lying = Image.open(tmp_path / "a.png")
    for image in (
        read_image(tmp_path / "a.png"),
        as_image(lying.convert("RGB")),  # as torchvision's loader yields it
        as_image(as_image(lying)),  # not twice
        IndexedDataset([lying])[0][0],
        WithViews([lying], lambda image: image)[0],
    ):
        np.testing.assert_array_equal(np.asarray(image), turned)
    flipped = [mirror(lying), IndexedDataset([lying], [True])[0][0], WithMirrorImages([(lying, 1)])[1][0]]
    for image in flipped:
        np.testing.assert_array_equal(np.asarray(image), turned[:, ::-1])
    store = ImageStore([lying], tmp_path, 8, progress=False)
    upright = Image.fromarray(np.ascontiguousarray(turned)).resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(store[0].permute(1, 2, 0), np.asarray(upright))


@pytest.mark.parametrize("hidden", [0, 255])
def test_what_is_transparent_is_white(tmp_path, hidden):
    rgba = np.full((4, 4, 4), hidden, np.uint8)
    rgba[:, :, 3] = 0
    rgba[0] = (10, 20, 30, 255)
    rgba[1] = (0, 0, 0, 51)  # a fifth black
    Image.fromarray(rgba).save(tmp_path / "a.png")
    found = np.asarray(read_image(tmp_path / "a.png"))
    assert found[:, 0].tolist() == [[10, 20, 30], [204] * 3, [255] * 3, [255] * 3]
    gray = Image.fromarray(rgba[:, :, 0]).convert("LA")
    gray.putalpha(Image.fromarray(np.ascontiguousarray(rgba[:, :, 3])))
    assert pixels(gray)[2:].min() == pixels(gray.convert("La"))[2:].min() == 255


def test_transparent_palettes_and_colors(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([9, 9, 9, 200, 100, 50])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=0)
    assert np.asarray(read_image(tmp_path / "a.png")).tolist() == [[[255] * 3, [200, 100, 50]]]
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "b.png", transparency=(1, 2, 3))
    assert np.asarray(read_image(tmp_path / "b.png")).tolist() == [[[255] * 3]]
    image.save(tmp_path / "c.png")
    assert np.asarray(read_image(tmp_path / "c.png")).tolist() == [[[9] * 3, [200, 100, 50]]]


def test_the_same_pixels_whatever_the_form(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(RAMP).save(path)
    tensor = torch.from_numpy(BYTES)[None]
    forms = [
        path,
        Image.open(path),
        RAMP,
        RAMP.astype(">u2"),
        BYTES,
        BYTES[:, :, None],
        np.stack([BYTES] * 3),
        tensor,
        tensor.expand(3, -1, -1),
        tensor.float() / 255,
        BYTES / 255,
        np.float16(BYTES / 255),
    ]
    items = [*HogItems(forms, 16), ImageList([path])[0]]
    items.append(ImageStore([Image.open(path)], tmp_path, 16, progress=False)[0].permute(1, 2, 0))
    for i, item in enumerate(items):
        np.testing.assert_array_equal(np.asarray(item), np.stack([BYTES] * 3, axis=2), err_msg=str(i))


# --- Images in memory


COLOR_FIRST = np.ascontiguousarray(COLOR.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("item", "mode", "expected"),
    [
        (COLOR_FIRST, "RGB", COLOR),
        (torch.from_numpy(COLOR_FIRST), "RGB", COLOR),
        (
            torch.full((3, 4, 4), 0.5, dtype=torch.bfloat16, requires_grad=True),
            "RGB",
            np.full((4, 4, 3), 128),
        ),
        (Image.fromarray((BYTES / 255).astype(np.float32)), "L", BYTES),
        *(
            (Image.fromarray(COLOR).convert(mode), "RGB", Image.fromarray(COLOR).convert(mode).convert("RGB"))
            for mode in ("CMYK", "YCbCr", "HSV")
        ),
        (Image.new("1", (2, 1)), "L", [[0, 0]]),
        (np.array([[True, False]]), "L", [[255, 0]]),
        (np.array([[-0.1, 1.2]]), "L", [[0, 255]]),  # as bicubic resizing leaves it
    ],
)
def test_what_becomes_of_an_image(item, mode, expected):
    found = as_image(item)
    assert found.mode == mode
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


test_what_is_no_image = refuses_each(
    lambda item: as_image(item, "it"),
    (np.full((4, 4), np.nan), ValueError, r"floating in \[0, 1\], got float64 in \[nan"),
    (np.full((4, 4), 2.0), ValueError, "leave normalization out"),
    (np.full((4, 4), 2), ValueError, "must be uint8, uint16 or floating"),
    (BYTES.astype(np.float32), ValueError, r"got float32 in \[0.0, 255.0\]: .*divide bytes by 255"),
    (np.zeros((4, 4, 5)), ValueError, r"gray or have 3 channels, .*got the array shape \(4, 4, 5\)"),
    (np.zeros((3, 4, 3)), ValueError, r"got the array shape \(3, 4, 3\): make it a tensor"),
    (np.zeros((2, 4, 4, 3)), ValueError, r"got the array shape \(2, 4, 4, 3\)"),
    (np.zeros((0, 4)), ValueError, "array shape"),
    (np.zeros(4), ValueError, "array shape"),
    (torch.zeros(4, 4, 3), ValueError, r"got the array shape \(4, 4, 3\)"),
    (Image.fromarray(RAMP.astype(np.int32)), ValueError, "it has the mode I, which does not say what"),
    (Image.fromarray(BYTES).convert("F"), ValueError, r"got float32 in \[0.0, 255.0\]"),
    (7, TypeError, "it must be a PIL image, an array, a tensor or a path, got int"),
    ({"image": 1}, TypeError, "got dict"),
)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_mirrored_arrays_run_the_other_way_across(channels):
    last = np.random.default_rng(1).integers(0, 9, (5, 7, channels), dtype=np.uint8)
    first = np.ascontiguousarray(last.transpose(2, 0, 1))
    np.testing.assert_array_equal(mirror(first), first[:, :, ::-1])
    np.testing.assert_array_equal(mirror(torch.from_numpy(first)), first[:, :, ::-1].copy())
    np.testing.assert_array_equal(mirror(last), last[:, ::-1])
    views = mirror((last[:, :, 0], Image.fromarray(last[:, :, 0])))
    assert isinstance(views, tuple)
    for view in views:
        np.testing.assert_array_equal(np.asarray(view), last[:, ::-1, 0])


test_what_does_not_say_where_its_channels_are_is_refused = refuses_each(
    mirror,
    ("image", r"to be mirrored, got builtins\.str"),
    (np.zeros((3, 8, 3)), r"got the array shape \(3, 8, 3\)"),
    (np.zeros((5, 8, 9)), r"got the array shape \(5, 8, 9\)"),
    (np.zeros((2, 3, 8, 9)), r"got the array shape \(2, 3, 8, 9\)"),
    (torch.zeros(8, 9, 3), r"must be a tensor \(channels, H, W\), got \(8, 9, 3\)"),
    error=(ValueError, TypeError),
)


# --- Batches


def test_scaling_divides_integers_by_their_highest():
    assert scale_pixels(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    assert scale_pixels(torch.tensor([0, 65535], dtype=torch.uint16)).tolist() == [0, 1]
    assert scale_pixels(torch.tensor([True])).tolist() == [1]
    assert scale_pixels(torch.tensor([2.5]), torch.float64).dtype == torch.float64
    with pytest.raises(TypeError, match=r"got torch.int64: convert them with \.to\(torch\.uint8\)"):
        scale_pixels(torch.tensor([1]))
    with pytest.raises(TypeError, match=r"dtype must be floating, got torch\.uint8"):
        scale_pixels(torch.rand(2), torch.uint8)


def test_floats_in_range_pass():
    for images in (torch.rand(2, 3), torch.tensor([-0.2, 1.2]), torch.rand(0), torch.rand(4).half()):
        check_pixels(images)


@pytest.mark.parametrize("values", [(0.0, 255.0), (-2.1, 2.6), (-1.0, 1.0), (0.5, torch.nan)])
def test_bytes_that_were_cast_are_refused(values):
    images = torch.tensor(values)
    with pytest.raises(ValueError, match=r"floating in \[0, 1\], found values in .*divide bytes by 255"):
        check_pixels(images)
    for train in (True, False):
        with pytest.raises(ValueError, match=r"a trainer's dtype=torch.float32"):
            BatchAugmentation().train(train)(images.repeat(6).view(1, 3, 2, 2))
