"""Checkpoints of DINOv2 and DINOv3, and of any plain ViT of timm with all of its tensors.

They are converted to timm's names with `body.` in front, the names of `s5.backbones.timm_vit`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from s5.backbones import BODY, PATCH_EMBEDDING, StateDict
from s5.checkpoints.layouts.base import (
    BLOCK_KEY,
    Layout,
    OtherArchitectureError,
    Parts,
    Weights,
    Written,
    has_name,
)
from s5.checkpoints.layouts.foreign import guess
from s5.checkpoints.layouts.vit import check_form, join, replace_start, same_names
from s5.errors import CheckpointError

HEADS = (
    "head",
    "head_dist",
    "fc_norm",
    "head_norm",
    "mask_token",
    "attn_pool",
    "decoder_embed",
    "decoder_blocks",
)
MORE_HEADS = ("decoder_norm", "decoder_pos_embed", "decoder_pred", "rope.periods", "rope.pos_embed_cached")
# Layers by which a ViT of timm differs from a plain one.
SPECIAL_LAYERS = ("ls1", "gamma_1", "attn.q_norm", "attn.norm", "mlp.fc1_g", "mlp.norm")
SPECIAL_TENSORS = ("reg_token", "norm_pre", "rope.freqs")
RELATIVE = re.compile(r"rel(?:ative)?_pos")


class TimmViT(Layout):
    """A plain ViT of timm, with class token, registers, layer scale and norms as the model has them."""

    key = "timm-vit"
    name = "timm ViT"
    example = "blocks.N.ls1.gamma, blocks.N.gamma_1, reg_token, norm_pre.*"
    lacks = ("pyramid.",)
    container = ""
    usage = (
        "timm.create_model(NAME, img_size=..., patch_size=16, dynamic_img_size=True, num_classes=0, "
        "global_pool='') takes these weights with load_state_dict; forward_intermediates(norm=True) computes "
        "the same"
    )

    def matches(self, parts: Parts) -> bool:
        """Match layers and tokens that a plain ViT does not have."""
        if any(map(RELATIVE.search, parts.encoder)):
            return False
        inner = (match[2] for key in parts.encoder if (match := BLOCK_KEY.match(key)))
        return any(has_name(name, SPECIAL_LAYERS) for name in inner) or (
            any(map(BLOCK_KEY.match, parts.encoder))
            and any(has_name(key, SPECIAL_TENSORS) for key in parts.encoder)
        )

    def to_ours(self, parts: Parts, experts: Sequence[str]) -> Weights:
        """Keep all tensors but those of heads and decoders."""
        outside = [key for key in parts.encoder if has_name(key, (*HEADS, *MORE_HEADS))]
        return self.weights({k: v for k, v in parts.encoder.items() if k not in outside}, parts, outside)

    def weights(
        self, encoder: StateDict, parts: Parts, unused: Sequence[str], notes: tuple[str, ...] = ()
    ) -> Weights:
        """Create the weights from tensors under timm's names."""
        check_form(encoder)
        if PATCH_EMBEDDING not in encoder:
            raise OtherArchitectureError("the patch embedding has another name")
        backbone = {BODY + key: value for key, value in encoder.items()}
        return Weights(self.name, backbone, {}, (*unused, *parts.around, *parts.outside), self.lacks, notes)

    def from_ours(self, weights: Weights) -> Written:
        """Write a ViT of timm under timm's names; pyramid and heads are left out."""
        if self.unwritable:
            return super().from_ours(weights)
        if f"{BODY}{PATCH_EMBEDDING}" not in weights.backbone:
            raise CheckpointError("the backbone is not a ViT of timm, the only architecture of this layout")
        if weights.experts:
            raise CheckpointError(
                f"{self.name} has no experts, but the backbone has some for {', '.join(weights.experts)}"
            )
        state = {k.removeprefix(BODY): v for k, v in weights.backbone.items() if k.startswith(BODY)}
        heads = (f"heads.{task}.{key}" for task, head in weights.heads.items() for key in head)
        rest = (key for key in weights.backbone if not key.startswith(BODY))
        return Written(state, (*rest, *heads), (self.usage,))


