"""Bands by name: known orders, and what is no name in any of them."""

import pytest
import torch

from s5.backbones.vit import ViT
from s5.checkpoints.bands import band_numbers, is_band
from s5.checkpoints.loading import load_weights
from s5.errors import CheckpointError
from tests.helpers.vit_checkpoints import SIZE, TINY


@pytest.mark.parametrize(
    ("channels", "names", "numbers"),
    [
        (13, "B04,B03,B02", (4, 3, 2)),
        (13, "red,green,blue", (4, 3, 2)),
        (13, "B12,B11,B10", (13, 12, 11)),
        (12, "B8A,B4,b03", (9, 4, 3)),
        (12, "B12,B11,B9", (12, 11, 10)),
        (10, "Red,Green,Blue", (3, 2, 1)),
        (10, "nir,B8A,B12", (7, 8, 10)),
        (4, "B04,B03,B02", (3, 2, 1)),
    ],
)
def test_names_become_numbers(channels: int, names: str, numbers: tuple) -> None:
    assert band_numbers(names.split(","), channels) == numbers
    assert all(map(is_band, names.split(",")))


def test_a_checkpoint_of_other_bands_lists_the_known_orders() -> None:
    with pytest.raises(CheckpointError, match="has 5 bands, for which no known order") as error:
        band_numbers(("B04", "B03", "B02"), 5)
    assert "\n  12: B01,B02,B03,B04,B05,B06,B07,B08,B8A,B09,B11,B12 (Sentinel-2 L2A" in str(error.value)


@pytest.mark.parametrize(("channels", "name"), [(12, "B10"), (10, "B01"), (13, "B13"), (1, "red")])
def test_a_band_that_these_orders_lack_is_an_error(channels: int, name: str) -> None:
    with pytest.raises(
        CheckpointError, match=f"init_bands {name},B03,B02: .*{channels} band.*no known order"
    ):
        band_numbers((name, "B03", "B02"), channels)


def test_colours_in_an_order_that_is_not_known_are_an_error_with_the_choices() -> None:
    with pytest.raises(CheckpointError, match="4 bands, whose order is not known.*: 3,2,1 for .*; 1,2,3 for"):
        band_numbers(("red", "green", "blue"), 4)


def test_named_bands_of_a_checkpoint_are_loaded() -> None:
    vit = ViT(TINY, SIZE)
    wide = torch.randn(TINY.width, 13, 16, 16)
    state = vit.state_dict() | {"patch_embed.proj.weight": wide}
    report = load_weights(vit, state, bands=("B04", "B03", "B02"))
    assert "red, green and blue are channels 4, 3, 2 of 13 of the patch embedding" in report.notes
    assert torch.equal(vit.patch_embed.proj.weight, wide[:, [3, 2, 1]])
    with pytest.raises(CheckpointError, match="13 channels.*4,3,2 for Sentinel-2, or by name, B04,B03,B02"):
        load_weights(vit, state)
