"""Detection results: in memory, drawn, and written as DOTA text and GeoJSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from s5.data.gdal_files import Georeference
from s5.data.image_io import write_image
from s5.data.oriented.detections import Detections, write_detections
from s5.data.oriented.drawing import draw_detections
from s5.data.oriented.geojson import write_geojson
from s5.data.oriented.geometry import to_polygons
from s5.data.prepare.patches import Readable
from s5.prediction.images import LARGEST, reduced
from s5.prediction.plan import Target
from s5.prediction.predictor import Result
from s5.prediction.sources import Source

BLOCK = 1024  # side in pixels of the blocks of a TIFF that are read again to check for missing data
FORMATS = {"drawings": (".jpg", ".jpg"), "dota": (".txt", ".txt"), "geojson": (".geojson", ".geojson")}


@dataclass(frozen=True, eq=False, repr=False)
class DetectionResult(Result):
    """The objects detected in an image.

    Attributes:
        detections: Boxes, scores and labels.
    """

    suffixes: ClassVar[Mapping[str, str]] = {
        ".txt": "dota",
        **dict.fromkeys((".geojson", ".json"), "geojson"),
        **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp"), "drawings"),
    }

    detections: Detections

    @property
    def boxes(self) -> np.ndarray:
        """Rotated boxes float32 (n, 5): centre x and y, width, height in pixels, and angle in radians.

        The width is the longer side. The angle from the x axis to it is in [-pi/2, pi/2), clockwise in the
        image.
        """
        return self.detections.boxes

    @property
    def corners(self) -> np.ndarray:
        """Corners of the boxes in pixels, float32 (n, 4, 2), x and y, clockwise in the image."""
        return to_polygons(self.boxes)

    @property
    def scores(self) -> np.ndarray:
        """Scores float32 (n,), 0 to 1."""
        return self.detections.scores

    @property
    def labels(self) -> np.ndarray:
        """Indices into `classes`, int64 (n,)."""
        return self.detections.labels

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.labels)

    def __repr__(self) -> str:
        """Show task, size and the number of objects of each class."""
        counts = np.bincount(self.labels, minlength=len(self.classes)).tolist()
        objects = ", ".join(f"{n} {name}" for name, n in zip(self.classes, counts, strict=True) if n)
        geo = "" if self.georeference is None else ", georeferenced"
        return f"DetectionResult({self.task}: {self.height}x{self.width}{geo}; {objects or 'no objects'})"

    def draw(self, largest: int = LARGEST) -> np.ndarray:
        """Draw outlines with names and scores, or a legend if there are many; see :meth:`Result.draw`."""
        with self.picture.open() as pixels:
            return draw_detections(*reduced(pixels, largest), self.detections, self.classes)

    def _write(self, path: Path, kind: str) -> None:
        if kind == "dota":
            write_detections(path, self.detections, self.classes)
        elif kind == "geojson":
            write_geojson(path, self.detections, self.classes, self.georeference)
        elif kind == "drawings":
            write_image(path, self.draw())
        else:
            raise ValueError(f"format {kind!r}: must be one of {', '.join(FORMATS)}")


def write_results(
    target: Target,
    source: Source,
    classes: Mapping[str, tuple[str, ...]],
    found: Mapping[str, Detections],
    georeference: Georeference | None,
    drawing: tuple[np.ndarray, int] | None,
) -> None:
    """Write the detections of an image file; each result file is written atomically.

    Args:
        target: Output folder, tasks and formats.
        source: The image.
        classes: Names of the classes by task.
        found: Detections by task, in pixels of the image.
        georeference: Georeference of the image, for GeoJSON.
        drawing: Image to draw on, from :func:`s5.prediction.images.reduced`; None for no drawings.

    Raises:
        OSError: A file cannot be written.
    """
    for task in target.tasks:
        if "dota" in target.formats:
            write_detections(target.path(task, "dota", source), found[task], classes[task])
        if "geojson" in target.formats:
            write_geojson(target.path(task, "geojson", source), found[task], classes[task], georeference)
        if drawing is not None:
            drawn = draw_detections(*drawing, found[task], classes[task])
            write_image(target.path(task, "drawings", source), drawn)


def drop_without_data(found: Detections, image: Readable) -> Detections:
    """Drop detections whose centre has no data; windows could not check centres outside of themselves."""
    columns = np.floor(found.boxes[:, 0]).astype(np.int64).clip(0, image.width - 1)
    rows = np.floor(found.boxes[:, 1]).astype(np.int64).clip(0, image.height - 1)
    kept = np.ones(len(rows), bool)
    for top, left in sorted(set(zip(rows // BLOCK * BLOCK, columns // BLOCK * BLOCK, strict=True))):
        height, width = min(BLOCK, image.height - top), min(BLOCK, image.width - left)
        _, valid = image.read_with_valid(int(top), int(left), int(height), int(width))
        if valid is not None:
            here = (rows // BLOCK * BLOCK == top) & (columns // BLOCK * BLOCK == left)
            kept[here] = valid[rows[here] - top, columns[here] - left]
    return found.select(kept)
