"""What is exported: tasks, image sizes and the names and settings that go into the files."""

import json
from dataclasses import dataclass
from typing import Any

from s5.backbones import get_architecture
from s5.detection.predict import OVERLAP, SCORE_THR
from s5.detection.trained import DetectionSpec
from s5.errors import ConfigError
from s5.prediction.predictor import ALL, Predictor
from s5.segmentation.trained import SegmentationSpec

PERCENT = 100


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    Attributes:
        task: Name of the task; `all` for all tasks of a segmentor, each with its own output. Optional if
            there is only one.
        size: Side of the images in pixels. By default, a segmentor takes images of any size, if its backbone
            can be recorded that way, and a detector, or a segmentor whose backbone takes one size only, those
            of the training size.
        qgis: Fix the size of a segmentor, by default to that of its windows, because Deepness takes no other.
        resolution: Size of a pixel on the ground in cm, for Deepness.
        overwrite: Replace existing files.
    """

    task: str | None = None
    size: int | None = None
    qgis: bool = False
    resolution: float | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Plan:
    """The model that is exported, and its input.

    Attributes:
        spec: The model, with the exported tasks only.
        size: Side of the images in pixels; None for any size.
        options: Options of the export.
    """

    spec: SegmentationSpec | DetectionSpec
    size: int | None
    options: ExportOptions

    @property
    def is_detector(self) -> bool:
        """Whether the outputs are boxes; else they are probabilities."""
        return isinstance(self.spec, DetectionSpec)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, which are those of the outputs."""
        return tuple(self.spec.tasks)

    @property
    def example_shape(self) -> tuple[int, int, int, int]:
        """Shape of the images that the graph is recorded with; where sizes vary, none equals another."""
        if self.is_detector:
            return 1, 3, self.tile, self.tile
        if self.size is not None:
            return 2, 3, self.size, self.size
        step = get_architecture(self.spec.backbone).divisor
        return 2, 3, 6 * step + 4, 9 * step + 6

    @property
    def free_dimensions(self) -> dict[int, str]:
        """Names of the dimensions of the input that may have any size, by index."""
        if self.is_detector:
            return {}
        return {0: "batch"} | ({2: "height", 3: "width"} if self.size is None else {})

    @property
    def tile(self) -> int:
        """Side in pixels of the windows into which large images are cut."""
        return self.size or _tile(self.spec)

    def metadata(self) -> dict[str, str]:
        """Entries that the QGIS plugin Deepness reads from an ONNX file, as JSON."""
        names = [dict(enumerate(entry.classes)) for entry in self.spec.tasks.values()]
        values: dict[str, Any] = {
            "model_type": "Detector" if self.is_detector else "Segmentor",
            "class_names": names[0] if len(names) == 1 else names,
            "tile_size": self.tile,
            "tiles_overlap": _overlap(self.spec),
            # The plugin divides by 255; the graph does the rest.
            "standardization_mean": [0.0] * 3,
            "standardization_std": [1.0] * 3,
        }
        if self.options.resolution is not None:
            values["resolution"] = self.options.resolution
        if isinstance(self.spec, DetectionSpec):
            values["det_type"] = "YOLO_Ultralytics_obb"
            values["det_conf"] = SCORE_THR
            values["det_iou_thresh"] = self.spec.settings.nms
        else:
            # Without a threshold, every pixel gets its most probable class; nothing is smoothed.
            values["seg_thresh"] = 0
            values["seg_small_segment"] = 0
        return {key: json.dumps(value) for key, value in values.items()}


def make_plan(model: Predictor, options: ExportOptions) -> Plan:
    """Resolve the options for a model.

    Raises:
        ConfigError: A task is unknown or missing, the size is missing or too large for the backbone, or a
            number is out of range.
    """
    if not isinstance(model.spec, SegmentationSpec | DetectionSpec):
        raise TypeError(f"{type(model.spec).__name__} cannot be exported")
    spec = model.spec.only(_tasks(model.spec, options.task))
    if options.size is not None and options.size < 1:
        raise ConfigError(f"size {options.size}: must be at least 1 pixel")
    if options.resolution is not None and not options.resolution > 0:
        raise ConfigError(f"resolution {options.resolution}: must be more than 0 cm per pixel")
    only = get_architecture(spec.backbone).for_size(spec.img_size).side
    if only is not None and options.size is not None and options.size > only:
        raise ConfigError(f"size {options.size}: {spec.backbone} takes images of up to {only} pixels only")
    if isinstance(spec, DetectionSpec):
        return Plan(spec, options.size or spec.img_size, options)
    if options.size is None and options.qgis:
        return Plan(spec, _tile(spec), options)
    if options.size is None and only is not None:
        return Plan(spec, only, options)
    if options.size is None and not get_architecture(spec.backbone).any_size_graph:
        raise ConfigError(
            f"{spec.backbone} can only be exported for a fixed image size: give it, such as --size "
            f"{_tile(spec)}"
        )
    return Plan(spec, options.size, options)


def _tasks(spec: SegmentationSpec | DetectionSpec, task: str | None) -> list[str]:
    known = list(spec.tasks)
    one_each = isinstance(spec, DetectionSpec)
    if task is None and len(known) > 1:
        every = "" if one_each else ", or all for one output each"
        raise ConfigError(f"the model has several tasks: choose one with --task ({', '.join(known)}{every})")
    if task == ALL and one_each and len(known) > 1:
        raise ConfigError(f"a detector is exported for one task: choose one with --task ({', '.join(known)})")
    return known if task in (None, ALL) else [str(task)]


def _tile(spec: SegmentationSpec | DetectionSpec) -> int:
    """Side in pixels of the windows that a model predicts images in."""
    if isinstance(spec, DetectionSpec):
        return spec.img_size
    crops = [how.crop for how in spec.inference.values() if how.mode == "slide_window"]
    return crops[0] if crops else spec.img_size


def _overlap(spec: SegmentationSpec | DetectionSpec) -> int:
    """Overlap of neighbouring windows in percent of their side."""
    if isinstance(spec, DetectionSpec):
        return round(PERCENT * OVERLAP)
    shares = [1 - how.stride / how.crop for how in spec.inference.values() if how.mode == "slide_window"]
    return round(PERCENT * shares[0]) if shares else PERCENT // 4


def described(plan: Plan) -> str:
    """One line on the input of the exported model."""
    side = "any size" if plan.size is None else f"{plan.size} x {plan.size} pixels"
    count = "one image" if plan.is_detector else "any number of images"
    return f"input `image`: {count} of {side}, RGB in 0..1"
