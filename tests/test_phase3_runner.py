"""`phase3.runner`: what becomes of each check, and of the report when something goes wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phase3 import evidence, result
from phase3.case import Case
from phase3.checks import CHECKS, Check
from phase3.outcome import Outcome, at_least, at_most, failed, passed, skipped, unfit
from phase3.plan import FULL, QUICK, soak
from phase3.report.csv_row import FACTS
from phase3.result import Finding, Report, exit_code, verdict
from phase3.runner import run
from phase3.target import Environment, TargetError
from tests.fake_target import ENVIRONMENT, FakeTarget

UNLOADED = replace(ENVIRONMENT, engine=None, context_tokens=None, slots=None)


def check(name: str, act: Callable[[Case], Outcome] = lambda _: passed()) -> Check:
    return Check(name, name.title(), act)


def raising(error: BaseException) -> Callable[[Case], Outcome]:
    def act(_: Case) -> Outcome:
        raise error

    return act


def giving(name: str, outcome: Outcome) -> Check:
    return check(name, lambda _: outcome)


class Heard:
    """A listener that writes everything down."""

    def __init__(self) -> None:
        self.done: list[float] = []
        self.findings: list[Finding] = []

    def begins(self, check: Check, done: float) -> None:
        """See `phase3.runner.Listener`."""
        self.done.append(done)

    def advances(self, done: float) -> None:
        """See `phase3.runner.Listener`."""
        self.done.append(done)

    def ends(self, finding: Finding) -> None:
        """See `phase3.runner.Listener`."""
        self.findings.append(finding)


def test_every_check_becomes_a_finding_under_its_name() -> None:
    """In the order of the list, with value, limit and unit as the check said."""
    report = run(
        FakeTarget(), QUICK, checks=[check("a"), check("b", lambda _: at_most(3.0, 2.0, "s", "seen", "do"))]
    )
    assert [(found.check, found.title, found.verdict) for found in report.findings] == [
        ("a", "A", "pass"),
        ("b", "B", "fail"),
    ]
    assert report.findings[1] == Finding("b", "B", "fail", 3.0, "s", 2.0, "at most", "seen", "do")
    assert exit_code(report) == 1


def test_an_error_of_the_target_is_a_failure_of_the_model() -> None:
    """The error's words and its hint are the finding's, and the run goes on."""
    report = run(
        FakeTarget(),
        QUICK,
        checks=[check("a", raising(TargetError("the worker died", hint="see the log"))), check("b")],
    )
    assert report.findings[0].verdict == "fail"
    assert (report.findings[0].detail, report.findings[0].diagnosis) == ("the worker died", "see the log")
    assert report.findings[1].verdict == "pass"


@pytest.mark.parametrize("code", ["does_not_fit", "download_failed", "memory_pressure", "connection_failed"])
def test_what_the_machine_lacks_is_not_the_models_failure(code: str) -> None:
    """Too little memory, no network, no daemon: the model was not judged, and the exit code is 2."""
    report = run(FakeTarget(), QUICK, checks=[check("a", raising(TargetError("no", code=code)))])
    assert report.findings[0].verdict == "unfit" and exit_code(report) == 2


def test_an_exception_in_a_check_is_a_defect_of_the_harness() -> None:
    """It is named with its place, the other checks still run, and the exit code is 3."""
    report = run(FakeTarget(), QUICK, checks=[check("a", raising(KeyError("x"))), check("b")])
    assert report.findings[0].verdict == "error" and exit_code(report) == 3
    assert "KeyError: 'x' (test_phase3_runner.py:" in (report.findings[0].detail or "")
    assert report.findings[1].verdict == "pass"


def test_a_model_that_does_not_load_is_not_asked_anything() -> None:
    """Every later check is skipped, but for those that need no model."""
    checks = [check("container"), check("load", lambda _: failed("no")), check("stop"), check("environment")]
    report = run(FakeTarget(), QUICK, checks=checks)
    assert [found.verdict for found in report.findings] == ["pass", "fail", "skip", "pass"]


def test_ctrl_c_leaves_a_valid_partial_report(tmp_path: Path) -> None:
    """What was found until then is in it, it can be read back, and it proves nothing."""
    report = run(
        FakeTarget(), QUICK, checks=[check("a"), check("b", raising(KeyboardInterrupt())), check("c")]
    )
    assert report.partial and [found.check for found in report.findings] == ["a"]
    result.save(report, tmp_path / "report.json")
    assert result.load(tmp_path / "report.json") == report
    assert exit_code(report) == 2
    assert evidence.record_of(report, tmp_path / "report.json") is None


@pytest.mark.parametrize("was_loaded", [True, False])
def test_the_target_is_left_as_it_was_found(was_loaded: bool) -> None:
    """Loaded before, loaded after; and the other way round, whatever the checks did."""
    states = iter([ENVIRONMENT if was_loaded else UNLOADED])
    now = UNLOADED if was_loaded else ENVIRONMENT

    def environment() -> Environment:
        return next(states, now)

    target = FakeTarget(environment=environment)
    run(target, QUICK, checks=[check("a")])
    assert ("load" if was_loaded else "unload") in target.events


def test_progress_grows_from_nothing_to_the_whole() -> None:
    """Parts of a check count as much as the check's cost does."""
    heard = Heard()

    def act(case: Case) -> Outcome:
        case.progress(0.5)
        return passed()

    checks = [Check("a", "A", act, lambda _: 1.0), Check("b", "B", act, lambda _: 3.0)]
    run(FakeTarget(), QUICK, checks=checks, listener=heard)
    assert heard.done == [0.0, 0.125, 0.25, 0.625]
    assert [found.check for found in heard.findings] == ["a", "b"]


