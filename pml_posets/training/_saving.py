"""The file that holds a run, and the settings by which it is known."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from .._io import check_folder
from ..distributed.process_group import RankError
from ..distributed.sharing import from_main
from ._identity import describe, describe_data
from ._rounds import Rounds
from .checkpoints import check_settings, load_checkpoint, save_checkpoint

_SAME_RESULT = {  # options that change how fast a run is and what it says, not what it learns
    *("dataloader_num_workers", "data_device", "end_of_iteration_hook", "end_of_epoch_hook"),
    *("batch_size", "num_workers", "device", "progress"),
}


class Saved(Rounds):
    """Rounds that are written to a file and read from it."""

    feature_dataset: Any
    feature_options: dict[str, Any]
    settings: Mapping[str, Any]
    _ema_decay: float | None

    def save(self, path: str | os.PathLike[str] | None = None) -> None:
        """Write the state of the whole run to `path`; `train` does so by itself if there is an `output_dir`.

        Args:
            path: the file. Default: checkpoint.pt in `output_dir`.

        Raises:
            OSError: if it cannot be written; an older file is then as it was.
            TypeError: if the state holds what a checkpoint cannot; the message names it.
            ValueError: if there is neither path nor output_dir.
        """
        path = self.checkpoint_path if path is None else path
        if path is None:
            raise ValueError("save needs a path, as there is no output_dir")
        miners = {k: m.state_dict() for k, m in self.mining_funcs.items() if hasattr(m, "state_dict")}
        averages = {
            "num_updates": max((int(a.n_averaged) - 1 for a in self._averages.values()), default=0),
            "models": {name: average.module.state_dict() for name, average in self._averages.items()},
        }
        content = {
            "settings": self._described(),
            "position": [self.round, self.iteration, self._grouped, self._stopped],
            "num_classes": self.sampler.posets.num_classes,
            "sampler": self.sampler.state_dict(),
            "parts": self._components.state_dict(),
            "miners": miners,
            "average": averages if self._averages else None,
            "losses": self._losses.state_dict({"round": self.round, "iteration": self.global_iteration}),
        }
        save_checkpoint(path, content)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take the state of a run back; `train` then goes on from there.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged or belongs to another run; the message lists all differences.
        """
        content = from_main(lambda: load_checkpoint(path))
        try:
            begun = content["settings"].get("num_classes", 1) if self._settings is None else self._num_classes
            self._num_classes = begun
            self._components.fit(begun, 0, self.device)  # heads, to be compared
            self._check_same_run(content["settings"], path)
            if self.trainer is not None:
                self._components.fit(content["num_classes"], 0, self.device)
            self.sampler.load_state_dict(content["sampler"])
            self._install(self.sampler.posets)
            self._components.load_state_dict(content["parts"])
            for name, state in content["miners"].items():
                self.mining_funcs[name].load_state_dict(state)
            for name, average in self._averages.items():
                average.module.load_state_dict(content["average"]["models"][name])
                average.n_averaged.fill_(content["average"]["num_updates"] + 1)
            self.round, self.iteration, self._grouped, self._stopped = content["position"]
            self._losses.load_state_dict(content["losses"])
        except (RankError, torch.cuda.OutOfMemoryError):
            raise
        except (KeyError, TypeError, RuntimeError) as error:
            advice = "use the same models, losses and optimizers, or another folder"
            text = f"the checkpoint {path} does not fit the parts of this run ({error}): {advice}"
            raise ValueError(text) from error

    def _check_same_run(self, saved: Mapping[str, Any], path: Any) -> None:
        try:
            check_settings(saved, self._described(), path)
        except ValueError as error:
            if not any(f"there {what}" in str(error) for what in ("num_samples", "dataset file names")):
                raise
            advice = "is a new data set, and needs an output_dir of its own"
            text = f"{error}. A folder with an image more, less or of another name {advice}"
            raise ValueError(text) from None

    def _open(self, resume: bool) -> None:
        path = self.checkpoint_path
        if path is None:
            if resume:
                raise ValueError("resume=True needs an output_dir, where the checkpoint is")
            return
        weights = [w for model in self.models.values() for w in model.state_dict().values()]
        size = 6 * sum(w.numel() * w.element_size() for w in weights if not is_lazy(w))
        from_main(lambda: check_folder(path.parent, num_bytes=size))
        if not self._owns_checkpoint and from_main(path.exists):
            if not resume:
                advice = "call train(resume=True) to go on with it, remove it, or choose another output_dir"
                raise FileExistsError(f"{path} holds a run already: {advice}")
            self.load(path)
        elif resume and not self._owns_checkpoint:
            warnings.warn(f"there is nothing to resume: no {path}, so a new run begins", stacklevel=3)
        self._owns_checkpoint = True

    def _described(self) -> dict[str, Any]:
        """The settings that change the result, flat; num_rounds is not in it: a run may be prolonged."""
        if self._settings is None:
            options = {k: v for k, v in self.trainer_options.items() if k not in _SAME_RESULT}
            extraction = {k: v for k, v in self.feature_options.items() if k not in _SAME_RESULT}
            things = {
                "sampler": describe(self.sampler),
                "first features": getattr(self.sampler, "fingerprint", {}),
                "dataset": describe_data(self.dataset),
                "feature_dataset": describe_data(self.feature_dataset),
                "feature_fn": describe(self.feature_fn),
                "feature_options": describe(extraction),
                "trainer": describe(options),
                **{name: describe(miner) for name, miner in self.mining_funcs.items()},
            }
            self._settings = {
                "num_samples": self.sampler.num_samples,
                "num_classes": self._num_classes,  # at first, as the class heads below have it
                "iterations_per_round": self.iterations_per_round,
                "seed": self.seed,
                "trainer": self.trainer_class.__name__,
                "ema_decay": self._ema_decay,
                "autocast": self.autocast and str(self.autocast),
                "loss_weights": self.loss_weights,
                **{f"{name} {key}": value for name, known in things.items() for key, value in known.items()},
                **self._components.settings(),
                **{f"your {name}": _plain(value) for name, value in self.settings.items()},
            }
        return self._settings


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)
