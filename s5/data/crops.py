"""Geometry of the weak view on uint8: random resize, pad, crop, rotation by multiples of 90 degrees, flips.

Only the crop is resampled, with the result of resizing the full image and cropping. The order
is resize, pad at the right and bottom, crop, rotate counter-clockwise, flip.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from s5.data.label_table import IGNORE

ROTATE_CODES = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}


@dataclass(frozen=True)
class CropParams:
    """A crop of the virtually resized image.

    Attributes:
        scale_size: Height and width of the virtually resized image, in pixels.
        top: First row of the crop in it; pixels outside the image are padding.
        left: First column of the crop in it.
        size: Side of the crop in pixels.
        quarter_turns: Number of counter-clockwise rotations of the crop by 90 degrees, 0 to 3.
        hflip: Flip left-right after the rotation.
        vflip: Flip top-bottom after the rotation.
    """

    scale_size: tuple[int, int]
    top: int
    left: int
    size: int
    quarter_turns: int = 0
    hflip: bool = False
    vflip: bool = False


@dataclass(frozen=True)
class _Span:
    """One axis of a crop: output pixels [start, stop) show resized pixels from `first` on."""

    start: int
    stop: int
    first: int
    step: float  # source pixels per resized pixel

    @property
    def count(self) -> int:
        return self.stop - self.start

    def window(self, length: int) -> tuple[int, int]:
        """Source pixels read by the resampling: low-pass filter and bilinear interpolation."""
        margin = int(self.step) + 2
        lower = int(self.first * self.step - margin)
        upper = int((self.first + self.count) * self.step + margin) + 1
        return max(lower, 0), min(upper, length)


def draw_crop(
    rng: np.random.Generator,
    height: int,
    width: int,
    size: int,
    scale: tuple[float, float] = (0.5, 2.0),
    flip: bool = True,
    rotate: bool = True,
) -> CropParams:
    """Draw scale, crop position, rotation and flips of one image.

    Args:
        rng: Generator of the sample.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        size: Side of the crop in pixels.
        scale: Range of the resized long side relative to the image's; drawn uniformly, as in UniMatch.
        flip: Flip along each axis with probability 0.5.
        rotate: Rotate by 0, 90, 180 or 270 degrees, uniformly.
    """
    long_side = max(height, width)
    resized = max(1, int(rng.integers(int(long_side * scale[0]), int(long_side * scale[1]), endpoint=True)))
    scale_size = (max(1, round(height * resized / long_side)), max(1, round(width * resized / long_side)))
    top, left = (int(rng.integers(max(side - size, 0), endpoint=True)) for side in scale_size)
    return CropParams(
        scale_size,
        top,
        left,
        size,
        quarter_turns=int(rng.integers(4)) if rotate else 0,
        hflip=flip and bool(rng.random() < 0.5),
        vflip=flip and bool(rng.random() < 0.5),
    )


def crop_image(image: np.ndarray, p: CropParams) -> np.ndarray:
    """Crop an image; bilinear, antialiased when shrinking.

    Equals Pillow's BILINEAR when enlarging or shrinking by an integer factor, and is close to it otherwise.

    Args:
        image: (H, W, 3) uint8.
        p: The crop.

    Returns:
        (size, size, 3) uint8, contiguous; padding is 0.
    """
    rows, columns = _spans(image, p)
    if rows.count <= 0 or columns.count <= 0:
        return np.zeros((p.size, p.size, 3), np.uint8)
    return _pad_and_turn(_resample(image, rows, columns), rows, columns, p, fill=0)


def crop_mask(mask: np.ndarray, p: CropParams) -> np.ndarray:
    """Crop a mask; nearest neighbour, 255 in the padding.

    Args:
        mask: (H, W) uint8.
        p: The crop.

    Returns:
        (size, size) uint8, contiguous.
    """
    rows, columns = _spans(mask, p)
    if rows.count <= 0 or columns.count <= 0:
        return np.full((p.size, p.size), IGNORE, np.uint8)
    picked = mask[_nearest(rows, p.scale_size[0], mask.shape[0])]
    picked = picked.take(_nearest(columns, p.scale_size[1], mask.shape[1]), axis=1)
    return _pad_and_turn(picked, rows, columns, p, IGNORE)


def valid_mask(p: CropParams) -> np.ndarray:
    """Padding mask (size, size) uint8 of a crop: 0 in the image, 255 in the padding."""
    height, width = p.scale_size
    out = np.full((p.size, p.size), IGNORE, np.uint8)
    out[max(-p.top, 0) : max(height - p.top, 0), max(-p.left, 0) : max(width - p.left, 0)] = 0
    return _turn(out, p)


def _spans(array: np.ndarray, p: CropParams) -> tuple[_Span, _Span]:
    height, width = array.shape[:2]
    return _span(p.top, p.size, p.scale_size[0], height), _span(p.left, p.size, p.scale_size[1], width)


def _span(offset: int, size: int, resized: int, source: int) -> _Span:
    start, stop = max(-offset, 0), min(resized - offset, size)
    return _Span(start, stop, offset + start, source / resized)


def _nearest(span: _Span, resized: int, source: int) -> np.ndarray:
    """Source index under the centre of every resized pixel, in exact integer arithmetic."""
    centres = 2 * np.arange(span.first, span.first + span.count) + 1
    return centres * source // (2 * resized)


def _resample(image: np.ndarray, rows: _Span, columns: _Span) -> np.ndarray:
    """Resample bilinearly, low-passed first along axes that shrink; reads only the pixels that are needed."""
    (top, bottom), (left, right) = rows.window(image.shape[0]), columns.window(image.shape[1])
    window = image[top:bottom, left:right]
    if max(rows.step, columns.step) > 1:
        kernels = _low_pass(columns.step), _low_pass(rows.step)
        window = cv2.sepFilter2D(window, -1, *kernels, borderType=cv2.BORDER_REPLICATE)
    to_source = np.array(
        [
            [columns.step, 0, (columns.first + 0.5) * columns.step - 0.5 - left],
            [0, rows.step, (rows.first + 0.5) * rows.step - 0.5 - top],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    output = (columns.count, rows.count)
    return cv2.warpAffine(window, to_source, output, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _low_pass(step: float) -> np.ndarray:
    """Antialiasing kernel for bilinear sampling every `step` source pixels.

    For an integer half-width n, filtering with a continuous triangle equals bilinear sampling after the
    discrete triangle of half-width n. For other steps, the two nearest integer kernels are mixed so that the
    variance grows with step².
    """
    step = max(step, 1.0)
    whole = int(step)
    share = (step**2 - whole**2) / (2 * whole + 1)
    reach = np.abs(np.arange(-whole, whole + 1))
    inner = np.maximum(whole - reach, 0) / whole**2
    outer = (whole + 1 - reach) / (whole + 1) ** 2
    return (1 - share) * inner + share * outer


def _pad_and_turn(content: np.ndarray, rows: _Span, columns: _Span, p: CropParams, fill: int) -> np.ndarray:
    """Pad the content to the crop size, then rotate and flip."""
    if content.shape[:2] != (p.size, p.size):
        padded = np.full((p.size, p.size, *content.shape[2:]), fill, np.uint8)
        padded[rows.start : rows.stop, columns.start : columns.stop] = content
        content = padded
    return _turn(content, p)


def _turn(array: np.ndarray, p: CropParams) -> np.ndarray:
    both = p.hflip and p.vflip
    turns = (p.quarter_turns + 2 * (both or p.vflip)) % 4  # vertical flip = half turn + horizontal flip
    if turns:
        array = cv2.rotate(array, ROTATE_CODES[turns])
    if p.hflip != p.vflip:
        array = cv2.flip(array, 1)
    return np.ascontiguousarray(array)
