"""What all rows share: the published recipe. The other files here are the rows (docs/baselines.md).

`--tasks dior` or `--tasks dota` chooses the dataset, because each has a model of its own.
"""

from mmengine.config import read_base

with read_base():
    from ....Object_Detection.configs.obb.oriented_rcnn.mtd.vit_b_moe_dior_r_dota2 import *
