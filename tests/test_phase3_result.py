"""The harness's result: its JSON, its schema, its verdict and its exit code.

After a change of the types: ``python -m tests.test_phase3_result`` writes phase3/report.schema.json anew.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from phase3 import result
from phase3.result import Finding, Measured, Report, ReportError, Row, measured
from tests import report_samples
from tests.test_registry_schema import objects, violations

SCHEMA_FILE = Path(__file__).parent.parent / "phase3" / "report.schema.json"


def schema_text() -> str:
    """What phase3/report.schema.json should hold."""
    return json.dumps(result.schema(), indent=2) + "\n"


def data() -> dict[str, Any]:
    """The JSON form of a healthy report."""
    found: dict[str, Any] = json.loads(result.dumps(report_samples.healthy()))
    return found


def judged(*verdicts: result.Verdict, partial: bool = False) -> Report:
    findings = tuple(Finding(f"c{at}", "A check", verdict) for at, verdict in enumerate(verdicts))
    return dataclasses.replace(report_samples.minimal(), findings=findings, partial=partial)


@pytest.mark.parametrize("name", ["healthy", "broken", "minimal"])
def test_reads_back_what_it_wrote(name: str) -> None:
    """A report survives its JSON form unchanged, and the same report is the same text."""
    report: Report = getattr(report_samples, name)()
    assert result.from_dict(json.loads(result.dumps(report))) == report
    assert result.dumps(report) == result.dumps(getattr(report_samples, name)())


def test_saved_file_loads(tmp_path: Path) -> None:
    """A report is saved whole, with nothing left beside it, and a second save replaces the first."""
    path = tmp_path / "new" / "report.json"
    result.save(report_samples.broken(), path)
    result.save(report_samples.healthy(), path)
    assert result.load(path) == report_samples.healthy()
    assert [item.name for item in path.parent.iterdir()] == ["report.json"]


def test_text_that_is_no_unicode_is_saved(tmp_path: Path) -> None:
    """Half a surrogate pair in a model's name costs that character, not the report."""
    result.save(report_samples.hostile(), tmp_path / "r.json")
    assert result.load(tmp_path / "r.json").model.startswith("<script>")


def test_every_figure_comes_from_its_samples() -> None:
    """A summary is what its samples say; by hand: of 1 to 11, p90 is 10 and p99 10.9."""
    found = measured([float(n) for n in range(11, 0, -1)])
    assert (found.median, found.p90, found.min, found.max, found.n) == (6.0, 10.0, 1.0, 11.0, 11)
    assert found.p99 == pytest.approx(10.9)
    with pytest.raises(ValueError, match=r"median is 7\.0; its samples say 6\.0"):
        dataclasses.replace(found, median=7.0)


@pytest.mark.parametrize("samples", [[], [float("nan")], [1.0, float("inf")]])
def test_refuses_samples_that_are_no_measurement(samples: list[float]) -> None:
    """Nothing, and what is not finite, has no summary."""
    with pytest.raises(ValueError, match="expected"):
        measured(samples)


@pytest.mark.parametrize(
    ("report", "code"),
    [
        (judged("pass", "pass", "skip"), 0),
        (judged("pass", "fail"), 1),
        (judged("fail", "unfit", "pass"), 1),
        (judged("pass", "unfit"), 2),
        (judged("fail", "unfit", "error"), 3),
        (judged("pass", "fail", partial=True), 1),
        (judged("pass", partial=True), 2),
        (judged("skip"), 2),
        (judged(), 2),
    ],
)
def test_exit_code(report: Report, code: int) -> None:
    """3 for the harness's own error, 1 for a failed gate, 2 where nobody can say, 0 only for a full pass."""
    assert result.exit_code(report) == code


def test_the_shipped_schema_is_current() -> None:
    """phase3/report.schema.json is what the types say; see this file's docstring when it is not."""
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text()


def test_reports_keep_the_schema() -> None:
    """What the harness writes has no key, type or value that the shipped schema does not allow."""
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    for report in (report_samples.healthy(), report_samples.broken(), report_samples.minimal()):
        assert list(violations(json.loads(result.dumps(report)), schema, schema)) == []


def test_every_object_of_the_schema_is_closed() -> None:
    """An object has known keys, or a known type of value."""
    found = list(objects(result.schema()))
    assert len(found) > 6
    assert all("additionalProperties" in node for node in found)


