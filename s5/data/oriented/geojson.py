"""Detections as GeoJSON: on the earth where the image says where it is, else in pixels.

RFC 7946 asks for longitude and latitude (WGS84) and outlines that turn counter-clockwise. An image without
map coordinates, or whose reference system cannot be brought to WGS84 (such as a local one), has its
detections in pixels, x to the right and y down. The member ``reference`` beside the features says which.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from s5.data.geotiff import Georeference
from s5.data.image_io import write_bytes
from s5.data.oriented.detections import Detections
from s5.data.oriented.geometry import to_polygons

logger = logging.getLogger(__name__)

SHOWN = 100  # letters of what GDAL says
WGS84 = "EPSG:4326"
DEGREES, PIXELS = 9, 2  # decimals: 0.1 mm on the ground; a hundredth of a pixel


def write_geojson(
    path: Path, found: Detections, classes: Sequence[str], georeference: Georeference | None = None
) -> None:
    """Write a feature collection of polygons with ``class`` and ``score``, whole or not at all.

    Args:
        path: the file; missing folders are made.
        found: in pixels of the image.
        classes: names by label.
        georeference: of the image.
    """
    corners = to_polygons(found.boxes.astype(np.float64))
    outlines = None if georeference is None else _on_earth(path, corners, georeference)
    pixels = outlines is None
    outlines = np.round(corners, PIXELS) if outlines is None else np.round(outlines, DEGREES)
    collection = {
        "type": "FeatureCollection",
        "reference": "pixels, x to the right, y down" if pixels else "WGS84 longitude, latitude",
        "features": [
            _feature(outline, classes[label], float(score))
            for outline, label, score in zip(outlines, found.labels, found.scores, strict=True)
        ],
    }
    write_bytes(path, f"{json.dumps(collection, ensure_ascii=False)}\n".encode())


def _on_earth(path: Path, corners: np.ndarray, georeference: Georeference) -> np.ndarray | None:
    """Longitude and latitude (n, 4, 2) of corners in pixels; None where there are none."""
    from rasterio._err import CPLE_BaseError  # what GDAL says; rasterio has no public name for it
    from rasterio.errors import CRSError
    from rasterio.warp import transform

    if georeference.crs is None:
        return None
    a, b, c, d, e, f = georeference.transform[:6]
    column, row = corners.reshape(-1, 2).T
    x, y = a * column + b * row + c, d * column + e * row + f
    try:
        # rasterio gives longitude first, whatever the reference system says of its axes.
        degrees = np.array(transform(georeference.crs, WGS84, x, y)).T.reshape(-1, 4, 2)
    except (CRSError, CPLE_BaseError) as error:
        reason = str(error)[:SHOWN]
        logger.warning("%s: in pixels, as the way from the image's map to WGS84 fails (%s)", path, reason)
        return None
    if not np.isfinite(degrees).all():
        logger.warning("%s: in pixels, as some are not on the earth by the image's reference system", path)
        return None
    return degrees


def _feature(outline: np.ndarray, name: str, score: float) -> dict[str, Any]:
    ring = [*outline.tolist(), outline[0].tolist()]
    if _signed_area(outline) < 0:
        ring.reverse()
    return {
        "type": "Feature",
        "properties": {"class": name, "score": round(score, 6)},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }


def _signed_area(outline: np.ndarray) -> float:
    """Positive if the corners turn from the first axis to the second."""
    x, y = (outline - outline[0]).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)
