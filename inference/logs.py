"""The daemon's log file: written by the daemon, read by `jetllm logs`.

It lies in the state directory, readable by its owner alone, and is begun anew at 1 MiB; four former ones
are kept. It has what the daemon does, never a prompt, an answer or a key.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

FILE = "daemon.log"
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_MAX_BYTES = 2**20
_FORMER = 4
_ENTRY = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) ([A-Z]+) ([\w.]+): (.*)", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """One message; *time*, *level* and *logger* are ``None`` of a line that is not the daemon's own."""

    time: str | None
    level: str | None
    logger: str | None
    message: str


class LogFile(RotatingFileHandler):
    """Writes to the log file of *state_dir*; a full disk costs messages, and is told once.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, state_dir: Path, *, max_bytes: int = _MAX_BYTES) -> None:
        self._told = False
        super().__init__(state_dir / FILE, maxBytes=max_bytes, backupCount=_FORMER, encoding="utf-8")
        self.setFormatter(logging.Formatter(FORMAT))

    def _open(self) -> TextIOWrapper:
        def private(path: str, flags: int) -> int:
            return os.open(path, flags | os.O_CLOEXEC, 0o600)

        return open(self.baseFilename, "a", encoding="utf-8", errors="backslashreplace", opener=private)

    def handleError(self, record: logging.LogRecord) -> None:
        """Go on without the message."""
        if not self._told:
            self._told = True
            sys.stderr.write(f"warning: the log file cannot be written: {sys.exc_info()[1]}\n")


def last_lines(state_dir: Path, count: int) -> list[str]:
    """Return the last *count* lines of the log, the former files' too; none where there is no log."""
    lines: deque[str] = deque(maxlen=count)
    for path in _files(state_dir):
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                lines.extend(line.rstrip("\n") for line in file)
        except FileNotFoundError:  # rotated meanwhile
            continue
    return list(lines)


def follow(state_dir: Path, wait: Callable[[], bool]) -> Iterator[str]:
    """Yield the lines that are written from now on, until *wait*, called between looks, returns true."""
    path = state_dir / FILE
    file = path.open("rb") if path.exists() else None
    rest = b""
    try:
        if file is not None:
            file.seek(0, os.SEEK_END)
        while True:
            while file is not None and (block := file.read(65536)):
                *lines, rest = (rest + block).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in lines)
            if file is None or not _is_open_at(file.fileno(), path):
                former, file = file, (path.open("rb") if path.exists() else None)
                if former is not None:
                    former.close()
                if file is not None:
                    continue
            if wait():
                return
    finally:
        if file is not None:
            file.close()


def entries(lines: list[str]) -> list[Entry]:
    """Return the messages of *lines*; what follows a message's first line belongs to it."""
    found: list[Entry] = []
    for line in lines:
        match = _ENTRY.fullmatch(line)
        if match is not None:
            found.append(Entry(*match.groups()))
        elif found:
            last = found[-1]
            found[-1] = Entry(last.time, last.level, last.logger, f"{last.message}\n{line}")
        else:
            found.append(Entry(None, None, None, line))
    return found


def _files(state_dir: Path) -> list[Path]:
    """Return the log's files, the oldest first."""
    names = [*(f"{FILE}.{number}" for number in range(_FORMER, 0, -1)), FILE]
    return [state_dir / name for name in names]


def _is_open_at(descriptor: int, path: Path) -> bool:
    try:
        now = path.stat()
    except OSError:
        return False
    here = os.fstat(descriptor)
    return (now.st_ino, now.st_dev) == (here.st_ino, here.st_dev) and now.st_size >= os.lseek(
        descriptor, 0, os.SEEK_CUR
    )
