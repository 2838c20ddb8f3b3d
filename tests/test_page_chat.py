"""The page's chat, in a browser: streaming, stopping, what was chosen, errors, and hostile text."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

from inference import errors
from inference.generation import Chunk, FinishReason
from tests.conftest import wait_until
from tests.daemon_process import MODEL as REAL
from tests.daemon_process import DaemonProcess
from tests.fake_service import MODEL, FakeStream, Gate, end
from tests.page_browser import Show, Visit
from tests.page_service import HERE, PageService, model_row, worker_row

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\n\n"
    "[here](javascript:alert(3)) [or](javascript:stop) [or](data:text/html,x)\n\n"
    "![i](http://evil.invalid/a.png) <a href='javascript:alert(4)'>b</a>\n\n"
    "```html\n<iframe src='http://evil.invalid'></iframe></code><script>alert(5)</script>\n```\n\n"
    "# <svg onload=alert(6)>\n\n- <b>item</b>\n\n| <i>a</i> | b |\n|---|---|\n| <u>c</u> | d |\n\n"
    "&lt;kept&gt;"
)

MARKS = (
    "*",
    "*a ",
    "_a",
    "`",
    "``a`",
    "[",
    "[a](",
    "> ",
    "- ",
    "|-",
    "~~x",
    "**a ",
    "#",
    "```\n",
    "1. x\n  ",
)


def test_an_answer_is_shown_as_it_comes(show: Show) -> None:
    """The first words are there while the rest is still computed; the end adds figures and reason."""
    gate = Gate()
    visit = show(PageService(script=(Chunk("It is **quite** "), gate, Chunk("blue."), end()))).open()
    visit.ask("Why is the sky blue?")
    visit.shows("It is")
    assert visit.find(".assistant[aria-busy=true]").count() == 1
    assert visit.find(".assistant strong").inner_text() == "quite"
    assert visit.find(".origin").count() == 0
    gate.opened.set()
    assert visit.answer() == "It is quite blue."
    origin = visit.find(".origin").inner_text().replace("\xa0", " ")
    assert f"{MODEL} · 3 tokens · 30.0 tokens/s · prompt read in 300 ms" in origin
    assert "Chosen: q4: best task fit (conversation); 40 tokens/s measured" in origin
    assert visit.find(".assistant[aria-busy]").count() == 0


def test_stop_ends_the_answer_and_the_work(show: Show) -> None:
    """What came stays, the engine is told at once, and the next question can be asked."""
    gate = Gate()
    visit = show(PageService(script=(Chunk("Once upon"), gate, end()))).open()
    visit.ask("Tell me a story")
    visit.shows("Once upon")
    assert not visit.find("#send").is_visible()
    visit.find("#stop").click()
    visit.shows("Stopped.")
    assert visit.answer() == "Once upon"
    wait_until(lambda: visit.service.streams[0].closed.is_set(), "the work ended")
    assert visit.find("#send").is_visible() and not visit.find("#stop").is_visible()
    assert visit.focused() == "message"


def test_escape_stops_before_the_first_word_too(show: Show) -> None:
    """A prompt that is still read is given up by the keyboard alone."""
    gate = Gate()
    visit = show(PageService(before=(gate,))).open()
    visit.ask("hi")
    wait_until(gate.entered.is_set, "the work began")
    visit.tab.keyboard.press("Escape")
    visit.shows("Stopped.")
    wait_until(gate.left.is_set, "the work ended")


def test_choices_are_sent(show: Show) -> None:
    """Model, priority, system prompt and sampling are what the request says; what is empty is left out."""
    visit = show().open()
    visit.find("#model").select_option(label=HERE.upper())
    visit.find("#settings summary").click()
    visit.tab.fill("#system", "Be brief.")
    visit.tab.fill("#temperature", "0.5")
    visit.tab.fill("#max-tokens", "64")
    visit.tab.get_by_label("Fast").check()
    visit.ask("hi")
    visit.answer()
    request = visit.service.requests[0]
    assert (request.model, request.speed, request.temperature, request.max_tokens) == (HERE, "fast", 0.5, 64)
    assert request.top_p is None and request.context_overflow is None
    assert request.messages is not None
    assert [(m.role, m.content) for m in request.messages] == [("system", "Be brief."), ("user", "hi")]
    visit.reload()
    assert visit.find("#model").input_value() == HERE
    assert visit.tab.get_by_label("Fast").is_checked() and visit.find("#temperature").input_value() == "0.5"


def test_the_device_chooses_unless_told(show: Show) -> None:
    """Without a choice the model is left to the device, and models that cannot chat are not offered."""
    service = PageService()
    service.rows.append(model_row("vectors", pulled=True, use_cases=["embedding"]))
    visit = show(service).open()
    offered = [option.strip() for option in visit.find("#model option").all_inner_texts()]
    assert offered == ["Automatic", "SmolLM2", HERE.upper()]
    visit.ask("hi")
    visit.answer()
    assert (visit.service.requests[0].model, visit.service.requests[0].speed) == (None, "balanced")


def test_all_candidates_can_be_compared(show: Show) -> None:
    """Whoever doubts the choice sees the others, with their numbers and why they lost; unknown is said."""
    visit = show().open()
    visit.ask("hi")
    visit.answer()
    visit.find(".why summary").click()
    visit.find(".why tbody tr").last.wait_for()
    rows = [row.replace("\xa0", " ") for row in visit.find(".why tbody tr").all_inner_texts()]
    assert "1.0 GiB" in rows[0] and "would be chosen now" in rows[0]
    assert HERE in rows[1] and "unknown" in rows[1] and "smaller" in rows[1]


def test_a_conversation_goes_on_and_outlives_a_reload(show: Show) -> None:
    """The tab keeps what was said; the model gets it all; "New chat" clears it."""
    visit = show().open()
    visit.ask("one")
    visit.answer()
    visit.reload()
    visit.ask("two")
    visit.find(".origin").nth(1).wait_for()
    messages = visit.service.requests[-1].messages
    assert messages is not None
    assert [m.role for m in messages] == ["user", "assistant", "user"]
    assert messages[1].content == "It is **quite** blue."
    visit.find("#new-chat").click()
    visit.shows("What would you like to know?")
    visit.reload()
    assert visit.find(".turn").count() == 0


def test_a_new_chat_gives_up_the_answer_under_way(show: Show) -> None:
    """Whoever clears the chat wants none of the rest: the work ends and the next question can be asked."""
    gate = Gate()
    visit = show(PageService(script=(Chunk("Once"), gate, end()))).open()
    visit.ask("Tell me a story")
    visit.shows("Once")
    visit.find("#new-chat").click()
    wait_until(lambda: visit.service.streams[0].closed.is_set(), "the work ended")
    visit.service.script = (Chunk("Fresh."), end())
    visit.ask("again")
    assert visit.answer() == "Fresh."
    assert visit.find(".turn").count() == 2


def test_an_answer_that_was_left_is_known_to_be_stopped(show: Show) -> None:
    """A reload in the middle keeps what came and says that it is not all."""
    gate = Gate()
    visit = show(PageService(script=(Chunk("Once"), gate, end()))).open()
    visit.ask("Tell me a story")
    visit.shows("Once")
    visit.tab.reload()
    visit.shows("Stopped.")
    assert visit.find(".assistant .said").inner_text() == "Once"


def test_an_error_is_shown_with_its_hint_and_can_be_tried_again(show: Show) -> None:
    """Message, next step and the request's id; the question that failed is not sent twice."""
    refusal = errors.DoesNotFitError("m needs 3.9 GiB", hint="use a context of 4096 tokens")
    visit = show(PageService(before=(refusal,))).open()
    visit.watch.allowed = ("Failed to load resource",)
    visit.ask("hi")
    visit.shows("m needs 3.9 GiB")
    visit.shows("use a context of 4096 tokens")
    visit.shows("Request req_")
    visit.service.before = ()
    visit.tab.get_by_role("button", name="Try again").click()
    assert visit.answer() == "It is quite blue."
    assert visit.find(".failure").count() == 0
    messages = visit.service.requests[-1].messages
    assert messages is not None and [m.content for m in messages] == ["hi"]


