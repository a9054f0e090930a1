"""BillionFM (arXiv 2304.05215): ViT-G, MAE on MillionAID."""

from mmengine.config import read_base

with read_base():
    from ._single import *

backbone = "vit_g"
load_from = "weights/billionfm_vit_g.pth"
model.update(norm_eps=1e-6, activation_checkpointing=True)
