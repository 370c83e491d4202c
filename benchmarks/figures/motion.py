"""How the embedded athletes move: a jointed body, and one periodic motion a sport.

Axes of the body: x forward, y up, z to the athlete's right; lengths in body heights, angles in degrees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_PAIRED = ("shoulder", "hip", "elbow", "knee", "wrist", "ankle")
JOINT_NAMES = ("neck", "belly", "face", *(f"{side}_{name}" for name in _PAIRED for side in ("right", "left")))
"""The order of J-HMDB's annotation."""

MIRRORED_JOINTS = np.array([0, 1, 2, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13])
"""The joint that a joint becomes in the mirror image."""

EXTRA_POINTS = ("head_top", "right_hand", "left_hand", "right_toe", "left_toe")
"""Points beyond the joints that `Body.points` gives, for drawing."""

# What describes a pose; arms hang and legs stand straight at 0. `flex` and `hip` lift a limb forward,
# `spread` and `apart` away from the body; `around` and `out` turn it outward, `roll` the elbow's plane.
_TRUNK = ("jump", "lean", "side", "turn", "bend", "twist", "tilt", "nod")
_ARM = ("flex", "spread", "around", "roll", "elbow")
_LEG = ("hip", "apart", "out", "knee", "toe")
PARAMETERS = (*_TRUNK, *(f"{name}_{side}" for side in "rl" for name in (*_ARM, *_LEG)))
_GRID = 256


@dataclass(frozen=True)
class Sport:
    """A motion as key poses over one cycle.

    Attributes:
        keys: the key poses, as a text `@phase name degrees name degrees ... @phase ...`; phases rise in
            [0, 1), names are those of `PARAMETERS`, and one without _r or _l holds for both sides.
        rest: values that hold wherever a key pose says nothing else (otherwise 0), as `name degrees ...`.
        yaw: degrees from the picture plane to the athlete's forward direction: 0 is a side view, 90 faces us.
        prop: what is held: "bar" (across both hands), "club", "spear" or "".
    """

    keys: str
    rest: str = ""
    yaw: float = 0.0
    prop: str = ""

    def curves(self, smoothing: float = 0.025) -> Array:
        """(256, P) parameters over one cycle: key poses joined by straight lines, then smoothed."""
        rest = _pose(self.rest, np.zeros(len(PARAMETERS)))
        texts = [text.split(maxsplit=1) for text in self.keys.split("@")[1:]]
        poses = np.stack([_pose(text, rest) for _, text in texts])
        grid = np.arange(_GRID) / _GRID
        phases = np.array([float(phase) for phase, _ in texts])
        table = np.stack([np.interp(grid, phases, column, period=1.0) for column in poses.T], axis=1)
        kernel = np.exp(-((np.minimum(grid, 1 - grid) / smoothing) ** 2) / 2)
        spectrum = np.fft.rfft(table, axis=0) * np.fft.rfft(kernel / kernel.sum())[:, None]
        return np.fft.irfft(spectrum, n=_GRID, axis=0)


def _pose(text: str, rest: Array) -> Array:
    pose, words = rest.copy(), text.split()
    for name, degrees in zip(words[::2], words[1::2], strict=True):
        names = [name] if name in PARAMETERS else [f"{name}_r", f"{name}_l"]
        for full in names:
            pose[PARAMETERS.index(full)] = float(degrees)
    return pose


def _swapped(text: str) -> str:
    """The same pose with left and right exchanged."""
    words = text.split()
    pairs = []
    for name, degrees in zip(words[::2], words[1::2], strict=True):
        if name in ("side", "turn", "twist", "tilt"):
            degrees = str(-float(degrees))
        elif name[-2:] in ("_r", "_l"):
            name = name[:-1] + ("l" if name[-1] == "r" else "r")
        pairs.append(f"{name} {degrees}")
    return " ".join(pairs)


_STEP = (
    "hip_r 55 knee_r 75 hip_l -22 knee_l 22 toe_l 40 flex_r -50 flex_l 42 twist 14",
    "hip_r 45 knee_r 22 hip_l -18 knee_l 75 toe_l 40 flex_r -28 flex_l 25 twist 8 jump 0.05",
    "hip_r 15 knee_r 14 hip_l 10 knee_l 112 toe_l 25 flex_r 2 flex_l -5",
)

