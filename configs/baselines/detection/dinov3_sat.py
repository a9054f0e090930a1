"""DINOv3 (arXiv 2508.10104): ViT-L, on satellite images."""

from mmengine.config import read_base

with read_base():
    from ._single import *

backbone = "dinov3_l"
load_from = "dinov3_sat"
model.update(activation_checkpointing=True)
