"""The same with ViT-H, whose blocks are recomputed in the backward pass to save memory."""

from mmengine.config import read_base

with read_base():
    from .vit_b_moe_dior_r_dota2 import *

backbone = "vit_h_moe"
model.update(activation_checkpointing=True)
