"""A gallery is brought up to date, searched, grouped, and survives a kill."""

import os

import faiss
import numpy as np
import pytest
from pictures import noise, smooth
from PIL import Image, ImageEnhance

from pml_posets import Embedder, Gallery
from pml_posets._near_copies import linked_groups, thumbnail_rows


def draw(folder, numbers, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        small = Image.fromarray(noise(8, 8, (seed, number)))
        small.resize((32, 32)).save(folder / f"{number:03d}.png")


@pytest.fixture
def photos(tmp_path):
    draw(tmp_path / "photos", range(12))
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    draw(folder, range(12))
    return Embedder(image_size=32, num_views=2).fit(folder)


@pytest.fixture
def gallery(photos, embedder, tmp_path):
    gallery = Gallery(tmp_path / "out")
    gallery.add(photos, embedder)
    return gallery


def check_files(gallery):
    """All files say the same, row by row."""
    names = (gallery.folder / "names.txt").read_text(encoding="utf-8").splitlines()
    index = faiss.read_index(str(gallery.folder / "index.faiss"))
    assert names == gallery.names
    np.testing.assert_array_equal(np.load(gallery.folder / "embeddings.npy"), gallery.embeddings)
    np.testing.assert_array_equal(index.reconstruct_n(0, index.ntotal), gallery.embeddings)


def test_photos_are_added_changed_and_dropped(photos, embedder, tmp_path):
    gallery = Gallery(tmp_path / "out")
    steps = []
    added = gallery.add(photos, embedder, lambda done, total: steps.append((done, total)))
    assert (added.new, added.changed, added.unchanged, added.gone) == (12, 0, 0, 0)
    assert steps == [(12, 12)]
    check_files(gallery)

    draw(photos / "more", [40, 41])
    draw(photos, [3], seed=1)
    os.utime(photos / "003.png", ns=(1, 1))
    (photos / "005.png").unlink()
    gallery = Gallery(tmp_path / "out")  # as another process would open it
    added = gallery.add(photos, embedder)
    assert (added.new, added.changed, added.unchanged, added.gone) == (2, 1, 10, 1)
    check_files(gallery)
    expected = {str(name): row for name, row in zip(gallery.names, gallery.embeddings, strict=True)}
    fresh = Gallery(tmp_path / "fresh")
    fresh.add(photos, embedder)
    assert sorted(expected) == fresh.names
    for name, row in zip(fresh.names, fresh.embeddings, strict=True):
        np.testing.assert_allclose(expected[name], row, atol=1e-6)
    indices, similarities = gallery.nearest(gallery.embeddings, 1)
    assert indices[:, 0].tolist() == list(range(13))
    np.testing.assert_allclose(similarities, 1, rtol=1e-5)


def test_broken_photos_are_left_out_and_tried_again(photos, embedder, tmp_path):
    (photos / "006.png").write_bytes(b"half")
    gallery = Gallery(tmp_path / "out")
    added = gallery.add(photos, embedder)
    ((path, reason),) = added.unreadable
    assert (added.new, path.name) == (11, "006.png")
    assert "006.png" in reason
    assert "006.png" not in gallery.names
    draw(photos, [6])
    assert gallery.add(photos, embedder).new == 1
    check_files(gallery)


def test_a_killed_run_goes_on_where_it_was(photos, embedder, tmp_path, monkeypatch):
    from pml_posets import gallery as module

    monkeypatch.setattr(module, "_BLOCK", 4)
    monkeypatch.setattr(module, "_SAVE_EVERY", -1)

    def kill(done, total):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Gallery(tmp_path / "out").add(photos, embedder, kill)
    gallery = Gallery(tmp_path / "out")
    assert len(gallery) == 4  # what was saved before the kill
    assert gallery.add(photos, embedder).unchanged == 4
    assert len(gallery) == 12
    check_files(gallery)


def test_copies_are_alike_across_and_down():
    photo = np.random.default_rng(0).integers(0, 128, (8, 8, 3), np.uint8)
    ramp = np.arange(0, 128, 16, dtype=np.uint8)
    photos = np.stack([photo, photo + ramp[:, None, None], photo + ramp[None, :, None], photo + 100])
    cosines = thumbnail_rows(photos) @ thumbnail_rows(photos)[0]
    assert cosines[1:3].max() < 0.99
    assert cosines[3] > 0.9999


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, []), (9, [[3, 4]]), (21, [[7, 8, 9], [0, 1, 2], [3, 4], [5, 6]])]
)
def test_duplicates_are_linked_by_pairs(degrees, expected):
    angles = np.radians([0, 20, 40, 120, 125, 200, 220, 300, 315, 335])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = linked_groups(rows, np.cos(np.radians(degrees)))
    assert sorted(found) == sorted(expected)
    assert [len(group) for group in found] == sorted(map(len, expected), reverse=True)


