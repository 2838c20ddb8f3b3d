"""The tallies: what is counted of admissions, waits, loads and swaps."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from inference.errors import QueueFullError
from inference.tallies import Durations, Tallies


class Taken:
    """A lease on a worker; *started_s* is when its process began."""

    def __init__(self, *, ready: bool = False, started_s: float = 0.0) -> None:
        worker = SimpleNamespace(started_s=started_s)
        self.entry = SimpleNamespace(ready=ready, worker=worker, plan=SimpleNamespace(key=("m", "q4")))


def admit(tallies: Tallies, lease: Any) -> None:
    """Take a lease."""
    with tallies.deciding() as admitted:
        admitted.append(lease)


def wait(tallies: Tallies, lease: Any) -> None:
    """Wait for it, for no time."""
    with tallies.waiting("m", lease):
        pass


def count(tallies: Tallies, name: str) -> int:
    """How many durations of a name were seen."""
    return sum(row["buckets"][-1][1] for row in tallies.rows()[name])


def test_a_histogram_counts_what_is_at_most_so_long() -> None:
    """Upper bounds belong to their buckets; the last is without bound and counts all."""
    durations = Durations((0.1, 1))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        durations.observe("m", seconds)
    assert durations.rows() == [
        {"model": "m", "sum_s": pytest.approx(7.65), "buckets": [[0.1, 2], [1, 3], [None, 4]]}
    ]


def test_admissions_are_counted_by_their_reason() -> None:
    """To a loaded model, to one that is to be loaded, and refused, with the error's code."""
    tallies = Tallies(lambda: ())
    admit(tallies, Taken(ready=True))
    admit(tallies, Taken())
    with pytest.raises(QueueFullError), tallies.deciding():
        raise QueueFullError("full")
    assert [
        (row["result"], row["reason"], row["value"]) for row in tallies.rows()["admission_decisions_total"]
    ] == [
        ("admitted", "loaded", 1),
        ("admitted", "to_load", 1),
        ("refused", "queue_full", 1),
    ]


def test_a_load_is_one_however_many_wait_for_it() -> None:
    """Every request has a wait of its own; the worker that began for them is counted once."""
    tallies = Tallies(lambda: ())
    leases = [Taken(), Taken(), Taken()]
    for lease in leases:
        admit(tallies, lease)
    started_s = time.monotonic()
    for lease in leases:
        lease.entry.worker.started_s = started_s
        wait(tallies, lease)
    late = Taken(started_s=started_s)
    admit(tallies, late)
    wait(tallies, late)
    assert (count(tallies, "queue_seconds"), count(tallies, "model_load_seconds")) == (4, 1)
    assert count(tallies, "swap_seconds") == 0


def test_a_load_that_others_left_for_is_a_swap() -> None:
    """One that stayed loaded beside it is none."""
    workers = [SimpleNamespace(pid=7), SimpleNamespace(pid=8)]
    tallies = Tallies(lambda: workers)  # type: ignore[arg-type, return-value]
    for gone in (0, 1):
        lease = Taken()
        admit(tallies, lease)
        del workers[:gone]
        workers.append(SimpleNamespace(pid=100 + gone))
        lease.entry.worker.started_s = time.monotonic()
        wait(tallies, lease)
        assert count(tallies, "swap_seconds") == gone
    assert count(tallies, "model_load_seconds") == 2


def test_a_wait_that_ends_in_an_error_counts_nothing() -> None:
    """A client that left waited for nothing."""
    tallies, lease = Tallies(lambda: ()), Taken()
    admit(tallies, lease)
    with pytest.raises(QueueFullError), tallies.waiting("m", lease):  # type: ignore[arg-type]
        raise QueueFullError("gone")
    assert count(tallies, "queue_seconds") == 0