class DinoLayout(TimmViT):
    """A layout of DINOv2 or DINOv3 with names of its own.

    Attributes:
        block_key: Pattern of a block's keys; its groups are the number and the name in the block.
        block_names: Names in a block, mapped to those of timm.
        names: Names of the other tensors, mapped to those of timm.
        needless: Names of tensors without effect on features.
    """

    unwritable = "write timm-vit instead, which timm and this package read"
    block_key: ClassVar[re.Pattern]
    block_names: ClassVar[Mapping[str, str]]
    names: ClassVar[Mapping[str, str]]
    needless: ClassVar[tuple[str, ...]] = ()

    def has_layer(self, parts: Parts, names: tuple[str, ...]) -> bool:
        """Whether any block has one of the layers."""
        inner = (match[2] for key in parts.encoder if (match := self.block_key.match(key)))
        return any(has_name(name, names) for name in inner)

    def to_ours(self, parts: Parts, experts: Sequence[str]) -> Weights:
        """Rename the tensors, and convert those that timm stores otherwise."""
        renamed, unused = {}, []
        for key, value in parts.encoder.items():
            match = self.block_key.match(key)
            inner, table = (match[2], self.block_names) if match else (key, self.names)
            if has_name(inner, self.needless):
                unused.append(key)
            elif (name := replace_start(inner, table)) is not None:
                renamed[f"blocks.{match[1]}.{name}" if match else name] = value
            elif match:
                other = guess(parts.encoder)
                hint = f"; it looks like {other}" if other else ""
                raise OtherArchitectureError(
                    f"the checkpoint has {key!r}, which {self.name} does not have{hint}"
                )
            else:
                unused.append(key)
        return self.weights(self.complete(renamed), parts, unused)

    def complete(self, encoder: StateDict) -> StateDict:
        """Convert renamed tensors that timm stores otherwise; returns them unchanged by default."""
        return encoder


class DinoV2(DinoLayout):
    """The code of DINOv2, with blocks in chunks or not."""

    key = "dinov2"
    name = "DINOv2"
    example = "register_tokens, mask_token, blocks.N.ls1.gamma, blocks.N.mlp.w12.*"
    block_key = re.compile(r"^blocks\.(?:\d+\.)?(\d+)\.(.+)$")
    block_names = same_names(
        "norm1", "attn.qkv", "attn.proj", "ls1", "norm2", "mlp.fc1", "mlp.fc2", "ls2"
    ) | {"mlp.w12": "mlp.fc1", "mlp.w3": "mlp.fc2"}
    names = same_names("cls_token", "pos_embed", "patch_embed.proj", "norm") | {
        "register_tokens": "reg_token"
    }
    needless = ("mask_token", "head")

    def matches(self, parts: Parts) -> bool:
        """Match layer scale together with tensors that timm does not have, or with chunks."""
        own = any(key in parts.encoder for key in ("mask_token", "register_tokens"))
        chunks = any(re.match(r"^blocks\.\d+\.\d+\.", key) for key in parts.encoder)
        return self.has_layer(parts, ("ls1",)) and (own or chunks or self.has_layer(parts, ("mlp.w12",)))

    def complete(self, encoder: StateDict) -> StateDict:
        """Add the position of the class token to it if there are registers, as timm does."""
        return merge_class_position(encoder)


class DinoV3(DinoLayout):
    """The code of DINOv3."""

    key = "dinov3"
    name = "DINOv3"
    example = "storage_tokens, rope_embed.periods, blocks.N.attn.qkv.bias_mask"
    block_key = re.compile(r"^blocks\.(?:\d+\.)?(\d+)\.(.+)$")
    block_names = same_names(
        "norm1", "attn.qkv.weight", "attn.qkv.bias", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"
    ) | {
        "ls1.gamma": "gamma_1",
        "ls2.gamma": "gamma_2",
        "mlp.w1": "mlp.fc1_g",
        "mlp.w2": "mlp.fc1_x",
        "mlp.w3": "mlp.fc2",
    }
    names = same_names("cls_token", "patch_embed.proj", "norm") | {"storage_tokens": "reg_token"}
    needless = ("mask_token", "head", "attn.qkv.bias_mask", "rope_embed", "cls_norm", "local_cls_norm")

    def matches(self, parts: Parts) -> bool:
        """Match registers under DINOv3's name."""
        return "storage_tokens" in parts.encoder and self.has_layer(parts, ("ls1",))

    def complete(self, encoder: StateDict) -> StateDict:
        """Split the biases of queries, keys and values; those of keys are masked."""
        biases = {key: value for key, value in encoder.items() if key.endswith(".attn.qkv.bias")}
        split = {key: value for key, value in encoder.items() if key not in biases}
        for key, value in biases.items():
            query, _, values = value.chunk(3)
            split |= {key.replace("qkv.bias", "q_bias"): query, key.replace("qkv.bias", "v_bias"): values}
        return split


