"""Work on mlc_llm's event loop as another thread sees it: whether it has ended, and whether it lives."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any


class Task:
    """A coroutine on the event loop, seen from another thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Any]) -> None:
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self._loop = loop
        loop.call_soon_threadsafe(self._begin, work)

    def cancel(self) -> None:
        """Cancel it; in order behind its beginning, so that it is always known."""
        self._loop.call_soon_threadsafe(lambda: self._task.cancel())

    def _begin(self, work: Callable[[], Any]) -> None:
        self._task = self._loop.create_task(work())
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self.error = None if task.cancelled() else task.exception()
        self.ended.set()


class Pulse:
    """Says once a second whether the process has worked; the engine itself says nothing."""

    def __init__(self) -> None:
        self._started_s = self._said_s = time.monotonic()
        self._cpu_s = time.process_time()

    def due(self, limit_s: float) -> bool:
        """Whether a second has gone, most of it with work, and not *limit_s* in all."""
        now_s, cpu_s = time.monotonic(), time.process_time()
        if now_s - self._said_s < 1.0:
            return False
        worked = cpu_s - self._cpu_s > 0.05  # to look on costs a tenth of it
        self._said_s, self._cpu_s = now_s, cpu_s
        return worked and now_s - self._started_s < limit_s
