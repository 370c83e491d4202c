"""Pictures: what is drawn, how it is written, and what is said without matplotlib."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pml_posets.plots import Tile, image_rows, loss_curves, roc_curves, save_figure

pytest.importorskip("matplotlib", reason="plots need matplotlib")

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)  # 3 high, 5 wide


def drawn(axis):
    """The pixels of the image in an axis."""
    (image,) = axis.get_images()
    return np.asarray(image.get_array())


@pytest.mark.parametrize(
    "image",
    [
        PIXELS,
        Image.fromarray(PIXELS),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        PIXELS / 255,
        torch.from_numpy(PIXELS).permute(2, 0, 1).float() / 255,
        (torch.from_numpy(PIXELS).permute(2, 0, 1).double() / 255).requires_grad_(),
    ],
    ids=["array", "PIL", "tensor", "float array", "float tensor", "tensor with a gradient"],
)
def test_images_of_every_kind_are_drawn_as_they_are(image):
    figure = image_rows({"row": [Tile(image)]})
    assert np.array_equal(drawn(figure.axes[0]), PIXELS)


@pytest.mark.parametrize(
    "image",
    [
        PIXELS[:, :, 0],
        PIXELS[:, :, :1],
        Image.fromarray(PIXELS[:, :, 0]),
        torch.from_numpy(PIXELS[:, :, 0].copy()),
        torch.from_numpy(PIXELS[:, :, 0].copy())[None],
        PIXELS[:, :, 0] / 255,
    ],
)
def test_grey_images_are_drawn_grey(image):
    figure = image_rows({"row": [Tile(image)]})
    assert np.array_equal(drawn(figure.axes[0]), np.repeat(PIXELS[:, :, :1], 3, axis=2))


def test_a_tensor_three_pixels_wide_is_not_mistaken_for_an_array():
    tensor = torch.arange(27, dtype=torch.uint8).view(3, 3, 3)
    assert np.array_equal(drawn(image_rows({"": [Tile(tensor)]}).axes[0]), tensor.permute(1, 2, 0).numpy())
    array = tensor.numpy()
    assert np.array_equal(drawn(image_rows({"": [Tile(array)]}).axes[0]), array)


def test_values_outside_are_clipped():
    image = np.array([[[-1.0, 0.5, 2.0]]])
    assert drawn(image_rows({"": [Tile(image)]}).axes[0]).tolist() == [[[0, 128, 255]]]


def test_pil_images_and_bfloat16_are_read_as_everywhere():
    portrait = Image.fromarray(PIXELS)
    portrait.getexif()[274] = 6
    levels = Image.fromarray(np.uint16([[0, 257, 65535]]))
    clear = Image.new("LA", (1, 1), (0, 0))
    figure = image_rows({"": [Tile(image) for image in (portrait, levels, clear)]})
    upright, gray, white = (np.asarray(image.get_array()) for image in figure.axes[0].get_images())
    assert np.array_equal(upright, np.rot90(PIXELS, -1))
    assert gray[0, :, 0].tolist() == [0, 1, 255]
    assert white.tolist() == [[[255] * 3]]
    half = torch.from_numpy(PIXELS).permute(2, 0, 1).bfloat16()
    assert np.abs(drawn(image_rows({"": [Tile(half / 255)]}).axes[0]) - PIXELS.astype(int)).max() <= 1
    with pytest.raises(ValueError, match="divide bytes by 255"):
        image_rows({"": [Tile(half)]})


@pytest.mark.parametrize("shape", [(4, 4, 2), (3, 4, 5), (4,), (1, 2, 3, 3), (0, 4, 3)])
def test_images_of_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"an image must be .*, got \("):
        image_rows({"row": [Tile(np.zeros(shape))]})


def test_images_of_other_dtypes_are_refused():
    with pytest.raises(TypeError, match=r"uint8 or floating point .* got int64"):
        image_rows({"row": [Tile(np.zeros((4, 4, 3), np.int64))]})


def test_rows_names_captions_frames_and_title():
    rows = {
        "first": [Tile(PIXELS, "a", frame="red"), Tile(PIXELS, "b"), Tile(PIXELS)],
        "second": [Tile(PIXELS, "c")],
        "empty": [],
    }
    figure = image_rows(rows, title="A picture")
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["first", "second", "empty"]
    places = [tuple(np.round(image.get_extent(), 2)) for image in axis.get_images()]
    high = 1.2
    tiles = [(0, 0), (1.08, 0), (2.16, 0), (0, high)]  # left and top; 5 wide and 3 high: in the middle
    assert places == [(x, round(x + 1, 2), round(y + 0.8, 2), round(y + 0.2, 2)) for x, y in tiles]
    texts = {text.get_text(): text.get_position() for text in axis.texts}
    expected = {"a": (0.5, 0.84), "b": (1.58, 0.84), "c": (0.5, high + 0.84)}  # below the image
    assert {name: pytest.approx(place) for name, place in texts.items()} == expected
    (frame,) = axis.patches
    assert frame.get_edgecolor() == (1, 0, 0, 1)
    assert (*frame.get_xy(), frame.get_width(), frame.get_height()) == pytest.approx((0, 0.2, 1, 0.6))
    assert figure.get_suptitle() == "A picture"


@pytest.mark.parametrize("rows", [{}, {"row": []}])
def test_without_images_there_is_no_picture(rows):
    with pytest.raises(ValueError, match="no images to draw"):
        image_rows(rows)


def test_losses_and_their_means():
    losses = np.random.default_rng(1).normal(size=200)
    steps = 5 * np.arange(1, 201)
    runs = {"joint": (steps, losses), "fixed": ([1, 2], [3.0, 2.0]), "none": ([], [])}
    figure = loss_curves(runs, round_starts=[0, 100], title="T")
    (axis,) = figure.axes
    curves = [line for line in axis.get_lines() if len(line.get_xdata()) and line.get_linestyle() == "-"]
    assert np.array_equal(curves[0].get_ydata(), losses)
    means = [losses[start : start + 4].mean() for start in range(197)]  # a window of a fiftieth
    np.testing.assert_allclose(curves[1].get_ydata(), means)
    assert curves[0].get_xdata().tolist() == steps.tolist()
    assert curves[1].get_xdata()[0] == steps[2]
    assert curves[3].get_ydata().tolist() == [3, 2]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["joint", "fixed"]
    assert [text.get_text() for text in axis.texts] == ["round 1", "round 2"]
    assert [text.xy[0] for text in axis.texts] == [0, 100]
    assert axis.get_title() == "T"


def test_without_losses_the_axes_stay_empty(recwarn):
    axis = loss_curves({"none": ([], [])}).axes[0]
    assert axis.get_legend() is None
    assert roc_curves({}).axes[0].get_legend() is None
    assert not recwarn.list


def test_losses_must_be_a_row_of_numbers():
    with pytest.raises(ValueError, match=r"joint must have one shape \(T,\), got \(2, 3\), \(2, 3\)"):
        loss_curves({"joint": (np.zeros((2, 3)), np.zeros((2, 3)))})
    with pytest.raises(ValueError, match=r"got \(2,\), \(3,\)"):
        loss_curves({"joint": (np.zeros(2), np.zeros(3))})


def test_roc_curves_with_their_areas_the_best_first():
    rates = np.linspace(0, 1, 101)
    figure = roc_curves({"chance": (rates, rates), "better": (rates, np.sqrt(rates))})
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["better  0.666", "chance  0.500"]
    assert np.array_equal(figure.axes[0].get_lines()[1].get_ydata(), np.sqrt(rates))


@pytest.mark.parametrize("rates", [(np.zeros(3), np.zeros(4)), (np.zeros((2, 2)), np.zeros((2, 2)))])
def test_roc_rates_must_fit_each_other(rates):
    with pytest.raises(ValueError, match=r"two rates of posets must have one shape \(T,\), got"):
        roc_curves({"posets": rates})


# --- writing


def test_a_figure_is_written_as_png(tmp_path):
    path = save_figure(
        loss_curves({"joint": (np.arange(100), np.linspace(3, 1, 100))}), str(tmp_path / "loss.png")
    )
    assert path == tmp_path / "loss.png"
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == (910, 520)
        assert len(np.unique(np.asarray(image))) > 10
    assert os.listdir(tmp_path) == ["loss.png"]
    save_figure(image_rows({"row": [Tile(PIXELS)] * 2}), path)  # in the place of the old one
    with Image.open(path) as image:
        assert image.size != (910, 520)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "loss.png"
    path.write_text("the old one")

    class Figure:
        def savefig(self, part, **options):
            assert part.name != str(path)
            part.write(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_figure(Figure(), path)
    assert path.read_text() == "the old one"
    assert os.listdir(tmp_path) == ["loss.png"]


@pytest.mark.parametrize("name", ["loss.pdf", "loss"])
def test_other_endings_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"written as PNG, got .*loss"):
        save_figure(loss_curves({}), tmp_path / name)
    assert os.listdir(tmp_path) == []


# --- matplotlib


@pytest.mark.parametrize(
    "draw",
    [
        lambda: image_rows({"row": [Tile(PIXELS)]}),
        lambda: loss_curves({"joint": ([1], [1.0])}),
        lambda: roc_curves({"posets": (np.arange(2), np.arange(2))}),
    ],
)
def test_without_matplotlib_the_extra_is_named(monkeypatch, draw):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r'^plots need matplotlib: pip install "pml-posets\[plots\]"$'):
        draw()


def test_importing_and_drawing_leave_pyplot_alone():
    code = (
        "import sys; from pml_posets.plots import loss_curves; assert 'matplotlib' not in sys.modules\n"
        "loss_curves({'joint': ([1], [1.0])}); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
