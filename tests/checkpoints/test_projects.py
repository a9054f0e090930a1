"""Files of remote-sensing projects, as their public code writes them: equal features, and what they lack."""

import pytest
import torch
from torch import nn

from s5.backbones.vit import Variant, ViT
from s5.checkpoints.loading import load_weights
from s5.errors import CheckpointError
from tests.helpers.project_files import (
    DECODER,
    extra,
    finetuned,
    fsdp,
    ma3e,
    mae,
    network,
    satmae_pp,
    scale_mae,
    selective_mae,
)
from tests.helpers.vit_checkpoints import DEPTH, HEADS, SIZE, TINY, WIDTH, renamed, tokens

EPS = 1e-6
GROUP = 8  # channels of the embedding of SatMAE's groups


PROJECTS = {
    "MAE": mae,
    "Scale-MAE": scale_mae,
    "SatMAE and SatMAE++ on RGB": satmae_pp,
    "SatMAE, fine-tuned": finetuned,
    "MA3E": ma3e,
    "SelectiveMAE": selective_mae,
    "BillionFM and OReole as MAE": fsdp,
}


def assert_same_features(vit: ViT, other: nn.Module, images: torch.Tensor) -> None:
    expected = tokens(other, other.blocks, images)
    for one, two in zip(tokens(vit, vit.blocks, images), expected, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("project", PROJECTS)
def test_features_equal_those_of_timm_with_the_same_weights(project: str) -> None:
    timm_vit, vit = network(), ViT(TINY, SIZE, norm_eps=EPS).eval()
    report = load_weights(vit, PROJECTS[project](timm_vit.state_dict()))
    assert report.layout == "MAE or timm" and report.backbone_share == 1.0 and not report.misshaped
    assert not any(name.startswith("blocks.") for name in report.unexpected)
    assert_same_features(vit, timm_vit, torch.randn(2, 3, SIZE, SIZE))


def scale_positions(side: int, resolution: float, offset: float = 0.0) -> torch.Tensor:
    """Positional embedding (1, side * side, WIDTH) of Scale-MAE: sines and cosines of columns, of rows."""
    place = (torch.arange(side) + offset) * resolution
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    frequency = 1 / 10_000 ** (torch.arange(WIDTH // 4) / (WIDTH / 4))
    angles = [axis.flatten()[:, None] * frequency for axis in (columns, rows)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1)[None]


def test_larger_images_are_as_large_on_the_ground_to_scale_mae() -> None:
    """Of an image with twice the pixels, its positions at half the resolution are those resampled."""
    state = network().state_dict()
    state["pos_embed"] = scale_positions(14, 1.0)
    vit = ViT(TINY, 28 * 16)
    load_weights(vit, scale_mae(state))
    computed = scale_positions(28, 0.5, offset=-0.5)
    inner = (slice(None), *[slice(3, -3)] * 2)
    ours, theirs = (table.detach().reshape(1, 28, 28, WIDTH)[inner] for table in (vit.pos_embed, computed))
    torch.testing.assert_close(ours, theirs, atol=0.04, rtol=0)  # of the shortest waves


def groups(state: dict) -> dict:
    """SatMAE for groups of bands, of which the first has the weights of a ViT for four bands."""
    state = dict(state)
    for group, bands in ((1, 4), (2, 2)):
        state[f"patch_embed.{group}.proj.weight"] = torch.randn(WIDTH, bands, 8, 8)
        state[f"patch_embed.{group}.proj.bias"] = torch.randn(WIDTH)
    state = renamed(state, (r"^patch_embed\.proj", "patch_embed.0.proj"))
    places, group = state["pos_embed"].split((WIDTH - GROUP, GROUP), dim=2)
    slot = torch.randn(1, 1, WIDTH - GROUP)
    state["pos_embed"] = torch.cat((slot, places), 1)
    state["channel_embed"] = torch.cat((group[:, :1], torch.randn(1, 2, GROUP)), 1)
    return {"model": state | extra("cls_token", *DECODER) | {"channel_cls_embed": torch.zeros(1, 1, GROUP)}}


@pytest.fixture
def grouped() -> nn.Module:
    """The network of the first group alone."""
    timm_vit = network(bands=4, patch=8)
    with torch.no_grad():
        timm_vit.pos_embed[..., -GROUP:] = torch.randn(GROUP)  # the same everywhere
    return timm_vit


@pytest.mark.parametrize("bands", [(3, 2, 1), ("B04", "B03", "B02"), ("b4", "b3", "b2")])
def test_the_first_group_of_satmae_is_a_plain_vit(grouped: nn.Module, bands: tuple) -> None:
    variant = Variant("tiny8", WIDTH, DEPTH, HEADS, (0, 1, 2, 3), patch=8)
    vit = ViT(variant, SIZE, norm_eps=EPS).eval()
    report = load_weights(vit, groups(grouped.state_dict()), bands=bands)
    assert report.layout == "SatMAE with groups of bands" and report.backbone_share == 1.0
    assert "group 1 of 3, 4 bands: B02, B03, B04, B08" in report.table()
    assert "patch_embed.2.proj.weight" in report.unexpected
    blue_green_red_nir = torch.randn(2, 4, SIZE, SIZE)
    blue_green_red_nir[:, 3] = 0  # which we do not see
    ours = blue_green_red_nir[:, [2, 1, 0]]
    expected = tokens(grouped, grouped.blocks, blue_green_red_nir)
    for one, two in zip(tokens(vit, vit.blocks, ours), expected, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_satmae_without_bands_says_how_to_choose_them(grouped: nn.Module) -> None:
    with pytest.raises(CheckpointError, match=r"\(32, 4, 16, 16\).*\n.*4 channels.*--init-bands R,G,B"):
        load_weights(ViT(TINY, SIZE), groups(grouped.state_dict()))


def test_satmae_with_an_embedding_of_another_form_is_an_error(grouped: nn.Module) -> None:
    checkpoint = groups(grouped.state_dict())
    checkpoint["model"]["channel_embed"] = torch.zeros(3, GROUP)
    with pytest.raises(CheckpointError, match=r"channel_embed has the shape \(3, 8\)"):
        load_weights(ViT(TINY, SIZE), checkpoint)


def test_positions_that_are_a_part_of_the_embedding_are_an_error() -> None:
    state = mae(network().state_dict())
    state["pos_embed"] = state["pos_embed"][..., :20]
    with pytest.raises(
        CheckpointError, match="width 20, the patch embedding 32: .*dates in SatMAE's temporal"
    ):
        load_weights(ViT(TINY, SIZE), state)


@pytest.mark.parametrize("patch", [8, 14])
def test_smaller_patches_give_the_same_tokens_for_enlarged_images(patch: int) -> None:
    timm_vit, vit = network(patch=patch), ViT(TINY, SIZE)
    report = load_weights(vit, mae(timm_vit.state_dict()))
    assert f"patch embedding of {patch}x{patch} pixels resampled to 16x16" in report.notes
    small = torch.randn(2, 3, patch, patch)
    large = nn.functional.interpolate(small, size=(16, 16), mode="bicubic", antialias=True)
    theirs = timm_vit.patch_embed.proj(small).flatten(1)
    torch.testing.assert_close(vit.patch_embed(large)[:, 0], theirs, atol=1e-3, rtol=1e-3)
