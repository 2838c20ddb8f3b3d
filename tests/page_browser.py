"""The page in headless Chromium: one browser for a module, a new profile and a watch for each test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import pytest

from inference.api import Limits
from tests.http_server import servers
from tests.page_service import PageService

WAIT_MS = 15_000
FAST = Limits(linger_s=0.5, farewell_s=1.0, tick_s=0.05)
UI = resources.files("inference.api") / "ui"
NAMES = ("chromium", "chromium-browser", "google-chrome")

Show = Callable[..., "Visit"]
"""Shows a service's page in a tab of its own."""

_REPORT = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy violated: ${event.violatedDirective} ${event.blockedURI}`));
"""


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the system's Chromium, or skip the tests where it or Playwright is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def _hurried(route: Any) -> None:
    """Let the page look at the daemon more often than its users need it to."""
    text = (UI / "live.js").read_text(encoding="utf-8")
    for period in ("PERIOD_MS = 2000", "RETRY_MS = 5000"):
        assert period in text
        text = text.replace(period, period.partition("=")[0] + "= 150")
    route.fulfill(body=text, content_type="text/javascript")


class Watch:
    """What a tab said and whom it asked; *allowed* are beginnings of messages that a test expects."""

    def __init__(self, tab: Any) -> None:
        self.problems: list[str] = []
        self.requests: list[Any] = []
        self.allowed: tuple[str, ...] = ()
        tab.on("console", lambda message: self._said(message.type, message.text))
        tab.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        tab.on("request", lambda request: self.requests.append(request))
        tab.on("dialog", lambda dialog: self.problems.append(f"dialog: {dialog.message}"))

    def _said(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.problems.append(text)

    def check(self) -> None:
        """No error, no violation of the policy, and no request to another host."""
        unexpected = [text for text in self.problems if not text.startswith(self.allowed or ("\0",))]
        assert unexpected == []
        hosts = {urlsplit(request.url).hostname for request in self.requests}
        assert hosts <= {"127.0.0.1", None}, hosts

    def paths(self) -> list[str]:
        """The paths that were asked for, in their order."""
        return [urlsplit(request.url).path for request in self.requests]


class Visit:
    """A tab that shows the page of a fake service."""

    def __init__(self, service: PageService, tab: Any, url: str) -> None:
        self.service = service
        self.tab = tab
        self.url = url
        self.watch = Watch(tab)

    def open(self, view: str = "chat") -> Visit:
        """Go to a view and wait until the models are known."""
        self.tab.goto(f"{self.url}#{view}")
        self.tab.wait_for_selector("#model optgroup", state="attached")
        return self

    def reload(self) -> None:
        """Load the page anew, and wait until the models are known."""
        self.tab.reload()
        self.tab.wait_for_selector("#model optgroup", state="attached")

    def find(self, selector: str, **options: Any) -> Any:
        """A locator, which waits."""
        return self.tab.locator(selector, **options)

    def shows(self, text: str) -> None:
        """Wait until *text* is seen."""
        self.tab.get_by_text(text).first.wait_for()

    def ask(self, text: str) -> None:
        """Type a question and send it with the keyboard."""
        self.tab.fill("#message", text)
        self.tab.press("#message", "Enter")

    def answer(self) -> str:
        """The last answer, once it is whole."""
        self.find(".origin, .failure").last.wait_for()
        return str(self.find(".assistant .said").last.inner_text())

    def focused(self) -> str:
        """The id of what has the focus, or else its text."""
        return str(
            self.tab.evaluate("() => document.activeElement.id || document.activeElement.textContent.trim()")
        )


@contextmanager
def visits(browser: Any) -> Iterator[Any]:
    """Within the block, show services; afterwards each tab must have been quiet."""
    shown: list[tuple[Visit, Any]] = []
    with servers() as start:

        def visit(service: PageService | None = None, **options: Any) -> Visit:
            service = service or PageService()
            context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
            context.add_init_script(_REPORT)
            context.set_default_timeout(WAIT_MS)
            context.route("**/ui/live.js", _hurried)
            host, port = start(service, FAST).address
            shown.append((Visit(service, context.new_page(), f"http://{host}:{port}/"), context))
            return shown[-1][0]

        try:
            yield visit
        finally:
            for _, context in shown:
                context.close()
    for each, _ in shown:
        each.watch.check()
