"""Prefetching of images."""

import gc
import weakref
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from s5.data.image_io import write_image
from s5.prediction import pipeline as pixels
from s5.prediction.pipeline import ThreadPoolExecutor
from s5.prediction.sources import Source, find_sources

BYTES = 3 * 32 * 32


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    for name in "abcdef":
        write_image(tmp_path / f"{name}.png", np.full((32, 32, 3), ord(name), np.uint8))
    return find_sources([str(tmp_path)], tmp_path / "out")


class Pool(ThreadPoolExecutor):
    """Counts what it is asked for."""

    asked: list[Path]

    def submit(self, function: object, path: Path) -> Future:  # type: ignore[override]
        self.asked.append(path)
        return super().submit(function, path)  # type: ignore[arg-type]


@pytest.mark.parametrize(("limit", "most"), [(9 * BYTES, 1 + pixels.AHEAD), (2 * BYTES, 2), (1, 1)])
def test_only_images_that_fit_are_read_in_advance(
    limit: int, most: int, sources: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image larger than the limit is read when no other is in memory."""
    Pool.asked = []
    monkeypatch.setattr(pixels, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(pixels, "AHEAD_BYTES", limit)
    done, waiting = 0, []
    for source, image in pixels.read_ahead(sources):
        assert image is not None and (image.take().read(0, 0, 32, 32) == ord(source.path.stem)).all()
        waiting.append(len(Pool.asked) - done)
        done += 1
    assert done == len(Pool.asked) == 6 and max(waiting) == most


def test_an_image_that_was_taken_is_given_up(sources: list[Source], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one large image is in memory, not also the previous one."""
    monkeypatch.setattr(pixels, "AHEAD_BYTES", 1)
    before: list[weakref.ref] = []

    def use(source: Source, image: pixels.Reading | None) -> None:
        with pixels.open_pixels(source, image) as opened:
            gc.collect()
            assert [ref for ref in before if ref() is not None] == []
            before.append(weakref.ref(opened.read(0, 0, 32, 32).base))
            assert before[-1]() is not None

    for source, image in pixels.read_ahead(sources):
        use(source, image)
    assert len(before) == 6
