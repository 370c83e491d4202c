"""PCP, PCKh and copied poses, against plain loops (the real Leeds Sports Pose: test_lsp.py)."""

import math

import numpy as np
import pytest
import torch
from refusals import refuses_each

from benchmarks.measures.copied import copy_poses
from benchmarks.measures.pose import head_box_size, head_neck_distance, pckh, pcp, pose_classes
from benchmarks.measures.skeletons import LSP_SKELETON, MPII_SKELETON, Skeleton, Stick, mirror_joints

LINE = Skeleton(("a", "b"), (Stick("line", ("a",), ("b",)),), (0, 1), ("a", "b"))


def poses(seed=0, num=20, joints=14, noise=0.1):
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(num, joints, 2))
    return true + noise * rng.normal(size=true.shape), true


def distance(p, q):
    return math.hypot(p[0] - q[0], p[1] - q[1])


def pcp_by_loops(predicted, true, skeleton, threshold, strict):
    """Percent by part, sticks excluded as missing, sticks excluded as zero."""

    def middle(pose, names):
        joints = [pose[skeleton.joints.index(name)] for name in names]
        return [sum(joint[c] for joint in joints) / len(joints) for c in (0, 1)]

    by_part, missing, zero = {}, 0, 0
    for stick in skeleton.sticks:
        judged = []
        for guess, pose in zip(predicted, true, strict=True):
            start, end = middle(pose, stick.start), middle(pose, stick.end)
            errors = distance(middle(guess, stick.start), start), distance(middle(guess, stick.end), end)
            error = max(errors) if strict else sum(errors) / 2
            if any(math.isnan(number) for number in (*start, *end)):
                missing += 1
            elif start == end:
                zero += 1
            else:
                judged.append(error <= threshold * distance(start, end))
        by_part.setdefault(stick.part, []).append(100 * sum(judged) / len(judged))
    return {part: sum(values) / len(values) for part, values in by_part.items()}, missing, zero


# --- PCP


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("skeleton", "seed"), [(LSP_SKELETON, 0), (LSP_SKELETON, 1), (MPII_SKELETON, 2)])
def test_pcp_by_plain_loops(skeleton, seed, strict):
    predicted, true = poses(seed, num=40, joints=len(skeleton.joints), noise=0.5)
    rng = np.random.default_rng(seed)
    true[rng.random(true.shape[:2]) < 0.1, 1] = np.nan
    true[3, :2] = 1.0  # a lower leg of length 0
    score = pcp(predicted, true, skeleton, 0.7, strict)
    parts, missing, zero = pcp_by_loops(predicted, true, skeleton, 0.7, strict)
    assert list(score.parts) == list(skeleton.parts)
    assert score.parts == pytest.approx(parts)
    assert score.total == pytest.approx(sum(parts.values()) / 6)
    assert 10 < score.total < 90
    assert score.excluded == {"missing joint": missing, "zero length": zero}
    assert missing > 20
    assert zero == 1
    assert sum(score.counted.values()) + score.num_excluded == 40 * 10


def test_pcp_at_the_edge_of_the_threshold():
    true = np.array([[[0.0, 0.0], [0.0, 4.0]]])
    assert pcp(true + np.array([2.0, 0.0]), true, LINE).total == 100.0  # half the length is still within
    assert pcp(true + np.array([2.0 + 1e-9, 0.0]), true, LINE).total == 0.0
    one_end = true + np.array([[[0.0, 0.0], [3.0, 0.0]]])  # one end off by 3, on average by 1.5
    assert pcp(one_end, true, LINE).total == 0.0
    assert pcp(one_end, true, LINE, strict=False).total == 100.0
    assert pcp(one_end, true, LINE, threshold=0.75).total == 100.0


def test_left_and_right_weigh_the_same_and_the_torso_goes_from_middle_to_middle():
    true = np.random.default_rng(0).normal(size=(4, 14, 2))
    predicted = true.copy()
    predicted[:, 0] += 100  # right ankle: no right lower leg is right
    true[1:, 5] = np.nan  # of the left ones a single one counts
    predicted[:, 8] += 100
    predicted[:, 9] -= 100  # the shoulders: the upper arms are wrong, not the torso
    score = pcp(predicted, true)
    assert score.parts == {"T": 100, "UL": 100, "LL": 50, "UA": 0, "LA": 100, "H": 100}
    assert score.total == pytest.approx(450 / 6)
    assert score.counted["LL"] == 5
    assert score.excluded == {"missing joint": 3, "zero length": 0}


