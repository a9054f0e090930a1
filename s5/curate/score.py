"""Step 2: entropy, pseudo-label and feature of every patch, from one forward pass of a trained segmentor.

The mean entropy of a patch (paper, Eq. 1) leaves the background out of the sum over the classes, and pixels
without data out of the mean. Facts of the pixels (share with data, contrast, perceptual hash) are computed
while they are in memory. A shard is scored by one process, in batches that depend on the shard alone, so
results do not depend on the number of processes or on interruptions.
"""

import hashlib
import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist

from s5.checkpoints.reading import find_checkpoint
from s5.command import Progress
from s5.curate import require
from s5.curate.config import CurateConfig, ScoreConfig
from s5.curate.folder import LABELED, POOL, Part, Run, begin, counts_of, read_shard, write_shard
from s5.curate.index import require_patches
from s5.curate.reading import Batch, patch_loader
from s5.curate.scorer import Fetch, Scored, Scorer, fetch
from s5.errors import ConfigError, DataError
from s5.launch import Launch, host_group, main_process_first, same_everywhere
from s5.segmentation.trained import spec_of_checkpoint

logger = logging.getLogger(__name__)

IN_FLIGHT = 2  # batches on the device before the results of the first are read
ENCODERS = 4  # threads that compress pseudo-labels
FEW = 200  # patches; of a smaller pool as many may be unreadable as of this one


def score(cfg: CurateConfig, run: Run, launch: Launch) -> dict[str, Any]:
    """Score the missing shards of labeled images and pool; processes share them.

    Returns:
        Counts of this process: `patches`, `unreadable`, `seconds`, and `data_wait`, the share of the time
        spent waiting for patches.

    Raises:
        CheckpointError: The weights do not fit the description.
        ConfigError: The checkpoint cannot score.
        DataError: Too many patches are unreadable.
        PrepareError: There is no complete index, or shards were scored with other settings.
    """
    scorer, settings = build_scorer(cfg, launch)
    if not same_everywhere(str(settings), launch):
        raise ConfigError("the processes have different precisions or checkpoints; set score.precision")
    missing: list[dict[str, list[int]]] = [{}]
    # Listed once: processes that list for themselves would see what others have written meanwhile.
    with main_process_first(launch) as is_main:
        if is_main:
            missing[0] = {name: _missing(run.part(name), settings) for name in (LABELED, POOL)}
    if launch.world_size > 1:
        dist.broadcast_object_list(missing, 0, group=host_group())
    totals = {"patches": 0, "unreadable": 0, "seconds": 0.0, "data_wait": 0.0}
    for name, shards in missing[0].items():
        mine = shards[launch.rank :: launch.world_size]
        if mine:
            counts = _score_shards(run.part(name), mine, scorer, cfg, name or "pool")
            totals = {key: totals[key] + counts[key] for key in totals}
    totals["data_wait"] = round(totals["data_wait"] / totals["seconds"], 3) if totals["seconds"] else 0.0
    return totals


def _missing(part: Part, settings: dict[str, Any]) -> list[int]:
    """Numbers of the shards to score."""
    digest = counts_of(part.state("index"), "index")["digest"]
    begin(part.state("scores"), {**settings, "index": digest}, "scores")
    steps = ("scores", "masks") if settings["pseudo_labels"] else ("scores",)
    return [
        number
        for number in range(len(require_patches(part)))
        if not all(part.shard(step, number).exists() for step in steps)
    ]


def build_scorer(cfg: CurateConfig, launch: Launch) -> tuple[Scorer, dict[str, Any]]:
    """The scorer, and what its scores depend on.

    Raises:
        ConfigError: The checkpoint does not describe itself, or has no usable task.
    """
    checkpoint = find_checkpoint(cfg.checkpoint)
    spec = spec_of_checkpoint(checkpoint, None)
    if spec is None:
        raise ConfigError(
            f"{checkpoint}: has no metadata about its network (published weights have none); train a "
            "segmentor with this version, see docs/curation.md"
        )
    scorer = Scorer(spec, checkpoint, launch.device, cfg.score)
    settings = {
        "checkpoint": sha256(checkpoint),
        "task": scorer.task,
        "precision": str(scorer.model.dtype or torch.float32),
        "batch_size": cfg.score.batch_size,
        "pseudo_labels": cfg.score.pseudo_labels,
        "conf_thresh": cfg.score.conf_thresh,
    }
    return scorer, settings


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _score_shards(
    part: Part, shards: Sequence[int], scorer: Scorer, cfg: CurateConfig, what: str
) -> dict[str, float]:
    settings = cfg.score
    batches = iter(
        patch_loader(
            part,
            shards,
            cfg.data_root.absolute(),
            settings.batch_size,
            settings.workers,
            pin_memory=scorer.device.type == "cuda",
        )
    )
    total = sum(_length(part.shard("index", number)) for number in shards)
    index = counts_of(part.state("index"), "index")
    allowed = allowed_unreadable(index["patches"] + index["unreadable"], settings.max_unreadable)
    waited, start = 0.0, time.monotonic()
    pending: deque[tuple[Batch, Fetch | None]] = deque()
    with (
        Progress(total, f"score {what}", "patches", logger) as progress,
        _ShardWriter(part, scorer, settings, allowed, progress) as writer,
    ):
        while True:
            before = time.monotonic()
            batch = next(batches, None)
            waited += time.monotonic() - before
            if batch is not None:
                pending.append((batch, fetch(scorer(batch.images, batch.valid)) if batch.rows else None))
            if len(pending) == IN_FLIGHT or (batch is None and pending):
                writer.add(*pending.popleft())
            elif batch is None:
                break
    seconds = time.monotonic() - start
    logger.info("score: %s, %.1f patches/s, data wait %.0f %%", what, total / seconds, 100 * waited / seconds)
    return {"patches": total, "unreadable": writer.unreadable, "seconds": seconds, "data_wait": waited}


