"""The progress of a run on standard error: a bar on a terminal, else a line for every check."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from phase3.checks import Check
from phase3.report import words
from phase3.result import Finding

_LEAST_PART = 0.02  # of the whole; before that a guess at the time left is worth nothing


class Shown:
    """Shows a run as it goes; a context manager, for the bar."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._started_s = time.monotonic()
        self._bar = _bar(name) if sys.stderr.isatty() else None

    def __enter__(self) -> Shown:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begins(self, check: Check, done: float) -> None:
        """See `phase3.runner.Listener`."""
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0], description=check.title, completed=done, left=self._left(done)
            )

    def advances(self, done: float) -> None:
        """See `phase3.runner.Listener`."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, left=self._left(done))

    def ends(self, finding: Finding) -> None:
        """See `phase3.runner.Listener`."""
        line = line_of(finding)
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            sys.stderr.write(f"{self._name}: {line}\n")
            sys.stderr.flush()

    def _left(self, done: float) -> str:
        if done < _LEAST_PART:
            return ""
        left_s = (time.monotonic() - self._started_s) * (1 - done) / done
        return f"{left_s / 60:.0f} min left" if left_s >= 90 else f"{left_s:.0f} s left"


def line_of(finding: Finding) -> str:
    """Return a finding in one line."""
    value, limit = words.value(finding), words.limit(finding)
    measured = f"{value} ({limit})" if value and limit else value
    parts = [part for part in (measured, finding.detail if finding.verdict != "pass" else None) if part]
    sign = words.SIGNS[finding.verdict]
    return f"{sign} {finding.title}{': ' if parts else ''}{'; '.join(parts)}".replace("\n", " ")


def _bar(name: str) -> Progress:
    bar = Progress(
        TextColumn(name),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        transient=True,
    )
    bar.add_task("", total=1.0, left="")
    return bar
