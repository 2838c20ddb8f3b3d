"""The page's key, its looks, and its keyboard, in a browser."""

from __future__ import annotations

import pytest

from inference.generation import Chunk
from tests.conftest import wait_until
from tests.fake_service import Gate, end, settings_with
from tests.page_browser import Show, Visit
from tests.page_service import HERE, PageService

KEY = "jetllm_right-key"
PHONE = {"viewport": {"width": 360, "height": 740}}
VIEWS = ("chat", "models", "device")
TEXTS = """body; #send; .pulse; [aria-current]; #new-chat; .user .said; .origin strong; .reason;
.segments span; .segments input:checked + span; #settings summary; .model .small; .badge.good;
.badge.faint; .badge.plain; .pairs dt; .model .primary; .state.bad; .lines dt"""

# The contrast of text with what is behind it, as WCAG 2 defines it.
CONTRAST = """(selectors) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (color, under) => {
    canvas.fillStyle = under; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (color) => color.map((v) => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$|transparent/.test(color)) return color;
    }
    return "white";
  };
  return selectors.map((selector) => {
    const element = document.querySelector(selector);
    const back = behind(element);
    const lights = [light(rgb(getComputedStyle(element).color, back)), light(rgb(back, back))];
    return [selector, (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05)];
  });
}"""


# Key


def test_the_page_asks_for_the_key_and_keeps_it_for_the_tab(show: Show) -> None:
    """One question is refused, not many; a wrong key is said to be wrong, the right one kept for the tab."""
    visit = show(PageService(settings=settings_with(api_key=KEY)))
    visit.watch.allowed = ("Failed to load resource: the server responded with a status of 401",)
    visit.tab.goto(visit.url)
    visit.shows("This device asks for a key")
    assert visit.focused() == "key"
    assert [path for path in visit.watch.paths() if path.startswith("/jetllm/")] == ["/jetllm/v1/status"]
    for wrong, said in (("wrong", "not the right one"), ("ключ", "no spaces")):
        visit.tab.fill("#key", wrong)
        visit.tab.press("#key", "Enter")
        visit.find("#key-error", has_text=said).wait_for()
    visit.tab.fill("#key", KEY)
    visit.tab.press("#key", "Enter")
    visit.find("#model optgroup").first.wait_for(state="attached")
    visit.ask("hi")
    assert visit.answer() == "It is quite blue."
    assert visit.tab.evaluate("() => Object.values({ ...localStorage }).join()") == ""
    visit.reload()
    assert not visit.find("#key-dialog").is_visible()
    visit.find("#forget-key").click()
    visit.shows("This device asks for a key")
    assert KEY not in visit.tab.evaluate("() => JSON.stringify({ ...sessionStorage })")


# Looks


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(show: Show, scheme: str) -> None:
    """At 360 px no view scrolls sideways, whatever long names, lines and tables are in it."""
    wide = "```\n" + "x" * 400 + "\n```\n\n| a | b |\n|---|---|\n| " + "y" * 300 + " | c |\n\n" + "z" * 500
    service = PageService(script=(Chunk(wide), end()))
    service.row(HERE)["name"] = service.row(HERE)["notes"] = "n" * 200
    visit = show(service, color_scheme=scheme, **PHONE).open()
    visit.ask("w" * 300)
    visit.answer()
    for view in VIEWS:
        visit.find(f"[data-view={view}]").click()
        visit.find(f"#view-{view}").wait_for()
        if view == "models":
            visit.find(".model", has_text=HERE).locator("summary").click()
            visit.find("details[open] table").wait_for()
        if view == "device":
            visit.find("#gauge-gpu").wait_for()
        widths = visit.tab.evaluate("() => [document.documentElement.scrollWidth, document.body.scrollWidth]")
        assert max(widths) <= 360, view


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_in_dark(show: Show, scheme: str) -> None:
    """Every kind of text has a contrast of at least 4.5 with what is behind it."""
    visit = show(color_scheme=scheme).open()
    visit.ask("hi")
    visit.answer()
    visit.find("[data-view=models]").click()
    visit.find("[data-view=device]").click()
    visit.find("#gauge-gpu").wait_for()
    found = visit.tab.evaluate(CONTRAST, TEXTS.split(";"))
    assert {selector: ratio for selector, ratio in found if ratio < 4.5} == {}
    back = visit.tab.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(17, 20, 22)") is (scheme == "dark")


