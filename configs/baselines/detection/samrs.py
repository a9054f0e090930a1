"""SAMRS (arXiv 2305.02034): ViT-B with RVSA, segmentation pre-training after MAE."""

from mmengine.config import read_base

with read_base():
    from ._single import *

backbone = "vit_b_rvsa"
load_from = "weights/samrs_vit_b_rvsa.pth"
model.update(norm_eps=1e-6, drop_path=0.15)
