"""Sections that the configurations of several trees share."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from s5.engine.config import Section
from s5.models.inference import Inference

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Crop = Annotated[int, Field(ge=32, multiple_of=16)]  # patches of 16 pixels, of which two a side
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
    """The network around the backbone that the command names."""

    decoder_channels: Positive = 256
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    activation_checkpointing: bool = False
    compile: bool = False


class OptimConfig(Section):
    """AdamW with a cosine schedule to zero."""

    lr: PositiveFloat = 5e-5
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    warmup_iters: Annotated[int, Field(ge=0)] = 0
    clip_grad: PositiveFloat | None = None


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
