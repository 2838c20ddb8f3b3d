"""The HTML page: one file that holds everything, with no script and nothing fetched."""

from __future__ import annotations

from collections.abc import Iterator

from phase3.report import charts, words
from phase3.report.markup import Markup, joined, raw, tag
from phase3.report.style import STYLE
from phase3.result import Finding, Measured, Report, Row, exit_code, verdict

_DEFINITIONS = (
    "Time to first token: from sending the request to the first non-empty piece of text. Time between "
    "tokens: from the first token to the last, divided by the tokens after the first; decode speed is its "
    "inverse. Tokens are the model's own. Figures are medians; p90 and p99 are interpolated percentiles."
)

_TABLE_NOTE = "Medians. * tokens/s; all together: the output tokens of all requests of a round over its time."

_BAD = ("error", "fail", "unfit")


def page(report: Report, comparison: Markup | None = None) -> str:
    """Return the page, with the table of a comparison where there is one."""
    parts = (
        _top(report),
        _tiles(report),
        _problems(report),
        _section("Checks", tag("div", _findings(report), class_="panel findings")) if report.findings else "",
        _section("Compared with the earlier report", comparison) if comparison else "",
        _section(
            "Benchmark",
            joined(
                tag("div", _benchmark(report), class_="panel benchmark"), tag("p", _TABLE_NOTE, class_="note")
            ),
        )
        if report.benchmark
        else "",
        _plots(report),
        _section("Environment", tag("dl", *_environment(report), class_="panel")),
        _footer(report),
    )
    return document(f"{report.model}: {words.VERDICTS[verdict(report)].lower()}", *parts)


