"""The machine: whether it is fit to judge a model, and whether the model's container is its own."""

from __future__ import annotations

import re
from collections.abc import Iterator

from phase3.case import Case
from phase3.outcome import Outcome, failed, passed, skipped, unfit
from phase3.report.words import quantity
from phase3.target import Environment, TargetError

# The load average of a minute counts what has just ended too, such as an installation or another
# model's run; an echo of that is not above twice the cores. What is leaves a model a third of them.
MOST_TASKS_PER_CORE = 2.0
# Pages that nothing touches drift into swap on any machine. When more than this goes out within one run,
# memory is short, and speeds are those of the swap.
MOST_SWAPPED_BYTES = 64 * 10**6
# Modules and processors hold their clocks down at about 100; one that says that it does is believed at
# any temperature.
HOTTEST_CELSIUS = 95.0

# Which L4T releases share a user-space driver, and so the images that are built for one of them.
_LINES = (("36.4", "36.5"), ("36.2", "36.3"), ("35",), ("32.7",))
_BUILT_FOR = re.compile(r":(?:.*-)?r(\d+\.\d+(?:\.\d+)*)")


def environment(case: Case) -> Outcome:
    """Compare the machine before the run with the machine at its end.

    What the run itself does to the machine, such as its load, is not held against it.
    """
    try:
        now = case.target.environment()
    except TargetError as error:
        return unfit(f"the machine's state at the end is not known: {error.message}", error.hint)
    reasons = [*_before(case.before, case), *_at_the_end(now), *_meanwhile(case.before, now)]
    if not reasons:
        return passed(_detail(case.before, now))
    return unfit("; ".join(why for why, _ in reasons), "; ".join(what for _, what in reasons))


Reasons = Iterator[tuple[str, str]]


def _before(before: Environment, case: Case) -> Reasons:
    load, cores = before.load_average_1m, before.cpu_cores
    if load is not None and cores and load > MOST_TASKS_PER_CORE * cores:
        yield (
            f"before the start {load:.1f} tasks wanted the {cores} cores",
            "stop what else runs (top shows it), wait a minute, and run again",
        )
    needed = case.target.registered().predicted_memory_bytes
    free = before.memory_available_bytes
    if before.engine is None and needed is not None and free is not None and free < needed:
        yield (
            f"{quantity(free, 'bytes')} of memory were free, and the model needs {quantity(needed, 'bytes')}",
            "unload other models (jetllm ps shows them) or stop other programs",
        )
    yield from _held_down(before, "before the start")


def _at_the_end(now: Environment) -> Reasons:
    yield from _held_down(now, "at the end")
    if now.is_jetson and now.power_mode is None:
        yield (
            "the power mode is not known, and speed follows it",
            "on the host: nvpmodel -q; in a container, mount /run/jetllm from the host",
        )


def _held_down(environment: Environment, when: str) -> Reasons:
    if environment.throttled:
        by = f" by {', '.join(environment.throttled_by)}" if environment.throttled_by else ""
        yield f"the clocks were held down{by} {when}", "let it cool, or give it a better fan or supply"
    hottest = environment.hottest_celsius
    if hottest is not None and hottest > HOTTEST_CELSIUS:
        yield f"{hottest:.0f} degrees Celsius {when}", "let it cool, and see that its fan turns"


def _meanwhile(before: Environment, now: Environment) -> Reasons:
    events = _grown(before.over_current_events, now.over_current_events)
    if events > 0:
        yield f"{events} over-current events during the run", "use a stronger supply or a lower power mode"
    swapped = _grown(before.swap_used_bytes, now.swap_used_bytes)
    if swapped > MOST_SWAPPED_BYTES:
        yield (
            f"{quantity(swapped, 'bytes')} were swapped out during the run",
            "free memory: stop other programs, or use a shorter context (context_tokens)",
        )
    if before.power_mode != now.power_mode:
        yield (
            f"the power mode changed from {before.power_mode} to {now.power_mode} during the run",
            "leave it as it is until the run has ended",
        )


def _grown(before: int | None, now: int | None) -> int:
    return 0 if before is None or now is None else now - before


def _detail(before: Environment, now: Environment) -> str:
    told = {
        "power mode": now.power_mode,
        "load average before": before.load_average_1m and f"{before.load_average_1m:.1f}",
        "hottest": now.hottest_celsius and f"{now.hottest_celsius:.0f} \u00b0C",
        "swapped out": quantity(_grown(before.swap_used_bytes, now.swap_used_bytes), "bytes"),
    }
    return ", ".join(f"{name} {value}" for name, value in told.items() if value is not None)


def container(case: Case) -> Outcome:
    """Compare the image that runs with the one that the registry names, and with the board's L4T."""
    named, here = case.target.registered().container, case.before
    if named is None:
        return skipped("the registry names no container for this model")
    if not here.is_jetson:
        return skipped(f"this machine is no Jetson: {named} is not for it")
    if not here.in_container:
        return skipped(f"it runs in no container; the registry names {named}")
    if here.image is None:
        return skipped(f"which image this container is made of is not known; the registry names {named}")
    why = why_unfit(here.image, here.l4t)
    if why is not None:
        return failed(why, "use the image that is made for this L4T: see docs/jetson.md")
    if here.image == named:
        return passed(f"{here.image} on L4T {here.l4t or 'unknown'}")
    return _other_image(here.image, named)


def _other_image(image: str, named: str) -> Outcome:
    """Judge an image that is not the named one but runs on the board: its releases decide."""
    lines = [_line(release) if release else None for release in (built_for(image), built_for(named))]
    if lines[0] is not None and lines[0] == lines[1]:
        return passed(f"{image}; the registry names {named}, of the same L4T line")
    return skipped(f"{image} is not {named}, which the registry names, and cannot be compared with it")


def why_unfit(image: str, l4t: str | None) -> str | None:
    """Say why *image* is not for a machine with *l4t*; None where it is, or nothing is known."""
    release = built_for(image)
    if release is None or l4t is None or _line(release) == _line(l4t):
        return None
    return f"{image} is built for L4T {' and '.join(_line(release))}; this machine has L4T {l4t}"


def built_for(image: str) -> str | None:
    """The L4T release in an image's tag, as in dustynv/mlc:0.20.0-r36.4.0; None where it has none."""
    found = _BUILT_FOR.search(image)
    return found.group(1) if found else None


def _line(release: str) -> tuple[str, ...]:
    """The releases that share a driver with *release*; by itself where none is known to."""
    minor = ".".join(release.split(".")[:2])
    return next((line for line in _LINES if minor in line or release.split(".")[0] in line), (minor,))
