"""MTP (arXiv 2403.13430): ViT-L with RVSA, multi-task pre-training after MAE."""

from mmengine.config import read_base

with read_base():
    from ._single import *

backbone = "vit_l_rvsa"
load_from = "weights/mtp_vit_l_rvsa.pth"
model.update(norm_eps=1e-6, drop_path=0.3, activation_checkpointing=True)
