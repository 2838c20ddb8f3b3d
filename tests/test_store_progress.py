"""What the command line shows of a pull where there is no terminal, as in a log."""

from __future__ import annotations

import itertools

import pytest

from inference import console
from inference.artifacts.sources import Progress


def test_a_log_gets_a_line_per_phase_and_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes, rate and time left, as far as they are known; not ten lines a second."""
    clock = itertools.count(0, 4)
    monkeypatch.setattr("inference.console.time.monotonic", lambda: next(clock))
    with console.download_bar("m") as show:
        show(Progress("wait", 0, None, None, None))
        show(Progress("download", 0, 200_000_000, None, None))
        for done in range(1, 6):
            show(Progress("download", done * 10_000_000, 200_000_000, 2.5e6, 60.0 - done))
        show(Progress("check", 0, None, None, None))
    assert capsys.readouterr().err.splitlines() == [
        "m: waiting for another download",
        "m: downloading 200 MB",
        "m: downloading 30 of 200 MB, 2.5 MB/s, 57 s left",
        "m: checking",
    ]
