"""Saves resumable checkpoints and plain weights, each written whole or not at all."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from s5.checkpoints.loading import save_atomic
from s5.training.config import Section, save_config
from s5.training.model import TaskModel
from s5.training.runner import S5Runner, unwrap
from s5.training.work_dir import RESUMABLE, WeightFiles, resumable_checkpoints

logger = logging.getLogger(__name__)


class CheckpointHook(Hook):
    """Saves every ``interval`` iterations, at the end, when stopped by a signal, and the best weights.

    Older checkpoints are removed only after the new one is in place.

    Args:
        interval: iterations between resumable checkpoints.
        keep: how many resumable checkpoints stay.
        files: names of the weight files.
        meta: what the weight files say of themselves (backbone, classes ...).
        best: validation scores (larger is better) of whose mean the best weights are kept, by the ending of
            their file: ``best`` or ``best_<task>``.
    """

    priority = "VERY_LOW"

    def __init__(
        self,
        interval: int,
        keep: int,
        files: WeightFiles,
        meta: dict[str, Any],
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
        """Save where it is time."""
        done = runner.iter + 1
        if done % self.interval == 0 or done == runner.max_iters or runner.train_loop.stop_training:
            self.save(runner, done)

    def after_val_epoch(self, runner: S5Runner, metrics: dict[str, float] | None = None) -> None:
        """Keep the weights of the best validations."""
        for which, names in self.best.items():
            scores = {name: (metrics or {}).get(name, math.nan) for name in names}
            known = {name: score for name, score in scores.items() if not math.isnan(score)}
            if not known:
                continue
            # A mean over more tasks is not comparable with an earlier one over fewer, and goes before it.
            rank = [len(known), sum(known.values()) / len(known)]
            if rank > runner.message_hub.get_info(f"rank_{which}", [0, 0.0]):
                runner.message_hub.update_info(f"rank_{which}", rank)
                self._save_best(runner, which, known, rank[1])

    def _save_best(self, runner: S5Runner, which: str, scores: dict[str, float], mean: float) -> None:
        if runner.rank == 0:
            path = Path(runner.work_dir) / self.files.best(which)
            save_atomic(self._weights(network_of(runner), runner.iter, scores), path)
            logger.info("best %s so far: %.2f, saved to %s", ", ".join(scores), mean, path)

    def save(self, runner: S5Runner, done: int) -> None:
        """Write the weights, then the resumable checkpoint of iteration ``done``, then remove the oldest.

        In this order a run killed in between goes on from the checkpoint before and writes the weights again.
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
        meta = {**self.meta, "iteration": iteration, **(scores or {})}
        return {"state_dict": {k: v.cpu() for k, v in module.state_dict().items()}, "meta": meta}


def network_of(runner: S5Runner) -> nn.Module:
    """The network in the runner's model."""
    return cast(TaskModel, unwrap(runner.model)).network


CONFIG_FILE = "config.yaml"


class ConfigFileHook(Hook):
    """Writes ``config.yaml`` when training begins.

    Not before: a run that is refused, as it does not fit the checkpoint that it is to go on from, must not
    replace the configuration of the run in the folder.
    """

    def __init__(self, cfg: Section) -> None:
        self.cfg = cfg

    def before_train(self, runner: Runner) -> None:
        """Write it."""
        if runner.rank == 0:
            save_config(self.cfg, Path(runner.work_dir) / CONFIG_FILE)


class SharedBuffersHook(Hook):
    """Gives all processes the normalisation statistics of the main one, which are those it saves.

    DistributedDataParallel does so before a step; the step itself then changes them in every process on its
    own, unless batch norm is synchronised.
    """

    priority = "VERY_HIGH"

    def before_val(self, runner: Runner) -> None:
        """Share them."""
        if dist.is_initialized():
            for buffer in unwrap(runner.model).buffers():
                dist.broadcast(buffer, src=0)
