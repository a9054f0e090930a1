"""Windows that are slow to read, written as images by the last step of a curation."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio

from s5.data.image_io import read_image, read_image_with_valid, write_image
from s5.data.splits import Split
from s5.errors import ImageError
from s5.launch import ALONE
from tests.helpers.curation import configuration, noise, write_pool

for _package in ("duckdb", "faiss", "imagehash", "pyarrow"):
    pytest.importorskip(_package)

from s5.curate.folder import read_shard  # noqa: E402
from s5.curate.run import curate  # noqa: E402

pytestmark = pytest.mark.usefixtures("empty_charts")
SOURCES = "{slow: slow, big: big.tif}"
SIDE = 128


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """16 windows each of a JPEG, a PNG partly without data, a TIFF in strips, a deflated and a tiled one."""
    write_pool(tmp_path)
    slow = tmp_path / "slow"
    write_image(slow / "a é.jpg", noise(1, SIDE, SIDE))
    valid = np.ones((SIDE, SIDE), bool)
    valid[:40, :8] = False
    write_image(slow / "b.png", noise(2, SIDE, SIDE), valid=valid)
    profile = {"driver": "GTiff", "height": SIDE, "width": SIDE, "count": 3, "dtype": "uint8"}
    for name, tiling in {"c.tif": {}, "d.tif": {"tiled": True, "blockxsize": 32, "blockysize": 32}}.items():
        with rasterio.open(slow / name, "w", **profile, **tiling) as file:
            file.write(noise(3, SIDE, SIDE).transpose(2, 0, 1))
    with zipfile.ZipFile(slow / "e.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(slow / "d.tif", "d.tif")
    (slow / "d.tif").unlink()
    return tmp_path


def run(root: Path, **changes: object) -> dict[str, Path]:
    """A curation of everything; where each patch of the pool is read, by its name."""
    options = {"sources": SOURCES, "select__count": 80, "select__duplicates": "keep"} | changes
    cfg = configuration(root, **options)
    curate(cfg)
    rows = read_shard(cfg.out / "patches.parquet").to_pylist()
    names = sorted(row["name"] for row in rows if row["reason"] == "chosen")
    split = Split(cfg.out / "splits/curated.txt", root)
    assert len(names) == len(split)
    return {name: Path(sample.image) for name, sample in zip(names, split, strict=True)}


def cut(root: Path) -> dict[Path, int]:
    """Images that were written and when."""
    return {path: path.stat().st_mtime_ns for path in (root / "out/patches").glob("*/*")}


def test_slow_windows_are_files_and_the_others_stay(pool: Path) -> None:
    read = run(pool, write__format="png")
    in_place = {name for name, path in read.items() if str(path) == str(pool / name)}
    assert in_place == {name for name in read if name.startswith("big.tif")} and len(in_place) == 16
    for name, path in read.items():
        expected, valid = read_image_with_valid(pool / name)
        pixels, has_data = read_image_with_valid(path)
        np.testing.assert_array_equal(pixels, expected, name)
        assert (valid is None) == (has_data is None)
        if valid is not None:
            np.testing.assert_array_equal(has_data, valid, name)
    summary = json.loads((pool / "out/curation.json").read_text())
    size = sum(path.stat().st_size for path in cut(pool))
    assert summary["counts"]["write"] == {"files": 64, "bytes": size}


def test_jpeg_is_the_default_but_for_windows_with_no_data(pool: Path) -> None:
    read = run(pool)
    suffixes = [path.suffix for path in cut(pool)]
    assert suffixes.count(".jpg") == 62 and suffixes.count(".png") == 2
    name = next(name for name in read if name.startswith("slow/c.tif"))
    grey = [read_image(path).mean(-1).ravel() for path in (read[name], pool / name)]
    assert 0.98 < np.corrcoef(grey)[0, 1] < 1


def test_whole_images_are_never_cut(pool: Path) -> None:
    write_image(pool / "slow/small.png", noise(9))
    read = run(pool, select__count=81)
    assert read["slow/small.png"] == pool / "slow/small.png"


def test_another_choice_keeps_what_it_can_and_deletes_the_rest(pool: Path) -> None:
    run(pool)
    every = cut(pool)
    read = run(pool, select__count=20)
    left = cut(pool)
    assert left.items() < every.items()
    assert set(left) == {path for path in read.values() if path.is_relative_to(pool / "out")}


def test_nothing_is_copied_on_request(pool: Path) -> None:
    run(pool)
    read = run(pool, write__cut="none")
    assert all(str(path) == str(pool / name) for name, path in read.items())
    assert not (pool / "out/patches").exists()


def test_files_of_another_format_or_index_are_written_again(pool: Path) -> None:
    run(pool)
    run(pool, write__format="png")
    assert {path.suffix for path in cut(pool)} == {".png"}
    state = pool / "out/patches/step.json"
    state.write_text(state.read_text().replace('"index": "', '"index": "another'))
    before = cut(pool)
    run(pool, write__format="png")
    after = cut(pool)
    assert after.keys() == before.keys() and all(after[path] != before[path] for path in before)


def test_an_image_that_changed_ends_the_step_and_loses_nothing(pool: Path) -> None:
    cfg = configuration(pool, sources=SOURCES, select__count=80, select__duplicates="keep")
    curate(cfg, ALONE, ("index", "score", "cluster", "select"))
    path = pool / "slow/c.tif"
    status = path.stat()
    os.utime(path, ns=(0, 0))
    with pytest.raises(ImageError, match=r"c\.tif.*has changed since it was indexed"):
        curate(cfg, ALONE, ("write",))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    before = cut(pool)
    curate(cfg, ALONE, ("write",))
    assert before.items() <= cut(pool).items() and len(cut(pool)) == 64


def test_files_without_their_state_are_written_again(pool: Path) -> None:
    """A deletion of files of another index that was killed may have left them."""
    run(pool)
    (pool / "out/patches/step.json").unlink()
    before = cut(pool)
    run(pool)
    after = cut(pool)
    assert after.keys() == before.keys() and all(after[path] != before[path] for path in before)


def test_a_lost_or_foreign_file_is_repaired(pool: Path) -> None:
    run(pool)
    every = sorted(cut(pool))
    every[0].unlink()
    (every[1].parent / "other.jpg").write_bytes(b"")
    run(pool)
    assert sorted(cut(pool)) == every
