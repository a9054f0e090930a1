"""ViT-B with experts on DIOR-R and DOTA-v2.0, with the published values (arXiv 2508.12409).

Set `data_root` and `load_from`, here or on the command line: --cfg-options data_root=... load_from=...
"""

from mmengine.config import read_base

with read_base():
    from ...._base_.dior_r import _dior
    from ...._base_.dota2 import _dota
    from ...._base_.schedule_1x import *

data_root = "/path/to/detection_data"
load_from = None  # S4P weights, for example vit_b_s4p.pth
init_bands = None  # red, green, blue channels of load_from: (4, 3, 2) for Sentinel-2

backbone = "vit_b_moe"
tasks = dict(dior=_dior, dota=_dota)
size = 1024  # images are letterboxed to this size
workers = 8  # loader processes per GPU

model = dict(
    expert_channels=256,
    drop_path=0.1,
    activation_checkpointing=False,  # less memory, more time
    compile=False,  # torch.compile the transformer blocks (needs a C compiler, on a CPU a C++ compiler)
    finetune="full",  # frozen: only pyramid and heads train; lora: adapters, too (docs/finetuning.md)
    lora=dict(rank=8, alpha=16, targets=("attn.qkv", "attn.proj")),
    norm_eps=1e-5,  # of the backbone's norms
    normalization=None,  # of images: imagenet, dinov3_sat, clip, half, [mean, std]; None: that of load_from
    enlarge=(1.4, 1.2),  # of RoIs, height and width; mmrotate has (1, 1)
)
precision = "auto"  # bf16 where the device supports it, else fp16 on GPUs, else fp32
seed = 0
find_unused_parameters = False  # every weight has a gradient in every step
