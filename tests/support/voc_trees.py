"""A small PASCAL VOC, in the form of the real one, for the tests."""

from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

SIZE = (40, 30)  # width and height of the images
COLORS = {"cat": (220, 40, 40), "dog": (40, 220, 40), "bus": (40, 40, 220)}


def image_of(objects, seed=0):
    """Noise with a patch of the class's color, striped in its direction, in each box."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(90, 120, (SIZE[1], SIZE[0], 3)).astype(np.uint8)
    for name, (left, top, right, bottom), *_ in objects:
        patch = pixels[top - 1 : bottom, left - 1 : right]
        patch[:] = COLORS.get(name, (200, 200, 0))
        stripes = patch[:, ::3] if name == "cat" else patch[::3]
        stripes[:] = 250
    return Image.fromarray(pixels)


def note_of(number, objects, size=SIZE):
    """The annotation: (class, box, difficult or not) of each object."""
    rows = [
        f"<object><name>{escape(name)}</name><pose>Left</pose><truncated>0</truncated>"
        f"<difficult>{int(bool(rest and rest[0]))}</difficult><bndbox><xmin>{box[0]}</xmin>"
        f"<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for name, box, *rest in objects
    ]
    shape = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation><filename>{number:06d}.jpg</filename>{shape}{''.join(rows)}</annotation>"


def write_voc(root, sets):
    """VOCdevkit/VOC2007; `sets`: name of an image set to {number: objects}."""
    base = root / "VOCdevkit" / "VOC2007"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for name, images in sets.items():
        lines = [f"{number:06d}" for number in images]
        (base / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(lines) + "\n")
        for number, objects in images.items():
            image_of(objects, number).save(
                base / "JPEGImages" / f"{number:06d}.jpg", quality=95, subsampling=0
            )
            (base / "Annotations" / f"{number:06d}.xml").write_text(note_of(number, objects))
    return base


def scenes(count, first, classes=("cat", "dog"), seed=0):
    """Images of two objects each, of one class after the other, in boxes drawn at random."""
    rng = np.random.default_rng(seed)
    found = {}
    for i in range(count):
        (left, top), (right, below) = rng.integers(0, 4, (2, 2)).tolist()
        boxes = (1 + left, 3 + top, 16 + left, 26 + top), (21 + right, 3 + below, 36 + right, 26 + below)
        found[first + i] = [(classes[(2 * i + n) % len(classes)], box, False) for n, box in enumerate(boxes)]
    return found