def test_a_question_without_an_answer_is_not_told_to_the_model(show: Show) -> None:
    """After a failure the next question stands alone: two questions in a row confuse templates."""
    visit = show(PageService(before=(errors.MemoryPressureError("no room"),))).open()
    visit.watch.allowed = ("Failed to load resource",)
    visit.ask("one")
    visit.shows("no room")
    visit.service.before = ()
    visit.ask("two")
    visit.find(".origin").wait_for()
    messages = visit.service.requests[-1].messages
    assert messages is not None and [m.content for m in messages] == ["two"]


def test_an_answer_that_breaks_off_keeps_what_came(show: Show) -> None:
    """An error in the middle of a stream stands below the words that came before it."""
    visit = show(PageService(script=(Chunk("Half of"), errors.WorkerCrashedError("m: killed")))).open()
    visit.ask("hi")
    visit.shows("m: killed")
    assert visit.find(".assistant .said").inner_text() == "Half of"
    assert visit.find(".origin").count() == 1


def test_a_full_answer_says_that_it_was_cut(show: Show) -> None:
    """An end by the most tokens is no end of a sentence."""
    visit = show(PageService(script=(Chunk("and so"), end(FinishReason.LENGTH)))).open()
    visit.ask("hi")
    visit.shows("Cut off: the maximum of tokens was reached.")


