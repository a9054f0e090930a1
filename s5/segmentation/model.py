"""A segmentor with everything around it that training and evaluation share.

It normalises uint8 images on the device, chooses the arithmetic, and predicts whole images. Training methods
subclass it and add a loss.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from s5.compat.precision import autocast
from s5.segmentation.segmentor import SegHead, Segmentor
from s5.segmentation.tta import Tta, augmented
from s5.segmentation.windows import Inference, Rows, most_probable, predict_bands, rows_of
from s5.training.model import TaskModel

GPU_WINDOWS = 4  # in one pass; on a CPU more than one take memory and no less time


class SegmentationModel(TaskModel):
    """mmengine model around a :class:`~s5.segmentation.segmentor.Segmentor`.

    Args:
        segmentor: The network; images in, logits out.
        inference: How images of each task are predicted.
        dtype: Autocast type of the matrix work (see :func:`s5.compat.precision.resolve_precision`);
            None is float32.
        tta: Views that predictions are averaged over; None predicts the image as it is.
    """

    def __init__(
        self,
        segmentor: Segmentor,
        inference: Mapping[str, Inference],
        dtype: torch.dtype | None = None,
        tta: Tta | None = None,
    ) -> None:
        super().__init__(dtype)
        self.segmentor = segmentor
        self.inference = dict(inference)
        self.tta = tta

    @property
    def network(self) -> Segmentor:
        """What is saved and loaded as weights."""
        return self.segmentor

    def logits(self, images: Tensor, network: Segmentor | None = None, float32: bool = False) -> Tensor:
        """Float32 logits (B, K, H, W) of images (B, 3, H, W) in [0, 1]; `float32`: without autocast."""
        network = network or self.segmentor
        with autocast(self.device, None if float32 else self.dtype):
            return network(self._prepare(images)).float()

    def probabilities(self, images: Tensor, tasks: Sequence[str]) -> Tensor:
        """Float32 probabilities (B, sum of K, H, W) of several tasks, from one pass of the encoder.

        Args:
            images: (B, 3, H, W) on the device, uint8 or in [0, 1].
            tasks: Whose classes follow each other in the result.
        """
        with self.autocast():
            logits = self.segmentor.forward_all(self._prepare(images), tasks)
        return torch.cat([logits[task].float().softmax(1) for task in tasks], dim=1)

    def predict(self, image: Tensor, task: str) -> Tensor:
        """Train ids (H, W) uint8, on the device, of one uint8 image (3, H, W) of any size."""
        return self.predict_tasks(image, [task])[task]

    def predict_tasks(self, image: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Train ids (H, W) uint8, on the device, of one image by task."""
        parts: dict[str, list[Tensor]] = {task: [] for task in tasks}
        with self.autocast():
            for _, bands in self.predict_rows(rows_of(image), tasks):
                for task, band in bands.items():
                    parts[task].append(band)
        return {task: torch.cat(bands) for task, bands in parts.items()}

    def predict_rows(self, rows: Rows, tasks: Sequence[str]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Predict an image of which only some rows are in memory at a time.

        Tasks that are predicted alike share the passes of the encoder; those predicted in another way come
        after them, again from the top.

        Yields:
            First row of a band, and its train ids (rows, W) uint8, on the device, by task; the bands of a
            task from top to bottom.
        """
        for top, group, band in self._bands(rows, tasks):
            yield top, dict(zip(group, most_probable(band, self._num_classes(group)), strict=True))

    def predict_probabilities(
        self, rows: Rows, tasks: Sequence[str]
    ) -> Iterator[tuple[int, dict[str, tuple[Tensor, Tensor]]]]:
        """As :meth:`predict_rows`, with the probabilities (K, rows, W) after the train ids.

        They are on the device and overwritten when the next band is asked for.
        """
        for top, group, band in self._bands(rows, tasks):
            classes = self._num_classes(group)
            parts = zip(most_probable(band, classes), band.split(classes), strict=True)
            yield top, dict(zip(group, parts, strict=True))

    def _bands(self, rows: Rows, tasks: Sequence[str]) -> Iterator[tuple[int, list[str], Tensor]]:
        """First row, tasks and probabilities (sum of K, rows, W) of each band."""
        windows = GPU_WINDOWS if self.device.type == "cuda" else 1
        for how, group in self._predicted_alike(tasks).items():
            network = augmented(partial(self.probabilities, tasks=group), self.tta)
            for top, band in predict_bands(network, rows, how, self.device, windows):
                yield top, group, band

    def _num_classes(self, tasks: Sequence[str]) -> list[int]:
        return [cast(SegHead, self.segmentor.heads[task]).num_classes for task in tasks]

    def _predicted_alike(self, tasks: Sequence[str]) -> dict[Inference, list[str]]:
        groups: dict[Inference, list[str]] = {}
        for task in tasks:
            groups.setdefault(self.inference[task], []).append(task)
        return groups

    def forward(
        self, images: Tensor | Sequence[Tensor], mode: str = "predict", **batch: Any
    ) -> dict[str, Tensor] | list[Tensor]:
        """Losses of a training batch, or train ids of whole images.

        Args:
            images: `loss`: (B, 3, H, W) uint8. `predict`: uint8 images (3, H, W) of any size.
            mode: `loss` or `predict`.
            batch: `loss`: the rest of the batch. `predict`: `tasks`, the task of each image; the others
                are for metrics.
        """
        if mode == "loss":
            return self.loss(cast(Tensor, images), **batch)
        return [self.predict(image, task) for image, task in zip(images, batch["tasks"], strict=True)]

    def loss(self, images: Tensor, *args: Any, **batch: Any) -> dict[str, Tensor]:
        """Losses of a training batch, with `loss` the one to minimise; training methods have one."""
        raise NotImplementedError(f"{type(self).__name__} cannot be trained")
