"""The page's models and device, in a browser."""

from __future__ import annotations

import copy
from typing import Any

from inference import errors
from inference.artifacts.build import BuildProgress
from inference.artifacts.sources import Progress
from tests.conftest import wait_until
from tests.fake_service import MODEL, Gate
from tests.page_browser import Show, Visit
from tests.page_service import AWAY, HERE, PageService, board, worker_row

HALF = Progress("download", 50_000_000, 100_000_000, 8e6, 6.2)


def card(visit: Visit, model: str) -> Any:
    """The card of a model."""
    return visit.tab.locator(".model", has=visit.tab.get_by_text(model, exact=True))


def button(visit: Visit, model: str, name: str) -> Any:
    """A button of a model's card."""
    return card(visit, model).get_by_role("button", name=name, exact=True)


# Models


def test_models_show_state_memory_and_evidence(show: Show) -> None:
    """Loaded ones come first, with what they take; what was measured stands beside what is declared."""
    visit = show().open("models")
    cards = [text.replace("\xa0", " ") for text in visit.find(".model").all_inner_texts()]
    assert [name for text in cards for name in (MODEL, HERE, AWAY) if f"\n{name} ·" in text] == [
        MODEL,
        HERE,
        AWAY,
    ]
    assert "Loaded" in cards[0] and "verified · measured" in cards[0] and "1.5 GiB in use" in cards[0]
    assert "41.5 tokens/s, measured" in cards[0]
    assert "On disk" in cards[1] and "experimental · declared" in cards[1] and "not measured here" in cards[1]
    assert "unknown" in cards[1]
    assert "Not here" in cards[2] and "1,000 MB declared" in cards[2]
    card(visit, MODEL).locator("summary").click()
    visit.shows("Does not count: power_mode: was 15W, is 7W")
    assert "on disk, 98 MB" in card(visit, MODEL).locator("tbody tr").inner_text().replace("\xa0", " ")


def test_models_are_found_by_words(show: Show) -> None:
    """The list narrows while typing, and to what is on the disk."""
    visit = show().open("models")
    visit.tab.fill("#find", "plan")
    assert visit.find(".model").count() == 1
    visit.tab.fill("#find", "")
    visit.tab.get_by_label("On disk").check()
    assert visit.find(".model").count() == 2


def test_a_model_is_loaded_and_unloaded(show: Show) -> None:
    """A load shows how far it is; when the daemon has done it, the card says so."""
    gate = Gate()
    service = PageService(load_gate=gate)
    visit = show(service).open("models")
    button(visit, HERE, "Load").click()
    service.workers = [worker_row(HERE, state="starting", progress=0.25)]
    visit.shows("Loading · 25\xa0%")
    gate.opened.set()
    button(visit, HERE, "Unload").wait_for()
    assert ("load", HERE, None, None) in service.calls
    button(visit, HERE, "Unload").click()
    button(visit, HERE, "Load").wait_for()
    assert ("unload", HERE) in service.calls


def test_a_load_that_fails_says_why_and_what_to_do(show: Show) -> None:
    """The error stands on the card until it is dismissed."""
    service = PageService(
        load_error=errors.DoesNotFitError("needs 9 GiB", hint="free memory: jetllm unload x")
    )
    visit = show(service).open("models")
    visit.watch.allowed = ("Failed to load resource",)
    button(visit, HERE, "Load").click()
    visit.shows("needs 9 GiB")
    visit.shows("free memory: jetllm unload x")
    button(visit, HERE, "Dismiss").click()
    visit.find(".failure").wait_for(state="detached")


def test_a_pull_shows_its_progress_even_after_a_reload(show: Show) -> None:
    """Bytes, rate and time left, as text and as a bar; the work goes on without the page."""
    gate = Gate()
    visit = show(PageService(pulling=(HALF, gate))).open("models")
    button(visit, AWAY, "Pull").click()
    told = "Downloading 50\xa0MB of 100\xa0MB · 8\xa0MB/s · 6.2\xa0s left"
    visit.shows(told)
    assert card(visit, AWAY).locator("progress").evaluate("(bar) => bar.value") == 0.5
    visit.tab.reload()
    visit.shows(told)
    visit.service.row(AWAY)["pulled"] = visit.service.row(AWAY)["variants"]["q4"]["pulled"] = True
    gate.opened.set()
    button(visit, AWAY, "Load").wait_for()


