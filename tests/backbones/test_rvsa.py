"""ViT with RVSA: its formula against plain loops, special cases, other sizes, and the contract."""

import math

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from s5.backbones import create_backbone, identify
from s5.backbones.rvsa import (
    RVSA_VARIANTS,
    GlobalAttention,
    RvsaVariant,
    RvsaViT,
    WindowAttention,
    resample_distances,
)
from s5.backbones.vit import ViT
from s5.checkpoints.loading import load_weights
from s5.errors import CheckpointError
from tests.backbones.contract import BackboneContract, ExpertsContract
from tests.backbones.test_vit import TINY as PLAIN
from tests.helpers.vit_checkpoints import RVSA as TINY
from tests.helpers.vit_checkpoints import drawn

WIDTH, HEADS, WINDOW = TINY.width, TINY.heads, TINY.window
HEAD = WIDTH // HEADS


class TestRvsa(BackboneContract):
    architecture = TINY


class TestMoeRvsa(ExpertsContract):
    architecture = TINY


# -- the formula, written down once more


def predicted(head: nn.Sequential, window: Tensor) -> Tensor:
    """What a head predicts for the tokens (w, w, C) of a window."""
    mean = window.sum((0, 1)) / WINDOW**2
    return head[2].weight[:, :, 0, 0] @ torch.where(mean > 0, mean, 0.01 * mean) + head[2].bias


