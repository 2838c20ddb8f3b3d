"""Notifications: what a service tells systemd, as sd_notify(3) has it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_MAX_STATUS_CHARACTERS = 400


class Notifier:
    """Speaks to the socket that *environ* names; where it names none, nobody is told and all is well.

    Args:
        environ: the process's environment: NOTIFY_SOCKET (a path, or "@" and the name of an abstract
            socket), WATCHDOG_USEC and WATCHDOG_PID.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{name[1:]}" if name.startswith("@") else name
        self.watchdog_s = _watchdog_s(environ)
        """Seconds of silence after which systemd kills this process; ``None`` where it does not."""

    def ready(self, status: str) -> None:
        """The service does its work from now on."""
        self._send("READY=1", _status(status))

    def status(self, status: str) -> None:
        """Set the line that `systemctl status` shows."""
        self._send(_status(status))

    def watchdog(self) -> None:
        """The service made progress: begin its time anew."""
        self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Let the start or the stop that goes on take *seconds* from now."""
        self._send(_extend(seconds))

    def stopping(self, status: str, seconds: float) -> None:
        """The service ends, within *seconds*."""
        self._send("STOPPING=1", _extend(seconds), _status(status))

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            try:
                sender.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                # systemd that is being replaced, or a test that has ended: it judges by silence.
                return


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Return *environ* for a child: what systemd tells this process is not for it."""
    return {name: text for name, text in environ.items() if name not in _VARIABLES}


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())[:_MAX_STATUS_CHARACTERS]}"


def _extend(seconds: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={max(1, round(seconds * 1_000_000))}"


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """Return the watchdog's time, if it is meant for this process."""
    text, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not text.isdecimal() or int(text) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(text) / 1_000_000
