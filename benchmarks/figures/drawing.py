"""Athletes of the embedded figures: clothes, skin and limbs with thickness, painted from back to front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import ImageDraw

from benchmarks.figures.motion import EXTRA_POINTS, JOINT_NAMES
from benchmarks.figures.scenes import Color, color, shade

_PLACE = {name: i for i, name in enumerate((*JOINT_NAMES, *EXTRA_POINTS))}
_SKINS: tuple[Color, ...] = ((240, 200, 172), (224, 178, 142), (196, 146, 110), (152, 104, 74), (104, 70, 50))
_HAIRS: tuple[Color, ...] = ((28, 22, 20), (72, 46, 30), (120, 82, 46), (196, 160, 96), (150, 150, 150))

Point = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Look:
    """How an athlete looks; `sleeve` and `leg` count the bones that shirt and trousers cover (0 to 2)."""

    skin: Color
    hair: Color
    shirt: Color
    stripes: Color | None
    num_stripes: int
    trousers: Color
    side_stripe: Color | None
    shoes: Color
    sleeve: float
    leg: float
    girth: float
    long_hair: bool
    light: tuple[float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Look:
        """Somebody new."""
        shirt = color(rng, (0.6, 1.0), (0.4, 1.0))
        trousers = color(rng, (0.5, 1.0), (0.3, 1.0)) if rng.uniform() < 0.8 else shirt
        return cls(
            skin=shade(_SKINS[rng.integers(len(_SKINS))], rng.uniform(0.92, 1.05)),
            hair=_HAIRS[rng.integers(len(_HAIRS))],
            shirt=shirt,
            stripes=color(rng, (0.0, 1.0), (0.1, 1.0)) if rng.uniform() < 0.45 else None,
            num_stripes=int(rng.integers(1, 6)),
            trousers=trousers,
            side_stripe=color(rng, (0.0, 0.6), (0.7, 1.0)) if rng.uniform() < 0.3 else None,
            shoes=color(rng, (0.0, 1.0), (0.1, 1.0)),
            sleeve=float(rng.choice([0.0, 0.45, 0.6, 1.0, 2.0])),
            leg=float(rng.choice([0.35, 0.6, 0.85, 1.3, 2.0, 2.0])),
            girth=float(np.exp(rng.normal(0.05, 0.14))),
            long_hair=bool(rng.uniform() < 0.3),
            light=(float(rng.uniform(-0.8, 0.8)), -0.6),
        )


class Painter:
    """Paints one athlete; all positions in pixels of the drawing, `unit` pixels being one body height."""

    def __init__(self, draw: ImageDraw.ImageDraw, look: Look, unit: float) -> None:
        self.canvas = draw
        self.look = look
        self.unit = unit
        self.thick = unit * look.girth

    def figure(self, points: Point) -> None:
        """Paint (20, 3) projected points: x right, y down, z towards the viewer."""
        at = {name: points[i] for name, i in _PLACE.items()}
        trunk = (at["neck"][2] + at["belly"][2]) / 2
        parts = [(float(trunk), self._trunk, ""), (float(at["face"][2]) + 0.01 * self.unit, self._head, "")]
        for side in ("right", "left"):
            # Limbs of the near side lie before the trunk, whatever small bend would say.
            near = 0.35 * (at[f"{side}_shoulder"][2] - trunk)
            arm = (at[f"{side}_elbow"][2] + at[f"{side}_hand"][2]) / 2
            leg = (at[f"{side}_hip"][2] + at[f"{side}_knee"][2]) / 2 - 0.02 * self.unit
            parts.append((float(arm + near), self._arm, side))
            parts.append((float(leg), self._leg, side))
        for depth, paint, side in sorted(parts, key=lambda part: part[0]):
            # What is far is a little darker: the trunk's shadow falls on it.
            far = 1.0 - 0.45 * min(max((float(trunk) - depth) / self.unit, 0.0), 0.3) / 0.3
            paint(at, side, far)

    def prop(self, kind: str, points: Point, phase: float, behind: bool) -> None:
        """Paint what the athlete holds (`Sport.prop`): first what lies behind the figure, then the rest."""
        at = {name: points[i] for name, i in _PLACE.items()}
        right, left, u = at["right_hand"], at["left_hand"], self.unit
        if kind == "bar":
            along = _unit(right - left)
            ends = right + along * 0.3 * u, left - along * 0.3 * u
            wide = 0.12 * u * max(abs(float(along[2])), 0.12)
            for end in ends:
                if behind or end[2] > 0.02 * u:
                    self._disc(end, wide, 0.12 * u, (66, 66, 72))
            if behind:
                self._limb(ends, (0.009 * u, 0.009 * u), (170, 170, 176))
        elif kind == "club" and behind:
            hands = (right + left) / 2
            tip = hands + _unit(hands - (at["right_wrist"] + at["left_wrist"]) / 2) * 0.42 * u
            self._limb((hands, tip), (0.007 * u, 0.007 * u), (190, 190, 196))
        elif kind == "spear" and behind and phase < 0.54:  # later it flies
            trunk = at["belly"] - at["neck"]
            along = _unit(np.array([trunk[1], -trunk[0], 0.0])) - np.array([0.0, 0.35, 0.0])
            ends = right - along * 0.4 * u, right + along * 0.4 * u
            self._limb(ends, (0.007 * u, 0.007 * u), (214, 208, 190))

    def _disc(self, center: Point, wide: float, high: float, paint: Color) -> None:
        """A filled ellipse with a darker rim; half axes in pixels."""
        x, y = center[:2]
        self.canvas.ellipse((x - wide, y - high, x + wide, y + high), fill=paint, outline=shade(paint, 0.5))

    def _limb(self, points: Sequence[Point], radii: Sequence[float], paint: Color) -> None:
        """A round limb along some points, each with its radius in pixels, with a lit side."""
        lx, ly = self.look.light
        placed = [(float(p[0]), float(p[1]), r) for p, r in zip(points, radii, strict=True)]
        for scale, move, bright in ((1.0, 0.0, 0.68), (0.72, 0.24, 0.95), (0.36, 0.42, 1.14)):
            moved = [(x + lx * move * r, y + ly * move * r, r * scale) for x, y, r in placed]
            self._chain(moved, shade(paint, bright))

    def _capsule(self, a: Point, b: Point, ra: float, rb: float, paint: Color) -> None:
        self._chain([(float(a[0]), float(a[1]), ra), (float(b[0]), float(b[1]), rb)], paint)

    def _chain(self, circles: Sequence[tuple[float, float, float]], paint: Color) -> None:
        """Circles (x, y, radius) and what lies between each and the next."""
        for x, y, r in circles:
            self.canvas.ellipse((x - r, y - r, x + r, y + r), fill=paint)
        for (x0, y0, r0), (x1, y1, r1) in pairwise(circles):
            length = math.hypot(x1 - x0, y1 - y0)
            if length > 1e-6:
                nx, ny = (y0 - y1) / length, (x1 - x0) / length
                self.canvas.polygon(
                    (
                        *(x0 + nx * r0, y0 + ny * r0, x1 + nx * r1, y1 + ny * r1),
                        *(x1 - nx * r1, y1 - ny * r1, x0 - nx * r0, y0 - ny * r0),
                    ),
                    fill=paint,
                )

    def _clothed(
        self, points: Sequence[Point], radii: Sequence[float], bare: Color, cloth: Color, share: float
    ) -> None:
        """A limb of two bones, clothed from its start over `share` bones (0 to 2)."""
        if share < 2:
            self._limb(points, radii, bare)
        if share > 0:
            last = min(int(share), 1)
            part = min(share - last, 1.0)
            end = points[last] + (points[last + 1] - points[last]) * part
            radius = radii[last] + (radii[last + 1] - radii[last]) * part
            wide = [1.14 * r for r in (*radii[: last + 1], radius)]
            self._limb([*points[: last + 1], end], wide, cloth)

    def _arm(self, at: dict[str, Point], side: str, far: float) -> None:
        look, t = self.look, self.thick
        skin, cloth = shade(look.skin, far), shade(look.shirt, far)
        points = [at[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist")]
        self._clothed(points, (0.036 * t, 0.027 * t, 0.019 * t), skin, cloth, look.sleeve)
        self._limb([points[-1], at[f"{side}_hand"]], (0.021 * t, 0.018 * t), skin)

    def _leg(self, at: dict[str, Point], side: str, far: float) -> None:
        look, t = self.look, self.thick
        skin, cloth, shoe = shade(look.skin, far), shade(look.trousers, far), shade(look.shoes, far)
        points = [at[f"{side}_{name}"] for name in ("hip", "knee", "ankle")]
        self._limb([points[-1], at[f"{side}_toe"]], (0.026 * t, 0.018 * t), shoe)
        self._clothed(points, (0.062 * t, 0.042 * t, 0.025 * t), skin, cloth, look.leg)
        if look.side_stripe is not None:
            hip, knee = points[:2]
            end = hip + min(look.leg, 1.0) * (knee - hip)
            width = max(1, round(0.016 * t))
            self.canvas.line([*hip[:2], *end[:2]], fill=shade(look.side_stripe, far), width=width)
        self._capsule(points[2][:2], points[2][:2], 0.03 * t, 0.03 * t, shade(shoe, 0.9))

    def _trunk(self, at: dict[str, Point], side: str, far: float) -> None:
        look, t = self.look, self.thick
        neck, belly = at["neck"], at["belly"]
        hips = (at["right_hip"] + at["left_hip"]) / 2
        chest = neck + (belly - neck) * 0.42
        self._limb([neck, neck + (at["face"] - neck) * 0.6], (0.032 * t, 0.030 * t), look.skin)
        self._limb([at["right_hip"], at["left_hip"]], (0.062 * t, 0.062 * t), look.trousers)
        corners = [at[name][:2] for name in ("right_shoulder", "left_shoulder", "left_hip", "right_hip")]
        self.canvas.polygon([tuple(p) for p in corners], fill=shade(look.shirt, 0.8))
        self._limb([at["right_shoulder"], at["left_shoulder"]], (0.038 * t, 0.038 * t), look.shirt)
        self._limb([chest, belly, hips], (0.088 * t, 0.074 * t, 0.066 * t), look.shirt)
        if look.stripes is not None:
            top, low = neck + (belly - neck) * 0.3, hips + (belly - hips) * 0.3
            across = low[:2] - top[:2]
            normal = _unit(np.array([-across[1], across[0]]))
            shoulders = float(np.hypot(*(corners[0] - corners[1])))
            half = max(0.074 * t, 0.45 * shoulders) * 0.95
            for share in (np.arange(look.num_stripes) + 0.5) / look.num_stripes:
                center = top[:2] + share * across
                ends = [*(center - normal * half), *(center + normal * half)]
                self.canvas.line(ends, fill=look.stripes, width=max(1, round(0.045 * t)))

    def _head(self, at: dict[str, Point], side: str, far: float) -> None:
        look, u = self.look, self.unit
        neck, face, top = at["neck"], at["face"], at["head_top"]
        up = _unit((top - face)[:2])
        back = -np.array([1.0, 0.0]) * np.sign(face[0] - neck[0] + 1e-9)
        if look.long_hair:
            ends = face[:2] + back * 0.03 * u, neck[:2] + back * 0.05 * u
            self._capsule(*ends, 0.05 * u, 0.03 * u, shade(look.hair, 0.8))
        self._capsule(face[:2] + up * 0.022 * u, face[:2] + back * 0.012 * u, 0.062 * u, 0.058 * u, look.hair)
        chin = face - _flat(up) * 0.03 * u
        self._limb([face + _flat(up) * 0.005 * u, chin], (0.054 * u, 0.042 * u), look.skin)
        ends = face[:2] + up * 0.045 * u, face[:2] + up * 0.04 * u + back * 0.02 * u
        self._capsule(*ends, 0.044 * u, 0.046 * u, look.hair)


def _unit(vector: Point) -> Point:
    return vector / max(float(np.linalg.norm(vector)), 1e-6)


def _flat(vector: Point) -> Point:
    return np.array([vector[0], vector[1], 0.0])
