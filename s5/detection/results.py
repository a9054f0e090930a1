"""What is written of the detections in an image: a drawing, DOTA's text and GeoJSON for every task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from s5.data.image_io import write_image
from s5.data.oriented.detections import Detections, write_detections
from s5.data.oriented.drawing import draw_detections
from s5.data.oriented.geojson import write_geojson
from s5.data.prepare.patches import Readable
from s5.data.rasters import Georeference
from s5.prediction.sources import Source

FORMATS = {"drawings": ".jpg", "dota": ".txt", "geojson": ".geojson"}
LARGEST_DRAWING = 4096  # pixels of the longer side; larger images are drawn reduced by a whole number
BAND_BYTES = 64 << 20  # of a large image that is being reduced


@dataclass(frozen=True)
class DetResults:
    """Where results go and which.

    Attributes:
        folder: results are ``<folder>/<task>/<format>/<name>`` and the format's extension.
        classes: names of the classes of the tasks to predict.
        kinds: of :data:`FORMATS`.
    """

    folder: Path
    classes: Mapping[str, tuple[str, ...]]
    kinds: Sequence[str] = tuple(FORMATS)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.classes)

    def all_of(self, tasks: Sequence[str]) -> "DetResults":
        """The same with every format for some of the tasks."""
        return replace(self, classes={task: self.classes[task] for task in tasks}, kinds=tuple(FORMATS))

    def path(self, task: str, kind: str, source: Source) -> Path:
        """One result of an image."""
        return self.folder / task / kind / f"{source.name}{FORMATS[kind]}"

    def paths(self, source: Source) -> list[Path]:
        """All results of an image."""
        return [self.path(task, kind, source) for task in self.classes for kind in self.kinds]


def write_results(
    results: DetResults,
    source: Source,
    found: Mapping[str, Detections],
    georeference: Georeference | None,
    drawing: tuple[np.ndarray, int] | None,
) -> None:
    """Write what was found in an image, each file whole or not at all.

    Args:
        results: where to.
        source: the image.
        found: by task, in pixels of the image.
        georeference: of the image.
        drawing: of :func:`reduced`, to be drawn on; None where there are no drawings.

    Raises:
        OSError: a file cannot be written.
    """
    for task, classes in results.classes.items():
        if "dota" in results.kinds:
            write_detections(results.path(task, "dota", source), found[task], classes)
        if "geojson" in results.kinds:
            write_geojson(results.path(task, "geojson", source), found[task], classes, georeference)
        if drawing is not None:
            write_image(
                results.path(task, "drawings", source), draw_detections(*drawing, found[task], classes)
            )


def reduced(pixels: Readable, largest: int = LARGEST_DRAWING) -> tuple[np.ndarray, int]:
    """An image reduced by the least whole number that makes its longer side fit, and this number.

    It is read by bands, so that a huge one is never whole in memory.

    Args:
        pixels: the image.
        largest: pixels of the longer side of the result.

    Returns:
        uint8 (H // n, W // n, 3) and n.

    Raises:
        ImageError: it cannot be read.
    """
    factor = -(-max(pixels.height, pixels.width) // largest)
    height, width = max(1, pixels.height // factor), max(1, pixels.width // factor)
    if factor == 1:
        return pixels.read(0, 0, height, width), 1
    small = np.empty((height, width, 3), np.uint8)
    rows = max(1, BAND_BYTES // (3 * factor * pixels.width))  # of the result in a band
    for top in range(0, height, rows):
        count = min(rows, height - top)
        band = pixels.read(
            top * factor,
            0,
            min(count * factor, pixels.height - top * factor),
            min(width * factor, pixels.width),
        )
        small[top : top + count] = cv2.resize(band, (width, count), interpolation=cv2.INTER_AREA)
    return small, factor
