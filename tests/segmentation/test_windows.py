"""Prediction in one pass, resized and in sliding windows."""

import pytest
import torch
import torch.nn.functional as F

from s5.segmentation import windows as inference
from s5.segmentation.windows import (
    SUMS_BYTES,
    Inference,
    Rows,
    Strip,
    column_strips,
    most_probable,
    predict_bands,
    resize,
    rows_of,
    to_unit,
    window_starts,
)

WEIGHT = torch.randn(5, 3, 1, 1, generator=torch.Generator().manual_seed(0)) * 4


class Pointwise:
    """Probabilities depend on the pixel alone, so that windows and full image must agree."""

    def __init__(self):
        self.batches = []

    def __call__(self, images):
        self.batches.append(tuple(images.shape))
        return F.conv2d(to_unit(images), WEIGHT).softmax(1)


class WindowNumber:
    """Every window predicts another class, so that the averages show which windows cover a pixel."""

    def __init__(self, classes):
        self.classes = torch.eye(classes)
        self.calls = 0

    def __call__(self, images):
        numbers = torch.arange(self.calls, self.calls + len(images))
        self.calls += len(images)
        return self.classes[numbers][:, :, None, None].expand(-1, -1, *images.shape[-2:])


def random_image(height, width):
    return torch.randint(256, (3, height, width), dtype=torch.uint8)


def slide(network, image, crop, stride, batch_size=4):
    how = Inference("slide_window", crop, stride)
    bands = [
        (top, band.clone())
        for top, band in predict_bands(network, rows_of(image), how, batch_size=batch_size)
    ]
    assert [top for top, _ in bands] == [0, *torch.tensor([b.shape[1] for _, b in bands]).cumsum(0)[:-1]]
    return torch.cat([band for _, band in bands], dim=1)


@pytest.mark.parametrize(
    ("length", "crop", "stride", "starts"),
    [(10, 4, 3, [0, 3, 6]), (11, 4, 3, [0, 3, 6, 7]), (4, 4, 2, [0]), (3, 4, 2, [0]), (8, 4, 4, [0, 4])],
)
def test_windows_cover_all_once_and_stay_inside(length, crop, stride, starts):
    assert window_starts(length, crop, stride) == starts


@pytest.mark.parametrize("batch_size", [1, 3, 50])
@pytest.mark.parametrize(("height", "width"), [(70, 95), (16, 40), (10, 12), (33, 16), (9, 100), (1, 1)])
@pytest.mark.parametrize("stride", [1, 9, 16])
def test_windows_agree_with_the_whole_image(height, width, stride, batch_size):
    if stride == 1 and height * width > 700:
        height, width = 20, 23
    image = random_image(height, width)
    (_, whole), *rest = predict_bands(Pointwise(), rows_of(image), Inference("original"))
    assert not rest
    probabilities = slide(Pointwise(), image, 16, stride, batch_size)
    assert probabilities.shape == (5, height, width) and probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities, whole)
    torch.testing.assert_close(whole, Pointwise()(image[None])[0])


def test_every_window_is_computed_once_in_full_batches():
    network = Pointwise()
    slide(network, random_image(40, 50), crop=16, stride=12, batch_size=7)
    windows = len(window_starts(40, 16, 12)) * len(window_starts(50, 16, 12))
    assert windows == 12
    assert network.batches == [(7, 3, 16, 16), (5, 3, 16, 16)]  # over the ends of rows of windows


def test_overlaps_are_averaged_with_equal_weights():
    probabilities = slide(WindowNumber(4), random_image(6, 6), crop=4, stride=2, batch_size=1)
    expected = torch.zeros(4, 6, 6)
    for number, (top, left) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        expected[number, top : top + 4, left : left + 4] = 1
    torch.testing.assert_close(probabilities, expected / expected.sum(0))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_five_overlapping_rows_of_windows_are_averaged(batch_size):
    probabilities = slide(WindowNumber(5), random_image(8, 4), crop=4, stride=1, batch_size=batch_size)
    expected = torch.zeros(5, 8, 4)
    for number in range(5):
        expected[number, number : number + 4] = 1
    torch.testing.assert_close(probabilities, expected / expected.sum(0))


def test_only_the_rows_of_one_window_are_read_and_held():
    image = random_image(200, 20)
    read = []

    def read_rows(top, bottom):
        read.append((top, bottom))
        return image[:, top:bottom], None

    rows = Rows(200, 20, read_rows)
    heights = []
    for top, band in predict_bands(Pointwise(), rows, Inference("slide_window", 16, 8), batch_size=2):
        heights.append(band.shape[1])
        assert band.untyped_storage().nbytes() <= 5 * 16 * 20 * 4
        assert read[-1][1] <= top + 16 + 8
    assert sum(heights) == 200 and max(heights) <= 16
    assert all(bottom - top == 16 for top, bottom in read)


