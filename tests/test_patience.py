"""A reading that may hang."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from inference.device import Patience
from tests.conftest import DEADLINE_S, wait_until

Make = Callable[[Callable[[], int]], "Patience[int]"]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Patience[int]] = []

    def build(read: Callable[[], int], limit_s: float = DEADLINE_S) -> Patience[int]:
        made.append(Patience(read, limit_s=limit_s))
        return made[-1]

    yield build
    for patience in made:
        patience.close()


def test_every_get_is_a_new_reading(make: Make) -> None:
    """A reading is taken when it is asked for, not before."""
    numbers = iter(range(10))
    patience = make(lambda: next(numbers))
    assert [patience.get(), patience.get()] == [0, 1]


def test_hanging_reading_holds_up_nobody() -> None:
    """Whoever asks while a driver hangs hears nothing, in time; all of them cost one thread."""
    release, entered = threading.Event(), threading.Event()

    def hang() -> int:
        entered.set()
        release.wait(DEADLINE_S)
        return 7

    patience = Patience(hang, limit_s=0.05)
    assert [patience.get() for _ in range(3)] == [None] * 3
    assert entered.is_set()
    assert sum(thread.name == "telemetry" for thread in threading.enumerate()) == 1
    release.set()
    patience.close()


def test_reading_that_came_to_itself_serves_again() -> None:
    """After a hang a later question gets a later answer, never the old one."""
    release = threading.Event()
    numbers = iter(range(10))

    def sometimes() -> int:
        number = next(numbers)
        if number == 0:
            release.wait(DEADLINE_S)
        return number

    patience = Patience(sometimes, limit_s=0.05)
    assert patience.get() is None
    release.set()
    wait_until(lambda: patience.get() not in (None, 0), "a later answer")
    patience.close()


def test_closed_patience_reads_no_more(make: Make) -> None:
    """After close there is no reading and no thread."""
    patience = make(lambda: 1)
    assert patience.get() == 1
    patience.close()
    assert patience.get() is None
    assert not any(thread.name == "telemetry" for thread in threading.enumerate())
