"""Items of a generator that a thread makes while the others are worked on."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def ahead(items: Generator[T], count: int) -> Generator[T]:
    """The items of a generator, ``count`` of them made in advance.

    Everything in the generator runs in one thread, its end included: it may hold open what belongs to a
    thread, as rasterio's files do.

    Raises:
        Exception: what the generator raises.
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
