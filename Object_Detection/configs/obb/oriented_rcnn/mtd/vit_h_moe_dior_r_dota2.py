"""The same with ViT-H and activation checkpointing to save memory."""

from mmengine.config import read_base

with read_base():
    from .vit_b_moe_dior_r_dota2 import *

backbone = "vit_h_moe"
model.update(activation_checkpointing=True)
