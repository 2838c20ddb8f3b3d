"""The JUnit XML report: one test case per check, for the CI that shows such files."""

from __future__ import annotations

from xml.etree import ElementTree as ET  # writes only; nothing is parsed here

from phase3.report import words
from phase3.report.markup import clean
from phase3.result import Finding, Report

_CHILDREN = {"fail": "failure", "error": "error", "unfit": "error", "skip": "skipped"}


def junit(report: Report) -> str:
    """Return the report as JUnit XML.

    A check that this machine could not answer is an error, as the exit code is not 0 either.
    """
    verdicts = [finding.verdict for finding in report.findings]
    counts = {
        "tests": str(len(verdicts)),
        "failures": str(verdicts.count("fail")),
        "errors": str(verdicts.count("error") + verdicts.count("unfit")),
        "skipped": str(verdicts.count("skip")),
        "time": f"{report.duration_s or 0.0:.3f}",
    }
    name = clean(f"{report.model} {report.variant}")
    top = ET.Element("testsuites", {"name": "JetLLM", **counts})
    suite = ET.SubElement(
        top, "testsuite", {"name": name, **counts, "timestamp": report.started_at.removesuffix("Z")}
    )
    properties = ET.SubElement(suite, "properties")
    for label, fact in (
        ("mode", report.mode),
        ("partial", str(report.partial).lower()),
        *words.facts(report.environment),
    ):
        ET.SubElement(properties, "property", {"name": clean(label), "value": clean(fact)})
    for finding in report.findings:
        _add_case(suite, name, finding)
    ET.indent(top)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(top, encoding="unicode") + "\n"


def _add_case(suite: ET.Element, classname: str, finding: Finding) -> None:
    titled = {"classname": classname, "name": clean(f"{finding.check}: {finding.title}"), "time": "0.000"}
    case = ET.SubElement(suite, "testcase", titled)
    measured = ", limit ".join(part for part in (words.value(finding), words.limit(finding)) if part)
    said = [clean(part) for part in (measured, finding.detail, finding.diagnosis) if part]
    if finding.verdict in _CHILDREN:
        child = ET.SubElement(
            case, _CHILDREN[finding.verdict], {"message": said[0] if said else finding.verdict}
        )
        if finding.verdict != "skip":
            child.set("type", finding.verdict)
        child.text = "\n".join(said)
    elif said:
        ET.SubElement(case, "system-out").text = "\n".join(said)
