"""Checkpoints of mmsegmentation and mmpretrain."""

from s5.checkpoints.layouts.base import Parts
from s5.checkpoints.layouts.vit import VitLayout, same_names

# Also the names of the published S5 layout.
MMSEG_BLOCK_NAMES = {
    "ln1": "norm1",
    "ln2": "norm2",
    "attn.attn.in_proj_weight": "attn.qkv.weight",
    "attn.attn.in_proj_bias": "attn.qkv.bias",
    "attn.attn.out_proj": "attn.proj",
    "ffn.layers.0.0": "mlp.fc1",
    "ffn.layers.1": "mlp.fc2",
}


class MMSegmentation(VitLayout):
    """`VisionTransformer` of mmsegmentation."""

    key = "mmseg"
    name = "mmsegmentation ViT"
    example = "layers.N.attn.attn.in_proj_weight"
    usage = (
        "VisionTransformer(img_size=..., with_cls_token=False, patch_bias=True, norm_cfg=dict(type='LN', "
        "eps=1e-5), init_cfg=dict(type='Pretrained', checkpoint=DST)) of mmsegmentation computes the same"
    )
    class_slot = True
    blocks = "layers"
    block_names = MMSEG_BLOCK_NAMES
    names = same_names("cls_token", "pos_embed") | {"patch_embed.projection": "patch_embed.proj"}

    def matches(self, parts: Parts) -> bool:
        """Match PyTorch's attention in layers."""
        return self.in_blocks(parts, "attn.attn.in_proj_weight")


class MMPretrain(MMSegmentation):
    """`VisionTransformer` and `MAEViT` of mmpretrain, mmselfsup and mmclassification."""

    key = "mmpretrain"
    name = "mmpretrain ViT"
    example = "layers.N.attn.qkv.*, layers.N.ffn.*"
    usage = (
        "VisionTransformer(img_size=..., with_cls_token=False, out_type='featmap', final_norm=False, "
        "norm_cfg=dict(type='LN', eps=1e-5), init_cfg=dict(type='Pretrained', checkpoint=DST)) of mmpretrain "
        "computes the same"
    )
    class_slot = False
    block_names = same_names("attn.qkv", "attn.proj") | {
        "ln1": "norm1",
        "ln2": "norm2",
        "ffn.layers.0.0": "mlp.fc1",
        "ffn.layers.1": "mlp.fc2",
    }

    def matches(self, parts: Parts) -> bool:
        """Match one linear layer for queries, keys and values, and mmcv's FFN."""
        return self.in_blocks(parts, "attn.qkv.weight") and self.in_blocks(parts, "ffn.layers")