DAMAGE: list[tuple[tuple[Any, ...], Any, str]] = [
    (("model",), 7, "$.model: expected a string, got 7"),
    (("mode",), "fast", "$.mode: expected 'quick' or 'full' or 'soak', got 'fast'"),
    (
        ("started_at",),
        "today",
        "$: started_at: expected a time in UTC such as 2026-11-21T16:00:00Z, got 'today'",
    ),
    (("partial",), 0, "$.partial: expected true or false, got 0"),
    (("novelty",), 1, "$: unknown key 'novelty'"),
    (("findings",), {}, "$.findings: expected an array, got an object of 0"),
    (("findings", 0, "verdict"), "fine", "$.findings[0].verdict: expected 'pass' or"),
    (("findings", 0, "limit_is"), None, "$.findings[0]: limit and limit_is: expected both or neither"),
    (("benchmark", 0, "concurrency"), 0, "$.benchmark[0]: concurrency: expected at least 1, got 0"),
    (("benchmark", 0, "concurrency"), True, "$.benchmark[0].concurrency: expected an integer, got True"),
    (("benchmark", 0, "itl_s", "median"), 0.5, "$.benchmark[0].itl_s: median is 0.5; its samples say 0.01"),
    (("benchmark", 0, "itl_s", "samples"), [], "$.benchmark[0].itl_s: expected at least one sample"),
    (("series", "worker_bytes_over_s", 1), [1.0], "$.series.worker_bytes_over_s[1]: expected 2 items"),
    (("series", "worker_bytes_over_s", 1, 0), 10**400, "[1][0]: expected a finite number, got an integer of"),
    (("roofline", "bytes_per_token"), 0, "$.roofline: bytes_per_token: expected a positive number, got 0.0"),
    (("environment", "device"), [[1]], "$.environment.device: expected a string or an integer or"),
]


@pytest.mark.parametrize(("path", "value", "message"), DAMAGE, ids=lambda value: None)
def test_names_what_is_wrong(path: tuple[Any, ...], value: Any, message: str) -> None:
    """A damaged report is refused with the place, what is there and what should be."""
    damaged = data()
    place = damaged
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ReportError) as caught:
        result.from_dict(damaged)
    assert message in caught.value.message


@pytest.mark.parametrize("key", ["model", "variant", "started_at", "mode", "environment"])
def test_misses_what_must_be_there(key: str) -> None:
    """A report without its model, variant, time, mode or environment is none."""
    with pytest.raises(ReportError, match=f"\\$.{key}: missing"):
        result.from_dict({name: item for name, item in data().items() if name != key})


@pytest.mark.parametrize("version", [0, 2, "1", 1.0, True, None])
def test_says_that_another_version_is_another_version(version: Any) -> None:
    """A report of another schema version is refused as such, before its content is looked at."""
    with pytest.raises(ReportError, match="this JetLLM reads version 1") as caught:
        result.from_dict({"schema_version": version, "all": "different"})
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff{}", "byte 0 is not UTF-8"),
        (b"[]", "not a report of JetLLM"),
        (b'{"models": {}}', "not a report of JetLLM"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"schema_version": 1, "schema_version": 1}', "names a key twice"),
        (b'{"schema_version": 1, "model": NaN}', "damaged report: $."),
        (b"1" * 5000, "not"),
    ],
)
def test_broken_and_foreign_files(tmp_path: Path, raw: bytes, message: str) -> None:
    """A file that is no report gives one clear error that names the file."""
    path = tmp_path / "old.json"
    path.write_bytes(raw)
    with pytest.raises(ReportError) as caught:
        result.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    """What is not there, and what cannot be written, is an error of the caller's."""
    with pytest.raises(ReportError, match="No such file"):
        result.load(tmp_path / "none.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="cannot be written"):
        result.save(report_samples.minimal(), tmp_path / "file" / "r.json")


def test_never_writes_what_is_not_json(tmp_path: Path) -> None:
    """A value that is not finite stops the report with its place, and leaves the old file."""
    path = tmp_path / "r.json"
    result.save(report_samples.minimal(), path)
    bad = dataclasses.replace(report_samples.minimal(), duration_s=float("inf"))
    with pytest.raises(ValueError, match=r"\$\.duration_s: expected a finite number"):
        result.save(bad, path)
    assert result.load(path) == report_samples.minimal()


def test_any_damage_is_a_report_error() -> None:
    """Whatever key is taken out or replaced, the answer is a report or a `ReportError`."""
    whole = data()
    whole["series"] = {}
    whole["benchmark"] = whole["benchmark"][:1]
    junks: tuple[Any, ...] = (None, -1, "x", [], {})
    outcomes = [_reads(changed) for junk in junks for changed in _damaged(whole, junk)]
    assert outcomes.count(False) > 300


def _reads(changed: Any) -> bool:
    try:
        return isinstance(result.from_dict(changed), Report)
    except ReportError:
        return False


def _damaged(whole: Any, junk: Any, path: tuple[Any, ...] = ()) -> list[Any]:
    place = whole
    for step in path:
        place = place[step]
    steps = (
        list(place) if isinstance(place, dict) else list(range(len(place))) if isinstance(place, list) else []
    )
    found = [item for step in steps for item in _damaged(whole, junk, (*path, step))]
    if path:
        changed = copy.deepcopy(whole)
        inner = changed
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = junk
        found.append(changed)
    return found


def test_row_and_measured_are_values() -> None:
    """A result cannot change after it was written down."""
    for kind in (Row, Measured, Finding, Report):
        assert dataclasses.fields(kind)
        assert getattr(kind, "__dataclass_params__").frozen  # noqa: B009


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