def document(title: str, *parts: str) -> str:
    """Return a whole HTML document."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", raw(STYLE)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', *parts)), lang='en')}\n"


def chip(verdict_name: str, sign: str, text: str) -> Markup:
    """Return a verdict as a coloured word; the sign says it without the colour."""
    return tag("span", f"{sign} {text}", class_=f"chip {verdict_name}")


def _top(report: Report) -> Markup:
    name = verdict(report)
    minutes = f", {report.duration_s / 60:.0f} min" if report.duration_s and report.duration_s >= 90 else ""
    when = f"{report.started_at[:10]} {report.started_at[11:16]} UTC"
    banner = tag(
        "div",
        tag("span", words.SIGNS[name], class_="sign", aria_hidden="true"),
        tag("div", tag("strong", words.VERDICTS[name]), tag("span", words.says(report, name))),
        class_=f"banner {name}",
    )
    return joined(
        tag("p", "JetLLM compatibility report", class_="over"),
        tag("h1", report.model),
        tag("p", f"Variant {report.variant}, {report.mode} run, {when}{minutes}", class_="sub"),
        banner,
    )


def _tiles(report: Report) -> Markup:
    found: list[Markup] = []
    row = words.headline(report)
    if row is not None:
        found += [*_speed_tile(row), _tile("Time to first token", row.ttft_s, "s")]
        if row.itl_s is not None:
            found.append(_tile("Time between tokens", row.itl_s, "s"))
    peak = [y for name, series in report.series.items() if name == "worker_bytes_over_s" for _, y in series]
    if peak:
        found.append(_one_tile("Peak memory of the worker", words.quantity(max(peak), "bytes"), ""))
    found.append(_one_tile("Checks", str(len(report.findings)), words.counted(report)))
    return tag("div", *found, class_="tiles")


def _speed_tile(row: Row) -> Iterator[Markup]:
    if row.decode_tokens_per_s is not None:
        speed, predicted = row.decode_tokens_per_s.median, row.predicted_decode_tokens_per_s
        note = f"{speed / predicted:.0%} of the predicted {words.number(predicted)}" if predicted else ""
        yield _one_tile("Decode speed", words.quantity(speed, "tokens/s"), note)


def _tile(label: str, times: Measured, unit: str) -> Markup:
    return _one_tile(label, words.quantity(times.median, unit), f"p99 {words.quantity(times.p99, unit)}")


def _one_tile(label: str, figure: str, note: str) -> Markup:
    amount, _, unit = figure.partition(" ")
    return tag(
        "div", tag("span", label), tag("b", amount, " ", tag("small", unit)), tag("em", note), class_="tile"
    )


def _problems(report: Report) -> str:
    bad = [finding for name in _BAD for finding in report.findings if finding.verdict == name]
    if not bad:
        return ""
    items = [tag("li", *_problem(finding), class_=finding.verdict) for finding in bad]
    return _section("What needs attention", tag("ul", *items, class_="problems"))


def _problem(finding: Finding) -> Iterator[Markup]:
    chipped = chip(finding.verdict, words.SIGNS[finding.verdict], words.VERDICTS[finding.verdict])
    yield tag("p", tag("strong", finding.title), " ", chipped)
    measured = [text for text in (words.value(finding), _limit_text(finding)) if text]
    if measured:
        yield tag("p", ", ".join(measured))
    yield from (tag("p", text) for text in (finding.diagnosis or finding.detail,) if text)


def _limit_text(finding: Finding) -> str:
    return f"limit {words.limit(finding)}" if finding.limit is not None else ""


def _findings(report: Report) -> Markup:
    heads = ("Check", "Verdict", "Measured", "Limit", "Detail")
    classes = (None, None, "figure", "figure", None)
    head = tag("tr", *(tag("th", name, class_=kind) for name, kind in zip(heads, classes, strict=True)))
    rows = [tag("tr", *_finding(finding)) for finding in report.findings]
    return tag("table", tag("thead", head), tag("tbody", *rows))


def _finding(finding: Finding) -> Iterator[Markup]:
    yield tag("td", finding.title, tag("small", finding.check))
    yield tag("td", chip(finding.verdict, words.SIGNS[finding.verdict], words.VERDICTS[finding.verdict]))
    for name, text in (("Measured", words.value(finding)), ("Limit", words.limit(finding))):
        yield tag("td", text, class_="figure", data_name=name)
    texts = [text for text in (finding.detail, finding.diagnosis) if text]
    yield tag("td", *(tag("div", text) for text in texts), class_="long")


def _benchmark(report: Report) -> Markup:
    heads = (
        ("Tokens in \u2192 out", None),
        ("At once", "figure"),
        ("First token", "figure"),
        ("Between tokens", "figure"),
        ("Prefill*", "figure"),
        ("Decode*", "figure"),
        ("Predicted*", "figure"),
        ("All together*", "figure"),
        ("Whole request", "figure"),
    )
    head = tag("tr", *(tag("th", name, class_=kind) for name, kind in heads))
    return tag(
        "table", tag("thead", head), tag("tbody", *(tag("tr", *_row(row)) for row in report.benchmark))
    )


def _row(row: Row) -> Iterator[Markup]:
    yield tag("td", words.lengths(row))
    yield tag("td", str(row.concurrency), class_="figure")
    yield from (_time(times) for times in (row.ttft_s, row.itl_s))
    yield from (_rate(rate) for rate in (row.prefill_tokens_per_s, row.decode_tokens_per_s))
    predicted = row.predicted_decode_tokens_per_s
    yield tag("td", words.number(predicted) if predicted else "\u2013", class_="figure")
    yield _rate(row.throughput_tokens_per_s)
    yield _time(row.e2e_s)


def _time(times: Measured | None) -> Markup:
    if times is None:
        return tag("td", "\u2013", class_="figure")
    tail = tag("small", f"p99 {words.quantity(times.p99, 's')}")
    return tag("td", words.quantity(times.median, "s"), tail, class_="figure")


def _rate(rate: Measured | None) -> Markup:
    if rate is None:
        return tag("td", "\u2013", class_="figure")
    return tag("td", words.number(rate.median), class_="figure")


def _plots(report: Report) -> str:
    figures = charts.all_figures(report)
    return _section("Plots", tag("div", figures, class_="plots")) if figures else ""


def _environment(report: Report) -> Iterator[Markup]:
    for label, text in words.facts(report.environment):
        yield tag("div", tag("dt", label), tag("dd", text))


def _footer(report: Report) -> Markup:
    made = (
        f"Written by JetLLM's harness from report.json (schema version {report.schema_version}), which keeps"
    )
    end = f"every raw sample. Exit code {exit_code(report)}."
    return tag("footer", tag("p", _DEFINITIONS), tag("p", f"{made} {end}"))


def _section(title: str, content: Markup) -> Markup:
    return tag("section", tag("h2", title), content)
