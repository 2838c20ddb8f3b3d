"""The ledger: who may use which bytes of the memory that models share."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from inference.errors import MemoryPressureError


@dataclass(frozen=True)
class Entry:
    """What one worker was promised, and what it was seen to hold once it had loaded."""

    reserved_bytes: int
    observed_bytes: int | None = None

    @property
    def held_bytes(self) -> int:
        """What counts against the budget: the observation once there is one."""
        return self.reserved_bytes if self.observed_bytes is None else self.observed_bytes

    @property
    def error(self) -> float | None:
        """How far the prediction was off, as a share of the observation; positive is too high."""
        if not self.observed_bytes:
            return None
        return (self.reserved_bytes - self.observed_bytes) / self.observed_bytes


class Ledger:
    """Reservations by key. A reservation is made before a load begins and released after the end.

    Threads may share a ledger; every method is one atomic step.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}

    @property
    def reserved_bytes(self) -> int:
        """The sum of what all keys hold."""
        with self._lock:
            return _held(self._entries)

    def reserve(self, key: str, size_bytes: int, budget_bytes: int) -> None:
        """Promise *size_bytes* to *key*, replacing what it had, if all promises fit the budget.

        Args:
            budget_bytes: for all keys together, what they hold included.

        Raises:
            MemoryPressureError: they do not fit; nothing has changed.
        """
        with self._lock:
            others = {name: entry for name, entry in self._entries.items() if name != key}
            free_bytes = budget_bytes - _held(others)
            if size_bytes > free_bytes:
                raise _refusal(key, size_bytes, budget_bytes, free_bytes)
            self._entries[key] = Entry(size_bytes)

    def observe(self, key: str, size_bytes: int) -> None:
        """Let what *key* was seen to hold count instead of what it reserved.

        It may be more than was promised: memory in use is a fact, and the next reservation answers for it.
        A key that was released meanwhile stays released.
        """
        with self._lock:
            if key in self._entries:
                self._entries[key] = replace(self._entries[key], observed_bytes=size_bytes)

    def release(self, key: str) -> int:
        """Forget *key*; return the bytes that it held, 0 when it held none."""
        with self._lock:
            entry = self._entries.pop(key, None)
            return 0 if entry is None else entry.held_bytes

    def snapshot(self) -> dict[str, Entry]:
        """Return the entries as they are now, in the order of their reservation."""
        with self._lock:
            return dict(self._entries)


def _held(entries: dict[str, Entry]) -> int:
    return sum(entry.held_bytes for entry in entries.values())


def _refusal(key: str, size_bytes: int, budget_bytes: int, free_bytes: int) -> MemoryPressureError:
    return MemoryPressureError(
        f"{key} needs {size_bytes / 2**30:.2f} GiB; "
        f"{max(0, free_bytes) / 2**30:.2f} GiB of {budget_bytes / 2**30:.2f} GiB are not reserved",
        hint="unload a model: jetllm ps shows them",
        retry_after_s=5,
        details={"needed_bytes": size_bytes, "free_bytes": free_bytes, "budget_bytes": budget_bytes},
    )