def test_turns_that_are_left_out_are_counted(show: Show) -> None:
    """Whoever lets the conversation slide is told how much of it the model did not read."""
    visit = show().open()
    visit.find("#settings summary").click()
    visit.find("#slide").check()
    with mock.patch.object(FakeStream, "dropped_turns", 2):
        visit.ask("hi")
        visit.shows("Left out for want of room: the first 2 turns.")
    assert visit.service.requests[0].context_overflow == "slide"


def test_a_loading_model_shows_how_far_it_is(show: Show) -> None:
    """Before the first word: which model is loaded, in percent and as a bar."""
    gate = Gate()
    service = PageService(before=(gate,), workers=[worker_row(HERE, state="starting", progress=0.45)])
    visit = show(service).open()
    visit.ask("hi")
    visit.shows(f"Loading {HERE} · 45\xa0%…")
    assert visit.find(".waiting progress").evaluate("(bar) => bar.value") == 0.45
    gate.opened.set()
    visit.answer()
    assert visit.find(".waiting").count() == 0


def test_text_of_a_model_stays_text(show: Show) -> None:
    """Whatever a model or the registry writes: no element, no link to code, no request comes of it."""
    service = PageService(script=(Chunk(HOSTILE), end()))
    service.row(HERE)["name"] = "<img src=x onerror=alert(7)>"
    visit = show(service).open()
    visit.ask("<script>alert(8)</script>")
    shown = visit.answer()
    for text in (
        "<script>alert(1)</script>",
        "javascript:alert(3)",
        "</code><script>",
        "<svg onload",
        "<b>item</b>",
    ):
        assert text in shown
    assert "<i>a</i>" in shown and "&lt;kept&gt;" in shown
    forbidden = ".turn :is(script, img, iframe, svg, b, i, u, a:not([href^='http://evil.invalid/a.png']))"
    assert visit.find(forbidden).count() == 0
    assert visit.find(".user .said").inner_text() == "<script>alert(8)</script>"
    visit.open("models").find("h2", has_text="<img src=x onerror=alert(7)>").wait_for()
    assert visit.find("#models img").count() == 0
    visit.reload()
    assert visit.find(forbidden).count() == 0


