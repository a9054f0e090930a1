"""Loaders and collate functions: FixMatch batches, batches of several tasks, validation."""

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from s5.data.augmentation import NEUTRAL, derangement, sample_rng
from s5.data.image_io import init_worker
from s5.data.sampler import MultiSourceSampler, ValidationSampler
from s5.data.sources import LabeledImages, MultiSourceDataset, Source, UnlabeledImages, ValidationImages
from s5.data.splits import Split
from s5.data.worker_pool import Loader
from s5.launch import Launch

PARTNER_STREAM = 1 << 20  # source index for the random parameters of a batch, above that of any source


class FixMatchCollate:
    """Stack samples, labeled ones first, and draw CutMix partners within the batch.

    Args:
        seed: Seed of the run; the partners depend on it and on the position of the first unlabeled sample.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate labeled and unlabeled samples.

        Returns:
            `images` (L + U, 3, S, S) uint8 in channels-last memory, `labels` (L, S, S) uint8, `names`
            (L + U), `skipped` list of (name, reason); with unlabeled samples also `padding` (U, S, S)
            bool, `views` with `photometric` (V, U, 6), `boxes` (V, U, 4) and `partner` (V, U), and
            `stored` (U, S, S) if there are stored pseudo-labels.
        """
        labeled = [sample for sample in samples if "label" in sample]
        unlabeled = [sample for sample in samples if "label" not in sample]
        samples = labeled + unlabeled
        batch: dict[str, Any] = {
            "images": _stack(samples, "image").permute(0, 3, 1, 2),
            "labels": _stack(labeled, "label"),
            "names": [sample["name"] for sample in samples],
            "skipped": [entry for sample in unlabeled for entry in sample["skipped"]],
        }
        if unlabeled:
            batch["padding"] = _stack(unlabeled, "padding").bool()
            batch["views"] = self._views(unlabeled)
            if "stored" in unlabeled[0]:
                batch["stored"] = _stack(unlabeled, "stored")
        return batch

    def _views(self, unlabeled: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        first, count = unlabeled[0], len(unlabeled)
        rng = sample_rng(self.seed, PARTNER_STREAM + first["source"], first["position"])
        views = {key: np.stack([s[key] for s in unlabeled], axis=1) for key in ("photometric", "boxes")}
        views["partner"] = np.stack([derangement(rng, count) for _ in views["boxes"]])
        if count == 1:
            views["boxes"][:] = 0  # a single image has no partner to paste from
        return {key: torch.from_numpy(value) for key, value in views.items()}


def _stack(samples: list[dict[str, Any]], key: str) -> torch.Tensor:
    return torch.from_numpy(np.stack([sample[key] for sample in samples]))


class TasksCollate:
    """Stack labeled samples of several tasks, ordered by task.

    Args:
        tasks: Names of the tasks, in the order of the sources.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = list(tasks)

    def __call__(self, samples: list[dict[str, Any] | None]) -> dict[str, Any]:
        """Collate samples; None stands for samples of tasks that have not started.

        Returns:
            `images` (B, 3, S, S) uint8 in channels-last memory, `labels` (B, S, S) uint8, `photometric`
            (B, 6) float32, neutral where a task has no photometric augmentation, `counts`: images of each
            task by name, in the order of the batch, `names` (B), `skipped`: an empty list.
        """
        present = [sample for sample in samples if sample is not None]
        sources = [sample["source"] for sample in present]
        rows = [sample.get("photometric", NEUTRAL) for sample in present]
        return {
            "images": _stack(present, "image").permute(0, 3, 1, 2),
            "labels": _stack(present, "label"),
            "photometric": torch.from_numpy(np.stack(rows)),
            "counts": {task: sources.count(source) for source, task in enumerate(self.tasks)},
            "names": [sample["name"] for sample in present],
            "skipped": [],
        }


def collate_validation(samples: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Lists of `images` (3, H, W), `labels` (H, W), `names`, `tasks`: images may differ in size."""
    return {key: [sample[key] for sample in samples] for key in samples[0]}


PREFETCH = 4  # batches per worker
PREFETCH_WHOLE = 1  # full images are large


class TrainingData(NamedTuple):
    """A training loader with its sampler."""

    loader: DataLoader
    sampler: MultiSourceSampler
    unlabeled: int  # number of unlabeled images, 0 when there are none


def fixmatch_loader(
    labeled: LabeledImages,
    labeled_batch: int,
    unlabeled: UnlabeledImages | None,
    unlabeled_batch: int,
    seed: int,
    launch: Launch,
    workers: int,
) -> TrainingData:
    """Endless loader of FixMatch batches, labeled images first.

    Args:
        labeled: Labeled source.
        labeled_batch: Labeled images per step and process.
        unlabeled: Unlabeled source, or None to train only on labeled images.
        unlabeled_batch: Unlabeled images per step and process.
        seed: Seed of the order and the augmentation.
        launch: Rank of this process and number of processes.
        workers: Number of loader processes.

    Raises:
        DataError: A source has fewer images than one global step takes.
    """
    sources: list[Source] = [labeled] if unlabeled is None else [labeled, unlabeled]
    sizes = [labeled_batch, unlabeled_batch][: len(sources)]
    sampler = build_sampler(sources, sizes, seed, launch)
    metainfo = {"classes": labeled.table.classes, "palette": labeled.table.palette}
    loader = build_loader(sources, sampler, FixMatchCollate(seed), metainfo, launch, workers)
    return TrainingData(loader, sampler, 0 if unlabeled is None else len(unlabeled))


def tasks_loader(
    sources: Sequence[LabeledImages],
    batch_sizes: Sequence[int],
    start_epochs: Sequence[int],
    seed: int,
    launch: Launch,
    workers: int,
    epoch_steps: int | None = None,
) -> TrainingData:
    """Endless loader of batches of several tasks, ordered by task.

    Args:
        sources: Labeled images of each task.
        batch_sizes: Images of each per step and process.
        start_epochs: Epoch in which each task starts, counted from 0; no images of it are loaded before.
        seed: Seed of the order and the augmentation.
        launch: Rank of this process and number of processes.
        workers: Number of loader processes.
        epoch_steps: Steps of an epoch; default: until every image of the task that takes longest was drawn.

    Raises:
        DataError: A task has fewer images than one global step takes.
    """
    sampler = build_sampler(sources, batch_sizes, seed, launch)
    steps = epoch_steps or sampler.epoch_steps
    sampler.starts = [epoch * steps for epoch in start_epochs]
    metainfo = {"tasks": {source.name: source.table.classes for source in sources}}
    collate = TasksCollate([source.name for source in sources])
    return TrainingData(build_loader(sources, sampler, collate, metainfo, launch, workers), sampler, 0)


def validation_loader(images: Sequence[ValidationImages], launch: Launch, workers: int) -> DataLoader:
    """Loader of full validation images of one or several tasks, with batch size 1.

    Every image is in exactly one process. The sampler is a `s5.data.sampler.ValidationSampler`.
    """
    metainfo = {"tasks": {part.task: part.table.classes for part in images}}
    return whole_images_loader(
        {part.task: part for part in images}, collate_validation, metainfo, launch, workers
    )


def whole_images_loader(
    parts: Mapping[str, Dataset],
    collate: Callable[[list], dict[str, Any]],
    metainfo: dict[str, Any],
    launch: Launch,
    workers: int,
) -> DataLoader:
    """Loader of the images of several tasks with batch size 1; every image is in exactly one process."""
    dataset: ConcatDataset = ConcatDataset(parts.values())
    dataset.metainfo = metainfo  # type: ignore[attr-defined]  # mmengine saves it in checkpoints
    lengths = {task: len(part) for task, part in parts.items()}  # type: ignore[arg-type]
    return Loader(
        dataset,
        batch_size=1,
        sampler=ValidationSampler(lengths, launch.rank, launch.world_size),
        collate_fn=collate,
        **_worker_options(workers, PREFETCH_WHOLE),
    )


def build_sampler(
    sources: Sequence[Source], batch_sizes: Sequence[int], seed: int, launch: Launch
) -> MultiSourceSampler:
    """Create the sampler of batches with a fixed number of images of each source.

    Raises:
        DataError: A source has fewer images than one global step takes.
    """
    lengths = [len(source) for source in sources]
    names = [source.name for source in sources]
    return MultiSourceSampler(lengths, batch_sizes, seed, launch.rank, launch.world_size, names)


def build_loader(
    sources: Sequence[Source],
    sampler: MultiSourceSampler,
    collate: Callable[[list], dict[str, Any]],
    metainfo: dict[str, Any],
    launch: Launch,
    workers: int,
) -> DataLoader:
    """Create the endless loader of the sampler's batches; `metainfo` is saved in checkpoints."""
    return Loader(
        MultiSourceDataset(list(sources), sampler.seed, metainfo),
        batch_size=sampler.batch_size,
        sampler=sampler,
        collate_fn=collate,
        drop_last=True,
        pin_memory=launch.device.type == "cuda",
        **_worker_options(workers),
    )


def resolve_split(root: Path, split: Path) -> Split:
    """Open a split file by its path, relative to `root` unless absolute.

    Raises:
        SplitError: The file is missing, empty or malformed.
    """
    found = Split(split if split.is_absolute() else root / split, root)
    found.check_first_line()
    return found


def stop_workers(*loaders: DataLoader) -> None:
    """End the loaders' processes; the garbage collector would wait some seconds for each."""
    for loader in loaders:
        iterator = getattr(loader, "_iterator", None)  # PyTorch has no public API for this
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()


def _worker_options(workers: int, prefetch: int = PREFETCH) -> dict[str, Any]:
    if workers == 0:
        return {"num_workers": 0}
    _kill_workers_at_exit()
    return {
        "num_workers": workers,
        "prefetch_factor": prefetch,
        "persistent_workers": True,
        "worker_init_fn": _init_worker,
    }


def _init_worker(worker: int) -> None:
    init_worker()
    torch.set_num_threads(1)
    # A signal to the process group must not kill the workers while the main process is about to save.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@cache
def _kill_workers_at_exit() -> None:
    # Registered after multiprocessing's own handler, so it runs first; that one would wait for workers that
    # ignore its SIGTERM.
    atexit.register(_kill_children)


def _kill_children() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would report failed workers
    for child in multiprocessing.active_children():
        child.kill()