def test_a_part_that_nobody_has_makes_no_total():
    predicted, true = poses()
    true[:, LSP_SKELETON.joints.index("head_top")] = np.nan
    score = pcp(predicted, true)
    assert math.isnan(score.parts["H"])
    assert math.isnan(score.total)
    assert (score.counted["H"], score.excluded["missing joint"]) == (0, 20)
    empty = pcp(np.zeros((0, 14, 2)), np.zeros((0, 14, 2)))
    assert math.isnan(empty.total)
    assert empty.num_excluded == 0


def test_scale_shift_order_and_form_do_not_matter():
    predicted, true = poses(5, noise=0.4)
    score = pcp(predicted, true)
    assert 0 < score.total < 100
    assert pcp(8 * predicted + 2, 8 * true + 2).parts == score.parts
    assert pcp(predicted[::-1], true[::-1]).parts == score.parts
    assert pcp(torch.from_numpy(predicted), true.tolist()).parts == score.parts
    assert pcp(mirror_joints(predicted), mirror_joints(true)).parts == pytest.approx(score.parts)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        rounded = torch.from_numpy(predicted).to(dtype)
        assert pcp(rounded, true).parts == pcp(rounded.double(), true).parts


# --- PCKh


def test_pckh_by_plain_loops():
    predicted, true = poses(1, num=30, joints=16, noise=0.6)
    rng = np.random.default_rng(1)
    true[rng.random((30, 16)) < 0.15] = np.nan
    head = rng.uniform(0.5, 2, 30)
    head[4], head[5] = 0, np.nan
    excluded = {"missing joint": 0, "missing head size": 0, "zero head size": 0}
    rows = {}
    for j, name in enumerate(MPII_SKELETON.joints):
        hits = []
        for n in range(30):
            if np.isnan(true[n, j]).any():
                excluded["missing joint"] += 1
            elif n in (4, 5):
                excluded["zero head size" if n == 4 else "missing head size"] += 1
            else:
                hits.append(distance(predicted[n, j], true[n, j]) <= 0.4 * head[n])
        name = name.removeprefix("left_").removeprefix("right_")
        rows.setdefault(name, []).append(100 * sum(hits) / len(hits))
    rows = {name: sum(values) / len(values) for name, values in rows.items()}
    score = pckh(predicted, true, head, threshold=0.4)
    assert len(rows) == 10
    assert score.parts == pytest.approx(rows)
    assert score.total == pytest.approx(sum(rows.values()) / 10)
    assert score.excluded == excluded
    assert min(excluded.values()) > 0
    assert sum(score.counted.values()) + score.num_excluded == 30 * 16


def test_the_total_of_pckh_is_that_of_the_papers_table():
    names = "head_top upper_neck shoulder elbow wrist hip knee ankle thorax pelvis".split()  # noqa: SIM905
    ours = dict(zip(names, [83.8, 90.9, 77.5, 60.8, 44.4, 74.6, 65.4, 57.4, 90.5, 81.3], strict=True))
    predicted = np.zeros((1000, 16, 2))
    for name, percent in ours.items():
        predicted[round(10 * percent) :, MPII_SKELETON.rows[name]] = 9.0
    score = pckh(predicted, np.zeros((1000, 16, 2)), np.ones(1000))
    assert score.parts == pytest.approx(ours)
    assert round(score.total, 1) == 72.7


def test_pckh_by_hand():
    true = np.zeros((1, 16, 2))
    assert pckh(true + np.array([3.0, 4.0]), true, [10.0]).total == 100.0  # half a head is still within
    assert pckh(true + np.array([3.0, 4.0]), true, [9.999]).total == 0.0
    assert pckh(true + np.array([3.0, 4.0]), true, [5.0], threshold=1.0).total == 100.0
    score = pckh(true[:, :14], true[:, :14], [1.0], skeleton=LSP_SKELETON)
    assert list(score.parts) == ["ankle", "knee", "hip", "wrist", "elbow", "shoulder", "neck", "head_top"]


def test_head_sizes():
    true = np.zeros((2, 16, 2))
    true[0, 9], true[1, 8] = [3.0, 4.0], np.nan
    np.testing.assert_array_equal(head_neck_distance(true), [5.0, np.nan])
    np.testing.assert_array_equal(head_neck_distance(true[:1, :14] + 1, LSP_SKELETON), [0.0])
    np.testing.assert_allclose(head_box_size([[10, 20, 13, 24], [1, 1, 1, 1]]), [3.0, 0.0])
    assert math.isnan(head_box_size([[np.nan] * 4])[0])


