"""The reports made of one result: golden Markdown, a page that needs nothing, JUnit, CSV, comparison.

``python -m tests.test_phase3_report`` writes the golden files anew; read the difference first.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from phase3 import stats
from phase3.report import (
    Comparison,
    append_row,
    compare,
    comparison_html,
    comparison_markdown,
    comparison_page,
    junit,
    markdown,
    page,
    words,
)
from phase3.report.charts import charts
from phase3.report.markup import tag
from phase3.report.plot import linear, logarithmic, named
from phase3.result import Finding, Report, ReportError, measured
from tests import report_samples
from tests.report_samples import broken, healthy, hostile, minimal

GOLDEN = Path(__file__).parent / "golden"
ALL = [healthy, broken, hostile, minimal]
_VOID = {"meta", "br", "hr"}


class Page(HTMLParser):
    """What a browser sees: the elements, their attributes and the text; an unbalanced tag fails."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep its name and attributes."""
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """It closes what was opened last."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep what a reader sees."""
        self.text += data if self._open[-1:] != ["style"] else ""


def golden() -> dict[str, str]:
    """The golden files by name."""
    return {
        "phase3_report.md": markdown(broken()),
        "phase3_comparison.md": comparison_markdown(compare(healthy(), broken())),
    }


@pytest.mark.parametrize("name", list(golden()))
def test_markdown_is_the_golden_one(name: str) -> None:
    """The same report is the same Markdown; a change of the words shows here before it lands."""
    assert golden()[name] == (GOLDEN / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("make", ALL)
def test_every_report_is_the_same_twice(make: Any) -> None:
    """Nothing in a report depends on the clock, on hashing or on chance."""
    for write in (page, markdown, junit):
        assert write(make()) == write(make())


@pytest.mark.parametrize("make", ALL)
def test_page_needs_nothing(make: Any) -> None:
    """The page has no script, no handler and no address: it fetches nothing and runs nothing."""
    for text in (page(make()), comparison_page(healthy(), make())):
        found = Page(text)
        assert not {"script", "link", "img", "iframe", "object", "a", "form", "base"} & set(found.tags)
        names = {name for name, _ in found.attributes}
        assert not {name for name in names if name.startswith("on") or name in ("src", "href", "style")}
        assert not re.search(r"https?:|url\(|@import|//[a-z]", text)


def test_page_shows_hostile_text_as_text() -> None:
    """Whoever chooses a model's name chooses text, never markup, in the page, its plots and its title."""
    text = page(hostile(), comparison_html(compare(healthy(), hostile())))
    assert "<script" not in text
    assert "\x00" not in text
    assert text.encode("utf-8")
    assert Page(text).text.count("<script>alert(1)</script>") >= 10


def test_hostile_text_stays_in_its_cell() -> None:
    """In Markdown a name can open no cell, no line, no code and no HTML."""
    for text in (markdown(hostile()), comparison_markdown(compare(healthy(), hostile()))):
        assert "<" not in text
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}
        assert widths <= {3, 4, 6}
        assert not re.search(r"(?<!\\)`", text)


def test_page_tells_the_verdict_first() -> None:
    """The verdict, what failed with its diagnosis and what could not be judged come before the tables."""
    text = Page(page(broken())).text
    order = [
        "Failed",
        "What needs attention",
        "Looks like a CPU fallback",
        "Memory grows",
        "Let the board cool",
    ]
    places = [text.index(words) for words in [*order, "Checks", "Benchmark", "Plots", "Environment"][:5]]
    assert places == sorted(places)
    assert "8.40 tokens/s, limit \u2265 10 tokens/s" in text
    assert "What needs attention" not in page(healthy())


def test_page_names_every_check_and_fact() -> None:
    """No check and no line of the environment record is left out."""
    text = Page(page(broken())).text
    for finding in broken().findings:
        assert finding.title in text
    for _, fact in words.facts(broken().environment):
        assert fact in text


