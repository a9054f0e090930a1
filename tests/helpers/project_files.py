"""Small files of other projects, as their public code writes them, from networks of `vit_checkpoints`."""

import re

import torch
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from s5.backbones.rvsa import RvsaViT
from s5.checkpoints.layouts import convert, get_layout
from tests.helpers.vit_checkpoints import DEPTH, HEADS, SIZE, WIDTH, drawn, renamed, with_class_slot


def network(bands: int = 3, patch: int = 16, **options: object) -> nn.Module:
    """A ViT of timm without class token, because this package has tokens of patches only."""
    sizes = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "num_classes": 0}
    vit = TimmViT(SIZE, patch, bands, class_token=False, global_pool="avg", **sizes, **options, fc_norm=False)
    return drawn(vit)


def extra(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.randn(1, 1, WIDTH) for name in names}


DECODER = ("mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.attn.qkv.weight")


def mae(state: dict) -> dict:
    return with_class_slot(state) | extra("cls_token", *DECODER)


def scale_mae(state: dict) -> dict:
    """Decodes with a feature pyramid; the stored positions are those of resolution 1."""
    more = extra("mask_token_decoder", "fpn.do_upsample.weight", "fcn_high.conv.0.weight", "fcn_low.bias")
    return {"model": mae(state) | more, "optimizer": {}, "epoch": 799, "scaler": {}}


def satmae_pp(state: dict) -> dict:
    """Upsamples what it reconstructs, with convolutions of the same depth of names as a backbone."""
    more = extra("proj_up_conv.weight", "proj_up_norm.bias", "up_block.res_block.conv1.weight")
    return {"model": mae(state) | more, "epoch": 799}


def finetuned(state: dict) -> dict:
    """SatMAE after fine-tuning: a norm after pooling and a classifier."""
    return {"model": with_class_slot(state) | extra("cls_token", "fc_norm.weight", "head.weight")}


def ma3e(state: dict) -> dict:
    """Marks the tokens of rotated crops, which only pre-training has, with an embedding."""
    return {"model": mae(state) | extra("angle_embed"), "epoch": 1599}


def selective_mae(state: dict) -> dict:
    """Selects tokens with a network that has a block, and decodes by cross-attention."""
    more = extra("pos_embed_probs", "hog.weight_x", "get_token_probs_linear.weight", "decoder_embed1.weight")
    block = {f"get_token_probs.0.{key}": torch.randn(4) for key in ("norm1.weight", "attn.qkv.weight")}
    return {"model": mae(state) | more | block | extra("decoder_blocks.0.cross_attn.kv.weight")}


def fsdp(state: dict) -> dict:
    """MAE, trained with FSDP and activation checkpointing, as ViT-G by its authors."""
    wrapped = renamed(mae(state), (r"^blocks\.(\d+)", r"blocks.\1._fsdp_wrapped_module"))
    return {"model": renamed(wrapped, (r"attn\.qkv", "attn._checkpoint_wrapped_module.qkv"))}


def to_microsoft(state: dict) -> dict:
    """timm's Swin under the official names, with the buffers that the files hold."""
    late = {
        re.sub(r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key): value
        for key, value in state.items()
    }
    buffers = {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(4, 4, dtype=torch.long),
        "layers.1.blocks.1.attn_mask": torch.zeros(9, 4, 4),
    }
    return {key.replace("head.fc.", "head."): value for key, value in (late | buffers).items()}


def gfm(state: dict) -> dict:
    """As SimMIM stores Swin while it reconstructs; GFM's file also holds its teacher."""
    encoder = {f"encoder.{key}": value for key, value in to_microsoft(state).items()}
    more = {
        "encoder.mask_token": torch.zeros(1, 1, 16),
        "decoder.0.weight": torch.zeros(3072, 128, 1, 1),
        "projector.weight": torch.zeros(128, 128),
        "teacher.patch_embed.proj.weight": torch.zeros(16, 3, 4, 4),
    }
    return {"model": encoder | more, "optimizer": {}, "epoch": 99}


def released(backbone: RvsaViT) -> dict:
    """Its tensors as published, without prefix."""
    return get_layout("published").from_ours(convert(backbone.state_dict())).state


def mtp(backbone: RvsaViT) -> dict:
    """The encoder's file, with a norm after the blocks."""
    encoder = released(backbone) | {"norm.weight": torch.ones(WIDTH), "norm.bias": torch.zeros(WIDTH)}
    return {"state_dict": {f"module.encoder.{key}": value for key, value in encoder.items()}}


def samrs(backbone: RvsaViT) -> dict:
    """Has no relative positions in global attention."""
    state = {key: value for key, value in released(backbone).items() if "full_attn" not in key}
    return {"state_dict": {f"module.encoder.{key}": value for key, value in state.items()}}
