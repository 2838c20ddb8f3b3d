"""The case: one model under test, the plan, and what has been measured of it so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from phase3.plan import Plan
from phase3.result import Roofline, Row
from phase3.target import Environment, Reply, Target

Points = list[tuple[float, float]]


@dataclass
class Case:
    """What the checks share. They read what earlier ones left here, and leave what later ones need.

    Args:
        before: the environment at the start; *loaded* is the one after the model was loaded.
        idle_worker_bytes: the worker's memory once it had answered its first request; None if unknown.
        used_before_bytes: of the machine's memory before the model was loaded, *loaded_s* into the run.
        quiet: within its block nothing samples memory, so that timings are not disturbed.
        series: of the report, by name: lists of (x, y).
        rows: of the benchmark.
        replies: answers of the coherence check, for reference files; by prompt.
        progress: is told the part of the running check that is done, 0 to 1.
    """

    target: Target
    plan: Plan
    before: Environment
    loaded: Environment | None = None
    idle_worker_bytes: int | None = None
    used_before_bytes: int | None = None
    loaded_s: float | None = None
    quiet: Callable[[], AbstractContextManager[None]] = nullcontext
    series: dict[str, Points] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    roofline: Roofline | None = None
    replies: dict[str, Reply] = field(default_factory=dict)
    bits_per_byte: float | None = None
    progress: Callable[[float], None] = lambda _: None
    started_s: float = field(default_factory=time.monotonic)

    @property
    def is_chat(self) -> bool:
        """Whether the model answers turns; one of which nobody said so does."""
        return self.target.registered().is_chat is not False

    def elapsed_s(self) -> float:
        """Seconds since the run began: the x of every series over time."""
        return time.monotonic() - self.started_s

    def point(self, series: str, x: float, y: float) -> None:
        """Add a point to a series of the report."""
        self.series.setdefault(series, []).append((x, y))
