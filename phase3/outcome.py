"""The outcome of a check: what it measured, against which limit, and how that ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from phase3.result import Finding, Verdict


@dataclass(frozen=True)
class Outcome:
    """What a check says; the fields are those of `Finding`, which adds the check's name and title."""

    verdict: Verdict
    value: float | None = None
    unit: str | None = None
    limit: float | None = None
    limit_is: Literal["at most", "at least"] | None = None
    detail: str | None = None
    diagnosis: str | None = None

    def finding(self, check: str, title: str) -> Finding:
        """Return it under the name of its check."""
        return Finding(check, title, **vars(self))


def at_most(
    value: float, limit: float, unit: str, detail: str | None = None, diagnosis: str | None = None
) -> Outcome:
    """Pass while *value* is no more than *limit*; the diagnosis is kept for the failure."""
    if value <= limit:
        return Outcome("pass", value, unit, limit, "at most", detail)
    return Outcome("fail", value, unit, limit, "at most", detail, diagnosis)


def at_least(
    value: float, limit: float, unit: str, detail: str | None = None, diagnosis: str | None = None
) -> Outcome:
    """Pass while *value* is no less than *limit*; the diagnosis is kept for the failure."""
    if value >= limit:
        return Outcome("pass", value, unit, limit, "at least", detail)
    return Outcome("fail", value, unit, limit, "at least", detail, diagnosis)


def passed(detail: str | None = None, value: float | None = None, unit: str | None = None) -> Outcome:
    """Pass something that has no limit."""
    return Outcome("pass", value, unit, detail=detail)


def failed(detail: str, diagnosis: str | None = None) -> Outcome:
    """Fail something that has no limit."""
    return Outcome("fail", detail=detail, diagnosis=diagnosis)


def skipped(why: str) -> Outcome:
    """Say that the check does not apply to this model, target or plan."""
    return Outcome("skip", detail=why)


def unfit(why: str, diagnosis: str | None = None) -> Outcome:
    """Say that this machine, as it is now, cannot answer."""
    return Outcome("unfit", detail=why, diagnosis=diagnosis)
