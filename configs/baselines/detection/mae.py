"""MAE (arXiv 2111.06377): ViT-L, on ImageNet."""

from mmengine.config import read_base

with read_base():
    from ._single import *

backbone = "vit_l"
load_from = "timm:vit_large_patch16_224.mae"
model.update(norm_eps=1e-6, activation_checkpointing=True)
