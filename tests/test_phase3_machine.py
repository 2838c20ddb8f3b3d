"""The machine's checks: each reason not to judge, and the container."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from phase3.checks.machine import container, environment
from phase3.outcome import Outcome
from phase3.target import Environment, Registered, TargetError
from tests.fake_target import ENVIRONMENT, REGISTERED, FakeTarget, case_of

ORIN = replace(
    ENVIRONMENT,
    board="orin-nano-8gb-super",
    soc="tegra234",
    l4t="36.4.3",
    power_mode="25W",
    in_container=True,
    image="dustynv/mlc:r36.4.0",
)


def _environment(
    before: dict[str, Any] | None = None,
    now: dict[str, Any] | None = None,
    of: Environment = ENVIRONMENT,
    registered: Registered = REGISTERED,
) -> Outcome:
    target = FakeTarget(environment=replace(of, **(now or {})), registered=registered)
    case = case_of(target)
    case.before = replace(of, **(before or {}))
    return environment(case)


class TestTheEnvironment:
    """Unfit for one reason after the other, never failed."""

    @pytest.mark.parametrize("of", [ENVIRONMENT, ORIN], ids=["x86", "jetson"])
    def test_a_calm_machine_is_fit(self, of: Environment) -> None:
        """Nothing speaks against it; the detail says what was looked at."""
        found = _environment(of=of)
        assert found.verdict == "pass" and "load average before 0.1" in (found.detail or "")

    @pytest.mark.parametrize(
        ("before", "now", "word"),
        [
            ({"load_average_1m": 4.1}, {}, "4.1 tasks wanted the 2 cores"),
            ({"throttled": True, "throttled_by": ("cpu-throttle",)}, {}, "cpu-throttle before the start"),
            ({}, {"throttled": True}, "held down at the end"),
            ({"over_current_events": 3}, {"over_current_events": 5}, "2 over-current events"),
            ({"swap_used_bytes": 10**9}, {"swap_used_bytes": 1_065_000_000}, "65 MB were swapped out"),
            ({}, {"hottest_celsius": 95.5}, "96 degrees"),
            ({"engine": None, "memory_available_bytes": 4 * 10**8}, {}, "400 MB of memory were free"),
            ({"power_mode": "15W"}, {"power_mode": "25W"}, "from 15W to 25W"),
        ],
        ids=["busy", "throttled", "throttled later", "current", "swap", "hot", "full", "mode"],
    )
    def test_unfit_for_one_reason(self, before: dict[str, Any], now: dict[str, Any], word: str) -> None:
        """The reason is told, and what to do about it."""
        found = _environment(before, now)
        assert found.verdict == "unfit" and word in (found.detail or "") and found.diagnosis
        assert ";" not in (found.detail or ""), "one thing is wrong, one is told"

    @pytest.mark.parametrize(
        ("before", "now"),
        [
            ({"load_average_1m": 3.9}, {"load_average_1m": 64.0}),
            ({"swap_used_bytes": 3 * 10**9}, {"swap_used_bytes": 3 * 10**9 + 63_000_000}),
            ({"over_current_events": 7}, {"over_current_events": 7}),
            ({"memory_available_bytes": 10**8}, {"memory_available_bytes": 10**7}),
            ({"load_average_1m": None, "swap_used_bytes": None}, {"hottest_celsius": None}),
        ],
        ids=["the run's own load", "old swap", "old events", "loaded before", "unknown"],
    )
    def test_fit_although(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        """What is the run's own, is over, or is not known, is no reason."""
        assert _environment(before, now).verdict == "pass"

    def test_a_jetson_has_a_power_mode(self) -> None:
        """Its speed follows the mode: without it nothing is comparable."""
        unknown = {"power_mode": None}
        found = _environment(unknown, unknown, of=ORIN)
        assert found.verdict == "unfit" and "power mode is not known" in (found.detail or "")

    def test_all_reasons_are_told(self) -> None:
        """Whoever mends one need not run it all again to hear of the next."""
        found = _environment({"load_average_1m": 9.0}, {"throttled": True})
        assert found.verdict == "unfit" and (found.detail or "").count(";") == 1

    def test_a_target_that_is_gone_is_unfit(self) -> None:
        """What killed it is another check's finding."""

        def gone() -> Environment:
            raise TargetError("http://127.0.0.1:1 does not answer", hint="start it: jetllm serve")

        case = case_of(FakeTarget())
        case.target = FakeTarget(environment=gone)
        found = environment(case)
        assert (found.verdict, found.diagnosis) == ("unfit", "start it: jetllm serve")


class TestTheContainer:
    """The image that runs, the image that is named, and the board's L4T."""

    @pytest.mark.parametrize(
        ("here", "named", "verdict", "word"),
        [
            ({}, "dustynv/mlc:r36.4.0", "pass", "L4T 36.4.3"),
            ({"image": "dustynv/mlc:0.20.0-r36.4.0"}, "dustynv/mlc:r36.4.0", "pass", "same L4T line"),
            ({"l4t": "36.5.0"}, "dustynv/mlc:r36.4.0", "pass", "36.5.0"),
            ({"l4t": None}, "dustynv/mlc:r36.4.0", "pass", "unknown"),
            (
                {"image": "dustynv/mlc:0.1.2-r36.3.0"},
                "dustynv/mlc:r36.4.0",
                "fail",
                "this machine has L4T 36.4.3",
            ),
            ({"l4t": "38.2"}, "dustynv/mlc:r36.4.0", "fail", "built for L4T 36.4 and 36.5"),
            ({"l4t": "36.3.0"}, "dustynv/mlc:r36.4.0", "fail", "L4T 36.3.0"),
            ({"image": "my/own:latest"}, "dustynv/mlc:r36.4.0", "skip", "cannot be compared"),
            ({"image": None}, "dustynv/mlc:r36.4.0", "skip", "not known"),
            ({"in_container": False, "image": None}, "dustynv/mlc:r36.4.0", "skip", "no container"),
            ({"board": None, "l4t": None}, "dustynv/mlc:r36.4.0", "skip", "no Jetson"),
            ({}, None, "skip", "names no container"),
        ],
    )
    def test_judges_by_the_image_that_runs(
        self, here: dict[str, Any], named: str | None, verdict: str, word: str
    ) -> None:
        """The named image, or another of its line, passes; one for another L4T fails; else it is skipped."""
        case = case_of(FakeTarget(registered=replace(REGISTERED, container=named)))
        case.before = replace(ORIN, **here)
        found = container(case)
        assert (found.verdict, word in (found.detail or "")) == (verdict, True), found
        assert bool(found.diagnosis) is (verdict == "fail")
