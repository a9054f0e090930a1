"""Random draws of one sample, keyed by what is drawn and not by who draws it.

Every sample takes its numbers from ``sample_rng(seed, source, position)``. The result of a run therefore
depends neither on the number of workers nor on where it was interrupted.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from s5.ranges import Positive, PositiveFloat, Share, require_ordered

NEUTRAL = np.array([1, 1, 1, 0, 0, 0], np.float32)
"""Row of ``PHOTOMETRIC_FIELDS`` that changes nothing."""


CUTMIX_AREA = (0.02, 0.4)  # share of the image area
CUTMIX_ASPECT = (0.3, 1 / 0.3)  # height / width


@dataclass(frozen=True)
class Photometric:
    """Photometric augmentation of UniMatch: strong views of S4P, training images of MoE-MDF.

    Attributes:
        jitter_p: Probability of the colour jitter.
        brightness: Brightness factor is drawn from [1 - b, 1 + b].
        contrast: Contrast factor is drawn from [1 - c, 1 + c].
        saturation: Saturation factor is drawn from [1 - s, 1 + s].
        hue: Hue shift is drawn from [-h, h], in turns of the colour circle.
        gray_p: Probability of a grayscale image.
        blur_p: Probability of the Gaussian blur.
        blur_sigma: Range of the blur's standard deviation, in pixels.

    Raises:
        ValueError: The first value of a range is larger than the second.
    """

    jitter_p: Share = 0.8
    brightness: Share = 0.5
    contrast: Share = 0.5
    saturation: Share = 0.5
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.25
    gray_p: Share = 0.2
    blur_p: Share = 0.5
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)

    def __post_init__(self) -> None:
        """Refuse a range of sigmas in the wrong order."""
        require_ordered("blur_sigma", self.blur_sigma)


@dataclass(frozen=True)
class StrongAugmentation(Photometric):
    """The strong views of UniMatch, which S4P uses (paper, Eq. 4): photometric changes, then CutMix.

    Attributes:
        views: Number of strong views of an image.
        cutmix_p: Probability of pasting a box.
    """

    views: Positive = 1
    cutmix_p: Share = 0.5


def sample_rng(seed: int, source: int, position: int) -> np.random.Generator:
    """Returns the generator of one sample.

    Args:
        seed: Seed of the run, not negative.
        source: Number of the data source within the batch (labeled, unlabeled ...), not negative.
        position: Position of the sample in the source's endless stream, not negative.
    """
    return np.random.Generator(np.random.PCG64((seed, source, position)))


def draw_photometric(rng: np.random.Generator, cfg: Photometric) -> np.ndarray:
    """Draws one image's row for ``s5.ops.photometric.apply_photometric``.

    Returns:
        (6,) float32 in the order of ``PHOTOMETRIC_FIELDS``; an operation not drawn has its neutral value.
    """
    row = np.array(NEUTRAL)
    if rng.random() < cfg.jitter_p:
        reach = (cfg.brightness, cfg.contrast, cfg.saturation, cfg.hue)
        row[:4] += rng.uniform(-1, 1, 4) * reach
        row[:3] = row[:3].clip(min=0)
    if rng.random() < cfg.gray_p:
        row[4] = 1
    if rng.random() < cfg.blur_p:
        row[5] = rng.uniform(*cfg.blur_sigma)
    return row


def draw_cutmix_box(rng: np.random.Generator, size: int, cfg: StrongAugmentation) -> np.ndarray:
    """Draws a CutMix box that lies wholly within a square image.

    Area first, then aspect and corner until the box fits, as UniMatch does.

    Args:
        rng: Generator of the sample.
        size: Side of the image in pixels.
        cfg: Probability of a box.

    Returns:
        (4,) int64 x0, y0, x1, y1 in pixels, x1 and y1 exclusive; all 0 when nothing is pasted.
    """
    if rng.random() >= cfg.cutmix_p:
        return np.zeros(4, np.int64)
    area = rng.uniform(*CUTMIX_AREA) * size * size
    while True:
        aspect = rng.uniform(*CUTMIX_ASPECT)
        width, height = int((area / aspect) ** 0.5), int((area * aspect) ** 0.5)
        left, top = rng.integers(size, size=2).tolist()
        if left + width <= size and top + height <= size:
            return np.array([left, top, left + width, top + height], np.int64)


def derangement(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draws a permutation without fixed points: a single cycle, uniform among all such cycles.

    Args:
        rng: Generator.
        n: Number of elements. A lone element is its own partner.

    Returns:
        (n,) int64 partner of every element.
    """
    order = rng.permutation(n)
    partner = np.empty(n, np.int64)
    partner[order] = np.roll(order, 1)
    return partner
