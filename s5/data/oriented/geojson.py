"""Write detections as GeoJSON (RFC 7946): longitudes within ±180, outlines cut at the antimeridian.

A ring is float64 (m, 2), longitude and latitude in degrees, without repeating the first point at the end.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError  # GDAL's errors; rasterio has no public name for them
from rasterio.control import GroundControlPoint
from rasterio.errors import CRSError, RasterioError
from rasterio.transform import GCPTransformer
from rasterio.warp import transform

from s5.data.files import write_bytes
from s5.data.gdal_files import Georeference
from s5.data.oriented.detections import Detections
from s5.data.oriented.geometry import to_polygons

logger = logging.getLogger(__name__)

WGS84 = "EPSG:4326"
LIMIT = 180.0  # degrees of longitude on either side of the prime meridian
DEGREES, PIXELS = 7, 2  # decimals: 1 cm on the ground; a hundredth of a pixel
SUBDIVISIONS = (16, 256, 4096)  # points per edge of a box near a pole, increased until they are close enough
STRAIGHT = 1.0  # degrees of longitude that an edge spans without points in between
NEAR = 90.0  # degrees of longitude between neighbouring points that are close enough
SHOWN = 100  # characters of GDAL's message


def write_geojson(
    path: Path, found: Detections, classes: Sequence[str], georeference: Georeference | None = None
) -> None:
    """Write a feature collection of polygons with `class` and `score`, atomically.

    Args:
        path: The file; missing folders are created.
        found: Detections in pixels of the image.
        classes: Class names by label.
        georeference: Georeferencing of the image; None writes pixels.
    """
    corners = to_polygons(found.boxes.astype(np.float64))
    geometries = None if georeference is None else _on_earth(path, corners, georeference)
    if georeference is None or geometries is None:
        geometries = [_geometry([np.round(outline, PIXELS)]) for outline in corners]
        reference = "pixels, x to the right, y down"
    else:
        reference = _reference(georeference)
    collection = {
        "type": "FeatureCollection",
        "reference": reference,
        "features": [
            {
                "type": "Feature",
                "properties": {"class": classes[label], "score": round(float(score), 6)},
                "geometry": geometry,
            }
            for geometry, label, score in zip(geometries, found.labels, found.scores, strict=True)
        ],
    }
    write_bytes(path, f"{json.dumps(collection, ensure_ascii=False)}\n".encode())


def _reference(georeference: Georeference) -> str:
    text = "WGS84 longitude, latitude"
    if georeference.transform is None:
        text += f"; approximate, from {len(georeference.gcps)} ground control points"
    return text


def _on_earth(
    path: Path, corners: np.ndarray, georeference: Georeference
) -> list[dict[str, Any] | None] | None:
    """Convert boxes (n, 4, 2) in pixels to WGS84 geometries; None, with a warning, if impossible."""
    if georeference.transform is None and not georeference.gcps:
        problem = "has only a camera model (RPC), which needs heights: orthorectify it"
    elif georeference.crs is None:
        problem = "does not name its coordinate reference system"
    else:
        try:
            with rasterio.Env():  # GDAL's messages go to the log, not to stderr
                degrees = _to_degrees(corners, georeference)
                if np.isfinite(degrees).all():
                    return _geometries(path, corners, degrees, georeference)
            problem = "has detections outside the domain of its coordinate reference system"
        except (CRSError, RasterioError, CPLE_BaseError) as error:
            problem = f"has map coordinates that cannot be converted to WGS84 ({str(error)[:SHOWN]})"
    logger.warning("%s: coordinates are in pixels, because the image %s", path, problem)
    return None


def _to_degrees(points: np.ndarray, georeference: Georeference) -> np.ndarray:
    """Longitude and latitude (..., 2) of points (..., 2) in pixels."""
    if not points.size:
        return points
    column, row = points.reshape(-1, 2).T
    if georeference.transform is not None:
        a, b, c, d, e, f = georeference.transform[:6]
        x, y = a * column + b * row + c, d * column + e * row + f
    else:
        with GCPTransformer(_continuous(georeference)) as to_map:  # a polynomial, as in gdalwarp
            x, y = to_map.xy(row, column, offset="ul")
    # rasterio returns longitude first, whatever the axis order of the reference system.
    return np.array(transform(georeference.crs, WGS84, x, y)).T.reshape(points.shape)


def _continuous(georeference: Georeference) -> list[GroundControlPoint]:
    """The control points with longitudes continuous across the antimeridian, so that a polynomial fits."""
    points = list(georeference.gcps)
    if georeference.crs is None or not georeference.crs.is_geographic:
        return points
    return [
        GroundControlPoint(p.row, p.col, p.x - 360 * round((p.x - points[0].x) / 360), p.y, p.z)
        for p in points
    ]


def _geometries(
    path: Path, corners: np.ndarray, degrees: np.ndarray, georeference: Georeference
) -> list[dict[str, Any] | None]:
    """Geometries of boxes, given in pixels and in degrees, both (n, 4, 2); None for boxes too near a pole."""
    geometries: list[dict[str, Any] | None] = []
    for box, ring in zip(corners, degrees, strict=True):
        if longest_step(ring) > STRAIGHT:
            ring = _with_points_between(box, georeference)
        if not np.isfinite(ring).all() or longest_step(ring) > NEAR:
            geometries.append(None)
            continue
        parts = [_rounded(part) for part in cut(ring)]
        # A box that only touches the antimeridian has a part without area.
        geometries.append(_geometry([p for p in parts if signed_area(p)] or parts[:1]))
    if unlocated := geometries.count(None):
        logger.warning("%s: %d boxes with an edge across a pole have a null geometry", path, unlocated)
    return geometries


def _with_points_between(box: np.ndarray, georeference: Georeference) -> np.ndarray:
    """Outline in degrees with points between the corners: straight edges on the map are curved there."""
    for count in SUBDIVISIONS:
        shares = np.arange(count)[:, None] / count
        points = np.concatenate([a + shares * (b - a) for a, b in zip(box, np.roll(box, -1, 0), strict=True)])
        ring = _to_degrees(points, georeference)
        if longest_step(ring) <= NEAR:
            break
    return ring


def _rounded(ring: np.ndarray) -> np.ndarray:
    """Round a ring and drop points that then repeat the previous one, keeping at least three."""
    ring = np.round(ring, DEGREES)
    differs = (ring != np.roll(ring, 1, 0)).any(1)
    return ring[differs] if differs.sum() >= 3 else ring


def _geometry(outlines: Sequence[np.ndarray]) -> dict[str, Any]:
    rings = []
    for outline in outlines:
        ring = [*outline.tolist(), outline[0].tolist()]
        rings.append([ring[::-1] if signed_area(outline) < 0 else ring])
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings[0]}
    return {"type": "MultiPolygon", "coordinates": rings}


def longest_step(ring: np.ndarray) -> float:
    """Largest difference of longitude between neighbouring points, the shorter way round, in degrees."""
    return float(np.abs(_steps(ring)).max())


def cut(ring: np.ndarray) -> list[np.ndarray]:
    """Normalise a ring to ±180 degrees and cut it at the antimeridian.

    Neighbouring points are connected the shorter way round. A ring around a pole is extended from -180 to 180
    degrees and to the pole.

    Args:
        ring: Outline of a convex shape on the map, or of one that every meridian leaves once.

    Returns:
        One ring, or the parts west and east of the antimeridian.
    """
    steps = _steps(ring)
    longitudes = ring[0, 0] + np.concatenate([[0.0], np.cumsum(steps)])  # (m + 1,), the first point twice
    continuous = np.stack([longitudes[:-1], ring[:, 1]], 1)
    if abs(steps.sum()) > LIMIT:
        return [_around_pole(continuous if steps.sum() > 0 else _backwards(continuous))]
    continuous[:, 0] -= 2 * LIMIT * np.floor((continuous[:, 0].min() + LIMIT) / (2 * LIMIT))
    if continuous[:, 0].max() <= LIMIT:
        return [continuous]
    west, east = _side(continuous, 1), _side(continuous, -1)  # of the antimeridian, on the map
    return [west, east - [2 * LIMIT, 0]]


def signed_area(ring: np.ndarray) -> float:
    """Signed area of a ring; positive if counter-clockwise on a map."""
    x, y = (ring - ring[0]).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def _steps(ring: np.ndarray) -> np.ndarray:
    """Differences of longitude (m,) from each point to the next, within ±180."""
    steps = np.roll(ring[:, 0], -1) - ring[:, 0]
    return steps - 2 * LIMIT * np.rint(steps / (2 * LIMIT))


def _side(ring: np.ndarray, sign: int) -> np.ndarray:
    """The part of a ring on one side of longitude 180 (Sutherland and Hodgman, 1974)."""
    points: list[np.ndarray] = []
    for start, end in zip(ring, np.roll(ring, -1, 0), strict=True):
        start_inside, end_inside = sign * (start[0] - LIMIT) <= 0, sign * (end[0] - LIMIT) <= 0
        if start_inside:
            points.append(start)
        if start_inside != end_inside:
            share = (LIMIT - start[0]) / (end[0] - start[0])
            points.append(np.array([LIMIT, start[1] + share * (end[1] - start[1])]))
    return np.array(points)


def _backwards(ring: np.ndarray) -> np.ndarray:
    """Reverse a ring, keeping its first point; longitudes increase."""
    turned = np.roll(ring[::-1], 1, 0)
    turned[1:, 0] += 2 * LIMIT
    return turned


def _around_pole(ring: np.ndarray) -> np.ndarray:
    """Close a ring of continuous, eastward longitudes over the pole, from -180 to 180."""
    once_more = np.concatenate([ring, ring[:1] + [2 * LIMIT, 0]])
    # Longitude of the antimeridian that the ring crosses.
    first = LIMIT + 2 * LIMIT * np.ceil((once_more[0, 0] - LIMIT) / (2 * LIMIT))
    latitude = np.interp(first, *once_more.T)
    before = ring[:, 0] < first
    inside = np.concatenate([ring[~before] - [2 * LIMIT, 0], ring[before]])
    inside[:, 0] -= first - LIMIT
    pole = np.copysign(90.0, ring[:, 1].mean())
    ends = np.array([[LIMIT, latitude], [LIMIT, pole], [-LIMIT, pole], [-LIMIT, latitude]])
    return np.concatenate([inside, ends])
