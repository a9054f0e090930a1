"""The pixels of the images to predict: read in advance, or of a large TIFF when they are needed."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from s5.data.errors import ImageError
from s5.data.geotiff import open_raster
from s5.data.image_io import image_size, read_image
from s5.engine.predict.sources import Source
from s5.models.inference import Rows

AHEAD = 2  # images read in advance
AHEAD_BYTES = 512 << 20  # that they may take, decoded; a larger one is read alone


@dataclass(frozen=True)
class Pixels:
    """An image whose pixels are in memory or read when they are needed.

    Attributes:
        height: rows of the image.
        width: columns of the image.
        read: window (top, left, height, width) as uint8 (height, width, 3).
    """

    height: int
    width: int
    read: Callable[[int, int, int, int], np.ndarray]

    def columns(self, left: int, right: int) -> Rows:
        """The columns [left, right) as the image to predict."""
        return Rows(
            self.height,
            right - left,
            lambda top, bottom: torch.from_numpy(self.read(top, left, bottom - top, right - left)).permute(
                2, 0, 1
            ),
        )


class Reading:
    """An image that is being read, and given up when it is taken: large ones must not stay in memory."""

    def __init__(self, future: Future) -> None:
        self._futures = [future]

    def take(self) -> np.ndarray:
        """The image (H, W, 3), once.

        Raises:
            ImageError: it cannot be read.
        """
        return self._futures.pop().result()


def read_ahead(sources: Sequence[Source]) -> Generator[tuple[Source, Reading | None]]:
    """The images with their pixels, which are read in threads; those of a TIFF (None) are read in bands."""
    with ThreadPoolExecutor(AHEAD) as pool:
        ahead: deque[tuple[int, tuple[Source, Reading | None]]] = deque()
        for source in sources:
            size = 0 if source.is_tiff else _bytes(source.path)
            while ahead and sum(waiting for waiting, _ in ahead) + size > AHEAD_BYTES:
                yield ahead.popleft()[1]
            reading = None if source.is_tiff else Reading(pool.submit(read_image, source.path))
            ahead.append((size, (source, reading)))
            if len(ahead) > AHEAD:
                yield ahead.popleft()[1]
        while ahead:
            yield ahead.popleft()[1]


def _bytes(path: Path) -> int:
    """Of an image in memory, by its header; 0 of one without, of which reading says what is wrong."""
    try:
        height, width = image_size(path)
    except ImageError:
        return 0
    return 3 * height * width


@contextmanager
def open_pixels(source: Source, image: Reading | None) -> Iterator[Pixels]:
    """The pixels of an image of :func:`read_ahead`.

    Raises:
        ImageError: it cannot be read.
    """
    if image is not None:
        whole = image.take()
        height, width = whole.shape[:2]
        yield Pixels(height, width, lambda top, left, h, w: whole[top : top + h, left : left + w])
        return
    with open_raster(source.path) as raster:
        yield Pixels(raster.height, raster.width, raster.read)
