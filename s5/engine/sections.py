"""Sections that the configurations of several trees share."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from s5.data.draws import Photometric
from s5.engine.config import Section
from s5.models.inference import Inference

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Crop = Annotated[int, Field(ge=32, multiple_of=16)]  # patches of 16 pixels, of which two a side
NORM_EPS = 1e-5  # of published weights, and of the published code also where it starts from MAE (1e-6)
RGB = ("red", "green", "blue")
Precision = Literal["auto", "bf16", "fp16", "fp32"]


class ScaleRange(Section):
    """Geometry of training crops."""

    scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    flip: bool = True
    rotate: bool = True

    @model_validator(mode="after")
    def _scale_ordered(self) -> "ScaleRange":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale {self.scale}: the first value must not be larger than the second")
        return self


class PhotometricConfig(Section):
    """Photometric augmentation; each ``*_p`` is the probability that the change is applied."""

    jitter_p: Share = Photometric.jitter_p
    brightness: Share = Photometric.brightness
    contrast: Share = Photometric.contrast
    saturation: Share = Photometric.saturation
    hue: Annotated[float, Field(ge=0, le=0.5)] = Photometric.hue
    gray_p: Share = Photometric.gray_p
    blur_p: Share = Photometric.blur_p
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = Photometric.blur_sigma

    @model_validator(mode="after")
    def _sigma_ordered(self) -> "PhotometricConfig":
        if self.blur_sigma[0] > self.blur_sigma[1]:
            raise ValueError(
                f"blur_sigma {self.blur_sigma}: the first value must not be larger than the second"
            )
        return self

    def require_fit(self, crop: int, key: str, crop_key: str) -> None:
        """Refuse a blur whose kernel is wider than the crops.

        Raises:
            ValueError: names ``key`` and ``crop_key``, where the section and the crop are configured.
        """
        reach = math.ceil(3 * self.blur_sigma[1])
        if reach >= crop:
            raise ValueError(
                f"{key}.blur_sigma {self.blur_sigma[1]} reaches {reach} pixels, more than {crop_key} {crop} "
                "has; set a smaller sigma or larger crops"
            )


class InferenceConfig(Section):
    """How validation images are predicted."""

    mode: Literal["original", "resize", "slide_window"] = "slide_window"
    crop: Positive = 512
    stride: Positive = 384

    @model_validator(mode="after")
    def _stride_covers(self) -> "InferenceConfig":
        if self.stride > self.crop:
            raise ValueError(
                f"stride {self.stride} is larger than crop {self.crop}: pixels between windows are lost"
            )
        return self

    def inference(self) -> Inference:
        """The same for the model."""
        return Inference(self.mode, self.crop, self.stride)


class ModelConfig(Section):
    """The network around the backbone that the command names; ``norm_eps`` is that of the blocks' norms."""

    decoder_channels: Positive = 256
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    norm_eps: PositiveFloat = NORM_EPS
    activation_checkpointing: bool = False
    compile: bool = False


class OptimConfig(Section):
    """AdamW; ``exempt_norms`` leaves norms and the positional embedding without weight decay."""

    lr: PositiveFloat = 5e-5
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    exempt_norms: bool = True
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    warmup_iters: Annotated[int, Field(ge=0)] = 0
    clip_grad: PositiveFloat | None = None


class SkipConfig(Section):
    """How many steps may be skipped because their loss or gradients are not finite, before the run ends."""

    max_skipped_in_a_row: Positive = 10
    max_skipped_share: Share = 0.01  # of the last 1000 steps


class RunConfig(Section):
    """What every training run has besides its own sections.

    ``init_bands`` are the channels that are red, green and blue in the images of the initial weights, counted
    from 1.
    """

    init_bands: tuple[int, int, int] | None = None
    precision: Precision = "auto"
    sync_bn: bool = True
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("init_bands", mode="before")
    @classmethod
    def _three_bands(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the YAML holds
        """Take ``3,2,1`` of a command line as the list that it is."""
        if value is None:
            return None
        bands = re.split(r"\s*,\s*", value.strip()) if isinstance(value, str) else value
        listed = bands if isinstance(bands, list | tuple) else ()
        numbers = [int(band) for band in map(str, listed) if band.isdecimal() and int(band) > 0]
        if not len(numbers) == len(listed) == len(RGB):
            raise ValueError(
                "expected three channel numbers, counted from 1: red, green, blue, such as 3,2,1"
            )
        return numbers
