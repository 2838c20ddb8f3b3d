"""The set of workers: which are loaded, who waits for them, who has to leave.

One long-lived thread makes every change (spawn, stop, kill); it is also the thread whose end
would end the workers. Callers only take leases and wait. A request for a model that is not loaded
joins a queue; the head of the queue is served first, so two models that take turns both advance,
each for at least its minimum residency.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator

from inference.errors import (
    BackendTimeoutError,
    CancelledError,
    DrainingError,
    InternalError,
    JetLLMError,
    LoadFailedError,
    MemoryPressureError,
    QueueFullError,
)
from inference.runtime.account import Account
from inference.runtime.calibration import Calibration
from inference.runtime.entry import Entry, Lease, State, WorkerStatus
from inference.runtime.plan import Limits, Plan
from inference.runtime.policy import Eviction, Key, Tenant, make_room, relieve
from inference.runtime.worker import POLL_S, Worker

logger = logging.getLogger(__name__)

_ABORT_GRACE_S = 1.0  # for the Python stacks that SIGABRT leaves on stderr
_MEMORY_BACK_S = 2.0  # how long a dead worker's memory may take to be seen as free
_RECHECK_S = 0.05
_TICK_S = 0.25  # how often silence, idleness and load progress are looked at


class Supervisor:
    """Owns the workers. `close` stops them all.

    Args:
        budget: bytes that can be given to new models now; ``None`` when unknown.
        calibration: learns from every worker; by default it forgets at the end.
    """

    def __init__(
        self, limits: Limits, *, budget: Callable[[], int | None], calibration: Calibration | None = None
    ) -> None:
        self._limits = limits
        self._account = Account(budget, calibration or Calibration())
        self._changed = threading.Condition(threading.RLock())
        self._entries: tuple[Entry, ...] = ()  # replaced, never changed: readers take no lock
        self._draining = False
        self._closed = False
        self.loads: dict[tuple[str, str], int] = {}
        self.restarts: dict[tuple[str, str], int] = {}
        self._failures: dict[Key, JetLLMError] = {}
        self._buried_s = float("-inf")
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[tuple[WorkerStatus, ...]]:
        """Hold the set of workers still while something is selected and applied."""
        with self._changed:
            yield self.snapshot()

    def apply(self, plan: Plan, keep_alive_s: float | None = None) -> Lease:
        """Take a lease on the plan's worker, queueing its load when there is none.

        Call it inside `exclusive`, and `wait` for the lease outside.

        Args:
            keep_alive_s: how long the worker stays without work from now on, until another lease says
                otherwise; -1 is for ever. ``None`` leaves it: at first as the limits have it.

        Raises:
            QueueFullError, DrainingError: nothing was taken.
        """
        with self._changed:
            if self._draining:
                raise DrainingError("the daemon is stopping", retry_after_s=5)
            entry = self._live(plan.key)
            waiting = sum(len(e.waiting) for e in self._entries)
            must_queue = entry is not None and not entry.has_free_slot
            if must_queue and waiting >= self._limits.max_queue:
                raise QueueFullError(
                    f"{waiting} requests are waiting; at most {self._limits.max_queue} may", retry_after_s=1
                )
            if entry is None:
                entry = Entry(plan, time.monotonic(), keep_alive_s=self._limits.keep_alive_s)
                self._entries = (*self._entries, entry)
            if keep_alive_s is not None:
                entry.keep_alive_s = keep_alive_s
            lease = Lease(entry, self._release)
            entry.admit(lease)
            self._changed.notify_all()
            return lease

    def wait(self, lease: Lease, cancelled: Callable[[], bool], deadline_s: float) -> Worker:
        """Wait until *lease* has a slot of a loaded worker.

        Raises:
            CancelledError: *cancelled* became true.
            BackendTimeoutError: it is past *deadline_s* on the monotonic clock.
            JetLLMError: the worker could not be loaded.
        """
        while not lease.settled.wait(POLL_S):
            if cancelled():
                raise CancelledError("the caller left while waiting")
            if time.monotonic() > deadline_s:
                raise BackendTimeoutError("the request's time was over before its model was ready")
        if lease.error is not None:
            raise lease.error
        worker = lease.entry.worker
        if worker is None:
            raise InternalError("a lease was granted without a worker")
        return worker

    def pin(self, key: Key, pinned: bool) -> None:
        """Protect a loaded worker from idle unloading and eviction, or end that."""
        with self._changed:
            entry = self._live(key)
            if entry is not None:
                entry.pinned = pinned
            self._changed.notify_all()

    def unload(self, key: Key, timeout_s: float) -> bool:
        """Let a worker finish what it serves, then stop it; return whether it is gone in time."""
        with self._changed:
            leaving = [e for e in self._entries if e.plan.key == key and e.worker is not None]
            for entry in leaving:
                entry.retiring = True
            self._changed.notify_all()
            return self._changed.wait_for(
                lambda: not any(e in self._entries for e in leaving), timeout=timeout_s
            )

    def drain(self, timeout_s: float) -> bool:
        """Accept nothing more; return whether all that was accepted ended in time."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not any(e.leases for e in self._entries), timeout_s)

    def begin_drain(self) -> None:
        """Accept nothing more."""
        self._draining = True  # without the lock: a signal handler may call this

    @property
    def draining(self) -> bool:
        """Whether new work is refused."""
        return self._draining

    def close(self) -> None:
        """Stop every worker and end the thread; what still runs is cut off."""
        with self._changed:
            self._draining = self._closed = True
            for entry in self._entries:
                entry.retiring = True
                entry.fail(DrainingError("the daemon is stopping"))
            self._changed.notify_all()
        self._thread.join()

    def snapshot(self) -> tuple[WorkerStatus, ...]:
        """What the workers are doing; takes no lock."""
        now_s = time.monotonic()
        return tuple(entry.status(now_s) for entry in self._entries)

    def idle(self) -> list[Worker]:
        """The workers that are ready and that nobody uses."""
        found = ((entry, entry.worker) for entry in self._entries if not (entry.running or entry.waiting))
        return [worker for entry, worker in found if worker and worker.ready and not entry.retiring]

    def failure(self, key: Key) -> JetLLMError | None:
        """Why the last load of *key* failed, until one succeeds."""
        return self._failures.get(key)

    # The thread.

    def _run(self) -> None:
        while not self._closed or self._entries:
            with self._changed:
                try:
                    wake_s = self._step(time.monotonic())
                except Exception:
                    # Without this thread nothing would ever load, stop or time out again.
                    logger.exception("a step of the supervisor failed; it goes on")
                    wake_s = _TICK_S
                if not self._account.calibration.unsaved and (self._entries or not self._closed):
                    self._changed.wait(wake_s)
            self._account.calibration.save()  # without the lock: a disk may take its time

    def look(self) -> None:
        """See to every worker now; the watchdog sees those with a lease by itself."""
        with self._changed:
            self._changed.notify_all()

    def _release(self, lease: Lease) -> None:
        with self._changed:
            lease.entry.release(lease, time.monotonic())
            self._changed.notify_all()

    def _live(self, key: Key) -> Entry | None:
        return next((e for e in self._entries if e.plan.key == key and e.accepts), None)

    def _step(self, now_s: float) -> float:
        """Do all that is due; return the seconds until something may be due again."""
        for entry in self._entries:
            self._advance(entry, now_s)
        wake_s = min(self._relieve(now_s), self._start_next(now_s))
        busy = any(e.leases or e.state is not State.READY for e in self._entries)
        return min(wake_s, _TICK_S if busy else self._idle_s(now_s), 3600.0)

    def _idle_s(self, now_s: float) -> float:
        return max(0.05, min((e.stays_s(now_s) for e in self._entries), default=float("inf")) + 0.01)

    def _advance(self, entry: Entry, now_s: float) -> None:
        worker = entry.worker
        if worker is None:
            if not entry.leases:
                self._remove(entry)  # everyone who asked for it has left
        elif worker.exited:
            self._bury(entry, worker)
        elif entry.abort_s is not None:
            if now_s - entry.abort_s >= _ABORT_GRACE_S:
                worker.kill()
        elif entry.retiring and (self._closed or not entry.leases):
            self._stop(entry, worker, now_s)
        elif not worker.ready:
            self._watch_load(entry, worker, now_s)
        else:
            self._watch_ready(entry, worker, now_s)

    def _watch_load(self, entry: Entry, worker: Worker, now_s: float) -> None:
        silent_s = entry.note_activity(worker.vitals(), now_s)
        if silent_s > self._limits.load_timeout_s:
            self._abort(entry, worker, now_s, f"made no progress for {silent_s:.0f} s while loading")

    def _watch_ready(self, entry: Entry, worker: Worker, now_s: float) -> None:
        if entry.loaded_s is None:
            entry.loaded_s = entry.last_used_s = now_s
            self._count(self.loads, entry, "ok")
            self._failures.pop(entry.plan.key, None)
            logger.info(
                "%s: loaded in %.1f s, pid %d", worker.spec.name, now_s - worker.started_s, worker.pid
            )
            entry.on_gpu = worker.uses_gpu()
            self._account.observe(entry)
            entry.grant()
            self._changed.notify_all()
        if entry.look_due(now_s):
            self._account.observe(entry)
        silent_s = worker.silent_s(now_s)
        if silent_s > self._limits.stall_timeout_s:
            self._abort(entry, worker, now_s, f"made no progress for {silent_s:.0f} s")
        elif entry.stays_s(now_s) <= 0:
            entry.retiring = True
            self.look()

    def _abort(self, entry: Entry, worker: Worker, now_s: float, why: str) -> None:
        """Give a silent worker up: its callers are told now, its process gets time to leave its stacks."""
        error = BackendTimeoutError(f"{worker.spec.name}: the worker {why}", hint="its stacks are in the log")
        entry.abort_s = now_s
        worker.abandon(error)
        if entry.loaded_s is None:
            entry.fail(error)
        worker.kill(error, signal.SIGABRT)

    def _stop(self, entry: Entry, worker: Worker, now_s: float) -> None:
        if not worker.ready:
            worker.kill()  # it has nothing to finish, and does not listen while it loads
        elif entry.stop_s is None:
            entry.stop_s = now_s
            self._account.observe(entry)
            worker.stop()
        elif now_s - entry.stop_s >= self._limits.stop_timeout_s:
            worker.kill()

    def _bury(self, entry: Entry, worker: Worker) -> None:
        """Settle what a dead worker leaves: those that wait get a new one, unless it never loaded."""
        error = worker.exit_error
        _log_end(worker, error)
        self._buried_s = time.monotonic()
        self._account.release(entry)
        self._remove(entry)
        if entry.loaded_s is None and error is not None and not entry.retiring:
            self._count(self.loads, entry, "failed")
            self._failures[entry.plan.key] = error
            entry.fail(error)
            return
        if error is not None:
            self._count(self.restarts, entry, error.code)
        if self._closed:
            entry.fail(DrainingError("the daemon is stopping"))
        elif entry.waiting:
            heir = Entry(entry.plan, time.monotonic(), pinned=entry.pinned, keep_alive_s=entry.keep_alive_s)
            self._entries = (heir, *self._entries)
            heir.inherit(entry)

    def _start_next(self, now_s: float) -> float:
        """Start the head of the queue when there is room; return when to look again."""
        entry = next((e for e in self._entries if e.worker is None and not e.retiring), None)
        if entry is None or self._closed:
            return float("inf")
        free_bytes = self._account.free_bytes(self._entries)
        plan = make_room(
            self._tenants(),
            need_bytes=entry.plan.memory_bytes,
            free_bytes=free_bytes,
            max_tenants=self._limits.max_loaded_models,
            now_s=now_s,
        )
        if plan.fits:
            self._account.admit(entry, free_bytes)
            self._start(entry)
            return 0.0
        return self._carry_out(plan, entry, now_s)

    def _tenants(self) -> list[Tenant]:
        return [e.tenant(self._limits.min_residency_s) for e in self._entries if e.worker is not None]

    def _carry_out(self, plan: Eviction, entry: Entry, now_s: float) -> float:
        if plan.wait_until_s is not None:
            return max(0.0, plan.wait_until_s - now_s)
        self._evict(plan.victims, now_s)
        if plan.victims or any(e.retiring for e in self._entries):
            return _TICK_S
        if now_s - self._buried_s < _MEMORY_BACK_S:
            return _RECHECK_S
        self._refuse(entry)
        return 0.0

    def _evict(self, victims: tuple[Key, ...], now_s: float) -> None:
        for entry in self._entries:
            if entry.plan.key in victims and entry.worker is not None:
                entry.retiring = True
                self._advance(entry, now_s)

    def _relieve(self, now_s: float) -> float:
        """Make good what workers need beyond their promises; return when to look again.

        Where there is no memory for it, idle workers leave. Until it is settled nothing is started: there
        is less than nothing to give.
        """
        if not self._account.exceeded:
            return float("inf")
        short_bytes = self._account.settle(self._entries)
        if short_bytes <= 0:
            return float("inf")
        if now_s - self._buried_s >= _MEMORY_BACK_S:
            victims = relieve(self._tenants(), short_bytes)
            for model, variant in victims:
                short = f"{short_bytes / 2**20:.0f} MiB"
                logger.warning("workers need %s more than there are: %s/%s leaves", short, model, variant)
            self._evict(victims, now_s)
        return _TICK_S

    def _start(self, entry: Entry) -> None:
        worker = Worker(entry.plan.spec, on_change=self.look)
        try:
            worker.start()
        except OSError as error:
            self._account.release(entry)
            self._remove(entry)
            entry.fail(LoadFailedError(f"{entry.plan.spec.name}: no process could be started: {error}"))
        else:
            entry.worker = worker

    def _refuse(self, entry: Entry) -> None:
        self._remove(entry)
        needs, gives = entry.plan.memory_bytes / 2**30, self._account.free_bytes(self._entries) / 2**30
        error = MemoryPressureError(
            f"{entry.plan.spec.name} needs {needs:.2f} GiB; {gives:.2f} GiB can be given to models now",
            hint="unload or unpin a model: jetllm ps",
            retry_after_s=10,
        )
        self._failures[entry.plan.key] = error
        entry.fail(error)

    def _remove(self, entry: Entry) -> None:
        self._entries = tuple(e for e in self._entries if e is not entry)
        self._changed.notify_all()

    def _count(self, counter: dict[tuple[str, str], int], entry: Entry, label: str) -> None:
        key = (entry.plan.key[0], label)
        counter[key] = counter.get(key, 0) + 1


def _log_end(worker: Worker, error: JetLLMError | None) -> None:
    if error is None:
        logger.info("%s: unloaded", worker.spec.name)
        return
    logger.warning("%s", error.message)
    for line in worker.stderr_tail():
        logger.warning("%s: %s", worker.spec.name, line[:300])
