"""Scale-MAE (arXiv 2212.14532): ViT-L, on fMoW."""

from mmengine.config import read_base

with read_base():
    from ._single import *

backbone = "vit_l"
load_from = "weights/scalemae-vitlarge-800.pth"
model.update(norm_eps=1e-6, activation_checkpointing=True)
