"""Threads that answer requests: started when one is needed, ended when long idle."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Protocol

logger = logging.getLogger(__name__)

_IDLE_S = 60.0


class Task(Protocol):
    """A connection with a request to answer."""

    def service(self) -> None:
        """Answer it."""

    def cancel(self) -> None:
        """Give it up."""


class TaskThreads:
    """Takes the place of waitress' dispatcher, which starts all of its threads at once.

    A queue of thousands may be configured; an idle daemon should still cost nothing.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tasks: deque[Task] = deque()
        self._changed = threading.Condition()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._closed = False

    def add_task(self, task: Task) -> None:
        """Have *task* answered by the next free thread."""
        with self._changed:
            self._tasks.append(task)
            if self._idle < len(self._tasks) and len(self._threads) < self._limit:
                thread = threading.Thread(target=self._work, name="jetllm-http", daemon=True)
                self._threads.add(thread)
                thread.start()
            else:
                self._changed.notify()

    def shutdown(self, timeout_s: float) -> bool:
        """Give up what waits, and return whether all threads ended in time."""
        with self._changed:
            self._closed = True
            waiting, self._tasks = self._tasks, deque()
            threads = list(self._threads)
            self._changed.notify_all()
        for task in waiting:
            task.cancel()
        deadline_s = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _work(self) -> None:
        while (task := self._next()) is not None:
            try:
                task.service()
            except Exception as error:
                logger.error("a connection failed: %s", type(error).__name__)

    def _next(self) -> Task | None:
        with self._changed:
            while not self._tasks and not self._closed:
                self._idle += 1
                woken = self._changed.wait(_IDLE_S)
                self._idle -= 1
                if not woken and not self._tasks:
                    break
            if self._tasks and not self._closed:
                return self._tasks.popleft()
            self._threads.discard(threading.current_thread())
            return None
