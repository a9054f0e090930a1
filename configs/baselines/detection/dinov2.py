"""DINOv2 (arXiv 2304.07193): ViT-L, on web images."""

from mmengine.config import read_base

with read_base():
    from ._single import *

backbone = "dinov2_l"
load_from = "timm"
model.update(activation_checkpointing=True)
