"""A real supervisor in a process of its own, and the socket that systemd would listen on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from inference.appliance.layout import Layout
from tests.conftest import wait_until

_OWNER = 10001
_PROGRAM = """
import logging, os, sys
from pathlib import Path
from inference.appliance.config import load_config
from inference.appliance.layout import Layout
from inference.appliance.supervisor import supervise
logging.basicConfig(level="INFO", format="%(message)s")
layout = Layout(Path(sys.argv[1]))
sys.exit(supervise(load_config(layout.config), layout, os.environ, native=len(sys.argv) > 2))
"""


class NotifySocket:
    """Collects what a service tells systemd; *name* is a path, or "@" and an abstract name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        self._socket.settimeout(0.05)
        self._ending = threading.Event()
        self._told: list[str] = []
        self._thread = threading.Thread(target=self._listen, name="notify")
        self._thread.start()

    def _listen(self) -> None:
        while not self._ending.is_set():
            try:
                self._told += self._socket.recv(65536).decode().splitlines()
            except TimeoutError:
                continue

    @property
    def told(self) -> list[str]:
        """Every line so far."""
        return list(self._told)

    def has(self, line: str) -> bool:
        """Whether a line began so."""
        return any(told.startswith(line) for told in self.told)

    def wait(self, line: str) -> str:
        """Wait for a line that begins so, and return the last such."""
        wait_until(lambda: self.has(line), line)
        return next(told for told in reversed(self.told) if told.startswith(line))

    def forget(self) -> None:
        """Begin anew."""
        self._told.clear()

    def close(self) -> None:
        """Listen no more."""
        self._ending.set()
        self._thread.join()
        self._socket.close()


class Supervised:
    """Runs the supervisor on the appliance at *root*; ends it with the block."""

    def __init__(self, root: Path, notify: NotifySocket, *, native: bool = False, **environ: str) -> None:
        self.layout = Layout(root)
        self.log: list[str] = []
        self._notify = notify
        self._arguments = [str(root), *(["native"] if native else [])]
        self._environ = environ

    def __enter__(self) -> Supervised:
        environ = {**os.environ, **self._environ, "NOTIFY_SOCKET": self._notify.name}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *self._arguments],
            env=environ,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started_s = time.monotonic()
        self._reader = threading.Thread(target=self._read, name="supervisor-log")
        self._reader.start()
        return self

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            self.log += (line.rstrip() for line in lines)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.stop()
        self._reader.join()

    def stop(self) -> int:
        """Stop it as systemd does; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self, timeout_s: float = 30) -> int:
        """Wait for its end; return its exit code."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join()
        return code


def appliance(root: Path, port: int, **settings: object) -> Layout:
    """Make the directories and the configuration of an appliance below *root*."""
    layout = Layout(root)
    for directory in (layout.config.parent, layout.store, layout.state, layout.run):
        directory.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(layout.state, _OWNER, _OWNER)
    values = {"port": port, "runtime": "", "drain_timeout_s": 5, **settings}
    lines = [f"{name} = {value}" for name, value in values.items()]
    layout.config.write_text("\n".join(["[appliance]", *lines, ""]))
    return layout


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