def test_page_of_a_stopped_run() -> None:
    """A run that found nothing still makes a page that says so."""
    text = Page(page(minimal())).text
    assert "Not judged" in text
    assert "stopped before its end" in text
    assert "Plots" not in text


def test_plots_need_samples() -> None:
    """A plot is drawn where its samples are, and nowhere else."""
    titles = [chart.title for chart in charts(healthy())]
    assert titles == [
        "Throughput against concurrency",
        "Roofline",
        "Time to first token",
        "Time between tokens",
        "Memory over time",
        "Worker memory after each cycle",
        "Worker memory after each generation",
    ]
    assert charts(minimal()) == []


def test_plotted_points_lie_where_the_samples_say() -> None:
    """By hand: 50 of 0 to 100 is half way up; 1 and 8 requests are three equal steps apart."""
    row = healthy().benchmark[0]
    rows = tuple(
        dataclasses.replace(row, concurrency=many, throughput_tokens_per_s=measured([speed]))
        for many, speed in ((1, 50.0), (2, 100.0), (8, 0.5))
    )
    picture = charts(dataclasses.replace(minimal(), benchmark=rows))[0].picture
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', picture)
    (x1, y1), (x2, y2), (x8, _) = [(float(x), float(y)) for x, y in dots]
    floor, top = 280.0 - 44.0, 26.0
    assert y1 == pytest.approx((floor + top) / 2, abs=0.11)
    assert y2 == pytest.approx(top, abs=0.11)
    assert x8 - x1 == pytest.approx(3 * (x2 - x1), abs=0.3)


def test_slope_beside_the_leak_plot_is_that_of_the_series() -> None:
    """The figures under a plot are computed from the points in it."""
    series = broken().series["worker_bytes_over_generations"]
    slope = stats.slope([x for x, _ in series], [y for _, y in series])
    note = next(chart.note for chart in charts(broken()) if "generation" in chart.title)
    assert f"Slope {words.quantity(slope.per_x, 'bytes/generation')}" in note
    assert 99e3 < slope.per_x < 104e3


def test_long_series_keep_their_peak() -> None:
    """A plot of a soak is thinned, but the one second at the peak stays in it."""
    series = tuple((float(at), 2e9 if at == 7_001 else 1e9) for at in range(20_000))
    report = dataclasses.replace(minimal(), series={"worker_bytes_over_s": series})
    picture = charts(report)[0].picture
    assert len(picture) < 20_000
    assert re.search(r"L[\d.]+ 26\.0", picture)


@pytest.mark.parametrize(
    "series",
    [
        {"worker_bytes_over_s": ((0.0, 0.0),)},
        {"worker_bytes_over_s": ((5.0, -3.0), (5.0, -3.0))},
        {"worker_bytes_over_cycles": ((0.0, 7.0), (1.0, 7.0), (2.0, 7.0))},
        {"worker_bytes_over_cycles": ((1.0, 7.0), (1.0, 8.0), (1.0, 9.0))},
        {"worker_bytes_over_generations": ((0.0, 7.0), (1.0, 8.0))},
        {"worker_bytes_over_s": (), "": ((0.0, 1.0),), "_over_s": ((0.0, 1.0),)},
        {"worker_bytes_over_s": ((-1e300, 1e300), (1e300, 5e-324))},
    ],
)
def test_odd_series_draw_or_are_left_out(series: dict[str, Any]) -> None:
    """One point, equal points, no points: the page is made all the same."""
    text = page(dataclasses.replace(minimal(), series=series))
    assert "nan" not in text
    Page(text)


@pytest.mark.parametrize("seconds", [[0.0], [0.0, 1.0], [1e-9, 1e9], [3.0, 3.0, 3.0]])
def test_odd_times_draw(seconds: list[float]) -> None:
    """A time of zero or a spread of many decades does not break the page."""
    row = dataclasses.replace(healthy().benchmark[0], ttft_s=measured(seconds), itl_s=None)
    Page(page(dataclasses.replace(minimal(), benchmark=(row,))))


