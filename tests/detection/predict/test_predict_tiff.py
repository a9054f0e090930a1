"""GeoTIFFs and images of which only a part is in memory, and the parts that `predict.py` is made of."""

import json
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rasterio import Affine
from rasterio.crs import CRS

from s5.data.gdal_files import Georeference, read_georeference
from s5.data.image_io import read_image, write_image
from s5.data.oriented.detections import make_detections
from s5.data.oriented.drawing import CROWD, draw_detections
from s5.data.oriented.geojson import write_geojson
from s5.data.prepare.patches import Decoded
from s5.data.rasters import Raster
from s5.detection import predict as det_predict
from s5.detection.network import DetectionModel
from s5.prediction.images import reduced
from s5.prediction.pipeline import prefetch
from tests.detection.predict.det_models import files, picture, predict, rows, write_geotiff

HEIGHT, WIDTH, WINDOW = 4000, 6000, 1024
AXIS, E2 = 6_378_137.0, 0.00669437999014  # of WGS84's ellipsoid: larger half-axis in metres, eccentricity^2
UTM = Georeference(CRS.from_epsg(32632), Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Height and width of everything that is read of a TIFF."""
    sizes: list[tuple[int, int]] = []
    read = Raster.read_with_valid

    def counted(
        self: Raster, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        sizes.append((height or self.height, width or self.width))
        return read(self, top, left, height, width)

    monkeypatch.setattr(Raster, "read_with_valid", counted)
    return sizes


@pytest.mark.slow
def test_a_large_tiff_is_never_whole_in_memory(
    checkpoint: Path, model: DetectionModel, tmp_path: Path, reads: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = cv2.resize(picture(400, 600), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    (tmp_path / "tiff").mkdir()
    write_geotiff(tmp_path / "tiff/large.tif", pixels)
    write_image(tmp_path / "png/large.png", pixels)
    options = ("--window", WINDOW, "--overlap", 200, "--tasks", "roads")
    assert predict(checkpoint, tmp_path / "png", tmp_path / "memory", *options) == 0
    assert predict(checkpoint, tmp_path / "tiff", tmp_path / "bands", *options) == 0
    assert max(height * width for height, width in reads) < HEIGHT * WIDTH * 0.94
    assert reads[:5] == [(WINDOW, WIDTH)] * 5, "one read for a row of windows"
    assert sum(height for height, _ in reads[5:]) == HEIGHT, "for the drawing"
    monkeypatch.setattr(det_predict, "BAND_BYTES", 3 * WINDOW * 3000)
    reads.clear()
    assert (
        predict(checkpoint, tmp_path / "tiff", tmp_path / "parts", *options, "--formats", "dota", "geojson")
        == 0
    )
    assert len(reads) == 5 * 3 and max(width for _, width in reads) <= 3000
    for result in ("dota/large.txt", "geojson/large.geojson"):
        expected = (tmp_path / "memory/roads" / result).read_text()
        for other in ("bands", "parts"):
            assert (tmp_path / other / "roads" / result).read_text() == expected
    assert len(rows(tmp_path / "memory/roads/dota/large.txt")) > 100
    drawings = [read_image(tmp_path / f"{way}/roads/drawings/large.jpg") for way in ("memory", "bands")]
    assert np.array_equal(*drawings) and drawings[0].shape[1] == WIDTH // 2


def test_a_geotiff_gives_longitude_and_latitude(
    checkpoint: Path, model: DetectionModel, tmp_path: Path, reads: list
) -> None:
    write_geotiff(tmp_path / "scene.tif", picture(200, 70), crs=UTM.crs, transform=UTM.transform)
    assert predict(checkpoint, tmp_path / "scene.tif", tmp_path / "out", "--task", "roads") == 0
    collection = json.loads((tmp_path / "out/roads/geojson/scene.geojson").read_text())
    assert collection["reference"] == "WGS84 longitude, latitude"
    points = np.array([feature["geometry"]["coordinates"][0] for feature in collection["features"]])
    assert len(points) == len(rows(tmp_path / "out/roads/dota/scene.txt")) > 10
    east, north = (points[:, :4].mean(1) - [9, 0]).T * np.pi / 180
    x, y = rows(tmp_path / "out/roads/dota/scene.txt")[:, :8].reshape(-1, 4, 2).mean(1).T
    assert 0.9996 * meridian(north) == pytest.approx(5_400_000 - y / 2, abs=0.02)
    across = 0.9996 * AXIS / np.sqrt(1 - E2 * np.sin(north) ** 2) * np.cos(north)  # metres of a radian
    assert across * east == pytest.approx(x / 2, abs=0.02)


@pytest.mark.parametrize("kind", ["scene.tfw", "scene.tif.aux.xml"])
def test_the_place_may_be_in_a_file_beside(
    checkpoint: Path, model: DetectionModel, tmp_path: Path, kind: str
) -> None:
    """A world file has no reference system: GeoJSON stays in pixels, but the location is known."""
    write_geotiff(tmp_path / "scene.tif", picture(50, 50))
    numbers = ", ".join(map(str, UTM.transform.to_gdal()))
    beside = {
        "scene.tfw": "\n".join(map(str, (0.5, 0, 0, -0.5, 500_000.25, 5_399_999.75))),
        "scene.tif.aux.xml": f"<PAMDataset><SRS>{UTM.crs.to_wkt()}</SRS>"
        f"<GeoTransform>{numbers}</GeoTransform></PAMDataset>",
    }
    assert read_georeference(tmp_path / "scene.tif") is None
    (tmp_path / kind).write_text(beside[kind])
    place = read_georeference(tmp_path / "scene.tif")
    assert place is not None and place.transform.almost_equals(UTM.transform)
    assert place.crs == (None if kind == "scene.tfw" else UTM.crs)
    assert predict(checkpoint, tmp_path / "scene.tif", tmp_path / "out", "--tasks", "roads") == 0
    collection = json.loads((tmp_path / "out/roads/geojson/scene.geojson").read_text())
    assert collection["reference"].startswith("pixels" if place.crs is None else "WGS84")


def test_a_tiff_that_is_gone_when_it_is_drawn_is_named(
    checkpoint: Path,
    model: DetectionModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / "in").mkdir()
    for name in "abc":
        write_geotiff(tmp_path / f"in/{name}.tif", picture(50, 50))
    write = det_predict._write

    def removed(image: det_predict._File, *args: Any) -> None:
        if image.source.path.name == "b.tif":
            image.source.path.unlink()
        write(image, *args)

    monkeypatch.setattr(det_predict, "_write", removed)
    assert predict(checkpoint, tmp_path / "in", tmp_path / "out", "--tasks", "roads") == 1
    said = capsys.readouterr().err
    assert "in/b.tif: damaged or unsupported" in said
    assert "1 images could not be read; all others are finished" in said
    assert [Path(name).stem for name in files(tmp_path / "out/roads/dota")] == ["a", "c"]


def meridian(latitude: np.ndarray) -> np.ndarray:
    """Metres from the equator along a meridian of WGS84."""
    at = latitude[:, None] * (np.arange(2000) + 0.5) / 2000
    return (AXIS * (1 - E2) * (1 - E2 * np.sin(at) ** 2) ** -1.5).mean(1) * latitude


def test_outlines_turn_counter_clockwise(tmp_path: Path) -> None:
    """On the earth, as RFC 7946 has it, north up; the corners of a box turn clockwise on the screen."""
    found = make_detections([[100, 50, 40, 20, 0.3], [10, 10, 4, 2, -1]], [0.9, 0.5], [0, 1])
    write_geojson(tmp_path / "a.geojson", found, ("ship", "kite"), UTM)
    collection = json.loads((tmp_path / "a.geojson").read_text())
    for feature in collection["features"]:
        x, y = (np.array(feature["geometry"]["coordinates"][0]) - feature["geometry"]["coordinates"][0][0]).T
        assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0
    assert [f["properties"] for f in collection["features"]] == [
        {"class": "ship", "score": 0.9},
        {"class": "kite", "score": 0.5},
    ]


@pytest.mark.parametrize(
    "crs",
    [
        None,
        CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]'),
        CRS.from_wkt(
            'GEOGCS["Moon",DATUM["M",SPHEROID["M",1737400,0]],PRIMEM["R",0],UNIT["Degree",0.0174532925]]'
        ),
    ],
)
def test_maps_without_a_way_to_wgs84_give_pixels(tmp_path: Path, crs: CRS | None) -> None:
    found = make_detections([[100, 50, 40, 20, 0]], [0.9], [0])
    write_geojson(tmp_path / "a.geojson", found, ("ship",), Georeference(crs, UTM.transform))
    collection = json.loads((tmp_path / "a.geojson").read_text())
    assert collection["reference"].startswith("pixels")
    assert collection["features"][0]["geometry"]["coordinates"][0][0] == [80, 40]


def test_nothing_found_is_an_empty_collection(tmp_path: Path) -> None:
    write_geojson(tmp_path / "a.geojson", make_detections(), ("ship",), UTM)
    assert json.loads((tmp_path / "a.geojson").read_text())["features"] == []


@pytest.mark.parametrize("damage", ["cut off", "in the middle"])
def test_a_tiff_that_breaks_off_leaves_nothing(
    checkpoint: Path, model: DetectionModel, tmp_path: Path, capsys: pytest.CaptureFixture, damage: str
) -> None:
    rng = np.random.default_rng(0)
    write_geotiff(tmp_path / "scene.tif", rng.integers(0, 256, (2000, 300, 3), np.uint8))
    data = (tmp_path / "scene.tif").read_bytes()
    (tmp_path / "in").mkdir()
    part = len(data) * 3 // 4
    rest = b"" if damage == "cut off" else bytes(100_000) + data[part + 100_000 :]
    (tmp_path / "in/scene.tif").write_bytes(data[:part] + rest)
    write_image(tmp_path / "in/after.png", picture(40, 40))
    assert predict(checkpoint, tmp_path / "in", tmp_path / "out", "--window", 300, "--tasks", "roads") == 1
    assert "scene.tif: damaged or unsupported" in capsys.readouterr().err
    assert [name for name in files(tmp_path / "out") if "scene" in name] == []
    assert "roads/dota/after.txt" in files(tmp_path / "out")


# Parts


@pytest.mark.parametrize(
    ("height", "width", "factor"), [(50, 80, 1), (101, 190, 2), (7, 300, 3), (1, 300, 3)]
)
def test_reduced_is_the_same_by_bands(
    height: int, width: int, factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture(height, width)
    pixels = Decoded(image)
    small, found = reduced(pixels, 100)
    assert found == factor and small.shape == (max(1, height // factor), max(1, width // factor), 3)
    monkeypatch.setattr("s5.prediction.images.BAND_BYTES", 3 * factor * width * 4)
    assert np.array_equal(reduced(pixels, 100)[0], small)
    if height >= factor:
        cells = image[: factor * (height // factor), : factor * (width // factor)]
        means = cells.reshape(height // factor, factor, width // factor, factor, 3).mean((1, 3))
        assert np.abs(small - means).max() <= 0.51


def test_crowds_are_drawn_with_a_legend() -> None:
    image = np.zeros((300, 400, 3), np.uint8)
    y, x = np.mgrid[20:300:40, 20:400:40]
    boxes = np.stack([x.ravel(), y.ravel(), *np.full((2, x.size), 20), np.zeros(x.size)], 1)
    found = make_detections(boxes, np.linspace(0.3, 1, x.size), [i % 2 for i in range(x.size)])
    few = draw_detections(image, 2, found.select(np.arange(CROWD - 1)), ("ship", "plane", "car"))
    assert few.shape == image.shape
    many = draw_detections(image, 2, found, ("ship", "plane", "car"))
    assert many.shape[0] > 300 and not many[160:300].any(), "reduced by two"
    assert many[:160].any() and (many[300:] == 255).mean() > 0.5
    assert draw_detections(image[:, :50], 2, found, ("ship", "plane")).shape[0] > many.shape[0], "two lines"
    assert np.array_equal(draw_detections(image, 1, make_detections(), ("ship",)), image)


def test_prefetch_keeps_order_and_thread_and_closes() -> None:
    threads, closed = set(), []

    def items(count: int):
        try:
            for i in range(count):
                threads.add(threading.get_ident())
                yield i
        finally:
            threads.add(threading.get_ident())
            closed.append(count)

    assert list(prefetch(items(10), 3)) == list(range(10))
    assert list(prefetch(items(0), 3)) == []
    stopped = prefetch(items(10**9), 3)
    assert next(stopped) == 0
    stopped.close()
    assert closed == [10, 0, 10**9] and threading.get_ident() not in threads


def test_prefetch_hands_errors_on() -> None:
    def items():
        yield 1
        raise ValueError("broken")

    made = prefetch(items(), 4)
    assert next(made) == 1
    with pytest.raises(ValueError, match="broken"):
        next(made)
