"""Tiny plain ViTs of timm, with layer scale of 1 so that every tensor matters."""

from typing import Any

import timm
import torch
from torch import nn

from s5.backbones.timm_vit import TimmViTModel

WIDTH, DEPTH, HEADS = 32, 4, 4
SIZES = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}


def tiny(name: str, **options: object) -> TimmViTModel:
    """A model of timm, narrow and shallow."""
    return TimmViTModel(f"tiny-{name}", name, WIDTH, options={**SIZES, **options})


TINY = {
    "dinov2": tiny("vit_small_patch14_dinov2", init_values=1.0),
    "dinov2_reg": tiny("vit_small_patch14_reg4_dinov2", init_values=1.0),
    "dinov2_g": tiny("vit_giant_patch14_reg4_dinov2", init_values=1.0),
    "dinov3": tiny("vit_small_patch16_dinov3", init_values=1.0),
    "dinov3_7b": tiny("vit_7b_patch16_dinov3", init_values=1.0),
    "clip": tiny("vit_base_patch16_clip_224"),
    "rope_mixed": tiny("vit_base_patch16_rope_mixed_224"),
}
"""Small models by form."""


def drawn_timm(kind: str, img_size: int, patch_size: int = 16) -> Any:
    """timm's own network with random weights, without head, for images of any size."""
    row = TINY[kind]
    options = {**row.options, "img_size": img_size, "patch_size": patch_size, "dynamic_img_size": True}
    network = timm.create_model(row.timm, num_classes=0, **options).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return network
