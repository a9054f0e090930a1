"""GFM (arXiv 2302.04476): Swin-B, continued from ImageNet-22k on GeoPile."""

from mmengine.config import read_base

with read_base():
    from ._single import *

backbone = "swin_b"
load_from = "weights/gfm_swin_b.pth"
