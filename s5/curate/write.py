"""Step 5: the split of the chosen patches, slow windows as files, pseudo-labels, summary and report."""

import json
import logging
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from s5.checkpoints.reading import find_checkpoint
from s5.command import Progress
from s5.curate.config import CurateConfig
from s5.curate.cut import FOLDER, cut_patch, cut_slow_windows
from s5.curate.folder import (
    LABELED,
    POOL,
    Run,
    begin,
    counts_of,
    database,
    index_shard_size,
    is_complete,
    pattern,
    read_shard,
    settings_of,
)
from s5.curate.report import write_report
from s5.curate.score import sha256
from s5.curate.select import TABLE
from s5.data.files import write_bytes
from s5.data.label_table import LabelTable
from s5.data.splits import format_line, write_split
from s5.errors import PrepareError
from s5.segmentation.trained import spec_of_checkpoint

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

logger = logging.getLogger(__name__)

PACKAGES = (
    "s5",
    "torch",
    "timm",
    "numpy",
    "opencv-python-headless",
    "rasterio",
    "duckdb",
    "pyarrow",
    "faiss-cpu",
    "imagehash",
)
MASKS_PER_FOLDER = 1000
ROWS = 10_000  # fetched from the table at a time
STEPS_WITH_COUNTS = ("index", "scores", "clusters", "select")


def write(cfg: CurateConfig, run: Run) -> None:
    """Write the split, the pseudo-labels if they were kept, the summary and the report.

    Raises:
        ImageError: A window that is to be cut cannot be read.
        PrepareError: The select step is not complete for these settings, there are no pseudo-labels, or the
            checkpoint is another one.
    """
    root, pool = cfg.data_root.absolute(), run.part(POOL)
    selection = counts_of(pool.state("select"), "select")
    begin(pool.state("select"), selection_settings(cfg, run), "selection")
    if cfg.score.pseudo_labels and not settings_of(pool.state("scores"))["pseudo_labels"]:
        raise PrepareError(
            f"{pool.path / 'scores'}: made without pseudo-labels. Delete this folder and "
            f"{run.path / LABELED / 'scores'}, and run the steps from score again with score.pseudo_labels"
        )
    checkpoint = find_checkpoint(cfg.checkpoint)
    if sha256(checkpoint) != settings_of(pool.state("scores"))["checkpoint"]:
        raise PrepareError(
            f"{checkpoint}: the patches in {run.path} were scored by another checkpoint; name that one, or "
            "choose another out"
        )
    total = selection["reasons"].get("chosen", 0)
    masks = cfg.score.pseudo_labels
    size, folder = index_shard_size(pool), run.path.absolute() / "pseudo_labels"
    with database(run.path) as connection:
        cut = cut_slow_windows(cfg.write, run, root, _chosen(connection, run), total)
        if masks:
            _write_masks(run, folder, _chosen(connection, run), total)

        def line(patch: int, name: str) -> str:
            path = cut_patch(pool, patch, patch // size) if cut else None
            image = name if path is None else _below(path.absolute(), root)
            return format_line(image, _below(_mask_path(folder, patch), root) if masks else None)

        write_split(run.split(cfg.name), (line(*row) for row in _chosen_rows(connection, run, "name, patch")))
    table = _label_table(cfg)
    summary = _summary(cfg, run, selection, table)
    write_bytes(run.summary, json.dumps(summary, indent=2, ensure_ascii=False).encode())
    report = write_report(run.path, root, summary, mask_of=_MaskReader(run, table) if masks else None)
    logger.info("write: %d patches in %s; %s", total, run.split(cfg.name), report)


def selection_settings(cfg: CurateConfig, run: Run) -> dict[str, Any]:
    """What a selection depends on."""
    return {**asdict(cfg.select), "clusters": settings_of(run.part(POOL).state("clusters"))}


def _chosen(connection: "DuckDBPyConnection", run: Run) -> Iterator[int]:
    """Numbers of the chosen patches, ascending."""
    return (patch for patch, _ in _chosen_rows(connection, run, "patch"))


def _chosen_rows(connection: "DuckDBPyConnection", run: Run, order: str) -> Iterator[tuple[int, str]]:
    """Number and name of the chosen patches; one at a time of a connection."""
    query = f"select patch, name from read_parquet(?) where reason = 'chosen' order by {order}"
    result = connection.execute(query, [pattern(run.path / TABLE)])
    while rows := result.fetchmany(ROWS):
        yield from rows


def _write_masks(run: Run, folder: Path, chosen: Iterator[int], total: int) -> None:
    """Write the pseudo-labels of the chosen patches in place of those of an earlier choice."""
    shutil.rmtree(folder, ignore_errors=True)
    pool = run.part(POOL)
    size = index_shard_size(pool)
    with Progress(total, "write", "pseudo-labels", logger) as progress:
        for shard, patches in groupby(chosen, lambda patch: patch // size):
            masks = read_shard(pool.shard("masks", shard), ["mask"])["mask"]
            for patch in patches:
                write_bytes(_mask_path(folder, patch), masks[patch % size].as_py())
                progress.update()


def _mask_path(folder: Path, patch: int) -> Path:
    return folder / f"{patch // MASKS_PER_FOLDER:06d}" / f"{patch:09d}.png"


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else os.fspath(path)


def _label_table(cfg: CurateConfig) -> LabelTable:
    spec = spec_of_checkpoint(find_checkpoint(cfg.checkpoint), None)
    assert spec is not None  # the score step needs it, too
    (table,) = spec.only([] if cfg.score.task is None else [cfg.score.task]).tables.values()
    return table


class _MaskReader:
    """Pseudo-labels (H, W) uint8 train ids by patch, for the report."""

    def __init__(self, run: Run, table: LabelTable) -> None:
        self.pool, self.table = run.part(POOL), table
        self._size = index_shard_size(self.pool)

    def __call__(self, patch: int) -> np.ndarray | None:
        path = self.pool.shard("masks", patch // self._size)
        data = read_shard(path, ["mask"])["mask"][patch % self._size].as_py()
        if data is None:
            return None
        values = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
        return self.table.encode(values, path)


def _summary(cfg: CurateConfig, run: Run, selection: dict[str, Any], table: LabelTable) -> dict[str, Any]:
    parts = {"pool": run.part(POOL), "labeled": run.part(LABELED)}
    counts = {
        f"{step} ({name})" if step in ("index", "scores") else step: counts_of(part.state(step), step)
        for step in STEPS_WITH_COUNTS
        for name, part in parts.items()
        if name == "pool" or step in ("index", "scores")
    }
    if is_complete(parts["pool"].state(FOLDER)):
        counts["write"] = counts_of(parts["pool"].state(FOLDER), "write")
    scored = settings_of(parts["pool"].state("scores"))
    return {
        "title": cfg.name,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": cfg.model_dump(mode="json"),
        "checkpoint": {"path": str(cfg.checkpoint), "sha256": scored["checkpoint"]},
        "precision": scored["precision"],
        "versions": {"python": platform.python_version(), **_versions()},
        "counts": counts,
        "settings": {
            f"{step} ({name})": settings_of(part.state(step))
            for name, part in parts.items()
            for step in STEPS_WITH_COUNTS
            if part.state(step).exists()
        },
        "classes": list(table.classes),
        "palette": [list(color) for color in table.palette],
        **{key: selection[key] for key in ("clusters", "duplicates", "cut")},
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
