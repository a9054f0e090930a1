"""GeoJSON on the earth: RFC 7946 at the antimeridian and the poles; images placed by points or a camera."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC
from shapely.geometry import shape

from s5.data.gdal_files import Georeference, read_georeference
from s5.data.oriented import geojson as antimeridian
from s5.data.oriented.detections import make_detections
from s5.data.oriented.geojson import write_geojson

RADIUS = 6_378_137.0  # of WGS84 at the equator, in metres
E2 = 0.00669437999014  # eccentricity squared


def north_up(crs: str, x: float, y: float, step: float) -> Georeference:
    return Georeference(CRS.from_user_input(crs), Affine(step, 0, x, 0, -step, y))


def written(folder: Path, boxes: list, georeference: Georeference) -> dict:
    """The collection of upright or turned boxes (x, y, w, h, theta) in pixels."""
    found = make_detections(boxes, [0.5] * len(boxes), [0] * len(boxes))
    write_geojson(folder / "a.geojson", found, ("ship",), georeference)
    return json.loads((folder / "a.geojson").read_text())


def shapes(collection: dict) -> list:
    """Geometries, of which everything is tested that RFC 7946 asks for."""
    assert set(collection) == {"type", "reference", "features"}, "no crs"
    assert collection["reference"].startswith("WGS84")
    result = []
    for feature in collection["features"]:
        geometry = shape(feature["geometry"])
        assert geometry.is_valid and geometry.area > 0
        assert geometry.bounds[0] >= -180 and geometry.bounds[2] <= 180
        assert geometry.bounds[1] >= -90 and geometry.bounds[3] <= 90
        polygons = list(geometry.geoms) if geometry.geom_type == "MultiPolygon" else [geometry]
        for polygon in polygons:
            assert polygon.exterior.is_ccw
            assert not polygon.interiors
        for number in str(feature["geometry"]["coordinates"]).replace("[", "").replace("]", "").split(","):
            assert len(number.strip().partition(".")[2]) <= 7, "decimals"
        result.append(geometry)
    return result


def test_mercator_of_the_pacific_by_hand(tmp_path: Path) -> None:
    """EPSG:3832: x is the radius times the longitude east of 150; the antimeridian is at 30 degrees."""
    degree = RADIUS * np.pi / 180
    place = north_up(
        "EPSG:3832", 30 * degree, 0, degree / 1000
    )  # a pixel is 0.001 degrees; column 0 is 180 E
    west, across, east, touching = shapes(
        written(
            tmp_path, [[-50, 0, 20, 10, 0], [0, 0, 40, 10, 0], [50, 0, 20, 10, 0], [-10, 0, 20, 10, 0]], place
        )
    )
    half = 0.005 / (1 - E2)  # degrees of latitude: near the equator, y grows by 1 - e^2 as fast
    assert west.bounds == pytest.approx((179.94, -half, 179.96, half), abs=2e-7)
    assert east.bounds == pytest.approx((-179.96, -half, -179.94, half), abs=2e-7)
    assert touching.geom_type == "Polygon" and touching.bounds[2] == 180
    assert across.geom_type == "MultiPolygon"
    left, right = across.geoms
    assert left.bounds == pytest.approx((179.98, -half, 180, half), abs=2e-7)
    assert right.bounds == pytest.approx((-180, -half, -179.98, half), abs=2e-7)


def test_last_utm_zone_by_hand(tmp_path: Path) -> None:
    """In zone 60 the antimeridian is 3 degrees east of the central meridian: 833,978.56 m at the equator."""
    place = north_up("EPSG:32660", 833_978.56, 0, 0.5)
    (crossing,) = shapes(written(tmp_path, [[0, 0, 400, 20, 0]], place))
    metres = np.pi / 180 * RADIUS  # of a degree at the equator, where the scale is 0.9996 * 1.00138 here
    assert {part.bounds[0] < 0 for part in crossing.geoms} == {True, False}
    for part in crossing.geoms:
        width = part.bounds[2] - part.bounds[0]
        assert width * metres == pytest.approx(100 / (0.9996 * (1 + np.radians(3) ** 2 / 2)), rel=1e-3)


@pytest.mark.parametrize("origin", [179.9, -180.1, 539.9])
def test_longitudes_beyond_180_in_the_file(tmp_path: Path, origin: float) -> None:
    place = north_up("EPSG:4326", origin, 10, 0.001)
    crossing, inside = shapes(written(tmp_path, [[100, 100, 50, 20, 0.4], [160, 100, 40, 20, 0]], place))
    assert crossing.geom_type == "MultiPolygon" and inside.geom_type == "Polygon"
    assert inside.bounds == pytest.approx((-179.96, 9.89, -179.92, 9.91))
    assert crossing.area == pytest.approx(0.05 * 0.02, rel=1e-3)
    left, right = sorted(crossing.geoms, key=lambda part: part.bounds)[::-1]
    assert left.bounds[2] == 180 and right.bounds[0] == -180
    assert left.area == pytest.approx(right.area, rel=1e-3), "the box is centred on the antimeridian"


@pytest.mark.parametrize("signs", [(1, -1), (1, 1), (-1, -1), (-1, 1)])
def test_right_hand_rule_of_flipped_images(tmp_path: Path, signs: tuple[int, int]) -> None:
    transform = Affine(signs[0] * 1e-4, 0, 9, 0, signs[1] * 1e-4, 48)
    place = Georeference(CRS.from_epsg(4326), transform)
    (polygon,) = shapes(written(tmp_path, [[100, 50, 40, 20, 0.3]], place))
    assert polygon.centroid.coords[0] == pytest.approx((9 + signs[0] * 0.01, 48 + signs[1] * 0.005))


@pytest.mark.parametrize(("crs", "latitude"), [("EPSG:3413", 90), ("EPSG:3031", -90)])
def test_boxes_around_and_beside_a_pole(tmp_path: Path, crs: str, latitude: int) -> None:
    """Polar stereographic: the pole is at (0, 0), and a distance of 100 m from it is about 0.0009 degrees."""
    place = north_up(crs, -1000, 1000, 10)
    boxes = [[100, 100, 20, 20, 0.2], [109, 101, 30, 10, 0.1], [80, 100, 20, 20, 0], [100, 130, 20, 20, 0]]
    around, off_centre, *beside = shapes(written(tmp_path, boxes, place))
    for polygon in (around, off_centre):
        assert polygon.geom_type == "Polygon"
        assert (polygon.bounds[0], polygon.bounds[2]) == (-180, 180)
        assert latitude in polygon.bounds
    mean_radius = around.area / 360 * 111_694  # metres: the length of a degree of latitude at a pole
    # The mean distance of a square's outline from its centre is 0.5 * side * 4 / pi * asinh(1).
    assert mean_radius == pytest.approx(0.5 * 200 * 4 / np.pi * np.arcsinh(1) / 0.97, rel=0.01)
    for polygon in beside:
        assert latitude not in polygon.bounds, "the box ends before the pole"
        assert polygon.bounds[2] - polygon.bounds[0] < 180 or polygon.geom_type == "MultiPolygon"


def test_a_corner_on_the_pole_has_no_outline(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    collection = written(
        tmp_path, [[90, 90, 20, 20, 0], [50, 50, 20, 20, 0]], north_up("EPSG:3413", -1000, 1000, 10)
    )
    assert [feature["geometry"] is None for feature in collection["features"]] == [True, False]
    assert "1 boxes with an edge across a pole" in caplog.text


def test_wide_boxes_of_coarse_images_go_the_long_way(tmp_path: Path) -> None:
    """Corners alone would not say which way round; 340 degrees are meant, not 20."""
    place = north_up("EPSG:4326", -180, 90, 1)
    (wide,) = shapes(written(tmp_path, [[180, 90, 340, 20, 0]], place))
    assert wide.bounds == (-170, -10, 170, 10)


def test_cutting_keeps_the_area() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 4))
        size = rng.uniform(0.1, 30)
        ring = np.stack([180 + size * np.cos(angles), 20 + size / 2 * np.sin(angles)], 1)
        wrapped = ring - [[360, 0]] * (ring[:, :1] > 180)
        if rng.random() < 0.5:
            wrapped = wrapped[::-1]
        parts = antimeridian.cut(np.roll(wrapped, rng.integers(4), 0))
        assert all(np.abs(part[:, 0]).max() <= 180 for part in parts)
        whole = abs(antimeridian.signed_area(ring))
        assert sum(abs(antimeridian.signed_area(part)) for part in parts) == pytest.approx(whole)


# Images without a transform


def points(count: int = 4, origin: float = 9.0) -> list[GroundControlPoint]:
    """Of an image of 96 x 96 pixels of 0.0001 degrees."""
    places = [(row, column) for row in (0, 32, 64, 96) for column in (0, 32, 64, 96)]
    chosen = places if count > 4 else [(0, 0), (0, 96), (96, 0), (96, 96)][:count]
    return [GroundControlPoint(r, c, wrap(origin + c * 1e-4), 48 - r * 1e-4) for r, c in chosen]


def wrap(longitude: float) -> float:
    return (longitude + 180) % 360 - 180


def write_tiff(path: Path, **place: object) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 96, 96), np.uint8)
    with rasterio.open(path, "w", "GTiff", width=96, height=96, count=3, dtype="uint8", **place) as file:
        file.write(pixels)
    return path


@pytest.mark.parametrize("count", [4, 16])
@pytest.mark.parametrize("origin", [9.0, 179.995])
def test_ground_control_points_give_longitude_and_latitude(tmp_path: Path, count: int, origin: float) -> None:
    path = write_tiff(tmp_path / "a.tif", gcps=points(count, origin), crs="EPSG:4326")
    place = read_georeference(path)
    assert place is not None and place.transform is None and len(place.gcps) == count
    collection = written(tmp_path, [[20.5, 40, 20, 10, 0.2], [70, 40, 20, 10, 0]], place)
    assert collection["reference"].endswith(f"approximate, from {count} ground control points")
    turned, upright = shapes(collection)
    assert turned.centroid.coords[0] == pytest.approx((origin + 0.00205, 47.996), abs=1e-7)
    assert upright.bounds == pytest.approx(
        (wrap(origin + 0.006), 47.9955, wrap(origin + 0.008), 47.9965), abs=2e-7
    )


def camera() -> RPC:
    """Longitude and latitude alone decide on column and row."""
    rest = [0.0] * 17
    return RPC(
        height_off=0, height_scale=500, lat_off=48, lat_scale=0.1, line_off=48, line_scale=48, long_off=9,
        long_scale=0.1, samp_off=48, samp_scale=48, line_num_coeff=[0, 0, -1, *rest],
        line_den_coeff=[1, 0, 0, *rest], samp_num_coeff=[0, 1, 0, *rest], samp_den_coeff=[1, 0, 0, *rest],
    )  # fmt: skip


@pytest.mark.parametrize("what", ["camera", "no system", "on a line"])
def test_what_cannot_be_placed_is_in_pixels_and_said(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    line = [GroundControlPoint(r, r, 9 + r * 1e-4, 48 - r * 1e-4) for r in (0, 30, 60, 90)]
    places = {
        "camera": ({"rpcs": camera()}, "only a camera model"),
        "no system": (
            {"transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)},
            "does not name its coordinate reference",
        ),
        "on a line": ({"gcps": line, "crs": "EPSG:4326"}, "cannot be converted to WGS84"),
    }
    profile, said = places[what]
    place = read_georeference(write_tiff(tmp_path / "a.tif", **profile))
    assert place is not None
    with caplog.at_level(logging.WARNING):
        collection = written(tmp_path, [[20, 40, 20, 10, 0]], place)
    assert collection["reference"].startswith("pixels")
    assert collection["features"][0]["geometry"]["coordinates"][0][0] == [10, 35]
    assert said in caplog.text and "a.geojson: coordinates are in pixels" in caplog.text


def test_a_camera_may_be_in_a_file_beside(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif")
    assert read_georeference(path) is None
    lines = []
    for name, value in camera().to_gdal().items():
        values = value.split() if "COEFF" in name else [value]
        keys = [f"{name}_{i + 1}" for i in range(20)] if "COEFF" in name else [name]
        lines += [f"{key}: {number}" for key, number in zip(keys, values, strict=True) if "ERR" not in key]
    (tmp_path / "a_RPC.TXT").write_text("\n".join(lines) + "\n")
    place = read_georeference(path)
    assert place is not None and place.rpcs is not None and place.rpcs.lat_off == 48
