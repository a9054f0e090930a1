"""The crop equals the whole image resized, padded, cropped, turned and flipped."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from s5.data.augmentation import sample_rng
from s5.data.crops import CropParams, crop_image, crop_mask, draw_crop, valid_mask


def nearest_resize(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    rows = [int(mask.shape[0] * (2 * i + 1) // (2 * height)) for i in range(height)]
    columns = [int(mask.shape[1] * (2 * i + 1) // (2 * width)) for i in range(width)]
    return mask[np.ix_(rows, columns)]


def low_pass(image: np.ndarray, step: float, axis: int) -> np.ndarray:
    """Convolves with the mixture of the two discrete triangles around ``step``; edges replicated."""
    if step <= 1:
        return image
    whole = int(step)
    share = (step**2 - whole**2) / ((whole + 1) ** 2 - whole**2)
    boxes = [np.full(n, 1 / n) for n in (whole, whole + 1)]
    inner, outer = (np.convolve(box, box) for box in boxes)
    kernel = (1 - share) * np.pad(inner, 1) + share * outer
    border = [(whole, whole) if i == axis else (0, 0) for i in range(3)]
    padded, length = np.pad(image, border, mode="edge"), image.shape[axis]
    return sum(w * padded.take(range(i, i + length), axis) for i, w in enumerate(kernel))


def sample_linearly(image: np.ndarray, length: int, axis: int) -> np.ndarray:
    source = image.shape[axis]
    position = ((np.arange(length) + 0.5) * source / length - 0.5).clip(0, source - 1)
    lower = position.astype(int)
    share = np.expand_dims(position - lower, tuple(i for i in range(3) if i != axis))
    return image.take(lower, axis) * (1 - share) + image.take(np.minimum(lower + 1, source - 1), axis) * share


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes the whole image in float64."""
    out = image.astype(float)
    for axis, length in ((0, height), (1, width)):
        out = low_pass(out, image.shape[axis] / length, axis)
    out = out.round()
    for axis, length in ((0, height), (1, width)):
        out = sample_linearly(out, length, axis)
    return out


def pillow_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def plain_crop(resized: np.ndarray, p: CropParams, fill: int) -> np.ndarray:
    """Pads generously on all sides, then crops, turns and flips with numpy."""
    border = [(2 * p.size, 2 * p.size)] * 2 + [(0, 0)] * (resized.ndim - 2)
    padded = np.pad(resized, border, constant_values=fill)
    top, left = p.top + 2 * p.size, p.left + 2 * p.size
    out = np.rot90(padded[top : top + p.size, left : left + p.size], p.quarter_turns)
    out = out[:, ::-1] if p.hflip else out
    return out[::-1] if p.vflip else out


def random_case(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, CropParams]:
    height, width = rng.integers(20, 150, 2)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = rng.integers(0, 16, (height, width), dtype=np.uint8)
    return image, mask, draw_crop(rng, height, width, 48, scale=(0.25, 2.5))


@pytest.mark.parametrize("seed", range(40))
def test_equals_resizing_the_whole_image(seed: int) -> None:
    image, mask, p = random_case(sample_rng(7, 0, seed))
    height, width = p.scale_size
    expected = plain_crop(resize(image, height, width), p, fill=0)
    assert np.abs(crop_image(image, p) - expected).max() <= 1
    assert np.array_equal(crop_mask(mask, p), plain_crop(nearest_resize(mask, height, width), p, fill=255))
    ones = np.zeros((height, width), np.uint8)
    assert np.array_equal(valid_mask(p), plain_crop(ones, p, fill=255))


@pytest.mark.parametrize("seed", range(10))
def test_equals_a_part_of_the_whole(seed: int) -> None:
    """The same code on the whole image, then sliced: equal but for the rounding of coordinates."""
    image, mask, p = random_case(sample_rng(8, 0, seed))
    whole = CropParams(p.scale_size, 0, 0, max(p.scale_size))
    part = replace(p, quarter_turns=0, hflip=False, vflip=False)
    difference = crop_image(image, part) - plain_crop(crop_image(image, whole), part, 0).astype(int)
    assert np.abs(difference).max() <= 1 and (difference != 0).mean() < 0.01
    assert np.array_equal(crop_mask(mask, part), plain_crop(crop_mask(mask, whole), part, 255))


