"""Progress of a fetch, for a bar or an event stream."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

_INTERVAL_S = 0.1


@dataclass(frozen=True)
class Progress:
    """How far a phase is; *phase* is "wait", "download", "copy" or "check".

    ``None`` is unknown. The rate is the phase's average.
    """

    phase: str
    done_bytes: int
    total_bytes: int | None
    rate_bytes_per_s: float | None
    eta_s: float | None


Report = Callable[[Progress], None]


class Meter:
    """Turns byte counts of one phase into `Progress`, at most ten a second."""

    def __init__(self, report: Report, phase: str, total_bytes: int | None, done_bytes: int = 0) -> None:
        self._report = report
        self._phase = phase
        self._total = total_bytes
        self._first = self.done_bytes = done_bytes
        self._start = time.monotonic()
        self._next = self._start
        self.show(done_bytes)

    def add(self, count: int) -> None:
        """Count *count* more bytes."""
        self.show(self.done_bytes + count)

    def show(self, done_bytes: int) -> None:
        """Report that *done_bytes* are done; never fewer than before."""
        self.done_bytes = max(self.done_bytes, done_bytes)
        now = time.monotonic()
        if now < self._next and self.done_bytes != self._total:
            return
        self._next = now + _INTERVAL_S
        elapsed = now - self._start
        rate = (
            (self.done_bytes - self._first) / elapsed
            if elapsed > 0 and self.done_bytes > self._first
            else None
        )
        eta = (self._total - self.done_bytes) / rate if rate and self._total is not None else None
        self._report(Progress(self._phase, self.done_bytes, self._total, rate, eta))
