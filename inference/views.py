"""Views: what the service shows of selections and workers, as plain values."""

from __future__ import annotations

import dataclasses
from typing import Any

from inference.errors import ModelNotPulledError
from inference.runtime.entry import WorkerStatus
from inference.selection.selector import Resident, Selection


def nothing_pulled(selection: Selection) -> ModelNotPulledError:
    """Return the error for a request that named no model, where none is here."""
    return ModelNotPulledError(
        f"no model that serves {selection.task.value} has its weights on this machine",
        hint=_advice(selection),
    )


def _advice(selection: Selection) -> str:
    """Name what to pull: the best for this machine, and the smallest that would do."""
    able = [candidate for candidate in selection.candidates if candidate.verdict != "rejected"]
    smallest = min(able, key=lambda candidate: (-candidate.task_fit, candidate.memory_bytes))
    best = f"the best for it here: {selection.pull_command}"
    if smallest.model == selection.model:
        return best
    return f"{best}; the smallest: jetllm pull {smallest.model} --variant {smallest.variant}"


def resident(worker: WorkerStatus) -> Resident:
    """Return a worker as the selector sees it."""
    return Resident(
        model=worker.model,
        variant=worker.variant,
        state=worker.state.value,
        evictable=not worker.pinned,
        memory_bytes=worker.memory_observed_bytes or worker.memory_predicted_bytes,
        context_tokens=worker.context_tokens,
        to_come_bytes=worker.memory_to_come_bytes,
    )


def row(worker: WorkerStatus) -> dict[str, Any]:
    """Return a worker's row of the status."""
    return {**dataclasses.asdict(worker), "state": worker.state.value}


def counters(
    loads: dict[tuple[str, str], int], restarts: dict[tuple[str, str], int]
) -> dict[str, list[dict[str, Any]]]:
    """Return what the status counts of each model."""
    return {
        "model_loads_total": _counter(loads, "result"),
        "worker_restarts_total": _counter(restarts, "cause"),
    }


def _counter(values: dict[tuple[str, str], int], label: str) -> list[dict[str, Any]]:
    """Return counts by model and *label*, sorted."""
    return [{"model": model, label: name, "value": n} for (model, name), n in sorted(values.items())]


def readiness(
    status: str, *, phase: str | None = None, percent: float | None = None, reason: str | None = None
) -> dict[str, Any]:
    """Return what readiness says of itself."""
    return {"status": status, "phase": phase, "percent": percent, "reason": reason}
