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
        unlabeled: number of unlabeled images; unreadable labeled ones are an error of the loader.
        max_unreadable: share of them that may be unreadable before training stops.
    """

    priority = "HIGH"

    def __init__(self, sampler: MultiSourceSampler, unlabeled: int = 0, max_unreadable: float = 0.0) -> None:
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

    def before_train(self, runner: Runner) -> None:
        """Forget the list of an earlier attempt, whose files may have been repaired."""
        if runner.rank == 0 and runner.iter == 0:
            (Path(runner.work_dir) / UNREADABLE_FILE).unlink(missing_ok=True)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Log newly found unreadable files and count them."""
        skipped = dict((data_batch or {})["skipped"])
        if skipped.keys() <= self._known:
            return
        path = Path(runner.work_dir) / UNREADABLE_FILE
        # All processes write it, and before a resume others did; names that are not UTF-8 stay as they are.
        with path.open("a+", encoding="utf-8", errors="surrogateescape") as file:
            file.seek(0)
            self._known |= {line.split("\t")[0] for line in file}
            new = {name: reason for name, reason in skipped.items() if name not in self._known}
            file.writelines(f"{name}\t{reason}\n" for name, reason in new.items())
        self._known |= new.keys()
        for name, reason in new.items():
            logger.warning("skipped unreadable image %s: %s", name, reason)
        share = len(self._known) / self.unlabeled
        if share > self.max_unreadable:
            raise DataError(
                f"{len(self._known)} of {self.unlabeled} unlabeled images ({share:.2%}) cannot be read, more "
                f"than data.unlabeled.max_unreadable = {self.max_unreadable:.2%}; they are listed in {path}"
            )
