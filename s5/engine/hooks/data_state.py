"""What the data of a run has to remember: positions in the sources, and files that could not be read."""

import logging
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from s5.data.errors import DataError
from s5.data.sampler import MultiSourceSampler

logger = logging.getLogger(__name__)

UNREADABLE_FILE = "unreadable.txt"


class DataStateHook(Hook):
    """Stores how many images were drawn, restores it on resume, and enforces the share of unreadable images.

    Args:
        sampler: the sampler of the training data.
        unlabeled: number of unlabeled images.
        max_unreadable: share of them that may be unreadable before training stops.
    """

    priority = "HIGH"

    def __init__(self, sampler: MultiSourceSampler, unlabeled: int, max_unreadable: float) -> None:
        self.sampler = sampler
        self.unlabeled = unlabeled
        self.max_unreadable = max_unreadable
        self._known: set[str] = set()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the position of every source."""
        checkpoint["data"] = {
            "consumed": self.sampler.consumed(checkpoint["meta"]["iter"]),
            "world_size": runner.world_size,
        }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Go on where the checkpoint's run was, also with another number of processes."""
        state = checkpoint["data"]
        if state["world_size"] != runner.world_size:
            logger.warning(
                "resuming with %d processes a run of %d: the data goes on at image %s of its sources, "
                "the batch of one step is now %d images",
                runner.world_size,
                state["world_size"],
                state["consumed"],
                self.sampler.batch_size * runner.world_size,
            )
        self.sampler.resume_at(checkpoint["meta"]["iter"], state["consumed"])

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Log newly found unreadable files and count them."""
        new = {name: reason for name, reason in (data_batch or {})["skipped"] if name not in self._known}
        if not new:
            return
        path = Path(runner.work_dir) / UNREADABLE_FILE
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{name}\t{reason}\n" for name, reason in new.items())
        self._known |= {line.split("\t")[0] for line in path.read_text(encoding="utf-8").splitlines()}
        for name, reason in new.items():
            logger.warning("skipped unreadable image %s: %s", name, reason)
        share = len(self._known) / self.unlabeled
        if share > self.max_unreadable:
            raise DataError(
                f"{len(self._known)} of {self.unlabeled} unlabeled images ({share:.2%}) cannot be read, more "
                f"than data.unlabeled.max_unreadable = {self.max_unreadable:.2%}; they are listed in {path}"
            )
