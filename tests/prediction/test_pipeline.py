"""Jobs in threads: order within a lane, bounded waiting, errors that reach the main thread."""

import threading
import time

import pytest

from s5.prediction.pipeline import Lanes


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
