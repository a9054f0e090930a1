"""Hooks that save and restore a run: checkpoints, configuration, positions in the data."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from s5.backbones import Backbone, parse_normalization
from s5.checkpoints.reading import read_checkpoint, save_atomic
from s5.data.sampler import MultiSourceSampler
from s5.errors import ConfigError, DataError
from s5.training.config import CONFIG_FILE, Section, save_config
from s5.training.model import TaskModel
from s5.training.resume import RESUMABLE, ResumableHook, resumable_checkpoints
from s5.training.runner import S5Runner, unwrap

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightFiles:
    """Names of the weight files of a run, without folder.

    Attributes:
        whole: Newest weights of the full model; the names of the best ones add `_best` or `_best_<task>`.
        backbone: Weights of the backbone alone, for other runs to start from; None if they are not saved.
    """

    whole: str
    backbone: str | None = None

    def best(self, which: str) -> str:
        """Name of the file with the best weights; `which` is `best` or `best_<task>`."""
        return f"{self.whole.removesuffix('.pth')}_{which}.pth"


class CheckpointHook(Hook):
    """Saves checkpoints at intervals, at the end and when a signal stops the run, and the best weights.

    Older checkpoints are removed only after the new one has been written.

    Args:
        interval: Iterations between resumable checkpoints.
        keep: Number of resumable checkpoints to keep.
        files: Names of the weight files.
        meta: Returns the metadata of the weight files (backbone, classes ...).
        best: Names of validation scores (larger is better), by the suffix of a weight file (`best` or
            `best_<task>`). The file holds the weights with the highest mean of these scores.
    """

    priority = "VERY_LOW"

    def __init__(
        self,
        interval: int,
        keep: int,
        files: WeightFiles,
        meta: Callable[[], dict[str, Any]],
        best: Mapping[str, Sequence[str]],
    ) -> None:
        self.interval = interval
        self.keep = keep
        self.files = files
        self.meta = meta
        self.best = best

    def after_train_iter(
        self, runner: S5Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Save if a checkpoint is due."""
        done = runner.iter + 1
        if done % self.interval == 0 or done == runner.max_iters or runner.train_loop.stop_training:
            self.save(runner, done)

    def before_train(self, runner: S5Runner) -> None:
        """Compare with the best weights in the folder, which need not be those of the resumed checkpoint."""
        for which, names in self.best.items():
            path, rank = Path(runner.work_dir) / self.files.best(which), [0, 0.0]
            if runner.iter > 0 and runner.rank == 0 and path.exists():
                meta = read_checkpoint(path, lazy=True).get("meta", {})
                rank = _rank({name: meta[name] for name in names if name in meta})
            runner.message_hub.update_info(f"rank_{which}", rank)

    def after_val_epoch(self, runner: S5Runner, metrics: dict[str, float] | None = None) -> None:
        """Save the weights if they are the best so far."""
        for which, names in self.best.items():
            scores = {name: (metrics or {}).get(name, math.nan) for name in names}
            known = {name: score for name, score in scores.items() if not math.isnan(score)}
            if not known:
                continue
            rank = _rank(known)
            if rank > runner.message_hub.get_info(f"rank_{which}", [0, 0.0]):
                runner.message_hub.update_info(f"rank_{which}", rank)
                self._save_best(runner, which, known, rank[1])

    def _save_best(self, runner: S5Runner, which: str, scores: dict[str, float], mean: float) -> None:
        if runner.rank == 0:
            path = Path(runner.work_dir) / self.files.best(which)
            save_atomic(self._weights(network_of(runner), runner.iter, scores), path)
            logger.info("best %s so far: %.2f, saved to %s", ", ".join(scores), mean, path)

    def save(self, runner: S5Runner, done: int) -> None:
        """Write the weights, then the resumable checkpoint of iteration `done`, then remove the oldest.

        If the run is killed in between, it resumes from the previous checkpoint and rewrites the weights.
        """
        state = runner.resumable_state(done)
        if state is None:
            return
        work_dir = Path(runner.work_dir)
        network = network_of(runner)
        save_atomic(self._weights(network, done), work_dir / self.files.whole)
        if self.files.backbone is not None:
            backbone = network.get_submodule("backbone")
            save_atomic(self._weights(backbone, done), work_dir / self.files.backbone)
        path = work_dir / RESUMABLE.format(done)
        save_atomic(state, path)
        logger.info("saved %s", path)
        for old in resumable_checkpoints(work_dir)[: -self.keep]:
            old.unlink()

    def _weights(
        self, module: nn.Module, iteration: int, scores: dict[str, float] | None = None
    ) -> dict[str, Any]:
        meta = {**self.meta(), "iteration": iteration, **(scores or {})}
        return {"state_dict": {k: v.cpu() for k, v in module.state_dict().items()}, "meta": meta}


def _rank(scores: Mapping[str, float]) -> list[float]:
    """Order of validations: means over different numbers of tasks are not comparable, that over more wins."""
    return [len(scores), sum(scores.values()) / max(1, len(scores))]


