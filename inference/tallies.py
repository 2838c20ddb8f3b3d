"""The tallies: how requests were admitted, and how long they waited for a worker, for the metrics."""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from inference.errors import JetLLMError
from inference.runtime.entry import Lease, WorkerStatus
from inference.runtime.worker import Worker

QUEUE_BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
LOAD_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)


class Durations:
    """A histogram for each model, as Prometheus has them: how many took at most so long."""

    def __init__(self, buckets_s: Sequence[float]) -> None:
        self._buckets_s = tuple(buckets_s)
        self._counts: dict[str, list[int]] = {}
        self._sums_s: dict[str, float] = {}

    def observe(self, model: str, seconds: float) -> None:
        """Count one."""
        counts = self._counts.setdefault(model, [0] * (len(self._buckets_s) + 1))
        counts[bisect.bisect_left(self._buckets_s, seconds)] += 1
        self._sums_s[model] = self._sums_s.get(model, 0.0) + seconds

    def rows(self) -> list[dict[str, Any]]:
        """Return *model*, *sum_s* and *buckets*, each an upper bound (``None`` is infinity) and a count."""
        bounds = (*self._buckets_s, None)
        rows = []
        for model, counts in sorted(self._counts.items()):
            total, buckets = 0, []
            for bound, count in zip(bounds, counts, strict=True):
                total += count
                buckets.append([bound, total])
            rows.append({"model": model, "sum_s": self._sums_s[model], "buckets": buckets})
        return rows


class Tallies:
    """Counted since the start, from any thread; `rows` is for the status.

    Args:
        workers: what is loaded now.
    """

    def __init__(self, workers: Callable[[], Sequence[WorkerStatus]]) -> None:
        self._workers = workers
        self._lock = threading.Lock()
        self._decisions: dict[tuple[str, str], int] = {}
        self._queue = Durations(QUEUE_BUCKETS_S)
        self._load = Durations(LOAD_BUCKETS_S)
        self._swap = Durations(LOAD_BUCKETS_S)
        self._loaded: dict[str, float] = {}
        self._taken: WeakKeyDictionary[Lease, tuple[float, set[int]]] = WeakKeyDictionary()

    @contextmanager
    def deciding(self) -> Iterator[list[Lease]]:
        """Count how a request was admitted: with the lease that the block appends, or with its error.

        The set of workers is to be held still meanwhile.
        """
        leases: list[Lease] = []
        try:
            yield leases
        except JetLLMError as error:
            self._decided("refused", error.code)
            raise
        for lease in leases:
            self._taken[lease] = time.monotonic(), self._resident()
            self._decided("admitted", "loaded" if lease.entry.ready else "to_load")

    @contextmanager
    def waiting(self, model: str, lease: Lease) -> Iterator[None]:
        """Time the wait for a lease's worker, from `deciding` on; one that ends in an error counts nothing.

        A load that others had to leave for is a swap as well; however many wait for it, it is one.
        """
        started_s, before = self._taken.pop(lease)
        yield
        waited_s = time.monotonic() - started_s
        worker = lease.entry.worker
        with self._lock:
            self._queue.observe(model, waited_s)
            if worker is not None and self._is_new(lease, worker, started_s):
                self._load.observe(model, started_s + waited_s - worker.started_s)
                if before - self._resident():
                    self._swap.observe(model, waited_s)

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Return what the status has of them."""
        with self._lock:
            decisions = [
                {"result": result, "reason": reason, "value": count}
                for (result, reason), count in sorted(self._decisions.items())
            ]
            return {
                "admission_decisions_total": decisions,
                "queue_seconds": self._queue.rows(),
                "model_load_seconds": self._load.rows(),
                "swap_seconds": self._swap.rows(),
            }

    def _decided(self, result: str, reason: str) -> None:
        with self._lock:
            key = (result, reason)
            self._decisions[key] = self._decisions.get(key, 0) + 1

    def _is_new(self, lease: Lease, worker: Worker, started_s: float) -> bool:
        """Whether *worker* was started for those who wait since *started_s*, and nobody has said so."""
        name = "/".join(lease.entry.plan.key)
        if worker.started_s < started_s or self._loaded.get(name) == worker.started_s:
            return False
        self._loaded[name] = worker.started_s
        return True

    def _resident(self) -> set[int]:
        return {each.pid for each in self._workers() if each.pid is not None}
