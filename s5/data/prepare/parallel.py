"""Run one function on many items in worker processes that neither outlive nor interrupt the main one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from s5.data.image_io import init_worker
from s5.errors import PrepareError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def default_workers() -> int:
    """One process per CPU that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_parallel(
    work: Callable[[_Item], _Result], items: Iterable[_Item], workers: int
) -> Generator[tuple[_Item, _Result], None, None]:
    """Yield ``(item, work(item))`` as they finish, in any order.

    Closing the iterator, also by Ctrl-C, starts no further item and waits for those under way, whose results
    are then lost. With ``workers`` 1 everything runs in this process.

    Args:
        work: a picklable function; what it raises is raised here.
        items: picklable.
        workers: number of processes.

    Raises:
        PrepareError: a worker process was killed from outside.
    """
    if workers <= 1:
        for item in items:
            yield item, work(item)
        return
    # Forked workers start at once; elsewhere than on Linux forking is not safe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_init_process, initargs=(os.getpid(),))
    queue = iter(items)
    running: dict[Future[_Result], _Item] = {}
    try:
        while True:
            for item in islice(queue, 2 * workers - len(running)):
                running[pool.submit(work, item)] = item
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running[future], future.result()
                del running[future]
    except BrokenProcessPool as error:
        names = ", ".join(str(item) for item in running.values())
        raise PrepareError(
            f"a worker process was killed (out of memory?) at one of: {names}. Finished work is kept; run "
            "the same command again, with fewer --workers if memory is short"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _init_process(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the run in order
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    init_worker()
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: int) -> None:
    """End this process when the main one was killed: it would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
