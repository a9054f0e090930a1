"""Saves resumable checkpoints and plain weights, each written whole or not at all."""

import logging
from pathlib import Path
from typing import Any, cast

from mmengine.hooks import Hook
from torch import nn

from s5.engine.checkpoint import save_atomic
from s5.engine.checkpoint_files import RESUMABLE, backbone_file, best_file, resumable_checkpoints, whole_file
from s5.engine.runner import S5Runner, unwrap
from s5.models.segmentation_model import SegmentationModel
from s5.models.segmentor import Segmentor

logger = logging.getLogger(__name__)


class CheckpointHook(Hook):
    """Saves every ``interval`` iterations, at the end, when stopped by a signal, and the best weights.

    Older checkpoints are removed only after the new one is in place.

    Args:
        interval: iterations between resumable checkpoints.
        keep: how many resumable checkpoints stay.
        backbone: name of the backbone, prefix of the weight files.
        meta: what the weight files say of themselves (backbone, classes ...).
        metric: validation score by which the best weights are chosen, larger is better.
    """

    priority = "VERY_LOW"

    def __init__(
        self, interval: int, keep: int, backbone: str, meta: dict[str, Any], metric: str = "mIoU"
    ) -> None:
        self.interval = interval
        self.keep = keep
        self.backbone = backbone
        self.meta = meta
        self.metric = metric

    def after_train_iter(
        self, runner: S5Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Save where it is time."""
        done = runner.iter + 1
        if done % self.interval == 0 or done == runner.max_iters or runner.train_loop.stop_training:
            self.save(runner, done)

    def after_val_epoch(self, runner: S5Runner, metrics: dict[str, float] | None = None) -> None:
        """Keep the weights of the best validation."""
        score = (metrics or {})[self.metric]
        best = runner.message_hub.get_info("best_score", None)
        if best is None or score > best:
            runner.message_hub.update_info("best_score", score)
            if runner.rank == 0:
                path = best_file(Path(runner.work_dir), self.backbone)
                save_atomic(self._weights(segmentor_of(runner), runner.iter, score), path)
                logger.info("best %s so far: %.2f, saved to %s", self.metric, score, path)

    def save(self, runner: S5Runner, done: int) -> None:
        """Write the weights, then the resumable checkpoint of iteration ``done``, then remove the oldest.

        In this order a run killed in between goes on from the checkpoint before and writes the weights again.
        """
        state = runner.resumable_state(done)
        if runner.rank != 0:
            return
        work_dir = Path(runner.work_dir)
        segmentor = segmentor_of(runner)
        save_atomic(self._weights(segmentor, done), whole_file(work_dir, self.backbone))
        save_atomic(self._weights(segmentor.backbone, done), backbone_file(work_dir, self.backbone))
        path = work_dir / RESUMABLE.format(done)
        save_atomic(state, path)
        logger.info("saved %s", path)
        for old in resumable_checkpoints(work_dir)[: -self.keep]:
            old.unlink()

    def _weights(self, module: nn.Module, iteration: int, score: float | None = None) -> dict[str, Any]:
        meta = {**self.meta, "iteration": iteration}
        if score is not None:
            meta[self.metric] = score
        return {"state_dict": {k: v.cpu() for k, v in module.state_dict().items()}, "meta": meta}


def segmentor_of(runner: S5Runner) -> Segmentor:
    """The network in the runner's model."""
    return cast(SegmentationModel, unwrap(runner.model)).segmentor