def network_of(runner: S5Runner) -> nn.Module:
    """Return the network in the runner's model."""
    return cast(TaskModel, unwrap(runner.model)).network


class ConfigFileHook(Hook):
    """Writes `config.yaml` when training begins.

    It is not written earlier, because a run that turns out not to fit the checkpoint it resumes from must not
    overwrite the configuration of the run in the folder.
    """

    def __init__(self, cfg: Section) -> None:
        self.cfg = cfg

    def before_train(self, runner: Runner) -> None:
        """Write the configuration."""
        if runner.rank == 0:
            save_config(self.cfg, Path(runner.work_dir) / CONFIG_FILE)


class NormalizationHook(ResumableHook):
    """Stores and restores the normalisation of the images, which may come from the initial weights."""

    key = "normalization"

    def state_dict(self, runner: Runner, iteration: int) -> list[list[float]]:
        """Return mean and standard deviation."""
        return [[*values] for values in backbone_of(runner).normalization]

    def load_state_dict(self, runner: Runner, iteration: int, state: list[list[float]]) -> None:
        """Restore the normalisation.

        Raises:
            ConfigError: The configuration chooses another one.
        """
        stored, backbone = parse_normalization(state), backbone_of(runner)
        if backbone.chosen_normalization and backbone.normalization != stored:
            raise ConfigError(
                f"model.normalization: the run to resume normalises images with {stored}, not with "
                f"{backbone.normalization}; set it to that, or start a new run"
            )
        backbone.normalization = stored


def backbone_of(runner: Runner) -> Backbone:
    """Return the backbone of the runner's model."""
    return cast(TaskModel, unwrap(runner.model)).network.backbone


class SharedBuffersHook(Hook):
    """Broadcasts the main process's running statistics before a validation, so that it scores the saved ones.

    DistributedDataParallel broadcasts buffers before a forward pass, which then updates them independently in
    every process unless batch norm is synchronised.
    """

    priority = "VERY_HIGH"

    def before_val(self, runner: Runner) -> None:
        """Broadcast the buffers."""
        if dist.is_initialized():
            for buffer in unwrap(runner.model).buffers():
                dist.broadcast(buffer, src=0)


UNREADABLE_FILE = "unreadable.txt"


class DataStateHook(ResumableHook):
    """Stores and restores the positions in the data, and limits the share of unreadable images.

    Args:
        sampler: The sampler of the training data.
        unlabeled: Number of unlabeled images. Unreadable labeled images are an error raised by the loader.
        max_unreadable: Largest share of the unlabeled images that may be unreadable, 0 to 1.
    """

    priority = "HIGH"
    key = "data"

    def __init__(self, sampler: MultiSourceSampler, unlabeled: int = 0, max_unreadable: float = 0.0) -> None:
        self.sampler = sampler
        self.unlabeled = unlabeled
        self.max_unreadable = max_unreadable
        self._known: set[str] = set()

    def state_dict(self, runner: Runner, iteration: int) -> dict[str, Any]:
        """Return the position in every source."""
        return {"consumed": self.sampler.consumed(iteration), "world_size": runner.world_size}

    def load_state_dict(self, runner: Runner, iteration: int, state: dict[str, Any]) -> None:
        """Continue at the stored positions; the number of processes may differ."""
        if state["world_size"] != runner.world_size:
            logger.warning(
                "resuming with %d processes a run that had %d: its sources continue at image %s, "
                "a global batch now has %d images",
                runner.world_size,
                state["world_size"],
                state["consumed"],
                self.sampler.batch_size * runner.world_size,
            )
        self.sampler.resume_at(iteration, state["consumed"])

    def before_train(self, runner: Runner) -> None:
        """Add the list of an earlier start to `unreadable.txt.old`: its files may be repaired by now."""
        path = Path(runner.work_dir) / UNREADABLE_FILE
        if runner.rank == 0 and path.exists():
            with path.with_name(f"{path.name}.old").open("ab") as old:
                old.write(path.read_bytes())
            path.unlink()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Log newly found unreadable files and count them."""
        skipped = dict((data_batch or {})["skipped"])
        if skipped.keys() <= self._known:
            return
        path = Path(runner.work_dir) / UNREADABLE_FILE
        # Written by all processes; names need not be UTF-8.
        with path.open("a+", encoding="utf-8", errors="surrogateescape") as file:
            file.seek(0)
            self._known |= {line.split("\t")[0] for line in file}
            new = {name: reason for name, reason in skipped.items() if name not in self._known}
            file.writelines(f"{name}\t{' '.join(reason.split())}\n" for name, reason in new.items())
        self._known |= new.keys()
        for name, reason in new.items():
            logger.warning("skipped unreadable image %s: %s", name, reason)
        share = len(self._known) / self.unlabeled
        if share > self.max_unreadable:
            raise DataError(
                f"{len(self._known)} of {self.unlabeled} unlabeled images ({share:.2%}) cannot be read, more "
                f"than data.unlabeled.max_unreadable = {self.max_unreadable:.2%} allows; listed in {path}"
            )
