"""Rounds: grouping and network take turns, inside pytorch-metric-learning's trainers (section 3.4)."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning.trainers import MetricLossOnly, TrainWithClassifier
from pytorch_metric_learning.trainers.base_trainer import BaseTrainer
from torch.utils.data import BatchSampler

from .._io import check_folder
from .._random import derive_seeds, preserved_randomness, seed_everything
from .._validation import as_count
from ..data.datasets import IndexedDataset
from ..distributed.process_group import all_gather_objects, guarded, is_main, world_size
from ..distributed.sharing import from_main, shared_work
from ..losses.poset import PosetLoss
from ..losses.pseudo_label import PseudoLabelLoss, PseudoLabelMiner, WeightedLosses
from ..miners import NearestMedoidMiner
from ..posets import Posets
from ..samplers._batches import SeededBatches
from ..samplers.pseudo_label import PseudoLabelSampler
from ._parallel import (
    check_parts,
    own_positions,
    same_groups,
    same_weights,
    shared_groups,
    trainer_over_ranks,
)
from ._parts import TrainingParts
from ._records import LossRecord
from .averaging import MovingAverage
from .checkpoints import check_settings, load_checkpoint, save_checkpoint
from .objectives import PML_LOSSES, check_objective, trainer_with_objectives

__all__ = ["JointTrainer", "PseudoLabelLoss", "PseudoLabelMiner", "keep_groups"]

_STEP, _SAMPLES, _HEADS, _GROUPS = range(4)  # what a derived seed is for
_SAMPLER_SETTINGS = (
    "batch_size",
    "num_batches",
    "num_nearest",
    "samples_per_class",
    "unassigned_fraction",
    "random_fraction",
    "views",
    "seed",
)


def keep_groups(joint: JointTrainer) -> None:
    """A `feature_fn` that leaves the groups of the first round as they are: fixed groups, no y-step."""


class JointTrainer:
    """Trains a network and the surrogate classes it is trained on in turns, for a number of rounds.

    A round is a y-step (Eq. 5: features of the current network, new groups, medoids and posets) and a
    theta-step (Eq. 6): `iterations_per_round` steps of an ordinary PML trainer, `MetricLossOnly`, or
    `TrainWithClassifier` if there is a classifier, on L = L1 + lambda L2 (Eq. 2) by PML's loss_weights. The
    first round takes the groups the sampler has made of the features given to it (HOG-LDA in the paper).

    **Losses and miners.** PML's labels channel carries dataset indices. Whatever has a method `bind(posets)`
    gets these indices as they are and is told the posets of each round: `NearestMedoidMiner` (its
    representatives are then R^(m) of Eq. 6, fixed for the round), or losses of your own that need more than
    class ids. Anything else is put behind `PseudoLabelLoss` or `PseudoLabelMiner` and sees class ids: a
    `PosetLoss`, or a loss fed by a `NearestMedoidMiner`, with -1 for unassigned samples; other losses, and
    the classification loss, only the assigned ones. Without any of them L1 is 0. Wrap a loss yourself for
    another choice.

    **Parts that hang on the number of classes** (a classifier, a loss with proxies) are given as functions
    num_classes -> module. They are made anew when the number of classes changes, or when most samples change
    their class; their optimizers must be functions too.

    **Randomness** is derived from (seed, iteration) and, for augmentation, the position in the batch; the
    global generators are given back as they were. With an `output_dir` everything is written to
    `checkpoint.pt` there after each y-step, each round and every `checkpoint_every` iterations, whole or not
    at all. A run killed at any time and resumed ends, on a CPU, with the very weights of the uninterrupted
    one, with any number of workers.

    **Several processes**, started by torchrun and joined by `pml_posets.distributed.from_environment` before
    this object is made: every rank makes the same object and calls `train`, and `load` if it is called.
    `batch_size` is that of the joint batch; `pml_posets.parallel` says what is equal to one process. Rank 0
    alone writes and shows progress; hooks are called on every rank, and False from any ends the run. A
    checkpoint is resumed by any number of ranks. An error on one rank ends all.

    Args:
        models: {"trunk": ..., "embedder": ..., "classifier": ...}, modules, the classifier rather a function
            (see above); the last two may be left out. Modules must be on their device already.
        optimizers: by PML's names, "trunk_optimizer" etc.: optimizers, or functions parameters -> optimizer.
        sampler: a `PseudoLabelSampler`, or a batch sampler with the same attributes and methods.
        loss_funcs: {"metric_loss": ..., "classifier_loss": ...}, and objectives under names of your own:
            modules called as objective(images, indices, models), see `trainer_with_objectives`, such as
            `RotationObjective`. One with a method `bind(posets)` is told the posets of each round.
        dataset: yields images or (image, ...), augmented; its order is that of the sampler's features.
        mining_funcs: {"tuple_miner": ...}. Default: none.
        loss_weights: for each loss, {"classifier_loss": 1.0, "metric_loss": lambda}. Default: 1 each.
        lr_schedulers: by PML's names: schedulers, or functions optimizer -> scheduler. An epoch is a round.
        num_rounds: m. Default 10 (the paper's).
        iterations_per_round: Default: one epoch of the sampler. The paper: 20,000.
        feature_fn: called as feature_fn(joint) at each y-step but the first: returns (N, D) features, or a
            pair with those of the mirrored images; None keeps the groups (`keep_groups`). Default: `extract`.
            To mix similarities, stack unit features: with np.hstack([a * joint.extract(), b * hog]) squared
            distances add up with weights a^2 and b^2.
        feature_dataset: the same samples without augmentation, for `extract`. Default: `dataset`.
        feature_options: for `pml_posets.features.extract` (batch_size, normalize, ...).
        start_of_round_hook: called as hook(joint) after each y-step, before the first iteration.
        output_dir: folder for the checkpoint. Default None: none is written.
        checkpoint_every: iterations between checkpoints inside a round. Default 1000.
        settings: anything else that tells runs apart (your options), compared when a run is resumed.
        seed: from 0. Default 0.
        ema_decay: keep an exponential moving average of trunk and embedder for features and evaluation, with
            this decay (0.999, say). Default None: none.
        autocast: torch.bfloat16 computes losses and networks in mixed precision. Default None: none.
        record_every: iterations a row of `history` averages over. Default 50.
        progress: show a progress bar. Default True.
        trainer_class: any PML trainer class. Default: as said above.
        **trainer_options: of PML's trainers: end_of_iteration_hook, end_of_epoch_hook (after each round;
            False ends the run), dataloader_num_workers (default 0 here), gradient_clippers, freeze_these,
            data_device (default: that of the trunk), collate_fn, ...

    Attributes:
        round: the current round, from 0 (PML's `trainer.epoch` is round + 1).
        iteration: iterations done in it.
        trainer: the PML trainer, which hooks get; from the first y-step on. `trainer.joint` is this object.
        models, loss_funcs, optimizers, lr_schedulers, mining_funcs: as PML's trainer has them.
        history: list of {"round", "iteration", "total_loss", ...}: means over iterations, `iteration` counted
            over the rounds.

    Raises:
        TypeError, ValueError: for arguments that are wrong or do not match each other.

    Source: "Deep Unsupervised Similarity Learning using Partially Ordered Sets" (CVPR 2017), section 3.4.
    Differs from the paper: L1 and L2 are means over the samples they concern, not over the whole batch.

    Example:
        >>> images = [torch.full((1, 4, 4), float(i % 3)) + 0.1 * torch.randn(1, 4, 4) for i in range(30)]
        >>> features = np.stack([image.flatten().numpy() for image in images])
        >>> from pml_posets.samplers.pseudo_label import GivenLabels
        >>> groups = GivenLabels([0, 1, 2] * 8 + [-1] * 6)
        >>> joint = JointTrainer(
        ...     models={"trunk": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8))},
        ...     optimizers={"trunk_optimizer": lambda p: torch.optim.SGD(p, lr=0.1)},
        ...     sampler=PseudoLabelSampler(features, batch_size=12, grouping=groups),
        ...     loss_funcs={"metric_loss": PosetLoss(sigma=0.5)},
        ...     dataset=images,
        ...     num_rounds=2,
        ...     progress=False,
        ... )
        >>> joint.train()
        >>> [row["round"] for row in joint.history], joint.extract().shape
        ([0, 1], (30, 8))
    """

    def __init__(
        self,
        models: Mapping[str, Any],
        optimizers: Mapping[str, Any],
        sampler: PseudoLabelSampler,
        loss_funcs: Mapping[str, Any],
        dataset: Any,
        *,
        mining_funcs: Mapping[str, Any] | None = None,
        loss_weights: Mapping[str, float] | None = None,
        lr_schedulers: Mapping[str, Any] | None = None,
        num_rounds: int = 10,
        iterations_per_round: int | None = None,
        feature_fn: Callable[[JointTrainer], Any] | None = None,
        feature_dataset: Any = None,
        feature_options: Mapping[str, Any] | None = None,
        start_of_round_hook: Callable[[JointTrainer], Any] | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 1000,
        settings: Mapping[str, Any] | None = None,
        seed: int = 0,
        ema_decay: float | None = None,
        autocast: torch.dtype | None = None,
        record_every: int = 50,
        progress: bool = True,
        trainer_class: type[Any] | None = None,
        **trainer_options: Any,
    ) -> None:
        needed = ("posets", "regroup", "set_epoch", "state_dict", "load_state_dict")
        if not isinstance(sampler, BatchSampler) or not all(hasattr(type(sampler), name) for name in needed):
            raise TypeError(
                f"sampler must be a PseudoLabelSampler, or a BatchSampler with {', '.join(needed)}, "
                f"got {type(sampler).__name__}"
            )
        self.sampler = sampler
        self.dataset = dataset if isinstance(dataset, IndexedDataset) else IndexedDataset(dataset)
        self.feature_dataset = self.dataset.dataset if feature_dataset is None else feature_dataset
        for name, data in (("dataset", self.dataset), ("feature_dataset", self.feature_dataset)):
            if len(data) != sampler.num_samples:
                raise ValueError(
                    f"{name} must have {sampler.num_samples} samples like the sampler's features, got "
                    f"{len(data)}: was it filtered after the features were extracted?"
                )
        self.num_rounds = as_count(num_rounds, "num_rounds")
        self.iterations_per_round = (
            len(sampler)
            if iterations_per_round is None
            else as_count(iterations_per_round, "iterations_per_round")
        )
        self.checkpoint_every = as_count(checkpoint_every, "checkpoint_every")
        self.seed = as_count(seed, "seed", least=0)
        if autocast not in (None, torch.bfloat16):
            raise ValueError(
                f"autocast must be torch.bfloat16 or None (PML scales no losses), got {autocast}"
            )
        self.autocast = autocast
        self.feature_fn = JointTrainer.extract if feature_fn is None else feature_fn
        self.feature_options = dict(feature_options or {})
        self.start_of_round_hook = start_of_round_hook
        self.checkpoint_path = None if output_dir is None else Path(output_dir) / "checkpoint.pt"
        self.settings = dict(settings or {})
        self.progress = progress and is_main()

        if not isinstance(models.get("trunk"), torch.nn.Module):
            raise TypeError('models must have a module "trunk"')
        self.mining_funcs = {name: self._adapt_miner(miner) for name, miner in (mining_funcs or {}).items()}
        self._parts = TrainingParts(models, loss_funcs, optimizers, lr_schedulers or {}, self._adapt_loss)
        self.models, self.loss_funcs = self._parts.models, self._parts.loss_funcs
        self.optimizers, self.lr_schedulers = self._parts.optimizers, self._parts.lr_schedulers
        self.loss_weights = {name: 1.0 for name in loss_funcs} if loss_weights is None else dict(loss_weights)
        if sorted(self.loss_weights) != sorted(loss_funcs):
            raise ValueError(
                f"loss_weights must have the keys of loss_funcs, {sorted(loss_funcs)}, "
                f"got {sorted(self.loss_weights)}"
            )
        self._average: MovingAverage | None = None
        objectives = [name for name in loss_funcs if name not in PML_LOSSES]
        for name in objectives:
            if name in self.loss_funcs:
                check_objective(name, self.loss_funcs[name], optimizers)
        if ema_decay is not None:
            used = {name: model for name, model in self.models.items() if name in ("trunk", "embedder")}
            self._average = MovingAverage(used, ema_decay)
        default_class = TrainWithClassifier if "classifier" in models else MetricLossOnly
        chosen = default_class if trainer_class is None else trainer_class
        self.trainer_options = _checked_options(chosen, trainer_options)
        check_parts(sampler, chosen, self.mining_funcs, objectives)
        self.trainer_class = trainer_with_objectives(objectives, trainer_over_ranks(chosen))
        self._num_ranks = world_size()
        first = next((p.device for p in self.models["trunk"].parameters()), torch.device("cpu"))
        self.device = torch.device(self.trainer_options.setdefault("data_device", first))
        self.trainer_options.setdefault("dataloader_num_workers", 0)

        self.trainer: Any = None
        self.round = 0
        self.iteration = 0
        self._losses = LossRecord(as_count(record_every, "record_every"))
        self._grouped = False
        self._stopped = False
        self._owns_checkpoint = False

    # --- What users call

    def train(self, resume: bool = False) -> None:
        """Run all rounds that are still to be run.

        Args:
            resume: True: go on from the checkpoint in `output_dir`, if there is one. Default False: begin, or
                go on with what this object has begun.

        Raises:
            FileExistsError: if there is a checkpoint of another run and resume is False.
            OSError: if the output folder cannot be written to or is too full.
            ValueError: for a damaged checkpoint or one of another run; if a grouping forms no class.
            FloatingPointError: if a loss becomes NaN or infinite.
            RankError: if another of several ranks fails.
            RuntimeError: if the number of ranks is another than when this object was made.
        """
        if world_size() != self._num_ranks:
            raise RuntimeError(
                f"there were {self._num_ranks} ranks when this was made, now there are {world_size()}: "
                "start the process group first"
            )
        with guarded():
            self._open(resume)
            self._train()

    def _train(self) -> None:
        from tqdm.auto import tqdm

        total = self.num_rounds * self.iterations_per_round
        bar = tqdm(total=total, initial=self.global_iteration, unit="step", disable=not self.progress)
        with preserved_randomness(), bar:
            while not self.finished:
                bar.set_description(f"round {self.round + 1} of {self.num_rounds}")
                if not self._grouped:
                    self._y_step()
                self._theta_step(bar)

    @property
    def finished(self) -> bool:
        """True when all rounds are done or the end_of_epoch_hook has ended the run."""
        return self._stopped or self.round >= self.num_rounds

    @property
    def global_iteration(self) -> int:
        """Iterations done, over all rounds."""
        return self.round * self.iterations_per_round + self.iteration

    @property
    def posets(self) -> Posets:
        """Those of the current round."""
        return self.sampler.posets

    @property
    def history(self) -> list[dict[str, float]]:
        """Means of the losses, a row for some iterations."""
        return self._losses.rows

    @property
    def evaluation_models(self) -> dict[str, torch.nn.Module]:
        """Trunk and embedder to be used: their moving averages with `ema_decay`, else themselves."""
        models = self.models if self._average is None else self._average.models
        return {"trunk": models["trunk"], "embedder": models.get("embedder", torch.nn.Identity())}

    def extract(self, dataset: Any = None, **options: Any) -> Any:
        """Features of the current network (`evaluation_models`), for the y-step or for yourself.

        Args:
            dataset: yields images or (image, ...). Default: `feature_dataset`.
            **options: of `pml_posets.features.extract`, over `feature_options`. mirror is by default whether
                the sampler was given mirrored features.

        Returns:
            (N, D) float32, unit rows by default; with mirror=True a pair, the second of the mirrored images.
        """
        from ..features.network import extract

        network = torch.nn.Sequential(*self.evaluation_models.values())
        defaults = {
            "num_workers": self.trainer_options["dataloader_num_workers"],
            "device": self.device,
            "mirror": getattr(self.sampler, "uses_mirrored", False),
            "progress": self.progress,
            "amp": True if self.autocast is None else self.autocast,
        }
        data = self.feature_dataset if dataset is None else dataset
        return extract(network, data, **{**defaults, **self.feature_options, **options})

    def save(self, path: str | os.PathLike[str] | None = None) -> None:
        """Write the state of the whole run; `train` does so by itself if there is an `output_dir`.

        Args:
            path: the file. Default: checkpoint.pt in `output_dir`.

        Raises:
            OSError: if it cannot be written; an older file is then as it was.
            ValueError: if there is neither path nor output_dir.
        """
        path = self.checkpoint_path if path is None else path
        if path is None:
            raise ValueError("save needs a path, as there is no output_dir")
        save_checkpoint(
            path,
            {
                "settings": self._all_settings(),
                "position": [self.round, self.iteration, self._grouped, self._stopped],
                "sampler": self.sampler.state_dict(),
                "parts": self._parts.state_dict(),
                "miners": {
                    k: m.state_dict() for k, m in self.mining_funcs.items() if hasattr(m, "state_dict")
                },
                "average": None if self._average is None else self._average.state_dict(),
                "losses": self._losses.state_dict({"round": self.round, "iteration": self.global_iteration}),
            },
        )

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take the state of a run back; `train` then goes on from there.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged or belongs to another run.
        """
        content = from_main(lambda: load_checkpoint(path))
        try:
            check_settings(content["settings"], self._all_settings(), path)
            self.sampler.load_state_dict(content["sampler"])
            self._install(self.sampler.posets, new_classes=True)
            self._parts.load_state_dict(content["parts"])
            for name, state in content["miners"].items():
                self.mining_funcs[name].load_state_dict(state)
            if self._average is not None:
                self._average.load_state_dict(content["average"])
            self.round, self.iteration, self._grouped, self._stopped = content["position"]
            self._losses.load_state_dict(content["losses"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"the checkpoint {path} does not fit the parts of this run ({error}): "
                "use the same models, losses and optimizers, or another folder"
            ) from error

    # --- The two steps

    def _y_step(self) -> None:
        """New groups from the features of the current network, and all that hangs on them."""
        seed_everything(derive_seeds(self.seed, _GROUPS, self.round)[0])
        previous = shared_groups(self.sampler)
        if self.round > 0:
            with shared_work():
                found = self.feature_fn(self)
                if found is not None:
                    self.sampler.regroup(*(found if isinstance(found, tuple) else (found,)))
                    same_groups(self.sampler)
                    self._parts.forget_memories()
        posets = self.sampler.posets
        if posets.num_classes == 0 and not any(map(_learns_without_classes, self.loss_funcs.values())):
            raise ValueError(
                f"the grouping formed no class of {posets.num_samples} samples in round {self.round}, so "
                "there is nothing to learn: loosen it (smaller min_size, larger top_fraction)"
            )
        self._install(posets, new_classes=self.trainer is None or not _same_classes(previous, posets))
        self._grouped = True
        if self.start_of_round_hook is not None:
            self.start_of_round_hook(self)
        self._save_if_wanted()

    def _theta_step(self, bar: Any) -> None:
        """The rest of a round's iterations: what PML's `train` does in an epoch, begun at any iteration."""
        trainer, length = self.trainer, self.iterations_per_round
        trainer.epoch = self.round + 1
        trainer.set_to_train()
        last = (self.round + 1) * length
        trainer.sampler = SeededBatches(
            self.sampler, (self.seed, _SAMPLES), self.global_iteration, last, self._positions
        )
        trainer.initialize_dataloader()
        for trainer.iteration in range(self.iteration, length):
            seed_everything(derive_seeds(self.seed, _STEP, self.global_iteration)[0])
            trainer.forward_and_backward()
            if self._average is not None:
                self._average.update(self.models)
            self._record(bar)
            trainer.end_of_iteration_hook(trainer)
            trainer.step_lr_schedulers(end_of_epoch=False)
            self.iteration += 1
            if self.iteration % self.checkpoint_every == 0 and self.iteration < length:
                self._save_if_wanted()
        trainer.dataloader_iter = trainer.dataloader = None  # ends the workers
        trainer.step_lr_schedulers(end_of_epoch=True)
        trainer.zero_losses()
        self._same_weights()
        if any(all_gather_objects(trainer.end_of_epoch_hook(trainer) is False)):
            self._stopped = True
        self.round, self.iteration, self._grouped = self.round + 1, 0, False
        self._save_if_wanted()

    def _install(self, posets: Posets, new_classes: bool) -> None:
        """Fit the parts, the dataset and the adapters to these posets."""
        if new_classes:
            seed = derive_seeds(self.seed, _HEADS, self.round)[0]
            self._parts.fit(posets.num_classes, seed, self.device)
        outputs = getattr(self.models.get("classifier"), "out_features", None)
        if outputs is not None and outputs < posets.num_classes:
            raise ValueError(
                f"the classifier has {outputs} outputs for {posets.num_classes} classes: give it as a "
                "function num_classes -> module, and its optimizer as a function parameters -> optimizer"
            )
        self.dataset.flips = posets.flips if posets.flips.any() else None
        for part in (*self.loss_funcs.values(), *self.mining_funcs.values()):
            if hasattr(part, "bind"):  # an objective need not have it
                part.bind(posets)
        if self.trainer is None:
            self.trainer = self._make_trainer()
        self._same_weights()

    @property
    def _positions(self) -> Any:
        """Where this rank's samples stand in the batches; None for one process."""
        if self._num_ranks == 1:
            return None
        return own_positions(self.sampler.batch_size, getattr(self.sampler, "views", 1))

    def _same_weights(self) -> None:
        means = {} if self._average is None else self._average.models
        same_weights([*self.models.values(), *self.loss_funcs.values(), *means.values()])

    def _make_trainer(self) -> Any:
        trainer = self.trainer_class(
            models=self.models,
            optimizers=self.optimizers,
            batch_size=self.sampler.batch_size,
            loss_funcs=self.loss_funcs,
            dataset=self.dataset,
            mining_funcs=self.mining_funcs,
            iterations_per_epoch=self.iterations_per_round,
            loss_weights=self.loss_weights,
            lr_schedulers=self.lr_schedulers,
            **self.trainer_options,
        )
        if self.autocast is not None:
            under = torch.autocast(self.device.type, dtype=self.autocast)
            trainer.calculate_loss = under(trainer.calculate_loss)
        trainer.joint = self
        return trainer

    def _adapt_loss(self, name: str, loss: torch.nn.Module) -> torch.nn.Module:
        if hasattr(loss, "bind") or name not in PML_LOSSES:
            return loss
        mined = isinstance(self.mining_funcs.get("tuple_miner"), NearestMedoidMiner)
        knows = name == "metric_loss" and (mined or any(isinstance(m, PosetLoss) for m in loss.modules()))
        return PseudoLabelLoss(loss, unassigned="keep" if knows else "drop")

    def _adapt_miner(self, miner: Any) -> Any:
        return miner if hasattr(miner, "bind") else PseudoLabelMiner(miner)

    # --- Records and files

    def _record(self, bar: Any) -> None:
        last = self.iteration + 1 == self.iterations_per_round
        where = {"round": self.round, "iteration": self.global_iteration + 1}
        self._losses.add(self.trainer.losses, where, last)
        bar.update(1)
        if self.history and self.history[-1]["iteration"] == where["iteration"]:
            loss, classes = self.history[-1]["total_loss"], self.posets.num_classes
            bar.set_postfix(loss=f"{loss:.4f}", classes=classes, refresh=False)

    def _open(self, resume: bool) -> None:
        path = self.checkpoint_path
        if path is None:
            if resume:
                raise ValueError("resume=True needs an output_dir, where the checkpoint is")
            return
        weights = [w for model in self.models.values() for w in model.state_dict().values()]
        size = 6 * sum(w.numel() * w.element_size() for w in weights)
        from_main(lambda: check_folder(path.parent, num_bytes=size))
        if not self._owns_checkpoint and from_main(path.exists):
            if not resume:
                raise FileExistsError(
                    f"{path} holds a run already: call train(resume=True) to go on with it, remove it, or "
                    "choose another output_dir"
                )
            self.load(path)
        self._owns_checkpoint = True

    def _save_if_wanted(self) -> None:
        self._same_weights()
        if self.checkpoint_path is not None:
            from_main(self.save)

    def _all_settings(self) -> dict[str, Any]:
        """What tells this run from others, flat; num_rounds is not in it: a run may be prolonged."""
        ours = {
            "num_samples": self.sampler.num_samples,
            "iterations_per_round": self.iterations_per_round,
            "seed": self.seed,
            "trainer": self.trainer_class.__name__,
            "ema_decay": None if self._average is None else self._average.decay,
            "autocast": self.autocast and str(self.autocast),
            "loss_weights": self.loss_weights,
        }
        sampler = {f"sampler {name}": getattr(self.sampler, name, None) for name in _SAMPLER_SETTINGS}
        losses = {name: type(getattr(loss, "inner", loss)).__name__ for name, loss in self.loss_funcs.items()}
        given = {name: value for name, value in losses.items() if name not in self._parts.made_anew}
        trunk = self.models["trunk"]
        sizes = {"trunk": f"{type(trunk).__name__}, {sum(p.numel() for p in trunk.parameters())} weights"}
        user = {f"your {name}": _plain(value) for name, value in self.settings.items()}
        return {**ours, **sampler, **given, **sizes, **user}


def _same_classes(before: Posets, after: Posets) -> bool:
    """True if class ids still mean the same: as many, and at least half of the samples keep theirs."""
    if before is after or before.num_classes != after.num_classes:
        return before is after
    both = (before.labels >= 0) & (after.labels >= 0)
    return bool(both.any() and np.mean(before.labels[both] == after.labels[both]) >= 0.5)


def _learns_without_classes(loss: torch.nn.Module) -> bool:
    if isinstance(loss, WeightedLosses):
        return any(map(_learns_without_classes, loss.losses.values()))
    return not isinstance(loss, PseudoLabelLoss) or loss.unassigned == "own"


def _checked_options(trainer_class: type[Any], options: dict[str, Any]) -> dict[str, Any]:
    known = {*inspect.signature(trainer_class).parameters, *inspect.signature(BaseTrainer).parameters}
    ours = {"sampler", "batch_size", "iterations_per_epoch", "data_and_label_getter"}
    for name in options:
        if name in ours or name not in known:
            near = ", ".join(sorted(known - ours - {"self", "args", "kwargs"}))
            raise TypeError(
                f"{name!r} is no option of JointTrainer or {trainer_class.__name__}: these are {near}"
            )
    return dict(options)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)
