"""Rounds: grouping and network take turns, inside pytorch-metric-learning's trainers (section 3.4)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.parameter import is_lazy

from .._random import preserved_randomness
from .._validation import as_count
from ..data.datasets import IndexedDataset
from ..distributed.process_group import abort_on_error, is_main, world_size
from ..posets import Posets
from ..samplers.pseudo_label import PseudoLabelSampler
from ._checks import (
    Cast,
    check_datasets,
    check_extraction,
    check_functions,
    check_has_loss,
    check_mappings,
    check_names,
    check_options,
    check_sampler,
    check_schedules,
    check_trainer_class,
    check_training_batch,
    check_weights,
)
from ._components import Components
from ._ranks import check_splittable, trainer_over_ranks
from ._rounds import LossRecord
from ._saving import Saved
from .judging import LabelFreeJudge
from .objectives import PML_LOSSES, trainer_with_objectives

__all__ = ["JointTrainer"]

keep_groups: Any = "fixed"
"""The name that version 0.1.0 had for feature_fn="fixed"."""


class JointTrainer(Saved):
    """Trains a network and the surrogate classes it is trained on in turns, for a number of rounds.

    A round is a y-step (Eq. 5: features of the current network, new groups, medoids and posets) and a
    theta-step (Eq. 6): `iterations_per_round` steps of an ordinary PML trainer on L = L1 + lambda L2 (Eq. 2)
    by PML's loss_weights. The first round takes the groups the sampler has made of the features given to it.

    **Losses and miners.** PML's labels channel carries dataset indices. A loss or miner with a method
    `bind(posets)` gets these indices, and is bound to the posets of each round; `NearestMedoidMiner` is one
    (its representatives are then R^(m) of Eq. 6). Any other is wrapped in `PseudoLabelLoss` or
    `PseudoLabelMiner` and gets class ids: a `PosetLoss`, or a loss fed by a `NearestMedoidMiner`, with -1
    for unassigned samples; other losses, and the classification loss, only the assigned ones. Wrap a loss
    yourself for another choice.

    **Class heads** (a classifier, a loss with proxies) are given as functions num_classes -> module, their
    optimizers as functions too. After a y-step the classes are matched with those of the round before by the
    samples they share; a class that continues keeps its rows of the head and their optimizer state. Heads
    given as modules must have enough outputs; their rows move likewise.

    **Randomness** is derived from (seed, iteration) and, for augmentation, the position in the batch; the
    global generators are restored at the end. A run killed at any time and resumed ends, on a CPU, with the
    very weights of the uninterrupted one, with any number of workers. A Ctrl-C takes effect after the step
    under way; `train()` then goes on from there.

    **A run is resumed only by itself**: the checkpoint knows the settings of all parts, the first features,
    and of the data the number of samples, the names of files and some images; whatever differs is listed.
    Classes of your own count by their constructor's arguments, if these are kept as attributes of the same
    names, and by attributes that are floats or strings; name the rest in `settings`.

    **Several processes**, joined by `pml_posets.distributed.from_environment` before this object is made:
    every rank makes the same object and calls the same methods. `batch_size` is that of the joint batch.
    Dropout, augmentation inside the trunk and batch norm are of each rank's share; all else is that of one
    process. Hooks are called on every rank. A checkpoint is resumed by any number of ranks.

    Args:
        models: {"trunk": ..., "embedder": ..., "classifier": ...}, modules on their device, the classifier
            rather a function (see above); the last two may be left out.
        optimizers: by PML's names, "trunk_optimizer" etc.: optimizers, or functions parameters -> optimizer.
        sampler: a `PseudoLabelSampler`, or a batch sampler with the same attributes and methods.
        loss_funcs: {"metric_loss": ..., "classifier_loss": ...}, and objectives under names of your own, see
            `trainer_with_objectives`, such as `RotationObjective`.
        dataset: yields images or (image, ...), augmented; its order is that of the sampler's features.
        mining_funcs: {"tuple_miner": ...}. Default: none.
        loss_weights: for each loss, from 0, {"classifier_loss": 1.0, "metric_loss": lambda}. Default: 1 each.
        lr_schedulers: by PML's names: schedulers, or functions optimizer -> scheduler. An epoch is a round.
        num_rounds: m. Default 10 (the paper's).
        iterations_per_round: Default: one epoch of the sampler. The paper: 20,000.
        feature_fn: called as feature_fn(joint) at each y-step but the first: returns (N, D) features, or a
            pair with those of the mirrored images; None keeps the groups. Default: `extract`. "fixed": no
            y-step but the first. With np.hstack([a * joint.extract(), b * hog]) squared distances add up.
        feature_dataset: the same samples without augmentation, for `extract`. Default: `dataset`.
        feature_options: for `pml_posets.features.extract` (batch_size, normalize, ...).
        start_of_round_hook: called as hook(joint) after each y-step, before the first iteration.
        judge: a `LabelFreeJudge`: scores start and rounds, warns if no round was better. Default None.
        output_dir: folder for checkpoint.pt, written after each y-step, each round and every
            `checkpoint_every` iterations. Default None: none is written.
        checkpoint_every: iterations between checkpoints inside a round. Default 1000.
        settings: anything else that tells runs apart (your options), compared when a run is resumed.
        seed: from 0. Default 0.
        ema_decay: keep an exponential moving average of trunk and embedder for features and evaluation, with
            this decay (0.999, say). Default None: none.
        autocast: torch.bfloat16 computes losses and networks in mixed precision. Default None: none.
        record_every: iterations a row of `history` averages over. Default 50.
        progress: show a progress bar. Default True.
        trainer_class: a subclass of PML's BaseTrainer. Default: TrainWithClassifier if there is a classifier,
            else MetricLossOnly.
        **trainer_options: of PML's trainers: end_of_iteration_hook, end_of_epoch_hook (after each round;
            False ends the run), dataloader_num_workers (default 0 here), gradient_clippers, freeze_these,
            data_device (default: that of the trunk), dtype, collate_fn, ...

    Attributes:
        round: the current round, from 0 (PML's `trainer.epoch` is round + 1).
        iteration: iterations done in it.
        trainer: the PML trainer, which hooks get; from the first y-step on. `trainer.joint` is this object.
        models, loss_funcs, optimizers, lr_schedulers, mining_funcs: as PML's trainer has them.
        history: list of {"round", "iteration", "total_loss", ...}: means over iterations, `iteration` counted
            over the rounds.

    Raises:
        TypeError, ValueError: for invalid parts, parts that do not match, or weights that no optimizer holds.

    Source: section 3.4 of the paper.
    Differs from the paper: L1 and L2 are means over the samples they concern, not over the whole batch.

    Example:
        >>> import numpy as np
        >>> from pml_posets import PosetLoss, PseudoLabelSampler
        >>> from pml_posets.samplers import GivenLabels
        >>> images = [torch.full((1, 4, 4), float(i % 3)) + 0.1 * torch.randn(1, 4, 4) for i in range(30)]
        >>> features = np.stack([image.flatten().numpy() for image in images])
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
        feature_fn: Callable[[JointTrainer], Any] | Literal["fixed"] | None = None,
        feature_dataset: Any = None,
        feature_options: Mapping[str, Any] | None = None,
        start_of_round_hook: Callable[[JointTrainer], Any] | None = None,
        judge: LabelFreeJudge | None = None,
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
        super().__init__()
        check_sampler(sampler)
        needed = {"models": models, "optimizers": optimizers, "loss_funcs": loss_funcs}
        check_mappings(needed, mining_funcs=mining_funcs, lr_schedulers=lr_schedulers, settings=settings)
        self.sampler = sampler
        self.dataset = dataset if isinstance(dataset, IndexedDataset) else IndexedDataset(dataset)
        self.feature_dataset = self.dataset.dataset if feature_dataset is None else feature_dataset
        check_datasets(sampler.num_samples, dataset=self.dataset, feature_dataset=self.feature_dataset)
        self.num_rounds = as_count(num_rounds, "num_rounds")
        length = len(sampler) if iterations_per_round is None else iterations_per_round
        self.iterations_per_round = as_count(length, "iterations_per_round")
        self.checkpoint_every = as_count(checkpoint_every, "checkpoint_every")
        self.seed = as_count(seed, "seed", least=0)
        self._losses = LossRecord(as_count(record_every, "record_every"))
        if autocast not in (None, torch.bfloat16):
            raise ValueError(f"autocast must be torch.bfloat16 or None (PML scales no loss), got {autocast}")
        self.autocast = autocast
        if not (feature_fn is None or callable(feature_fn) or feature_fn == "fixed"):
            raise TypeError(f'feature_fn must be a function of the trainer, or "fixed", got {feature_fn!r}')
        self.feature_fn = None if feature_fn == "fixed" else feature_fn or JointTrainer.extract
        self.feature_options = dict(feature_options or {})
        check_functions(start_of_round_hook=start_of_round_hook, judge=judge)
        self.start_of_round_hook, self.judge = start_of_round_hook, judge
        self.checkpoint_path = None if output_dir is None else Path(output_dir) / "checkpoint.pt"
        self.settings, self.progress = dict(settings or {}), progress and is_main()
        self._choose_trainer(trainer_class, trainer_options, models, loss_funcs, mining_funcs or {})
        self.loss_weights = check_weights(loss_weights, loss_funcs)
        frozen = tuple(self.trainer_options.get("freeze_these", ()))
        parts = Components(models, loss_funcs, optimizers, lr_schedulers or {}, self._adapt_loss, frozen)
        self._adopt(parts, ema_decay)

    def _adopt(self, parts: Components, ema_decay: float | None) -> None:
        self._components, self.models, self.loss_funcs = parts, parts.models, parts.loss_funcs
        self.optimizers, self.lr_schedulers = parts.optimizers, parts.lr_schedulers
        self._ema_decay, self._averages = ema_decay, parts.averages(ema_decay)
        check_schedules(self.lr_schedulers, self.num_rounds, self.iterations_per_round)
        self.device = torch.device(self.trainer_options.setdefault("data_device", parts.device))

    def _choose_trainer(
        self,
        trainer_class: type[Any] | None,
        options: Mapping[str, Any],
        models: Mapping[str, Any],
        loss_funcs: Mapping[str, Any],
        mining_funcs: Mapping[str, Any],
    ) -> None:
        chosen = check_trainer_class(trainer_class, models)
        self.trainer_options = {"dataloader_num_workers": 0, **check_options(chosen, options)}
        check_names(chosen, models, loss_funcs, mining_funcs, self.trainer_options.get("freeze_these", ()))
        self.mining_funcs = {name: self._adapt_miner(miner) for name, miner in mining_funcs.items()}
        objectives = [name for name in loss_funcs if name not in PML_LOSSES]
        check_splittable(self.sampler, chosen, self.mining_funcs, objectives)
        check_has_loss(chosen)
        self.trainer_class = trainer_with_objectives(objectives, trainer_over_ranks(chosen))

    # --- What users call

    def train(self, resume: bool = False) -> None:
        """Run all rounds that are still to be run.

        Args:
            resume: True: go on from the checkpoint in `output_dir`; where there is none, warn and begin.
                Default False: begin, or go on with what this object has begun.

        Raises:
            FileExistsError: if there is a checkpoint of another run and resume is False.
            OSError: if the output folder cannot be written to or is too full.
            ValueError: for a damaged checkpoint or one of another run; if a grouping forms no class, or one.
            Exception: what networks, extraction, miner and losses raise of some images, put through them
                before the first grouping.
            FloatingPointError: if a loss becomes NaN or infinite.
            RankError, RuntimeError: if another rank fails; if the number of ranks has changed.
        """
        if world_size() != self._num_ranks:
            ranks = f"there were {self._num_ranks} ranks when this was made, now there are {world_size()}"
            raise RuntimeError(f"{ranks}: start the process group first")
        with abort_on_error():
            if any(is_lazy(w) for model in self.models.values() for w in model.parameters()):
                check_training_batch(self)  # makes them, as the checkpoint has them
            self._open(resume)
            if not (self.finished or self._tried):
                check_training_batch(self)
                check_extraction(self)
                self._tried = True
            self._train()

    def _train(self) -> None:
        from tqdm.auto import tqdm

        steps = self.num_rounds * self.iterations_per_round
        bar = tqdm(total=steps, initial=self.global_iteration, unit="step", disable=not self.progress)
        with preserved_randomness(), bar:
            while not self.finished:
                bar.set_description(f"round {self.round + 1} of {self.num_rounds}")
                if self.judge is not None and self.iteration == 0:
                    self.judge(self)
                if not self._grouped:
                    self._y_step()
                self._theta_step(bar)
            if self.judge is not None:
                self.judge.conclude(self)

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
        averages = {name: average.module for name, average in self._averages.items()}
        models = {**self.models, **averages}
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

        dtype = self.trainer_options.get("dtype")
        casts = [] if dtype is None else [Cast(dtype)]
        network = torch.nn.Sequential(*casts, *self.evaluation_models.values())
        defaults = {
            "num_workers": self.trainer_options["dataloader_num_workers"],
            "device": self.device,
            "mirror": getattr(self.sampler, "uses_mirrored", False),
            "progress": self.progress,
            "amp": True if self.autocast is None else self.autocast,
        }
        data = self.feature_dataset if dataset is None else dataset
        return extract(network, data, **{**defaults, **self.feature_options, **options})
