"""A segmentor with everything around it that training and evaluation share.

It normalises uint8 images on the device, chooses the arithmetic, and predicts whole images. Training methods
subclass it and add a loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor

from s5.models.inference import predict_slide, predict_whole
from s5.models.precision import autocast
from s5.models.segmentor import Segmentor
from s5.ops.photometric import normalize

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Inference:
    """How a whole image is predicted.

    Attributes:
        mode: ``whole`` image at once, or ``slide`` with overlapping windows.
        crop: window side in pixels.
        stride: step between windows in pixels.
    """

    mode: Literal["whole", "slide"] = "whole"
    crop: int = 512
    stride: int = 384


class SegmentationModel(BaseModel):
    """mmengine model around a :class:`~s5.models.segmentor.Segmentor`.

    Args:
        segmentor: the network; images in, logits out.
        inference: how validation images are predicted.
        dtype: autocast type of the matrix work (see :func:`s5.models.precision.resolve_precision`);
            None is float32.
    """

    def __init__(self, segmentor: Segmentor, inference: Inference, dtype: torch.dtype | None = None) -> None:
        super().__init__(BaseDataPreprocessor(non_blocking=True))
        self.segmentor = segmentor
        self.inference = inference
        self.dtype = dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.segmentor.backbone.pos_embed.device

    def logits(self, images: Tensor, network: Segmentor | None = None) -> Tensor:
        """Float32 logits (B, K, H, W) of images (B, 3, H, W) in [0, 1]."""
        network = network or self.segmentor
        with autocast(self.device, self.dtype):
            return network(normalize(images, IMAGENET_MEAN, IMAGENET_STD)).float()

    def predict(self, image: Tensor) -> Tensor:
        """Train ids (H, W) uint8 of one uint8 image (3, H, W) of any size."""
        how = self.inference
        with autocast(self.device, self.dtype):
            if how.mode == "whole":
                return predict_whole(self.segmentor, self._prepare(image[None])).labels[0]
            return predict_slide(self.segmentor, image, how.crop, how.stride, prepare=self._prepare).labels

    def _prepare(self, images: Tensor) -> Tensor:
        return normalize(images, IMAGENET_MEAN, IMAGENET_STD)

    def forward(self, images: Sequence[Tensor], mode: str = "predict", **batch: Any) -> list[Tensor]:
        """Predict a list of uint8 images (3, H, W); ``batch`` (labels, names) is for the metric only."""
        if mode != "predict":
            raise ValueError(f"{type(self).__name__} has no mode {mode!r}")
        return [self.predict(image) for image in images]


def to_unit(images: Tensor) -> Tensor:
    """Uint8 [0, 255] to float32 [0, 1]."""
    return images.float() / 255