QKV = ("query", "key", "value")


class HuggingFaceDinoV2(DinoLayout):
    """`Dinov2Model` and `Dinov2WithRegistersModel` of transformers."""

    key = "huggingface-dinov2"
    name = "Hugging Face DINOv2"
    example = "encoder.layer.N.layer_scale1.lambda1"
    block_key = re.compile(r"^encoder\.layer\.(\d+)\.(.+)$")
    block_names = (
        same_names("norm1", "norm2", "mlp.fc1", "mlp.fc2")
        | {f"attention.attention.{part}": f"attn.{part}" for part in QKV}
        | {f"attention.{part[0]}_proj": f"attn.{part}" for part in QKV}  # in memory, since transformers 5
        | {
            "attention.output.dense": "attn.proj",
            "attention.o_proj": "attn.proj",
            "layer_scale1.lambda1": "ls1.gamma",
            "layer_scale2.lambda1": "ls2.gamma",
            "mlp.weights_in": "mlp.fc1",
            "mlp.weights_out": "mlp.fc2",
            "mlp.gate_proj": "mlp.gate",
            "mlp.up_proj": "mlp.up",
            "mlp.down_proj": "mlp.fc2",
        }
    )
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.register_tokens": "reg_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm": "norm",
    }
    needless = ("embeddings.mask_token",)

    def matches(self, parts: Parts) -> bool:
        """Match layer scale in Hugging Face's blocks."""
        return self.has_layer(parts, ("layer_scale1",))

    def complete(self, encoder: StateDict) -> StateDict:
        """Join queries, keys and values, and the two parts of SwiGLU."""
        for kind in ("weight", "bias"):
            encoder = join(encoder, [f"attn.{part}.{kind}" for part in QKV], f"attn.qkv.{kind}")
            encoder = join(encoder, [f"mlp.{part}.{kind}" for part in ("gate", "up")], f"mlp.fc1.{kind}")
        return merge_class_position(encoder)


class HuggingFaceDinoV3(DinoLayout):
    """`DINOv3ViTModel` of transformers."""

    key = "huggingface-dinov3"
    name = "Hugging Face DINOv3"
    example = "embeddings.register_tokens, layer.N.attention.q_proj.*"
    block_key = re.compile(r"^(?:model\.)?layer\.(\d+)\.(.+)$")  # `model.` in memory, since transformers 5
    block_names = same_names("norm1", "norm2") | {
        "attention.q_proj.weight": "attn.query.weight",
        "attention.k_proj.weight": "attn.key.weight",
        "attention.v_proj.weight": "attn.value.weight",
        "attention.q_proj.bias": "attn.q_bias",
        "attention.v_proj.bias": "attn.v_bias",
        "attention.o_proj": "attn.proj",
        "layer_scale1.lambda1": "gamma_1",
        "layer_scale2.lambda1": "gamma_2",
        "mlp.gate_proj": "mlp.fc1_g",
        "mlp.up_proj": "mlp.up",
        "mlp.down_proj": "mlp.fc2",
    }
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.register_tokens": "reg_token",
        "embeddings.patch_embeddings": "patch_embed.proj",
        "norm": "norm",
    }
    needless = ("embeddings.mask_token", "rope_embeddings")

    def matches(self, parts: Parts) -> bool:
        """Match layer scale in Hugging Face's layers."""
        return self.has_layer(parts, ("layer_scale1",))

    def complete(self, encoder: StateDict) -> StateDict:
        """Join queries, keys and values; the meaning of `up` depends on whether there is a gate."""
        encoder = join(encoder, [f"attn.{part}.weight" for part in QKV], "attn.qkv.weight")
        gated = any(".mlp.fc1_g." in key for key in encoder)
        return {
            key.replace(".mlp.up.", ".mlp.fc1_x." if gated else ".mlp.fc1."): v for key, v in encoder.items()
        }


def merge_class_position(encoder: StateDict) -> StateDict:
    """Add the position of the class token to the token itself, if there are registers.

    timm then has no entry for it in the positional embedding.
    """
    if not {"reg_token", "cls_token", "pos_embed"} <= encoder.keys():
        return encoder
    table = encoder["pos_embed"]
    if table.ndim != 3:
        return encoder  # `check_form` rejects it
    return encoder | {"cls_token": encoder["cls_token"] + table[:, :1], "pos_embed": table[:, 1:]}
