"""The runner: every check of a plan, one after the other, into a report that is whole at any moment."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Protocol

from phase3.case import Case
from phase3.checks import CHECKS, Check
from phase3.outcome import Outcome, skipped, unfit
from phase3.plan import Plan
from phase3.record import record_of
from phase3.result import Finding, Report
from phase3.target import Environment, Target, TargetError
from phase3.watch import MemoryWatch

# What the machine, the network or the installation lacks says nothing about the model.
_NOT_THE_MODELS = frozenset(
    {
        "backend_not_available",
        "connection_failed",
        "does_not_fit",
        "download_failed",
        "draining",
        "insufficient_storage",
        "memory_pressure",
        "missing_dependency",
        "unauthorized",
    }
)
_WITHOUT_MODEL = frozenset({"load", "container", "environment"})


class Listener(Protocol):
    """Who is told how the run goes."""

    def begins(self, check: Check, done: float) -> None:
        """A check begins; *done* is the part of the whole, 0 to 1, that lies behind."""

    def advances(self, done: float) -> None:
        """The running check got on."""

    def ends(self, finding: Finding) -> None:
        """A check ended."""


class Silent:
    """Tells nobody."""

    def begins(self, check: Check, done: float) -> None:
        """See `Listener`."""

    def advances(self, done: float) -> None:
        """See `Listener`."""

    def ends(self, finding: Finding) -> None:
        """See `Listener`."""


def run(
    target: Target,
    plan: Plan,
    *,
    checks: Sequence[Check] = CHECKS,
    listener: Listener | None = None,
    keep: Callable[[Case], None] = lambda _: None,
) -> Report:
    """Run *checks* on *target* and report; Ctrl-C ends it early, with a partial report.

    A target that was loaded before is loaded after, and the other way round.

    Args:
        keep: is given the case at the end, with the answers that the report does not hold.

    Raises:
        TargetError: the target cannot even say what it is.
    """
    started_at = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    case = Case(target, plan, before=target.environment())
    findings: list[Finding] = []
    partial = False
    try:
        with MemoryWatch(case):
            _run_all(case, checks, findings, listener or Silent())
    except KeyboardInterrupt:
        partial = True
    _restore(case)
    keep(case)
    return Report(
        schema_version=1,
        model=target.model,
        variant=target.variant,
        started_at=started_at,
        mode=plan.mode,
        environment=record_of(case.before, case.loaded, _environment(case)),
        findings=tuple(findings),
        benchmark=tuple(case.rows),
        series={name: tuple(points) for name, points in case.series.items()},
        roofline=case.roofline,
        duration_s=case.elapsed_s(),
        partial=partial,
    )


def _run_all(case: Case, checks: Sequence[Check], findings: list[Finding], listener: Listener) -> None:
    costs = [check.cost(case.plan) for check in checks]
    whole = sum(costs) or 1.0
    is_loaded = True
    for at, check in enumerate(checks):
        behind = sum(costs[:at])

        def progress(part: float, behind: float = behind, cost: float = costs[at]) -> None:
            listener.advances((behind + cost * min(1.0, part)) / whole)

        case.progress = progress
        listener.begins(check, behind / whole)
        if is_loaded or check.name in _WITHOUT_MODEL:
            outcome = _judged(check, case)
        else:
            outcome = skipped("the model did not load")
        finding = outcome.finding(check.name, check.title)
        is_loaded = is_loaded and not (check.name == "load" and outcome.verdict != "pass")
        findings.append(finding)
        listener.ends(finding)


def _judged(check: Check, case: Case) -> Outcome:
    """Run one check: the target's errors are the model's failures, all others are the harness's own."""
    try:
        return check.run(case)
    except TargetError as error:
        if error.code in _NOT_THE_MODELS:
            return unfit(error.message, error.hint)
        return Outcome("fail", detail=error.message, diagnosis=error.hint)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
        return Outcome(
            "error",
            detail=f"{type(error).__name__}: {error} ({where})",
            diagnosis="This is a defect of the harness, not of the model: please report it.",
        )


def _restore(case: Case) -> None:
    """Leave the target loaded or not, as it was found."""
    was_loaded = case.before.engine is not None
    try:
        is_loaded = case.target.environment().engine is not None
        if was_loaded and not is_loaded:
            case.target.load()
        elif is_loaded and not was_loaded:
            case.target.unload()
    except TargetError:
        return  # the findings have said what is wrong with it


def _environment(case: Case) -> Environment:
    try:
        return case.target.environment()
    except TargetError:
        return case.loaded or case.before