SPORTS: dict[str, Sport] = {
    "golf": Sport(
        """
        @0.00 lean 34 bend 10 flex 52 spread -12 elbow 4 hip 44 knee 24
        @0.16 lean 30 bend 8 twist 42 hip 40 knee 24 flex_r 60 elbow_r 62 spread_r 14 flex_l 66 spread_l
              -34
        @0.30 lean 24 bend 6 twist 78 turn 18 flex_r 104 elbow_r 98 spread_r 26 flex_l 122 spread_l -40
              elbow_l 16 hip_r 30 knee_r 16 hip_l 40 knee_l 38
        @0.42 lean 28 bend 8 twist 20 flex_r 56 elbow_r 66 flex_l 62 spread_l -24 hip_r 34 knee_r 28 hip_l
              36 knee_l 24
        @0.50 lean 30 bend 10 twist -18 turn -16 flex 54 spread -12 hip_r 26 knee_r 34 hip_l 36 knee_l 8
        @0.60 lean 20 bend 4 twist -52 turn -38 flex_r 92 spread_r -34 flex_l 84 elbow_l 40 spread_l 12
              hip_r 4 knee_r 42 toe_r 40 hip_l 22 knee_l 4
        @0.72 lean 4 bend -8 twist -74 turn -56 flex_r 142 spread_r -42 elbow_r 42 flex_l 128 elbow_l 100
              spread_l 32 hip_r -18 knee_r 46 toe_r 50
        @0.88 lean 10 twist -20 turn -16 flex 40 elbow 44 spread -8 hip 14 knee 12
        """,
        rest="apart 15",
        yaw=80,
        prop="club",
    ),
    "kick": Sport(
        """
        @0.00 hip_r -18 knee_r 26 hip_l 30 knee_l 34
        @0.18 hip_r 30 knee_r 100 lean -2 hip_l 6 knee_l 16
        @0.32 hip_r 96 knee_r 124 lean -10 apart_r 10 hip_l -2 knee_l 12
        @0.44 hip_r 112 knee_r 10 lean -30 apart_r 16 hip_l -26 knee_l 6 toe_r 30 flex_r -18 elbow_r 40
              flex_l 62 elbow_l 70
        @0.52 hip_r 124 knee_r 4 lean -36 apart_r 18 hip_l -30 knee_l 6 toe_r 30 flex_r -30 elbow_r 30
              flex_l 66 elbow_l 60
        @0.64 hip_r 86 knee_r 104 lean -10 hip_l -4 knee_l 14
        @0.80 hip_r 34 knee_r 44 lean 6 hip_l -14 knee_l 26 toe_l 25 flex_r 96 elbow_r 22 flex_l 30 twist
              -24
        @0.90 hip_r 12 knee_r 30 lean 6 hip_l 4 knee_l 26 flex_l 92 elbow_l 14 flex_r 30 twist 26
        """,
        rest="flex_r 48 flex_l 58 elbow_r 112 elbow_l 104 apart_l 6 spread 12",
        yaw=14,
    ),
    "run": Sport(
        " ".join(f"@{i / 6:.4f} {pose}" for i, pose in enumerate((*_STEP, *map(_swapped, _STEP)))),
        rest="lean 9 bend 6 elbow 88 spread 9",
        yaw=8,
    ),
    "snatch": Sport(
        """
        @0.00 lean 42 bend 14 hip 98 knee 102 apart 18 flex 62 spread 24
        @0.16 lean 38 bend 8 hip 58 knee 52 apart 16 flex 46 spread 24
        @0.28 lean 2 jump 0.03 hip 2 knee 6 apart 14 flex 8 spread 68 elbow 96 toe 30
        @0.38 lean 20 bend -4 hip 104 knee 118 apart 26 out 20 flex 6 spread 152
        @0.50 lean 14 bend -4 hip 112 knee 126 apart 26 out 20 flex -4 spread 156
        @0.64 lean 4 hip 24 knee 26 apart 16 spread 154
        @0.76 apart 12 spread 155
        @0.88 lean 12 hip 18 knee 22 apart 12 flex 40 spread 44 elbow 84
        """,
        yaw=55,
        prop="bar",
    ),
    "star_jump": Sport(
        """
        @0.00 lean 22 bend 10 hip 58 knee 72 flex -34 elbow 18 apart 4
        @0.14 lean 8 hip 20 knee 22 flex 20 spread 26 elbow 30 toe 20 apart 5
        @0.26 jump 0.14 spread 88 apart 20 toe 40 elbow 10
        @0.40 jump 0.24 spread 142 apart 40 toe 40
        @0.52 jump 0.20 spread 150 apart 32 toe 40 elbow 12
        @0.66 jump 0.06 spread 110 apart 14 toe 30 elbow 44
        @0.80 lean 14 hip 42 knee 56 spread 54 flex 20 elbow 24 apart 9
        @0.90 lean 8 hip 18 knee 26 spread 18 elbow 12 apart 6
        """,
        yaw=78,
    ),
    "throw": Sport(
        """
        @0.00 twist 8 flex_r 128 elbow_r 100 spread_r 30 flex_l 24 hip_r 30 knee_r 62 hip_l -16 knee_l 14
        @0.16 twist 30 flex_r -40 spread_r 62 elbow_r 22 flex_l 78 spread_l 12 hip_l 42 knee_l 58 hip_r
              -12 knee_r 18 lean -6
        @0.34 twist 46 turn 14 flex_r -62 spread_r 70 elbow_r 10 flex_l 96 lean -17 hip_l 52 knee_l 10
              hip_r 2 knee_r 44 apart_l 6
        @0.46 twist 8 flex_r 172 spread_r 34 elbow_r 96 flex_l 40 elbow_l 60 lean -4 hip_l 34 knee_l 4
              hip_r -24 knee_r 34 toe_r 40
        @0.56 twist -30 flex_r 108 spread_r 8 elbow_r 10 flex_l -22 elbow_l 70 lean 24 bend 16 hip_l 50
              knee_l 14 hip_r -26 knee_r 42 toe_r 45
        @0.68 twist -52 flex_r 30 spread_r -14 elbow_r 14 flex_l -40 elbow_l 40 lean 46 bend 26 hip_l 62
              knee_l 32 hip_r -40 knee_r 52 toe_r 40
        @0.84 twist -12 flex_r 22 elbow_r 60 flex_l 6 lean 14 hip_l 12 knee_l 22 hip_r 42 knee_r 78
        """,
        rest="elbow_l 30",
        yaw=-4,
        prop="spear",
    ),
}


