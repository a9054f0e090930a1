"""A STAC item with the Machine Learning Model extension (MLM) that describes an exported file."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import s5
from s5.export.plan import PERCENT, Plan, described

EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.6.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
)
BANDS = ("red", "green", "blue")
WORLD = (-180.0, -90.0, 180.0, 90.0)  # west, south, east, north in degrees; a checkpoint names no place
SHA256 = "1220"  # multihash prefix: function and length of the digest
BLOCK = 1 << 20


def make_item(plan: Plan, files: Sequence[Path], parameters: int) -> dict[str, Any]:
    """Describe exported files.

    Args:
        plan: What was exported.
        files: The model file, and the file of its weights if they are apart.
        parameters: Number of parameters.
    """
    west, south, east, north = WORLD
    corners = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(EXTENSIONS),
        "id": files[0].stem,
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "bbox": list(WORLD),
        "properties": _properties(plan, files[0], parameters),
        "links": [],
        "assets": dict(zip(("model", "weights"), (_asset(file, plan) for file in files), strict=False)),
    }


def _properties(plan: Plan, file: Path, parameters: int) -> dict[str, Any]:
    onnx, spec = file.suffix == ".onnx", plan.spec
    what = "Oriented R-CNN" if plan.is_detector else "UPerNet"
    return {
        "description": f"{what} on {spec.backbone} for {', '.join(plan.tasks)}; {described(plan)}",
        "datetime": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "bands": [
            {"name": band} for band in BANDS
        ],  # where MLM looks for them; STAC wants them in the asset, too
        "mlm:name": re.sub(r"[^\w.\- ]", "_", f"s5 {' '.join(plan.tasks)} {spec.backbone}", flags=re.ASCII),
        "mlm:architecture": what,
        "mlm:tasks": [_task(plan)],
        "mlm:framework": "ONNX" if onnx else "PyTorch",
        "mlm:framework_version": version("onnx" if onnx else "torch").partition("+")[0],
        "mlm:pretrained": True,
        "mlm:total_parameters": parameters,
        "mlm:input": [_input(plan)],
        "mlm:output": [_output(plan, task) for task in plan.tasks],
        "mlm:hyperparameters": _hyperparameters(plan),
    }


def _task(plan: Plan) -> str:
    return "object-detection" if plan.is_detector else "semantic-segmentation"


def _input(plan: Plan) -> dict[str, Any]:
    shape = [-1 if i in plan.free_dimensions else side for i, side in enumerate(plan.example_shape)]
    return {
        "name": "image",
        "bands": list(BANDS),
        "input": {"shape": shape, "dim_order": ["batch", "bands", "height", "width"], "data_type": "float32"},
        # From 8-bit values to 0..1; the model itself subtracts the mean and divides by the deviation.
        "value_scaling": [{"type": "min-max", "minimum": 0, "maximum": 255}],
        "resize_type": None,
        "pre_processing_function": None,
    }


def _output(plan: Plan, task: str) -> dict[str, Any]:
    classes, palette = plan.spec.tasks[task]
    batch, _, height, width = _input(plan)["input"]["shape"]
    if plan.is_detector:
        shape = [batch, 4 + len(classes) + 1, -1]
        order = ["batch", "box_and_scores", "detection"]
        what = "centre x, y, width, height in pixels, a score per class, angle in radians from x to y"
    else:
        shape, order, what = (
            [batch, len(classes), height, width],
            ["batch", "class", "height", "width"],
            "probabilities",
        )
    return {
        "name": task,
        "description": what,
        "tasks": [_task(plan)],
        "result": {"shape": shape, "dim_order": order, "data_type": "float32"},
        "classification:classes": [
            {
                "value": value,
                "name": re.sub(r"[^\w-]+", "_", name, flags=re.ASCII),  # for machines
                "description": name,
                "color_hint": "".join(f"{channel:02X}" for channel in color),
            }
            for value, (name, color) in enumerate(zip(classes, palette, strict=True))
        ],
        "post_processing_function": None,
    }


def _hyperparameters(plan: Plan) -> Mapping[str, Any]:
    spec, metadata = plan.spec, plan.metadata()
    return {
        "s5_version": s5.__version__,
        "backbone": spec.backbone,
        "expert_channels": spec.expert_channels,
        "training_size": spec.img_size,
        "tile_size": plan.tile,
        "tiles_overlap": int(metadata["tiles_overlap"]) / PERCENT,
        **({"resolution_cm": plan.options.resolution} if plan.options.resolution else {}),
    }


def _asset(file: Path, plan: Plan) -> dict[str, Any]:
    kinds = {
        ".onnx": ("application/octet-stream; framework=onnx", "onnx"),
        ".pt2": ("application/octet-stream; application=pytorch", "torch.export.save"),
    }
    media, artifact = kinds.get(file.suffix, ("application/octet-stream", ""))
    model = {
        "roles": ["mlm:model", "mlm:weights"],
        "mlm:artifact_type": artifact,
        "bands": [{"name": band} for band in BANDS],
    }
    return {
        "href": f"./{file.name}",
        "type": media,
        "title": f"{plan.spec.backbone} for {', '.join(plan.tasks)}" if artifact else "external weights",
        **(model if artifact else {"roles": ["mlm:weights"]}),
        "file:size": file.stat().st_size,
        "file:checksum": SHA256 + checksum(file),
    }


def checksum(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
