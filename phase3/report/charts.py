"""The plots of the page: each drawn from the raw samples that the report keeps, or left out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from phase3 import stats
from phase3.report import plot, words
from phase3.report.markup import Markup, joined, tag
from phase3.report.plot import Frame
from phase3.result import Measured, Report, Roofline, Row, Series

MAX_LINES = 5
_MAX_DOTS = 120
_MAX_POINTS = 600
_ROW_HEIGHT = 24.0


@dataclass(frozen=True)
class Chart:
    """A picture with its heading, its key (mark and label) and a note."""

    title: str
    picture: Markup
    key: tuple[tuple[str, str], ...] = ()
    note: str = ""

    def figure(self) -> Markup:
        """Return the whole as a figure."""
        marks = [tag("span", tag("i", class_=mark), label, class_="entry") for mark, label in self.key]
        return tag(
            "figure",
            tag("h3", self.title),
            tag("div", *marks, class_="key") if len(marks) > 0 else "",
            self.picture,
            tag("figcaption", self.note) if self.note else "",
        )


def charts(report: Report) -> list[Chart]:
    """Return the plots for which the report has samples."""
    found = [
        throughput(report),
        roofline(report),
        latency(report, "Time to first token", [(row, row.ttft_s) for row in report.benchmark]),
        latency(report, "Time between tokens", [(row, row.itl_s) for row in report.benchmark]),
        memory(report),
        *(growth(name, series) for name, series in sorted(report.series.items())),
    ]
    return [chart for chart in found if chart is not None]


def throughput(report: Report) -> Chart | None:
    """All tokens of all requests a second, against the number of requests at once."""
    lines: dict[str, list[tuple[int, Measured]]] = {}
    for row in report.benchmark:
        if row.throughput_tokens_per_s is not None:
            lines.setdefault(words.lengths(row), []).append((row.concurrency, row.throughput_tokens_per_s))
    if not any(len(line) > 1 for line in lines.values()):
        return None
    shown = dict(itertools.islice(lines.items(), MAX_LINES))
    points = [point for line in shown.values() for point in line]
    frame = Frame(
        plot.named([many for many, _ in points], "requests at once"),
        plot.linear([speed.max for _, speed in points], "tokens/s, all requests together"),
    )
    marks = [
        mark for index, line in enumerate(shown.values(), 1) for mark in _line(frame, index, sorted_(line))
    ]
    key = tuple((f"line c{index}", f"{name} tokens") for index, name in enumerate(shown, 1))
    left_out = len(lines) - len(shown)
    note = "Medians; the thin bars span all rounds." + (f" {left_out} more in the table." if left_out else "")
    label = "Throughput against concurrency. " + "; ".join(
        f"{name}: " + ", ".join(f"{words.number(speed.median)} at {many}" for many, speed in sorted_(line))
        for name, line in shown.items()
    )
    return Chart("Throughput against concurrency", frame.drawn(label, *marks), key, note)


def sorted_(line: Sequence[tuple[int, Measured]]) -> list[tuple[int, Measured]]:
    """Return the points of a line from left to right."""
    return sorted(line, key=lambda point: point[0])


def _line(frame: Frame, index: int, line: list[tuple[int, Measured]]) -> Iterator[Markup]:
    yield frame.path([(many, speed.median) for many, speed in line], class_=f"line s{index}")
    for many, speed in line:
        yield frame.bar((many, speed.min), (many, speed.max), class_=f"whisker s{index}")
        note = f"{words.number(speed.median)} tokens/s at {many} (n = {speed.n})"
        yield frame.dot(many, speed.median, note, class_=f"dot f{index}")


def latency(report: Report, title: str, rows: Sequence[tuple[Row, Measured | None]]) -> Chart | None:
    """Every request's time as a dot, row by row, with the median and the 90th percentile."""
    known = [(row, times) for row, times in rows if times is not None]
    if not known:
        return None
    low, high = min(times.min for _, times in known), max(times.max for _, times in known)
    size = 1.0 if high >= 2 else 1e3
    axis_title = "seconds" if size == 1.0 else "milliseconds"
    if low > 0 and high / low > 8:
        across = plot.logarithmic([low * size, high * size], f"{axis_title} (logarithmic)")
    else:
        across = plot.linear([low * size, high * size], axis_title, from_zero=high > 3 * low)
    last = len(known) - 1
    ticks = tuple(
        (float(last - at), f"{words.lengths(row)} \u00d7{row.concurrency}")
        for at, (row, _) in enumerate(known)
    )
    down = plot.Axis(-0.6, last + 0.6, ticks, "tokens in \u2192 out \u00d7 requests at once")
    frame = Frame(across, down, height=80 + _ROW_HEIGHT * len(known), left=116)
    marks = [mark for at, (_, times) in enumerate(known) for mark in _strip(frame, last - at, times, size)]
    label = f"{title}. " + "; ".join(
        f"{words.lengths(row)} at {row.concurrency}: median {words.quantity(times.median, 's')}, "
        f"p90 {words.quantity(times.p90, 's')}"
        for row, times in known
    )
    key = (("circle f1", "one request"), ("stroke ink", "median"), ("bar c1", "median to p90"))
    return Chart(title, frame.drawn(label, *marks), key)