@dataclass(frozen=True)
class Body:
    """Lengths of an athlete's bones in body heights; `vary` makes people differ."""

    thigh: float = 0.245
    shin: float = 0.246
    spine: float = 0.285
    shoulders: float = 0.115
    hips: float = 0.072
    upper_arm: float = 0.165
    forearm: float = 0.145
    hand: float = 0.07
    foot: float = 0.12
    neck: float = 0.135

    @classmethod
    def vary(cls, rng: np.random.Generator, spread: float = 0.07) -> Body:
        """An athlete whose lengths differ from the mean by about `spread`."""
        names = tuple(cls.__dataclass_fields__)
        factors = np.exp(rng.normal(0, spread, len(names)).clip(-2 * spread, 2 * spread))
        return cls(**{name: getattr(cls, name) * float(f) for name, f in zip(names, factors, strict=True)})

    def points(self, poses: Array) -> Array:
        """(F, 20, 3) joints and `EXTRA_POINTS` of (F, P) poses; the lower foot stands at y = 0."""
        value = {name: poses[:, i] for i, name in enumerate(PARAMETERS)}
        up, forward = np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])
        pelvis = _turn(-value["turn"], 1) @ _turn(value["side"], 0) @ _turn(-value["lean"], 2)  # (F, 3, 3)
        chest = pelvis @ _turn(-value["twist"], 1) @ _turn(value["tilt"], 0) @ _turn(-value["bend"], 2)
        belly = pelvis @ _turn(-value["bend"] / 2, 2) @ (up * self.spine / 2)
        neck = belly + chest @ (up * self.spine / 2)
        head = chest @ _turn(-value["nod"], 2)
        found = {
            "belly": belly,
            "neck": neck,
            "face": neck + head @ (up * self.neck * 0.62 + forward * 0.012),
            "head_top": neck + head @ (up * (self.neck + 0.04)),
        }
        for side, sign in (("right", 1.0), ("left", -1.0)):
            s = side[0]
            shoulder = neck + chest @ np.array([0.0, -0.028, sign * self.shoulders])
            arm = (
                chest
                @ _turn(-sign * value[f"around_{s}"], 1)
                @ _turn(-sign * value[f"spread_{s}"], 0)
                @ _turn(value[f"flex_{s}"], 2)
                @ _turn(-sign * value[f"roll_{s}"], 1)
            )
            elbow = shoulder + arm @ (-up * self.upper_arm)
            lower = arm @ _turn(value[f"elbow_{s}"], 2)
            wrist = elbow + lower @ (-up * self.forearm)
            hip = pelvis @ np.array([0.0, 0.0, sign * self.hips])
            leg = (
                pelvis
                @ _turn(-sign * value[f"out_{s}"], 1)
                @ _turn(-sign * value[f"apart_{s}"], 0)
                @ _turn(value[f"hip_{s}"], 2)
            )
            knee = hip + leg @ (-up * self.thigh)
            shin = leg @ _turn(-value[f"knee_{s}"], 2)
            ankle = knee + shin @ (-up * self.shin)
            foot = shin @ _turn(-value[f"toe_{s}"], 2)
            found |= {
                f"{side}_shoulder": shoulder,
                f"{side}_elbow": elbow,
                f"{side}_wrist": wrist,
                f"{side}_hand": wrist + lower @ (-up * self.hand),
                f"{side}_hip": hip,
                f"{side}_knee": knee,
                f"{side}_ankle": ankle,
                f"{side}_toe": ankle + foot @ (forward * self.foot - up * 0.03),
            }
        points = np.stack([found[name] for name in (*JOINT_NAMES, *EXTRA_POINTS)], axis=1)
        lowest = points[:, [13, 14, 18, 19], 1].min(axis=1)
        points[:, :, 1] += (value["jump"] - lowest)[:, None]
        return points


