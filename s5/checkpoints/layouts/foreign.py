"""Guess unsupported architectures from the keys of their weights, for messages."""

import re
from collections.abc import Iterable

# Pattern of keys and architecture; more specific patterns come first.
ARCHITECTURES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"\blora_(?:[AB]|up|down)\b", "a LoRA adapter, without the weights that it adapts"),
        (
            r"\bsampling_(?:offsets|angles|scales)_[kv]\b",
            "a ViT with RVSA whose windows of keys and values differ (kvdiff)",
        ),
        (
            r"^ds_(?:config|version)$|^zero_stage$|\boptimizer_state_dict\.zero_stage$",
            "a part of a DeepSpeed ZeRO checkpoint: zero_to_fp32.py in its folder puts the weights together",
        ),
        (r"(?:^|\.)param_groups$", "the state of an optimizer, without the weights that it trains"),
        (r"\bsampling_(?:offsets|angles|scales)\b", "a ViT with rotated window attention (RVSA)"),
        (
            r"\bmask_decoder\.|\bimage_encoder\.neck\.|\b(?:image|vision)_encoder\..*rel_pos_h$",
            "SAM, whose ViT has relative positions",
        ),
        (r"\brel_pos_[hw]$", "a ViT with relative positions, such as SAM or ViTDet"),
        (r"\bcpb_mlp\.|\brelative_coords_table$", "Swin Transformer V2"),
        (r"\b(?:layers|stages)\.\d+\.blocks\.\d+\.|\bswin\w*\.", "a Swin Transformer"),
        (r"\brelative_position_bias|\brel_pos_bias\b|\blambda_1$", "BEiT, a ViT with relative positions"),
        (r"\brope\w*\.|\brope_", "a ViT with rotary positions, such as DINOv3 or EVA-02"),
        (r"\b[qk]_norm\.", "a ViT with normalised queries and keys"),
        (r"\bw12\.|\bweights_in\.", "a ViT with SwiGLU, such as DINOv2's ViT-g"),
        (r"\b(?:ls1|layer_scale1)\.|\bgamma_?1\b", "a ViT with layer scale, such as DINOv2 or DeiT III"),
        (r"\bchannel_embed\b|\bpatch_embed\.\d+\.", "a ViT with groups of bands, such as SatMAE"),
        (r"\bvisual\.transformer\.|\bvision_model\.|\bnorm_pre\.", "CLIP's ViT"),
        (
            r"^(?:text_model\.|text_projection\b|token_embedding\.)",
            "the text encoder of CLIP, without its image encoder",
        ),
        (r"\btransformer\.resblocks\.", "CLIP's ViT"),
        (r"\bencoder\.layers\.encoder_layer_\d+\.|^conv_proj\.", "torchvision's ViT"),
        (r"\bword_embeddings\b|\bembed_tokens\b|\btok_embeddings\b|\bwte\.", "a language model"),
        (r"\b(?:down_blocks|diffusion_model)\.", "a diffusion model"),
        (
            r"\bblock[1-4]\.\d+\.|\bpatch_embed[1-4]\.|\bsegformer\.",
            "SegFormer or PVT, a hierarchical transformer",
        ),
        (r"\bstage[2-4]\.\d+\.(?:branches|fuse_layers)\.", "HRNet"),
        (
            r"\bdownsample_layers\.|\bdwconv\.|\bconv_dw\.|\bdepthwise_conv\.",
            "ConvNeXt or another convolutional network",
        ),
        (r"\bbackbone\.0\.body\.", "DETR"),
        (r"\blayer[1-4]\.\d+\.conv1\.", "a ResNet"),
        (r"\bblocks\.\d+\.\d+\.", "EfficientNet"),
        (r"\bfeatures\.(?:\d+|denseblock\d+)\.", "VGG, DenseNet or MobileNet"),
        (r"\bmodel\.\d+\.(?:conv|cv\d|m)\.|\bbackbone\.dark\d\.", "YOLO"),
        (r"\bdouble_conv\b", "a U-Net"),
    )
)
DETECTOR = re.compile(r"^(?:rpn_head|roi_head|bbox_head|panoptic_head)\.")


def guess(keys: Iterable[str]) -> str | None:
    """Guess the architecture of weights with these keys; None if no pattern matches."""
    keys = list(keys)
    name = next((name for pattern, name in ARCHITECTURES if any(map(pattern.search, keys))), None)
    if any(map(DETECTOR.search, keys)):
        return f"a detector of MMDetection or MMRotate, with {name or 'an unknown backbone'}"
    return name
