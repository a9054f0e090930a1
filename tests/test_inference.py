"""Whole-image and sliding-window prediction."""

import numpy as np
import pytest
import torch
from torch import nn

from s5.models.inference import predict_slide, predict_whole, slide_bands, window_starts
from s5.models.segmentor import build_segmentor
from s5.models.variants import Variant


class Pointwise(nn.Module):
    """Logits depend on the pixel alone, so that windows and whole image must agree."""

    def __init__(self, classes=5):
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 1)
        self.windows = []

    def forward(self, images, task=None):
        self.windows.append(tuple(images.shape))
        return self.conv(images)


class WindowNumber(nn.Module):
    """Every window is sure of another class: the averages show which windows cover a pixel."""

    def __init__(self, classes):
        super().__init__()
        self.classes = nn.Parameter(torch.eye(classes) * 100)
        self.calls = 0

    def forward(self, images, task=None):
        numbers = torch.arange(self.calls, self.calls + len(images))
        self.calls += len(images)
        return self.classes[numbers][:, :, None, None].expand(-1, -1, *images.shape[-2:])


@pytest.mark.parametrize(
    ("length", "crop", "stride", "starts"),
    [(10, 4, 3, [0, 3, 6]), (11, 4, 3, [0, 3, 6, 7]), (4, 4, 2, [0]), (3, 4, 2, [0]), (8, 4, 4, [0, 4])],
)
def test_windows_cover_all_once_and_stay_inside(length, crop, stride, starts):
    assert window_starts(length, crop, stride) == starts


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(70, 95), (16, 40), (10, 12), (33, 16)])
def test_windows_agree_with_the_whole_image(height, width, batch_size):
    model = Pointwise()
    image = torch.randn(3, height, width)
    whole = predict_whole(model, image[None])
    slide = predict_slide(model, image, crop=16, stride=9, batch_size=batch_size)
    assert slide.labels.shape == slide.confidence.shape == (height, width)
    assert slide.labels.dtype == torch.uint8
    assert torch.equal(slide.labels, whole.labels[0])
    torch.testing.assert_close(slide.confidence, whole.confidence[0])


def test_every_window_is_computed_once_in_batches():
    model = Pointwise()
    predict_slide(model, torch.randn(3, 40, 50), crop=16, stride=12, batch_size=3)
    rows, columns = len(window_starts(40, 16, 12)), len(window_starts(50, 16, 12))
    assert sum(shape[0] for shape in model.windows) == rows * columns
    assert {shape[1:] for shape in model.windows} == {(3, 16, 16)}
    assert max(shape[0] for shape in model.windows) == 3


def test_overlaps_are_averaged_with_equal_weights():
    bands = list(slide_bands(WindowNumber(4), torch.zeros(3, 6, 6), crop=4, stride=2, batch_size=1))
    assert [top for top, _ in bands] == [0, 2]
    probabilities = torch.cat([band for _, band in bands], dim=1)
    expected = torch.zeros(4, 6, 6)
    for number, (top, left) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        expected[number, top : top + 4, left : left + 4] = 1
    torch.testing.assert_close(probabilities, expected / expected.sum(0))


def test_three_overlapping_rows_of_windows_are_averaged():
    bands = slide_bands(WindowNumber(5), torch.zeros(3, 8, 4), crop=4, stride=1)
    probabilities = torch.cat([band for _, band in bands], dim=1)
    expected = torch.zeros(5, 8, 4)
    for number in range(5):
        expected[number, number : number + 4] = 1
    torch.testing.assert_close(probabilities, expected / expected.sum(0))


def test_only_the_rows_of_one_window_are_held():
    heights = [
        band.shape[1] for _, band in slide_bands(Pointwise(), torch.randn(3, 200, 20), crop=16, stride=8)
    ]
    assert sum(heights) == 200
    assert max(heights) <= 16


def test_uint8_images_are_normalised_window_by_window():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)

    def prepare(windows):
        assert windows.dtype == torch.uint8
        return windows.float() / 255

    model = Pointwise()
    slide = predict_slide(model, image, crop=16, prepare=prepare)
    whole = predict_whole(model, torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    assert torch.equal(slide.labels, whole.labels[0])
    with pytest.raises(ValueError, match="image is torch.uint8"):
        predict_slide(model, image, crop=16)


@pytest.mark.parametrize("stride", [0, 17])
def test_a_stride_that_leaves_gaps_is_an_error_with_the_value(stride):
    with pytest.raises(ValueError, match=f"between 1 and the crop of 16 pixels, got {stride}"):
        predict_slide(Pointwise(), torch.zeros(3, 40, 40), crop=16, stride=stride)


def test_an_image_of_one_window_equals_the_whole_image_through_the_model():
    model = build_segmentor(Variant("tiny", 32, 4, 4, (0, 1, 2, 3)), {"a": 3, "b": 4}, 64, channels=8).eval()
    image = torch.randn(3, 50, 61)
    whole = predict_whole(model, image[None], "b")
    slide = predict_slide(model, image, crop=64, task="b")
    assert torch.equal(slide.labels, whole.labels[0])
    assert not slide.confidence.requires_grad
    assert int(whole.labels.max()) < 4