def test_a_report_says_what_is_missing_for_its_certificate() -> None:
    """Without engine, weights or context nobody can repeat the run."""
    report = run(
        FakeTarget(environment=replace(ENVIRONMENT, weights_sha256=None)), QUICK, checks=[check("a")]
    )
    assert report.environment["certified"] is False
    assert report.environment["not_known"] == ("weights_sha256",)
    assert run(FakeTarget(), QUICK, checks=[check("a")]).environment["certified"] is True


def test_every_fact_of_the_csv_row_is_in_the_record() -> None:
    """A column that nobody fills would be empty for ever."""
    report = run(FakeTarget(), QUICK, checks=[check("a")])
    assert set(FACTS) <= report.environment.keys()


def test_every_check_of_the_list_has_a_name_of_its_own_and_a_cost() -> None:
    """In every mode the costs are positive or nothing, never less."""
    assert len({check.name for check in CHECKS}) == len(CHECKS) == 21
    assert all(check.cost(plan) >= 0 for check in CHECKS for plan in (QUICK, FULL, soak(2)))


@pytest.mark.parametrize(
    ("outcome", "wanted"),
    [
        (at_most(2.0, 2.0, "s"), "pass"),
        (at_most(2.1, 2.0, "s"), "fail"),
        (at_least(2.0, 2.0, "s"), "pass"),
        (at_least(1.9, 2.0, "s"), "fail"),
        (skipped("why"), "skip"),
        (unfit("why"), "unfit"),
    ],
)
def test_a_limit_is_within_itself(outcome: Outcome, wanted: str) -> None:
    """A value at its limit passes."""
    assert outcome.verdict == wanted


class TestEvidence:
    """`phase3.evidence`: what a report proves."""

    @staticmethod
    def record(tmp_path: Path, *outcomes: tuple[str, Outcome], mode: str = "full") -> dict[str, Any] | None:
        """Return the record of a run with these outcomes."""
        plan = FULL if mode == "full" else QUICK
        report: Report = run(FakeTarget(), plan, checks=[giving(name, outcome) for name, outcome in outcomes])
        result.save(report, tmp_path / "report.json")
        return evidence.record_of(report, tmp_path / "report.json")

    @pytest.mark.parametrize(
        ("failing", "status"),
        [
            (None, "verified"),
            ("load", "incompatible"),
            ("coherence", "incompatible"),
            ("speed", "experimental"),
            ("leak_cycles", "experimental"),
        ],
    )
    def test_the_status_says_what_a_full_run_found(
        self, tmp_path: Path, failing: str | None, status: str
    ) -> None:
        """All passed: verified. It does not load or makes no sense: incompatible. Else: experimental."""
        outcomes = [
            ("load", passed()),
            ("coherence", passed()),
            ("speed", passed()),
            ("leak_cycles", passed()),
        ]
        record = self.record(tmp_path, *((n, failed("bad") if n == failing else o) for n, o in outcomes))
        assert record is not None and record["status"] == status
        assert bool(record["issue"]) == (failing is not None)

    def test_a_quick_run_gives_no_status(self, tmp_path: Path) -> None:
        """It measured, but did not judge everything."""
        record = self.record(tmp_path, ("load", passed()), mode="quick")
        assert record is not None and record["status"] is None

    @pytest.mark.parametrize("outcome", [unfit("hot"), Outcome("error", detail="bug")])
    def test_what_was_not_judged_is_no_evidence(self, tmp_path: Path, outcome: Outcome) -> None:
        """An unfit machine or a defect of the harness proves nothing."""
        assert self.record(tmp_path, ("load", passed()), ("environment", outcome)) is None

    def test_the_record_is_tied_to_its_report_and_its_conditions(self, tmp_path: Path) -> None:
        """It names the SHA-256 of the report's file, and what must stay equal for it to count."""
        record = self.record(tmp_path, ("load", passed()))
        assert record is not None
        assert record["report_sha256"] == hashlib.sha256((tmp_path / "report.json").read_bytes()).hexdigest()
        assert (
            record["engine"] == ENVIRONMENT.engine and record["weights_sha256"] == ENVIRONMENT.weights_sha256
        )


def test_verdicts_rank_as_exit_codes_do() -> None:
    """An error of the harness outweighs a failed gate, and that an unfit machine."""
    order = [passed(), unfit("x"), failed("x"), Outcome("error")]
    codes = []
    for n in range(len(order)):
        report = run(
            FakeTarget(),
            QUICK,
            checks=[giving(f"c{i}", outcome) for i, outcome in enumerate(order[: n + 1])],
        )
        codes.append(exit_code(report))
        assert verdict(report) == order[n].verdict
    assert codes == [0, 2, 1, 3]