# --- Skeletons


def test_the_skeletons():
    ends = [f"{side}_{name}" for name in ("ankle", "wrist") for side in ("right", "left")]
    assert LSP_SKELETON.indices([*ends, "neck", "head_top"]) == [0, 5, 6, 11, 12, 13]
    assert MPII_SKELETON.joints[6:10] == ("pelvis", "thorax", "upper_neck", "head_top")
    assert MPII_SKELETON.mirror == (5, 4, 3, 2, 1, 0, 6, 7, 8, 9, 15, 14, 13, 12, 11, 10)
    for skeleton in (LSP_SKELETON, MPII_SKELETON):
        assert len(skeleton.sticks) == 10
        for j, other in enumerate(skeleton.mirror):
            swapped = skeleton.joints[j].replace("left", "RIGHT").replace("right", "left").lower()
            assert skeleton.joints[other] == swapped
    odd = Skeleton(("claw", "paw"), (), (1, 0), ("claw", "paw"))
    assert odd.rows == {"claw/paw": (0, 1)}
    tail = Skeleton(("tail", "left_tail", "right_tail"), (), (0, 2, 1), ("tail", "tail"))
    assert tail.rows == {"tail": (0,), "left_tail/right_tail": (1, 2)}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"joints": ("a", "a")}, "a name each"),
        ({"sticks": (Stick("x", ("a",), ("c",)),)}, r"found \['c'\]"),
        ({"sticks": (Stick("x", ("a",), ()),)}, "an empty end"),
        ({"mirror": (0, 0)}, "swap pairs of 0..1"),
        ({"mirror": (0,)}, "swap pairs of 0..1"),
        ({"joints": ("a", "b", "c"), "mirror": (1, 2, 0)}, "swap pairs of 0..2"),
        ({"neck_and_head": ("a", "z")}, r"found \['z'\]"),
    ],
)
def test_wrong_skeletons(change, text):
    settings = {"joints": ("a", "b"), "sticks": (), "mirror": (0, 1), "neck_and_head": ("a", "b"), **change}
    with pytest.raises(ValueError, match=text):
        Skeleton(**settings)


def test_mirrored_joints():
    joints = np.random.default_rng(0).random((3, 5, 14, 3)).astype(np.float32)
    mirrored = mirror_joints(joints)
    assert mirrored.dtype == np.float32
    for j, other in enumerate(LSP_SKELETON.mirror):
        np.testing.assert_array_equal(mirrored[..., j, 0], 1 - joints[..., other, 0])
        np.testing.assert_array_equal(mirrored[..., j, 1:], joints[..., other, 1:])
    np.testing.assert_allclose(mirror_joints(mirrored), joints, atol=1e-6)


# --- Copied poses


@pytest.mark.parametrize("mirrored", [False, True])
def test_copied_poses_by_plain_loops(mirrored):
    rng = np.random.default_rng(0)
    queries, gallery, turned = (rng.normal(size=(n, 6)) for n in (15, 11, 11))
    turned *= 100  # the cosine does not mind
    joints = rng.random((11, 14, 2))
    copied = copy_poses(queries, gallery, joints, turned if mirrored else None, k=3)
    table = [*gallery, *turned] if mirrored else list(gallery)
    for n, q in enumerate(queries):
        cosines = [float(q @ g) / np.linalg.norm(q) / np.linalg.norm(g) for g in table]
        order = sorted(range(len(table)), key=lambda g: -cosines[g])[:3]
        assert copied.indices[n].tolist() == order
        assert copied.flips[n].tolist() == [g >= 11 for g in order]
        for place, g in enumerate(order):
            expected = joints[g] if g < 11 else mirror_joints(joints[g - 11])
            np.testing.assert_array_equal(copied.joints[n, place], expected)
    assert copied.flips.any() == mirrored


