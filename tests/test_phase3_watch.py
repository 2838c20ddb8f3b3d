"""The watch: what it reads, when it does not, and the figures made of its readings."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from phase3 import watch
from phase3.case import Case
from phase3.target import Memory, TargetError
from phase3.watch import SYSTEM, WORKER, MemoryWatch, highest_settled
from tests.conftest import DEADLINE_S, wait_until
from tests.fake_target import ENVIRONMENT, FakeTarget, case_of

MIB = 2**20
TOTAL = ENVIRONMENT.memory_total_bytes or 0


def _case(memory: Callable[[], Memory]) -> Case:
    return case_of(FakeTarget(memory=memory))


def test_fills_the_series_and_knows_the_peaks() -> None:
    """Both series get a point for each reading, at the run's own seconds; the peak is the highest."""
    worker = iter((100, 300, *(200,) * 10**6))
    case = _case(lambda: Memory(TOTAL - 1000 * MIB, next(worker) * MIB))
    with MemoryWatch(case, every_s=0.001) as watched:
        wait_until(lambda: len(case.series.get(SYSTEM, [])) > 4, "five readings")
    assert (watched.worker_peak_bytes, watched.system_peak_bytes) == (300 * MIB, 1000 * MIB)
    seconds = [x for x, _ in case.series[WORKER]]
    assert seconds == sorted(seconds) == [x for x, _ in case.series[SYSTEM]]
    assert seconds[0] >= 0 and seconds[-1] <= case.elapsed_s()


def test_what_is_unknown_makes_no_points() -> None:
    """A worker that nobody can see, or a machine that says nothing, leaves no zeros."""
    case = _case(lambda: Memory(None, None))
    with MemoryWatch(case, every_s=0.001) as watched:
        pass
    assert case.series == {} and watched.worker_peak_bytes is watched.system_peak_bytes is None


@pytest.mark.parametrize("error", [TargetError("gone"), KeyError("state")])
def test_an_error_is_counted_and_stops_nothing(error: Exception) -> None:
    """A daemon that is away for a moment costs its readings only."""
    errors = iter((error, error))

    def memory() -> Memory:
        if (found := next(errors, None)) is not None:
            raise found
        return Memory(TOTAL, 5)

    case = _case(memory)
    with MemoryWatch(case, every_s=0.001) as watched:
        wait_until(lambda: case.series.get(WORKER), "a reading after the errors")
    assert watched.missed == 2


def test_nothing_is_read_while_it_is_paused() -> None:
    """Within `Case.quiet` no reading begins and none is under way; after it they go on."""
    read, under_way = [0], threading.Event()

    def memory() -> Memory:
        under_way.set()
        read[0] += 1
        under_way.clear()
        return Memory(TOTAL, 1)

    case = _case(memory)
    with MemoryWatch(case, every_s=0.001):
        wait_until(lambda: read[0], "a reading")
        with case.quiet(), case.quiet():
            before = read[0]
            assert not under_way.is_set() and not threading.Event().wait(0.05)
            assert read[0] == before
        wait_until(lambda: read[0] > before, "another reading")
    with case.quiet():
        pass


def test_the_thread_ends_with_its_block() -> None:
    """Leaving waits for no further interval."""
    ended = threading.Event()
    case = _case(lambda: Memory(TOTAL, 1))

    def run() -> None:
        with MemoryWatch(case, every_s=3600):
            pass
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert ended.wait(DEADLINE_S)
    thread.join()


def test_a_reading_that_hangs_does_not_hold_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that never answers is waited for only so long."""
    monkeypatch.setattr(watch, "_JOIN_S", 0.01)
    hanging, released, ended = threading.Event(), threading.Event(), threading.Event()

    def memory() -> Memory:
        hanging.set()
        released.wait(DEADLINE_S)
        ended.set()
        raise TargetError("at last")

    with MemoryWatch(_case(memory)):
        assert hanging.wait(DEADLINE_S)
    assert not ended.is_set()
    released.set()


class TestTheSettledPeak:
    """Medians of five seconds, by hand."""

    def test_a_spike_of_others_does_not_count(self) -> None:
        """Two seconds of another program are no peak; what stays for three is."""
        spike = [(i / 2, 900.0 if 20 <= i < 24 else 100.0) for i in range(60)]
        assert highest_settled(spike) == 100
        plateau = [(i / 2, 900.0 if 20 <= i < 27 else 100.0) for i in range(60)]
        assert highest_settled(plateau) == 900

    def test_a_short_series_gives_its_highest(self) -> None:
        """There is no window of five seconds in four."""
        assert highest_settled([(0.0, 1.0), (4.0, 7.0), (4.9, 2.0)]) == 7
        assert highest_settled([]) is None

    def test_readings_may_be_apart(self) -> None:
        """After a pause a window may hold one reading, which is then its median."""
        assert highest_settled([(0.0, 1.0), (60.0, 5.0), (120.0, 2.0)]) == 5
