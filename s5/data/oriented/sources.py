"""Training and validation images of oriented detection, letterboxed to a square."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from s5.data.image_io import read_image_with_valid
from s5.data.loaders import TrainingData, build_loader, build_sampler, whole_images_loader
from s5.data.oriented.annotations import Objects
from s5.data.oriented.geometry import enclosing_boxes, flip_polygons, share_inside, to_boxes
from s5.data.oriented.samples import AnnotatedImages, Folders, Lists
from s5.errors import DataError
from s5.launch import Launch

PADDING = (124, 116, 104)  # mean colour of ImageNet: close to 0 when normalised, like the published padding


def pad_image(image: np.ndarray, size: int) -> np.ndarray:
    """Pad an image (H, W, 3) at the right and bottom to uint8 (size, size, 3)."""
    height, width = image.shape[:2]
    square = np.empty((size, size, 3), np.uint8)
    square[:height, :width] = image
    square[height:] = square[:height, width:] = PADDING
    return square


def pad_valid(valid: np.ndarray, size: int) -> np.ndarray:
    """Pad a valid mask to bool (size, size); padding counts as data, to keep its colour."""
    padded = np.ones((size, size), bool)
    padded[: valid.shape[0], : valid.shape[1]] = valid
    return padded


def fit_image(image: np.ndarray, size: int) -> tuple[np.ndarray, float, tuple[int, int]]:
    """Letterbox an image (H, W, 3): resize it to fit a square, and pad it at the right and bottom.

    Returns:
        Image uint8 (size, size, 3); scale, exact for both axes; height and width of the image in the square.
    """
    scale = size / max(image.shape[:2])
    if min(image.shape[:2]) * scale < 1:  # keep at least one pixel
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    elif scale != 1:
        # By factor: with a rounded target size the axes would have slightly different scales.
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    return pad_image(image, size), scale, image.shape[:2]


MIN_INSIDE = 0.5


class OrientedImages:
    """Training source: letterboxed images with random flips.

    Args:
        images: Folder of the images (png, jpg, tif, bmp, webp), or several.
        annotations: Folder of the `.txt` (DOTA) or `.xml` (DIOR-R) files of the same names, or several.
        classes: Class names, in the order of the labels.
        size: Side of the square in pixels.
        flip: Flip horizontally and vertically, each with probability 0.5.
        split: One or several files that list the images to use, by name or path; default: all.
        keep_empty: Also train on images without objects.
        train_difficult: Train on difficult objects; otherwise they are ignored.
        leave_out: Classes in the annotations to skip.
        ignore_below: Ignore objects whose upright box has a side below this many pixels of the resized image.
        name: Name of the task, for messages.

    Raises:
        DataError: See `s5.data.oriented.samples.AnnotatedImages`; also if no image has an object to
            train on.
    """

    def __init__(
        self,
        images: Folders,
        annotations: Folders,
        classes: Sequence[str],
        *,
        size: int = 1024,
        flip: bool = True,
        split: Lists = None,
        keep_empty: bool = True,
        train_difficult: bool = False,
        leave_out: Sequence[str] = (),
        ignore_below: float = 0.0,
        name: str = "labeled",
    ) -> None:
        self.samples = AnnotatedImages(images, annotations, classes, split, leave_out)
        self.classes, self.size, self.flip, self.name = self.samples.classes, size, flip, name
        self.train_difficult, self.ignore_below = train_difficult, ignore_below
        filled = [index for index in range(len(self.samples)) if self._has_objects(index)]
        if not filled:
            raise DataError(
                f"{self.samples.folders}: all objects are difficult, so there is nothing to train on; set "
                "train_difficult"
            )
        self._kept = np.arange(len(self.samples)) if keep_empty else np.array(filled)

    def __len__(self) -> int:
        return len(self._kept)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Load an image; all random parameters come from `rng`.

        Returns:
            `image` uint8 (S, S, 3), padded right and bottom; `boxes` float32 (n, 5), le90, in its pixels;
            `labels` int64 (n,); `ignored` float32 (m, 5), boxes of ignored objects; `name`;
            `shape` (height, width) of the resized image; `original` (height, width) of the file;
            `scale`, pixels of the resized image per pixel of the file; `valid` bool tensor (H, W), false
            where the file has no data, None if it has data everywhere.

        Raises:
            ImageError: The image cannot be read.
        """
        horizontal, vertical = (bool(value) for value in rng.random(2) < 0.5) if self.flip else (False, False)
        ignoring = self.train_difficult, self.ignore_below
        return _load(self.samples, int(self._kept[index]), self.size, *ignoring, horizontal, vertical)

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width of an image file, from its header."""
        return self.samples.size(int(self._kept[index]))

    def _has_objects(self, index: int) -> bool:
        difficult = self.samples.objects(index).difficult
        return len(difficult) > 0 and (self.train_difficult or not difficult.all())


class OrientedValidation(Dataset):
    """Letterboxed validation images of a task with all their objects.

    Args:
        images: See `OrientedImages`.
        annotations: See `OrientedImages`; None for images without ground truth.
        classes: Class names, in the order of the labels.
        task: Name of the task.
        size: Side of the square in pixels.
        split: See `OrientedImages`.
        leave_out: See `OrientedImages`.

    Raises:
        DataError: See `s5.data.oriented.samples.AnnotatedImages`.
    """

    def __init__(
        self,
        images: Folders,
        annotations: Folders | None,
        classes: Sequence[str],
        task: str,
        *,
        size: int = 1024,
        split: Lists = None,
        leave_out: Sequence[str] = (),
    ) -> None:
        self.samples = AnnotatedImages(images, annotations, classes, split, leave_out)
        self.classes, self.task, self.size = self.samples.classes, task, size

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Like `OrientedImages.load` without flips; also `objects`, in pixels of the file, and `task`."""
        item = _load(self.samples, index, self.size)
        return {**item, "objects": self.samples.objects(index), "task": self.task}