def test_axes_have_round_ticks_that_hold_all_values() -> None:
    """By hand: 0 to 88 goes in steps of 20 to 100; 3 to 700 goes from 2 to 1000; doublings are equal."""
    assert [label for _, label in linear([12.0, 88.0], "x").ticks] == ["0", "20", "40", "60", "80", "100"]
    assert [label for _, label in linear([0.0, 15e9], "x").ticks] == ["0", "5G", "10G", "15G"]
    axis = logarithmic([3.0, 700.0], "x")
    assert (axis.low, axis.high) == (2.0, 1000.0)
    doubling = named([1.0, 2.0, 4.0], "x")
    assert doubling.share(4) - doubling.share(2) == pytest.approx(doubling.share(2) - doubling.share(1))


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (None, "s", "unknown"),
        (0.0, "s", "0 s"),
        (0.0314, "s", "31.4 ms"),
        (12.345, "s", "12.3 s"),
        (4.2e-5, "s", "42 \u00b5s"),
        (880e6, "bytes", "880 MB"),
        (1.5e9, "bytes", "1.50 GB"),
        (-101_300.0, "bytes/generation", "-101 kB/generation"),
        (87.31, "tokens/s", "87.3 tokens/s"),
        (99.1, "%", "99.1%"),
        (12_345.6, None, "12,346"),
        (0.0001234, None, "0.000123"),
    ],
)
def test_numbers_read_well(value: float | None, unit: str | None, shown: str) -> None:
    """Three significant digits, in the size of unit that fits; GB is 10^9."""
    assert words.quantity(value, unit) == shown


def test_headline_is_the_published_row() -> None:
    """One request of 16 tokens in and 128 out stands for the whole; without it, the first of one request."""
    rows = healthy().benchmark[::-1]
    found = words.headline(dataclasses.replace(healthy(), benchmark=rows))
    assert found is not None
    assert (found.prompt_tokens, found.output_tokens, found.concurrency) == (16, 128, 1)
    assert words.headline(dataclasses.replace(healthy(), benchmark=rows[:3])) is None


def test_markup_escapes_what_is_no_markup() -> None:
    """A child or an attribute is text unless `tag` made it."""
    assert tag("b", "<i>", tag("i", "&"), title='"') == '<b title="&quot;">&lt;i&gt;<i>&amp;</i></b>'


@pytest.mark.parametrize("make", ALL)
def test_junit_has_the_usual_structure(make: Any) -> None:
    """testsuites > testsuite > properties and testcases; the counts are those of the children."""
    report: Report = make()
    top = ET.fromstring(junit(report))  # noqa: S314
    (suite,) = top
    assert (top.tag, suite.tag) == ("testsuites", "testsuite")
    cases = suite.findall("testcase")
    assert [child.tag for child in suite] == ["properties", *["testcase"] * len(cases)]
    assert len(cases) == len(report.findings)
    for name, children in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.attrib[name]) == len(suite.findall(f"testcase/{children}"))
        assert suite.attrib[name] == top.attrib[name]
    assert int(suite.attrib["tests"]) == len(cases)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
    for case in cases:
        assert set(case.attrib) == {"classname", "name", "time"}
        assert [child.tag for child in case] in ([], ["failure"], ["error"], ["skipped"], ["system-out"])
        assert all(set(child.attrib) >= {"message"} for child in case if child.tag != "system-out")


def test_junit_is_green_only_where_the_exit_code_is() -> None:
    """A check that could not be judged is an error in CI, as it is in the exit code."""
    findings = (Finding("a", "A", "pass"), Finding("b", "B", "unfit"))
    top = ET.fromstring(junit(dataclasses.replace(minimal(), findings=findings)))  # noqa: S314
    assert (top.attrib["failures"], top.attrib["errors"]) == ("0", "1")


