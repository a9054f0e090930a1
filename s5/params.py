"""Parameter counts of the models, built without allocating weights.

Usage::

    python -m s5.params          # a table, in millions
    python -m s5.params --json   # a list of objects with exact numbers
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from s5.backbones import create_backbone, get_architecture, list_backbones
from s5.detection.network import MultiTaskDetector, build_head
from s5.segmentation.segmentor import SegHead, Segmentor
from s5.training.reports import text_table

SEG_IMAGE_SIZE = 512
SEG_SINGLE = {"isaid": 16}
SEG_FOUR = {"vaihingen": 5, "potsdam": 5, "openearthmap": 9, "loveda": 7}
EXPERT_CHANNELS = (128, 256, 512)
DET_IMAGE_SIZE = 512
DET_SINGLE_IMAGE_SIZE = {"vit_h": 800}  # the published count is for 800 pixels
DET_SINGLE = {"dior": 20}
DET_TWO = {"dior": 20, "dota": 18}
DET_EXPERT_CHANNELS = 256


@dataclass(frozen=True)
class Row:
    """Parameter count of one model.

    Attributes:
        backbone: Name of the backbone.
        task: `seg` or `det`.
        datasets: Number of datasets, each with its own head.
        expert_channels: Channels of the backbone's experts; 0 for a dense backbone.
        params: Number of parameters, frozen ones included.
    """

    backbone: str
    task: str
    datasets: int
    expert_channels: int
    params: int


def segmentation_rows(name: str) -> list[Row]:
    """Count the parameters of the segmentation models with one backbone."""
    most, rows = get_architecture(name).max_expert_channels, []
    with torch.device("meta"):
        for tasks, channels in ((SEG_SINGLE, (0,)), (SEG_FOUR, (0, *EXPERT_CHANNELS))):
            heads: dict[str, SegHead] = {}
            for expert_channels in (number for number in channels if number == 0 or number < most):
                backbone = create_backbone(
                    name, SEG_IMAGE_SIZE, experts=tuple(tasks), expert_channels=expert_channels
                )
                # Heads do not depend on the experts, and building them takes most of the time.
                heads = heads or {
                    task: SegHead(backbone.out_channels, classes) for task, classes in tasks.items()
                }
                params = count_parameters(Segmentor(backbone, heads))
                rows.append(Row(name, "seg", len(tasks), expert_channels, params))
    return rows


def detection_rows(name: str) -> list[Row]:
    """Count the parameters of detectors with one backbone: for one dataset, for two, for two with experts."""
    single_size = DET_SINGLE_IMAGE_SIZE.get(name, DET_IMAGE_SIZE)
    models = [(DET_SINGLE, 0, single_size), (DET_TWO, 0, DET_IMAGE_SIZE)]
    if get_architecture(name).max_expert_channels > DET_EXPERT_CHANNELS:
        models.append((DET_TWO, DET_EXPERT_CHANNELS, DET_IMAGE_SIZE))
    rows, heads = [], {}
    with torch.device("meta"):
        for tasks, channels, size in models:
            backbone = create_backbone(name, size, experts=tuple(tasks), expert_channels=channels)
            for task, classes in tasks.items():
                if task not in heads:
                    heads[task] = build_head(backbone.out_channels, classes)
            params = count_parameters(MultiTaskDetector(backbone, {task: heads[task] for task in tasks}))
            rows.append(Row(name, "det", len(tasks), channels, params))
    return rows


def count_parameters(model: nn.Module) -> int:
    """Count the parameters of a model, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


def format_table(rows: Sequence[Row]) -> str:
    """Format a table in millions, with a row per backbone and a column per configuration."""
    configurations = {(row.task, row.datasets, row.expert_channels) for row in rows}
    columns = sorted(configurations, key=lambda column: (column[0] != "seg", *column[1:]))
    counts = {(row.backbone, (row.task, row.datasets, row.expert_channels)): row.params for row in rows}
    titles = [_title(*column) for column in columns]
    cells = [
        [name, *(f"{counts[name, c] / 1e6:.3f}" if (name, c) in counts else "-" for c in columns)]
        for name in dict.fromkeys(row.backbone for row in rows)
    ]
    return f"parameters in millions\n{text_table(['backbone', *titles], cells)}"


def _title(task: str, datasets: int, expert_channels: int) -> str:
    title = f"{task} x{datasets}"
    return f"{title} MoE {expert_channels}" if expert_channels else f"{title} dense"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the counts of all backbones."""
    parser = argparse.ArgumentParser(
        "python -m s5.params", description="Parameter counts of the models.", allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="print exact numbers as a JSON list")
    arguments = parser.parse_args(argv)
    rows = [row for b in list_backbones() for row in (*segmentation_rows(b), *detection_rows(b))]
    print(json.dumps([asdict(row) for row in rows], indent=2) if arguments.json else format_table(rows))


if __name__ == "__main__":
    main()
