"""The ledger: who may use which bytes of the memory that models share."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from inference.errors import MemoryPressureError


@dataclass(frozen=True)
class Entry:
    """What one worker was promised, and what it was seen to need.

    Args:
        predicted_bytes: the first promise, made before the load.
        promised_bytes: what it may use; an observation lowers it, only `Ledger.grow` raises it.
    """

    predicted_bytes: int
    promised_bytes: int
    observed_bytes: int | None = None

    @property
    def held_bytes(self) -> int:
        """What counts against the budget: the promise, or more where more was seen."""
        return max(self.promised_bytes, self.observed_bytes or 0)

    @property
    def excess_bytes(self) -> int:
        """What was seen beyond the promise."""
        return self.held_bytes - self.promised_bytes

    @property
    def error(self) -> float | None:
        """How far the prediction was off, as a share of the observation; positive is too high."""
        if not self.observed_bytes:
            return None
        return (self.predicted_bytes - self.observed_bytes) / self.observed_bytes


class Ledger:
    """Reservations by key. A reservation is made before a load begins and released after the end.

    Threads may share a ledger; every method is one atomic step.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}

    @property
    def held_bytes(self) -> int:
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
            self._check_fits(key, size_bytes, budget_bytes)
            self._entries[key] = Entry(size_bytes, size_bytes)

    def grow(self, key: str, extra_bytes: int, budget_bytes: int) -> None:
        """Promise *extra_bytes* more to *key*, before it takes them or to make an excess good.

        A key that was released meanwhile stays released.

        Raises:
            MemoryPressureError: they do not fit; nothing has changed.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return
            grown = replace(entry, promised_bytes=entry.promised_bytes + extra_bytes)
            self._check_fits(key, grown.held_bytes, budget_bytes)
            self._entries[key] = grown

    def observe(self, key: str, size_bytes: int) -> None:
        """Note what *key* was seen to need. Less than its promise: the rest is given back.

        More than its promise is an excess. It counts at once, for memory in use is a fact, but it is not
        granted: the owner asks `grow` for it. Where it fits the budget that settles it. Where it does not,
        every reservation is refused, and the owner makes room, idle workers first, until `grow` succeeds
        or the key is released.

        A key that was released meanwhile stays released.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                promised = min(entry.promised_bytes, size_bytes)
                self._entries[key] = replace(entry, promised_bytes=promised, observed_bytes=size_bytes)

    def release(self, key: str) -> int:
        """Forget *key*; return the bytes that it held, 0 when it held none."""
        with self._lock:
            entry = self._entries.pop(key, None)
            return 0 if entry is None else entry.held_bytes

    def excesses(self) -> dict[str, int]:
        """Return the bytes seen beyond their promise, by key; empty when every promise is kept."""
        with self._lock:
            return {key: entry.excess_bytes for key, entry in self._entries.items() if entry.excess_bytes}

    def snapshot(self) -> dict[str, Entry]:
        """Return the entries as they are now, in the order of their reservation."""
        with self._lock:
            return dict(self._entries)

    def _check_fits(self, key: str, size_bytes: int, budget_bytes: int) -> None:
        others = {name: entry for name, entry in self._entries.items() if name != key}
        free_bytes = budget_bytes - _held(others)
        if size_bytes > free_bytes:
            raise _refusal(key, size_bytes, budget_bytes, free_bytes)


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
