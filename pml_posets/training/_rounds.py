"""The two steps of a round: new groups, then training on them, which a Ctrl-C does not interrupt."""

from __future__ import annotations

import math
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel

from .._random import derive_seeds, seed_everything
from ..data.datasets import IndexedDataset
from ..distributed.process_group import all_gather_objects, is_main, world_size
from ..distributed.sharing import from_main, shared_work
from ..losses.poset import PosetLoss
from ..losses.pseudo_label import PseudoLabelLoss, PseudoLabelMiner, WeightedLosses, kind_with_classes
from ..miners import NearestMedoidMiner
from ..posets import Posets
from ..samplers._batches import SeededBatches, seeded_collate
from ._components import Components
from ._heads import match_classes
from ._ranks import broadcast_groups, broadcast_weights, rank_positions, shared_groups
from .objectives import PML_LOSSES

_STEP, _SAMPLES, _HEADS, _GROUPS = range(4)  # what a derived seed is for


@contextmanager
def finish_first() -> Iterator[None]:
    """Hold a Ctrl-C back until the block has ended, and raise the KeyboardInterrupt then.

    A second Ctrl-C comes through at once; so does each outside of the main thread, or where the program has
    a handler of its own.
    """
    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception as error:
        if asked:  # workers of a data loader end by the same Ctrl-C
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked:
        raise KeyboardInterrupt