def plain_windows(layer: WindowAttention, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Attention of one image's tokens (rows, columns, C), window by window and head by head."""
    (rows, columns), w = grid, WINDOW
    padded = [math.ceil(side / w) * w for side in grid]
    first = [(wide - side) // 2 for wide, side in zip(padded, grid, strict=True)]
    inside = (slice(first[0], first[0] + rows), slice(first[1], first[1] + columns))
    x, qkv = tokens.new_zeros(*padded, WIDTH), tokens.new_zeros(*padded, 3 * WIDTH)
    x[inside], qkv[inside] = tokens, tokens @ layer.qkv.weight.T + layer.qkv.bias
    out = torch.zeros_like(x)
    for top in range(0, padded[0], w):
        for left in range(0, padded[1], w):
            window = (slice(top, top + w), slice(left, left + w))
            offsets, scales, angles = (
                predicted(head, x[window])
                for head in (layer.sampling_offsets, layer.sampling_scales, layer.sampling_angles)
            )
            for head in range(HEADS):
                part = slice(head * HEAD, (head + 1) * HEAD)
                q, k, v = (qkv[..., i * WIDTH :][..., part] for i in range(3))
                points = torch.zeros(w, w, 2, dtype=x.dtype)
                for i in range(w):
                    for j in range(w):
                        dx = (j - (w - 1) / 2) * 2 / (padded[1] - 1) * (1 + scales[2 * head])
                        dy = (i - (w - 1) / 2) * 2 / (padded[0] - 1) * (1 + scales[2 * head + 1])
                        sin, cos = angles[head].sin(), angles[head].cos()
                        center_x = -1 + 2 * (left + (w - 1) / 2) / (padded[1] - 1)
                        center_y = -1 + 2 * (top + (w - 1) / 2) / (padded[0] - 1)
                        points[i, j, 0] = center_x + dx * cos - dy * sin + offsets[2 * head] / (rows // w)
                        points[i, j, 1] = (
                            center_y + dx * sin + dy * cos + offsets[2 * head + 1] / (columns // w)
                        )
                k, v = (
                    F.grid_sample(m.permute(2, 0, 1)[None], points[None], "bilinear", "zeros", True)[0]
                    .flatten(1)
                    .T
                    for m in (k, v)
                )
                q = q[window].flatten(0, 1)
                scores = q @ k.T / math.sqrt(HEAD)
                for query in range(w * w):
                    for key in range(w * w):
                        down, right = query // w - key // w + w - 1, query % w - key % w + w - 1
                        scores[query, key] += q[query] @ (layer.rel_pos_h[down] + layer.rel_pos_w[right])
                        pair = down * (2 * w - 1) + right
                        scores[query, key] += layer.relative_position_bias_table[pair, head]
                out[window][..., part] = (scores.softmax(-1) @ v).view(w, w, HEAD)
    return out[inside] @ layer.proj.weight.T + layer.proj.bias


def plain_global(layer: GlobalAttention, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Attention of one image's tokens (rows, columns, C), pair by pair."""
    (rows, columns), length = grid, grid[0] * grid[1]
    qkv = tokens.flatten(0, 1) @ layer.qkv.weight.T + layer.qkv.bias
    outs = []
    for head in range(HEADS):
        q, k, v = (qkv[:, i * WIDTH + head * HEAD :][:, :HEAD] for i in range(3))
        q = q / math.sqrt(HEAD)
        scores = q @ k.T
        for query in range(length):
            for key in range(length):
                down = query // columns - key // columns + rows - 1
                right = query % columns - key % columns + columns - 1
                scores[query, key] += q[query] @ layer.full_attn_rel_pos_h[down]
                scores[query, key] += q[query] @ layer.full_attn_rel_pos_w[right]
        outs.append(scores.softmax(-1) @ v)
    return (torch.cat(outs, 1) @ layer.proj.weight.T + layer.proj.bias).view(rows, columns, WIDTH)


@pytest.mark.parametrize("grid", [(3, 3), (4, 4), (5, 7), (6, 3)])
@torch.no_grad()
def test_windows_equal_plain_loops(grid: tuple[int, int]) -> None:
    layer = drawn(WindowAttention(WIDTH, HEADS, WINDOW)).double()
    tokens = torch.randn(2, *grid, WIDTH, dtype=torch.float64)
    ours = layer(tokens.flatten(1, 2), grid).view_as(tokens)
    expected = torch.stack([plain_windows(layer, image, grid) for image in tokens])
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-10)
    single = layer.float()(tokens.float().flatten(1, 2), grid).view_as(tokens)
    torch.testing.assert_close(single.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
@torch.no_grad()
def test_global_attention_equals_plain_loops(grid: tuple[int, int]) -> None:
    layer = drawn(GlobalAttention(WIDTH, HEADS, grid)).double()
    tokens = torch.randn(2, *grid, WIDTH, dtype=torch.float64)
    ours = layer(tokens.flatten(1, 2), grid).view_as(tokens)
    expected = torch.stack([plain_global(layer, image, grid) for image in tokens])
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-10)


# -- special cases


def without_positions(layer: nn.Module) -> tuple[nn.Module, Attention]:
    """The layer with random weights, but no relative positions or moved windows; timm's with the same."""
    drawn(layer)
    plain = Attention(WIDTH, HEADS, qkv_bias=True)
    for name, parameter in layer.named_parameters():
        if name not in plain.state_dict():
            nn.init.zeros_(parameter)
    plain.load_state_dict({name: layer.state_dict()[name] for name in plain.state_dict()})
    return layer, plain


@torch.no_grad()
def test_windows_that_stay_in_place_are_ordinary_window_attention() -> None:
    layer, plain = without_positions(WindowAttention(WIDTH, HEADS, WINDOW))
    tokens = torch.randn(2, 6, 9, WIDTH)
    windows = tokens.unflatten(2, (-1, 3)).unflatten(1, (-1, 3)).transpose(2, 3)  # (2, 2, 3, w, w, C)
    expected = plain(windows.flatten(3, 4).flatten(0, 2)).view_as(windows).transpose(2, 3)
    ours = layer(tokens.flatten(1, 2), (6, 9))
    torch.testing.assert_close(ours.view_as(expected), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_global_attention_without_positions_is_that_of_timm() -> None:
    layer, plain = without_positions(GlobalAttention(WIDTH, HEADS, (4, 4)))
    tokens = torch.randn(2, 16, WIDTH)
    torch.testing.assert_close(layer(tokens, (4, 4)), plain(tokens), atol=1e-5, rtol=1e-5)


def fresh() -> WindowAttention:
    """A layer as it starts, on 6 x 6 tokens: a step between tokens is 0.4, a window 1.2."""
    return WindowAttention(WIDTH, HEADS, WINDOW)


@torch.no_grad()
def test_windows_start_in_place() -> None:
    points = fresh().sampling_points(torch.randn(1, 36, WIDTH), (6, 6))
    row = torch.linspace(-1, 1, 6)
    expected = torch.stack((row.repeat(6), row.repeat_interleave(6)), 1).view(2, 3, 2, 3, 2).transpose(1, 2)
    torch.testing.assert_close(points, expected.reshape(1, 1, 4, 9, 2).expand(1, HEADS, -1, -1, -1))


@pytest.mark.parametrize(
    ("head", "values", "corner"),
    [
        ("sampling_offsets", (1.0, -0.5), (-1 + 1 / 2, -1 - 0.5 / 2)),  # in windows, of which there are 2
        ("sampling_scales", (1.0, 0.0), (-1.4, -1.0)),  # twice as wide
        ("sampling_angles", (math.pi / 2,), (-0.2, -1.0)),  # a right angle, from x to y
    ],
)
@torch.no_grad()
def test_a_head_moves_scales_or_rotates_its_window(
    head: str, values: tuple[float, ...], corner: tuple[float, float]
) -> None:
    layer = fresh()
    layer.get_submodule(head)[2].bias[: len(values)] = torch.tensor(values)
    points = layer.sampling_points(torch.randn(1, 36, WIDTH), (6, 6))
    torch.testing.assert_close(points[0, 0, 0, 0], torch.tensor(corner))
    torch.testing.assert_close(
        points[0, 1:], fresh().sampling_points(torch.zeros(1, 36, WIDTH), (6, 6))[0, 1:]
    )


@torch.no_grad()
def test_points_are_computed_in_single_precision_under_autocast() -> None:
    layer, tokens = drawn(fresh()), torch.randn(1, 36, WIDTH)
    expected = layer.sampling_points(tokens, (6, 6))
    with torch.autocast("cpu", torch.bfloat16):
        points, out = layer.sampling_points(tokens, (6, 6)), layer(tokens, (6, 6))
    assert points.dtype == torch.float32 and torch.equal(points, expected)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(tokens, (6, 6)), atol=0.1, rtol=0.1)


@torch.no_grad()
def test_an_image_smaller_than_a_window_has_finite_features() -> None:
    backbone = drawn(RvsaViT(TINY, 64))
    assert all(level.isfinite().all() for level in backbone(torch.randn(1, 3, 32, 32)))


def test_every_third_or_sixth_block_attends_globally() -> None:
    with torch.device("meta"):
        for name, blocks in (("vit_b_rvsa", [2, 5, 8, 11]), ("vit_l_rvsa", [5, 11, 17, 23])):
            backbone = create_backbone(name)
            found = [i for i, b in enumerate(backbone.blocks) if isinstance(b.attn, GlobalAttention)]
            assert found == blocks
            others = [b.attn for i, b in enumerate(backbone.blocks) if i not in blocks]
            assert all(isinstance(attn, WindowAttention) and attn.window == 7 for attn in others)


# -- weights


@pytest.mark.parametrize("name", RVSA_VARIANTS)
def test_counts(name: str) -> None:
    """Those of the plain ViT without the class token, and what RVSA adds."""
    plain, row = name.removesuffix("_rvsa"), RVSA_VARIANTS[name]
    window = 2 * 13 * 64 + 13**2 * row.heads + 5 * row.heads * (row.width + 1)
    everywhere = 2 * 63 * 64
    layers = row.depth // row.global_every
    with torch.device("meta"):
        ours, theirs = (sum(p.numel() for p in create_backbone(b).parameters()) for b in (name, plain))
    assert ours == theirs - row.width + (row.depth - layers) * window + layers * everywhere


def test_tables_of_positions_have_no_weight_decay() -> None:
    backbone = RvsaViT(TINY, 64)
    kinds = {name.rpartition(".")[2] for name in backbone.undecayed}
    tables = {"rel_pos_h", "rel_pos_w", "relative_position_bias_table"}
    assert kinds == {"pos_embed", *tables, "full_attn_rel_pos_h", "full_attn_rel_pos_w"}


def test_weights_are_told_from_those_of_the_plain_vit() -> None:
    ours, plain = RvsaViT(TINY, 64).state_dict(), ViT(PLAIN, 64).state_dict()
    assert TINY.fits(ours) and TINY.fits(plain)
    assert PLAIN.fits(plain) and not PLAIN.fits(ours)
    with torch.device("meta"):
        assert identify(create_backbone("vit_b_rvsa", 32).state_dict()) == "vit_b_rvsa"
        assert identify(create_backbone("vit_b", 32).state_dict()) == "vit_b"
    with pytest.raises(CheckpointError, match=r"rotated windows in the checkpoint, width 32.* in tiny"):
        load_weights(ViT(PLAIN, 64), ours)


@torch.no_grad()
def test_weights_of_a_plain_vit_start_it() -> None:
    plain, backbone = drawn(ViT(PLAIN, 64)), RvsaViT(TINY, 64)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    report = load_weights(backbone, plain.state_dict())
    assert report.backbone_share == 1.0 and not report.missing
    (note,) = report.notes
    assert note == "weights of a plain ViT: 22 tensors of RVSA are those of the model"
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, plain.state_dict().get(name, before[name])), name


def test_weights_of_rvsa_may_not_lack_a_part_of_it() -> None:
    state = RvsaViT(TINY, 64).state_dict()
    del state["blocks.2.attn.sampling_angles.2.weight"]
    with pytest.raises(CheckpointError, match=r"blocks\.2\.attn\.sampling_angles\.2\.weight: missing"):
        load_weights(RvsaViT(TINY, 64), state)


def test_global_attention_in_other_blocks_is_an_error() -> None:
    other = RvsaVariant("other", WIDTH, 4, HEADS, (0, 1, 2, 3), window=WINDOW, global_every=4)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.full_attn_rel_pos_h: missing"):
        load_weights(RvsaViT(TINY, 64), RvsaViT(other, 64).state_dict())


@torch.no_grad()
def test_a_model_for_another_size_computes_the_same_at_that_size() -> None:
    """Tables resampled once, when weights are loaded, or with every image."""
    source, target = drawn(RvsaViT(TINY, 64)), RvsaViT(TINY, (96, 128)).eval()
    report = load_weights(target, source.state_dict())
    assert "relative positions of global attention resampled to 6x8" in report.notes
    images = torch.randn(1, 3, 96, 128)
    for one, other in zip(target(images), source(images), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_resampled_distances_keep_their_middle_and_order() -> None:
    table = torch.arange(-3.0, 4.0)[:, None]  # of 4 tokens
    assert torch.equal(resample_distances(table, 4), table)
    finer = resample_distances(table, 8)[:, 0]
    assert len(finer) == 15 and finer[7] == 0 and (finer.diff() > 0).all()
    torch.testing.assert_close(finer, -finer.flip(0))