@pytest.mark.parametrize("factor", [(2.0, 1.6), (1.0, 1.3), (1 / 2, 1 / 2), (1 / 3, 1 / 2)])
def test_the_published_resampling(factor: tuple[float, float]) -> None:
    """Pillow's BILINEAR, whole image; inner part, as it treats the border differently when it shrinks."""
    image = sample_rng(0, 0, 0).integers(0, 256, (96, 90, 3), dtype=np.uint8)
    height, width = round(96 * factor[0]), round(90 * factor[1])
    p = CropParams((height, width), 2, 2, min(height, width) - 4)
    expected = plain_crop(pillow_resize(image, height, width), p, 0)
    assert np.abs(crop_image(image, p).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("vflip", [False, True])
def test_turns_and_flips(turns: int, hflip: bool, vflip: bool) -> None:
    rng = sample_rng(0, 0, 0)
    image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    p = CropParams((32, 32), 0, 0, 32, turns, hflip, vflip)
    assert np.array_equal(crop_image(image, p), plain_crop(image, p, 0))
    assert np.array_equal(crop_mask(image[..., 0], p), plain_crop(image[..., 0], p, 255))


@pytest.mark.parametrize("top", [-60, -5, 0, 30, 90])
@pytest.mark.parametrize("left", [-60, -5, 0, 30, 90])
def test_padding_on_any_side(top: int, left: int) -> None:
    rng = sample_rng(0, 0, 0)
    image = rng.integers(1, 256, (50, 40, 3), dtype=np.uint8)
    mask = image[..., 0] % 16
    p = CropParams((60, 70), top, left, 32, 1, True, False)
    resized = resize(image, 60, 70)
    assert np.abs(crop_image(image, p) - plain_crop(resized, p, 0)).max() <= 1
    assert np.array_equal(crop_mask(mask, p), plain_crop(nearest_resize(mask, 60, 70), p, 255))
    assert np.array_equal(valid_mask(p) == 255, crop_mask(mask, p) == 255)
    assert np.array_equal(valid_mask(p) == 255, (crop_image(image, p) == 0).all(2))


def test_unscaled_crop_is_the_slice() -> None:
    image = sample_rng(0, 0, 0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    p = CropParams((64, 80), 11, 17, 32)
    assert np.array_equal(crop_image(image, p), image[11:43, 17:49])


def test_shrinking_is_antialiased() -> None:
    """A one-pixel checkerboard becomes grey; plain bilinear sampling would show moiré."""
    board = ((np.indices((128, 128)).sum(0) % 2) * 255).astype(np.uint8)
    out = crop_image(np.repeat(board[..., None], 3, 2), CropParams((70, 70), 0, 0, 64))
    inner = out[2:-2, 2:-2].astype(int)
    assert abs(inner.mean() - 127.5) < 3 and inner.std() < 25


def test_mask_fill_and_values() -> None:
    mask = np.full((10, 10), 3, np.uint8)
    out = crop_mask(mask, CropParams((10, 10), 0, 0, 16))
    assert (out[:10, :10] == 3).all() and out.sum() == 300 + 255 * 156


def test_outputs_are_contiguous_and_own_their_memory() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    for turns in range(4):
        p = CropParams((64, 64), 3, 5, 32, turns, True, False)
        for out in (crop_image(image, p), crop_mask(image[..., 0], p), valid_mask(p)):
            assert out.flags.c_contiguous and not np.shares_memory(out, image)


def test_draws_cover_their_ranges() -> None:
    rng = sample_rng(0, 0, 0)
    crops = [draw_crop(rng, 80, 100, 64) for _ in range(3000)]
    long_side = np.array([p.scale_size[1] for p in crops])
    assert long_side.min() == 50 and long_side.max() == 200
    assert long_side.mean() == pytest.approx(125, abs=3)
    for p in crops:
        height, width = p.scale_size
        assert abs(height - 0.8 * width) <= 0.5
        assert 0 <= p.top <= max(height - 64, 0) and 0 <= p.left <= max(width - 64, 0)
    assert {p.quarter_turns for p in crops} == {0, 1, 2, 3}
    assert np.mean([p.hflip for p in crops]) == pytest.approx(0.5, abs=0.04)
    assert np.mean([p.vflip for p in crops]) == pytest.approx(0.5, abs=0.04)


def test_flip_and_rotate_can_be_switched_off() -> None:
    rng = sample_rng(0, 0, 0)
    for _ in range(50):
        p = draw_crop(rng, 80, 100, 64, flip=False, rotate=False)
        assert (p.quarter_turns, p.hflip, p.vflip) == (0, False, False)


def test_slender_image() -> None:
    p = draw_crop(sample_rng(0, 0, 0), 1, 400, 32, scale=(0.5, 0.5))
    assert p.scale_size == (1, 200)
    assert crop_image(np.full((1, 400, 3), 9, np.uint8), p).shape == (32, 32, 3)
