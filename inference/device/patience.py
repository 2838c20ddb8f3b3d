"""Patience: a reading that may hang, taken where its hanging holds up nobody else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Patience(Generic[T]):
    """Takes readings in a thread of its own, so that a driver that never answers costs one thread.

    `close` it when done; a thread that hangs in the kernel then dies with the process.
    """

    def __init__(self, read: Callable[[], T], *, limit_s: float) -> None:
        self._read = read
        self._limit_s = limit_s
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._asked = self._done = 0
        self._latest: T | None = None
        self._closed = False

    def get(self) -> T | None:
        """Return a reading begun after this call, or ``None`` when none was finished in the limit."""
        with self._changed:
            if self._closed:
                return None
            self._asked += 1
            mine = self._asked
            self._run()
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: self._done >= mine or self._closed, self._limit_s)
            return self._latest if done else None

    def close(self) -> None:
        """Stop; waits for a reading that is under way, but not longer than the limit."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(self._limit_s)

    def _run(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="telemetry", daemon=True)
            self._thread.start()

    def _serve(self) -> None:
        while (asked := self._next()) is not None:
            reading = self._read()
            with self._changed:
                self._latest, self._done = reading, asked
                self._changed.notify_all()

    def _next(self) -> int | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._asked > self._done)
            return None if self._closed else self._asked
