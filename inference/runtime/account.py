"""The account: what workers were promised, what they were seen to need, what a newcomer may take."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from inference.errors import MemoryPressureError
from inference.runtime.calibration import Calibration, Observation, Prediction
from inference.runtime.entry import Entry
from inference.runtime.ledger import Ledger

UNKNOWN_BYTES = 2**62  # to give, where the machine's memory cannot be read


class Account:
    """Joins the measured budget, the ledger and the calibration; used under the supervisor's lock."""

    def __init__(self, budget: Callable[[], int | None], calibration: Calibration) -> None:
        self.calibration = calibration
        self._budget = budget
        self._ledger = Ledger()

    def free_bytes(self, entries: Iterable[Entry]) -> int:
        """What a newcomer may take now, beside what the living workers need; below 0 they lack it.

        Off the measured budget comes what each worker was promised and has not taken yet. The pages of a
        mapped file count as not taken, for the kernel says of them that they are available.
        """
        budget = self._budget()
        if budget is None:
            return UNKNOWN_BYTES
        return budget - sum(map(_not_taken_bytes, entries))

    def admit(self, entry: Entry, free_bytes: int) -> None:
        """Promise *entry* what it is predicted to need.

        Raises:
            MemoryPressureError: it is more than *free_bytes*.
        """
        budget = free_bytes + self._ledger.held_bytes
        self._ledger.reserve(entry.ledger_key, entry.plan.memory_bytes, budget)

    def release(self, entry: Entry) -> None:
        """Take back what *entry* was promised."""
        self._ledger.release(entry.ledger_key)

    def observe(self, entry: Entry) -> None:
        """Look at a loaded worker: its peak replaces its promise, and the formula learns from it.

        A worker with a GPU keeps its promise, because its resident memory is not all that it holds.
        """
        worker = entry.worker
        vitals = None if worker is None or entry.on_gpu else worker.vitals()
        if vitals is None:
            return
        entry.note_peak(vitals.peak_bytes)
        self._ledger.observe(entry.ledger_key, entry.held_bytes)
        if entry.plan.prediction is not None:
            self.calibration.observe(self._observation(entry, entry.plan.prediction))

    def _observation(self, entry: Entry, prediction: Prediction) -> Observation:
        spec, options = entry.plan.spec, entry.plan.spec.options
        return Observation(
            model=entry.plan.key[0],
            variant=entry.plan.key[1],
            backend=spec.backend,
            engine=self.calibration.engine(spec.backend),
            weights_bytes=prediction.weights_bytes,
            context_tokens=options["context_tokens"],
            slots=options["slots"],
            prefill_batch_tokens=options["prefill_batch_tokens"],
            prompt_cache_bytes=options["prompt_cache_bytes"],
            formula_bytes=prediction.formula_bytes,
            later_bytes=prediction.later_bytes,
            loaded_bytes=entry.loaded_bytes or 0,
            peak_bytes=entry.observed_bytes or 0,
        )

    @property
    def exceeded(self) -> bool:
        """Whether a worker needs more than it was promised."""
        return bool(self._ledger.excesses())

    def settle(self, entries: tuple[Entry, ...]) -> int:
        """Grant what workers need beyond their promises; return the bytes that there are too few."""
        free_bytes = self.free_bytes(entries)
        budget = free_bytes + self._ledger.held_bytes
        for key, excess_bytes in self._ledger.excesses().items():
            try:
                self._ledger.grow(key, excess_bytes, budget)
            except MemoryPressureError:
                return -free_bytes
        return 0


def _not_taken_bytes(entry: Entry) -> int:
    worker = entry.worker
    vitals = worker.vitals() if worker is not None else None
    if worker is None or worker.exited:
        return 0
    mapped_bytes = vitals.mapped_bytes if vitals is not None else 0
    if entry.loaded_s is not None and entry.observed_bytes is None:
        return mapped_bytes  # what it took, on a GPU, is off the budget already
    taken_bytes = vitals.resident_bytes - mapped_bytes if vitals is not None else 0
    return max(0, entry.held_bytes - taken_bytes)
