"""The Python interface: load trained models, create new ones, and predict.

    model = s5.load("vit_b_moe_mdf_best.pth")
    result = model.predict("scene.tif", task="loveda")

`docs/api.md` has more examples.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from s5 import backbones
from s5.checkpoints.layouts import convert
from s5.checkpoints.reading import find_checkpoint, read_checkpoint
from s5.data.label_table import LabelTable
from s5.data.labels import get_classes, get_table
from s5.detection.network import Settings
from s5.detection.predict import DetectionPredictor
from s5.detection.results import DetectionResult
from s5.detection.trained import CLASSIFIER, DetectionSpec
from s5.errors import CheckpointError, ConfigError, did_you_mean
from s5.prediction.predictor import Predictor, Result
from s5.prediction.spec import IMG_SIZE, meta_of
from s5.segmentation.predict import SegmentationPredictor
from s5.segmentation.results import SegmentationResult
from s5.segmentation.trained import SegmentationSpec
from s5.segmentation.windows import Inference
from s5.training.command import check_task_names, expert_channels

__all__ = [
    "DetectionResult",
    "Predictor",
    "Result",
    "SegmentationResult",
    "create_model",
    "list_backbones",
    "load",
]

KEYWORD_ONLY = Parameter.KEYWORD_ONLY
KINDS = ("segmentation", "detection")
EXPERT_CHANNELS = 256  # for names that end in `_moe`, as in the published configurations
DECODER_CHANNELS = 256

Classes = int | str | Sequence[str] | Mapping[str, Any]
"""Classes of a task: their number or names, the name of a known dataset, or a label table as a mapping."""


def load(
    checkpoint: str | os.PathLike,
    device: str | torch.device = "auto",
    precision: str = "auto",
    *,
    backbone: str | None = None,
    tasks: Sequence[str] | Mapping[str, Classes] | None = None,
    **options: Any,
) -> Predictor:
    """Load a trained model of S4P, multi-dataset fine-tuning or detection.

    Args:
        checkpoint: Weights of a full model, with or without `.pth`.
        device: `cpu`, `cuda`, `cuda:1`, or `auto` for a GPU if there is one.
        precision: `auto`, `bf16`, `fp16` or `fp32`.
        backbone: Name of the backbone, such as `vit_b_moe`; only for a file without metadata, such as one in
            the published layout.
        tasks: Names of the tasks to load, by default all. For a file without metadata, a mapping from names
            to classes, such as `{"loveda": "loveda"}`, in the order of training.
        options: Inference options, see :class:`~s5.segmentation.predict.SegmentationPredictor` and
            :class:`~s5.detection.predict.DetectionPredictor`.

    Raises:
        CheckpointError: The file is missing or damaged, or does not contain a full model.
        ConfigError: A value is invalid, or the file has no metadata and backbone or tasks are not given.
        DataError: Classes are unknown or invalid.
    """
    path = Path(checkpoint)
    content = read_checkpoint(path, lazy=True)
    meta = meta_of(content)
    spec = DetectionSpec.from_meta(meta) or SegmentationSpec.from_meta(meta)
    if spec is None:
        spec = _spec_of_weights(path, content, backbone, tasks)
    else:
        if backbone not in (None, spec.backbone) or isinstance(tasks, Mapping):
            raise ConfigError(
                f"{path} is self-describing: a {spec.backbone} for {', '.join(spec.tasks)}. Omit backbone, "
                f"and give tasks, if any, as a list of names"
            )
        spec = spec.only([tasks] if isinstance(tasks, str) else list(tasks or ()))
    file, chosen_device = find_checkpoint(path), find_device(device)
    product = DetectionPredictor if isinstance(spec, DetectionSpec) else SegmentationPredictor
    known = [name for name, option in signature(product).parameters.items() if option.kind is KEYWORD_ONLY]
    for name in options:
        _require(name, known, "option")
    return product(spec, file, chosen_device, precision, **options).load()  # type: ignore[arg-type]


def create_model(
    backbone: str,
    tasks: Mapping[str, Classes],
    *,
    kind: str = "segmentation",
    experts: int | None = None,
    img_size: int = IMG_SIZE,
    decoder_channels: int = DECODER_CHANNELS,
    settings: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build an untrained network: a backbone with a head per task.

    Args:
        backbone: A name of :func:`list_backbones`, or `timm:NAME`.
        tasks: Classes by task, in the order of the batch.
        kind: `segmentation` or `detection`.
        experts: Channels of the experts in the backbone's FFNs; by default 256 for names that end in `_moe`
            and 0 for others.
        img_size: Side of the training images in pixels.
        decoder_channels: Channels inside the decoders; segmentation only.
        settings: Values of :class:`~s5.detection.network.Settings`; detection only.

    Returns:
        A :class:`~s5.segmentation.segmentor.Segmentor`, whose input is normalised images (B, 3, H, W), or a
        :class:`~s5.detection.network.MultiTaskDetector`.

    Raises:
        ConfigError: The backbone, kind or a setting is unknown, a setting is out of range, experts are too
            wide, or a task has an invalid name.
        DataError: Classes are unknown or invalid.
        ValueError: The backbone does not support this image size.
    """
    _require_backbone(backbone)
    _require(kind, KINDS, "kind")
    if experts is None:
        experts = EXPERT_CHANNELS if backbones.has_experts(backbone) else 0
    dense = backbones.dense_name(backbone)
    name = backbones.with_experts(dense) if experts else dense
    experts = expert_channels(name, experts)
    _check_names(tasks)
    if kind == "detection":
        classes = {task: _class_names(given) for task, given in tasks.items()}
        chosen = _settings(settings or {})
        return DetectionSpec(name, img_size, experts, classes, chosen).build_network()
    if settings:
        raise ConfigError("settings are those of a detector; leave them out, or choose kind='detection'")
    tables = {task: _table(task, given) for task, given in tasks.items()}
    inference = dict.fromkeys(tables, Inference())
    return SegmentationSpec(name, img_size, experts, decoder_channels, tables, inference).build_network()