def test_a_pull_is_cancelled_and_a_broken_one_says_why(show: Show) -> None:
    """Cancel ends the work in the daemon; a failure stands there with its hint."""
    gate = Gate()
    service = PageService(pulling=(HALF, gate))
    visit = show(service).open("models")
    button(visit, AWAY, "Pull").click()
    button(visit, AWAY, "Cancel").click()
    wait_until(gate.left.is_set, "the pull ended")
    button(visit, AWAY, "Pull").wait_for()
    assert visit.find(".failure").count() == 0
    broken = errors.DownloadError("the line was cut", hint="pull it again: it goes on from there")
    service.pulling = (HALF, broken)
    visit.watch.allowed = ("Failed to load resource",)
    button(visit, AWAY, "Pull").click()
    visit.shows("the line was cut")
    visit.shows("pull it again: it goes on from there")


def test_a_build_shows_its_step(show: Show) -> None:
    """What is pulled and not built can be built; the step, the time left and a bar are told."""
    gate = Gate()
    half = BuildProgress("q4f16_1", "convert_weight", 4, 7, 0.5, 20.0, 95.0)
    service = PageService(building=(half, gate))
    service.row(HERE)["variants"]["q4"]["built"] = False
    visit = show(service).open("models")
    button(visit, HERE, "Build").first.click()
    visit.shows("Building q4f16_1: convert weight, step 4 of 7 · 2\xa0min left")
    assert card(visit, HERE).locator("progress").evaluate("(bar) => bar.value") == 0.5
    gate.opened.set()
    button(visit, HERE, "Load").wait_for()
    assert ("build", HERE, None) in service.calls


def test_deleting_asks_first(show: Show) -> None:
    """The dialog starts on keeping; only a second, deliberate act deletes."""
    visit = show().open("models")
    button(visit, HERE, "Delete").click()
    assert visit.focused() == "confirm-no"
    visit.tab.keyboard.press("Enter")
    assert visit.service.calls == []
    button(visit, HERE, "Delete").click()
    visit.find("#confirm-yes").click()
    wait_until(lambda: ("delete", HERE, None) in visit.service.calls, "the deletion")


def test_news_do_not_take_the_focus_away(show: Show) -> None:
    """A card that changes under somebody's fingers keeps them where they were."""
    visit = show().open("models")
    button(visit, HERE, "Load").focus()
    visit.service.row(HERE)["license"] = "MIT"
    visit.service.workers = []  # the page sees that something changed and asks again
    card(visit, HERE).get_by_text("MIT").wait_for()
    assert visit.focused() == "Load"


# Device


def test_gauges_are_drawn_with_history(show: Show) -> None:
    """Values of the board, a line that grows, and what throttles it; unknown is not 0."""
    visit = show().open("device")
    values = {
        name: visit.find(f"#gauge-{name} .value").inner_text().replace("\xa0", " ")
        for name in ("memory", "gpu", "temperature", "power", "load")
    }
    assert values == {
        "memory": "42 %",
        "gpu": "99 %",
        "temperature": "96.8 °C",
        "power": "14.8 W",
        "load": "unknown",
    }
    visit.shows("Throttled by cpufreq-cpu0, cpufreq-cpu4, cpu-throttle-alert, gpu clock")
    live = copy.deepcopy(visit.service.machine)
    live["live"]["telemetry"]["gpu"]["load_percent"] = 10.0
    visit.service.machine = live
    visit.shows("10 to 99\xa0%")
    assert visit.find("#gauge-gpu .line").get_attribute("d").count("L") >= 1
    assert "now 10\xa0%, 10 to 99\xa0%" in visit.find("#gauge-gpu svg").get_attribute("aria-label")
    assert visit.find("#gauge-load .line").count() == 0
    visit.tab.reload()
    visit.shows("10 to 99\xa0%")


def test_a_machine_that_tells_nothing_is_unknown(show: Show) -> None:
    """Without sensors, or when they do not answer in time, it says "unknown", nowhere a made-up 0."""
    silent = board("x86-none")
    silent["live"]["telemetry"] = None
    for machine, names in (
        (board("x86-none"), ("gpu", "power")),
        (silent, ("gpu", "temperature", "power", "load")),
    ):
        visit = show(PageService(machine=machine)).open("device")
        for name in names:
            assert visit.find(f"#gauge-{name} .value").inner_text() == "unknown"
    visit.shows("Throttling: unknown on this machine")


def test_nobody_is_asked_while_nobody_looks(show: Show) -> None:
    """A hidden tab asks nothing; when it is seen again it asks at once."""
    visit = show().open("device")
    visit.find("#gauge-gpu").wait_for()
    turn = """(hidden) => {
      Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    visit.tab.evaluate(turn, True)
    visit.tab.wait_for_load_state("networkidle")
    before = len(visit.watch.requests)
    visit.tab.clock.install()
    visit.tab.clock.fast_forward(60_000)
    assert len(visit.watch.requests) == before
    visit.tab.evaluate(turn, False)
    wait_until(lambda: visit.tab.evaluate("1") and len(visit.watch.requests) > before, "it asks again")
