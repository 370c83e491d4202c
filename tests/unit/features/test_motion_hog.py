"""MotionHOG on textures that move, with and without something that moves before them."""

import numpy as np
import pytest
import torch

from pml_posets._clips import Clips
from pml_posets.features.hog import HogItems
from pml_posets.features.motion_hog import MotionHOG, background_motion, warped


def texture(side, seed=0):
    """A smooth random picture, gray values 0 to 255."""
    rng = np.random.default_rng(seed)
    picture = sum(
        np.kron(rng.normal(size=(side // cell, side // cell)), np.ones((cell, cell))) for cell in (4, 8, 16)
    )
    return np.clip(127 + 40 * picture, 0, 255)


def clip(num_frames=6, side=64, pan=2, speed=3, seed=0):
    """Frames of a camera that pans over a texture, before which a textured square moves the other way."""
    wide, square = texture(2 * side, seed), texture(16, seed + 1)
    frames = np.empty((num_frames, side, side), np.uint8)
    where = []
    for t in range(num_frames):
        frames[t] = wide[32 : 32 + side, 16 + pan * t : 16 + pan * t + side]
        left = side // 2 - 16 + speed * t
        frames[t, 24:40, left : left + 16] = square
        where.append(left)
    return np.repeat(frames[..., None], 3, axis=3), np.array(where)


def test_background_motion_undoes_a_known_shift_and_zoom():
    frames, _ = clip(2, pan=0, speed=0)
    first = torch.from_numpy(frames[:1, ..., 0]).float()
    known = torch.tensor([[[1.05, 0.01, 0.06], [0.0, 0.97, -0.04]]])
    second = warped(first, known)
    lies = warped(second, background_motion(first, second))
    middle = (slice(None), slice(8, -8), slice(8, -8))
    before, after = (x[middle].sub(first[middle]).abs().mean() for x in (second, lies))
    assert after < 0.35 * before


def test_what_moves_is_the_square_not_the_panned_background():
    frames, where = clip()
    first, second = (torch.from_numpy(frames[i : i + 1, ..., 0]).float() for i in (2, 3))
    gap = (warped(second, background_motion(first, second)) - first).abs()[0].numpy()
    on = gap[24:40, where[2] : where[2] + 16].mean()
    off = np.delete(gap, range(20, 44), axis=0)[4:-4, 8:-8].mean()
    assert on > 3 * off


def test_what_is_still_on_one_side_in_time_does_not_move():
    still, other = clip(1, seed=0)[0][0], clip(1, seed=5)[0][0]
    images = np.stack([still, still, other])
    clips = Clips(np.zeros(3, np.int64), np.arange(3.0), None)
    (_, _, motion), *_ = MotionHOG(64)._motion(HogItems(images, 64), clips)
    assert not motion[0].any()
    assert not motion[1].any()
    assert motion[2].mean() > 10


def test_motion_makes_figures_matter_more_than_scenes():
    """Two frames of one scene are less alike where the square, which moves, counts more."""
    images = np.concatenate([clip(4, seed=0)[0], clip(4, seed=5)[0]])
    sources, times = np.repeat([0, 1], 4), np.tile(np.arange(4), 2)

    def alike(emphasis):
        describe = MotionHOG(64, window=(10.0, 10.0), parts=(1, 0, 0), emphasis=emphasis, steps=0)
        rows, _ = describe.fit_transform(images, sources, times)
        return rows[1] @ rows[2]

    assert alike(0.0) > alike(2.0)


def test_rows_are_of_length_one_and_in_dataset_order():
    images = np.concatenate([clip(8)[0], clip(8, seed=3)[0]])
    sources, times = np.repeat([0, 1], 8), np.tile(np.arange(8), 2)
    describe = MotionHOG(64, components=12)
    rows, mirrored = describe.fit_transform(images, sources, times)
    assert rows.shape == mirrored.shape == (16, 12)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    order = np.random.default_rng(0).permutation(16)
    moved, _ = describe.fit_transform(images[order], sources[order], times[order])
    np.testing.assert_allclose(moved @ moved.T, (rows @ rows.T)[np.ix_(order, order)], atol=0.02)


def test_mirrored_frames_have_the_mirrored_features():
    images, _ = clip(6)
    sources, times = np.zeros(12), np.r_[np.arange(6), 100 + np.arange(6)]
    both = np.concatenate([images, images[:, :, ::-1]])
    rows, mirrored = MotionHOG(64, emphasis=2.0, components=16).fit_transform(both, sources, times)
    np.testing.assert_allclose((rows[:6] * mirrored[6:]).sum(1), 1, atol=0.05)
    np.testing.assert_allclose((mirrored[:6] * rows[6:]).sum(1), 1, atol=0.05)


def test_frames_without_neighbors_and_long_clips_are_described():
    images = np.random.default_rng(0).integers(0, 255, (260, 16, 16, 3), np.uint8)
    times = np.r_[np.arange(257), 1000, 2000, 3000]  # more frames than are read at once
    rows, _ = MotionHOG(16, components=8).fit_transform(images, np.zeros(260), times)
    assert np.isfinite(rows).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": (0, 0, 0)}, "not all of them 0"),
        ({"parts": (1, 2)}, "three weights"),
        ({"parts": 0.5}, "three weights"),
        ({"window": (0, 0.1)}, "window must be two numbers above 0"),
        ({"window": (0.1,)}, "window must be two numbers above 0"),
        ({"components": 0}, "components must be at least 1"),
        ({"max_step": -1}, "max_step must be above 0"),
        ({"emphasis": -1.0}, "emphasis must be at least 0"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"image_size": 30}, "multiple of"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    images, _ = clip(3)
    with pytest.raises(ValueError, match=message):
        MotionHOG(**{"image_size": 64, **options}).fit_transform(images, np.zeros(3), np.arange(3))
