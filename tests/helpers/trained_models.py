"""Checkpoints of tiny random models, as multi-dataset training writes them."""

from collections.abc import Mapping
from pathlib import Path

import torch

from s5.checkpoints.layouts import convert, get_layout
from s5.data.label_table import LabelTable
from s5.data.labels import get_table
from s5.segmentation.model import SegmentationModel
from s5.segmentation.segmentor import build_segmentor
from s5.segmentation.windows import Inference

SIZE, CHANNELS, EXPERTS = 32, 8, 48
HOW = {"mode": "slide_window", "crop": SIZE, "stride": 24}


def to_published(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of a model in the published layout."""
    return get_layout("published").from_ours(convert(state)).state


def table(name: str, classes: list[str], **more: object) -> LabelTable:
    return get_table({"name": name, "classes": classes, **more})


def write_checkpoint(
    path: Path,
    tables: Mapping[str, LabelTable],
    backbone: str = "vit_t_moe",
    published: bool = False,
    size: int = SIZE,
) -> SegmentationModel:
    """Write random weights and return the model; as a published file they do not say what they are."""
    how = HOW | {"crop": size, "stride": 3 * size // 4}
    experts = EXPERTS if backbone.endswith("_moe") else 0
    classes = {name: table.num_classes for name, table in tables.items()}
    segmentor = build_segmentor(
        backbone.removesuffix("_moe"), classes, size, channels=CHANNELS, expert_channels=experts
    ).eval()
    with torch.no_grad():
        for name, logits in segmentor.forward_all(
            torch.randn(16, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
        ).items():
            classifier = segmentor.heads[name].classifier  # so that no class wins everywhere
            classifier.weight *= 20
            classifier.bias.copy_(-20 * logits.mean((0, 2, 3)))
    state = segmentor.state_dict()
    meta = {
        "backbone": backbone,
        "decoder_channels": CHANNELS,
        "expert_channels": experts,
        "img_size": size,
        "tasks": {name: list(table.classes) for name, table in tables.items()},
        "labels": {name: table.as_mapping() for name, table in tables.items()},
        "inference": dict.fromkeys(tables, how),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": to_published(state)} if published else {"state_dict": state, "meta": meta}, path)
    return SegmentationModel(segmentor, dict.fromkeys(tables, Inference(**how)))
