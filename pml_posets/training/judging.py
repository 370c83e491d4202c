"""A judge without labels beside the rounds: which round was best, and whether training helped at all."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .._io import atomic_write
from ..distributed.process_group import is_main
from ..evaluation.label_free import label_free_score

__all__ = ["LabelFreeJudge"]


class LabelFreeJudge:
    """Scores the network before training and after each round by `label_free_score`, and keeps the best one.

    Give it to `JointTrainer(judge=...)`. Training itself is not changed by it.

    Args:
        images: dataset of images to judge by, without augmentation; a few hundred to 2,000.
        changed: dataset of the same images, changed, the same way each time: `WithViews(images, transform,
            num_views=1)`.
        path: a .pt file for scores and the best weights, so that a resumed run knows the rounds before.
            Default None: `judge.pt` beside the trainer's checkpoint, or in memory where it writes none.
        keep_best: when all rounds are done, load the weights of the best one, which may be the start, into
            trunk and embedder. Default False: they stay as trained.
        **options: num_neighbors, num_samples, random_state of `label_free_score`.

    Attributes:
        scores: list of {"round", "score", "contrast", "stability"}; round 0 is the start, before training.

    Raises:
        ValueError: if the two datasets differ in length.
    """

    def __init__(
        self,
        images: Any,
        changed: Any,
        path: str | os.PathLike[str] | None = None,
        keep_best: bool = False,
        **options: Any,
    ) -> None:
        if len(images) != len(changed):
            raise ValueError(f"changed must hold the same images, got {len(images)} and {len(changed)}")
        self.images, self.changed, self.keep_best, self.options = images, changed, keep_best, options
        self.scores: list[dict[str, float]] = []
        self._best: dict[str, dict[str, torch.Tensor]] = {}
        self._read(None if path is None else Path(path))

    def _read(self, path: Path | None) -> None:
        self.path = path
        if path is not None and path.exists():
            kept = torch.load(path, map_location="cpu", weights_only=True)
            self.scores, self._best = kept["scores"], kept["best"]

    def __call__(self, source: Any) -> None:
        """Judge `source` now: the `JointTrainer`, at the start of a round, or its PML trainer, at the end."""
        joint = getattr(source, "joint", source)
        if self.path is None and joint.checkpoint_path is not None:
            self._read(joint.checkpoint_path.with_name("judge.pt"))
        number = joint.round + (source is not joint)  # rounds of training behind the network
        before = number + (source is joint and number > 0)  # a run that begins knows no older scores
        self.scores = [row for row in self.scores if row["round"] < before]
        if source is joint and any(row["round"] == number for row in self.scores):
            return
        rows = [joint.extract(data, mirror=False, progress=False) for data in (self.images, self.changed)]
        found = label_free_score(*rows, **self.options)
        self.scores.append({"round": number, "score": found.score, **asdict(found)})
        if found.score >= max(row["score"] for row in self.scores):
            self._best = {
                name: {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
                for name, model in joint.evaluation_models.items()
            }
        if self.path is not None and is_main():
            with atomic_write(self.path) as file:
                torch.save({"scores": self.scores, "best": self._best}, file)

    def conclude(self, joint: Any) -> None:
        """Judge the end of a run, load the best round if wanted, and warn where the start was better."""
        self(joint)
        if self.keep_best:
            self.restore_best(joint)
        if self.best_round == self.scores[0]["round"]:
            kept = "its weights are loaded" if self.keep_best else "keep_best=True gives it back"
            warnings.warn(f"{self.verdict()} ({kept})", stacklevel=4)

    @property
    def best_round(self) -> int:
        """The round with the highest score; 0 is the start. A ValueError before anything was judged."""
        if not self.scores:
            raise ValueError("nothing was judged yet: give the judge to JointTrainer as its hooks")
        return int(max(self.scores, key=lambda row: row["score"])["round"])

    def restore_best(self, joint: Any) -> int:
        """Load the weights of the best round into the trunk and embedder in use; return that round."""
        best = self.best_round
        for name, model in joint.evaluation_models.items():
            model.load_state_dict(self._best[name])
        return best

    def verdict(self) -> str:
        """One sentence: was training worth it?"""
        best, start, last = self.best_round, self.scores[0], self.scores[-1]
        told = f"score {start['score']:.3f} in round {start['round']:.0f}, {last['score']:.3f} at the end"
        if best == start["round"]:
            return f"Judged without labels, the start was better than every round of training ({told})."
        return f"Judged without labels, round {best} was the best ({told})."
