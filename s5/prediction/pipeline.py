"""Threads around a network: images are read in advance, and results written in the background."""

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

AHEAD = 2  # images read in advance
AHEAD_BYTES = 512 << 20  # that they may take, decoded; a larger one is read alone


def prefetch(items: Generator[T], count: int) -> Generator[T]:
    """Prefetch items of a generator in a background thread.

    The whole generator, including its end, runs in that one thread, so it may hold objects that are bound to
    a thread, such as rasterio's files.

    Args:
        items: The generator.
        count: Items made in advance.

    Raises:
        Exception: What the generator raises.
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
        count: threads.
        waiting: Jobs that may wait or run before :meth:`submit` waits for the oldest; bounds the memory.
    """

    def __init__(self, count: int, waiting: int) -> None:
        self._lanes = [ThreadPoolExecutor(1) for _ in range(count)]
        self._waiting = waiting
        self._pending: deque[Future] = deque()

    def __enter__(self) -> "Lanes":
        return self

    def __exit__(self, *error: object) -> None:
        """Wait until all submitted jobs have ended."""
        for lane in self._lanes:
            lane.shutdown()

    def submit(self, lane: int, job: Callable[..., object], *args: object) -> Future:
        """Submit a job; jobs of one lane (modulo their number) run one after the other.

        Raises:
            Exception: What an earlier job raised.
        """
        while len(self._pending) >= self._waiting:
            self._pending.popleft().result()
        self._pending.append(self._lanes[lane % len(self._lanes)].submit(job, *args))
        return self._pending[-1]

    def wait(self) -> None:
        """Wait for all jobs.

        Raises:
            Exception: What the first that failed raised.
        """
        while self._pending:
            self._pending.popleft().result()


class Reading:
    """A pending read; `take` drops the reference, as large images must not stay in memory."""

    def __init__(self, future: Future) -> None:
        self._futures = [future]

    def take(self) -> Decoded:
        """The image, once.

        Raises:
            ImageError: It cannot be read.
        """
        pixels, valid = self._futures.pop().result()
        return Decoded(pixels, valid=valid)


def read_ahead(sources: Sequence[Source]) -> Generator[tuple[Source, Reading | None]]:
    """Read images in threads, a few in advance; TIFFs come without pixels (None), to be read by bands."""
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
    """Size of an image in memory, from its header; 0 if that is damaged, which is reported on reading."""
    try:
        height, width = image_size(path)
    except ImageError:
        return 0
    return 3 * height * width


@contextmanager
def open_pixels(source: Source, image: Reading | None) -> Iterator[Readable]:
    """The pixels of an image of :func:`read_ahead`, in memory or read when they are needed.

    Raises:
        ImageError: It cannot be read.
    """
    if image is not None:
        yield image.take()
        return
    with open_raster(source.path) as raster:
        yield raster
