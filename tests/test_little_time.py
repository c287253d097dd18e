"""What computes too long ends, even where the first error to end it is dropped."""

import gc
import time

import pytest

from stompp_kernels.conversion.files.little_time import in_little_time

LONG = r"it takes more than 0\.1 s"


def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_what_is_ready_in_time_is_returned():
    assert in_little_time(60, lambda: "result") == "result"
    with pytest.raises(KeyError, match="its own"):
        in_little_time(60, lambda: {}["its own"])


def test_what_never_ends_is_ended():
    with pytest.raises(ValueError, match=LONG):
        in_little_time(0.1, lambda: spin(1e9))


def test_code_that_drops_the_error_many_times_is_ended_by_the_next():
    """A thread that is most of its time in callbacks of the garbage collector is such a one."""
    dropped = []

    def compute():
        while len(dropped) < 200:
            try:
                spin(1e9)
            except BaseException as error:
                dropped.append(type(error).__name__)
        spin(1e9)

    with pytest.raises(ValueError, match=LONG):
        in_little_time(0.1, compute)
    assert dropped == ["_TooLongError"] * 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_error_that_reaches_a_callback_of_the_garbage_collector_is_raised_again():
    """Python drops what a callback raises."""
    calls = []

    def callback(phase, info):
        calls.append(phase)
        spin(0.4 if len(calls) == 1 else 0)

    gc.callbacks.append(callback)
    try:
        with pytest.raises(ValueError, match=LONG):
            in_little_time(0.1, lambda: [gc.collect(0) for _ in range(10**9)])
    finally:
        gc.callbacks.remove(callback)
    assert len(calls) > 1


def test_nothing_arrives_after_the_end():
    for _ in range(3):
        with pytest.raises(ValueError, match=LONG):
            in_little_time(0.1, lambda: spin(1e9))
        spin(0.3)
    in_little_time(0.1, lambda: None)
    spin(1.5)
