"""The mmengine model of segmentation: normalisation on the device, autocast, and prediction of full images.

Training methods subclass it and add a loss.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from s5.compat.precision import autocast
from s5.errors import ConfigError
from s5.ops.photometric import to_unit
from s5.segmentation.segmentor import SegHead, Segmentor
from s5.segmentation.tta import Tta, augmented
from s5.segmentation.windows import Inference, Rows, most_probable, predict_bands, rows_of
from s5.training.model import Features, TaskModel

GPU_WINDOWS = 4  # per forward pass; on a CPU, larger batches cost memory and save no time


class SegmentationModel(TaskModel):
    """mmengine model around a :class:`~s5.segmentation.segmentor.Segmentor`.

    Args:
        segmentor: The network; images in, logits out.
        inference: Inference settings of each task.
        dtype: Autocast dtype (see :func:`s5.compat.precision.resolve_precision`); None is float32.
        tta: Test-time augmentation; None predicts the unaugmented image.

    Raises:
        ConfigError: The network takes images of one size only, and these settings give it others.
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
        self._require_size()

    @property
    def network(self) -> Segmentor:
        """The network, whose state dict is saved and loaded as weights."""
        return self.segmentor

    def logits(
        self,
        images: Tensor,
        network: Segmentor | None = None,
        float32: bool = False,
        perturb: Callable[[Features], Features] | None = None,
    ) -> Tensor:
        """Compute the float32 logits (B, K, H, W) of images.

        Args:
            images: (B, 3, H, W) in [0, 1].
            network: Network to run; the model's own by default.
            float32: Whether to disable autocast.
            perturb: Change of the feature maps before the head.
        """
        network = network or self.segmentor
        with autocast(self.device, None if float32 else self.dtype):
            return network(self._prepare(images), perturb=perturb).float()

    def features_and_logits(self, images: Tensor, task: str) -> tuple[Features, Tensor]:
        """Compute the feature maps and the float32 logits (B, K, H, W) of images in one forward pass.

        Args:
            images: (B, 3, H, W) on the device, uint8 or in [0, 1].
            task: Name of the task.
        """
        with self.autocast():
            prepared = self._prepare(to_unit(images))
            features = self.segmentor.encode(prepared, {task: len(prepared)})
            return features, self.segmentor.decode(features, task, prepared.shape[-2:]).float()

    def probabilities(self, images: Tensor, tasks: Sequence[str]) -> Tensor:
        """Float32 probabilities (B, sum of K, H, W) of several tasks, from one pass of the encoder.

        Args:
            images: (B, 3, H, W) on the device, uint8 or in [0, 1].
            tasks: Tasks in the order in which their classes are concatenated.
        """
        with self.autocast():
            logits = self.segmentor.forward_all(self._prepare(images), tasks)
        return torch.cat([logits[task].float().softmax(1) for task in tasks], dim=1)

    def predict(self, image: Tensor, task: str) -> Tensor:
        """Predict train ids (H, W) uint8, on the device, for one uint8 image (3, H, W) of any size."""
        return self.predict_tasks(image, [task])[task]

    def predict_tasks(self, image: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Predict train ids (H, W) uint8 of one image by task, on the device."""
        parts: dict[str, list[Tensor]] = {task: [] for task in tasks}
        with self.autocast():
            for _, bands in self.predict_rows(rows_of(image), tasks):
                for task, band in bands.items():
                    parts[task].append(band)
        return {task: torch.cat(bands) for task, bands in parts.items()}

    def predict_rows(self, rows: Rows, tasks: Sequence[str]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Predict an image of which only some rows are in memory at a time.

        Tasks with equal inference settings share the passes of the encoder. Groups of tasks with different
        settings are predicted one after the other.

        Yields:
            First row of a band, and its train ids (rows, W) uint8 by task, on the device; bands are ordered
            from top to bottom.
        """
        for top, group, band in self._bands(rows, tasks):
            yield top, dict(zip(group, most_probable(band, self._num_classes(group)), strict=True))

    def predict_probabilities(
        self, rows: Rows, tasks: Sequence[str]
    ) -> Iterator[tuple[int, dict[str, tuple[Tensor, Tensor]]]]:
        """Like :meth:`predict_rows`, but yield train ids and probabilities (K, rows, W).

        Probabilities are on the device and overwritten when the next band is computed.
        """
        for top, group, band in self._bands(rows, tasks):
            classes = self._num_classes(group)
            parts = zip(most_probable(band, classes), band.split(classes), strict=True)
            yield top, dict(zip(group, parts, strict=True))

    def _bands(self, rows: Rows, tasks: Sequence[str]) -> Iterator[tuple[int, list[str], Tensor]]:
        """Yield first row, tasks and probabilities (sum of K, rows, W) of each band."""
        windows = GPU_WINDOWS if self.device.type == "cuda" else 1
        for inference, group in self._by_inference(tasks).items():
            network = augmented(partial(self.probabilities, tasks=group), self.tta)
            for top, band in predict_bands(network, rows, inference, self.device, windows):
                yield top, group, band

    def _require_size(self) -> None:
        """Check that a network for images of one size gets windows of that size; smaller ones are padded."""
        backbone = self.segmentor.backbone
        side = backbone.architecture.side
        if side is None:
            return
        takes = f"{backbone.name} was built for images of {side}x{side} pixels and takes no others"
        for task, how in self.inference.items():
            if how.mode == "original" or how.crop != side:
                raise ConfigError(
                    f"{takes}, but {task} is predicted with mode {how.mode} and crop {how.crop}: set the "
                    f"mode to slide_window (or resize) and the crop to {side}"
                )
        if self.tta is not None and max(self.tta.scales) > 1:
            raise ConfigError(f"{takes}: give no scale above 1, got {max(self.tta.scales)}")

    def _num_classes(self, tasks: Sequence[str]) -> list[int]:
        return [cast(SegHead, self.segmentor.heads[task]).num_classes for task in tasks]

    def _by_inference(self, tasks: Sequence[str]) -> dict[Inference, list[str]]:
        groups: dict[Inference, list[str]] = {}
        for task in tasks:
            groups.setdefault(self.inference[task], []).append(task)
        return groups

    def forward(
        self, images: Tensor | Sequence[Tensor], mode: str = "predict", **batch: Any
    ) -> dict[str, Tensor] | list[Tensor]:
        """Return losses of a training batch, or train ids of full images.

        Args:
            images: `loss`: (B, 3, H, W) uint8. `predict`: uint8 images (3, H, W) of any size.
            mode: `loss` or `predict`.
            batch: `loss`: the other entries of the batch. `predict`: `tasks`, the task of each image; other
                entries are ignored.
        """
        if mode == "loss":
            return self.loss(cast(Tensor, images), **batch)
        return [self.predict(image, task) for image, task in zip(images, batch["tasks"], strict=True)]

    def loss(self, images: Tensor, *args: Any, **batch: Any) -> dict[str, Tensor]:
        """Return the losses of a training batch, of which `loss` is minimised; implemented by methods."""
        raise NotImplementedError(f"{type(self).__name__} cannot be trained")