def test_copied_poses_at_the_edges():
    joints = np.arange(2 * 14 * 2.0).reshape(2, 14, 2)
    joints[1, 3] = np.nan
    away = copy_poses([[-1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]], joints)  # cosine -1 and, by definition, 0
    assert away.indices.tolist() == [[1]]
    np.testing.assert_array_equal(away.joints[0, 0], joints[1])
    assert copy_poses([[0.1, 1.0]], [[1.0, 0.0], [0.0, 0.0]], joints).indices.tolist() == [[0]]
    tied = copy_poses([[0.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]], joints, k=2)
    assert tied.indices.tolist() == [[0, 1], [0, 1]]
    huge = copy_poses([[1e30, 1e30]], [[1e-30, 0.0], [1e-30, 1e-30]], joints)
    assert huge.indices.tolist() == [[1]]


# --- What is wrong, in words


def with_one(value):
    joints = np.zeros((2, 14, 2))
    joints[1, 3, 0] = value
    return joints


LSP, EYE = LSP_SKELETON, np.eye(2)


test_wrong_input = refuses_each(
    lambda call: call(np.zeros((2, 14, 2))),
    (lambda t: pcp(with_one(np.nan), t), ValueError, r"1 of 2 samples \(first: sample 1\)"),
    (lambda t: pcp(with_one(np.inf), t), ValueError, "predicted must be finite"),
    (lambda t: pcp(t, with_one(np.inf)), ValueError, "without annotation by NaN"),
    (lambda t: pcp(t[:1], t), ValueError, r"shape \(2, 14, 2\) of true, got \(1, 14, 2\)"),
    (lambda t: pcp(t, t, MPII_SKELETON), ValueError, r"true must have shape \(N, 16, 2\)"),
    (lambda t: pcp(t, t > 0), TypeError, "true must hold real numbers, got dtype bool"),
    (lambda t: pcp(t, t, threshold=0), ValueError, "threshold must be above 0, got 0"),
    (lambda t: pckh(t, t, [1, 1], 0, LSP), ValueError, "threshold must be above 0, got 0"),
    (lambda t: pckh(t, t, [1.0], skeleton=LSP), ValueError, r"head_size must have shape \(2,\)"),
    (lambda t: pckh(t, t, [1, -1], skeleton=LSP), ValueError, "negative or infinite"),
    (lambda t: pckh(t, t, [1, np.inf], skeleton=LSP), ValueError, "negative or infinite"),
    (lambda t: head_box_size([[5.0, 0.0, 3.0, 4.0]]), ValueError, "x, y, width, height"),
    (lambda t: head_box_size([1.0, 2.0]), ValueError, r"shape \(N, 4\)"),
    (lambda t: mirror_joints(t, MPII_SKELETON), ValueError, r"shape \(..., 16, 2\)"),
    (lambda t: copy_poses(EYE, np.eye(3), t), ValueError, r"shape \(3, 14, 2\) to match"),
    (lambda t: copy_poses(np.eye(3), EYE, t), ValueError, "2 columns like gallery_features"),
    (lambda t: copy_poses(EYE, EYE, t, np.eye(3)), ValueError, r"the shape \(2, 2\)"),
    (lambda t: copy_poses(EYE, EYE, t, k=3), ValueError, "at most 2"),
    (lambda t: copy_poses(EYE, EYE, t, k=0), ValueError, "k must be at least 1"),
    (lambda t: copy_poses(np.nan * EYE, EYE, t), ValueError, "query_features must be fini"),
)


def test_classes_of_poses_are_those_of_alike_joints_wherever_they_stand():
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(3, 14, 2))
    which = np.repeat(np.arange(3), 10)
    place, size = rng.uniform(-5, 5, (30, 1, 2)), rng.uniform(0.5, 2, (30, 1, 1))
    joints = (kinds[which] + 0.01 * rng.normal(size=(30, 14, 2))) * size + place
    joints[4, 3] = np.nan  # the others of this pose tell enough
    joints[7] = np.nan
    joints[8, 1:] = np.nan  # one joint is no pose
    joints[:, 13] = np.nan  # nobody has it
    found = pose_classes(joints, num_classes=3)
    assert found.dtype == np.int64
    assert np.flatnonzero(found == -1).tolist() == [7, 8]
    kept = ~np.isin(np.arange(30), [7, 8])
    assert len(np.unique(found[kept])) == 3
    assert all(len(np.unique(found[kept & (which == kind)])) == 1 for kind in range(3))
    assert len(np.unique(pose_classes(joints))) == 1 + 28 // 8  # of 100 classes each would have one person
    with pytest.raises(ValueError, match="supervised needs two people with a pose, got 1 of 3"):
        pose_classes(joints[6:9])