class LossRecord:
    """Sums losses where they are, and makes a row of their means in `rows` `every` few iterations."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.rows: list[dict[str, float]] = []
        self._sums: dict[str, Any] = {}
        self._count = 0

    def add(self, losses: Mapping[str, Any], where: Mapping[str, int], last: bool = False) -> None:
        """Take the losses of an iteration; `where` stands in a row beside the means, `last` makes one now."""
        for name, value in losses.items():
            value = value.detach() if isinstance(value, torch.Tensor) else value
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if last or self._count == self.every:
            count, sums = self._count, self.finite_sums(where)
            self.rows.append({**where, **{name: value / count for name, value in sums.items()}})
            self._sums, self._count = {}, 0

    def finite_sums(self, where: Mapping[str, int]) -> dict[str, float]:
        """The sums since the last row; a FloatingPointError if one is NaN or infinite."""
        sums = {name: float(value) for name, value in self._sums.items()}
        for name, value in sums.items():
            if not math.isfinite(value):
                position = ", ".join(f"{key} {number}" for key, number in where.items())
                since = f"in the {self._count} iterations before {position}"
                advice = "lower the learning rate (the last checkpoint is from before)"
                raise FloatingPointError(f"{name} became {value} {since}: {advice}")
        return sums

    def state_dict(self, where: Mapping[str, int]) -> dict[str, Any]:
        """For a checkpoint, which is never made of a run that has become NaN."""
        return {"rows": self.rows, "sums": self.finite_sums(where), "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows, self._sums, self._count = list(state["rows"]), dict(state["sums"]), state["count"]


class Rounds:
    """What `JointTrainer` does, on what it was given."""

    sampler: Any
    dataset: IndexedDataset
    seed: int
    iterations_per_round: int
    checkpoint_every: int
    checkpoint_path: Any
    device: torch.device
    autocast: torch.dtype | None
    models: dict[str, torch.nn.Module]
    loss_funcs: dict[str, torch.nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    lr_schedulers: dict[str, Any]
    mining_funcs: dict[str, Any]
    loss_weights: dict[str, float]
    trainer_class: type[Any]
    trainer_options: dict[str, Any]
    feature_fn: Callable[[Any], Any] | None
    start_of_round_hook: Callable[[Any], Any] | None
    global_iteration: Any
    save: Callable[[], None]
    _described: Callable[[], dict[str, Any]]
    _components: Components
    _losses: LossRecord
    _averages: dict[str, AveragedModel]

    def __init__(self) -> None:
        self.trainer: Any = None
        self.round = 0
        self.iteration = 0
        self._num_classes = 0
        self._num_ranks = world_size()
        self._settings: dict[str, Any] | None = None
        self._grouped = self._stopped = self._owns_checkpoint = self._tried = False
        self._has_moved = self._has_learned = False

    # --- The y-step

    def _y_step(self) -> None:
        """New groups from the features of the current network; if anything fails, the old ones stay."""
        seed_everything(derive_seeds(self.seed, _GROUPS, self.round)[0])
        before = shared_groups(self.sampler)
        state = self.sampler.state_dict()
        try:
            regrouped = self.round > 0 and self._regroup()
            posets = self.sampler.posets
            self._check_classes(posets)
            with finish_first():
                if regrouped:
                    self._components.forget_memories()
                self._install(posets, match_classes(before.labels, posets.labels) if regrouped else None)
                self._grouped = True
        except BaseException:
            if not self._grouped:
                self.sampler.load_state_dict(state)
            raise
        if self.start_of_round_hook is not None:
            self.start_of_round_hook(self)
        self._save_if_wanted()

    def _regroup(self) -> bool:
        if self.feature_fn is None:
            return False
        with shared_work():
            features = self.feature_fn(self)
            if features is None:
                return False
            self.sampler.regroup(*(features if isinstance(features, tuple) else (features,)))
            broadcast_groups(self.sampler)
        return True

    def _check_classes(self, posets: Posets) -> None:
        if posets.num_classes > 1 or any(map(_learns_without_classes, self.loss_funcs.values())):
            return
        formed, advice = "no class", "loosen it (smaller min_size, larger min_neighbors)"
        if posets.num_classes == 1:
            formed, advice = "a single class", "tighten it (more clusters, smaller max_size)"
        raise ValueError(
            f"the grouping formed {formed} of {posets.num_samples} samples in round {self.round}, so "
            f"there is nothing to learn: {advice}"
        )

    def _install(self, posets: Posets, matches: np.ndarray | None = None) -> None:
        """Fit the components, the dataset and the adapters to these posets."""
        same = matches is not None and np.array_equal(matches, np.arange(posets.num_classes))
        if self.trainer is None or (matches is not None and not (same and self._num_classes == len(matches))):
            seed = derive_seeds(self.seed, _HEADS, self.round)[0]
            self._components.fit(posets.num_classes, seed, self.device, matches)
        self._num_classes = posets.num_classes
        self._components.check_outputs(posets.num_classes)
        self.dataset.flips = posets.flips if posets.flips.any() else None
        for part in (*self.loss_funcs.values(), *self.mining_funcs.values()):
            if hasattr(part, "bind"):  # an objective need not have it
                part.bind(posets)
        if self.trainer is None:
            self._described()
            self.trainer = self._make_trainer()
        self._broadcast_weights()

    # --- The theta-step

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
        before = None if self._has_learned or not is_main() else self._components.totals()
        try:
            for trainer.iteration in range(self.iteration, length):
                with finish_first():
                    self._step(bar)
                if self.iteration % self.checkpoint_every == 0 and self.iteration < length:
                    self._save_if_wanted()
        finally:
            trainer.dataloader_iter = trainer.dataloader = None  # ends the workers
        if before is not None:
            self._components.check_moved(before, self.round)
            self._has_learned = True
        try:
            with finish_first():
                trainer.step_lr_schedulers(end_of_epoch=True)
                trainer.zero_losses()
                self._broadcast_weights()
            if any(all_gather_objects(trainer.end_of_epoch_hook(trainer) is False)):
                self._stopped = True
        finally:  # also after an error of a hook: the steps of this round are done
            self.round, self.iteration, self._grouped = self.round + 1, 0, False
        self._save_if_wanted()

    def _step(self, bar: Any) -> None:
        trainer = self.trainer
        seed_everything(derive_seeds(self.seed, _STEP, self.global_iteration)[0])
        self._has_moved = False
        try:
            self._forward_and_backward()
            for name, average in self._averages.items():
                average.update_parameters(self.models[name])
            self._record(bar)
            trainer.end_of_iteration_hook(trainer)
        finally:
            if self._has_moved:  # also after an error of a hook: a step is done once
                trainer.step_lr_schedulers(end_of_epoch=False)
                self.iteration += 1

    def _forward_and_backward(self) -> None:
        try:
            self.trainer.forward_and_backward()
        except RuntimeError as error:
            if not re.search("does not require grad|leaf Variable that requires grad", str(error)):
                raise
            advice = "do the losses detach the embeddings, or return a constant?"
            raise RuntimeError(f"the losses have no gradient to weights ({error}): {advice}") from error

    def _record(self, bar: Any) -> None:
        where = {"round": self.round, "iteration": self.global_iteration + 1}
        last = self.iteration + 1 == self.iterations_per_round
        self._losses.add(self.trainer.losses, where, last)
        bar.update(1)
        rows = self._losses.rows
        if rows and rows[-1]["iteration"] == where["iteration"]:
            loss, classes = rows[-1]["total_loss"], self.sampler.posets.num_classes
            bar.set_postfix(loss=f"{loss:.4f}", classes=classes, refresh=False)

    @property
    def _positions(self) -> np.ndarray | None:
        """Positions of this rank's samples in the batches; None for one process."""
        if self._num_ranks == 1:
            return None
        return rank_positions(self.sampler.batch_size, getattr(self.sampler, "views", 1))

    def _broadcast_weights(self) -> None:
        broadcast_weights([*self.models.values(), *self.loss_funcs.values(), *self._averages.values()])

    def _save_if_wanted(self) -> None:
        self._broadcast_weights()
        if self.checkpoint_path is not None:
            with finish_first():
                from_main(self.save)

    # --- What goes into a PML trainer

    def _make_trainer(self) -> Any:
        options = dict(self.trainer_options)
        if collate := options.get("collate_fn"):
            options["collate_fn"] = partial(seeded_collate, collate)
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
            **options,
        )
        if self.autocast is not None:
            under = torch.autocast(self.device.type, dtype=self.autocast)
            trainer.calculate_loss = under(trainer.calculate_loss)
        step_optimizers = trainer.step_optimizers

        def noted() -> None:
            self._has_moved = True
            step_optimizers()

        trainer.step_optimizers = noted
        trainer.joint = self
        return trainer

    def _adapt_loss(self, name: str, loss: torch.nn.Module) -> torch.nn.Module:
        if hasattr(loss, "bind") or name not in PML_LOSSES:
            return loss
        mined = isinstance(self.mining_funcs.get("tuple_miner"), NearestMedoidMiner)
        mined = mined and not kind_with_classes(loss, "keep")
        knows = name == "metric_loss" and (mined or any(isinstance(m, PosetLoss) for m in loss.modules()))
        return PseudoLabelLoss(loss, unassigned="keep" if knows else "drop")

    def _adapt_miner(self, miner: Any) -> Any:
        return miner if hasattr(miner, "bind") else PseudoLabelMiner(miner)


def _learns_without_classes(loss: torch.nn.Module) -> bool:
    if isinstance(loss, WeightedLosses):
        return any(map(_learns_without_classes, loss.losses.values()))
    return not isinstance(loss, PseudoLabelLoss) or loss.unassigned == "own"
