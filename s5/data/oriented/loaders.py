"""Loaders of training and of validation images with oriented boxes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from s5.data.build import Placement, TrainingData, build_loader, build_sampler, whole_images_loader
from s5.data.oriented.dataset import OrientedImages, OrientedValidation


class ObjectsCollate:
    """Stacks images of several tasks, ordered by task; boxes stay lists, as their number differs.

    Args:
        tasks: names of the tasks, in the order of the model.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = list(tasks)

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch.

        Returns:
            ``images`` (B, 3, S, S) uint8 in channels-last memory; ``counts``: images of each task; lists
            ``boxes`` (n, 5), ``labels`` (n), ``ignored`` (m, 5), ``shapes`` (height, width without padding),
            ``scales``, ``names``; ``skipped``: an empty list. Of validation images also ``name``, ``task``,
            ``objects``, in pixels of the files, and ``valid``, where the files have data.
        """
        images = np.stack([sample["image"] for sample in samples])
        batch = {
            "images": torch.from_numpy(images).permute(0, 3, 1, 2),
            "counts": self._counts(samples),
            **{f"{key}s": [sample[key] for sample in samples] for key in ("shape", "scale", "name")},
            "skipped": [],
        }
        for key in ("boxes", "labels", "ignored"):
            batch[key] = [torch.from_numpy(sample[key]) for sample in samples]
        if "task" in samples[0]:
            keys = ("name", "task", "objects", "valid")
            batch |= {key: [sample[key] for sample in samples] for key in keys}
        return batch

    def _counts(self, samples: list[dict[str, Any]]) -> list[int]:
        if "task" in samples[0]:
            present = [self.tasks.index(sample["task"]) for sample in samples]
        else:
            present = [sample["source"] for sample in samples]
        return [present.count(task) for task in range(len(self.tasks))]


def objects_loader(
    sources: Sequence[OrientedImages],
    batch_sizes: Sequence[int],
    seed: int,
    placement: Placement,
    about: Mapping[str, Any] | None = None,
) -> TrainingData:
    """Endless loader of batches of several tasks, ordered by task.

    Args:
        sources: training images of each task.
        batch_sizes: images of each per step and process.
        seed: seed of order and mirroring.
        placement: this process's part.
        about: what checkpoints say of the run beside the classes of its tasks.

    Raises:
        DataError: a task has fewer images than one global step takes.
    """
    sampler = build_sampler(sources, batch_sizes, seed, placement)
    collate = ObjectsCollate([source.name for source in sources])
    metainfo = {"tasks": {source.name: source.classes for source in sources}, **(about or {})}
    return TrainingData(build_loader(sources, sampler, collate, metainfo, placement), sampler, 0)


def objects_validation_loader(parts: Sequence[OrientedValidation], placement: Placement) -> DataLoader:
    """Loader of validation images of one or several tasks, one a batch."""
    images = {part.task: part for part in parts}
    metainfo = {"tasks": {task: part.classes for task, part in images.items()}}
    return whole_images_loader(images, ObjectsCollate(list(images)), metainfo, placement)
