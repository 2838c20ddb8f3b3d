"""The plan of a run: how much of each thing is done, by mode."""

from __future__ import annotations

from dataclasses import dataclass, replace

from phase3.result import Mode


@dataclass(frozen=True)
class Plan:
    """How much is done.

    Args:
        grid: pairs of prompt and output tokens that the benchmark measures, one request at a time.
        concurrency: numbers of requests at once; measured on the first pair of *grid*.
        runs: counted rounds of each cell; more come before them, to warm up.
        generations: identical ones over which memory may not grow; 0 leaves the check out.
        cycles: of loading and unloading, over which memory may not grow; 0 leaves the checks out.
        soak_s: for how long a mixed load runs on at the end; 0 leaves the check out.
    """

    mode: Mode
    grid: tuple[tuple[int, int], ...]
    concurrency: tuple[int, ...]
    runs: int
    generations: int
    cycles: int
    soak_s: float = 0.0


QUICK = Plan("quick", ((16, 32),), (1, 2), runs=5, generations=0, cycles=0)
FULL = Plan("full", ((16, 128), (512, 128), (2048, 128)), (1, 2, 4, 8), runs=5, generations=200, cycles=20)


def soak(minutes: float) -> Plan:
    """Everything of the full run, and then *minutes* of a mixed load."""
    return replace(FULL, mode="soak", soak_s=minutes * 60)
