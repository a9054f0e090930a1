"""GeoTIFFs and images of which only a part is in memory."""

import errno
import warnings

import numpy as np
import pytest
import rasterio
from rasterio import Affine
from rasterio.crs import CRS

from s5.data.image_io import read_image, read_mask, write_image
from s5.data.rasters import Raster
from s5.errors import ConfigError
from s5.prediction.pipeline import Lanes
from s5.segmentation import predict as commands
from s5.segmentation import windows as strips
from s5.segmentation.model import SegmentationModel
from s5.segmentation.results import TiffWriter
from tests.helpers.processes import largest_file
from tests.segmentation.predict.predicting import TABLES, expected_ids, files, predict, write_geotiff


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_strips_of_a_wide_image_give_the_same_results(checkpoint, model, tmp_path, monkeypatch, kind):
    pixels = np.random.default_rng(1).integers(0, 256, (50, 333, 3), dtype=np.uint8)
    source = tmp_path / f"wide.{kind}"
    write_geotiff(source, pixels) if kind == "tif" else write_image(source, pixels)
    predict(checkpoint, source, tmp_path / "whole")
    monkeypatch.setattr(strips, "SUMS_BYTES", 5 * 32 * 100 * 4)
    widths, predict_rows = [], SegmentationModel.predict_rows

    def counted(self, rows, tasks):
        widths.append(rows.width)
        return predict_rows(self, rows, tasks)

    monkeypatch.setattr(SegmentationModel, "predict_rows", counted)
    predict(checkpoint, source, tmp_path / "strips")
    assert len(widths) == 6 and max(widths) <= 100
    for task in TABLES:
        for name, read in (("index", read_mask), ("color", read_image), ("overlay", read_image)):
            result = f"{task}/{name}/wide.{kind}"
            whole = read(tmp_path / "whole" / result)
            assert np.array_equal(read(tmp_path / "strips" / result), whole)
            assert len(np.unique(whole)) > 1


def test_geotiff_keeps_its_place_and_is_read_by_bands(checkpoint, model, tmp_path, monkeypatch):
    pixels = np.random.default_rng(1).integers(0, 256, (200, 60, 3), dtype=np.uint8)
    place = {"crs": CRS.from_epsg(32632), "transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)}
    (tmp_path / "in").mkdir()
    write_geotiff(tmp_path / "in/scene.tif", pixels, **place)
    heights = []
    read = Raster.read_with_valid

    def counted(self, top=0, left=0, height=None, width=None):
        heights.append(height)
        return read(self, top, left, height, width)

    monkeypatch.setattr(Raster, "read_with_valid", counted)
    assert predict(checkpoint, tmp_path / "in", tmp_path / "out", "--task", "roofs") == 0
    assert max(heights) == 32
    for kind, count in (("index", 1), ("color", 3), ("overlay", 3)):
        with rasterio.open(tmp_path / f"out/roofs/{kind}/scene.tif") as file:
            assert (file.crs, file.transform) == (place["crs"], place["transform"])
            assert (file.count, file.height, file.width) == (count, 200, 60)
    index = read_mask(tmp_path / "out/roofs/index/scene.tif")
    ids = TABLES["roofs"].encode(index, "index")
    assert np.array_equal(ids, expected_ids(model, pixels, "roofs"))
    assert np.array_equal(read_image(tmp_path / "out/roofs/color/scene.tif"), TABLES["roofs"].colorize(ids))


def test_a_plain_tiff_has_no_place(checkpoint, model, tmp_path):
    write_geotiff(tmp_path / "plain.tif", np.full((40, 40, 3), 90, np.uint8))
    assert predict(checkpoint, tmp_path / "plain.tif", tmp_path / "out", "--kinds", "index") == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(tmp_path / "out/ponds/index/plain.tif") as file:
            assert file.crs is None and file.transform.is_identity


def test_the_place_may_be_in_a_file_beside(checkpoint, model, tmp_path):
    write_geotiff(tmp_path / "in.tif", np.full((40, 40, 3), 90, np.uint8))
    (tmp_path / "in.tfw").write_text("0.5\n0\n0\n-0.5\n500000.25\n5399999.75\n")
    assert predict(checkpoint, tmp_path / "in.tif", tmp_path / "out", "--kinds", "index") == 0
    with rasterio.open(tmp_path / "out/ponds/index/in.tif") as file:
        assert file.transform == Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)


