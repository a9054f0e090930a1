"""Parameter counts of the models, built without allocating weights.

Usage::

    python -m s5.params          # tables, in millions: all backbones; the published results table beside ours
    python -m s5.params --json   # a list of objects with exact numbers, of all backbones
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
SEG_EXPERT_CHANNELS = 256  # of the results table
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


@dataclass(frozen=True)
class Published:
    """Row of the results table of S5 (arXiv 2508.12409): parameters in millions, None where it has none.

    Attributes:
        method: Name in the table.
        backbone: Name of the backbone here.
        seg_one: Segmentation model for one dataset.
        seg_four: For four datasets.
        det_one: Detector for one dataset.
        det_two: For two datasets.
        experts: Whether one model with experts is for several datasets; otherwise each has a model.
        why: Why the number of parameters here differs by more than `TOLERANCE`.
    """

    method: str
    backbone: str
    seg_one: float
    seg_four: float | None
    det_one: float | None
    det_two: float | None
    experts: bool = False
    why: str = ""


TOLERANCE = 0.1  # millions
PLAIN = (
    "counted as plain ViTs there. RVSA lacks the class token and has relative positions and what moves "
    "windows. The released S4P file of ViT-B + RVSA has 103,588,433 parameters, as here."
)
ROUNDED = "for several datasets, multiples of the rounded number of one model there."
PUBLISHED = (
    Published("RVSA", "vit_b_rvsa", 103.2, 412.8, 111.2, 222.4, why=PLAIN),
    Published("GFM", "swin_b", 96.9, 387.6, 104.1, 208.2),
    Published("Scale-MAE", "vit_l", 327.4, 1309.6, 334.6, 669.2, why=ROUNDED),
    Published("SAMRS", "vit_b_rvsa", 103.2, 412.8, None, None, why=PLAIN),
    Published("SatMAE++", "vit_l", 327.4, 1309.6, 334.6, 669.2, why=ROUNDED),
    Published("BillionFM", "vit_g", 990.9, None, 996.9, 1993.9),
    Published("OREOLE", "vit_g", 990.9, None, 996.9, None),
    Published("MTP", "vit_l_rvsa", 327.4, 1309.6, 334.6, 669.2, why=PLAIN),
    Published("MA3E", "vit_b", 103.2, None, 111.2, None),
    Published("SelectiveMAE", "vit_l", 327.4, 1309.6, 334.6, 669.2, why=ROUNDED),
    Published("S5", "vit_b", 103.2, 160.4, 111.2, 138.3, experts=True),
    Published("S5", "vit_l", 327.4, 435.0, 334.6, 377.8, experts=True),
    Published("S5", "vit_h", 663.4, 824.5, 671.7, 730.0, experts=True),
)


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


def compare(published: Published, rows: Sequence[Row]) -> list[tuple[float, float | None]]:
    """Parameters here and there in millions: segmentation of one and four datasets, detection of one and two.

    Args:
        published: A row of the results table.
        rows: All counts of its backbone.
    """
    counts = {
        (row.task, row.datasets, row.expert_channels): row.params / 1e6
        for row in rows
        if row.backbone == published.backbone
    }
    numbers = []
    for task, datasets, channels, one, several in (
        ("seg", len(SEG_FOUR), SEG_EXPERT_CHANNELS, published.seg_one, published.seg_four),
        ("det", len(DET_TWO), DET_EXPERT_CHANNELS, published.det_one, published.det_two),
    ):
        single = counts[task, 1, 0]
        together = counts[task, datasets, channels] if published.experts else datasets * single
        numbers += [(single, one), (together, several)]
    return numbers


def differs(ours: float, theirs: float | None) -> bool:
    """Whether two counts in millions differ by more than the tolerance."""
    return theirs is not None and abs(ours - theirs) > TOLERANCE


def format_published(rows: Sequence[Row]) -> str:
    """Format the published results table beside our counts, with the reasons for differences."""
    cells = []
    reasons: dict[str, list[str]] = {}
    for published in PUBLISHED:
        numbers = compare(published, rows)
        marks = ["*" if differs(*pair) else " " for pair in numbers]
        texts = [f"{ours:.3f} / {'-' if theirs is None else theirs}" for ours, theirs in numbers]
        cells.append([published.method, published.backbone, *map("".join, zip(texts, marks, strict=True))])
        if "*" in marks:
            reasons.setdefault(published.why, []).append(published.method)
    titles = ["method", "backbone", "seg x1", f"seg x{len(SEG_FOUR)}", "det x1", f"det x{len(DET_TWO)}"]
    notes = [f"* {', '.join(methods)}: {why}" for why, methods in reasons.items()]
    head = f"parameters in millions, here / published (arXiv 2508.12409); * differs by more than {TOLERANCE}"
    return "\n".join([head, text_table(titles, cells), *notes])


def _title(task: str, datasets: int, expert_channels: int) -> str:
    title = f"{task} x{datasets}"
    return f"{title} MoE {expert_channels}" if expert_channels else f"{title} dense"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the counts of all backbones, and the published results table beside ours."""
    parser = argparse.ArgumentParser(
        "python -m s5.params", description="Parameter counts of the models.", allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="print exact numbers as a JSON list")
    arguments = parser.parse_args(argv)
    rows = [row for b in list_backbones() for row in (*segmentation_rows(b), *detection_rows(b))]
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        print(f"{format_table(rows)}\n\n{format_published(rows)}")


if __name__ == "__main__":
    main()