def windows_matter(images):
    """Probabilities of a pixel depend on its whole window."""
    images = to_unit(images)
    return F.conv2d(images + 3 * images.mean((2, 3), keepdim=True), WEIGHT).softmax(1)


@pytest.mark.parametrize(("width", "stride"), [(5, 7), (16, 7), (33, 1), (33, 16), (100, 7), (257, 16)])
@pytest.mark.parametrize("columns", [1, 20, 40, 90])
def test_strips_of_columns_equal_the_whole_image(width, stride, columns):
    image, how = random_image(40, width), Inference("slide_window", 16, stride)
    whole = slide(windows_matter, image, 16, stride, 1)
    strips = column_strips(width, how, classes=5, limit=5 * 16 * columns * 4)
    assert [strip.start for strip in strips] == [0, *(strip.stop for strip in strips[:-1])]
    assert strips[-1].stop == width
    assert all(strip.right - strip.left <= max(columns, 32) for strip in strips)
    parts = [
        slide(windows_matter, image[..., s.left : s.right], 16, stride, 1)[
            ..., s.start - s.left : s.stop - s.left
        ]
        for s in strips
    ]
    assert torch.equal(torch.cat(parts, dim=-1), whole)


def test_only_wide_images_are_divided_and_only_in_windows():
    how = Inference("slide_window", 512, 384)
    assert column_strips(20_000, how, classes=26) == [Strip(0, 20_000, 0, 20_000)]
    strips = column_strips(100_000, how, classes=26)
    assert all(26 * 512 * (strip.right - strip.left) * 4 <= SUMS_BYTES for strip in strips)
    assert len(strips) == 6  # few windows are computed twice
    assert column_strips(100_000, Inference("original"), classes=26) == [Strip(0, 100_000, 0, 100_000)]


def test_the_sums_are_the_only_memory_of_bands():
    """Bands are divided and moved in place: all lie in the same storage."""
    how = Inference("slide_window", 16, 4)
    bands = predict_bands(Pointwise(), rows_of(random_image(60, 30)), how)
    assert len({band.untyped_storage().data_ptr() for _, band in bands}) == 1


def test_resizing_predicts_a_square_and_resizes_the_probabilities_back():
    image = random_image(45, 30)
    network = Pointwise()
    ((top, found),) = predict_bands(network, rows_of(image), Inference("resize", 32))
    assert top == 0 and network.batches == [(1, 3, 32, 32)]
    small = F.interpolate(image[None] / 255, size=(32, 32), mode="bilinear")
    expected = F.interpolate(F.conv2d(small, WEIGHT).softmax(1), size=(45, 30), mode="bilinear")[0]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(0), torch.ones(45, 30))


def test_resizing_to_the_same_size_changes_nothing():
    image = random_image(24, 24)
    ((_, resized),) = predict_bands(Pointwise(), rows_of(image), Inference("resize", 24))
    ((_, original),) = predict_bands(Pointwise(), rows_of(image), Inference("original"))
    torch.testing.assert_close(resized, original)
    maps = torch.rand(1, 2, 5, 7)
    assert torch.equal(resize(maps, (5, 7)), maps)


def test_no_gradient_is_recorded():
    weight = WEIGHT.clone().requires_grad_()
    bands = predict_bands(
        lambda images: F.conv2d(to_unit(images), weight), rows_of(random_image(8, 8)), Inference("original")
    )
    assert not next(bands)[1].requires_grad


@pytest.mark.parametrize("stride", [0, 17])
def test_a_stride_that_leaves_gaps_is_an_error_with_the_value(stride):
    with pytest.raises(ValueError, match=f"stride {stride}: must be between 1 and the crop of 16 pixels"):
        Inference("slide_window", crop=16, stride=stride)


def test_concatenated_tasks_are_kept_apart():
    band = torch.rand(5, 6, 7)
    first, second = most_probable(band, [2, 3])
    assert first.dtype == torch.uint8
    assert torch.equal(first.long(), band[:2].argmax(0))
    assert torch.equal(second.long(), band[2:].argmax(0))


@pytest.mark.parametrize("pixels", [1, 7, 20, 41])
def test_the_most_probable_class_is_sought_in_chunks_of_rows(monkeypatch, pixels):
    band = torch.rand(5, 6, 7)
    monkeypatch.setattr(inference, "CHUNK_PIXELS", pixels)
    (found,) = most_probable(band, [5])
    assert torch.equal(found.long(), band.argmax(0))
