"""Pictures of poses: which sticks are drawn where, and where the heat of joints is."""

import numpy as np
import pytest
from PIL import Image
from pose_trees import upright

from benchmarks.core.drawn_poses import COLORS, heated, with_pose
from benchmarks.measures.skeletons import LSP_SKELETON, Skeleton, Stick

SIDE = 64
ARMS = Skeleton(  # two sticks and one between the middles of two joints each
    joints=("right_elbow", "right_wrist", "left_elbow", "left_wrist"),
    sticks=(
        Stick("LA", ("right_elbow",), ("right_wrist",)),
        Stick("LA", ("left_elbow",), ("left_wrist",)),
        Stick("M", ("right_elbow", "left_elbow"), ("right_wrist", "left_wrist")),
    ),
    mirror=(2, 3, 0, 1),
    neck_and_head=("right_elbow", "right_wrist"),
)
POSE = np.array([[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]])


def drawn(pose, skeleton=ARMS):
    """The colors of a pose on black, with the columns they are in, and the rows of all."""
    blank = Image.new("RGB", (SIDE, SIDE))
    pixels = np.asarray(with_pose(blank, pose, skeleton))
    assert not np.asarray(blank).any()  # it draws on a copy
    colors = {tuple(color) for color in pixels.reshape(-1, 3).tolist()} - {(0, 0, 0)}
    columns = {c: np.flatnonzero((pixels == c).all(axis=2).any(axis=0)).tolist() for c in colors}
    return columns, np.flatnonzero(pixels.any(axis=(1, 2)))


def test_sticks_are_drawn_in_the_color_of_their_side():
    columns, rows = drawn(POSE)
    assert set(columns) == set(COLORS.values())
    for side, column in (("right", 16), ("middle", 32), ("left", 48)):
        found = columns[COLORS[side]]
        assert column in found
        assert len(found) <= 2  # upright
    assert (rows.min(), rows.max()) == (16, 48)
    assert set(drawn(upright(), LSP_SKELETON)[0]) == set(COLORS.values())
    assert drawn(np.full((14, 2), np.nan), LSP_SKELETON)[0] == {}


@pytest.mark.parametrize("joint", range(4))
@pytest.mark.parametrize("axis", [0, 1])
def test_sticks_of_a_missing_joint_are_not_drawn(joint, axis):
    pose = POSE.copy()
    pose[joint, axis] = np.nan
    assert set(drawn(pose)[0]) == {COLORS["left" if joint < 2 else "right"]}


def test_heat_by_hand():
    side, sigma = 8, 0.2
    gray = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    image = Image.fromarray(gray)
    poses = np.array([[[0.3, 0.6], [0.9, 0.1]], [[0.35, 0.6], [0.2, 0.2]]])  # two poses of two joints
    heat = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            for x, y in poses.reshape(-1, 2):
                away = ((column + 0.5) / side - x) ** 2 + ((row + 0.5) / side - y) ** 2
                heat[row, column] += np.exp(-away / (2 * sigma**2))
    heat = (heat / heat.max())[:, :, None]
    tone = np.asarray(image.convert("L"), float)[:, :, None]
    expected = 0.7 * tone * (1 - heat) + np.array([255, 200, 0]) * heat
    found = np.asarray(heated(image, poses, sigma)).astype(float)
    assert np.abs(found - expected).max() <= 0.5 + 1e-9
    np.testing.assert_array_equal(np.asarray(image), gray)
    np.testing.assert_array_equal(heated(image, poses), heated(image, poses, 0.03))


def test_heat_where_no_joint_is_in_the_image():
    far = np.full((1, 3, 2), 50.0)
    found = np.asarray(heated(Image.new("RGB", (16, 16), (100, 100, 100)), far))
    np.testing.assert_array_equal(found, np.full((16, 16, 3), 70))