def _load(
    samples: AnnotatedImages,
    index: int,
    size: int,
    train_difficult: bool = False,
    ignore_below: float = 0.0,
    horizontal: bool = False,
    vertical: bool = False,
) -> dict[str, Any]:
    image, valid = read_image_with_valid(samples.path(index))
    original = image.shape[:2]
    square, scale, (height, width) = fit_image(image, size)
    if horizontal or vertical:
        pixels = square[:height, :width]
        pixels[:] = pixels[:: -1 if vertical else 1, :: -1 if horizontal else 1].copy()
    trained, ignored = _sorted_out(samples.objects(index), original, train_difficult, ignore_below / scale)
    boxes, others = (
        to_boxes(flip_polygons(part.polygons * np.float32(scale), height, width, horizontal, vertical))
        for part in (trained, ignored)
    )
    return {
        "image": square,
        "boxes": boxes,
        "labels": trained.labels,
        "ignored": others,
        "name": samples.name(index),
        "shape": (height, width),
        "original": original,
        "scale": scale,
        "valid": None if valid is None else torch.from_numpy(valid),
    }


def _sorted_out(
    objects: Objects, shape: tuple[int, int], train_difficult: bool, ignore_below: float
) -> tuple[Objects, Objects]:
    """Objects to train on, and objects to ignore; `ignore_below` is in pixels of the file."""
    inside = share_inside(objects.polygons, (0, 0, shape[1], shape[0]))
    trained = inside >= MIN_INSIDE
    if not train_difficult:
        trained &= ~objects.difficult
    x1, y1, x2, y2 = enclosing_boxes(objects.polygons).T
    trained &= np.minimum(x2 - x1, y2 - y1) >= ignore_below
    return objects.select(trained), objects.select(~trained & (inside > 0))


class ObjectsCollate:
    """Stack images of several tasks, ordered by task; boxes stay in lists, because their numbers differ.

    Args:
        tasks: Names of the tasks, in the order of the model.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = list(tasks)

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate samples.

        Returns:
            `images` (B, 3, S, S) uint8 in channels-last memory; `counts`: images of each task by
            name, in the order of the batch; lists
            `boxes` (n, 5), `labels` (n), `ignored` (m, 5), `shapes` (height, width without padding),
            `scales`, `names`; `skipped`: an empty list. For validation images also `name`, `task`,
            `objects`, in pixels of the files, and `valid`, where the files have data.
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

    def _counts(self, samples: list[dict[str, Any]]) -> dict[str, int]:
        present = [sample["task"] if "task" in sample else self.tasks[sample["source"]] for sample in samples]
        return {task: present.count(task) for task in self.tasks}


def objects_loader(
    sources: Sequence[OrientedImages],
    batch_sizes: Sequence[int],
    seed: int,
    launch: Launch,
    workers: int,
    about: Mapping[str, Any] | None = None,
) -> TrainingData:
    """Endless loader of batches of several tasks, ordered by task.

    Args:
        sources: Training images of each task.
        batch_sizes: Images of each per step and process.
        seed: Seed of the order and the flips.
        launch: Rank of this process and number of processes.
        workers: Number of loader processes.
        about: Metadata for checkpoints, besides the classes of the tasks.

    Raises:
        DataError: A task has fewer images than one global step takes.
    """
    sampler = build_sampler(sources, batch_sizes, seed, launch)
    collate = ObjectsCollate([source.name for source in sources])
    metainfo = {"tasks": {source.name: source.classes for source in sources}, **(about or {})}
    return TrainingData(build_loader(sources, sampler, collate, metainfo, launch, workers), sampler, 0)


def objects_validation_loader(
    parts: Sequence[OrientedValidation], launch: Launch, workers: int
) -> DataLoader:
    """Loader of the validation images of one or several tasks, with batch size 1."""
    images = {part.task: part for part in parts}
    metainfo = {"tasks": {task: part.classes for task, part in images.items()}}
    return whole_images_loader(images, ObjectsCollate(list(images)), metainfo, launch, workers)
