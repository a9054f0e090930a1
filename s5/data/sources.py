"""Training sources and the validation dataset.

Workers decode and apply geometry on uint8. Photometric parameters are drawn here, and applied in batches on
the model's device (`s5.ops.photometric`, `s5.ops.cutmix`).
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from s5.data.augmentation import (
    Photometric,
    StrongAugmentation,
    draw_cutmix_box,
    draw_photometric,
    sample_rng,
)
from s5.data.crops import CropParams, crop_image, crop_mask, draw_crop, valid_mask
from s5.data.image_io import read_image_with_valid
from s5.data.label_table import IGNORE, LabelTable
from s5.data.masks import read_ids, require_same_size
from s5.data.sampler import Draw
from s5.data.splits import Sample, Split
from s5.errors import DataError, ImageError

MAX_SUBSTITUTES = 20


@dataclass(frozen=True)
class WeakAugmentation:
    """The weak view: random scale, crop, rotation by multiples of 90 degrees, flips (paper, S4P section).

    Attributes:
        size: Side of the square crop in pixels.
        scale: Range of the scale factor before the crop.
        flip: Flip horizontally and vertically, each with probability 0.5.
        rotate: Rotate by a random multiple of 90 degrees.
    """

    size: int = 512
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    rotate: bool = True

    def draw(self, rng: np.random.Generator, image: np.ndarray) -> CropParams:
        """Draw the crop of `image` (H, W, 3)."""
        height, width = image.shape[:2]
        return draw_crop(rng, height, width, self.size, self.scale, self.flip, self.rotate)


class Source(Protocol):
    """Training images of one kind: labeled, unlabeled, or those of a task."""

    name: str

    def __len__(self) -> int: ...

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Load image `index`; all random parameters come from `rng`."""
        ...


def read_labeled(sample: Sample, table: LabelTable) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Read an image and its mask, which is ignored where the image has no data.

    Returns:
        Image (H, W, 3); train ids (H, W); valid mask bool (H, W), false where the image has no data, or None
        if it has data everywhere.

    Raises:
        DataError: The line has no mask, a file cannot be read, sizes differ, or a value or colour is outside
            the table.
    """
    if sample.mask is None:
        raise DataError(f"{sample.name}: the line of the split has no mask; labeled lines are `image mask`")
    image, valid = read_image_with_valid(sample.image)
    label = read_ids(sample.mask, table)
    require_same_size(sample.mask, label.shape, sample.image, image.shape[:2])
    if valid is not None:
        label = np.where(valid, label, np.uint8(IGNORE))
    return image, label, valid


class LabeledImages:
    """Labeled training images: weak view and train ids (255: padding, ignored, no data).

    Args:
        split: The images and their masks.
        table: Label table of the masks.
        weak: Geometry of the weak view.
        name: Name for messages.
        photometric: Ranges of the photometric augmentation, which the model applies; None disables it.
    """

    def __init__(
        self,
        split: Split,
        table: LabelTable,
        weak: WeakAugmentation,
        name: str = "labeled",
        photometric: Photometric | None = None,
    ) -> None:
        self.split, self.table, self.weak, self.name = split, table, weak, name
        self.photometric = photometric

    def __len__(self) -> int:
        return len(self.split)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """`image` (S, S, 3) uint8, `label` (S, S) uint8, `name`, and the `photometric` row if any."""
        sample = self.split.sample(index)
        image, label, _ = read_labeled(sample, self.table)
        crop = self.weak.draw(rng, image)
        item = {"image": crop_image(image, crop), "label": crop_mask(label, crop), "name": sample.name}
        if self.photometric is not None:
            item["photometric"] = draw_photometric(rng, self.photometric)
        return item


class UnlabeledImages:
    """Unlabeled training images: weak view, padding mask, and parameters of the strong views.

    Pixels without data are treated as padding.

    An unreadable file is replaced by another image, drawn from the same generator. The sample lists the
    skipped files for the main process, which logs them and limits their share.

    Args:
        split: The images; with `stored`, the second path of every line is a mask of pseudo-labels.
        weak: Geometry of the weak view.
        strong: Number of strong views and ranges of their parameters.
        stored: Label table of stored pseudo-labels (255 = no pseudo-label), or None.
    """

    name = "unlabeled"  # for messages

    def __init__(
        self,
        split: Split,
        weak: WeakAugmentation,
        strong: StrongAugmentation,
        stored: LabelTable | None = None,
    ) -> None:
        self.split, self.weak, self.strong = split, weak, strong
        self.stored = stored

    def __len__(self) -> int:
        return len(self.split)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Load an image.

        Returns:
            `image` (S, S, 3) uint8; `padding` (S, S) uint8, 0 or 255; `photometric` (V, 6) and `boxes` (V,
            4), the parameters of the strong views; `name`; `skipped`, a list of (name, reason); `stored` (S,
            S) if there are stored pseudo-labels.

        Raises:
            DataError: `MAX_SUBSTITUTES` images in a row cannot be read.
        """
        image, stored, valid, sample, skipped = self._read(index, rng)
        crop = self.weak.draw(rng, image)
        empty = None if valid is None else np.where(valid, np.uint8(0), np.uint8(IGNORE))
        views = range(self.strong.views)
        item = {
            "image": crop_image(image, crop),
            "padding": valid_mask(crop) if empty is None else crop_mask(empty, crop),
            "photometric": np.stack([draw_photometric(rng, self.strong) for _ in views]),
            "boxes": np.stack([draw_cutmix_box(rng, self.weak.size, self.strong) for _ in views]),
            "name": sample.name,
            "skipped": skipped,
        }
        if stored is not None:
            item["stored"] = crop_mask(stored, crop)
        return item

    def _read(
        self, index: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, Sample, list[tuple[str, str]]]:
        skipped: list[tuple[str, str]] = []
        for _ in range(MAX_SUBSTITUTES):
            sample = self.split.sample(index)
            try:
                if self.stored is not None:
                    return *read_labeled(sample, self.stored), sample, skipped
                image, valid = read_image_with_valid(sample.image)
                return image, None, valid, sample, skipped
            except ImageError as error:
                skipped.append((sample.name, str(error)))
                index = int(rng.integers(len(self.split)))
        raise DataError(
            f"{self.split.path}: {MAX_SUBSTITUTES} images in a row cannot be read, the last: {skipped[-1][1]}"
        )


class MultiSourceDataset(Dataset):
    """Several training sources, indexed by `s5.data.sampler.Draw`; None gives None."""

    def __init__(self, sources: list[Source], seed: int, metainfo: dict[str, Any] | None = None) -> None:
        self.sources, self.seed = sources, seed
        self.metainfo = metainfo or {}

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, draw: Draw | None) -> dict[str, Any] | None:
        if draw is None:
            return None
        rng = sample_rng(self.seed, draw.source, draw.position)
        item = self.sources[draw.source].load(draw.item, rng)
        return {**item, "source": draw.source, "position": draw.position}


class ValidationImages(Dataset):
    """Full validation images of a task with their train ids."""

    def __init__(self, split: Split, table: LabelTable, task: str) -> None:
        self.split, self.table, self.task = split, table, task

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.split.sample(index)
        image, label, _ = read_labeled(sample, self.table)
        return {
            "images": torch.from_numpy(image).permute(2, 0, 1),
            "labels": torch.from_numpy(label),
            "names": sample.name,
            "tasks": self.task,
        }
