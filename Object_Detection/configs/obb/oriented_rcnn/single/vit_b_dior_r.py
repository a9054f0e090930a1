"""Plain Oriented R-CNN with ViT-B on DIOR-R alone."""

from mmengine.config import read_base

with read_base():
    from ...._base_.dior_r import _dior
    from ..mtd.vit_b_moe_dior_r_dota2 import *

backbone = "vit_b"
tasks = dict(dior=_dior)