def test_copies_of_photos_are_found_whatever_the_embedder(tmp_path):
    changes = {
        "half": lambda image: image.resize((80, 80)),
        "rough": lambda image: image,
        "cut": lambda image: image.crop((4, 4, 156, 156)),
        "bright": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    }
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(map(Image.fromarray, smooth(12, 160))):
        image.save(tmp_path / "photos" / f"{number:02d}.png")
        for name, change in list(changes.items())[: number % 5]:
            change(image).save(tmp_path / "photos" / f"{number:02d}-{name}.jpg", quality=40)
    Image.new("RGB", (40, 40), "white").save(tmp_path / "photos" / "blank.png")
    Image.new("RGB", (40, 40), "gray").save(tmp_path / "photos" / "gray.png")  # no copy of the blank one
    embedder = Embedder(image_size=32, num_views=2).fit(tmp_path / "photos")
    Gallery(tmp_path / "out").add(tmp_path / "photos", embedder)
    (tmp_path / "photos" / "00.png").unlink()  # the rows behind it move
    gallery = Gallery(tmp_path / "out")
    gallery.add(tmp_path / "photos", embedder)
    found = [[gallery.names[i][:2] for i in group] for group in Gallery(tmp_path / "out").duplicates()]
    expected = [[f"{number:02d}"] * (1 + number % 5) for number in range(12) if number % 5]
    assert sorted(found) == sorted(expected)


def test_clusters_are_numbered_by_size(gallery):
    labels = gallery.clusters(3)
    sizes = np.bincount(labels)
    assert labels.shape == (12,)
    assert len(sizes) == 3
    assert sizes.tolist() == sorted(sizes, reverse=True)
    assert set(gallery.clusters().tolist()) <= {-1, *range(12)}


def test_names_of_any_bytes_stand_in_a_line(photos, embedder, tmp_path):
    (photos / "000.png").rename(photos / "a\nb\u2028.png")
    os.rename(photos / "001.png", os.fsencode(photos) + b"/\xff.png")
    gallery = Gallery(tmp_path / "out")
    gallery.add(photos, embedder)
    names = (tmp_path / "out" / "names.txt").read_text(encoding="utf-8").splitlines()
    assert len(names) == 12
    assert {"a\\nb\\u2028.png", "\\udcff.png"} < set(names)
    assert Gallery(tmp_path / "out").names == gallery.names


def test_a_photo_replaced_at_one_size_and_time_is_embedded(gallery, photos, embedder):
    for name in ("000.png", "001.png"):
        (photos / name).write_bytes((photos / name).read_bytes().ljust(4000, b"x"))
        os.utime(photos / name, ns=(1, 1))
    gallery.add(photos, embedder)
    (photos / "000.png").rename(photos / "001.png")
    assert gallery.add(photos, embedder).changed == 1
    check_files(gallery)


def test_other_photos_and_embedders_are_refused(gallery, photos, embedder, tmp_path):
    draw(tmp_path / "other", range(3))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"half")
    narrow = Embedder(image_size=32, num_views=2, num_components=2).fit(photos)
    other = Embedder(image_size=32, num_views=2, random_state=1).fit(photos)
    assert other.num_features_ == embedder.num_features_
    for output, folder, by, message in (
        ("out", tmp_path / "other", embedder, r"holds photos of .*photos, not of .*other: choose another"),
        ("out", photos, narrow, "the embedder gives 2: embed into another folder"),
        ("out", photos, other, "columns of an embedder with other settings, photos or weights"),
        ("photos/out", photos, embedder, r"the output folder .*out lies in the folder of photos"),
        ("out2", tmp_path / "broken", embedder, r"none of 1 images in .* is readable"),
    ):
        with pytest.raises(ValueError, match=message):
            Gallery(tmp_path / output).add(folder, by)


def test_wrong_use_is_named(gallery, tmp_path):
    queries = gallery.embeddings[:1]
    assert gallery.nearest(queries, 99)[0].shape == (1, 12)
    for wrong in (queries[:, 1:], queries[0], queries + np.nan):
        with pytest.raises(ValueError, match="queries must"):
            gallery.nearest(wrong, 1)
    with pytest.raises(ValueError, match="holds no photos: add some first"):
        Gallery(tmp_path / "empty").nearest(queries, 1)
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\]"):
        gallery.duplicates(0)
    np.savez(tmp_path / "out" / "gallery.npz", a=1)
    with pytest.raises(ValueError, match="is no gallery of this version"):
        Gallery(tmp_path / "out")
