"""A terminal: a program with a pseudo-terminal of its own, typed at and read from by a test."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from types import TracebackType

CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"
DEADLINE_S = 60.0


class Terminal:
    """Runs `jetllm` with *arguments* at a terminal until the end of its block."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self._arguments = arguments
        self._environment: Mapping[str, str] = {**os.environ, "TERM": "xterm-256color", **environment}
        self.screen = ""
        self._seen = 0

    def __enter__(self) -> Terminal:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "inference", *self._arguments],
            env=self._environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def expect(self, text: str) -> str:
        """Wait until *text* is on the screen, after what was expected before; return what came with it."""
        end_s = time.monotonic() + DEADLINE_S
        while text not in self.screen[self._seen :]:
            assert time.monotonic() < end_s, f"no {text!r} in {self.screen[self._seen :]!r}"
            if not self._read(0.1) and self.process.poll() is not None:
                self._read(0.1)
                assert text in self.screen[self._seen :], f"it ended; no {text!r} in {self.screen!r}"
        before, end = self._seen, self.screen.index(text, self._seen) + len(text)
        self._seen = end
        return self.screen[before:end]

    def end(self) -> int:
        """Wait for the program's end; return its exit code."""
        end_s = time.monotonic() + DEADLINE_S
        while self.process.poll() is None:
            assert time.monotonic() < end_s, f"it does not end: {self.screen[self._seen :]!r}"
            self._read(0.1)
        while self._read(0):
            pass
        return self.process.returncode

    def _read(self, timeout_s: float) -> bool:
        """Take what the program has written; return whether that was anything."""
        if not select.select([self._master], [], [], timeout_s)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the program closed its side
            return False
        self.screen += data.decode("utf-8", "replace")
        return bool(data)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
