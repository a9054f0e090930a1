"""RVSA (arXiv 2208.03987): ViT-B with RVSA, MAE on MillionAID."""

from mmengine.config import read_base

with read_base():
    from ._single import *

backbone = "vit_b_rvsa"
load_from = "weights/vit_b_mae_millionaid.pth"
model.update(norm_eps=1e-6, drop_path=0.15)