def test_the_theme_can_be_chosen_and_is_kept(show: Show) -> None:
    """The switch goes before the system's wish, and outlives a reload."""
    visit = show(color_scheme="light").open()
    scheme = "() => [document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor]"
    assert visit.tab.evaluate(scheme) == ["auto", "rgb(246, 246, 243)"]
    visit.tab.get_by_role("button", name="Theme: auto").click()
    visit.tab.get_by_role("button", name="Theme: light").click()
    assert visit.tab.evaluate(scheme) == ["dark", "rgb(17, 20, 22)"]
    visit.reload()
    assert visit.tab.evaluate(scheme) == ["dark", "rgb(17, 20, 22)"]


# Keyboard

FOCUS = """() => {
  const at = document.activeElement;
  const shown = at.matches(".segments input") ? at.nextElementSibling : at;
  const style = getComputedStyle(shown);
  const labels = [...(at.labels ?? [])].map((label) => label.textContent).join(" ");
  const name = at.getAttribute("aria-label") || labels || at.textContent;
  return { id: at.id || at.dataset.view || at.name || at.textContent.trim(), name: name.trim(),
    outline: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 };
}"""


def walk(visit: Visit, until: str, most: int = 40) -> list[str]:
    """Press Tab until *until* has the focus; everything on the way has a name and shows its focus."""
    seen: list[str] = []
    while until not in seen:
        assert len(seen) < most, seen
        visit.tab.keyboard.press("Tab")
        at = visit.tab.evaluate(FOCUS)
        assert at["outline"], f"{at['id']} does not show that it has the focus"
        assert at["name"], f"{at['id']} has no name"
        seen.append(at["id"])
    return seen


def test_everything_can_be_done_with_the_keyboard(show: Show) -> None:
    """A walk from the skip link through a question, its reason, a load and the device, without a mouse."""
    gate = Gate()
    visit = show(PageService(load_gate=gate)).open()
    keyboard = visit.tab.keyboard
    assert walk(visit, "skip") == ["skip"]
    keyboard.press("Enter")
    assert visit.focused() == "main"
    order = walk(visit, "new-chat")
    assert [each for each in order if each in ("message", "send", "model", "speed", "new-chat")] == [
        "message", "send", "model", "speed", "new-chat",
    ]  # fmt: skip
    visit.find("#message").focus()
    keyboard.type("hi")
    keyboard.press("Enter")
    visit.answer()
    assert visit.focused() == "message"
    visit.find("#skip").focus()
    walk(visit, "models")
    keyboard.press("Enter")
    visit.find("#view-models").wait_for()
    walk(visit, "Load")
    keyboard.press("Enter")
    wait_until(gate.entered.is_set, "the load began")
    gate.opened.set()
    visit.find("#skip").focus()
    walk(visit, "device")
    keyboard.press("Enter")
    visit.find("#gauge-gpu").wait_for()
    assert visit.tab.title() == "Device · JetLLM"


def test_the_stop_button_is_reached_by_tab(show: Show) -> None:
    """From the message the next stop of the keyboard is the button that stops."""
    gate = Gate()
    visit = show(PageService(script=(gate,))).open()
    visit.ask("hi")
    walk(visit, "stop", most=1)
    visit.tab.keyboard.press("Enter")
    visit.shows("Stopped.")


def test_a_daemon_that_is_gone_is_said_to_be_gone(show: Show) -> None:
    """The page says so, with what to do, and takes it back when the daemon answers again."""
    visit = show().open()
    visit.watch.allowed = ("Failed to load resource",)
    visit.tab.route("**/jetllm/**", lambda route: route.abort())
    visit.shows("the daemon cannot be reached")
    visit.shows("jetllm status")
    visit.tab.unroute("**/jetllm/**")
    visit.find("#banner").wait_for(state="hidden")
