"""OReole (arXiv 2410.19965): ViT-G, MAE."""

from mmengine.config import read_base

with read_base():
    from ._single import *

backbone = "vit_g"
load_from = "weights/oreole_vit_g.pth"
model.update(norm_eps=1e-6, activation_checkpointing=True)
