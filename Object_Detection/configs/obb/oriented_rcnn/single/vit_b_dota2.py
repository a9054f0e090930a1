"""Plain Oriented R-CNN with ViT-B on DOTA-v2.0 alone."""

from mmengine.config import read_base

with read_base():
    from ...._base_.dota2 import _dota
    from ..mtd.vit_b_moe_dior_r_dota2 import *

backbone = "vit_b"
tasks = dict(dota=_dota)
