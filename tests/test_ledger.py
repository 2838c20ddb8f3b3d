"""Who may use which bytes."""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from inference.errors import MemoryPressureError
from inference.runtime.ledger import Ledger

KEYS = st.sampled_from(["a", "b", "c", "d"])
SIZES = st.integers(0, 60)


def test_refused_reservation_changes_nothing() -> None:
    """What does not fit is refused with its numbers, and all that was promised before stays promised."""
    ledger = Ledger()
    ledger.reserve("a", 60, 100)
    with pytest.raises(MemoryPressureError) as caught:
        ledger.reserve("b", 41, 100)
    assert caught.value.details == {"needed_bytes": 41, "free_bytes": 40, "budget_bytes": 100}
    assert caught.value.hint and caught.value.retry_after_s
    assert list(ledger.snapshot()) == ["a"]
    ledger.reserve("b", 40, 100)
    assert ledger.held_bytes == 100


def test_observation_replaces_the_reservation() -> None:
    """Once a worker has loaded, what it holds counts, and the error of the prediction is known."""
    ledger = Ledger()
    ledger.reserve("a", 60, 100)
    ledger.observe("a", 50)
    assert ledger.held_bytes == 50
    assert ledger.snapshot()["a"].error == pytest.approx(0.2)
    ledger.reserve("b", 50, 100)


def test_growth_replaces_the_own_reservation() -> None:
    """A key that reserves again competes with the others, not with itself."""
    ledger = Ledger()
    ledger.reserve("a", 60, 100)
    ledger.reserve("a", 90, 100)
    with pytest.raises(MemoryPressureError):
        ledger.reserve("a", 101, 100)
    assert ledger.held_bytes == 90


def test_grow_adds_to_the_promise() -> None:
    """A worker asks for more before it takes it; what does not fit is refused and changes nothing."""
    ledger = Ledger()
    ledger.reserve("a", 60, 100)
    ledger.grow("a", 30, 100)
    assert ledger.held_bytes == 90
    with pytest.raises(MemoryPressureError):
        ledger.grow("a", 11, 100)
    assert ledger.snapshot()["a"].promised_bytes == 90


def test_grow_after_a_release_promises_nothing() -> None:
    """A key that is gone stays gone."""
    ledger = Ledger()
    ledger.grow("a", 30, 100)
    assert ledger.snapshot() == {}


def test_excess_counts_and_is_settled_by_grow() -> None:
    """More than was promised counts at once, stays an excess while it does not fit, and is granted later."""
    ledger = Ledger()
    ledger.reserve("a", 60, 100)
    ledger.reserve("b", 40, 100)
    ledger.observe("a", 75)
    assert ledger.excesses() == {"a": 15}
    assert ledger.held_bytes == 115
    with pytest.raises(MemoryPressureError):
        ledger.grow("a", 15, 100)
    with pytest.raises(MemoryPressureError):
        ledger.reserve("c", 0, 100)
    ledger.release("b")
    ledger.grow("a", 15, 100)
    assert ledger.excesses() == {}
    assert ledger.snapshot()["a"].error == pytest.approx((60 - 75) / 75)


def test_release_returns_what_was_held() -> None:
    """A release gives back what counted; a second one, or an observation after it, does nothing."""
    ledger = Ledger()
    ledger.reserve("a", 60, 100)
    ledger.observe("a", 70)
    assert ledger.release("a") == 70
    assert ledger.release("a") == 0
    ledger.observe("a", 70)
    assert ledger.held_bytes == 0


def test_observation_above_the_budget_refuses_the_next() -> None:
    """Memory in use is a fact even beyond the budget; nothing more is promised then."""
    ledger = Ledger()
    ledger.reserve("a", 60, 100)
    ledger.observe("a", 130)
    with pytest.raises(MemoryPressureError):
        ledger.reserve("b", 0, 100)


def test_threads_never_promise_the_same_bytes() -> None:
    """Of many threads that reserve at once exactly as many succeed as there is room for."""
    ledger, granted, start = Ledger(), [], threading.Barrier(16)

    def reserve(index: int) -> None:
        start.wait(timeout=10)
        for step in range(50):
            try:
                ledger.reserve(f"{index}-{step}", 1, 300)
                granted.append(index)
            except MemoryPressureError:
                continue

    threads = [threading.Thread(target=reserve, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == ledger.held_bytes == 300


class Admission(RuleBasedStateMachine):
    """Any sequence of reservations, honest observations and releases, against a plain dictionary."""

    BUDGET = 100

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.model: dict[str, int] = {}

    @rule(key=KEYS, size=SIZES)
    def reserve(self, key: str, size: int) -> None:
        """A reservation is granted exactly when it fits beside the others."""
        fits = sum(v for k, v in self.model.items() if k != key) + size <= self.BUDGET
        if fits:
            self.ledger.reserve(key, size, self.BUDGET)
            self.model[key] = size
        else:
            with pytest.raises(MemoryPressureError):
                self.ledger.reserve(key, size, self.BUDGET)

    @rule(key=KEYS, share=st.integers(0, 100))
    def observe(self, key: str, share: int) -> None:
        """A worker that keeps its promise holds at most what it reserved."""
        if key in self.model:
            self.model[key] = self.model[key] * share // 100
            self.ledger.observe(key, self.model[key])

    @rule(key=KEYS)
    def release(self, key: str) -> None:
        """A release gives back exactly what counted."""
        assert self.ledger.release(key) == self.model.pop(key, 0)

    @invariant()
    def never_over_budget(self) -> None:
        """The sum of all promises stays within the budget and equals the model's."""
        assert self.ledger.held_bytes == sum(self.model.values()) <= self.BUDGET


TestAdmission = Admission.TestCase
TestAdmission.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