def perform(sport: Sport, phases: Array, rng: np.random.Generator, style: float = 1.0) -> Array:
    """(F, P) poses of one athlete at some phases of the cycle, in the athlete's own style.

    `rng` draws the style: how far each angle swings, where it rests, and how time passes within a cycle.
    """
    curves = sport.curves()
    mean = curves.mean(axis=0)
    scale = 1 + 0.10 * style * _limited(rng, curves.shape[1])
    shift = 4.0 * style * _limited(rng, curves.shape[1])
    shift[PARAMETERS.index("jump")] = 0.0
    warp, start = 0.04 * style * float(rng.standard_normal()), float(rng.uniform())
    warped = (phases + warp * np.sin(2 * np.pi * (phases + start))) % 1.0
    grid = np.arange(_GRID) / _GRID
    table = mean + scale * (curves - mean) + shift
    poses = np.stack([np.interp(warped, grid, column, period=1.0) for column in table.T], axis=1)
    for name in ("knee_r", "knee_l", "elbow_r", "elbow_l"):  # neither bends the wrong way
        column = PARAMETERS.index(name)
        poses[:, column] = poses[:, column].clip(2, 150)
    return poses


def _limited(rng: np.random.Generator, count: int) -> Array:
    """Standard normal numbers without the tails."""
    return np.clip(rng.standard_normal(count), -2, 2)


def project(points: Array, yaw: Array | float, pitch: float = 0.0, roll: float = 0.0) -> Array:
    """(F, J, 3) points in the picture: x right, y down, z towards the viewer; angles in degrees."""
    camera = _turn(np.full(1, roll), 2) @ _turn(np.full(1, pitch), 0)
    view = camera @ _turn(-np.atleast_1d(yaw), 1)  # (F or 1, 3, 3)
    seen = np.einsum("fab,fjb->fja", np.broadcast_to(view, (len(points), 3, 3)), points)
    seen[..., 1] *= -1
    return seen


def _turn(degrees: Array, axis: int) -> Array:
    """(F, 3, 3) rotations by (F,) degrees about an axis (0: x, 1: y, 2: z), right-handed."""
    angle = np.deg2rad(np.asarray(degrees, dtype=np.float64))
    c, s = np.cos(angle), np.sin(angle)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.zeros((len(angle), 3, 3))
    matrix[:, axis, axis] = 1.0
    matrix[:, a, a] = matrix[:, b, b] = c
    matrix[:, b, a], matrix[:, a, b] = s, -s
    return matrix
