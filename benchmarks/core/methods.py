"""The methods of the benchmarks, one entry each: what it groups by and what it minimizes.

Every method that learns sees the same number of images an iteration, `batch_size`, by the same trunk,
augmentation and optimizer. To add one, add an entry to `METHODS`; a new grouping or loss is an entry in
`groupings.GROUPINGS` or `losses.LOSSES`. Nothing here imports torch: a command line is answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.core.recipes import Recipe, flag


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Args:
        says: in half a line, for --help.
        losses: names in `losses.LOSSES`, which add up; "": it does not learn.
        grouping: name in `groupings.GROUPINGS`. Default "none": two views of random images.
        unassigned: batches hold unassigned samples too, and samples drawn from all alike.
        views: of each image in a batch, of grouped samples; those of "none" and "neighbors" are always two.
        trained: the network has weights that are not drawn by the seed; "" for the others, else the option of
            their file.
        recipe: fields of the recipe that the method fixes.
    """

    says: str
    losses: tuple[str, ...] = ()
    grouping: str = "none"
    unassigned: bool = False
    views: int = 1
    trained: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def by_views(self) -> bool:
        """True if a batch holds two views of each image, and no more is asked of it."""
        return self.views == 2 or self.grouping == "none"


METHODS: dict[str, Method] = {
    # Without a network.
    "majority": Method("the most frequent class"),
    "oracle": Method("the true pose distance, the most that can be reached"),
    "mean-pose": Method("one pose for everybody"),
    "pixels": Method("images of 32 px, compared as they are"),
    "hog": Method("HOG, its mean subtracted"),
    "hog-lda": Method("HOG whitened, the paper's start"),
    "hog-views": Method("a linear embedding of HOG learned from augmented views"),
    "start": Method("the first similarities, where training starts from"),
    # Networks that are not trained here.
    "random": Method("the network untrained"),
    "init": Method("the network as it begins, of --init or of --trunk", trained="--init"),
    "alexnet-imagenet": Method("torchvision's AlexNet with ImageNet labels", trained="--imagenet-weights"),
    "checkpoint": Method("a network that another run has trained", trained="--checkpoint"),
    # The paper's, and what it compares with.
    "posets": Method("surrogate classes, posets and the feature loss", ("posets",), "surrogate", True),
    "cliques": Method("surrogate classification alone (lambda = 0)", ("classes",), "surrogate"),
    "triplet": Method("triplet loss on the surrogate classes", ("triplet",), "surrogate"),
    "ntxent": Method("NT-Xent on two views of each image", ("instance",)),
    "posets-fixed": Method(
        "posets whose first groups stay", ("posets",), "surrogate", True, recipe={"regroup": "fixed"}
    ),
    # Other systems.
    "kmeans": Method("multi-similarity loss on k-means clusters", ("multi-similarity",), "kmeans"),
    "udml-ss": Method("k-means and the rotation loss", ("multi-similarity", "rotation"), "kmeans"),
    "tac-ccl": Method(
        "contrastive clustering, attention consistency (reconstructed)", ("clustering", "attention"), "kmeans"
    ),
    "concurl": Method("consensus of random clusterings of two views", ("concurl",)),
    "stml": Method("a teacher's similarities of neighbors", ("stml",), "neighbors"),
    # Combinations.
    "posets+rotation": Method("posets and the rotation loss", ("posets", "rotation"), "surrogate", True),
    "kmeans+poset-loss": Method("the poset loss on k-means clusters", ("medoids",), "kmeans"),
    "surrogate+ms": Method(
        "multi-similarity loss on the surrogate classes", ("multi-similarity",), "surrogate"
    ),
    "surrogate+ms+feature": Method(
        "the same and the feature loss", ("multi-similarity", "feature"), "surrogate"
    ),
    "kmeans+ntxent": Method(
        "k-means clusters and two views at once", ("multi-similarity", "instance"), "kmeans", views=2
    ),
    "ntxent+feature": Method("two views and the feature loss", ("instance", "feature")),
    "supervised": Method("the ceiling: the true classes", ("multi-similarity",), "labels"),
}
"""Name to method, in the order of the tables."""

LEARNED = tuple(name for name, method in METHODS.items() if method.losses)
"""Methods that train."""
WITHOUT_LABELS = tuple(name for name in LEARNED if METHODS[name].grouping != "labels")
"""Those that look at no label."""
NETWORKS = ("random", "init", "alexnet-imagenet", "checkpoint")
"""Methods with a network that is not trained here."""
PLAIN = tuple(name for name in METHODS if name not in (*LEARNED, *NETWORKS))
"""Methods without a network, which leave nothing to chance."""
OBJECTIVES = ("rotation", "attention", "concurl", "stml")
"""Losses that run the networks themselves, which several processes cannot share."""
OF_ONE_PROCESS = tuple(name for name in LEARNED if {*METHODS[name].losses} & {*OBJECTIVES})


def recipe_of(method: str, recipe: Recipe) -> Recipe:
    """The recipe with what the method fixes."""
    return replace(recipe, **METHODS[method].recipe)


def check(name: str, recipe: Recipe, num_samples: int, num_clusters: int) -> None:
    """See that a method can draw its batches of so many samples, before any work is done.

    Mirror images count where they are samples; num_clusters is K where the recipe leaves it open.
    """
    method, size, nearest = METHODS[name], recipe.batch_size, recipe.samples_per_cluster
    clusters = recipe.num_clusters or num_clusters
    if method.grouping == "kmeans" and 2 * clusters > num_samples:
        raise ValueError(
            f"{flag('num_clusters')} must leave at least two of {num_samples} images to a cluster, or there "
            f"is no pair to learn from, got {clusters}: use {num_samples // 2} or less"
        )
    needed = {"neighbors": 4 * nearest, "kmeans": 2 * nearest, "labels": 2 * nearest}
    least = needed.get(method.grouping, 0) * method.views
    if size < least:
        several = method.grouping == "neighbors"
        what = "two queries, their nearest and two views of each" if several else "two clusters"
        raise ValueError(
            f"{flag('batch_size')} must be at least {least} for {name}, {what} with "
            f"{flag('samples_per_cluster')} {nearest}, got {size}"
        )
    zoom = recipe.scale[1] - recipe.scale[0]
    changes = (recipe.movement, zoom, recipe.brightness, recipe.color, recipe.gray)
    if (method.by_views or method.grouping == "neighbors") and not any(changes):
        raise ValueError(
            f"{name} learns from two views of each image, which would be equal: let augmentation change "
            "something, --set brightness=0.4, say"
        )
    if method.by_views and size % 2:
        raise ValueError(f"{flag('batch_size')} must be even for {name}, two views of each image, got {size}")
    if method.grouping == "neighbors" and nearest > num_samples:
        raise ValueError(
            f"{flag('samples_per_cluster')} must be at most the {num_samples} images, got {nearest}"
        )
