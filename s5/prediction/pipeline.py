"""Threads around a network: images are prefetched, and results are written in the background."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from s5.data.image_io import image_size, read_image_with_valid
from s5.data.prepare.patches import Decoded, Readable
from s5.data.rasters import open_raster
from s5.errors import ImageError
from s5.prediction.sources import Source

T = TypeVar("T")

AHEAD = 2  # number of prefetched images
AHEAD_BYTES = 512 << 20  # maximum size of prefetched images, decoded; a larger one is read alone


def prefetch(items: Generator[T], count: int) -> Generator[T]:
    """Prefetch items of a generator in a background thread.

    The whole generator, including its end, runs in that one thread, so it may hold objects that are bound to
    a thread, such as rasterio's files.

    Args:
        items: The generator.
        count: Number of prefetched items.

    Raises:
        Exception: The generator raises it.
    """
    end: Any = object()
    with ThreadPoolExecutor(1) as thread:
        try:
            waiting: deque[Future] = deque(thread.submit(next, items, end) for _ in range(count))
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, items, end))
                yield item
        finally:
            thread.submit(items.close).result()


class Lanes:
    """Threads for jobs that release the GIL, such as encoding images.

    Args:
        count: Number of threads.
        waiting: Maximum number of unfinished jobs, above which :meth:`submit` waits; limits the memory.
    """

    def __init__(self, count: int, waiting: int) -> None:
        self._lanes = [ThreadPoolExecutor(1) for _ in range(count)]
        self._waiting = waiting
        self._pending: deque[Future] = deque()

    def __enter__(self) -> "Lanes":
        return self

    def __exit__(self, *error: object) -> None:
        """Wait until all submitted jobs have finished."""
        for lane in self._lanes:
            lane.shutdown()

    def submit(self, lane: int, job: Callable[..., object], *args: object) -> Future:
        """Submit a job; jobs of one lane (modulo their number) run one after the other.

        Raises:
            Exception: An earlier job raised it.
        """
        while len(self._pending) >= self._waiting:
            self._pending.popleft().result()
        self._pending.append(self._lanes[lane % len(self._lanes)].submit(job, *args))
        return self._pending[-1]

    def wait(self) -> None:
        """Wait for all jobs.

        Raises:
            Exception: The first failed job raised it.
        """
        while self._pending:
            self._pending.popleft().result()


class Reading:
    """A pending read; `take` drops the reference, so that a large image does not stay in memory."""

    def __init__(self, future: Future) -> None:
        self._futures = [future]

    def take(self) -> Decoded:
        """Return the image; can be called once.

        Raises:
            ImageError: The image cannot be read.
        """
        pixels, valid = self._futures.pop().result()
        return Decoded(pixels, valid=valid)


def read_ahead(sources: Sequence[Source]) -> Generator[tuple[Source, Reading | None]]:
    """Prefetch images in threads; TIFFs are yielded with None, because they are read in bands."""
    with ThreadPoolExecutor(AHEAD) as pool:
        ahead: deque[tuple[int, tuple[Source, Reading | None]]] = deque()
        for source in sources:
            size = 0 if source.is_tiff else _bytes(source.path)
            while ahead and sum(waiting for waiting, _ in ahead) + size > AHEAD_BYTES:
                yield ahead.popleft()[1]
            reading = None if source.is_tiff else Reading(pool.submit(read_image_with_valid, source.path))
            ahead.append((size, (source, reading)))
            if len(ahead) > AHEAD:
                yield ahead.popleft()[1]
        while ahead:
            yield ahead.popleft()[1]


def _bytes(path: Path) -> int:
    """Size of a decoded image, from its header; 0 for a damaged header, which is reported on reading."""
    try:
        height, width = image_size(path)
    except ImageError:
        return 0
    return 3 * height * width


@contextmanager
def open_pixels(source: Source, image: Reading | None) -> Iterator[Readable]:
    """Open the pixels of an image from :func:`read_ahead`, in memory or read on demand.

    Raises:
        ImageError: The image cannot be read.
    """
    if image is not None:
        yield image.take()
        return
    with open_raster(source.path) as raster:
        yield raster
