"""Small made data in the published layouts of the sets that retrieval.py and clustering.py read."""

import pickle

import numpy as np
from PIL import Image
from scipy.io import savemat

SIZE = 36  # side of the images, px


def image_of(kind, seed=0, size=SIZE):
    """Noise with stripes: their direction, width and colour are those of the kind."""
    rng = np.random.default_rng([kind, seed])
    rows, columns = np.mgrid[:size, :size]
    angle = np.pi * kind / 7
    wave = np.sin(
        (np.cos(angle) * rows + np.sin(angle) * columns) * (0.5 + 0.15 * (kind % 3)) + rng.uniform(0, 6)
    )
    colour = np.random.default_rng(kind).uniform(60, 200, 3)
    pixels = colour + 50 * wave[:, :, None] + rng.normal(0, 12, (size, size, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_folder(root, num_classes=6, num_images=6, first=0):
    """A subfolder for each class."""
    for kind in range(first, first + num_classes):
        folder = root / f"class{kind:02d}"
        folder.mkdir(parents=True)
        for number in range(num_images):
            image_of(kind, number).save(folder / f"{number:03d}.png")
    return root


def write_cub(root, num_classes=4, num_images=2):
    """images.txt, image_class_labels.txt, images/, the images in no order of the classes."""
    rows = [(c, i) for i in range(num_images) for c in range(1, num_classes + 1)]
    files = [f"{c:03d}.Bird_{c}/Bird_{c}_{i}.jpg" for c, i in rows]
    for (kind, number), file in zip(rows, files, strict=True):
        path = root / "images" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        image_of(kind, number).save(path)
    (root / "images.txt").write_text("".join(f"{n} {file}\n" for n, file in enumerate(files, 1)))
    (root / "image_class_labels.txt").write_text("".join(f"{n} {c}\n" for n, (c, _) in enumerate(rows, 1)))
    return root


def _annotations(columns):
    """A MATLAB struct array of these columns."""
    kinds = [(name, object) for name in columns]
    return np.array(list(zip(*columns.values(), strict=True)), dtype=kinds)[None]


def write_cars(root, whole, num_classes=4, labelled_test=True):
    """cars_annos.mat with car_ims/, or a devkit with two folders."""
    files = [f"{number:05d}.jpg" for number in range(1, 2 * num_classes + 1)]
    classes = [number % num_classes + 1 for number in range(len(files))]
    names = np.array([f"Make {c}" for c in range(1, num_classes + 1)], dtype=object)[None]
    parts = {"": (files, classes)}
    if not whole:
        half = len(files) // 2
        parts = {"train": (files[:half], classes[:half]), "test": (files[half:], classes[half:])}
        (root / "devkit").mkdir(parents=True)
        savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    for part, (listed, of) in parts.items():
        folder = root / ("car_ims" if whole else f"cars_{part}")
        folder.mkdir(parents=True)
        for number, (file, kind) in enumerate(zip(listed, of, strict=True)):
            image_of(kind, number).save(folder / file)
        if whole:
            rows = _annotations({"relative_im_path": [f"car_ims/{file}" for file in listed], "class": of})
            savemat(root / "cars_annos.mat", {"annotations": rows, "class_names": names})
            continue
        columns = {"fname": listed, "class": of}
        if part == "test" and not labelled_test:
            del columns["class"]
        table = "cars_train_annos" if part == "train" else "cars_test_annos_withlabels"
        savemat(root / "devkit" / f"{table}.mat", {"annotations": _annotations(columns)})
    return root


def write_sop(root):
    """Ebay_train.txt of two classes and Ebay_test.txt of three."""
    number = 1
    for part, kinds in (("train", (1, 2)), ("test", (3, 4, 5))):
        lines = ["image_id class_id super_class_id path"]
        for kind in kinds:
            for i in range(2):
                path = root / "chair_final" / f"{kind}_{i}.JPG"
                path.parent.mkdir(parents=True, exist_ok=True)
                image_of(kind, i).save(path, format="JPEG")
                lines.append(f"{number} {kind} 1 chair_final/{path.name}")
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