def test_csv_grows_by_a_row_under_one_header(tmp_path: Path) -> None:
    """Each report appends one row; the figures are those of the raw samples, unrounded."""
    path = tmp_path / "runs.csv"
    for report in (healthy(), broken(), minimal()):
        append_row(report, path)
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    assert [row["verdict"] for row in rows] == ["pass", "fail", "unfit"]
    assert [row["exit_code"] for row in rows] == ["0", "1", "2"]
    speed = healthy().benchmark[0].decode_tokens_per_s
    assert speed is not None
    assert float(rows[0]["decode_tokens_per_s_median"]) == speed.median
    assert rows[1]["failed"] == "speed leak_generations"
    assert rows[2]["decode_tokens_per_s_median"] == ""


def test_csv_cell_is_never_a_formula(tmp_path: Path) -> None:
    """A name that a spreadsheet would run, or that has line breaks, is one cell of text."""
    path = tmp_path / "runs.csv"
    append_row(dataclasses.replace(minimal(), model='=HYPERLINK("x")', variant='a\r\n"b",c'), path)
    (row,) = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
    assert (row["model"], row["variant"]) == ('\'=HYPERLINK("x")', 'a "b",c')


def test_csv_goes_on_after_a_torn_row(tmp_path: Path) -> None:
    """A row that lost its end costs only itself."""
    path = tmp_path / "runs.csv"
    append_row(healthy(), path)
    path.write_bytes(path.read_bytes()[:-10])
    append_row(broken(), path)
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    assert [row["verdict"] for row in rows] == ["pass", "fail"]


@pytest.mark.parametrize("content", [b"a,b\r\n1,2\r\n", b"\xff\xfe"])
def test_csv_of_others_is_left_alone(tmp_path: Path, content: bytes) -> None:
    """A file with other columns, or that is no text, is refused and not touched."""
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    with pytest.raises(ReportError, match=r"runs\.csv"):
        append_row(healthy(), path)
    assert path.read_bytes() == content


def test_compares_figure_by_figure() -> None:
    """A report against itself is nowhere faster or slower; a tenth of the speed is slower everywhere."""
    same = compare(healthy(), healthy())
    assert {change.verdict for change in same.changes} <= {"same", "cannot tell"}
    assert (same.conditions, same.verdicts, same.unmatched) == ((), (), ())
    slow = compare(healthy(), broken())
    assert len(slow.changes) == 12 * 6
    assert {change.verdict for change in slow.changes} == {"slower"}
    assert {change.verdict for change in compare(broken(), healthy()).changes} == {"faster"}


def test_too_few_samples_cannot_tell() -> None:
    """One run against one run shows nothing, whatever the two numbers are."""
    row = healthy().benchmark[0]
    one, other = (
        dataclasses.replace(minimal(), benchmark=(dataclasses.replace(row, ttft_s=measured([seconds])),))
        for seconds in (1.0, 2.0)
    )
    first = compare(one, other).changes[0]
    assert (first.figure, first.verdict) == ("16 \u2192 128 \u00d71: time to first token", "cannot tell")


def test_comparison_says_what_else_differs() -> None:
    """Another power mode, another verdict and a missing row are said, not compared away."""
    old = healthy()
    new = dataclasses.replace(
        broken(), environment={**old.environment, "power_mode": "25W"}, benchmark=old.benchmark[1:]
    )
    found: Comparison = compare(old, new)
    assert found.conditions == (("Power mode", "15W", "25W"),)
    assert ("Acceptable speed", "Passed", "Failed") in found.verdicts
    assert found.unmatched == ("only in the old report: 16 \u2192 128 \u00d71",)
    text = Page(str(comparison_html(found))).text
    for part in ("25W", "Acceptable speed", "only in the old report"):
        assert part in text
        assert part in comparison_markdown(found)


def test_comparison_of_nothing() -> None:
    """Two reports without a benchmark compare to a sentence."""
    assert "No figure is in both reports." in comparison_markdown(compare(minimal(), minimal()))


def test_samples_stay_those_of_the_golden_files() -> None:
    """The sample reports are the same at every call."""
    assert report_samples.broken() == report_samples.broken()


if __name__ == "__main__":
    for _name, _text in golden().items():
        (GOLDEN / _name).write_text(_text, encoding="utf-8")