def list_backbones() -> list[str]:
    """List the names of all backbones; those that end in `_moe` have an expert per task."""
    return backbones.list_backbones(experts=True)


def find_device(device: str | torch.device) -> torch.device:
    """Return the device of a name; `auto` is a GPU if there is one.

    Raises:
        ConfigError: The device is unknown or unavailable.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # an AssertionError without CUDA
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {str(device)!r} cannot be used ({reason}); choose cpu or auto") from None
    return chosen


def _spec_of_weights(
    path: Path,
    content: Mapping[str, Any],
    backbone: str | None,
    tasks: Sequence[str] | Mapping[str, Classes] | None,
) -> DetectionSpec | SegmentationSpec:
    """Build the spec of a file without metadata."""
    if backbone is None or not isinstance(tasks, Mapping):
        raise ConfigError(
            f"{path} has no metadata: give the name of the backbone and the classes of its tasks, such as "
            f"s5.load(..., backbone='vit_b_moe', tasks={{'loveda': 'loveda'}})"
        )
    _require_backbone(backbone)
    _check_names(tasks)
    try:
        weights = convert(content, tuple(tasks))
        if not weights.heads:
            raise CheckpointError("holds a backbone only; give the weights of a full model")
        if any(CLASSIFIER in head for head in weights.heads.values()):
            classes = {task: _class_names(given) for task, given in tasks.items()}
            return DetectionSpec.from_weights(weights, backbone, classes)
        tables = {task: _table(task, given) for task, given in tasks.items()}
        return SegmentationSpec.from_weights(weights, backbone, tables)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _table(task: str, given: Classes) -> LabelTable:
    """Return the label table of a segmentation task."""
    if isinstance(given, str | Mapping):
        return get_table(given, default_name=task)
    return get_table({"name": task, "classes": _class_names(given)})


def _class_names(given: Classes) -> tuple[str, ...]:
    if isinstance(given, int):
        return tuple(f"class_{i}" for i in range(given))
    return get_classes(given if isinstance(given, str) else tuple(given))


def _check_names(tasks: Mapping[str, Classes]) -> None:
    try:
        check_task_names(dict(tasks))
    except ValueError as error:
        raise ConfigError(f"tasks: {error}") from None


def _settings(given: Mapping[str, Any]) -> Settings:
    for name in given:
        _require(name, [field.name for field in fields(Settings)], "setting")
    try:
        return TypeAdapter(Settings).validate_python(dict(given))
    except ValidationError as error:
        wrong = "; ".join(f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors())
        raise ConfigError(f"settings: {wrong}") from None


def _require_backbone(name: str) -> None:
    try:
        backbones.get_architecture(name)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _require(name: str, known: Sequence[str] | Mapping[str, Any], what: str) -> None:
    if name not in known:
        raise ConfigError(f"{what} {name!r}: must be one of {', '.join(known)}{did_you_mean(name, known)}")
