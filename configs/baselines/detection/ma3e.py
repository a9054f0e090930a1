"""MA3E (arXiv 2408.01946): ViT-B, on MillionAID."""

from mmengine.config import read_base

with read_base():
    from ._single import *

backbone = "vit_b"
load_from = "weights/ma3e_vit_b.pth"
model.update(norm_eps=1e-6)
