"""Work in threads beside the main one: jobs of one lane in order, a bounded number of them waiting."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Lanes:
    """Runs jobs that release Python's lock (coding of images) while the main thread goes on.

    Args:
        count: threads.
        waiting: jobs that may wait or run before :meth:`submit` waits for the oldest; bounds the memory.
    """

    def __init__(self, count: int, waiting: int) -> None:
        self._lanes = [ThreadPoolExecutor(1) for _ in range(count)]
        self._waiting = waiting
        self._pending: deque[Future] = deque()

    def __enter__(self) -> "Lanes":
        return self

    def __exit__(self, *error: object) -> None:
        """Let the jobs end that have been handed over."""
        for lane in self._lanes:
            lane.shutdown()

    def submit(self, lane: int, job: Callable[..., object], *args: object) -> Future:
        """Hand over a job; jobs of the same lane (modulo their number) run one after the other.

        Raises:
            Exception: what an earlier job raised.
        """
        while len(self._pending) >= self._waiting:
            self._pending.popleft().result()
        self._pending.append(self._lanes[lane % len(self._lanes)].submit(job, *args))
        return self._pending[-1]

    def wait(self) -> None:
        """Wait for all jobs.

        Raises:
            Exception: what the first that failed raised.
        """
        while self._pending:
            self._pending.popleft().result()
