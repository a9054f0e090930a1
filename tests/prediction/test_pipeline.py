"""Jobs in threads: order within a lane, bounded waiting, errors that reach the main thread; sources."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from s5.data.image_io import read_image
from s5.errors import DataError
from s5.prediction.images import Picture
from s5.prediction.pipeline import Lanes, open_pixels, read_ahead
from s5.prediction.sources import find_sources
from tests.helpers.archive_files import H, W, jpeg, write_tar
from tests.helpers.tiff_files import write_tiff


def test_jobs_of_a_lane_run_in_order():
    done = []

    def job(lane, number):
        time.sleep(0.002 if number == 0 else 0)
        done.append((lane, number))

    with Lanes(3, 100) as lanes:
        for number in range(5):
            for lane in range(4):
                lanes.submit(lane, job, lane, number)
        lanes.wait()
    for lane in range(4):
        assert [number for which, number in done if which == lane] == list(range(5))


def test_no_more_than_the_given_number_wait():
    gate, begun = threading.Event(), []
    with Lanes(1, 2) as lanes:
        for number in range(2):
            lanes.submit(0, lambda number=number: (begun.append(number), gate.wait(10)))
        third = threading.Thread(target=lanes.submit, args=(0, begun.append, 2))
        third.start()
        third.join(0.05)
        assert third.is_alive()
        gate.set()
        third.join(10)
        lanes.wait()
    assert begun == [0, 1, 2]


def test_an_error_reaches_the_main_thread():
    def fails():
        raise OSError("disk full")

    with Lanes(2, 1) as lanes:
        lanes.submit(0, fails)
        with pytest.raises(OSError, match="disk full"):
            lanes.submit(1, print)
        lanes.submit(0, fails)
        with pytest.raises(OSError, match="disk full"):
            lanes.wait()


def test_windows_and_members_of_archives_are_images_too(tmp_path: Path) -> None:
    write_tar(tmp_path / "pool.tar", {"../a.jpg": jpeg(), "b/a.jpg": jpeg(1)})
    write_tiff(tmp_path / "big.tif", np.random.default_rng(0).integers(0, 256, (3, H, W), np.uint8))
    given = [f"{tmp_path}/{name}" for name in ("pool.tar!/../a.jpg", "pool.tar!/b/a.jpg#xywh=1,2,9,8")]
    given += [f"{tmp_path}/big.tif#xywh={left},0,20,30" for left in (0, 7)]
    sources = find_sources(given, tmp_path / "out")
    names = ["pool/a", "pool/b/a_2_10_1_10", "big_0_30_0_20", "big_0_30_7_27"]
    assert [str(source.name) for source in sources] == names
    for text, (source, reading) in zip(given, read_ahead(sources), strict=True):
        with open_pixels(source, reading) as pixels, Picture(text).open() as picture:
            for each in (pixels, picture):
                assert np.array_equal(each.read(0, 0, each.height, each.width), read_image(text))
    with pytest.raises(DataError, match="no such file"):
        find_sources([f"{tmp_path}/no.tif#xywh=0,0,1,1"], tmp_path / "out")
