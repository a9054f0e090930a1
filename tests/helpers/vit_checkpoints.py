"""Tiny plain ViTs of timm, with every tensor random, under the names of other projects."""

import re

import torch
from torch import nn

from s5.backbones.rvsa import RvsaVariant
from s5.backbones.vit import Variant

WIDTH, DEPTH, HEADS, SIZE = 32, 4, 4, 64
TINY = Variant("tiny", WIDTH, DEPTH, HEADS, (0, 1, 2, 3))
RVSA = RvsaVariant("tiny_rvsa", WIDTH, DEPTH, HEADS, (0, 1, 2, 3), global_every=2, window=3)


def drawn(network):
    """The network with weights that make every tensor matter."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    network.eval()
    return network


def tokens(network, blocks, images):
    """Tokens after every block."""
    found = []
    handles = [block.register_forward_hook(lambda _, __, output: found.append(output)) for block in blocks]
    network(images)
    for handle in handles:
        handle.remove()
    return found


def with_class_slot(state, name="pos_embed"):
    """As the same network with a class token stores its positions."""
    return state | {name: torch.cat((torch.randn(1, 1, WIDTH), state[name]), dim=1)}


def renamed(state, *pairs):
    for pattern, name in pairs:
        state = {re.sub(pattern, name, key): value for key, value in state.items()}
    return state


def to_mmpretrain(state):
    state = renamed(
        state,
        (r"^blocks", "layers"),
        (r"patch_embed\.proj", "patch_embed.projection"),
        (r"\.norm([12])\.", r".ln\1."),
        (r"^norm\.", "ln1."),
        (r"mlp\.fc1", "ffn.layers.0.0"),
        (r"mlp\.fc2", "ffn.layers.1"),
    )
    return {f"backbone.{key}": value for key, value in state.items()}


def apart(state, block, query, key, value):
    """Queries, keys and values in tensors of their own."""
    split = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            for part, chunk in zip((query, key, value), tensor.chunk(3), strict=True):
                split[name.replace("attn.qkv", part)] = chunk
        else:
            split[name] = tensor
    return renamed(
        split,
        (r"^blocks", block),
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"^norm\.", "layernorm."),
        (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
        (r"^pos_embed", "embeddings.position_embeddings"),
    )


def to_hugging_face(state):
    names = (f"attention.attention.{part}" for part in ("query", "key", "value"))
    return renamed(
        apart(state, "encoder.layer", *names),
        (r"attn\.proj", "attention.output.dense"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
    )


def to_hugging_face_5(state):
    names = (f"attention.{part}_proj" for part in "qkv")
    return renamed(apart(state, "layers", *names), (r"attn\.proj", "attention.o_proj"))
