"""The log file: private, bounded, readable while it is written."""

from __future__ import annotations

import itertools
import logging
import stat
from pathlib import Path

import pytest

from inference.logs import FILE, Entry, LogFile, entries, follow, last_lines


def record(text: str) -> logging.LogRecord:
    """A message of the daemon's."""
    return logging.LogRecord("inference.daemon", logging.INFO, "", 0, text, None, None)


def test_the_files_are_private_and_few(tmp_path: Path) -> None:
    """Five files of the size at most, each for its owner alone; the newest lines are kept."""
    log = LogFile(tmp_path, max_bytes=1000)
    for number in range(200):
        log.handle(record(f"message {number:03}"))
    log.close()
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == [FILE, *(f"{FILE}.{number}" for number in (1, 2, 3, 4))]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    assert all(path.stat().st_size <= 1000 for path in files)
    assert last_lines(tmp_path, 1)[0].endswith("message 199")


def test_the_last_lines_go_over_the_files(tmp_path: Path) -> None:
    """The order is that of writing, over a rotation too; no log is no lines."""
    assert last_lines(tmp_path, 10) == []
    log = LogFile(tmp_path, max_bytes=500)
    for number in range(20):
        log.handle(record(f"message {number:02}"))
    log.close()
    assert [line[-2:] for line in last_lines(tmp_path, 12)] == [f"{n:02}" for n in range(8, 20)]


def test_lines_are_followed_over_a_rotation(tmp_path: Path) -> None:
    """What is written after the look comes, from the next file too, and nothing that was there before."""
    log = LogFile(tmp_path, max_bytes=300)
    log.handle(record("before"))
    numbers = itertools.count()

    def write() -> bool:
        number = next(numbers)
        assert number < 100, "nothing comes any more"
        log.handle(record(f"message {number}"))
        return False

    found = list(itertools.islice(follow(tmp_path, write), 12))
    log.close()
    assert [line.rpartition(" ")[2] for line in found] == [str(number) for number in range(12)]


def test_a_log_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    """`logs -f` may be there before the daemon is."""
    logs: list[LogFile] = []

    def begin() -> bool:
        if not logs:
            logs.append(LogFile(tmp_path))
            logs[0].handle(record("first"))
            return False
        return True

    assert [line.rpartition(" ")[2] for line in follow(tmp_path, begin)] == ["first"]
    logs[0].close()


def test_messages_of_several_lines_stay_together() -> None:
    """A line without a head belongs to the message before."""
    lines = ["2026-11-21 20:00:00,123 ERROR inference.service: it stays:", "models.json: wrong", "loose"]
    assert entries(["stray", *lines]) == [
        Entry(None, None, None, "stray"),
        Entry(
            "2026-11-21 20:00:00,123", "ERROR", "inference.service", "it stays:\nmodels.json: wrong\nloose"
        ),
    ]


def test_a_full_disk_costs_messages_and_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The daemon goes on without its log; no traceback reaches standard error."""
    (tmp_path / FILE).symlink_to("/dev/full")
    log = LogFile(tmp_path, max_bytes=0)
    for _ in range(3):
        log.handle(record("lost"))
    with pytest.raises(OSError):  # what is still unwritten
        log.close()
    assert capsys.readouterr().err.count("\n") == 1
