"""Checkpoints of official and unofficial MAE code, and of timm."""

import torch

from s5.backbones import BODY, PATCH_EMBEDDING, StateDict, has_own_names
from s5.checkpoints.layouts.base import Parts, Weights, Written, head_names, require_dense
from s5.checkpoints.layouts.vit import VitLayout, join, same_names
from s5.errors import CheckpointError

PRETRAINING_PIXELS = 224  # image side of the published weights of MAE-pytorch
FEATURES_USAGE = (
    "timm.create_model(NAME, features_only=True) takes these weights with load_state_dict and computes the "
    "same; Swin also needs strict_img_size=False, always_partition=True"
)
LAYERS = same_names("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


class Timm(VitLayout):
    """The official MAE code, timm, and projects with the same names."""

    key = "timm"
    name = "MAE or timm"
    example = "blocks.N.attn.qkv.*"
    container = ""
    usage = (
        "timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(file=DST), features_only=True, "
        "img_size=..., class_token=False, global_pool='', final_norm=False, "
        "norm_layer=partial(torch.nn.LayerNorm, eps=1e-5)) computes the same maps after its blocks; without "
        "features_only, add num_classes=0"
    )
    block_names = LAYERS
    names = same_names("cls_token", "pos_embed", "patch_embed.proj")

    def matches(self, parts: Parts) -> bool:
        """Match any blocks."""
        return self.in_blocks(parts)

    def from_ours(self, weights: Weights) -> Written:
        """Write a plain ViT, or the feature network of another model of timm without its prefix."""
        if not has_own_names(weights.backbone):
            return super().from_ours(weights)
        require_dense(weights, self.name)
        network = {k.removeprefix(BODY): v for k, v in weights.backbone.items() if k.startswith(BODY)}
        left_out = [key for key in weights.backbone if not key.startswith(BODY)]
        return Written(network, (*left_out, *head_names(weights)), (FEATURES_USAGE,))


class SatMAE(Timm):
    """SatMAE and SatMAE++ for groups of bands, each with a patch embedding and tokens of its own.

    The first group is read: with its tokens alone, the network is a plain ViT, whose positional embedding is
    that of the place beside that of the group.
    """

    key = "satmae"
    name = "SatMAE with groups of bands"
    example = "patch_embed.G.proj.*, channel_embed"
    unwritable = "it needs a patch embedding for every group of bands; write timm's layout instead"
    names = same_names("cls_token", "pos_embed", "channel_embed") | {"patch_embed.0.proj": "patch_embed.proj"}

    def matches(self, parts: Parts) -> bool:
        """Match the embedding of the groups."""
        return "channel_embed" in parts.encoder and self.in_blocks(parts)

    def complete(self, backbone: StateDict) -> tuple[StateDict, tuple[str, ...]]:
        """Join the embeddings of place and group."""
        backbone = dict(backbone)
        groups = backbone.pop("channel_embed")  # (1, G, C')
        bands = backbone[PATCH_EMBEDDING].shape[1]
        if "pos_embed" in backbone:
            places = backbone["pos_embed"]  # (1, slots + N, C - C')
            if groups.ndim != len(places.shape) or len(groups) != 1:
                raise CheckpointError(
                    f"channel_embed has the shape {tuple(groups.shape)} instead of (1, groups, width)"
                )
            group = groups[:, :1].expand(-1, places.shape[1], -1)
            backbone["pos_embed"] = torch.cat((places, group), dim=2)
        completed, notes = super().complete(backbone)
        published = ": B02, B03, B04, B08 in the published weights" if bands == 4 else ""
        note = f"group 1 of {groups.shape[1]}, {bands} bands{published}; the others have tokens of their own"
        return completed, (note, *notes)


class UnofficialMAE(VitLayout):
    """MAE-pytorch (pengzhiliang): biases of queries and values only, and no stored positional embedding."""

    key = "mae-pytorch"
    name = "unofficial MAE (MAE-pytorch)"
    example = "blocks.N.attn.q_bias"
    lacks = ("pyramid.", "cls_token")
    unwritable = (
        "it has no biases of keys, and its code computes the positional embedding; write timm's instead"
    )
    block_names = LAYERS | same_names("attn.q_bias", "attn.v_bias")
    names = Timm.names

    def matches(self, parts: Parts) -> bool:
        """Match separate biases in blocks."""
        return self.in_blocks(parts, "attn.q_bias")

    def complete(self, backbone: StateDict) -> tuple[StateDict, tuple[str, ...]]:
        """Join the biases, and add the positional embedding if it is fixed."""
        notes = []
        backbone = join(backbone, ("attn.q_bias", None, "attn.v_bias"), "attn.qkv.bias")
        if "pos_embed" not in backbone:
            side = PRETRAINING_PIXELS // backbone[PATCH_EMBEDDING].shape[-1]
            backbone["pos_embed"] = sinusoid_positions(side * side, backbone[PATCH_EMBEDDING].shape[0])
            notes.append(
                f"fixed sin-cos positional embedding of {side}x{side}, which this layout does not store"
            )
        completed, more = super().complete(backbone)
        return completed, (*notes, *more)


def sinusoid_positions(length: int, width: int) -> torch.Tensor:
    """Positional embedding (1, length, width) of "Attention is all you need", patches in row-major order.

    Even channels are sines and odd channels cosines, with wavelengths from 2 pi to 20 000 pi patches.
    """
    channel = torch.arange(width, dtype=torch.float64)
    wavelength = 10_000 ** (2 * (channel // 2) / width)
    angle = torch.arange(length, dtype=torch.float64)[:, None] / wavelength
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()[None]
