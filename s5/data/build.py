"""Loaders of FixMatch training and of validation."""

import atexit
import multiprocessing
import signal
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.dataset import DefaultSampler
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from s5.data.collate import FixMatchCollate, collate_validation
from s5.data.datasets import LabeledImages, MultiSourceDataset, Source, UnlabeledImages, ValidationImages
from s5.data.image_io import init_worker
from s5.data.labels import LabelTable
from s5.data.sampler import MultiSourceSampler
from s5.data.splits import Split

PREFETCH = 4  # batches per worker


class TrainingData(NamedTuple):
    """A training loader and what the run has to know of it."""

    loader: DataLoader
    sampler: MultiSourceSampler
    unlabeled: int  # number of unlabeled images, 0 when there are none


def fixmatch_loader(
    labeled: LabeledImages,
    labeled_batch: int,
    unlabeled: UnlabeledImages | None,
    unlabeled_batch: int,
    *,
    seed: int,
    rank: int,
    world_size: int,
    workers: int,
    pin_memory: bool,
) -> TrainingData:
    """Endless loader of FixMatch batches, labeled images first.

    Args:
        labeled: labeled source.
        labeled_batch: labeled images per step and process.
        unlabeled: unlabeled source, or None to train on labeled images alone.
        unlabeled_batch: unlabeled images per step and process.
        seed: seed of order and augmentation.
        rank: this process.
        world_size: number of processes.
        workers: loader processes.
        pin_memory: page-locked batches, for copies to a GPU.

    Raises:
        DataError: a source has fewer images than one global step takes.
    """
    sources: list[Source] = [labeled]
    counts = [labeled_batch]
    if unlabeled is not None:
        sources.append(unlabeled)
        counts.append(unlabeled_batch)
    sampler = MultiSourceSampler(
        [len(source) for source in sources],
        counts,
        seed,
        rank,
        world_size,
        [source.name for source in sources],
    )
    table = labeled.table
    dataset = MultiSourceDataset(sources, seed, {"classes": table.classes, "palette": table.palette})
    loader: DataLoader = DataLoader(
        dataset,
        batch_size=sampler.batch_size,
        sampler=sampler,
        collate_fn=FixMatchCollate(seed),
        drop_last=True,
        pin_memory=pin_memory,
        **_worker_options(workers),
    )
    return TrainingData(loader, sampler, 0 if unlabeled is None else len(unlabeled))


def validation_loader(split: Split, table: LabelTable, workers: int) -> DataLoader:
    """Loader of whole validation images, one a batch; every image is in exactly one process."""
    dataset = ValidationImages(split, table, {"classes": table.classes, "palette": table.palette})
    sampler = DefaultSampler(dataset, shuffle=False, round_up=False)
    return DataLoader(
        dataset, batch_size=1, sampler=sampler, collate_fn=collate_validation, **_worker_options(workers)
    )


def resolve_split(root: Path, split: Path) -> Split:
    """A split file by its path, relative to ``root`` unless absolute."""
    return Split(split if split.is_absolute() else root / split, root)


def stop_workers(*loaders: DataLoader) -> None:
    """End the loaders' processes. Left to the garbage collector, each would be waited for some seconds."""
    for loader in loaders:
        iterator = getattr(loader, "_iterator", None)  # PyTorch has no public way
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()


def _worker_options(workers: int) -> dict[str, Any]:
    if workers == 0:
        return {"num_workers": 0}
    _kill_workers_at_exit()
    return {
        "num_workers": workers,
        "prefetch_factor": PREFETCH,
        "persistent_workers": True,
        "worker_init_fn": _init_worker,
    }


def _init_worker(worker: int) -> None:
    init_worker()
    torch.set_num_threads(1)
    # A signal to the whole process group must not take the workers from a main process that is about to save.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@cache
def _kill_workers_at_exit() -> None:
    # Registered after multiprocessing's own handler and so run before it, which would wait for workers that
    # ignore its SIGTERM.
    atexit.register(_kill_children)


def _kill_children() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would report the workers as failed
    for child in multiprocessing.active_children():
        child.kill()
