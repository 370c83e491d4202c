"""Small made data in the published layouts of the sets that retrieval.py and clustering.py read."""

import pickle

import numpy as np
from PIL import Image

SIZE = 36  # side of the images, px


def image_of(kind, seed=0):
    """Noise with stripes: their direction, width and color are those of the kind."""
    rng = np.random.default_rng([kind, seed])
    rows, columns = np.mgrid[:SIZE, :SIZE]
    angle = np.pi * kind / 7
    across = np.cos(angle) * rows + np.sin(angle) * columns
    wave = np.sin(across * (0.5 + 0.15 * (kind % 3)) + rng.uniform(0, 6))
    color = np.random.default_rng(kind).uniform(60, 200, 3)
    pixels = color + 50 * wave[:, :, None] + rng.normal(0, 12, (SIZE, SIZE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_folder(root, num_classes=6, num_images=6, first=0):
    """A subfolder for each class."""
    for kind in range(first, first + num_classes):
        for number in range(num_images):
            save_image(root / f"class{kind:02d}" / f"{number:03d}.png", kind, number)
    return root


def save_image(path, kind, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    image_of(kind, number).save(path, format="PNG" if path.suffix == ".png" else "JPEG")


def write_cub(root, num_images=2):
    """CUB_200_2011/ with two birds to learn from and two to test on, in no order of the classes."""
    root = root / "CUB_200_2011"
    rows = [(c, i) for i in range(num_images) for c in (1, 2, 101, 102)]
    files = [f"{c:03d}.Bird_{c}/Bird_{c}_{i}.jpg" for c, i in rows]
    for (kind, number), file in zip(rows, files, strict=True):
        save_image(root / "images" / file, kind, number)
    (root / "images.txt").write_text("".join(f"{n} {file}\n" for n, file in enumerate(files, 1)))
    (root / "image_class_labels.txt").write_text("".join(f"{n} {c}\n" for n, (c, _) in enumerate(rows, 1)))
    return root


def write_cars(root):
    """names.csv, two tables and car_data/ of four cars, an image of each in either table."""
    names = [f"Make {c}" for c in range(1, 197)]
    root.mkdir(parents=True, exist_ok=True)
    (root / "names.csv").write_text("\n".join(names) + "\n")
    for number, part in enumerate(("train", "test")):
        lines = []
        for c in (1, 2, 99, 100):
            save_image(root / "car_data" / "car_data" / part / f"Make {c}" / f"{c}.jpg", c, number)
            lines.append(f"{c}.jpg,1,1,30,30,{c}")
        (root / f"anno_{part}.csv").write_text("\n".join(lines) + "\n")
    return root


def write_sop(root):
    """Stanford_Online_Products/: Ebay_train.txt of two classes and Ebay_test.txt of three."""
    root = root / "Stanford_Online_Products"
    number = 1
    for part, kinds in (("train", (1, 2)), ("test", (3, 4, 5))):
        lines = ["image_id class_id super_class_id path"]
        for kind in kinds:
            for i in range(2):
                save_image(root / "chair_final" / f"{kind}_{i}.JPG", kind, i)
                lines.append(f"{number} {kind} 1 chair_final/{kind}_{i}.JPG")
                number += 1
        (root / f"Ebay_{part}.txt").write_text("\n".join(lines) + "\n")
    return root


def write_omniglot(path, num_images=4, **changes):
    """Two alphabets of two characters; the second is for evaluation."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), num_images)
    ink = rng.random((4, 21, 21)) < 0.3
    drawings = np.logical_xor(ink[labels], rng.random((len(labels), 21, 21)) < 0.05)
    arrays = {
        "packed": np.packbits(drawings, axis=2),
        "shape": np.array(drawings.shape),
        "labels": labels.astype(np.int16),
        "class_names": np.array(["Latin/a", "Latin/b", "Greek/a", "Greek/b"]),
        "evaluation": labels >= 2,
        "names": np.array([f"{n:04d}.png" for n in range(len(labels))]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: a for name, a in {**arrays, **changes}.items() if a is not None})
    return drawings


def write_cifar(root, coarse):
    """The files of CIFAR-10, or of CIFAR-100 with its coarse labels; returns pixels and classes."""
    rng = np.random.default_rng(0)
    folder = root / ("cifar-100-python" if coarse else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    parts = ["train", "test"] if coarse else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    pixels, labels = [], []
    for part in parts:
        data = rng.integers(0, 256, (2, 3, 32, 32), np.uint8)
        classes = rng.integers(0, 20 if coarse else 10, 2).tolist()
        entry = {"data": data.reshape(2, -1)}
        entry |= {"fine_labels": [0, 1], "coarse_labels": classes} if coarse else {"labels": classes}
        (folder / part).write_bytes(pickle.dumps(entry))
        pixels.append(data.transpose(0, 2, 3, 1))
        labels += classes
    names = [f"kind{c}" for c in range(20 if coarse else 10)]
    meta = {"fine_label_names": ["x", "y"], "coarse_label_names": names} if coarse else {"label_names": names}
    (folder / ("meta" if coarse else "batches.meta")).write_bytes(pickle.dumps(meta))
    return np.concatenate(pixels), labels


def write_stl(root):
    """The binary files of STL-10; returns pixels (N, 3, 96, 96), rows before columns, and classes from 0."""
    rng = np.random.default_rng(0)
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    pixels, labels = [], []
    for part in ("train", "test"):
        data = rng.integers(0, 256, (3, 3, 96, 96), np.uint8)
        classes = rng.integers(1, 11, 3).astype(np.uint8)
        data.transpose(0, 1, 3, 2).tofile(folder / f"{part}_X.bin")  # columns before rows
        classes.tofile(folder / f"{part}_y.bin")
        pixels.append(data)
        labels += (classes - 1).tolist()
    (folder / "class_names.txt").write_text("\n".join(f"kind{c}" for c in range(10)))
    return np.concatenate(pixels), labels
