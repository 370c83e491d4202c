"""Pictures: what is drawn, how it is written, and what is said without matplotlib."""

import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refuses_each

from pml_posets.plots import Tile, image_rows, loss_curves, roc_curves, save_figure

pytest.importorskip("matplotlib", reason="plots need matplotlib")

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)  # 3 high, 5 wide


GRAY = PIXELS[:, :, 0]
TENSOR = torch.from_numpy(PIXELS).permute(2, 0, 1)
WIDE = torch.arange(27, dtype=torch.uint8).view(3, 3, 3)  # three pixels wide: is not taken for an array


def drawn(image):
    """The pixels of an image alone in a picture."""
    (found,) = image_rows({"row": [Tile(image)]}).axes[0].get_images()
    return np.asarray(found.get_array())


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (PIXELS, PIXELS),
        (Image.fromarray(PIXELS), PIXELS),
        (TENSOR, PIXELS),
        (PIXELS / 255, PIXELS),
        (TENSOR.float() / 255, PIXELS),
        ((TENSOR.double() / 255).requires_grad_(), PIXELS),
        (WIDE, WIDE.permute(1, 2, 0).numpy()),
        (WIDE.numpy(), WIDE.numpy()),
        *(
            (image, np.stack([GRAY] * 3, axis=2))
            for image in (GRAY, PIXELS[:, :, :1], Image.fromarray(GRAY), TENSOR[0], TENSOR[:1], GRAY / 255)
        ),
        (np.array([[[-1.0, 0.5, 2.0]]]), [[[0, 128, 255]]]),  # clipped
        (np.full((1, 1), np.nan), [[[0, 0, 0]]]),
        (Image.fromarray(np.uint16([[0, 257, 65535]])), [[[0] * 3, [1] * 3, [255] * 3]]),
        (Image.new("LA", (1, 1), (0, 0)), [[[255] * 3]]),  # transparent
    ],
)
def test_images_of_every_kind_are_drawn_as_they_are(image, expected):
    np.testing.assert_array_equal(drawn(image), expected)


def test_bfloat16_is_drawn_too():
    assert np.abs(drawn(TENSOR.bfloat16() / 255) - PIXELS.astype(int)).max() <= 1


test_other_images_are_refused = refuses_each(
    drawn,
    *(
        (np.zeros(shape), ValueError, r"an image must be .*, got \(")
        for shape in [(4, 4, 2), (3, 4, 5), (4,), (1, 2, 3, 3), (0, 4, 3)]
    ),
    (np.zeros((4, 4, 3), np.int64), TypeError, r"uint8 or floating point .* got int64"),
    (TENSOR.bfloat16(), ValueError, "divide bytes by 255"),
)


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


@pytest.mark.parametrize("shapes", [((2, 2), (2, 2)), ((2,), (3,))])
def test_numbers_of_a_curve_must_fit_each_other(shapes):
    pair = tuple(np.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=r"losses of joint must have one shape \(T,\), got \(2"):
        loss_curves({"joint": pair})
    with pytest.raises(ValueError, match=r"two rates of posets must have one shape \(T,\), got"):
        roc_curves({"posets": pair})


def test_roc_curves_with_their_areas_the_best_first():
    rates = np.linspace(0, 1, 101)
    axis = roc_curves({"chance": (rates, rates), "better": (rates, np.sqrt(rates))}).axes[0]
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["better  0.666", "chance  0.500"]
    assert np.array_equal(axis.get_lines()[1].get_ydata(), np.sqrt(rates))


# --- writing


def test_a_figure_is_written_as_png(tmp_path):
    path = save_figure(loss_curves({"joint": (np.arange(9), np.arange(9))}), str(tmp_path / "loss.png"))
    assert path == tmp_path / "loss.png"
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (910, 520))
        assert len(np.unique(np.asarray(image))) > 10
    save_figure(image_rows({"row": [Tile(PIXELS)] * 2}), path)  # in the place of the old one
    with Image.open(path) as image:
        assert image.size != (910, 520)
    for name in ("loss.pdf", "loss"):
        with pytest.raises(ValueError, match=r"written as PNG, got .*loss"):
            save_figure(loss_curves({}), tmp_path / name)
    assert os.listdir(tmp_path) == ["loss.png"]


# --- matplotlib


@pytest.mark.parametrize("draw", [lambda: drawn(PIXELS), lambda: loss_curves({}), lambda: roc_curves({})])
def test_without_matplotlib_the_extra_is_named(monkeypatch, draw):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r'^plots need matplotlib: pip install "pml-posets\[plots\]"$'):
        draw()