def _strip(frame: Frame, at: int, times: Measured, size: float) -> Iterator[Markup]:
    left, y = frame.at(times.min * size, at)
    right, _ = frame.at(times.max * size, at)
    middle, _ = frame.at(times.median * size, at)
    tail, _ = frame.at(times.p90 * size, at)
    yield tag("line", x1=left, y1=y, x2=right, y2=y, class_="range")
    yield tag("rect", x=middle, y=y - 5, width=max(tail - middle, 0.1), height=10, class_="band f1")
    every = max(1, len(times.samples) // _MAX_DOTS)
    for sample in sorted(times.samples)[::every]:
        yield frame.dot(sample * size, at, words.quantity(sample, "s"), radius=2.8, class_="sample f1")
    note = f"median {words.quantity(times.median, 's')}, p90 {words.quantity(times.p90, 's')}, n = {times.n}"
    yield tag("line", tag("title", note), x1=middle, y1=y - 8, x2=middle, y2=y + 8, class_="median")


def memory(report: Report) -> Chart | None:
    """What was in use, second by second."""
    named = {name: series for name, series in sorted(report.series.items()) if series}
    lines = {_title(name): series for name, series in named.items() if name.endswith("_bytes_over_s")}
    lines = dict(itertools.islice(lines.items(), MAX_LINES))
    if not lines:
        return None
    size, unit = _size(max(y for series in lines.values() for _, y in series))
    frame = Frame(
        plot.linear([x for series in lines.values() for x, _ in series], "seconds since the start"),
        plot.linear([y / size for series in lines.values() for _, y in series], unit),
    )
    marks = [
        frame.path([(x, y / size) for x, y in _thinned(series)], class_=f"line s{index}")
        for index, series in enumerate(lines.values(), 1)
    ]
    peaks = {name: max(y for _, y in series) for name, series in lines.items()}
    note = (
        "Peak: " + "; ".join(f"{name} {words.quantity(peak, 'bytes')}" for name, peak in peaks.items()) + "."
    )
    key = tuple((f"line c{index}", name) for index, name in enumerate(lines, 1))
    return Chart("Memory over time", frame.drawn(f"Memory over time. {note}", *marks), key, note)


def growth(name: str, series: Series) -> Chart | None:
    """Memory after each generation or load cycle, with its slope: what the leak check judges."""
    quantity, _, across = name.partition("_over_")
    if across not in ("generations", "cycles") or not quantity.endswith("_bytes") or len(series) < 3:
        return None
    xs, ys = [x for x, _ in series], [y for _, y in series]
    if min(xs) == max(xs):
        return None
    slope = stats.slope(xs, ys)
    size, unit = _size(max(map(abs, ys)))
    frame = Frame(
        plot.linear(xs, across),
        plot.linear([y / size for y in ys], unit, from_zero=max(ys) > 3 * max(min(ys), 0.0)),
    )
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    ends = [(x, (y_mean + slope.per_x * (x - x_mean)) / size) for x in (min(xs), max(xs))]
    radius = 2.2 if len(series) > 60 else 3.5
    dots = [
        frame.dot(x, y / size, words.quantity(y, "bytes"), radius=radius, class_="sample f1")
        for x, y in _thinned(series)
    ]
    one = across.removesuffix("s")
    per = [words.quantity(value, f"bytes/{one}") for value in (slope.per_x, slope.low, slope.high)]
    note = f"Slope {per[0]}; 95 % interval {per[1]} to {per[2]}; {slope.n} points."
    title = f"{_title(name)} after each {one}"
    key = (("circle f1", "measured"), ("line ink", "least squares"))
    picture = frame.drawn(f"{title}. {note}", *dots, frame.path(ends, class_="line fit"))
    return Chart(title, picture, key, note)


def roofline(report: Report) -> Chart | None:
    """What the machine could do at each arithmetic intensity, and what it did."""
    roof = report.roofline
    if roof is None:
        return None
    points = list(_attained(report, roof))
    if not points:
        return None
    ridge = roof.peak_flop_per_s / roof.bandwidth_bytes_per_s if roof.peak_flop_per_s else None
    xs = [x for _, x, _, _ in points] + ([ridge * 3] if ridge else [])
    x_axis = plot.logarithmic(xs, "FLOP per byte of weights read")
    tops = [
        min(x * roof.bandwidth_bytes_per_s, roof.peak_flop_per_s or 1e30) for x in (x_axis.low, x_axis.high)
    ]
    y_axis = plot.logarithmic([y for _, _, y, _ in points] + tops, "FLOP/s")
    frame = Frame(x_axis, y_axis)
    corners = [(x_axis.low, tops[0]), (x_axis.high, tops[1])]
    if ridge and x_axis.low < ridge < x_axis.high and roof.peak_flop_per_s:
        corners.insert(1, (ridge, roof.peak_flop_per_s))
    marks = [frame.path(corners, class_="line roof")]
    marks += [frame.dot(x, y, note, radius=4.5, class_=f"dot f{kind}") for kind, x, y, note in points]
    names = {1: "decode", 2: "prefill"}
    kinds = sorted({kind for kind, *_ in points})
    key = (*((f"circle f{kind}", names[kind]) for kind in kinds), ("line ink", "roof"))
    memory = f"memory {words.quantity(roof.bandwidth_bytes_per_s, 'bytes/s')}"
    compute = (
        f", compute {roof.peak_flop_per_s / 1e12:.3g} TFLOP/s"
        if roof.peak_flop_per_s
        else ", compute unknown"
    )
    source = f" ({roof.source})" if roof.source else ""
    note = f"Roof: {memory}{compute}{source}. Points are medians."
    return Chart("Roofline", frame.drawn(f"Roofline. {note}", *marks), key, note)


def _attained(report: Report, roof: Roofline) -> Iterator[tuple[int, float, float, str]]:
    """Yield kind (1 decode, 2 prefill), FLOP per byte, FLOP/s and a note for each row."""
    once = roof.flop_per_token / roof.bytes_per_token
    for row in report.benchmark:
        where = f"{words.lengths(row)} \u00d7{row.concurrency}"
        if row.throughput_tokens_per_s is not None and row.concurrency > 1:
            speed = row.throughput_tokens_per_s.median
            yield (
                1,
                once * row.concurrency,
                speed * roof.flop_per_token,
                f"decode {where}: {words.number(speed)} tokens/s",
            )
        elif row.decode_tokens_per_s is not None and row.concurrency == 1:
            speed = row.decode_tokens_per_s.median
            yield 1, once, speed * roof.flop_per_token, f"decode {where}: {words.number(speed)} tokens/s"
        if row.prefill_tokens_per_s is not None and row.concurrency == 1:
            speed = row.prefill_tokens_per_s.median
            note = f"prefill {where}: {words.number(speed)} tokens/s"
            yield 2, once * row.prompt_tokens, speed * roof.flop_per_token, note


def _thinned(series: Series) -> Series:
    """Return at most some 600 of the points: of each stretch the lowest and the highest, so peaks stay."""
    if len(series) <= _MAX_POINTS:
        return series
    stretch = -(-len(series) // (_MAX_POINTS // 2))
    kept: list[tuple[float, float]] = []
    for start in range(0, len(series), stretch):
        part = series[start : start + stretch]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept.extend(sorted(ends))
    return tuple(kept)


def _size(largest: float) -> tuple[float, str]:
    return next(
        ((size, unit) for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if largest >= size),
        (1.0, "bytes"),
    )


def _title(name: str) -> str:
    text = name.partition("_over_")[0].removesuffix("_bytes").replace("_", " ")
    return f"{text[:1].upper()}{text[1:]} memory" if "memory" not in text else f"{text[:1].upper()}{text[1:]}"


def all_figures(report: Report) -> Markup:
    """Return every plot, in order."""
    return joined(*(chart.figure() for chart in charts(report)))
