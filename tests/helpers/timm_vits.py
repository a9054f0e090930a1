"""Tiny plain ViTs of timm, with layer scale of 1 so that every tensor matters."""

import re
from typing import Any

import timm
import torch
from torch import nn

from s5.backbones import StateDict
from s5.backbones.timm_vit import TimmViTModel

WIDTH, DEPTH, HEADS = 32, 4, 4
SIZES = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}


def tiny(name: str, **options: object) -> TimmViTModel:
    """A model of timm, narrow and shallow."""
    return TimmViTModel(f"tiny-{name}", name, WIDTH, options={**SIZES, **options})


TINY = {
    "dinov2": tiny("vit_small_patch14_dinov2", init_values=1.0),
    "dinov2_reg": tiny("vit_small_patch14_reg4_dinov2", init_values=1.0),
    "dinov2_g": tiny("vit_giant_patch14_reg4_dinov2", init_values=1.0, mlp_ratio=5.5),
    "dinov3": tiny("vit_small_patch16_dinov3", init_values=1.0),
    "dinov3_7b": tiny("vit_7b_patch16_dinov3", init_values=1.0),
    "clip": tiny("vit_base_patch16_clip_224"),
    "rope_mixed": tiny("vit_base_patch16_rope_mixed_224"),
}
"""Small models by form."""


def drawn_timm(kind: str, img_size: int, patch_size: int = 16) -> Any:
    """timm's own network with random weights, without head, for images of any size."""
    row = TINY[kind]
    options = {**row.options, "img_size": img_size, "patch_size": patch_size, "dynamic_img_size": True}
    network = timm.create_model(row.timm, num_classes=0, **options).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return network


def as_dinov2(state: StateDict, chunks: bool = False) -> StateDict:
    """As DINOv2's code stores it: SwiGLU under its names; with registers, positions have a class slot."""
    glu = "blocks.0.mlp.fc1.weight" in state and len(state["blocks.0.mlp.fc1.weight"]) != 4 * WIDTH
    pairs = [("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3")] if glu else []
    out = _renamed(state, *pairs, ("reg_token", "register_tokens"))
    if chunks:
        out = {
            re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}", k): v
            for k, v in out.items()
        }
    return _with_class_position(out, "register_tokens") | {"mask_token": torch.zeros(1, WIDTH)}


def as_dinov3(state: StateDict) -> StateDict:
    """As DINOv3's code stores it: with masked biases of queries, keys and values, and fixed periods."""
    glu = [("mlp.fc1_g", "mlp.w1"), ("mlp.fc1_x", "mlp.w2"), ("mlp.fc2", "mlp.w3")]
    pairs = glu if "blocks.0.mlp.fc1_g.weight" in state else []
    pairs += [("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma"), ("reg_token", "storage_tokens")]
    out = _renamed(state, *pairs) | {"rope_embed.periods": torch.ones(2), "mask_token": torch.zeros(1, WIDTH)}
    for block in range(DEPTH):
        mask = torch.ones(3, WIDTH)
        mask[1] = 0
        out[f"blocks.{block}.attn.qkv.bias"] = torch.zeros(3 * WIDTH)
        out[f"blocks.{block}.attn.qkv.bias_mask"] = mask.flatten()
    return out


def as_hugging_face_dinov2(state: StateDict, in_memory: bool = False) -> StateDict:
    """As transformers' Dinov2 models in files, or in memory since transformers 5."""
    glu = len(state["blocks.0.mlp.fc1.weight"]) != 4 * WIDTH
    attention = "attention.{}_proj" if in_memory else "attention.attention.{}"
    names = ("q", "k", "v") if in_memory else ("query", "key", "value")
    out = _apart(state, "attn.qkv", *(attention.format(name) for name in names))
    if glu and in_memory:
        out = _apart(out, "mlp.fc1", "mlp.gate_proj", "mlp.up_proj")
    pairs = [("mlp.fc1", "mlp.weights_in"), ("mlp.fc2", "mlp.down_proj" if in_memory else "mlp.weights_out")]
    out = _renamed(
        out,
        *(pairs if glu else []),
        ("attn.proj", "attention.o_proj" if in_memory else "attention.output.dense"),
        ("ls1.gamma", "layer_scale1.lambda1"),
        ("ls2.gamma", "layer_scale2.lambda1"),
        ("cls_token", "embeddings.cls_token"),
        ("reg_token", "embeddings.register_tokens"),
        ("pos_embed", "embeddings.position_embeddings"),
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    )
    out = {
        re.sub(r"^norm\.", "layernorm.", re.sub(r"^blocks", "encoder.layer", k)): v for k, v in out.items()
    }
    out = _with_class_position(
        out, "embeddings.register_tokens", "embeddings.cls_token", "embeddings.position_embeddings"
    )
    return out | {"embeddings.mask_token": torch.zeros(1, WIDTH)}


def as_hugging_face_dinov3(state: StateDict, in_memory: bool = False) -> StateDict:
    """As transformers' DINOv3 models in files, or in memory since transformers 5."""
    glu = "blocks.0.mlp.fc1_g.weight" in state
    first = (
        [("mlp.fc1_g", "mlp.gate_proj"), ("mlp.fc1_x", "mlp.up_proj")]
        if glu
        else [("mlp.fc1", "mlp.up_proj")]
    )
    out = _renamed(
        _apart(state, "attn.qkv", *(f"attention.{name}_proj" for name in "qkv")),
        *first,
        ("mlp.fc2", "mlp.down_proj"),
        ("attn.proj", "attention.o_proj"),
        ("gamma_1", "layer_scale1.lambda1"),
        ("gamma_2", "layer_scale2.lambda1"),
        ("cls_token", "embeddings.cls_token"),
        ("reg_token", "embeddings.register_tokens"),
        ("patch_embed.proj", "embeddings.patch_embeddings"),
    )
    layer = "model.layer" if in_memory else "layer"
    out = {re.sub(r"^blocks", layer, key): value for key, value in out.items()}
    return out | {"embeddings.mask_token": torch.zeros(1, 1, WIDTH)}


def _renamed(state: StateDict, *pairs: tuple[str, str]) -> StateDict:
    for old, new in pairs:
        state = {key.replace(old, new): value for key, value in state.items()}
    return state


def _apart(state: StateDict, name: str, *parts: str) -> StateDict:
    out = {}
    for key, value in state.items():
        if f".{name}." in key:
            chunks = value.chunk(len(parts))
            out |= {key.replace(name, part): chunk for part, chunk in zip(parts, chunks, strict=True)}
        else:
            out[key] = value
    return out


def _with_class_position(
    state: StateDict, registers: str, token: str = "cls_token", positions: str = "pos_embed"
) -> StateDict:
    """Move a part of the class token to a position of its own, if there are registers."""
    if registers not in state:
        return state
    position = torch.randn(1, 1, WIDTH)
    table = torch.cat((position, state[positions]), dim=1)
    return state | {token: state[token] - position, positions: table}
