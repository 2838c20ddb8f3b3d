"""The jobs: long work that goes on when those who asked for it have left, and that others may join."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from inference.errors import (
    CancelledError,
    DrainingError,
    InternalError,
    JetLLMError,
    JobNotFoundError,
    QueueFullError,
)

MAX_RUNNING = 16
_MAX_ENDED = 64
_MAX_EVENTS = 256
PROGRESS, DONE, ERROR = "progress", "done", "error"
RUNNING = "running"

logger = logging.getLogger(__name__)

Tell = Callable[[Any], None]
Cancelled = Callable[[], bool]
Work = Callable[[Tell, Cancelled], dict[str, Any]]


@dataclass(frozen=True)
class Event:
    """Something that a job told; *value* is what it made of it, in the end a result or a `JetLLMError`."""

    number: int
    kind: str
    value: Any


class Job:
    """One piece of work in a thread of its own; any number of threads may watch it.

    Args:
        kind: "pull", "build", "load" or "bench".
        variant: as it was asked for; ``None`` left it to the work.
        wish: what else it was asked for.
    """

    def __init__(self, kind: str, model: str, variant: str | None, wish: object) -> None:
        self.id = f"job_{uuid.uuid4().hex}"
        self.kind, self.model, self.variant, self.wish = kind, model, variant, wish
        self.created_s = time.time()
        self.ended_s: float | None = None
        self.asked_to_end = threading.Event()
        self._told: deque[Event] = deque(maxlen=_MAX_EVENTS)
        self._changed = threading.Condition()

    @property
    def state(self) -> str:
        """One of "running", "done", "failed" and "cancelled"."""
        last = self.last
        if last is None or last.kind == PROGRESS:
            return RUNNING
        if last.kind == DONE:
            return "done"
        return "cancelled" if isinstance(last.value, CancelledError) else "failed"

    @property
    def last(self) -> Event | None:
        """The latest event."""
        with self._changed:
            return self._told[-1] if self._told else None

    @property
    def progress(self) -> Event | None:
        """The latest event that tells of progress."""
        with self._changed:
            return next((each for each in reversed(self._told) if each.kind == PROGRESS), None)

    def next(self, after: int, timeout_s: float) -> Event | None:
        """Return the first event that is kept and has a number above *after*; ``None`` when none came."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._told) and self._told[-1].number > after, timeout_s)
            return next((each for each in self._told if each.number > after), None)

    def wait(self, timeout_s: float) -> bool:
        """Return whether the work ended in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.ended_s is not None, timeout_s)

    def tell(self, kind: str, value: Any) -> None:
        """Tell all who watch; only the work's own thread does."""
        with self._changed:
            number = self._told[-1].number + 1 if self._told else 1
            self._told.append(Event(number, kind, value))
            if kind != PROGRESS:
                self.ended_s = time.time()
            self._changed.notify_all()


class Jobs:
    """The jobs of one daemon: those that run, and the last ones that ended.

    Args:
        stopping: set when the daemon ends; every job then ends, too, with `CancelledError`.
    """

    def __init__(self, stopping: threading.Event, *, max_running: int = MAX_RUNNING) -> None:
        self._stopping = stopping
        self._max_running = max_running
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._threads: set[threading.Thread] = set()

    def start(
        self, kind: str, model: str, variant: str | None, work: Work, *, wish: object = None
    ) -> tuple[Job, bool]:
        """Return the job that does this very thing, started now if there was none; and whether it was.

        Args:
            work: gets a function that tells of progress, and one that says whether to stop.

        Raises:
            QueueFullError: too many run already.
            DrainingError: the daemon is stopping.
        """
        with self._lock:
            if self._stopping.is_set():
                raise DrainingError("the daemon is stopping", retry_after_s=1.0)
            running = [each for each in self._jobs.values() if each.state == RUNNING]
            for each in running:
                same = (each.kind, each.model, each.variant, each.wish) == (kind, model, variant, wish)
                if same and not each.asked_to_end.is_set():
                    return each, False
            if len(running) >= self._max_running:
                raise QueueFullError(f"{len(running)} jobs run already", retry_after_s=5.0)
            job = Job(kind, model, variant, wish)
            self._jobs[job.id] = job
            self._forget()
            thread = threading.Thread(target=self._run, args=(job, work), name=kind, daemon=True)
            self._threads.add(thread)
            thread.start()
        return job, True

    def get(self, job_id: str) -> Job:
        """Return a job that runs, or that ended not long ago.

        Raises:
            JobNotFoundError: there is none of that id.
        """
        with self._lock:
            job = self._jobs.get(job_id)
        if job is None:
            raise JobNotFoundError("there is no such job", hint="list them: GET /jetllm/v1/jobs")
        return job

    def all(self) -> list[Job]:
        """Return every job that is known, the newest first."""
        with self._lock:
            return list(reversed(self._jobs.values()))

    def close(self, timeout_s: float) -> bool:
        """Wait for the jobs to end, once the daemon is stopping; return whether they did in time."""
        with self._lock:
            threads = list(self._threads)
        deadline_s = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _run(self, job: Job, work: Work) -> None:
        def cancelled() -> bool:
            return job.asked_to_end.is_set() or self._stopping.is_set()

        try:
            job.tell(DONE, work(lambda value: job.tell(PROGRESS, value), cancelled))
        except JetLLMError as error:
            job.tell(ERROR, error)
        except Exception as error:
            logger.error("%s of %s: internal error: %s", job.kind, job.model, type(error).__name__)
            job.tell(ERROR, InternalError("internal error"))
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _forget(self) -> None:
        ended = [each.id for each in self._jobs.values() if each.state != RUNNING]
        for job_id in ended[: max(0, len(ended) - _MAX_ENDED)]:
            del self._jobs[job_id]
