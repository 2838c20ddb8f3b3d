"""Progress of a build: which step of which rung, how far, and how long still."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from inference.artifacts.build.records import Build

STEPS = ("stage", "fix", "gen_config", "convert_weight", "compile", "verify", "publish")
WAIT = "wait"
_INTERVAL_S = 0.2

# SmolLM2-135M (75.7 MB of q4f16_1) on two busy cores: docs/mlc.md. A guess until this machine has built.
_USUAL_S = {
    "stage": 0.5, "fix": 1.0, "gen_config": 20.0, "convert_weight": 26.0, "compile": 80.0, "verify": 15.0,
    "publish": 0.5,
}  # fmt: skip
_USUAL_BYTES = 75_715_200
_BY_SIZE = ("fix", "convert_weight", "publish")


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is; ``None`` is unknown.

    Args:
        step: of `STEPS`, or "wait": another process builds the same.
        number: of the step, from 1.
        fraction: of the step, 0 to 1.
        left_s: until the rung's end, by what earlier builds on this machine took.
    """

    quantization: str
    step: str
    number: int
    steps: int
    fraction: float | None
    elapsed_s: float
    left_s: float | None


Report = Callable[[BuildProgress], None]


class Course:
    """The course of one rung, which it reports at most five times a second."""

    def __init__(self, report: Report, quantization: str, usual_s: dict[str, float]) -> None:
        self._report = report
        self._quantization = quantization
        self._usual_s = usual_s
        self._started_s = self._step_s = time.monotonic()
        self._next_s = 0.0
        self._step = STEPS[0]

    def begin(self, step: str) -> None:
        """Tell that *step* begins."""
        self._step, self._step_s, self._next_s = step, time.monotonic(), 0.0
        self.show(0.0 if step in _BY_SIZE else None)

    def show(self, fraction: float | None = None) -> None:
        """Tell how far the step is."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + _INTERVAL_S
        self._report(
            BuildProgress(
                self._quantization,
                self._step,
                STEPS.index(self._step) + 1 if self._step in STEPS else 0,
                len(STEPS),
                None if fraction is None else min(1.0, fraction),
                now_s - self._started_s,
                self._left_s(now_s - self._step_s, fraction),
            )
        )

    def _left_s(self, spent_s: float, fraction: float | None) -> float | None:
        if self._step not in STEPS:
            return None
        later_s = sum(self._usual_s[step] for step in STEPS[STEPS.index(self._step) + 1 :])
        if fraction:
            return later_s + spent_s * (1 - min(1.0, fraction)) / fraction
        return later_s + max(0.0, self._usual_s[self._step] - spent_s)


def usual_s(builds: Iterable[Build], parameters_bytes: int) -> dict[str, float]:
    """Return the seconds that each step will take: the median of *builds*, by size where size counts."""
    took: dict[str, list[float]] = {step: [] for step in STEPS}
    for build in builds:
        for step in build.steps:
            if step.name in took:
                took[step.name].append(
                    step.wall_s * _scale(step.name, parameters_bytes, build.parameters_bytes)
                )
    return {
        step: statistics.median(took[step] or [_USUAL_S[step] * _scale(step, parameters_bytes, _USUAL_BYTES)])
        for step in STEPS
    }


def _scale(step: str, wanted_bytes: int, known_bytes: int) -> float:
    return wanted_bytes / max(1, known_bytes) if step in _BY_SIZE else 1.0