def test_markdown_becomes_elements(show: Show) -> None:
    """Headings, lists in lists, tables, quotes, code with its language, emphasis and plain links."""
    text = (
        "## Title\n\n1. one\n   - inner *em*\n2. two\n\n> said\n\n| a | b |\n|---|---|\n| c | `d` |\n\n"
        "```python\nif a < b:\n    pass\n```\n\n2*3*4 snake_case_name \\*kept\\* **bold** [x](https://a.invalid/p)"
    )
    visit = show(PageService(script=(Chunk(text), end()))).open()
    visit.ask("hi")
    visit.answer()
    prose = visit.find(".prose")
    assert prose.locator("h4").inner_text() == "Title"
    assert prose.locator("ol > li").count() == 2 and prose.locator("ol ul em").inner_text() == "em"
    assert prose.locator("blockquote").inner_text() == "said"
    assert prose.locator("tbody td").all_inner_texts() == ["c", "d"]
    assert prose.locator("pre code").text_content() == "if a < b:\n    pass"
    assert prose.locator(".code-head span").inner_text() == "python"
    last = prose.locator("> p").last
    assert last.inner_text() == "2*3*4 snake_case_name *kept* bold x"
    assert last.locator("a").get_attribute("rel") == "noopener noreferrer"


def test_no_text_keeps_the_browser_busy(show: Show) -> None:
    """Marks that never close are read in linear time, however many of them a model writes."""
    visit = show().open()
    script = """async (text) => {
      const { render } = await import("/ui/markdown.js");
      const began = performance.now();
      render(document.createElement("div"), text);
      return performance.now() - began;
    }"""
    for piece in MARKS:
        assert visit.tab.evaluate(script, piece * 20_000) < 10_000, piece


def test_screen_readers_hear_sentences(show: Show) -> None:
    """The live region gets whole sentences as they end, and the rest at the end; each once."""
    first, gate = "The sky scatters the blue part of sunlight. And", Gate()
    visit = show(PageService(script=(Chunk(first), gate, Chunk(" so on"), end()))).open()
    log = visit.find("#spoken")
    assert (log.get_attribute("aria-live"), log.get_attribute("role")) == ("polite", "log")
    visit.ask("hi")
    visit.find("#spoken p").first.wait_for(state="attached")
    assert visit.find("#spoken p").all_text_contents() == ["The sky scatters the blue part of sunlight."]
    gate.opened.set()
    visit.answer()
    assert visit.find("#spoken p").all_text_contents()[1:] == ["And so on"]


def test_without_any_model_the_way_to_one_is_shown(show: Show) -> None:
    """An empty device says so and leads to the models."""
    service = PageService(rows=[model_row("a"), model_row("b")], workers=[])
    visit = show(service)
    visit.tab.goto(visit.url)
    visit.shows("No model is on this device yet")
    visit.tab.get_by_role("link", name="Choose a model").click()
    visit.find("#view-models").wait_for()


def test_a_real_model_answers(browser: Any, tmp_path: Any, smollm2_path: Any) -> None:
    """The whole way once: a browser, a real daemon, and SmolLM2 chosen by the device."""
    with DaemonProcess(tmp_path) as daemon:
        context = browser.new_context()
        try:
            visit = Visit(PageService(), context.new_page(), f"{daemon.url}/")
            visit.tab.set_default_timeout(60_000)
            visit.open()
            visit.tab.evaluate("() => document.querySelector('#settings').open = true")
            visit.tab.fill("#max-tokens", "12")
            visit.find("#model").select_option(REAL)
            visit.ask("Say hello.")
            assert visit.answer()
            assert "Chosen: llamacpp-q4_1" in visit.find(".origin").inner_text()
            kept = json.loads(visit.tab.evaluate("() => sessionStorage.getItem('jetllm.chat')"))
            assert kept[-1]["usage"]["completion_tokens"] <= 12
        finally:
            context.close()
        visit.watch.check()
