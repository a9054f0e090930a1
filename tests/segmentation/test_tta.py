"""Test-time augmentation on networks whose behaviour under flips and scales is known."""

import pytest
import torch
import torch.nn.functional as F

from s5.ops.photometric import to_unit
from s5.segmentation.tta import Tta, augmented
from s5.segmentation.windows import Inference, predict_bands, rows_of

KERNEL = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
EVEN = KERNEL + KERNEL.flip(-1)
EQUIVARIANT = EVEN + EVEN.flip(-2)


def network(kernel):
    def probabilities(images):
        shapes.append(tuple(images.shape[-2:]))
        return F.conv2d(to_unit(images), kernel, padding=1).softmax(1)

    shapes = probabilities.shapes = []
    return probabilities


def images(height=20, width=14, count=2):
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8)


def test_flips_change_nothing_for_a_network_that_turns_with_the_image():
    plain, batch = network(EQUIVARIANT), images()
    torch.testing.assert_close(augmented(plain, Tta(flip=True))(batch), plain(batch))


@pytest.mark.parametrize("dims", [(-1,), (-2,), (-2, -1)])
def test_flips_make_any_network_turn_with_the_image(dims):
    plain, batch = network(KERNEL), images()
    flipping = augmented(plain, Tta(flip=True))
    torch.testing.assert_close(flipping(batch.flip(dims)), flipping(batch).flip(dims))
    assert not torch.allclose(plain(batch.flip(dims)), plain(batch).flip(dims), atol=0.01)


def test_the_mean_of_the_views():
    plain, batch = network(KERNEL), images()
    views = [plain(batch.flip(d)).flip(d) if d else plain(batch) for d in ((), (-1,), (-2,), (-1, -2))]
    torch.testing.assert_close(augmented(plain, Tta(flip=True))(batch), torch.stack(views).mean(0))


def test_scales_resize_the_window_and_the_probabilities_back():
    plain, batch = network(KERNEL[:, :, 1:2, 1:2].repeat(1, 1, 3, 3) / 9), images(40, 24)
    found = augmented(plain, Tta(scales=(0.75, 1.0, 1.5)))(batch)
    assert plain.shapes == [(30, 18), (40, 24), (60, 36)]
    assert found.shape == (2, 4, 40, 24)
    torch.testing.assert_close(found.sum(1), torch.ones(2, 40, 24))


def test_scales_change_nothing_on_a_uniform_image():
    plain = network(KERNEL.mean((2, 3), keepdim=True).repeat(1, 1, 3, 3))
    batch = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)
    found = augmented(plain, Tta(flip=True, scales=(0.5, 1.0, 2.0)))(batch)
    torch.testing.assert_close(found[..., 4:-4, 4:-4], plain(batch)[..., 4:-4, 4:-4])


def test_without_views_the_network_itself_is_used():
    plain = network(KERNEL)
    assert augmented(plain, None) is plain
    assert augmented(plain, Tta()) is plain
    assert Tta(flip=True, scales=(0.5, 1.0)).views == 8


def test_a_single_scale_is_applied():
    plain, batch = network(KERNEL), images(32, 32)
    augmented(plain, Tta(scales=(2.0,)))(batch)
    assert plain.shapes == [(64, 64)]


def test_windows_are_augmented_one_by_one():
    plain, image = network(EQUIVARIANT[:, :, 1:2, 1:2].repeat(1, 1, 3, 3)), images(40, 50, 1)[0]
    how = Inference("slide_window", 16, 12)
    both = [
        torch.cat([band.clone() for _, band in predict_bands(probabilities, rows_of(image), how)], dim=1)
        for probabilities in (plain, augmented(plain, Tta(flip=True)))
    ]
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -0.5), (float("inf"),)])
def test_scales_that_leave_nothing_are_an_error(scales):
    with pytest.raises(ValueError, match="scales .*: must be one or more positive numbers"):
        Tta(scales=scales)
