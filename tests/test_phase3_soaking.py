"""The soak, on a clock that runs as fast as the test does."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from phase3 import watch
from phase3.case import Case
from phase3.checks import memory, soaking
from phase3.measured import Ask
from phase3.plan import soak
from phase3.target import Reply, TargetError
from tests.fake_target import ENVIRONMENT
from tests.memory_machine import Machine


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readings follow one another at once."""
    monkeypatch.setattr(watch, "_READ_EVERY_S", 0.0)


class TestSoak:
    """A mixed load for a while."""

    PLAN = replace(soak(1), soak_s=20.0)

    @pytest.fixture(autouse=True)
    def _clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every look at the clock is a twentieth of a second: 20 seconds pass at once."""
        looks = iter(range(10**9))
        monkeypatch.setattr(soaking, "time", SimpleNamespace(monotonic=lambda: next(looks) / 20))

    def _case(self, machine: Machine, **options: Any) -> Case:
        case = machine.case(**options)
        case.plan = self.PLAN
        return case

    def test_mixes_everything_and_finds_nothing(self) -> None:
        """Lengths, streams, several at once and requests that are left: no failure, no growth."""
        case = self._case(Machine())
        found = memory.soak(case)
        assert (found.verdict, found.value, found.unit) == ("pass", 0, "failures"), found
        assert "in an hour of this" in (found.detail or "")
        asked, events = case.target.asked, case.target.events  # type: ignore[attr-defined]
        assert {ask.stream for ask in asked} == {True, False} and "cancel_after" in events
        assert (
            len({ask.max_tokens for ask in asked}) > 10 and len(case.series["worker_bytes_over_soak_s"]) > 20
        )

    def test_the_mix_is_the_same_every_time(self) -> None:
        """A failure can be had again."""
        runs = []
        for _ in range(2):
            case = self._case(Machine(), slots=1)
            case.loaded = replace(case.loaded or ENVIRONMENT, slots=1)
            memory.soak(case)
            runs.append([repr(ask) for ask in case.target.asked])  # type: ignore[attr-defined]
        shorter = min(map(len, runs))
        assert runs[0][:shorter] == runs[1][:shorter] and shorter > 50

    @pytest.mark.parametrize("slots", [1, 8])
    def test_every_request_fits_the_context(self, slots: int) -> None:
        """Also the smallest."""
        case = self._case(Machine(), context_tokens=256, slots=slots)
        assert memory.soak(case).verdict == "pass"
        longest = max(len((ask.messages or [{}])[0]["content"].split()) for ask in case.target.asked)  # type: ignore[attr-defined]
        assert longest <= 32

    def test_a_failure_is_counted_and_told(self) -> None:
        """Every seventh request fails: the first words of it are in the report."""
        machine = Machine()
        case = self._case(machine)
        good = machine._answer

        def flaky(ask: Ask) -> Reply:
            if machine.requests % 7 == 6:
                machine.requests += 1
                raise TargetError("the worker was killed by SIGSEGV")
            return good(ask)

        case.target._answer = flaky  # type: ignore[attr-defined]
        found = memory.soak(case)
        assert found.verdict == "fail" and (found.value or 0) > 3 and "SIGSEGV" in (found.detail or "")

    def test_a_slot_that_stays_taken_is_a_failure(self) -> None:
        """A request that was left may not hold it."""
        case = self._case(Machine())
        case.target._cancel = lambda _chunks, _ask: None  # type: ignore[attr-defined]
        assert memory.soak(case).verdict == "fail"

    def test_an_answer_that_ended_before_it_was_left_is_no_failure(self) -> None:
        """A fast model is no worse for it."""
        case = self._case(Machine())

        def ended(_chunks: int, _ask: Ask) -> float:
            raise TargetError("the text had ended", hint="ask for more tokens")

        case.target._cancel = ended  # type: ignore[attr-defined]
        assert memory.soak(case).verdict == "pass"

    def test_growth_is_found(self) -> None:
        """100 kB for each request: the value is the slope."""
        found = memory.soak(self._case(Machine(leaks=100_000)))
        assert found.verdict == "fail" and found.unit == "bytes/request"
        assert found.value == pytest.approx(100_000, rel=0.1) and "an hour of this" in (found.detail or "")
