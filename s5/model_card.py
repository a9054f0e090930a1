"""Model cards: the `README.md` beside published weights, in the form of the Hugging Face hub."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from s5.checkpoints.layouts import Layout, Weights
from s5.training.config import config_beside
from s5.training.reports import SUMMARY_FILE

FILE = "README.md"
MARK = "<!-- written by python -m s5.convert -->"
UNKNOWN_LICENSE = "unknown"
BACKBONE = "image-feature-extraction"
KINDS = {  # by task of the hub
    BACKBONE: "Backbone",
    "image-segmentation": "Semantic segmentation",
    "object-detection": "Oriented object detection",
}
DETECTION = ("neck.", "rpn_head.", "roi_head.")
# Keys of the metadata with a table of their own, and those that are no facts about the network.
TABLES = ("tasks", "labels", "inference", "settings", "iteration")
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/(?:[^\s/'\",]+/)+(?=[^\s/'\",]+)")


@dataclass(frozen=True)
class Source:
    """Where weights come from.

    Attributes:
        file: Name of the file.
        config: Text of the configuration of the training run; None if it is unknown.
        scores: Scores of exactly these weights, by name.
    """

    file: str
    config: str | None
    scores: Mapping[str, float]


def source_of(file: Path, meta: Mapping[str, Any] | None) -> Source:
    """Collect what a file of this package, and the work folder it lies in, say of its training.

    The scores are those in the metadata, or else those of the last validation if it was of this iteration.
    """
    known = meta or {}
    scores = {key: value for key, value in known.items() if isinstance(value, float) and key != "norm_eps"}
    summary, config = file.parent / SUMMARY_FILE, config_beside(file)
    if known and not scores and summary.is_file():
        last = json.loads(summary.read_text(encoding="utf-8"))
        if last.pop("iteration", None) == known.get("iteration"):
            scores = {key: value for key, value in last.items() if isinstance(value, float)}
    text = config.read_text(encoding="utf-8") if known and config else None
    return Source(file.name, text, scores)


def model_card(
    file: Path,
    sha256: str,
    layout: Layout,
    weights: Weights,
    meta: Mapping[str, Any] | None,
    source: Source,
    licence: str = UNKNOWN_LICENSE,
) -> str:
    """Write the card of a file with weights.

    Args:
        file: The file.
        sha256: Its hash.
        layout: Layout that it has.
        weights: The weights that were converted.
        meta: Metadata of the model; None if it is unknown.
        source: Where the weights come from.
        licence: Identifier of the hub, such as `cc-by-4.0`; `unknown` is left for the user to replace.
    """
    kind = _kind(layout, weights)
    meta = meta or {}
    sections = [
        f"{_front_matter(file, kind, meta, source, licence)}\n{MARK}\n\n# {file.stem}",
        f"{KINDS[kind]} weights of [S5](https://github.com/MiliLab/S5).",
        _usage(file, kind, layout, meta),
        _table(("", ""), _facts(file, sha256, layout, weights, meta, source)),
    ]
    if source.scores:
        sections += [
            "## Scores",
            _table(("score", "value"), [(k, f"{v:.2f}") for k, v in source.scores.items()]),
        ]
    if kind != BACKBONE and meta.get("tasks"):
        sections += ["## Classes", *_classes(meta)]
    if source.config is not None:
        sections += ["## Training configuration", f"```yaml\n{_without_folders(source.config).rstrip()}\n```"]
    hint = (
        "Set `license` at the top of this file to that of the weights" if licence == UNKNOWN_LICENSE else ""
    )
    terms = "Weights inherit terms of the data and of the initial weights that they were trained from."
    return "\n\n".join([*sections, "## Licence", f"{hint + '. ' if hint else ''}{terms}"]) + "\n"


def _kind(layout: Layout, weights: Weights) -> str:
    if not weights.heads or "pyramid." in layout.lacks:  # such a layout has no heads
        return BACKBONE
    detects = any(name.startswith(DETECTION) for head in weights.heads.values() for name in head)
    return "object-detection" if detects else "image-segmentation"


def _front_matter(file: Path, kind: str, meta: Mapping[str, Any], source: Source, licence: str) -> str:
    tasks = list(meta.get("tasks", ()))
    results = []
    for name, value in source.scores.items():
        task, _, metric = name.rpartition("/")
        data = task or ", ".join(tasks) or "validation"
        results.append(
            EvalResult(
                task_type=kind,
                dataset_type=data,
                dataset_name=data,
                metric_type="mean_iou" if metric == "mIoU" else metric,
                metric_name=metric,
                metric_value=value,
            )
        )
    backbone = [meta["backbone"]] if "backbone" in meta else []
    card = ModelCardData(
        license=licence,
        library_name="s5",
        pipeline_tag=kind,
        tags=["remote-sensing", "earth-observation", *backbone, *tasks],
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=file.stem,
        eval_results=results or None,
    )
    return f"---\n{card.to_yaml()}\n---"


def _usage(file: Path, kind: str, layout: Layout, meta: Mapping[str, Any]) -> str:
    if layout.key == "s5" and meta and kind != BACKBONE:
        return f'```python\nimport s5\n\nresult = s5.load("{file.name}").predict("image.tif")\n```'
    if layout.key == "s5":
        return f"Start from them with `--init {file.name}`."
    return (
        f"{layout.usage.replace('DST', repr(file.name))}."
        if layout.usage
        else f"In the layout {layout.name}."
    )


def _facts(
    file: Path, sha256: str, layout: Layout, weights: Weights, meta: Mapping[str, Any], source: Source
) -> list[tuple[str, str]]:
    known = {
        key: value for key, value in meta.items() if key not in TABLES and key not in source.scores and value
    }
    return [
        ("file", f"`{file.name}`, layout {layout.name}"),
        ("SHA-256", f"`{sha256}`"),
        ("converted from", f"`{source.file}`, layout {weights.layout}"),
        *((key.replace("_", " "), str(value)) for key, value in known.items()),
        *([("data", ", ".join(meta["tasks"]))] if meta.get("tasks") else []),
        *([("training steps", str(meta["iteration"]))] if "iteration" in meta else []),
    ]


def _classes(meta: Mapping[str, Any]) -> list[str]:
    parts = []
    for task, names in meta["tasks"].items():
        palette = meta.get("labels", {}).get(task, {}).get("palette")
        if palette is None:
            parts.append(f"{task}: {', '.join(names)}.")
            continue
        rows = [(str(i), name, ", ".join(map(str, palette[i]))) for i, name in enumerate(names)]
        parts += [f"{task}:", _table(("index", "class", "colour"), rows)]
    return parts


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _without_folders(text: str) -> str:
    """Shorten absolute paths, which say nothing to others, to their last part."""
    return ABSOLUTE_PATH.sub("", text)
