"""Photometric operations against torchvision, image by image."""

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from s5.ops.photometric import (
    PHOTOMETRIC_FIELDS,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    apply_photometric,
    gaussian_blur,
    normalize,
)

NEUTRAL = torch.tensor([1.0, 1, 1, 0, 0, 0])


def random_images(count: int, size: int = 32) -> torch.Tensor:
    """Noise with runs of exact grey, black, white and pure colours, where HSV has its corners."""
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    images[:, :, 0] = images[:, :1, 0]
    images[:, :, 1] = 0
    images[:, :, 2] = 1
    images[:, :, 3:6] = images[:, :, 3:6].round()
    images[:, 1, 6] = images[:, 0, 6]
    images[:, 2, 7] = images[:, 0, 7]
    return images


def uniform(count: int, low: float, high: float) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(1)) * (high - low) + low


def torchvision_view(image: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    brightness, contrast, saturation, hue, gray, sigma = row.tolist()
    image = tv.adjust_brightness(image, brightness)
    image = tv.adjust_contrast(image, contrast)
    image = tv.adjust_saturation(image, saturation)
    image = tv.adjust_hue(image, hue)
    image = tv.rgb_to_grayscale(image, 3) if gray else image
    return tv.gaussian_blur(image, [13, 13], [sigma, sigma]) if sigma else image


def random_rows(count: int) -> torch.Tensor:
    columns = [uniform(count, *reach) for reach in [(0.5, 1.5)] * 3 + [(-0.25, 0.25)]]
    rows = torch.stack([*(column.roll(i) for i, column in enumerate(columns)), torch.zeros(count)], 1)
    rows[::3, 4] = 1
    return torch.cat([rows, uniform(count, 0.1, 2.0)[:, None]], 1)


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high", "tolerance"),
    [
        (adjust_brightness, tv.adjust_brightness, 0, 3, 1e-6),
        (adjust_contrast, tv.adjust_contrast, 0, 3, 2e-4),  # their luma weights add up to 0.9999
        (adjust_saturation, tv.adjust_saturation, 0, 3, 3e-4),
        (adjust_hue, tv.adjust_hue, -0.5, 0.5, 1e-5),
    ],
)
def test_colour_operations(ours, theirs, low: float, high: float, tolerance: float) -> None:
    images, values = random_images(16), uniform(16, low, high)
    expected = torch.stack(
        [theirs(image, value) for image, value in zip(images, values.tolist(), strict=True)]
    )
    torch.testing.assert_close(ours(images, values), expected, rtol=0, atol=tolerance)


def test_blur() -> None:
    images, sigma = random_images(8), uniform(8, 0.1, 2.0)
    expected = torch.stack(
        [tv.gaussian_blur(image, [13, 13], [s, s]) for image, s in zip(images, sigma.tolist(), strict=True)]
    )
    torch.testing.assert_close(gaussian_blur(images, sigma), expected, rtol=0, atol=1e-5)


def test_blur_of_another_reach() -> None:
    images = random_images(1)
    expected = tv.gaussian_blur(images, [19, 19], [3.0, 3.0])
    torch.testing.assert_close(gaussian_blur(images, torch.tensor([3.0]), 3.0), expected, rtol=0, atol=1e-5)


def test_the_whole_strong_view() -> None:
    images, rows = random_images(12), random_rows(12)
    expected = torch.stack([torchvision_view(image, row) for image, row in zip(images, rows, strict=True)])
    torch.testing.assert_close(apply_photometric(images, rows), expected, rtol=0, atol=1e-3)


def test_channels_last_input() -> None:
    images, rows = random_images(4), random_rows(4)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(apply_photometric(last, rows), apply_photometric(images, rows))


@pytest.mark.parametrize("neighbour", [0, 1, 2, 3, 4, 5])
def test_neutral_images_are_unchanged_exactly(neighbour: int) -> None:
    """Alone and beside an image that one operation changes."""
    images, rows = random_images(3), NEUTRAL.repeat(3, 1)
    assert torch.equal(apply_photometric(images, rows), images)
    rows[1, neighbour] = 0.5
    out = apply_photometric(images, rows)
    assert torch.equal(out[[0, 2]], images[[0, 2]])
    assert not torch.equal(out[1], images[1]), PHOTOMETRIC_FIELDS[neighbour]


@pytest.mark.parametrize(
    ("operation", "neutral"),
    [
        (adjust_brightness, 1),
        (adjust_contrast, 1),
        (adjust_saturation, 1),
        (adjust_hue, 0),
        (gaussian_blur, 0),
    ],
)
def test_neutral_value_within_a_batch(operation, neutral: float) -> None:
    """The batched operations of a GPU cannot skip an image; the neutral value must still be exact."""
    images = random_images(2)
    out = operation(images, torch.tensor([neutral, 0.3]))
    assert torch.equal(out[0], images[0])
    assert not torch.equal(out[1], images[1])


def test_parameters_are_per_image_and_input_is_kept() -> None:
    images, rows = random_images(5), random_rows(5)
    before = images.clone()
    whole = apply_photometric(images, rows)
    single = torch.cat([apply_photometric(images[i : i + 1], rows[i : i + 1]) for i in range(5)])
    assert torch.equal(whole, single)
    assert torch.equal(images, before)
    assert whole.dtype == torch.float32 and 0 <= whole.min() and whole.max() <= 1


def test_grayscale_has_equal_channels() -> None:
    row = torch.tensor([[1.2, 0.7, 1.4, 0.2, 1, 0]])
    red, green, blue = apply_photometric(random_images(1), row)[0]
    torch.testing.assert_close(red, green, rtol=0, atol=1e-6)
    torch.testing.assert_close(red, blue, rtol=0, atol=1e-6)


def test_empty_batch() -> None:
    assert apply_photometric(torch.zeros(0, 3, 16, 16), torch.zeros(0, 6)).shape == (0, 3, 16, 16)


def test_normalize() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = tv.normalize(images / 255, list(mean), list(std))
    torch.testing.assert_close(normalize(images, mean, std), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(normalize(images / 255, mean, std), expected, rtol=0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu_without_waiting() -> None:
    images, rows = random_images(6), random_rows(6)
    on_device = images.cuda(), rows.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = normalize(apply_photometric(*on_device), (0.5,) * 3, (0.25,) * 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = normalize(apply_photometric(images, rows), (0.5,) * 3, (0.25,) * 3)
    torch.testing.assert_close(out.cpu(), expected, rtol=0, atol=1e-4)
