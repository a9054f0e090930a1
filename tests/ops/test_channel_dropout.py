"""Complementary channel dropout: what is kept, doubled, dropped, and shared."""

import pytest
import torch

from s5.ops.channel_dropout import complementary_dropout

LABELED, IMAGES = 3, 40


def dropped(views: int, share: float, channels: tuple[int, ...] = (16, 16)) -> list[torch.Tensor]:
    torch.manual_seed(0)
    maps = [torch.ones(LABELED + views * IMAGES, c, 2, 2) for c in channels]
    return [level[:, :, 0, 0] for level in complementary_dropout(maps, views, IMAGES, share)]


def test_two_views_share_the_channels() -> None:
    level, _ = dropped(views=2, share=1.0)
    first, second = level[LABELED:].split(IMAGES)
    assert set(level[LABELED:].unique().tolist()) == {0.0, 2.0}
    assert torch.equal(first + second, torch.full_like(first, 2.0))
    assert 0.4 < (first == 0).float().mean() < 0.6
    assert not torch.equal(first[0], first[1])  # a mask for each image


def test_labeled_images_keep_all_channels() -> None:
    level, _ = dropped(views=2, share=1.0)
    assert (level[:LABELED] == 1).all()


def test_only_a_share_of_the_images_is_changed_in_both_views() -> None:
    level, _ = dropped(views=2, share=0.5)
    first, second = (view.eq(1).all(1) for view in level[LABELED:].split(IMAGES))
    assert torch.equal(first, second)
    assert first.sum() == IMAGES / 2


@pytest.mark.parametrize(("images", "changed"), [(1, 1), (2, 1), (5, 3)])
def test_the_share_is_rounded_up(images: int, changed: int) -> None:
    (level,) = complementary_dropout([torch.ones(images, 16, 1, 1)], 1, images, 0.5)
    assert level.ne(1).flatten(1).any(1).sum() == changed


def test_maps_of_equal_width_have_one_mask() -> None:
    same = dropped(views=2, share=1.0)
    assert torch.equal(same[0], same[1])
    narrow, wide = dropped(views=2, share=1.0, channels=(8, 16))
    assert narrow.shape[1] == 8 and wide.shape[1] == 16


def test_a_third_view_has_its_own_mask() -> None:
    level, _ = dropped(views=3, share=1.0)
    first, _, third = level[LABELED:].split(IMAGES)
    assert not torch.equal(first, third)


def test_a_single_view_is_changed() -> None:
    level, _ = dropped(views=1, share=1.0)
    assert set(level[LABELED:].unique().tolist()) == {0.0, 2.0}


def test_the_type_of_the_features_is_kept() -> None:
    (level,) = complementary_dropout([torch.ones(4, 8, 2, 2, dtype=torch.bfloat16)], 2, 2, 1.0)
    assert level.dtype == torch.bfloat16
