"""`phase3.progress`: what is seen of a run while it goes on."""

from __future__ import annotations

import io
import re

import pytest

from phase3.checks import Check
from phase3.outcome import Outcome, at_most, passed
from phase3.progress import Shown, line_of

CHECK = Check("speed", "Acceptable speed", lambda _: passed())


class Terminal(io.StringIO):
    """Standard error that is a terminal."""

    def isatty(self) -> bool:
        """It is one."""
        return True


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (at_most(0.5, 1.0, "s", "fine"), "✓ Cancel: 500 ms (≤ 1 s)"),
        (at_most(1.5, 1.0, "s", "left\nlate"), "✗ Cancel: 1.50 s (≤ 1 s); left late"),
        (passed("detail"), "✓ Cancel"),
        (Outcome("skip", detail="why"), "\u2013 Cancel: why"),
        (Outcome("unfit", detail="hot"), "? Cancel: hot"),
        (Outcome("error", detail="bug"), "! Cancel: bug"),
    ],
)
def test_a_finding_is_one_line(outcome: Outcome, line: str) -> None:
    """Value and limit always, the detail where something is not as it should be."""
    assert line_of(outcome.finding("cancel", "Cancel")) == line


def test_without_a_terminal_each_check_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Logs get what was found, under the model's name, and no bar."""
    with Shown("gpt2") as shown:
        shown.begins(CHECK, 0.0)
        shown.advances(0.5)
        shown.ends(passed().finding("speed", "Acceptable speed"))
    assert capsys.readouterr().err == "gpt2: ✓ Acceptable speed\n"


def test_on_a_terminal_a_bar_shows_the_step_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter done after a minute: three are left; findings stay above the bar."""
    now_s = [1000.0]
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("phase3.progress.time.monotonic", lambda: now_s[0])
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Shown("gpt2") as shown:
        now_s[0] += 60
        shown.ends(passed().finding("load", "Loads without errors"))
        shown.begins(CHECK, 0.25)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "✓ Loads without errors" in text
    assert re.search(r"gpt2 .*25% 3 min left Acceptable speed", text)
