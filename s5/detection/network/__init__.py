"""Oriented R-CNN for several tasks on one backbone, built from the parts of mmdetection and mmrotate."""

import contextlib
import io

# On import, which registries may also trigger later, both print missing optional packages to stdout, which
# other programs may parse.
with contextlib.redirect_stdout(io.StringIO()):
    import mmdet.models  # noqa: F401
    import mmrotate.models  # noqa: F401

from s5.detection.network.detector import (
    DetectionModel,
    MultiTaskDetector,
    build_detector,
    build_head,
    on_data,
    with_heads,
)
from s5.detection.network.oriented_rcnn import Settings

__all__ = [
    "DetectionModel",
    "MultiTaskDetector",
    "Settings",
    "build_detector",
    "build_head",
    "on_data",
    "with_heads",
]
