"""One place in the supervisor's set: a worker, or the wish for one, and who waits for it.

Everything here is changed under the supervisor's lock; `Entry.status` reads without it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from inference.errors import JetLLMError
from inference.runtime.plan import Plan
from inference.runtime.policy import Key, Tenant
from inference.runtime.vitals import Vitals
from inference.runtime.worker import Worker

_LOOK_S = 1.0


class State(str, Enum):
    """What a worker is doing, computed from facts and never stored."""

    QUEUED = "queued"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True)
class WorkerStatus:
    """A worker as `status` shows it; ages and times left in seconds, sizes in bytes.

    *load_s* is the engine's own part of the load, its first token included. *memory_observed_bytes*
    is the most that was ever resident, *memory_to_come_bytes* what it may still take beyond that.
    *engine* is for people; *packages* is what evidence is tied to. *keep_alive_s* is how long it stays
    without work, -1 for ever, and *expires_in_s* what is left of that.
    """

    model: str
    variant: str
    backend: str
    state: State
    pid: int | None
    leases: int
    waiting: int
    slots: int
    pinned: bool
    loaded_s: float | None
    idle_s: float | None
    keep_alive_s: float
    expires_in_s: float | None
    memory_predicted_bytes: int
    memory_observed_bytes: int | None
    memory_to_come_bytes: int
    requests_total: int
    progress: float | None
    engine: str | None
    packages: str | None
    context_tokens: int | None
    load_s: float | None
    on_gpu: bool
    capabilities: tuple[str, ...]

    @property
    def key(self) -> Key:
        """(model, variant)."""
        return (self.model, self.variant)


class Lease:
    """The right to one slot of a worker; `release` it exactly once or more often.

    *settled* is set when the slot is granted or *error* says why it never will be.
    """

    def __init__(self, entry: Entry, release: Callable[[Lease], None]) -> None:
        self.entry = entry
        self.settled = threading.Event()
        self.granted = False
        self.error: JetLLMError | None = None
        self._release = release
        self._released = False

    def release(self) -> None:
        """Give the slot, or the place in the queue, back."""
        if not self._released:
            self._released = True
            self._release(self)


class Entry:
    """A planned, loading, loaded or leaving worker; *keep_alive_s* without work it stays, -1 for ever."""

    def __init__(
        self, plan: Plan, now_s: float, *, pinned: bool | None = None, keep_alive_s: float = -1.0
    ) -> None:
        self.plan = plan
        self.worker: Worker | None = None
        self.waiting: deque[Lease] = deque()
        self.running: set[Lease] = set()
        self.pinned = plan.pinned if pinned is None else pinned
        self.keep_alive_s = keep_alive_s
        self.retiring = False
        self.loaded_s: float | None = None
        self.last_used_s = now_s
        self.on_gpu = False
        self.loaded_bytes: int | None = None
        self.observed_bytes: int | None = None
        self.stop_s: float | None = None
        self.abort_s: float | None = None
        self._activity: tuple[float, int] | None = None
        self._active_s = now_s
        self._looked_s = now_s
        self._looked_requests = 0

    @property
    def ledger_key(self) -> str:
        """A key of this very worker: its successor may be reserved before it is gone."""
        return f"{'/'.join(self.plan.key)}#{id(self)}"

    @property
    def leases(self) -> int:
        """Requests that run here or wait for it."""
        return len(self.waiting) + len(self.running)

    @property
    def ready(self) -> bool:
        """Whether leases can be granted."""
        loaded = self.worker is not None and self.worker.ready and self.loaded_s is not None
        return loaded and self.abort_s is None

    @property
    def accepts(self) -> bool:
        """Whether new leases may join."""
        dead = self.worker is not None and (self.worker.exited or self.abort_s is not None)
        return not self.retiring and not dead

    @property
    def has_free_slot(self) -> bool:
        """Whether a new lease would be granted at once."""
        return self.ready and len(self.running) < self._slots

    @property
    def _slots(self) -> int:
        info = self.worker.info if self.worker is not None else None
        return int(info["slots"]) if info else self.plan.slots

    @property
    def state(self) -> State:
        """The state that the facts add up to."""
        if self.worker is None:
            return State.QUEUED
        if self.retiring:
            return State.STOPPING
        if self.worker.exited or self.abort_s is not None:
            return State.FAILED
        return State.READY if self.ready else State.STARTING

    def admit(self, lease: Lease) -> None:
        """Let *lease* join the end of the queue."""
        self.waiting.append(lease)
        self.grant()

    def grant(self) -> None:
        """Give free slots to those who have waited longest."""
        while self.waiting and self.has_free_slot:
            lease = self.waiting.popleft()
            self.running.add(lease)
            lease.granted = True
            lease.settled.set()

    def release(self, lease: Lease, now_s: float) -> None:
        """Take *lease* out, wherever it is."""
        self.last_used_s = now_s
        self.running.discard(lease)
        if lease in self.waiting:
            self.waiting.remove(lease)
        self.grant()

    def fail(self, error: JetLLMError) -> None:
        """Tell everyone who waits that it will not be."""
        while self.waiting:
            lease = self.waiting.popleft()
            lease.error = error
            lease.settled.set()

    def inherit(self, other: Entry) -> None:
        """Take over those who wait for *other*."""
        while other.waiting:
            lease = other.waiting.popleft()
            lease.entry = self
            self.waiting.append(lease)

    def note_activity(self, vitals: Vitals | None, now_s: float) -> float:
        """Record what a loading worker has computed and taken; return the seconds since that changed."""
        activity = (vitals.cpu_s, vitals.resident_bytes) if vitals is not None else None
        if activity != self._activity:
            self._activity, self._active_s = activity, now_s
        return now_s - self._active_s

    def look_due(self, now_s: float) -> bool:
        """Whether its memory is worth another look: after requests, and every second of long ones."""
        served = self.worker.requests_total if self.worker is not None else 0
        due = now_s - self._looked_s >= _LOOK_S if self.leases else served != self._looked_requests
        if due:
            self._looked_s, self._looked_requests = now_s, served
        return due

    def note_peak(self, peak_bytes: int) -> None:
        """Record the most that was resident so far; the first record is what the load took."""
        if self.loaded_bytes is None:
            self.loaded_bytes = peak_bytes
        self.observed_bytes = max(peak_bytes, self.observed_bytes or 0)

    @property
    def held_bytes(self) -> int:
        """What it needs in the worst case, as far as is known now."""
        if self.observed_bytes is None or self.loaded_bytes is None:
            return self.plan.memory_bytes
        if self.plan.prediction is None:
            return self.observed_bytes
        later_bytes = self.plan.prediction.later_bytes
        worst = self.plan.memory_bytes if later_bytes is None else self.loaded_bytes + later_bytes
        return max(self.observed_bytes, worst)

    def tenant(self, min_residency_s: float) -> Tenant:
        """The entry as the eviction policy sees it."""
        loading = self.loaded_s is None
        return Tenant(
            key=self.plan.key,
            memory_bytes=self.held_bytes,
            leases=self.leases,
            pinned=self.pinned,
            last_used_s=self.last_used_s,
            movable_at_s=float("inf") if loading else (self.loaded_s or 0.0) + min_residency_s,
            leaving=self.retiring,
        )

    def stays_s(self, now_s: float) -> float:
        """Return the seconds until it has been idle for too long; infinite while it works or is pinned."""
        if self.leases or self.pinned or self.keep_alive_s < 0:
            return float("inf")
        return max(0.0, self.last_used_s + self.keep_alive_s - now_s)

    def status(self, now_s: float) -> WorkerStatus:
        """A frozen picture."""
        worker, state, leases = self.worker, self.state, self.leases
        info = (worker.info if worker is not None else None) or {}
        idle_s = now_s - self.last_used_s if state is State.READY and not leases else None
        stays_s = self.stays_s(now_s)
        return WorkerStatus(
            model=self.plan.key[0],
            variant=self.plan.key[1],
            backend=self.plan.spec.backend,
            state=state,
            pid=worker.pid if worker is not None else None,
            leases=leases,
            waiting=len(self.waiting),
            slots=self._slots,
            pinned=self.pinned,
            loaded_s=None if self.loaded_s is None else now_s - self.loaded_s,
            idle_s=idle_s,
            keep_alive_s=self.keep_alive_s,
            expires_in_s=stays_s if idle_s is not None and stays_s != float("inf") else None,
            memory_predicted_bytes=self.plan.memory_bytes,
            memory_observed_bytes=self.observed_bytes,
            memory_to_come_bytes=0 if self.observed_bytes is None else self.held_bytes - self.observed_bytes,
            requests_total=worker.requests_total if worker is not None else 0,
            progress=self._progress(state),
            engine=info.get("engine"),
            packages=info.get("packages"),
            context_tokens=info.get("context_tokens"),
            load_s=info.get("load_s"),
            on_gpu=self.on_gpu,
            capabilities=tuple(info.get("capabilities") or ()),
        )

    def _progress(self, state: State) -> float | None:
        """Share of the predicted memory that a loading worker has taken; an estimate."""
        if state is not State.STARTING or self.worker is None:
            return None
        vitals = self.worker.vitals()
        taken_bytes = vitals.resident_bytes if vitals is not None else 0
        return min(0.99, taken_bytes / max(1, self.plan.memory_bytes))
