"""Checkpoints of Hugging Face transformers."""

from s5.backbones import StateDict
from s5.checkpoints.layouts.base import Parts
from s5.checkpoints.layouts.vit import VitLayout, join, same_names


class HuggingFace(VitLayout):
    """`ViTModel`, `ViTMAEModel` and `DeiTModel` of transformers, as stored in files."""

    key = "huggingface"
    name = "Hugging Face ViT"
    example = "embeddings.patch_embeddings.*, encoder.layer.N.attention.attention.query.*"
    unwritable = (
        "its networks always attend to a class token, which this package's networks do not have, so results "
        "would differ; write timm's layout instead"
    )
    blocks = "encoder.layer"
    block_names = {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.attention.query": "attn.query",
        "attention.attention.key": "attn.key",
        "attention.attention.value": "attn.value",
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
    }

    def matches(self, parts: Parts) -> bool:
        """Match separate queries, keys and values."""
        return self.in_blocks(parts, "attention")

    def complete(self, backbone: StateDict) -> tuple[StateDict, tuple[str, ...]]:
        """Join queries, keys and values."""
        for kind in ("weight", "bias"):
            parts = tuple(f"attn.{part}.{kind}" for part in ("query", "key", "value"))
            backbone = join(backbone, parts, f"attn.qkv.{kind}")
        return super().complete(backbone)


class HuggingFace5(HuggingFace):
    """The same models as in memory since transformers 5: `torch.save(model.state_dict(), ...)`."""

    key = "huggingface5"
    example = "embeddings.patch_embeddings.*, layers.N.attention.q_proj.*"
    blocks = "layers"
    block_names = same_names("mlp.fc1", "mlp.fc2") | {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.q_proj": "attn.query",
        "attention.k_proj": "attn.key",
        "attention.v_proj": "attn.value",
        "attention.o_proj": "attn.proj",
    }
