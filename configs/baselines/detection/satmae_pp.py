"""SatMAE++ (arXiv 2403.05419): ViT-L, on fMoW-RGB."""

from mmengine.config import read_base

with read_base():
    from ._single import *

backbone = "vit_l"
load_from = "weights/satmae_pp_vit_l_fmow_rgb.pth"
init_bands = (3, 2, 1)  # its images were BGR
model.update(
    norm_eps=1e-6,
    normalization=((0.399, 0.421, 0.418), (0.276, 0.275, 0.288)),  # that of fMoW, as RGB
    activation_checkpointing=True,
)
