"""The watch: memory read all through a run, and the figures that are made of such readings."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import TracebackType

from phase3.case import Case
from phase3.target import Memory

WORKER = "worker_bytes_over_s"
SYSTEM = "system_used_bytes_over_s"
WINDOW_S = 5.0
"""The machine's memory is judged by medians over so long: others come and go within it."""

_EVERY_S = 0.5
_JOIN_S = 30.0  # a daemon that hangs holds the reading that is under way
_READINGS = 5
_READ_EVERY_S = 0.2

Points = Sequence[tuple[float, float]]


class MemoryWatch:
    """Reads the memory of *case*'s target every half second of its block, into the case's series.

    A reading that fails is counted in `missed` and raises nothing: the checks meet the same error.
    """

    def __init__(self, case: Case, every_s: float = _EVERY_S) -> None:
        self._case = case
        self._every_s = every_s
        self._stop = threading.Event()
        self._reading = threading.RLock()
        # A daemon, so that a reading that never ends does not keep the harness from its report.
        self._thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)
        self.missed = 0

    @property
    def worker_peak_bytes(self) -> float | None:
        """The most that the worker held, None if unknown."""
        return highest(self._case.series.get(WORKER, ()))

    @property
    def system_peak_bytes(self) -> float | None:
        """The most that was in use on the machine, settled as of `highest_settled`; None if unknown."""
        return highest_settled(self._case.series.get(SYSTEM, ()))

    def __enter__(self) -> MemoryWatch:
        self._case.quiet = self.paused
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._case.quiet = nullcontext
        self._stop.set()
        self._thread.join(_JOIN_S)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Read nothing within the block."""
        with self._reading:
            yield

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._reading:
                self._read()
            self._stop.wait(self._every_s)

    def _read(self) -> None:
        try:
            note(self._case, self._case.target.memory())
        except Exception:  # whatever it is, the check that runs beside it says it better
            self.missed += 1


def note(case: Case, memory: Memory) -> None:
    """Add a reading of now to the series over time."""
    now_s = case.elapsed_s()
    if memory.worker_bytes is not None:
        case.point(WORKER, now_s, memory.worker_bytes)
    used = used_bytes(case, memory)
    if used is not None:
        case.point(SYSTEM, now_s, used)


def used_bytes(case: Case, memory: Memory) -> int | None:
    """MemTotal less MemAvailable; None if either is unknown."""
    total = case.before.memory_total_bytes
    if total is None or memory.available_bytes is None:
        return None
    return total - memory.available_bytes


def settled_used_bytes(case: Case) -> int | None:
    """What is in use on the machine, settled as of `readings`."""
    used = [used_bytes(case, memory) for memory in readings(case)]
    known = [value for value in used if value is not None]
    return round(statistics.median(known)) if known else None


def readings(case: Case) -> list[Memory]:
    """Read memory five times within a second: the median is not what passes through in an instant."""
    found = [case.target.memory()]
    for _ in range(_READINGS - 1):
        threading.Event().wait(_READ_EVERY_S)
        found.append(case.target.memory())
    return found


def highest(points: Points) -> float | None:
    """The highest of *points*, None where there is none."""
    return max((y for _, y in points), default=None)


def highest_settled(points: Points, window_s: float = WINDOW_S) -> float | None:
    """The highest median of any *window_s* of *points*; of a shorter series, its highest point.

    A peak of the machine's memory may be another program's: only one that stays counts.
    """
    if not points or points[-1][0] - points[0][0] < window_s:
        return highest(points)
    medians, start = [], 0
    for end, (x, _) in enumerate(points):
        while x - points[start][0] > window_s:
            start += 1
        if x - points[0][0] >= window_s:
            medians.append(statistics.median(y for _, y in points[start : end + 1]))
    return max(medians)
