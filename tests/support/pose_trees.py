"""Small releases of the pose data sets, in the form of the real ones, for the tests."""

import numpy as np
from benchmark_runs import quick
from PIL import Image
from scipy.io import savemat

from benchmarks.measures.skeletons import LSP_SKELETON

SIZE = (120, 90)  # width and height of the images
POSE = {  # a person who stands upright, in [0, 1] of a box
    "ankle": (0.42, 1.0),
    "knee": (0.43, 0.78),
    "hip": (0.44, 0.55),
    "wrist": (0.3, 0.58),
    "elbow": (0.33, 0.4),
    "shoulder": (0.38, 0.22),
    "neck": (0.5, 0.18),
    "upper_neck": (0.5, 0.18),
    "thorax": (0.5, 0.22),
    "pelvis": (0.5, 0.55),
    "head_top": (0.5, 0.0),
}


def upright(skeleton=LSP_SKELETON):
    """(J, 2) joints in [0, 1]."""
    rows = []
    for name in skeleton.joints:
        x, y = POSE[name.removeprefix("left_").removeprefix("right_")]
        rows.append((1 - x if name.startswith("left_") else x, y))
    return np.array(rows)


def poses(count, seed=0, skeleton=LSP_SKELETON):
    """(N, J, 2) people in pixels of images of `SIZE`, as MATLAB counts them: the first pixel is 1."""
    rng = np.random.default_rng(seed)
    joints = 60 * upright(skeleton) + rng.normal(0, 2, (count, len(skeleton.joints), 2))
    return joints + rng.uniform((15, 8), (45, 18), (count, 1, 2))


def leaning(count, seed):
    """(N, 14, 2) people in [0, 1] of their crops, who lean to all sides."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(-1.5, 1.5, count)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])  # (2, 2, N)
    unit = 0.5 + np.einsum("ijn,kj->nki", turn, 0.7 * (upright() - 0.5)) + rng.normal(0, 0.02, (count, 14, 2))
    return np.clip(unit, 0.02, 0.98)


def draw(joints, size=SIZE):
    """A picture with a spot of 3 x 3 pixels on each joint that lies in it."""
    pixels = np.full((size[1], size[0], 3), 90, np.uint8)
    for j, (x, y) in enumerate(np.nan_to_num(joints, nan=-99)):
        column, row = round(x) - 1, round(y) - 1
        pixels[max(0, row - 1) : max(0, row + 2), max(0, column - 1) : max(0, column + 2)] = (255, 12 * j, 0)
    return Image.fromarray(pixels)


def write_leeds(root, joints, flags, digits=4, extended=False, skip=()):
    """images/ and joints.mat of LSP (3 x 14 x N), or of its extended set (14 x 3 x N)."""
    (root / "images").mkdir(parents=True)
    for i, person in enumerate(joints):
        if i not in skip:
            draw(person).save(root / "images" / f"im{i + 1:0{digits}d}.jpg", quality=95, subsampling=0)
    rows = np.concatenate([joints, flags[:, :, None]], axis=2)  # (N, 14, 3)
    savemat(root / "joints.mat", {"joints": rows.transpose((1, 2, 0) if extended else (2, 1, 0))})
    return root


def write_crops(root, joints, flags, digits=4, **extra):
    """images/ and joints.npz of crops of 60 x 60 px; joints in [0, 1]."""
    (root / "images").mkdir(parents=True)
    for i, person in enumerate(joints):
        draw(60 * person + 0.5, size=(60, 60)).save(root / "images" / f"im{i + 1:0{digits}d}.jpg")
    rows = np.concatenate([joints, flags[:, :, None]], axis=2).astype(np.float32)
    np.savez(root / "joints.npz", joints=rows, joint_names=np.array(LSP_SKELETON.joints), **extra)
    return root


def structs(rows):
    """A MATLAB struct array 1 x n of dicts with the same keys."""
    array = np.empty((1, len(rows)), dtype=[(key, object) for key in rows[0]])
    for i, row in enumerate(rows):
        for key, value in row.items():
            array[0, i][key] = value
    return array


def person(joints, *, visible=True, head=True, ids=None):
    """An annorect of MPII: joints (16, 2), NaN rows left out; visible None: no such field."""
    points = []
    for j, (x, y) in enumerate(joints):
        if np.isfinite(x):
            point = {"x": x, "y": y, "id": float(j if ids is None else ids[j])}
            if visible is not None:
                point["is_visible"] = "1" if visible and j % 2 else np.zeros((0, 0))
            points.append(point)
    top, neck = joints[9], joints[8]
    box = {"x1": top[0] - 4.0, "y1": top[1], "x2": top[0] + 4.0, "y2": neck[1]}
    return {
        **(box if head else {}),
        "annopoints": structs([{"point": structs(points)}]) if points else np.zeros((0, 0)),
        "scale": 0.5,
        "objpos": structs([{"x": 50.0, "y": 40.0}]),
    }


def write_mpii(root, entries):
    """The annotation file and the images; entries: (name, [annorect, ...], in training, joints drawn)."""
    (root / "images").mkdir(parents=True)
    annolist = []
    for name, rects, _, drawn in entries:
        rect = structs(rects) if rects else np.zeros((0, 0))
        image = structs([{"name": name}])
        annolist.append({"image": image, "annorect": rect, "frame_sec": np.zeros((0, 0))})
        if drawn is not None:
            draw(drawn).save(root / "images" / name, quality=95, subsampling=0)
    training = np.array([[float(entry[2]) for entry in entries]])
    release = structs([{"annolist": structs(annolist), "img_train": training, "version": "12"}])
    savemat(root / "mpii.mat", {"RELEASE": release})
    return root / "mpii.mat", root / "images"


def write_lsp_and_more(root, count, seed=0):
    """lsp, of `count` people to learn from and as many to test on; lspet of 6; all of them crops.

    Two people to learn from lack a joint; of those to test on one lacks an elbow, and one has no head.
    """
    joints = leaning(2 * count, seed)
    joints[2, 5] = (1.4, 0.5)  # outside its image
    joints[7, 0] = joints[count + 2, 7] = np.nan
    joints[count + 5, 13] = joints[count + 5, 12]
    write_crops(root / "lsp", joints, np.zeros((2 * count, 14)))
    write_crops(root / "lspet", leaning(6, seed + 1), np.ones((6, 14)), digits=5)
    return root


PEOPLE = 20  # to learn from, and as many to test on
RUNNERS = {
    "sports": ("run",), "num_sources": 4, "num_clips": 1, "num_frames": 5, "size": 48, "num_anchors": 4,
}  # fmt: skip
"""A drawn tree of 20 frames."""


def lsp_arguments(data, output, *more):
    """A run of lsp.py on what `write_lsp_and_more` has made, or on drawn figures."""
    given = [] if "--figures" in more else ["--data-root", data / "lsp"]
    return quick(data / "cache", output, *given, *more)
