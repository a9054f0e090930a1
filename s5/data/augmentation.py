"""Random augmentation parameters of a sample.

Every sample has its own generator, `sample_rng(seed, source, position)`, so results depend neither on the
number of workers nor on interruptions.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from s5.ranges import Positive, PositiveFloat, Share, require_ordered

NEUTRAL = np.array([1, 1, 1, 0, 0, 0], np.float32)
"""Parameters (`PHOTOMETRIC_FIELDS`) that leave an image unchanged."""


CUTMIX_AREA = (0.02, 0.4)  # share of the image area
CUTMIX_ASPECT = (0.3, 1 / 0.3)  # height / width


@dataclass(frozen=True)
class Photometric:
    """Photometric augmentation of UniMatch, for strong views of S4P and training images of MoE-MDF.

    Attributes:
        jitter_p: Probability of the colour jitter.
        brightness: Brightness factor is drawn from [1 - b, 1 + b].
        contrast: Contrast factor is drawn from [1 - c, 1 + c].
        saturation: Saturation factor is drawn from [1 - s, 1 + s].
        hue: Hue shift is drawn from [-h, h], in turns of the hue circle.
        gray_p: Probability of grayscale.
        blur_p: Probability of Gaussian blur.
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
        """Check the order of the range of sigmas."""
        require_ordered("blur_sigma", self.blur_sigma)


@dataclass(frozen=True)
class StrongAugmentation(Photometric):
    """The strong view of UniMatch, used by S4P (paper, Eq. 4): photometric augmentation, then CutMix.

    Attributes:
        views: Number of strong views of an image.
        cutmix_p: Probability of pasting a box.
    """

    views: Positive = 1
    cutmix_p: Share = 0.5


def sample_rng(seed: int, source: int, position: int) -> np.random.Generator:
    """The random generator of one sample.

    Args:
        seed: Seed of the run, at least 0.
        source: Index of the data source in the batch (labeled, unlabeled ...), at least 0.
        position: Position of the sample in the endless stream of the source, at least 0.
    """
    return np.random.Generator(np.random.PCG64((seed, source, position)))


def draw_photometric(rng: np.random.Generator, cfg: Photometric) -> np.ndarray:
    """Draw the parameters of one image for `s5.ops.photometric.apply_photometric`.

    Returns:
        (6,) float32 in the order of `PHOTOMETRIC_FIELDS`; operations that are not applied have neutral
        values.
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
    """Draw a CutMix box inside a square image.

    As in UniMatch, draws the area first, then aspect ratio and corner until the box fits.

    Args:
        rng: Generator of the sample.
        size: Side of the image in pixels.
        cfg: Probability of a box.

    Returns:
        (4,) int64 x0, y0, x1, y1 in pixels, x1 and y1 exclusive; all 0 if nothing is pasted.
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
    """Draw a permutation without fixed points: a single cycle, uniform among all cycles.

    Args:
        rng: Generator.
        n: Number of elements; n = 1 returns [0].

    Returns:
        (n,) int64 partner of every element.
    """
    order = rng.permutation(n)
    partner = np.empty(n, np.int64)
    partner[order] = np.roll(order, 1)
    return partner
