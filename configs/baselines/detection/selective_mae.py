"""SelectiveMAE (arXiv 2406.11933): ViT-L, on OpticalRS-13M."""

from mmengine.config import read_base

with read_base():
    from ._single import *

backbone = "vit_l"
load_from = "weights/selectivemae_vit_l.pth"
model.update(norm_eps=1e-6, activation_checkpointing=True)