def allowed_unreadable(patches: int, share: float) -> float:
    """Number of unreadable patches that a part may have; a few in small pools."""
    return share * max(patches, FEW)


def _length(path: Path) -> int:
    return int(require("pyarrow.parquet").read_metadata(path).num_rows)


class _ShardWriter:
    """Collects the results of the batches of a shard and writes it when it is complete."""

    def __init__(
        self, part: Part, scorer: Scorer, settings: ScoreConfig, allowed: float, progress: Progress
    ) -> None:
        self.part, self.scorer, self.settings, self.allowed = part, scorer, settings, allowed
        self.unreadable = 0
        self._rows: dict[int, dict[str, Any]] = {}
        self._pool = ThreadPoolExecutor(ENCODERS)
        self._progress = progress

    def __enter__(self) -> "_ShardWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, batch: Batch, results: Fetch | None) -> None:
        """Add the results of the next batch."""
        for row, reason in batch.errors.items():
            self._rows[row] = {"error": reason}
        if results is not None:
            self._add_scored(batch, results())
        self.unreadable += len(batch.errors)
        if self.unreadable > self.allowed:
            raise too_many_unreadable(self.unreadable, self.settings, next(reversed(batch.errors.values())))
        self._progress.update(len(batch.errors) + len(batch.rows))
        if batch.last:
            self._write(batch.shard)

    def _add_scored(self, batch: Batch, scored: Scored) -> None:
        labels = scored.labels.numpy()
        masks = self._pool.map(self._encode, labels) if self.settings.pseudo_labels else [None] * len(labels)
        columns = scored.entropy.tolist(), scored.classes.tolist(), scored.features.numpy(), masks
        for row, facts, entropy, classes, feature, mask in zip(
            batch.rows, batch.facts, *columns, strict=True
        ):
            valid, deviation, sharpness, phash = facts
            self._rows[row] = {
                "valid": valid,
                "deviation": deviation,
                "sharpness": sharpness,
                "phash": phash,
                "entropy": entropy,
                "classes": classes,
                "feature": feature.astype(np.float16),
                "mask": mask,
            }

    def _encode(self, labels: np.ndarray) -> bytes:
        """PNG of the raw values that the label table gives the classes, as the labeled masks have."""
        done, data = cv2.imencode(".png", self.scorer.table.raw_values(labels))
        if not done:
            raise DataError("a pseudo-label cannot be encoded as PNG")
        return data.tobytes()

    def _write(self, shard: int) -> None:
        pa = require("pyarrow")
        table = read_shard(self.part.shard("index", shard)).drop_columns(
            ["file", "bytes", "modified", "error"]
        )
        rows = [self._rows[row] for row in range(len(table))]
        width = next((len(row["feature"]) for row in rows if "feature" in row), 0)
        types = {
            "valid": pa.float32(),
            "deviation": pa.float32(),
            "sharpness": pa.float32(),
            "phash": pa.uint64(),
            "entropy": pa.float32(),
            "classes": pa.list_(pa.int32()),
            "feature": pa.list_(pa.float16(), width) if width else pa.list_(pa.float16()),
            "error": pa.string(),
        }
        for name, kind in types.items():
            table = table.append_column(name, pa.array([row.get(name) for row in rows], kind))
        if self.settings.pseudo_labels:
            masks = pa.array([row.get("mask") for row in rows], pa.binary())
            write_shard(self.part.shard("masks", shard), pa.table({"patch": table["patch"], "mask": masks}))
        write_shard(self.part.shard("scores", shard), table)
        self._rows = {}


def too_many_unreadable(count: int, settings: ScoreConfig, example: str) -> DataError:
    """The error for more unreadable patches than allowed."""
    return DataError(
        f"{count} patches are unreadable, more than score.max_unreadable = {settings.max_unreadable:.0%} of "
        f"all; one of them: {example}"
    )


def count_scores(part: Part, settings: ScoreConfig) -> dict[str, int]:
    """Shards, patches and unreadable patches of a part whose shards are all scored.

    Raises:
        DataError: Shards are missing, or too many patches are unreadable.
    """
    shards, patches, unreadable, example = require_scores(part), 0, 0, ""
    for path in shards:
        errors = read_shard(path, ["error"])["error"].drop_null()
        patches, unreadable = patches + _length(path), unreadable + len(errors)
        example = example or (str(errors[0]) if len(errors) else "")
    if unreadable > allowed_unreadable(patches, settings.max_unreadable):
        raise too_many_unreadable(unreadable, settings, example)
    return {"shards": len(shards), "patches": patches, "unreadable": unreadable}


def require_scores(part: Part) -> list[Path]:
    """The shards of all scores.

    Raises:
        DataError: Some are missing.
    """
    shards, expected = part.shards("scores"), len(require_patches(part))
    if len(shards) != expected:
        raise DataError(
            f"{part.path / 'scores'}: {expected - len(shards)} of {expected} shards are missing; run the "
            "score step again, which continues with them"
        )
    return shards