@pytest.mark.parametrize("damage", ["cut off", "in the middle"])
def test_a_tiff_that_breaks_off_leaves_nothing(checkpoint, model, tmp_path, capsys, damage):
    pixels = np.random.default_rng(1).integers(0, 256, (300, 60, 3), dtype=np.uint8)
    write_geotiff(tmp_path / "scene.tif", pixels, compress="deflate")
    data = (tmp_path / "scene.tif").read_bytes()
    (tmp_path / "in").mkdir()
    part = len(data) * 3 // 4
    rest = b"" if damage == "cut off" else bytes(999) + data[part + 999 :]
    (tmp_path / "in/scene.tif").write_bytes(data[:part] + rest)
    assert predict(checkpoint, tmp_path / "in", tmp_path / "out") == 1
    assert "scene.tif: damaged or unsupported" in capsys.readouterr().err
    assert [name for name in files(tmp_path / "out") if "prediction.yaml" not in name] == []


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_disk_that_fills_up_leaves_no_broken_tiff(tmp_path, channels, masked):
    """Closing a file does not report that its last bytes could not be written."""
    size = (600, 600)  # several blocks
    shape = size if channels == 1 else (*size, 3)
    values = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    valid = np.arange(360_000).reshape(size) % 7 > 0 if masked else None

    def write(path):
        writer = TiffWriter(path, *size, channels, None, 255 if channels == 1 else None)
        try:
            writer.write(0, 0, values, valid)
        except OSError:
            writer.discard()
            raise
        writer.finish()

    def read(path):
        with rasterio.open(path) as file:
            return file.read(), file.read_masks()

    write(tmp_path / "whole.tif")
    length, errors = (tmp_path / "whole.tif").stat().st_size, 0
    for missing in (1, 100, 300, 1000, 3000, 10_000, 36_500, 45_000, 58_000, length - 1000):
        try:
            with largest_file(length - missing):
                write(tmp_path / "part.tif")
        except OSError:
            errors += 1
            assert files(tmp_path) == ["whole.tif"]
        else:  # what was cut off is not needed
            for part, whole in zip(read(tmp_path / "part.tif"), read(tmp_path / "whole.tif"), strict=True):
                assert np.array_equal(part, whole), missing
            (tmp_path / "part.tif").unlink()
    assert errors >= 6


@pytest.mark.parametrize("waiting", [1, 6])
def test_an_image_that_cannot_be_written_leaves_nothing(checkpoint, model, tmp_path, monkeypatch, waiting):
    """Neither a file with a missing band, nor temporary ones, nor those of the next image."""
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        values = np.random.default_rng(1).integers(0, 256, (200, 60, 3), dtype=np.uint8)
        write_geotiff(tmp_path / f"in/{name}.tif", values)
    write = TiffWriter.write

    def full(self, top, left, band, valid=None):
        if self._path.name == "a.tif" and top > 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, top, left, band, valid)

    monkeypatch.setattr(TiffWriter, "write", full)
    monkeypatch.setattr(commands, "Lanes", lambda *_: Lanes(1, waiting))
    with pytest.raises(ConfigError, match="cannot be written .No space left.*finished results are kept"):
        predict(checkpoint, tmp_path / "in", tmp_path / "out", "--tasks", "roofs", "--formats", "index")
    left = [name for name in files(tmp_path / "out") if ".tif" in name]
    assert set(left) <= {"roofs/index/b.tif"}
