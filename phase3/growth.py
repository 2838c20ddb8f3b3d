"""Growth: whether memory rises with the work that is done, from a series of readings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from phase3 import stats
from phase3.case import Case
from phase3.outcome import Outcome, unfit
from phase3.report.words import quantity
from phase3.target import Memory
from phase3.watch import used_bytes

LEAST_POINTS = 10
OWN = "the worker's own memory"
WORKER = "the worker's memory"
SERVICE = "the service's own memory"
SYSTEM = "the machine's memory in use"
LEAKS = (
    "Memory is not given back after a request: report it with the engine's version, and until it is"
    " mended unload the model now and then. The machine's figure may also be another program's: stop what"
    " else runs and repeat."
)
_KINDS = {OWN: "worker", WORKER: "worker", SERVICE: "service", SYSTEM: "system_used"}


@dataclass(frozen=True)
class Trend:
    """Readings of one figure after each piece of work.

    Args:
        figure: what was read, for people.
        per: the piece of work: "generation", "cycle".
        limit_bytes: how much more for each piece is a leak.
    """

    figure: str
    per: str
    points: Sequence[tuple[float, float]]
    limit_bytes: float

    @property
    def slope(self) -> stats.Slope:
        """Bytes more for each piece of work."""
        return stats.slope([x for x, _ in self.points], [y for _, y in self.points])


def judge(trends: Sequence[Trend], diagnosis: str) -> Outcome:
    """Fail by the first of *trends* that is a leak, else pass by the first.

    A leak is a slope whose whole 95 % interval is above the limit: what may be noise accuses nobody.
    """
    known = [trend for trend in trends if len(trend.points) >= LEAST_POINTS]
    if not known:
        most = max((len(trend.points) for trend in trends), default=0)
        return unfit(f"memory could be read {most} times only; a slope needs {LEAST_POINTS} readings")
    leaking = [trend for trend in known if trend.slope.low > trend.limit_bytes]
    chosen = (leaking or known)[0]
    return Outcome(
        "fail" if leaking else "pass",
        chosen.slope.per_x,
        f"bytes/{chosen.per}",
        chosen.limit_bytes,
        "at most",
        "; ".join(map(described, known)),
        diagnosis if leaking else None,
    )


def described(trend: Trend) -> str:
    """The slope with its interval, in words."""
    found, unit = trend.slope, f"bytes/{trend.per}"
    low, high = quantity(found.low, unit), quantity(found.high, unit)
    text = f"{trend.figure}: {quantity(found.per_x, unit)} over {found.n} readings, 95 % sure {low} to {high}"
    if found.low <= trend.limit_bytes < found.high:
        text += ": too unsteady to exclude a leak"
    return text


def series(figure: str, across: str) -> str:
    """The report's name of the readings of *figure*."""
    return f"{_KINDS[figure]}_bytes_over_{across}"


def figures(case: Case, memory: Memory) -> dict[str, float]:
    """What may show a leak of the worker, by figure.

    The worker's own pages, without those of files: the share of a library's pages moves whenever
    another process maps or leaves it. The machine's figure stands in where the worker is unknown, and
    beside it on a Jetson, whose GPU memory is in no process's share.
    """
    found: dict[str, float] = {}
    if memory.worker_own_bytes is not None:
        found[OWN] = memory.worker_own_bytes
    elif memory.worker_bytes is not None:
        found[WORKER] = memory.worker_bytes
    return {**found, **_of_the_machine(case, memory, needed=not found)}


def service_figures(case: Case, memory: Memory) -> dict[str, float]:
    """What may show a leak that outlives the worker: of its parent, and of the machine as in `figures`."""
    found: dict[str, float] = {}
    if memory.service_bytes is not None:
        found[SERVICE] = memory.service_bytes
    return {**found, **_of_the_machine(case, memory, needed=not found)}


def _of_the_machine(case: Case, memory: Memory, *, needed: bool) -> dict[str, float]:
    used = used_bytes(case, memory)
    return {SYSTEM: used} if used is not None and (needed or case.before.is_jetson) else {}
