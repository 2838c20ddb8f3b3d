"""The log of a build step: the head and the tail of what it wrote, and the line that says why it failed."""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
from pathlib import Path
from types import TracebackType

KEPT_BYTES = 4 * 2**20
_HALF_BYTES = KEPT_BYTES // 2
_READ_BYTES = 2**16
_TELLING_BYTES = 2**16
_TELLING_CHARACTERS = 300
_RAISED = re.compile(r"^(Fatal Python error|[\w.]*(Error|Exception|Interrupt))\b")
_COMPLAINS = re.compile(
    r"error|fail|invalid|corrupt|cannot|unable|not found|assert|out of memory|no space", re.IGNORECASE
)
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s/'\":,()]+/)+")


class StepLog:
    """Takes a step's output from a pipe, however much it is, and appends at most `KEPT_BYTES` to a file.

    The first half is written as it comes, the last half when the log is closed. A disk that takes no
    more ends the log and not the step.
    """

    def __init__(self, path: Path) -> None:
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._total_bytes = 0
        self._tail = bytearray()
        self._ended = False

    def __enter__(self) -> StepLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unwritten = max(0, self._total_bytes - _HALF_BYTES)
        tail = self._tail[-min(unwritten, _HALF_BYTES) :] if unwritten else b""
        if unwritten > len(tail):
            self._write(f"\n[{unwritten - len(tail)} bytes left out]\n".encode())
        self._write(tail)
        if self._file is not None:
            os.close(self._file)

    def take(self, pipe: int, wait_s: float) -> None:
        """Read what comes within *wait_s*; return early, once, when nothing more can come."""
        end = time.monotonic() + wait_s
        while (left_s := end - time.monotonic()) > 0:
            if self._ended:
                time.sleep(left_s)
            elif _readable(pipe, left_s) and not self._read(pipe):
                return

    def take_rest(self, pipe: int) -> None:
        """Read what is still in the pipe; its writers have ended, or nobody hears them any more."""
        for _ in range(KEPT_BYTES // _READ_BYTES):
            if self._ended or not _readable(pipe, 0) or not self._read(pipe):
                return

    def telling_line(self) -> str | None:
        """Return the line that most likely says why the step failed, on one line and without folders."""
        text = self._tail[-_TELLING_BYTES:].decode("utf-8", "replace")
        lines = [plain for line in text.splitlines() if (plain := _ESCAPE.sub("", line).rstrip())]
        raised = [at for at, line in enumerate(lines) if _RAISED.search(line)]
        complaints = [at for at, line in enumerate(lines) if _COMPLAINS.search(line)]
        if not lines:
            return None
        at = raised[-1] if raised else complaints[-1] if complaints else len(lines) - 1
        line = " ".join(lines[at : at + 2]) if lines[at].endswith(":") else lines[at]
        shown = "".join(c if c.isprintable() else " " for c in _FOLDERS.sub("", line))
        return " ".join(shown.split())[:_TELLING_CHARACTERS]

    def _read(self, pipe: int) -> bool:
        data = os.read(pipe, _READ_BYTES)
        self._ended = not data
        self._add(data)
        return bool(data)

    def _add(self, data: bytes) -> None:
        """Keep *data*: in the file, and for the telling line and the second half in memory."""
        self._write(data[: max(0, _HALF_BYTES - self._total_bytes)])
        self._total_bytes += len(data)
        self._tail += data
        if len(self._tail) > 2 * _HALF_BYTES:  # now and then, for to cut at each read would copy it all
            del self._tail[:-_HALF_BYTES]

    def _write(self, data: bytes | bytearray) -> None:
        if self._file is None or not data:
            return
        try:
            os.write(self._file, data)
        except OSError:  # no space, or the disk went away: the build is worth more than its log
            os.close(self._file)
            self._file = None


def _readable(pipe: int, wait_s: float) -> bool:
    """Wait for a pipe; poll(2), because select(2) knows no descriptor above 1023."""
    waiting = select.poll()
    waiting.register(pipe, select.POLLIN)
    return bool(waiting.poll(wait_s * 1000))
